"""`robust_accuracy` on models whose answer is known, with threats of ours and of a user."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from foundations.errors import UsageError
from testing.attack import Attack
from testing.robust_accuracy import RobustAccuracy, RobustnessWarning, robust_accuracy
from tests.testing.test_gradient_masking import Brightness, Rounded
from tests.threat_specification.safe_moves.problems import COUNT, Problem
from threat_specification import L2, AnchorSet, Intersection, Linf, ProjectedDisplacement
from threat_specification.base import BoundThreat, Threat, check_images
from training.any_loop import TrainingAdversary

# The border is at a mean of 0.7: these are 0.02, 0.04, ... 0.16 away from it.
DISTANCES = torch.arange(1, 9) * 0.02
IMAGES = (0.7 - DISTANCES).view(-1, 1, 1, 1).expand(-1, 1, 4, 4).clone()
LABELS = torch.zeros(8, dtype=torch.long)


def test_images_of_all_classes_are_probed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of images in the order of their classes the first fifty are of one."""
    probed: list[Tensor] = []
    told = lambda evaluation, sample, robust, *of_all: probed.append(sample.images[:, 0, 0, 0]) or []  # noqa: E731
    monkeypatch.setattr("testing.robust_accuracy.masking_warnings", told)
    images = torch.linspace(0, 0.6, 120).view(-1, 1, 1, 1).expand(-1, 1, 4, 4).clone()
    robust_accuracy(Brightness(), images, torch.zeros(120, dtype=torch.long), Linf(), 0.01, attacks=["apgd_ce"])
    (few,) = probed
    assert len(few) == 50 and few[0] == 0 and few[-1] > 0.58


class Half(Threat):
    """A user's threat: half the largest change of a pixel."""

    name = "half"

    def bind(self, examples: Tensor, labels: Tensor) -> BoundThreat:
        check_images(examples, labels)
        return BoundHalf(examples)


class BoundHalf(BoundThreat):
    def evaluate(self, delta: Tensor) -> Tensor:
        return delta.flatten(1).abs().amax(1) / 2

    def project(self, delta, threshold, lower=None, upper=None) -> Tensor:
        lower, upper = self.bounds(lower, upper)
        return delta.clamp(lower.clamp_min(-2 * threshold), upper.clamp_max(2 * threshold))


class HalfInABall(Half):
    """The same, of a user who says that no radius is needed beside it."""

    bounded = True


BOTH = Intersection([(L2(), 0.4), (Linf(), 0.07)])
ROOT = Intersection([(L2(), 0.28), (Half(), 1.0)])
UNBOUNDED = Intersection([(Half(), 0.3), (Half(), 0.4)])


@pytest.mark.parametrize(
    ("threat", "threshold", "reach"),
    [
        *[(Linf(), 0.07, 0.07), (L2(), 0.28, 0.07), (Half(), 0.0125, 0.025), (Half(), 0.3, 8 / 255)],
        *[(HalfInABall(), 0.035, 0.07), (BOTH, 1.0, 0.07), (ROOT, 1.0, 0.07), (UNBOUNDED, 1.0, 8 / 255)],
    ],
)
def test_known_borders(threat: Threat, threshold: float, reach: float) -> None:
    model = Brightness().train()
    expected = float((reach + 1e-4 < DISTANCES).float().mean())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert robust_accuracy(model, IMAGES, LABELS, threat, threshold, shard_size=3) == expected
    assert model.training


def test_under_pd_and_wrong_inputs() -> None:
    generator = torch.Generator().manual_seed(0)
    anchors = AnchorSet(torch.rand(6, 1, 4, 4, generator=generator) * 0.2 + 0.7, torch.arange(6) % 2)
    threat = ProjectedDisplacement(anchors=anchors)
    model = Brightness()
    accuracies = [robust_accuracy(model, IMAGES, LABELS, threat, t, radius=0.3, steps=20) for t in (0.0, 0.3, 2.0)]
    assert accuracies == sorted(accuracies, reverse=True) and accuracies[-1] < accuracies[0]
    assert robust_accuracy(model, IMAGES, LABELS, threat, 2.0, radius=0.01, steps=20) == 1  # out of reach of the radius
    with pytest.raises(UsageError, match=r"expected values in \[0, 1\]"):
        robust_accuracy(model, IMAGES * 255, LABELS, threat, 0.1)
    with pytest.raises(UsageError, match="expected at least one, got none"):
        robust_accuracy(model, IMAGES[:0], LABELS[:0], threat, 0.1)
    with pytest.raises(UsageError, match="unknown attack 'apgd_cee'"):
        robust_accuracy(model, IMAGES, LABELS, threat, 0.1, attacks=["apgd_cee"])


def test_under_mixtures_of_safe_changes() -> None:
    """A model that looks at brightness alone falls to a change of brightness, which the radius does not allow."""
    generator = torch.Generator().manual_seed(0)
    anchors = AnchorSet(torch.rand(6, 1, 4, 4, generator=generator) * 0.2 + 0.7, torch.arange(6) % 2)
    words = {"threat": ProjectedDisplacement(anchors=anchors), "threshold": 2.0, "radius": 0.01, "steps": 5}
    assert robust_accuracy(Brightness(), IMAGES, LABELS, attacks=["pgd"], **words) == 1
    found = robust_accuracy(
        Brightness(), IMAGES, LABELS, attacks=["pgd"], safe_moves="brighter:5,darker:5", details=True, **words
    )
    assert isinstance(found, RobustAccuracy)
    assert found.accuracy < 1 and set(found.broken_by) <= {"single_moves", "pgd", ""}
    assert (Brightness()(found.perturbed).argmax(1) == LABELS).tolist() == found.correct.tolist()
    for wrong in ("brght", ","):
        with pytest.raises(UsageError, match="safe moves: expected suites"):
            robust_accuracy(Brightness(), IMAGES, LABELS, attacks=["pgd"], safe_moves=wrong, **words)
    # A norm has no radius beside it by default: then noise may be any image.
    assert robust_accuracy(Brightness(), IMAGES, LABELS, Linf(), 1.0, attacks=["pgd"], safe_moves="darker:1") == 0


def test_beside_safe_moves_no_threat_loses_its_noise() -> None:
    """The set with moves holds that without: whatever breaks the model there must be found, for every threat."""
    problem = Problem()
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    labels = model(problem.x).argmax(1).detach()
    pd = ProjectedDisplacement(anchors=problem.anchors)
    lazy = ProjectedDisplacement(anchors=problem.anchors, projection="scale")
    sets: list[tuple[Threat, float, float]] = [(L2(), 0.3, 1.0), (Linf(), 0.04, 1.0), (lazy, 0.1, 0.1), (pd, 0.1, 0.1)]
    sets += [(Intersection([(pd, 1.0), (Linf(), 10.0)]), 0.1, 0.1)]
    asked: dict[str, Any] = {"attacks": ["momentum_ce"], "steps": 10}
    for threat, threshold, radius in sets:
        alone, mixed = (
            Attack(threat, threshold, radius, safe_moves=moves, **asked).search(model, problem.x, labels).found
            for moves in ("", "quick:1")
        )
        broken = ~alone["N_adv_correct"]
        assert 0 < int(broken.sum()) < COUNT
        assert int((broken & mixed["N_adv_correct"]).sum()) <= int(broken.sum()) // 3, threat.name


def test_out_of_memory_images_are_attacked_in_parts() -> None:
    class Small(Brightness):
        def forward(self, images: Tensor) -> Tensor:
            if len(images) > 3:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return super().forward(images)

    words = IMAGES, LABELS, Linf(), 0.07
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        found = robust_accuracy(Small(), *words, shard_size=8)
    assert "out of memory: going on with 2 images at a time" in [str(each.message) for each in told]
    assert found == robust_accuracy(Brightness(), *words)


def test_attacks_from_an_iterator_serve_every_call() -> None:
    attack = Attack(Linf(), 0.07, attacks=(name for name in ("apgd_ce",)), steps=10)
    first, second = (attack(Brightness(), IMAGES, LABELS) for _ in range(2))
    assert torch.equal(first, second) and float((second - IMAGES).abs().max()) > 0.01


def test_masks_of_a_file_are_of_all_its_images(tmp_path: Path) -> None:
    """Row numbers of a part of a data set are not known here: 0 to n - 1 would be masks of other images."""
    images, labels = torch.rand(6, 1, 4, 4), torch.arange(6) % 2
    file = tmp_path / "masks.safetensors"
    save_file({"masks": torch.ones(6, 1, 4, 4, dtype=torch.bool)}, file)
    threat = ProjectedDisplacement(
        anchors=AnchorSet(torch.rand(4, 1, 4, 4), torch.arange(4) % 2), segmented=True, mask_source=f"file:{file}"
    )
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 2))
    for asked in (threat, Intersection([(threat, 1.0), (Linf(), 1.0)])):
        attack = Attack(asked, 0.1, attacks=["apgd_ce"], steps=2)
        assert attack(model, images, labels).shape == images.shape
        with pytest.raises(UsageError, match=r"images: expected all 6 that the threat's file has masks of.*got 3"):
            attack(model, images[3:], labels[3:])
        with pytest.raises(UsageError, match=r"expected all 6"):
            TrainingAdversary(asked, 0.1, steps=1)(model, images[:2], labels[:2])


def test_attacks_that_know_no_mixtures_are_refused_beside_safe_moves() -> None:
    """Left out in silence, a function broke nothing in a set that contains all images which it finds without them."""
    given = (Brightness(), IMAGES, LABELS, Linf(), 1.0)
    lighter = lambda model, images, labels, allowed: images + 0.5  # noqa: E731
    assert robust_accuracy(*given, attacks=[lighter]) == 0
    for attack in (lighter, "post_hoc"):
        with pytest.raises(UsageError, match="expected those that search mixtures"):
            robust_accuracy(*given, attacks=[attack, "pgd"], safe_moves="darker:1")


def test_details_say_which_examples_stand_and_what_broke_the_others() -> None:
    images, labels = IMAGES.clone(), LABELS.clone()
    images[7] = 0.9  # wrong without any attack
    model = Brightness()
    found = robust_accuracy(model, images, labels, Linf(), 0.07, shard_size=3, details=True, attacks=["apgd_ce", "pgd"])
    assert found.accuracy == 0.5 and found.correct.tolist() == [False] * 3 + [True] * 4 + [False]
    assert found.broken_by == ["apgd_ce"] * 3 + [""] * 4 + ["clean"]
    assert (model(found.perturbed).argmax(1) != labels).tolist() == [True] * 3 + [False] * 4 + [True]
    assert float((found.perturbed - images).abs().max()) <= 0.07 * (1 + 1e-5)
    assert (found.low, found.high) == pytest.approx((0.2152, 0.7848), abs=1e-4)
    assert found.warnings == []


def test_a_figure_that_should_not_be_believed_warns() -> None:
    with pytest.warns(RobustnessWarning) as told:
        found = robust_accuracy(Rounded(), IMAGES, LABELS, Linf(), 0.01, details=True)
    assert any("are quantised" in message for message in found.warnings)
    assert [str(each.message) for each in told] == found.warnings


class Loose(Half):
    """Its projection ends a thousandth beyond the set."""

    def bind(self, examples: Tensor, labels: Tensor) -> BoundThreat:
        return BoundLoose(examples)


class BoundLoose(BoundHalf):
    def project(self, delta, threshold, lower=None, upper=None) -> Tensor:
        return super().project(delta, 1.001 * threshold, lower, upper)


@pytest.mark.parametrize(("threat", "accuracy"), [(Half(), 0.5), (Loose(), 1.0)])
def test_a_projection_that_ends_beyond_the_set_warns(threat: Threat, accuracy: float) -> None:
    """Points outside do not count, so that all examples stand; attacks found wrong answers for half of them."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        words = {"radius": 1.0, "attacks": ["apgd_ce"], "steps": 5, "details": True}
        found = robust_accuracy(Brightness(), IMAGES, LABELS, threat, 0.045, **words)
    told = [message for message in found.warnings if "not in the set" in message]
    assert found.accuracy == accuracy and len(told) == (accuracy == 1)
    assert all("wrong answers for 50% of a sample" in message for message in told)


class Cut(nn.Module):
    """No gradient at all: the input is detached."""

    def forward(self, images: Tensor) -> Tensor:
        brightness = images.detach().flatten(1).mean(1, keepdim=True) * 10
        return torch.cat([14 - brightness, brightness], 1)


@pytest.mark.parametrize("trained", [False, True])
def test_a_model_that_cuts_its_gradient_ends_in_a_warning_and_not_in_a_crash(trained: bool) -> None:
    """With a weight after the cut there is a graph, which does not reach the input."""
    model = nn.Sequential(Cut(), nn.Linear(2, 2, bias=False)) if trained else Cut()
    if trained:
        nn.init.eye_(model[1].weight)
    with pytest.warns(RobustnessWarning):
        found = robust_accuracy(model, IMAGES, LABELS, Linf(), 0.07, details=True)
    assert any("gradient vanishes" in message for message in found.warnings)
    assert found.accuracy == 5 / 8  # by attacks that need none


def test_a_share_is_a_whole_number_over_another() -> None:
    """Not a mean in float32, in which 1 of 40 is 0.02500000037."""
    images, labels = torch.zeros(40, 1, 2, 2), torch.ones(40, dtype=torch.long)
    images[7], labels[7] = 1.0, 1
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
    with torch.no_grad():
        (
            model[1].weight.copy_(torch.tensor([[-1.0], [1.0]]).expand(2, 4)),
            model[1].bias.copy_(torch.tensor([2.0, -2.0])),
        )
    for details in (False, True):
        found = robust_accuracy(model, images, labels, Linf(), 0.01, attacks=["pgd"], steps=1, details=details)
        assert (found.accuracy if details else found) == 1 / 40
