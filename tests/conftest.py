"""Running commands as a user does, in a root of their own."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.fork_server import PROGRAM, fork_server

PROJECT = Path(__file__).resolve().parent.parent

torch.set_num_threads(1)

MOST_PROCESSES = 3  # of a command of these tests
COMMANDS = ("tests/faults/", "tests/runners/")  # run many, and take most of the time
MATHEMATICS = ("tests/threat_specification/", "tests/training/")


def device_of_commands(gpus: int) -> str:
    """The device that commands choose where no flag names one: equal ones for one process and for many."""
    return "auto" if gpus >= MOST_PROCESSES else "cpu"


if device_of_commands(torch.cuda.device_count()) == "cpu":
    os.environ.setdefault("NONISOTROPIC_DEVICE", "cpu")


def pytest_addoption(parser: pytest.Parser) -> None:
    """--on-device=cuda: a second pass of the mathematics, attacks and training, on a GPU."""
    parser.addoption("--on-device", help=f"run {' and '.join(MATHEMATICS)} alone, with this default device of torch")


def pytest_configure(config: pytest.Config) -> None:
    """Make tensors and generators on --on-device, those of test modules too, which are not imported yet."""
    device = config.getoption("--on-device")
    if not device:
        return
    plain = torch.Generator

    class Generator(plain):  # type: ignore[misc, valid-type]
        """A generator of the default device, without which it could not fill a tensor there."""

        def __new__(cls, device: torch.device | str = device) -> Generator:
            return plain.__new__(cls, device=device)

    torch.Generator = Generator  # type: ignore[misc]
    torch.set_default_device(device)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Files that take long come first, so that no process has one left when the other is done.

    Leave out what --on-device does not mean.
    """
    items.sort(key=lambda item: not item.nodeid.startswith(COMMANDS))
    if not config.getoption("--on-device"):
        return
    kept = [item for item in items if item.nodeid.startswith(MATHEMATICS)]
    config.hook.pytest_deselected(items=[item for item in items if item not in kept])
    items[:] = kept


@dataclass
class Command:
    """`nonisotropic.py` in processes of their own, writing below `root`."""

    root: Path

    def __call__(
        self,
        *words: str,
        processes: int = 0,
        torchrun: int = 0,
        root: str | None = None,
        environment: dict[str, str] | None = None,
    ) -> subprocess.CompletedProcess[str]:
        """Run with one process, with `processes` of them, or with `torchrun` of them below torchrun."""
        variables = {
            **os.environ,
            "NONISOTROPIC_HOME": str(self.root) if root is None else root,
            "OMP_NUM_THREADS": "1",
            **(environment or {}),
        }
        if not torchrun and not environment:
            return fork_server().run(words, variables, self.root, processes)
        launcher = [sys.executable]
        if torchrun:
            launcher += ["-m", "torch.distributed.run", "--nnodes=1", f"--nproc_per_node={torchrun}", "--standalone"]
        return subprocess.run(
            [*launcher, str(PROGRAM), *words],
            capture_output=True,
            text=True,
            env=variables,
            timeout=300,
            cwd=self.root,
        )

    def ok(self, *words: str, **options: Any) -> Path:
        """Run, demand success, and return the run's directory."""
        done = self(*words, **options)
        assert done.returncode == 0, done.stderr
        return self.where(*words)

    def where(self, *words: str) -> Path:
        """The directory that --display_output_location prints."""
        done = self(*words, "--display_output_location")
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("\n") == 1
        return Path(done.stdout.strip())

    def result(self, *words: str, **options: Any) -> dict[str, Any]:
        """Run, demand success, and return result.json."""
        return json.loads((self.ok(*words, **options) / "result.json").read_text())


@pytest.fixture
def command(tmp_path: Path) -> Command:
    """A root for one test."""
    return Command(tmp_path)


TINY: Sequence[str] = ("--dataset_name=digits", "--model_name=conv", "--training_steps=3ep")


@pytest.fixture(scope="session")
def digits_made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Anchors of digits and a small trained model, made once; tests get copies."""
    made = Command(tmp_path_factory.mktemp("digits"))
    made.ok("compute_threat", "--dataset_name=digits", "--per_label=10")
    made.ok("train", *TINY)
    return made.root


@pytest.fixture(scope="module")
def digits_root(digits_made: Path, tmp_path_factory: pytest.TempPathFactory) -> Command:
    """A copy for one module: what its tests add is not seen by others, whatever their order."""
    return Command(Path(shutil.copytree(digits_made, tmp_path_factory.mktemp("copy") / "digits")))


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Print figures that tests measured, at the end."""
    reports = [report for outcome in ("passed", "failed") for report in terminalreporter.stats.get(outcome, [])]
    figures = [str(value) for report in reports for name, value in report.user_properties if name == "figures"]
    for line in dict.fromkeys(figures):
        terminalreporter.write_line(line)
