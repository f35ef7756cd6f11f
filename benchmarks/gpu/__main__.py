"""python -m benchmarks.gpu: a pass over a GPU, with ratios side by side, in about 8 minutes at most.

    python -m benchmarks.gpu                          the whole pass; writes RESULTS_GPU.md and .json in benchmarks/
    python -m benchmarks.gpu --only=exactness,bits    these sections alone
    python -m benchmarks.gpu --device=cpu --tiny      tries the pass out where there is no GPU, in a minute

Each section is on its own: one that fails is told of and passed over, and the exit code is 1 in the end. A section for
which too little of the budget is left is left out. A pass that is not whole, or not on a GPU, writes below --out.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler talks
HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1]))

from foundations.arithmetic import fix_workspaces  # noqa: E402
from foundations.errors import UsageError, nearest  # noqa: E402
from foundations.lazy import load_object  # noqa: E402


@dataclass(frozen=True)
class Section:
    """A part of the pass: "module:function" of a Bench, and the seconds of the budget that it needs to begin."""

    title: str
    function: str
    needs: float


SECTIONS = {
    "setting": Section("Setting", "benchmarks.gpu.numerics:setting", 5),
    "tests": Section("Tests on the device", "benchmarks.gpu.commands:tests", 60),
    "exactness": Section("Exactness with lowered precision", "benchmarks.gpu.numerics:exactness", 40),
    "bits": Section("The same bits", "benchmarks.gpu.numerics:bits", 30),
    "collectives": Section("Anchors over a group of one process", "benchmarks.gpu.numerics:collectives", 15),
    "threat": Section("Bound threat against torch.mm", "benchmarks.gpu.speed:threat", 20),
    "projection": Section("Exact projection against scaling", "benchmarks.gpu.speed:projection", 60),
    "hard": Section("Exact projection where many anchors bind", "benchmarks.gpu.speed:hard", 40),
    "attacks": Section("A step of APGD: PD against l-inf", "benchmarks.gpu.speed:attacks", 40),
    "training": Section("A step of training", "benchmarks.gpu.speed:training", 40),
    "imagenet": Section("At the size of ImageNet", "benchmarks.gpu.speed:imagenet", 40),
    "commands": Section("Commands: two runs, and a resumed one", "benchmarks.gpu.commands:commands", 60),
    "torchrun": Section("torchrun, one process a GPU", "benchmarks.gpu.commands:torchrun", 60),
}


def main(words: Sequence[str]) -> int:
    """Run the sections that were asked for; returns the exit code."""
    arguments = _parsed(words)
    try:
        names = _chosen(arguments.only)
        folder = _folder(arguments, whole=names == list(SECTIONS))
        _check_device(arguments.device)
    except UsageError as error:
        print(f"benchmarks.gpu: {error}", file=sys.stderr)
        return 2
    fix_workspaces()  # as commands do
    import torch

    from benchmarks.gpu.bench import Bench
    from benchmarks.gpu.record import Record

    device = torch.device(arguments.device)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "the CPU"
    told = "".join(f" {word}" for word in words if not word.startswith("--out"))
    titles = {section: SECTIONS[section].title for section in names}
    record = Record(folder, name + " (tiny problems)" * arguments.tiny, torch.__version__, told, titles)
    bench = Bench(device, arguments.tiny, arguments.budget, record)
    for section in names:
        _run(bench, section)
    print(f"{record.write_table()}: {record.failed or 'no section failed'}", flush=True)
    return 1 if record.failed else 0


def _run(bench: object, name: str) -> None:
    """Run one section; an error ends it alone."""
    from benchmarks.gpu.bench import Bench

    assert isinstance(bench, Bench)
    section, record, bench.section = SECTIONS[name], bench.record, name
    if bench.left() < section.needs and not bench.tiny:
        record.skipped[name] = f"{bench.left():.0f} s of the budget were left, and it needs {section.needs:.0f}"
        print(f"{name}: left out: {record.skipped[name]}", flush=True)
        record.write()
        return
    began = time.monotonic()
    try:
        load_object(section.function)(bench)
    except Exception as error:
        record.failed[name] = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        print(f"{name}: failed: {record.failed[name]}", flush=True)
        traceback.print_exc()
    record.seconds[name] = round(time.monotonic() - began, 1)
    record.write()


def _parsed(words: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser("python -m benchmarks.gpu", description="A pass over a GPU.")
    parser.add_argument("--device", default="cuda", help="cuda, cuda:<n> or cpu [cuda]")
    parser.add_argument("--tiny", action="store_true", help="problems of a few images, to try the pass out")
    parser.add_argument("--only", default="", help=f"sections, comma-separated: {', '.join(SECTIONS)}")
    parser.add_argument("--budget", type=float, default=450.0, help="seconds for all sections together [450]")
    parser.add_argument("--out", default="", help="folder of RESULTS_GPU.md and RESULTS_GPU.json")
    return parser.parse_args(words)


def _chosen(only: str) -> list[str]:
    names = [name.strip() for name in only.split(",") if name.strip()]
    for name in names:
        if name not in SECTIONS:
            raise UsageError(
                f"--only: no section '{name}'{nearest(name, list(SECTIONS))}; known: {', '.join(SECTIONS)}"
            )
    return [name for name in SECTIONS if name in names] or list(SECTIONS)


def _folder(arguments: argparse.Namespace, whole: bool) -> Path:
    """The folder for the results: figures of a GPU are replaced by those of a whole pass over a GPU alone."""
    counts = whole and not arguments.tiny and arguments.device.startswith("cuda")
    if not arguments.out:
        return HERE.parent if counts else Path(tempfile.mkdtemp(prefix="gpu_pass_"))
    folder = Path(arguments.out).resolve()
    if folder == HERE.parent and not counts:
        raise UsageError("--out: benchmarks/ takes whole passes over a GPU alone; name another folder")
    return folder


def _check_device(name: str) -> None:
    import torch

    if name.startswith("cuda") and not torch.cuda.is_available():
        raise UsageError("no CUDA device here; --device=cpu --tiny tries the pass out")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
