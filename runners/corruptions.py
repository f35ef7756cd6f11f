"""Corruptions of test images: made on the fly, or read from files, each as a function of a shard."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from datasets.base import Dataset
from datasets.corruption_files import Reader, names_of, read_corruption_files
from foundations.errors import UsageError
from testing.perturbed import Perturbation, Perturbed
from testing.shards import Shard
from threat_specification.perturbations.draws import Draws
from threat_specification.perturbations.registry import SAFE, SUITES, category

FROM_FILE = " (file)"  # follows the name of a corruption that was read from files


def safe(suites: Sequence[str], severities: Sequence[float], seed: int) -> list[Perturbation]:
    """Safe perturbations: corruptions made on the fly, at those of the severities that each has.

    One that has none of them is made at its nearest: it would be missing in every mean (autocontrast has severity 1).
    """

    def change(name: str, severity: int) -> Callable[[Shard], Perturbed]:
        return lambda shard: (SAFE[name](shard.images, Draws(seed, shard.index, name), severity), None)

    return [
        Perturbation(name, severity, "safe", suite, category(name), change(name, severity))
        for suite in suites
        for name in SUITES[suite]
        for severity in _had(SAFE[name].severities, severities)
    ]


def _had(severities: Sequence[int], asked: Sequence[float]) -> list[int]:
    """The severities that were asked for, or of those that there are the one nearest to the smallest of them."""
    return [each for each in severities if each in asked] or [min(severities, key=lambda each: abs(each - min(asked)))]


def from_files(folder: Path, data: Dataset, severities: Sequence[float]) -> list[Perturbation]:
    """Safe perturbations: corruptions read from files.

    Raises UsageError if a corruption lacks one of these severities that another has, or all of them: means would be
    over easier or harder images than they say.
    """

    def change(read: Reader) -> Callable[[Shard], Perturbed]:
        return lambda shard: (read(shard.index).to(shard.images.device), None)

    files = read_corruption_files(folder, data.info.shape, data.test.labels, names_of(data))
    _check_severities(folder, {name: set(readers) for name, readers in files.items()}, severities)
    return [
        Perturbation(f"{name}{FROM_FILE}", severity, "safe", "files", category(name), change(reader))
        for name, readers in files.items()
        for severity, reader in readers.items()
        if severity in severities
    ]


def _check_severities(folder: Path, found: dict[str, set[int]], asked: Sequence[float]) -> None:
    """Raise UsageError unless all corruptions have the same ones of the severities that were asked for, and some."""
    listed = lambda levels: ", ".join(f"{level:g}" for level in sorted(levels))  # noqa: E731
    expected = set(asked).intersection(set().union(*found.values())) or set(asked)
    if lacking := [f"{name} with {listed(levels)} alone" for name, levels in found.items() if expected - levels]:
        more = f" and {len(lacking) - 3} more such" if len(lacking) > 3 else ""
        raise UsageError(
            f"corruptions in {folder}: expected the severities {listed(expected)} of each, got "
            f"{', '.join(lacking[:3])}{more}; ask for severities that all have, complete the files, or move them away"
        )


def category_of(name: str) -> str:
    """The category of a corruption by its name in results."""
    return category(name.removesuffix(FROM_FILE))
