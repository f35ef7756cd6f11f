"""python -m benchmarks: every measurement side by side, one thread; writes benchmarks/RESULTS.md.

A row is (case, measured, floor, aim); ratios against something timed in the same run, so that machines do not matter.
"""

from __future__ import annotations

import datetime
import os
import platform
import sys
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from foundations.environment import keep_memory  # noqa: E402
from foundations.files import write_text  # noqa: E402
from foundations.lazy import load_object  # noqa: E402
from foundations.results import markdown_table  # noqa: E402

SUITES = {
    "The threat": "benchmarks.bench_threat:rows",
    "Projections": "benchmarks.bench_projection:rows",
    "The tangent form, time as a multiple of the plain form": "benchmarks.bench_tangents:rows",
    "Projections against a solver, and at the size of ImageNet": "benchmarks.bench_qp:rows",
    "Attacks, time as a multiple": "benchmarks.bench_attacks:rows",
    "Training": "benchmarks.bench_training:rows",
    "Training in the set of safe moves, time as a multiple of an l-inf ball": "benchmarks.bench_safe_moves:rows",
    "Choosing anchors": "benchmarks.bench_selection:rows",
    "One projection on a GPU, counted on an emulated one": "benchmarks.count_kernels:rows",
    "Growth": "benchmarks.bench_growth:rows",
}


def main() -> None:
    """Measure all suites, or those named on the command line."""
    import torch

    torch.set_num_threads(1)
    keep_memory()  # as the command line does
    wanted = sys.argv[1:] or list(SUITES)
    parts = ["# Measurements", f"{_processor()}, one thread, torch {torch.__version__}, {datetime.date.today()}."]
    for name in wanted:
        rows = [[case, _written(value), floor, aim] for case, value, floor, aim in load_object(SUITES[name])()]
        parts += [f"## {name}", markdown_table(["case", "measured", "floor", "aim"], rows)]
        print("\n\n".join(parts[-2:]), flush=True)
    if not sys.argv[1:]:
        write_text(HERE / "RESULTS.md", "\n\n".join(parts) + "\n")


def _written(value: float) -> str:
    """A count in full, a measurement with three digits."""
    return str(value) if isinstance(value, int) else f"{value:.3g}"


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    names = (
        [line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if "model name" in line]
        if info.exists()
        else []
    )
    return names[0] if names else platform.processor() or platform.machine()


if __name__ == "__main__":
    main()
