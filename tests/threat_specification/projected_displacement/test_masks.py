"""The segmented threat: where masks come from, what they leave out, and what the background may do."""

import math
import sys
import types

import pytest
import torch
from safetensors.torch import save_file

from foundations.errors import UsageError
from threat_specification import AnchorSet, Intersection, Linf, ProjectedDisplacement
from threat_specification.attacks.search import Cell, attack_set
from threat_specification.projected_displacement.masks import BACKGROUNDS, MASK_SOURCES, CachedMasks, mask_source_from

SHAPE = (3, 8, 8)


def problem(batch=5, count=12, seed=0):
    generator = torch.Generator().manual_seed(seed)
    anchors = AnchorSet(torch.rand(count, *SHAPE, generator=generator), torch.arange(count) % 3)
    x = torch.rand(batch, *SHAPE, generator=generator)
    z = x + 0.5 * torch.randn(batch, *SHAPE, generator=generator)
    return anchors, x, torch.arange(batch) % 3, z


def half(batch):
    """The left half."""
    mask = torch.zeros(batch, 1, *SHAPE[1:], dtype=torch.bool)
    mask[..., :4] = True
    return mask


def test_masks_come_from_the_call_or_from_a_source():
    anchors, x, y, z = problem()
    by_call = ProjectedDisplacement(segmented=True, anchors=anchors)
    by_source = ProjectedDisplacement(segmented=True, anchors=anchors, mask_source=lambda images: half(len(images)))
    expected = by_call.evaluate(x, y, z, masks=half(5))
    assert torch.equal(by_source.evaluate(x, y, z), expected)
    other = torch.ones_like(half(5))
    assert torch.equal(by_source.evaluate(x, y, z, masks=other), by_call.evaluate(x, y, z, masks=other))
    both = Intersection([(by_call, 0.1), (Linf(), 0.2)])
    assert bool((both.evaluate(x, y, z, masks=half(5)) >= expected / 0.1).all())


def test_a_full_mask_is_the_plain_threat():
    anchors, x, y, z = problem()
    full = torch.ones(5, 1, 8, 8, dtype=torch.bool)
    segmented = ProjectedDisplacement(segmented=True, anchors=anchors).evaluate(x, y, z, masks=full)
    torch.testing.assert_close(segmented, ProjectedDisplacement(anchors=anchors).evaluate(x, y, z), rtol=1e-6, atol=0)


def test_background_does_not_count():
    anchors, x, y, z = problem()
    threat = ProjectedDisplacement(segmented=True, anchors=anchors)
    painted = torch.where(half(5), z, torch.rand(x.shape))
    torch.testing.assert_close(threat.evaluate(x, y, z, masks=half(5)), threat.evaluate(x, y, painted, masks=half(5)))
    # Half-way to the masked anchor: 1 by the norm inside the mask, by the full one the object's share of its square.
    j = int((anchors.labels != 0).nonzero()[0])
    difference = anchors.images[j : j + 1] - x[:1]
    inside = torch.where(half(1), difference, 0.0)
    for norm, least in (("masked", 1.0), ("full", float(inside.square().sum() / difference.square().sum()))):
        threat = ProjectedDisplacement(segmented=True, anchors=anchors, segmented_norm=norm)
        assert float(threat.evaluate(x[:1], y[:1], x[:1] + 0.5 * inside, masks=half(1))) >= least - 1e-6


def test_empty_masks_and_equal_objects_have_no_direction():
    anchors, x, y, z = problem()
    threat = ProjectedDisplacement(segmented=True, anchors=anchors)
    masks = half(5)
    expected = threat.evaluate(x, y, z, masks=masks)
    masks[1] = False
    got = threat.evaluate(x, y, z, masks=masks)
    assert float(got[1]) == 0 and torch.equal(got[[0, 2, 3, 4]], expected[[0, 2, 3, 4]])
    assert math.isinf(threat.inscribed_radius(x, y, masks=masks)[1])
    # An anchor of another class that shows the same object on another background does not count.
    same_object = torch.where(half(1), x[:1], 1 - x[:1])
    more = AnchorSet(torch.cat([anchors.images, same_object]), torch.cat([anchors.labels, torch.tensor([1])]))
    with_it = ProjectedDisplacement(segmented=True, anchors=more)
    assert with_it.bind(x, y, masks=half(5)).masked[0, -1]
    assert float(with_it.evaluate(x[:1], y[:1], z[:1], masks=half(1))) == pytest.approx(float(expected[0]), rel=1e-6)
    # All masks empty, and an equal anchor: nothing counts, nothing raises.
    equal = AnchorSet(torch.cat([anchors.images, x]), torch.cat([anchors.labels, (y + 1) % 3]))
    empty = torch.zeros_like(masks)
    threat = ProjectedDisplacement(segmented=True, anchors=equal)
    assert not bool(threat.evaluate(x, y, z, masks=empty).any())
    for method in ("scale", "exact"):
        assert torch.equal(threat.project(x, y, z, 0.1, masks=empty, method=method), x)


@pytest.mark.parametrize("method", ["scale", "exact"])
@pytest.mark.parametrize("name", list(BACKGROUNDS))
def test_backgrounds(name, method):
    anchors, x, y, z = problem()
    threat = ProjectedDisplacement(segmented=True, anchors=anchors, background=name)
    bound = threat.bind(x, y, masks=half(5))
    lower, upper = (-x).clamp_min(-0.1), (1 - x).clamp_max(0.1)
    d = bound.project(z - x, 0.05, lower, upper, method=method)
    background = ~half(5).expand_as(x)
    assert bool((bound.evaluate(d) <= 0.05 * (1 + 1e-6)).all())
    inside = ~background
    assert bool(((d >= lower) & (d <= upper))[inside].all())
    if name == "frozen":
        assert not bool(d[background].any())
    elif name == "radius":
        assert bool(((d >= lower) & (d <= upper))[background].all()) and bool(d[background].any())
    else:
        assert float(d[background].min()) < -0.11 and float(d[background].max()) > 0.11
    out = threat.project(x, y, z, 0.05, masks=half(5), method=method)
    assert bool(((out >= 0) & (out <= 1)).all())


def test_a_free_background_is_free_in_sets_of_every_size():
    """A model that the background alone fools is fooled in the smallest set: the curve said 1 up to t = 0.5."""
    anchors, x, y, _ = problem()
    x = x[:1] * 0.1 + 0.5
    threat = ProjectedDisplacement(segmented=True, anchors=anchors, background="free")
    allowed = attack_set(threat.bind(x, y[:1], masks=half(1)), Cell(0.1, 0.1))
    background, object_ = ~half(1).expand_as(x), half(1).expand_as(x)
    for level in (0.1, 0.5, 2.0):
        point = allowed.project_to_level(-x, torch.tensor([level]))
        assert torch.equal(point[background], -x[background])
        assert float(point[object_].abs().max()) <= level * 0.1 * (1 + 1e-6)
        assert float(allowed.bound.evaluate(point)) <= level * (1 + 1e-5)


def test_a_ball_of_an_intersection_bounds_a_free_background_too():
    anchors, x, y, z = problem()
    threat = ProjectedDisplacement(segmented=True, anchors=anchors, background="free")
    bound = Intersection([(threat, 0.1), (Linf(), 0.2)]).bind(x, y, masks=half(5))
    assert float(bound.evaluate(bound.project(5 * (z - x), 1.0)).max()) <= 1 + 1e-5


def test_frozen_is_the_default_in_an_intersection_too():
    anchors, x, y, z = problem()
    threat = ProjectedDisplacement(segmented=True, anchors=anchors)
    out = Intersection([(threat, 0.1), (Linf(), 0.2)]).project(x, y, z, 1.0, masks=half(5))
    background = ~half(5).expand_as(x)
    assert torch.equal(out[background], x[background])
    assert float((out - x).abs().max()) <= 0.2 + 1e-6


def test_a_source_is_asked_once_for_each_image():
    anchors, x, y, z = problem()
    asked = []

    def source(images):
        asked.append(len(images))
        return images[:, :1] > 0.5

    threat = ProjectedDisplacement(segmented=True, anchors=anchors, mask_source=source)
    bound = threat.bind(x, y)
    for _ in range(3):
        bound.evaluate(z - x)
        threat.evaluate(x, y, z)
    assert asked == [5]
    more = torch.cat([x[2:4], 1 - x[:1], 1 - x[:1]])
    masks = threat.mask_source(more)
    assert asked == [5, 1]  # twice the same new image: asked once
    assert torch.equal(masks, more[:, :1] > 0.5)
    assert threat.mask_source(x[:0]).shape == (0, 1, 8, 8)


def test_masks_by_channel_are_kept_as_they_are():
    _, x, _, _ = problem()
    source = CachedMasks(lambda images: images > 0.5)
    assert torch.equal(source(x), x > 0.5) and torch.equal(source(x), x > 0.5)


def test_center():
    mask = mask_source_from("center")(torch.rand(2, 3, 32, 24))
    assert mask.shape == (2, 1, 32, 24) and torch.equal(mask[0], mask[1])
    assert bool(mask[0, 0, 16, 12]) and not bool(mask[0, 0, 0].any() | mask[0, 0, :, 0].any())
    assert torch.equal(mask, mask.flip(2)) and torch.equal(mask, mask.flip(3))
    assert 0.45 < float(mask.float().mean()) < 0.55


def test_file(tmp_path):
    anchors, x, y, z = problem()
    masks = torch.rand(20, 1, 8, 8, generator=torch.Generator().manual_seed(1)) > 0.5
    path = tmp_path / "masks.safetensors"
    save_file({"masks": masks.to(torch.uint8)}, str(path))
    threat = ProjectedDisplacement(segmented=True, anchors=anchors, mask_source=f"file:{path}")
    indices = torch.tensor([3, 19, 0, 7, 7])
    expected = threat.evaluate(x, y, z, masks=masks[indices])
    assert torch.equal(threat.evaluate(x, y, z, indices=indices), expected)
    both = Intersection([(threat, 1.0), (Linf(), 1e30)])
    assert torch.equal(both.evaluate(x, y, z, indices=indices), expected)
    for call, message in (
        (lambda: threat.evaluate(x, y, z), "indices="),
        (lambda: threat.evaluate(x, y, z, indices=indices + 10), "0 to 19, got 10 to 29"),
        (lambda: mask_source_from("file"), "expected a path"),
        (lambda: mask_source_from(f"file:{path}x"), "cannot read"),
    ):
        with pytest.raises(UsageError, match=message):
            call()
    save_file({"masks": masks.float()}, str(path))
    with pytest.raises(UsageError, match="bool or uint8"):
        mask_source_from(f"file:{path}")
    # Soft masks were nearly all object.
    save_file({"masks": torch.arange(4 * 36).view(4, 1, 6, 6).to(torch.uint8)}, str(path))
    with pytest.raises(UsageError, match="expected masks of 0 and 1, or of 0 and 255, got 0, 1, 2"):
        mask_source_from(f"file:{path}")
    save_file({"masks": 255 * (torch.arange(4 * 36).view(4, 1, 6, 6) % 2).to(torch.uint8)}, str(path))
    assert mask_source_from(f"file:{path}")(torch.zeros(1, 1, 6, 6), torch.tensor([2])).sum() == 18


def test_grabcut_finds_a_bright_square():
    pytest.importorskip("cv2")
    x = 0.05 * torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    x[..., 10:22, 8:24] += 0.9
    mask = mask_source_from("grabcut")(x)
    assert mask.shape == (1, 1, 32, 32)
    truth = torch.zeros(32, 32, dtype=torch.bool)
    truth[10:22, 8:24] = True
    assert float((mask[0, 0] == truth).float().mean()) > 0.97
    assert mask_source_from("grabcut")(x[:, :1]).shape == (1, 1, 32, 32)


@pytest.mark.parametrize("name,module", [("grabcut", "cv2"), ("sam", "segment_anything")])
def test_missing_packages_are_named(name, module, monkeypatch):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(UsageError, match="pip install"):
        mask_source_from(f"{name}:x.pth")


class _Predictor:
    """Stands in for SamPredictor: three masks, of which the second scores best, holds the bright pixels."""

    def __init__(self, model):
        self.model = model

    def set_image(self, image):
        assert image.dtype.name == "uint8" and image.shape[2] == 3
        self.image = image

    def predict(self, point_coords, point_labels, multimask_output):
        assert point_coords.tolist() == [[4.0, 4.0]] and point_labels.tolist() == [1] and multimask_output
        bright = self.image[..., 0] > 127
        import numpy as np

        return np.stack([~bright, bright, ~bright]), np.array([0.1, 0.9, 0.2]), None


def test_sam_with_a_stand_in(monkeypatch, tmp_path):
    made, placed = [], []
    model = types.SimpleNamespace(to=placed.append)
    package = types.SimpleNamespace(
        sam_model_registry={"vit_b": lambda checkpoint: made.append(checkpoint) or model}, SamPredictor=_Predictor
    )
    monkeypatch.setitem(sys.modules, "segment_anything", package)
    path = tmp_path / "sam_vit_b_01ec64.pth"
    path.write_bytes(b"")
    x = torch.rand(2, 3, *SHAPE[1:])
    mask = mask_source_from(f"sam:{path}")(x)
    assert made == [str(path)] and placed == [x.device]  # it stayed on the CPU, whatever the images were on
    assert torch.equal(mask[:, 0], (x[:, 0] * 255).round() > 127)
    other = tmp_path / "mine.pth"
    other.write_bytes(b"")
    mask_source_from(f"sam:vit_b@{other}")
    assert made[-1] == str(other)
    for spec, message in (
        (f"sam:{other}", "cannot tell"),
        ("sam:missing_vit_b.pth", "checkpoint"),
        ("sam", "checkpoint"),
    ):
        with pytest.raises(UsageError, match=message):
            mask_source_from(spec)


def test_arguments_that_do_not_fit_are_refused():
    anchors, x, y, z = problem()
    plain = ProjectedDisplacement(anchors=anchors)
    threat = ProjectedDisplacement(anchors=anchors, segmented=True)
    for call, message in (
        (lambda: ProjectedDisplacement(anchors=anchors, mask_source="center"), "segmented=True"),
        (lambda: ProjectedDisplacement(anchors=anchors, segmented=True, mask_source="centre"), "did you mean 'center'"),
        (lambda: plain.evaluate(x, y, z, masks=half(5)), "segmented=True"),
        (lambda: threat.evaluate(x, y, z), "got neither"),
        (lambda: threat.evaluate(x, y, z, masks=half(4)), "masks: expected bool"),
        (lambda: threat.evaluate(x, y, z, masks=half(5).float()), "masks: expected bool"),
        (lambda: CachedMasks(lambda images: images)(x), "masks: expected bool"),
    ):
        with pytest.raises(UsageError, match=message):
            call()
    assert set(MASK_SOURCES) == {"center", "grabcut", "sam", "file"}
