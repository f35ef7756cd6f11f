"""Properties of the PD threat on small random problems, where threats are of the order of 1."""

import math

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.threat_specification.projected_displacement.test_threat import problem
from threat_specification import AnchorSet, ProjectedDisplacement

seeds = st.integers(0, 10_000)
property_test = settings(max_examples=40, deadline=None)


def small(seed):
    anchors, x, y, _ = problem(seed, count=9, batch=4, shape=(1, 3, 4))
    directions = torch.randn(2, *x.shape, generator=torch.Generator().manual_seed(seed + 7))
    return anchors, x, y, directions[0], directions[1]


@given(seeds, st.floats(1e-3, 1e3))
@property_test
def test_positively_homogeneous(seed, factor):
    anchors, x, y, d, _ = small(seed)
    bound = ProjectedDisplacement(anchors=anchors).bind(x, y)
    torch.testing.assert_close(bound.evaluate(factor * d), factor * bound.evaluate(d), rtol=1e-5, atol=1e-6 * factor)


@given(seeds, st.floats(0, 1))
@property_test
def test_convex(seed, share):
    anchors, x, y, d, e = small(seed)
    bound = ProjectedDisplacement(anchors=anchors).bind(x, y)
    mixed = bound.evaluate(share * d + (1 - share) * e)
    assert bool((mixed <= share * bound.evaluate(d) + (1 - share) * bound.evaluate(e) + 1e-5).all())


@given(seeds)
@property_test
def test_more_anchors_never_lower_the_threat(seed):
    anchors, x, y, d, _ = small(seed)
    fewer = AnchorSet(anchors.images[:5], anchors.labels[:5])
    one, all_of_them = (ProjectedDisplacement(anchors=a).bind(x, y).evaluate(d) for a in (fewer, anchors))
    assert bool((one <= all_of_them + 1e-5).all())


@given(seeds)
@property_test
def test_threat_one_is_the_border_of_the_voronoi_cell(seed):
    anchors, x, y, d, _ = small(seed)
    bound = ProjectedDisplacement(anchors=anchors).bind(x, y)
    threat = bound.evaluate(d)
    for reach in (0.99, 1.01):
        z = (x + d * (reach / threat.clamp_min(1e-3)).view(-1, 1, 1, 1)).flatten(1).double()
        to_anchors = torch.cdist(z, anchors.floats().double())
        to_anchors[y.view(-1, 1) == anchors.labels.view(1, -1)] = math.inf
        to_x = (z - x.flatten(1).double()).norm(dim=1)
        inside = (to_x < to_anchors.amin(1)) | (threat < 1e-3)
        assert bool((inside if reach < 1 else ~inside | (threat < 1e-3)).all())
