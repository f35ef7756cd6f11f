"""Python's own filters show equal words once for each line: a loop over models warned of the first one alone."""

from __future__ import annotations

import os
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Literal

import pytest

from foundations.notices import warn_at_every_call
from testing.robust_accuracy import RobustnessWarning

PROJECT = Path(__file__).resolve().parents[2]

LOOP = """
import torch
from torch import nn

import nonisotropic


class Softmax(nn.Module):
    def forward(self, images):
        return images.flatten(1)[:, :2].softmax(1)


class Small(Softmax):
    def forward(self, images):
        if len(images) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return super().forward(images)


x, y = torch.tensor([0.6, 0.3] * 4).view(2, 1, 2, 2), torch.tensor([0, 0])
for number in range(2):
    print("model", number, flush=True)
    call, words = CALL, {"attacks": ["apgd_ce"], "steps": 2}
    call(MODEL(), x, y, nonisotropic.Linf(), 0.01, **words)  # here
"""
PROBABILITIES = "RobustnessWarning: the model's answers look like probabilities"
MEMORY = "UserWarning: out of memory: going on with 1 images"
ACCURACY = LOOP.replace("CALL", "nonisotropic.robust_accuracy").replace("MODEL", "Softmax")
ATTACK = LOOP.replace("CALL", "nonisotropic.attack").replace("MODEL", "Small")


@pytest.mark.parametrize(
    ("script", "told", "imported"),
    [(ACCURACY, PROBABILITIES, False), (ACCURACY, PROBABILITIES, True), (ATTACK, MEMORY, True)],
    ids=["the script", "a module of it", "memory"],
)
def test_every_model_of_a_loop_is_warned_of(script: str, told: str, imported: bool, tmp_path: Path) -> None:
    """In a process of its own, without -W: pytest has other filters."""
    (tmp_path / "loop.py").write_text(script)
    (tmp_path / "other.py").write_text("import loop")
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONWARNINGS"}
    environment["PYTHONPATH"] = str(PROJECT)
    command = [sys.executable, "other.py" if imported else "loop.py"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "model 0\nmodel 1\n"), done.stderr
    line = next(number for number, words in enumerate(script.splitlines(), start=1) if words.endswith("# here"))
    assert done.stderr.count(told) == done.stderr.count(f"loop.py:{line}: {told}") == 2, done.stderr


@pytest.mark.parametrize(("action", "shown"), [("ignore", 0), ("once", 1), ("default", 2), ("always", 2)])
def test_filters_of_the_user_decide(action: Literal["ignore", "once", "default", "always"], shown: int) -> None:
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter(action, RobustnessWarning)
        for _ in range(2):
            warn_at_every_call(f"told if the filter is {action}", RobustnessWarning)
    assert len(told) == shown and all(each.filename == __file__ for each in told)
    with warnings.catch_warnings(), pytest.raises(RobustnessWarning):
        warnings.simplefilter("error", UserWarning)
        warn_at_every_call("told", RobustnessWarning)
