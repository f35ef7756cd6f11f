"""The gradient of dual bounds against differentiation by torch, and what an ascent keeps."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from testing import exact_ascent
from testing.exact_ascent import ascended, gradient
from testing.exact_dual import Dual, Parts
from tests.testing.relu_networks import NETS, made

NUMBERS = ("slopes", "forces", "multipliers", "bound")


def parts_of(dual: Dual, count: int) -> Parts:
    """Parts with random margins, signs and numbers, float64."""
    draws = torch.Generator().manual_seed(0)
    signs = torch.randint(-1, 2, (count, dual.open_units), generator=draws, dtype=torch.int8)
    widths = (dual.open_units, dual.open_units, len(dual.rows))
    free = [torch.rand(count, width, generator=draws, dtype=torch.float64) for width in widths]
    row = torch.randint(0, 3, (count,), generator=draws)
    return Parts(row, signs, *free, torch.full((count,), math.inf, dtype=torch.float64))


@pytest.mark.parametrize("name", NETS)
def test_the_gradient_is_that_of_the_bound(name: str) -> None:
    _, _, bounds, margins = made(name)
    dual = Dual.of(bounds, margins)
    parts = parts_of(dual, 20)
    free = [one.requires_grad_(True) for one in (parts.slopes, parts.forces, parts.multipliers)]
    expected = torch.cat(torch.autograd.grad(dual.bounds(parts).sum(), free), 1)
    with torch.no_grad():
        lines = dual.lines(parts.signs)
        found = gradient(dual, lines, dual.backward(parts.row, lines, *free))
    assert float((expected != 0).any(0).float().mean()) > 0.8
    assert torch.allclose(found, expected, rtol=1e-7, atol=1e-7)  # the widening by SLACK has no part in it


@pytest.mark.parametrize("name", NETS)
def test_parts_left_out_do_not_change_the_others(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every bound is that of the numbers beside it, and none is above where it began."""
    _, _, bounds, margins = made(name)
    dual = Dual.of(bounds, margins).to(torch.float32)
    parts = parts_of(dual, 30)
    parts = replace(parts, **{one: getattr(parts, one).float() for one in NUMBERS})
    ends = ascended(dual, parts, 10, -math.inf, 1.0, math.inf).bound.sort().values
    enough = float(ends[14:16].mean())
    rows, found, real = list[int](), {}, Dual.backward
    monkeypatch.setattr(Dual, "backward", lambda dual, row, *given: rows.append(len(row)) or real(dual, row, *given))
    for fewer in (0.0, 1.0):
        monkeypatch.setattr(exact_ascent, "FEWER", fewer)
        found[fewer] = ascended(dual, parts, 10, enough, 1.0, math.inf)
    assert len(rows) == 22 and rows[:12] == [30] * 12 and rows[21] < 20
    to_the_end = found[0.0].bound >= enough
    assert 10 < int(to_the_end.sum()) < 20
    for one in NUMBERS:
        assert torch.allclose(*(getattr(each, one)[to_the_end] for each in found.values()), atol=1e-5)
    for each in found.values():
        assert torch.allclose(dual.bounds(each), each.bound, atol=1e-5)
        assert bool((each.bound <= dual.bounds(parts)).all())
        assert torch.equal(each.bound < enough, ~to_the_end)
