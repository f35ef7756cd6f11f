"""Moves by name, and the changed images of a batch, against the corruptions one by one."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch

from foundations.errors import UsageError
from tests.emulated.cuda import emulated_cuda, to_cuda
from threat_specification.perturbations.draws import Draws
from threat_specification.perturbations.registry import SAFE, SUITES
from threat_specification.safe_moves.changes import changed, names, parse, safe_changes

IMAGES = torch.rand(5, 3, 12, 9, generator=torch.Generator().manual_seed(3))
INDEX = torch.tensor([40, 2, 7, 7, 19])
FEW = parse("quick:2,autocontrast:4,fog")


def test_suites_and_corruptions_have_no_name_in_common() -> None:
    assert not set(SUITES) & set(SAFE)


@pytest.mark.parametrize(
    ("text", "moves"),
    [
        ("C:3,torchvision:2", (("C", 3), ("torchvision", 2))),
        ("brighter:2,fog:3", (("brighter", 2), ("fog", 3))),
        (" quick , C-bar : 5 ,", (("quick", 3), ("C-bar", 5))),
        ("fog:1,fog:5", (("fog", 1), ("fog", 5))),
        ("", ()),
    ],
)
def test_moves_are_read(text: str, moves: tuple[tuple[str, int], ...]) -> None:
    assert parse(text) == moves


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("C:3,quik:2", "C:3,brighter:2, got quik:2 (did you mean 'quick'?)"),
        ("brigther", "got brigther (did you mean 'brighter'?)"),
        ("everything:3", "expected suites (of C, C-bar, torchvision, quick) and corruptions by name"),
        (":3", "got :3"),
        ("C:0", "expected a severity from 1 to 5, such as C:3, got C:0"),
        ("fog:6", "expected a severity from 1 to 5, such as fog:3, got fog:6"),
        ("fog:2.5", "got fog:2.5"),
        ("fog:", "got fog:"),
        ("C:3:2", "got C:3:2"),
    ],
)
def test_mistakes_are_told_in_a_line(text: str, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse(text)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_names_are_every_corruption_once_in_order() -> None:
    assert names(parse("C:2,quick:4")) == [(n, 2) for n in SUITES["C"]] + [(n, 4) for n in SUITES["quick"]]
    assert names(parse("fog:2,brighter:1,fog:2,fog:4")) == [("fog", 2), ("brighter", 1), ("fog", 4)]
    assert names(parse("C:3,fog:3")) == names(parse("C"))
    assert names(()) == []
    # autocontrast has one severity
    assert names(parse("torchvision:4")) == [(n, 1 if n == "autocontrast" else 4) for n in SUITES["torchvision"]]
    assert names(parse("autocontrast:5,autocontrast:2")) == [("autocontrast", 1)]


def test_a_count_takes_evenly_from_every_suite() -> None:
    moves = parse("C:3,torchvision:2,quick:3")
    every = names(moves)
    assert len(every) == 36
    for count in range(1, 40):
        kept = names(moves, count)
        assert kept == [move for move in every if move in kept] and len(kept) == len(set(kept)) == min(count, 36)
        held = Counter(SAFE[name].suite for name, _ in kept)
        # None has two fewer than another unless all of it is there.
        assert all(
            held[s] == len(SUITES[s]) or held[s] >= max(held.values()) - 1 for s in ("C", "torchvision", "quick")
        )
    assert names(moves, 0) == names(moves, 36) == every
    # Within a suite, in the middle of equal parts of its order.
    assert names(parse("C"), 1) == [(SUITES["C"][9], 3)]
    assert names(parse("quick"), 3) == [(SUITES["quick"][place], 3) for place in (1, 4, 7)]
    # Single corruptions are counted with their suite.
    assert {name for name, _ in names(parse("fog,snow,frost,quick"), 2)} == {"snow", SUITES["quick"][4]}


def test_names_serve_as_moves() -> None:
    some = names(parse("C:2,quick,torchvision"), 7)
    assert names(some) == some


def test_changed_images_are_the_corruptions_in_order() -> None:
    found, kept = changed(IMAGES, INDEX, 11, FEW), names(FEW)
    assert found.shape == (5, len(kept), 3, 12, 9) and found.dtype == torch.float32 and len(kept) == 11
    for place, (name, severity) in enumerate(kept):
        expected = SAFE[name](IMAGES, Draws(11, INDEX, name), severity)
        assert torch.equal(found[:, place], expected), name
    assert bool(((found >= 0) & (found <= 1)).all())
    assert torch.equal(changed(IMAGES, INDEX, 11, kept[3:5]), found[:, 3:5])
    assert changed(IMAGES, INDEX, 11, ()).shape == (5, 0, 3, 12, 9)


def test_an_image_has_its_moves_in_any_batch() -> None:
    found = changed(IMAGES, INDEX, 11, parse("quick"))
    order = torch.tensor([3, 0, 4, 1, 2])
    assert torch.equal(changed(IMAGES[order], INDEX[order], 11, parse("quick")), found[order])
    parts = [changed(x, index, 11, parse("quick")) for x, index in zip(IMAGES.split(2), INDEX.split(2), strict=True)]
    assert torch.equal(torch.cat(parts), found)
    assert not torch.equal(changed(IMAGES, INDEX, 12, parse("quick")), found)


def test_precision_and_gradients_are_left_behind() -> None:
    doubled = IMAGES.double().requires_grad_(True)
    found = changed(doubled, INDEX, 0, parse("quick"))
    assert found.dtype == torch.float32 and not found.requires_grad
    assert torch.equal(found, changed(IMAGES, INDEX, 0, parse("quick")))


def test_quick_moves_are_made_without_waiting_for_the_device() -> None:
    expected = changed(IMAGES, INDEX, 0, parse("quick"))
    with emulated_cuda() as counts:
        x, index = to_cuda(IMAGES), to_cuda(INDEX)
        counts.reset()
        found = changed(x, index, 0, parse("quick"))
        assert found.is_cuda and counts.waited == 0
        assert torch.equal(found.cpu(), expected)


def test_names_are_read_without_torch() -> None:
    code = f"import sys; from {parse.__module__} import names, parse; names(parse('C,quick:2'), 3)"
    project = Path(__file__).resolve().parents[3]
    done = subprocess.run([sys.executable, "-c", f"{code}; sys.exit('torch' in sys.modules)"], cwd=project)
    assert done.returncode == 0


def test_safe_changes_of_people_are_those_of_moves_by_name() -> None:
    found = safe_changes(IMAGES, "quick:2,fog", seed=4)
    made = changed(IMAGES, torch.arange(len(IMAGES)), 4, parse("quick:2,fog"))
    assert list(found) == [f"{name}:{severity}" for name, severity in names(parse("quick:2,fog"))]
    assert all(images.equal(made[:, place]) for place, images in enumerate(found.values()))
    with pytest.raises(UsageError, match="got none"):
        safe_changes(IMAGES, "")
    with pytest.raises(UsageError, match=r"values in \[0, 1\]"):
        safe_changes(IMAGES * 255, "quick")
    with pytest.raises(UsageError, match="from 2x2 pixels up, got 1x8"):
        safe_changes(IMAGES[..., :1, :8], "torchvision:1")
    with pytest.raises(UsageError, match="at least one, got none"):
        safe_changes(IMAGES[:0], "quick")
