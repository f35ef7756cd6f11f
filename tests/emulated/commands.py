"""Run commands on an emulated CUDA device, in a process of their own: lazily imported libraries may remember a device.

python tests/emulated/commands.py COUNTS "train --dataset_name=digits --device=cuda" ...     as many as wanted

Those without --device=cuda are run without the emulation. Writes to the file COUNTS, for each command, its exit code,
kernels, waits, and the waits by place. Figures are made, but not written, which takes most of the time of a small run.
"""

from __future__ import annotations

import json
import shlex
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any
from unittest import mock

TESTS = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(TESTS))  # not `from tests`: others have a package of that name
sys.path.insert(0, str(TESTS.parent))


def main(counts_file: str, *commands: str) -> None:
    """Run the commands until one fails."""
    import torch

    from cli.main import main as run
    from emulated.cuda import Counts, emulated_cuda

    torch.set_num_threads(1)
    table: list[dict[str, Any]] = []
    for command in commands:
        emulation = emulated_cuda() if "--device=cuda" in command else nullcontext(Counts())
        with emulation as counts, mock.patch("matplotlib.figure.Figure.savefig"):
            code = run(shlex.split(command))
        table.append({"code": code, "kernels": counts.launched, "waits": counts.waited, "places": dict(counts.places)})
        if code:
            break
    Path(counts_file).write_text(json.dumps(table))


if __name__ == "__main__":
    main(*sys.argv[1:])
