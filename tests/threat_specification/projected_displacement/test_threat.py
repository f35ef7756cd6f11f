"""The PD threat against float64 loops that share no code with it, and at its edges."""

import itertools
import math
from dataclasses import replace

import pytest
import torch

from foundations.errors import UsageError
from foundations.input_hparams import ThreatHparams
from threat_specification import L2, AnchorSet, Intersection, Linf, ProjectedDisplacement
from threat_specification.projected_displacement.pace import PACES

SHAPE = (3, 6, 6)
CLASSES = 4


def images(seed, count, shape=SHAPE, byte=False):
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 256, (count, *shape), generator=generator, dtype=torch.uint8)
    return pixels if byte else pixels.float() / 255


def problem(seed=0, count=30, batch=7, byte=False, shape=SHAPE):
    """anchors, examples, labels, perturbed examples."""
    anchors = AnchorSet(images(seed, count, shape, byte), torch.arange(count) % CLASSES)
    x = images(seed + 1, batch, shape)
    noise = torch.randn(batch, *shape, generator=torch.Generator().manual_seed(seed + 2))
    return anchors, x, torch.arange(batch) % CLASSES, x + 0.1 * noise


def reference(anchors, x, y, z, weights=None, masks=None, norm="full"):
    """PD one pair at a time, in float64: max_j <d, u_j> / (w/2 ||a_j - x||^2), or ||u_j||^2 with norm="masked"."""
    values = []
    for i in range(len(x)):
        largest = 0.0
        for image, label in zip(anchors.floats(), anchors.labels, strict=True):
            if label == y[i]:
                continue
            u = image.double() - x[i].double().flatten()
            squared = float(u @ u)
            if masks is not None:
                u = u * masks[i].expand_as(x[i]).flatten().double()
                squared = squared if norm == "full" else float(u @ u)
            if float(u @ u) == 0:
                continue
            w = 1.0 if weights is None else float(weights[y[i], label])
            largest = max(largest, float((z[i].double() - x[i].double()).flatten() @ u) / (0.5 * w * squared))
        values.append(largest)
    return torch.tensor(values, dtype=torch.float64)


def close(got, expected, tolerance=1e-6):
    assert got.dtype == torch.float32
    torch.testing.assert_close(got.double(), expected, rtol=tolerance, atol=1e-9)


def some_weights(seed=5):
    return 0.5 + 2 * torch.rand(CLASSES, CLASSES, generator=torch.Generator().manual_seed(seed))


def some_masks(batch, channels=1, seed=6):
    return torch.rand(batch, channels, *SHAPE[1:], generator=torch.Generator().manual_seed(seed)) > 0.4


@pytest.mark.parametrize("byte", [False, True])
@pytest.mark.parametrize("norm", ["full", "masked"])
@pytest.mark.parametrize("form", ["plain", "weighted", "segmented", "segmented by channel", "weighted segmented"])
def test_equals_float64_loops(form, norm, byte):
    anchors, x, y, z = problem(byte=byte)
    weights = some_weights() if "weighted" in form else None
    masks = some_masks(len(x), 3 if "channel" in form else 1) if "segmented" in form else None
    threat = ProjectedDisplacement(
        ThreatHparams(), "weighted" in form, "segmented" in form, anchors, class_weights=weights, segmented_norm=norm
    )
    got = threat.evaluate(x, y, z, **({} if masks is None else {"masks": masks}))
    expected = reference(anchors, x, y, z, weights, masks, norm)
    assert int((expected > 0).sum()) >= 5
    close(got, expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_floats_are_computed_in_float32(dtype):
    anchors, x, y, z = problem()
    x, z = x.to(dtype), z.to(dtype)
    close(ProjectedDisplacement(anchors=anchors).evaluate(x, y, z), reference(anchors, x, y, z), 2e-6)


def test_16_bit_numbers_do_not_overflow_at_imagenet_size():
    """||a - x||^2 is about 75,000 here, above the largest float16."""
    shape = (3, 224, 224)
    x = torch.zeros(1, *shape, dtype=torch.float16)
    anchors = AnchorSet(torch.full((2, *shape), 0.875, dtype=torch.float16), torch.tensor([1, 1]))
    z = torch.full_like(x, 0.4375)  # half-way
    torch.testing.assert_close(ProjectedDisplacement(anchors=anchors).evaluate(x, torch.tensor([0]), z), torch.ones(1))


def test_autocast_does_not_lower_the_precision():
    anchors, x, y, z = problem()
    threat = ProjectedDisplacement(anchors=anchors)
    with torch.autocast("cpu", torch.bfloat16):
        got = threat.evaluate(x, y, z)
    assert torch.equal(got, threat.evaluate(x, y, z))


@pytest.mark.parametrize("variant", ["plain", "masked", "rows only", "not kept"])
def test_near_anchors_keep_their_digits(variant, monkeypatch):
    """An anchor of another class at distance 0.01: the expanded norm alone would be 64 % off."""
    if variant == "not kept":
        monkeypatch.setitem(PACES, "cpu", replace(PACES["cpu"], piece_bytes=4 * 3072))
    anchors, x, y, z = problem(shape=(3, 32, 32), count=20)
    step = torch.randn(len(x), 3, 32, 32, generator=torch.Generator().manual_seed(9))
    near = (x + 0.01 * step / step.flatten(1).norm(dim=1).view(-1, 1, 1, 1)).clamp(0, 1)
    anchors = AnchorSet(torch.cat([anchors.images, near]), torch.cat([anchors.labels, (y + 1) % CLASSES]))
    masks = torch.ones(len(x), 1, 32, 32, dtype=torch.bool) if variant == "masked" else None
    threat = ProjectedDisplacement(anchors=anchors, segmented=variant == "masked")
    bound = threat.bind(x, y, **({} if masks is None else {"masks": masks}))
    z = x + 0.3 * (near - x) + 1e-4 * (z - x)
    expected = reference(anchors, x, y, z)
    if variant == "rows only":
        rows = torch.tensor([5, 0, 3])
        close(bound.displacements((z - x).flatten(1)[rows], rows).amax(1), expected[rows])
    close(bound.evaluate(z - x), expected)
    distance = (near.double() - x.double()).flatten(1).norm(dim=1)
    close(threat.inscribed_radius(x, y, **({} if masks is None else {"masks": masks})), distance / 2)


@pytest.mark.parametrize("scale", [0.01, 0.1, 0.3, 0.6, 1.0])
def test_error_stays_small_at_every_distance(scale):
    """Anchors at fractions of the usual distance, across the borders where differences take over."""
    anchors, x, y, _ = problem(shape=(3, 32, 32), count=24, batch=24)
    y = (anchors.labels + 1) % CLASSES
    moved = AnchorSet(x + scale * (anchors.images - x), anchors.labels)
    # Noise alone is nearly orthogonal to every direction: of its products less is left than processors differ in.
    noise = 0.05 * torch.randn(x.shape, generator=torch.Generator().manual_seed(3))
    z = x + 0.05 * (moved.images - x) + noise
    close(ProjectedDisplacement(anchors=moved).evaluate(x, y, z), reference(moved, x, y, z), 2e-6)
    z = x + 0.2 * (moved.images - x)
    close(ProjectedDisplacement(anchors=moved).evaluate(x, y, z), reference(moved, x, y, z), 1e-6)


def test_displacements_and_directions_agree_with_evaluate():
    anchors, x, y, z = problem()
    bound = ProjectedDisplacement(anchors=anchors).bind(x, y)
    flat = (z - x).flatten(1)
    along = bound.displacements(flat)
    assert torch.equal(along == -math.inf, y.view(-1, 1) == anchors.labels.view(1, -1))
    which, anchor = (along > -math.inf).nonzero(as_tuple=True)
    by_direction = (bound.directions(which, anchor) * flat[which]).sum(1)
    torch.testing.assert_close(by_direction, along[which, anchor], rtol=1e-4, atol=1e-6)
    rows = torch.tensor([4, 1])
    torch.testing.assert_close(bound.displacements(flat[rows], rows), along[rows])


@pytest.mark.parametrize("byte", [False, True])
@pytest.mark.parametrize("num_chunks", [True, 1, 3, 30])
@pytest.mark.parametrize("num_devices", [1, 3])
def test_chunks_and_devices_do_not_change_the_threat(byte, num_chunks, num_devices):
    anchors, x, y, z = problem(byte=byte, shape=(3, 16, 16))
    threat = ProjectedDisplacement(ThreatHparams(num_chunks=num_chunks), anchors=anchors)
    assert threat.prepare(num_devices=num_devices) is threat
    expected = reference(anchors, x, y, z)
    close(threat.evaluate(x, y, z), expected)
    close(threat.bind(x, y).displacements((z - x).flatten(1)).amax(1).clamp_min(0), expected)


def test_bytes_and_floats_give_the_same_threat():
    anchors, x, y, z = problem(byte=True)
    floats = AnchorSet(anchors.floats().view(-1, *SHAPE), anchors.labels)
    one, other = (ProjectedDisplacement(anchors=a).evaluate(x, y, z) for a in (anchors, floats))
    torch.testing.assert_close(one, other, rtol=1e-6, atol=0)


def test_near_bytes_keep_their_digits():
    """An example close to an 8-bit anchor of another class, and a far smaller step."""
    anchors, _, _, _ = problem(byte=True, shape=(3, 32, 32))
    generator = torch.Generator().manual_seed(9)
    near = anchors.floats().view(anchors.images.shape)[:6]
    y = (anchors.labels[:6] + 1) % CLASSES
    x = (near + 2e-4 * torch.randn(near.shape, generator=generator)).clamp(0, 1)
    for d in (1e-3 * torch.randn(near.shape, generator=generator), 0.3 * (near - x)):
        z = x + d
        got = ProjectedDisplacement(anchors=anchors).evaluate(x, y, z)
        close(got, reference(anchors, x, y, z))


def test_examples_of_a_batch_do_not_touch_each_other():
    anchors, x, y, z = problem()
    threat = ProjectedDisplacement(anchors=anchors)
    alone = torch.cat([threat.evaluate(x[i : i + 1], y[i : i + 1], z[i : i + 1]) for i in range(len(x))])
    torch.testing.assert_close(threat.evaluate(x, y, z), alone, rtol=1e-6, atol=0)


def test_a_step_towards_an_anchor_has_threat_at_least_twice_its_share():
    anchors, x, y, _ = problem()
    other = (y.view(-1, 1) != anchors.labels.view(1, -1)).float().argmax(1)
    weights = some_weights()
    d = 0.25 * (anchors.images[other] - x)
    assert bool((ProjectedDisplacement(anchors=anchors).evaluate(x, y, x + d) >= 0.5 - 1e-6).all())
    weighted = ProjectedDisplacement(anchors=anchors, weighted=True, class_weights=weights)
    bound = 0.5 / weights[y, anchors.labels[other]]
    assert bool((weighted.evaluate(x, y, x + d) >= bound - 1e-6).all())


def test_equal_anchor_of_another_class_is_named():
    anchors, x, y, z = problem()
    for byte in (False, True):
        own = AnchorSet(torch.cat([anchors.images, x[2:3]]), torch.cat([anchors.labels, (y[2:3] + 1) % CLASSES]))
        if byte:
            own = AnchorSet((own.images * 255).round().byte(), own.labels)
        threat = ProjectedDisplacement(anchors=own)
        for call in (lambda t=threat: t.evaluate(x, y, z), lambda t=threat: t.bind(x, y)):
            with pytest.raises(UsageError, match=r"example 2 equals anchor 30.* \(3\)"):
                call()
        segmented = ProjectedDisplacement(anchors=own, segmented=True)
        with pytest.raises(UsageError, match="example 2 equals anchor 30"):
            segmented.bind(x, y, masks=some_masks(len(x)))


def test_equal_anchor_of_the_same_class_is_harmless():
    anchors, x, y, z = problem()
    y[:] = 2
    own = AnchorSet(torch.cat([anchors.images, x]), torch.cat([anchors.labels, y]))
    close(ProjectedDisplacement(anchors=own).evaluate(x, y, z), reference(anchors, x, y, z))


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_nan_and_infinity_are_never_a_threat_of_zero(bad):
    anchors, x, y, z = problem(byte=True)
    threat = ProjectedDisplacement(anchors=anchors)
    bound = threat.bind(x, y)
    z = z.clone()
    z[3, 1, 2, 2] = bad
    segmented, empty = ProjectedDisplacement(segmented=True, anchors=anchors), torch.zeros(7, 1, 6, 6, dtype=torch.bool)
    for call in (
        lambda: threat.evaluate(x, y, z),
        lambda: threat.project(x, y, z),
        lambda: bound.evaluate(z - x),
        lambda: bound.displacements((z - x).flatten(1)),
        lambda: bound.project(z - x, 0.1, method="scale"),
        lambda: bound.project(z - x, 0.1, method="exact"),
        lambda: segmented.bind(x, y, masks=empty).evaluate(z - x),  # no anchor counts
        lambda: Intersection([(threat, 0.1), (Linf(), 0.1)]).bind(x, y).evaluate(z - x),
    ):
        with pytest.raises(UsageError, match="finite"):
            call()


def test_no_anchor_of_another_class_is_refused():
    """All changes of such images had threat 0, and no attack was asked to stay anywhere."""
    anchors, x, y, z = problem()
    one = AnchorSet(anchors.images, torch.ones_like(anchors.labels))
    others = y != 1
    for form in ({}, {"tangents": True}, {"weighted": True, "class_weights": torch.ones(4, 4)}):
        threat = ProjectedDisplacement(anchors=one, **form)
        assert bool((threat.evaluate(x[others], y[others], z[others]) > 0).any())
        both = Intersection([(threat, 0.1), (L2(), 1.0)])
        words = r"expected some of another class than 1, the label of example 1, got none"
        for call in (
            lambda threat=threat: threat.evaluate(x, y, z),
            lambda threat=threat: threat.project(x, y, z, 0.1),
            lambda threat=threat: threat.explain(x, y, z),
            lambda threat=threat: threat.inscribed_radius(x, y),
            lambda both=both: both.bind(x, y),
        ):
            with pytest.raises(UsageError, match=words):
                call()


def test_labels_are_looked_at_only_where_all_anchors_have_one_class(monkeypatch):
    """The host waits for a device there."""
    anchors, x, y, _ = problem()
    asked = []
    monkeypatch.setattr(ProjectedDisplacement, "_refuse_class_of_all_anchors", lambda self, labels: asked.append(1))
    ProjectedDisplacement(anchors=anchors).bind(x, y)
    assert not asked
    ProjectedDisplacement(anchors=AnchorSet(anchors.images[:1], anchors.labels[:1])).bind(x, y)
    assert asked


def test_empty_batch():
    anchors, x, y, z = problem()
    x, y, z = x[:0], y[:0], z[:0]
    threat = ProjectedDisplacement(anchors=anchors)
    assert threat.evaluate(x, y, z).shape == (0,)
    assert threat.project(x, y, z, method="scale").shape == x.shape
    assert threat.explain(x, y, z) == []
    assert Intersection([(threat, 0.1), (Linf(), 0.1)]).evaluate(x, y, z).shape == (0,)


def test_gradient_is_the_binding_direction():
    anchors, x, y, z = problem(byte=True)
    for chunks in (1, 4):
        bound = ProjectedDisplacement(ThreatHparams(num_chunks=chunks), anchors=anchors).bind(x, y)
        delta = (z - x).requires_grad_()
        bound.evaluate(delta).sum().backward()
        binding = bound.displacements((z - x).flatten(1)).argmax(1)
        expected = bound.directions(torch.arange(len(x)), binding)
        expected[bound.evaluate(z - x) == 0] = 0
        torch.testing.assert_close(delta.grad.flatten(1), expected, rtol=1e-4, atol=1e-6)


def test_scale_reaches_the_set_and_keeps_what_is_inside():
    anchors, x, y, z = problem()
    threat = ProjectedDisplacement(anchors=anchors)
    out = threat.project(x, y, z, 0.05, method="scale")
    assert bool((out >= 0).all() & (out <= 1).all())
    assert bool((reference(anchors, x, y, out) <= 0.05 * (1 + 1e-6)).all())
    assert torch.equal(threat.project(x, y, out, 0.06, method="scale"), out)
    assert torch.equal(threat.project(x, y, z, 0.0, method="scale"), x)


@pytest.mark.parametrize("threshold", [1e-3, 0.05])
@pytest.mark.parametrize("method", ["scale", "exact"])
def test_projected_images_are_feasible_after_rounding(threshold, method):
    anchors, x, y, _ = problem(shape=(3, 32, 32))
    z = x + 0.5 * torch.randn(x.shape, generator=torch.Generator().manual_seed(1))
    out = ProjectedDisplacement(anchors=anchors).project(x, y, z, threshold, method=method)
    assert float(reference(anchors, x, y, out).max()) <= threshold * (1 + 1e-6)


def test_unknown_projection_is_answered_with_the_known_ones():
    anchors, x, y, z = problem()
    with pytest.raises(UsageError, match="scale"):
        ProjectedDisplacement(anchors=anchors).project(x, y, z, method="scael")


def test_explain_names_the_binding_anchors():
    anchors, x, y, _ = problem()
    anchors = AnchorSet(anchors.images, anchors.labels, torch.arange(30) + 100)
    target = torch.tensor([6, 7, 8, 5, 9, 2, 1])
    y = (anchors.labels[target] + 1) % CLASSES
    explained = ProjectedDisplacement(anchors=anchors).explain(x, y, x + 0.5 * (anchors.images[target] - x), top=2)
    for found, anchor in zip(explained, target.tolist(), strict=True):
        first = found[0]
        assert (first.anchor, first.label, first.index) == (anchor, anchor % CLASSES, anchor + 100)
        assert first.threat == pytest.approx(1.0, rel=1e-5)
        assert len(found) <= 2 and all(a.threat >= b.threat > 0 for a, b in itertools.pairwise(found))


@pytest.mark.parametrize("form", ["plain", "weighted", "segmented"])
def test_inscribed_ball_touches_the_border(form):
    anchors, x, y, _ = problem()
    context = {"masks": some_masks(len(x))} if form == "segmented" else {}
    weights = some_weights().fill_diagonal_(0) if form == "weighted" else None
    threat = ProjectedDisplacement(None, form == "weighted", form == "segmented", anchors, class_weights=weights)
    radius = threat.inscribed_radius(x, y, **context)
    bound = threat.bind(x, y, **context)
    every = torch.arange(len(x))
    nearest = torch.stack([bound.directions(every, every * 0 + j).norm(dim=1) for j in range(len(anchors))]).argmax(0)
    d = bound.directions(every, nearest)
    d = d / d.norm(dim=1, keepdim=True) * radius.view(-1, 1)
    torch.testing.assert_close(bound.evaluate(d.view_as(x)), torch.ones(len(x)), rtol=1e-5, atol=0)
    if form == "plain":
        distance = torch.cdist(x.flatten(1).double(), anchors.floats().double())
        distance[y.view(-1, 1) == anchors.labels.view(1, -1)] = math.inf
        close(radius, distance.amin(1) / 2)


def test_arguments_that_do_not_fit_are_refused():
    anchors, x, y, z = problem()
    threat = ProjectedDisplacement(anchors=anchors)
    for call, message in (
        (lambda: ProjectedDisplacement(), "anchors="),
        (lambda: ProjectedDisplacement(anchors=anchors, background="black"), "unknown background"),
        (lambda: threat.prepare(num_devices=0), "num_devices"),
        (lambda: threat.bind(x[:, :1], y), "anchors"),
        (lambda: threat.bind(x, y).evaluate((z - x)[:1]), "shape"),
        (lambda: threat.bind(x, y).project(z - x, -1.0), "threshold"),
    ):
        with pytest.raises(UsageError, match=message):
            call()


def test_source_is_asked_for_the_anchors_once():
    anchors, x, y, z = problem()
    asked = []
    threat = ProjectedDisplacement(source=lambda: asked.append(1) or anchors)
    assert torch.equal(threat.evaluate(x, y, z), ProjectedDisplacement(anchors=anchors).evaluate(x, y, z))
    threat.evaluate(x, y, z)
    assert asked == [1]
