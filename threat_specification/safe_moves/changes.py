"""The safe changes that serve as moves: by name and severity, and made for a batch of images.

Reading names needs no torch, so that flags can be checked before a run.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from foundations.errors import UsageError, nearest
from threat_specification.perturbations.registry import SAFE, SUITES

if TYPE_CHECKING:
    from torch import Tensor

Moves = Iterable[tuple[str, int]]  # (suite or corruption, severity)
SEVERITY = 3  # where none is given
SEVERITIES = ("1", "2", "3", "4", "5")


def parse(text: str) -> tuple[tuple[str, int], ...]:
    """Suites and corruptions with their severities, in the order of a list such as "C:3,torchvision,brighter:2"."""
    found = tuple(_move(item.strip()) for item in text.split(",") if item.strip())
    if text and not found:
        raise UsageError(f"safe moves: expected suites and corruptions, such as C:3,brighter:2, got '{text}'")
    return found


def changes_named(flag: str, text: str, count: int = 0) -> str:
    """Every change of a flag's value by name, with its severity, such as "brighter:3,darker:3"; "" if it is empty.

    Raises UsageError, with the name of the flag, for an unknown one.
    """
    try:
        return ",".join(f"{name}:{severity}" for name, severity in names(parse(text), count))
    except UsageError as error:
        raise UsageError(f"--{flag}: {error}") from None


def safe_changes(images: Tensor, changes: str = "quick", seed: int = 0) -> dict[str, Tensor]:
    """Everyday changes of images, which keep what they show: name and severity -> changed images [n,C,H,W] in [0, 1].

    images   [n,C,H,W] floats in [0, 1]
    changes  suites (quick, C, C-bar, torchvision) and single changes, each with a severity from 1 to 5, 3 without one:
             "quick", "C:1,C:3,brighter:5"
    seed     of the random numbers; each image has its own, by its place among the images

    Raises UsageError for an unknown change, for images outside [0, 1], and for none.

    >>> changed = nonisotropic.safe_changes(torch.rand(2, 1, 28, 28), "soft_blur:2,shift")
    >>> {name: images.shape for name, images in changed.items()}
    {'soft_blur:2': torch.Size([2, 1, 28, 28]), 'shift:3': torch.Size([2, 1, 28, 28])}
    """
    import torch

    from threat_specification.base import check_images, check_seed

    if not isinstance(images, torch.Tensor) or not len(images):
        found = "none" if isinstance(images, torch.Tensor) else f"a {type(images).__name__}"
        raise UsageError(f"images: expected a tensor of at least one, got {found}")
    if not isinstance(changes, str):
        raise UsageError(f"changes: expected their names in a text, such as 'quick:2,fog', got {changes!r}")
    check_seed(seed)
    rows = torch.arange(len(images), device=images.device)
    check_images(images, rows)
    moves = names(parse(changes))
    if not moves:
        raise UsageError("safe changes: expected suites and corruptions, such as C:3,brighter:2, got none")
    made = changed(images, rows, seed, moves)
    return {f"{name}:{severity}": made[:, place] for place, (name, severity) in enumerate(moves)}


def _move(item: str) -> tuple[str, int]:
    name, colon, severity = (part.strip() for part in item.partition(":"))
    if name not in SUITES and name not in SAFE:
        raise UsageError(
            f"safe moves: expected suites (of {', '.join(SUITES)}) and corruptions by name, such as C:3,brighter:2, "
            f"got {item}{nearest(name, [*SUITES, *SAFE])}"
        )
    if colon and severity not in SEVERITIES:
        raise UsageError(f"safe moves: expected a severity from 1 to 5, such as {name}:{SEVERITY}, got {item}")
    return name, int(severity or SEVERITY)


def names(moves: Moves, count: int = 0) -> list[tuple[str, int]]:
    """Every corruption of `moves` once, with its severity; `count` of them if count > 0 and there are more.

    Those kept have the same number in each suite, as far as it has them, and are spread evenly over its order. A
    corruption without the severity asked for has its only one.
    """
    every = list(
        dict.fromkeys(
            (name, min(severity, SAFE[name].severities[-1]))
            for given, severity in moves
            for name in SUITES.get(given, [given])
        )
    )
    if not 0 < count < len(every):
        return every
    suites: dict[str, list[tuple[str, int]]] = {}
    for move in every:
        suites.setdefault(SAFE[move[0]].suite, []).append(move)
    shares = dict.fromkeys(suites, 0)
    for _ in range(count):
        open_suites = [suite for suite in suites if shares[suite] < len(suites[suite])]
        shares[min(open_suites, key=shares.__getitem__)] += 1
    kept = {
        members[(2 * place + 1) * len(members) // (2 * shares[suite])]
        for suite, members in suites.items()
        for place in range(shares[suite])
    }
    return [move for move in every if move in kept]


def changed(x: Tensor, index: Tensor, seed: int, moves: Moves) -> Tensor:
    """The changed images [B,K,C,H,W] in [0, 1], float32, in the order of `names(moves)`; no gradient flows.

    x       [B,C,H,W] in [0, 1]
    index   [B] data set indices, on the device of x; image b depends on (x[b], index[b], seed) alone
    moves   suites or corruptions, from `parse` or from `names`
    """
    from threat_specification.perturbations.draws import Draws

    x, found = x.detach().float(), names(moves)
    images = x.new_empty(len(x), len(found), *x.shape[1:])
    for place, (name, severity) in enumerate(found):
        images[:, place] = SAFE[name](x, Draws(seed, index, name), severity)
    return images
