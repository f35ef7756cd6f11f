from __future__ import annotations

import torch

from threat_specification.perturbations.draws import Draws
from threat_specification.perturbations.morph import morph
from threat_specification.perturbations.unsafe import blend, partners, patch


def test_partners_are_of_another_class_and_every_such_row_is_as_likely() -> None:
    labels = torch.tensor([2, 0, 0, 1, 2, 2, 0])
    mine = torch.tensor([0, 1, 2]).repeat(4000)
    chosen = partners(labels, mine, Draws(1, torch.arange(len(mine)), "partner"))
    assert bool((labels[chosen] != mine).all())
    for label in (0, 1, 2):
        others = (labels != label).nonzero().flatten()
        counts = torch.bincount(chosen[mine == label], minlength=7)[others]
        assert bool(((counts - 4000 / len(others)).abs() < 5 * (4000 / len(others)) ** 0.5).all())


def test_blends_and_patches() -> None:
    x, other = torch.zeros(3, 2, 10, 10), torch.ones(3, 2, 10, 10)
    assert torch.allclose(blend(x, other, 0.75), torch.full_like(x, 0.75))
    y = patch(x, other, 0.25, Draws(1, torch.arange(3), "patch"))
    assert y.flatten(1).sum(1).tolist() == [2 * 25] * 3
    assert torch.equal(y[:, 0], y[:, 1])
    rows = (y[0, 0].sum(1) > 0).nonzero().flatten()
    assert len(rows) == 5 and int(rows[-1] - rows[0]) == 4  # one square


def test_a_morph_goes_down_the_gradient_until_the_model_is_sure() -> None:
    """A linear model of two classes: pixels rise where the target's weight is larger, fall elsewhere."""
    weight = torch.tensor([[1.0, -1.0, 1.0, -1.0], [-1.0, 1.0, -1.0, 1.0]]) * 20
    model = torch.nn.Linear(4, 2, bias=False)
    model.weight.data = weight
    network = torch.nn.Sequential(torch.nn.Flatten(), model)
    x = torch.full((2, 1, 2, 2), 0.5)
    images, reached = morph(network, x, torch.tensor([0, 1]))
    assert reached.tolist() == [True, True]
    assert bool((images[0].flatten()[[0, 2]] > 0.5).all()) and bool((images[1].flatten()[[0, 2]] < 0.5).all())
    assert model.weight.grad is None
    probability = network(images).softmax(1)
    assert bool((probability[[0, 1], [0, 1]] >= 0.99).all())
    # No farther than needed: one step back, it is not sure.
    assert float((images - x).abs().max()) < 0.1
