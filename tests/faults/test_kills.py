"""kill -9 at random moments; then the same command ends as if nothing had been."""

from __future__ import annotations

import os
import random
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.faults.processes import copied, differences, finish, kill_session, start

KILLS = int(os.environ.get("NONISOTROPIC_KILLS", "0"))  # runs of each runner that are killed; make soak does some
DIGITS = ("--dataset_name=digits", "--per_label=10", "--model_name=conv")
COMMANDS = {
    "compute_threat": ("compute_threat", "--dataset_name=digits", "--per_label=60", "--halves"),
    "train": ("train", *DIGITS, "--training_steps=6ep", "--checkpoint_minutes=1e-7", "--N_aug"),
    "test": ("test", *DIGITS, "--training_steps=3ep", "--standard_eval", "--N_adv_eval", "--attacks=apgd_ce,pgd"),
    "evaluate_threat": (
        "evaluate_threat",
        "--dataset_name=digits",
        "--per_label=10",
        "--num_examples=150",
        "--coverage_images=20",
    ),
}


@pytest.fixture(scope="module")
def base(digits_root, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Anchors, and a model to test."""
    return copied(digits_root.root, tmp_path_factory.mktemp("base") / "root")


@pytest.mark.skipif(not KILLS, reason="make soak; other tests kill each runner once")
@pytest.mark.parametrize("runner", COMMANDS)
def test_killed_at_random_it_ends_as_if_nothing_had_been(
    runner: str, base: Path, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    words, rng = COMMANDS[runner], random.Random(runner)
    straight = copied(base, tmp_path / "straight")
    prepared = copied(straight, tmp_path / "prepared")
    begun = time.monotonic()
    finish(straight, *words)
    took = time.monotonic() - begun
    wanted = _made(straight, prepared, runner)
    landed = 0
    for attempt in range(KILLS):
        root = copied(prepared, tmp_path / f"attempt_{attempt}")
        for _ in range(rng.randrange(1, 3)):
            process = start(root, *words)
            time.sleep(rng.uniform(0.45, 1.0) * took)
            landed += process.poll() is None
            kill_session(process)
        finish(root, *words)
        made = root / wanted.relative_to(straight)
        assert differences(wanted, made) == []
        assert not list(made.rglob(".*")), "left behind"
        shutil.rmtree(root)
    record_property("figures", f"{runner}: {KILLS} runs, killed {landed} times; differences: 0, files left behind: 0")


def _made(root: Path, prepared: Path, runner: str) -> Path:
    """The directory of the run that is in one root and not in the other."""
    before = {path.relative_to(prepared) for path in prepared.glob(f"runs/digits/{runner}/*/replicate_1")}
    (made,) = (p for p in root.glob(f"runs/digits/{runner}/*/replicate_1") if p.relative_to(root) not in before)
    return made
