from __future__ import annotations

import torch
from scipy import stats

from threat_specification.attacks.random_numbers import uniform

SHAPE = (3, 4, 4)


def test_a_row_depends_on_its_index_alone() -> None:
    together = uniform(5, torch.tensor([3, 10**6, 7]), 2, SHAPE)
    assert together[1:2].equal(uniform(5, torch.tensor([10**6]), 2, SHAPE))
    assert together.flip(0).equal(uniform(5, torch.tensor([7, 10**6, 3]), 2, SHAPE))


def test_seed_index_and_draw_all_matter() -> None:
    base = uniform(5, torch.tensor([3]), 2, SHAPE)
    for other in (
        uniform(6, torch.tensor([3]), 2, SHAPE),
        uniform(5, torch.tensor([4]), 2, SHAPE),
        uniform(5, torch.tensor([3]), 3, SHAPE),
    ):
        assert (base == other).float().mean() < 0.05


def test_large_seeds_and_draws_work() -> None:
    assert uniform(2**63 - 1, torch.tensor([2**40]), 2**31, SHAPE).isfinite().all()


def test_numbers_are_uniform_and_independent() -> None:
    numbers = uniform(1, torch.arange(200), 0, (500,)).double()
    assert float(numbers.min()) >= 0 and float(numbers.max()) < 1
    assert stats.kstest(numbers.flatten().numpy(), "uniform").pvalue > 1e-3
    for a, b in ((numbers[:-1], numbers[1:]), (numbers[:, :-1], numbers[:, 1:])):
        assert abs(float(torch.corrcoef(torch.stack([a.flatten(), b.flatten()]))[0, 1])) < 0.015
    other = uniform(1, torch.arange(200), 1, (500,)).double()
    assert abs(float(torch.corrcoef(torch.stack([numbers.flatten(), other.flatten()]))[0, 1])) < 0.015
