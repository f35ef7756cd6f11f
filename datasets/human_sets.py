"""Answers of people: packaged sets by name, and the files that --human reads. Does not import torch or numpy.

To add a packaged set, put its .npz (see `human_pairs.py`) and its licence into datasets/human/, and an entry here.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from foundations.digests import set_digest
from foundations.errors import UsageError, nearest

PAIRS = "pairs.npz"  # of the folder of a study, beside the annotators' answers, *.csv


@dataclass(frozen=True, kw_only=True)
class HumanSet:
    """A packaged set of pairs of images and of people's answers.

    datasets   names of the data sets whose images and classes these are
    """

    summary: str
    file: str
    datasets: tuple[str, ...]

    @property
    def path(self) -> str:
        return str(Path(__file__).parent / "human" / self.file)


HUMAN_SETS: dict[str, HumanSet] = {
    "mnist_invariance": HumanSet(
        summary="93 test images of MNIST, each changed in three ways towards another digit (Tramer et al. 2020)",
        file="mnist_invariance.npz",
        datasets=("mnist", "mnist_5k"),
    )
}


def path_of_human(value: str) -> str:
    """The path that a value of --human is; "" for the name of a packaged set."""
    return "" if value in HUMAN_SETS else value


def check_human_set(value: str, dataset_name: str) -> None:
    """Raise UsageError for a packaged set that shows images of another data set."""
    packaged = HUMAN_SETS.get(value)
    if packaged is not None and dataset_name not in packaged.datasets:
        raise UsageError(
            f"--human={value}: expected a data set whose images people saw ({', '.join(packaged.datasets)}), got "
            f"{dataset_name}; leave --human out, or give pairs of {dataset_name}"
        )


def human_files(value: str) -> tuple[str, list[str]]:
    """The pairs (.npz) and the answers (.csv) that a value of --human names; raises UsageError if one is missing.

    A packaged set and a file have no answers beside them: theirs are in the .npz.
    """
    path = HUMAN_SETS[value].path if value in HUMAN_SETS else value
    if os.path.isdir(path):
        answers = sorted(os.path.join(path, name) for name in os.listdir(path) if name.lower().endswith(".csv"))
        pairs = os.path.join(path, PAIRS)
        if not os.path.isfile(pairs):
            raise UsageError(f"--human={value}: expected a folder with {PAIRS} and answers (*.csv), got no {PAIRS}")
        if not answers:
            raise UsageError(f"--human={value}: expected answers (*.csv) beside {PAIRS}, got none; put them there")
        return pairs, answers
    if not os.path.isfile(path):
        known = ", ".join(HUMAN_SETS)
        raise UsageError(
            f"--human: expected a packaged set ({known}), a file .npz or the folder of a study, got {value}"
            f"{nearest(value, list(HUMAN_SETS))}"
        )
    return path, []


def human_digest(value: str) -> str:
    """The digest of the content that a value of --human names, wherever it is."""
    pairs, answers = human_files(value)
    try:
        return set_digest({PAIRS: pairs, **{os.path.basename(path): path for path in answers}})
    except OSError as error:
        raise UsageError(f"--human: cannot read {error.filename or value}: {error.strerror}") from error
