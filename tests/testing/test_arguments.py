"""robust_accuracy with arguments and models of odd kinds: converted, or refused in a line."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy
import pytest
import torch
from torch import Tensor, nn

from foundations.errors import NonisotropicError, UsageError
from testing.attack import Attack, attack
from testing.certificates import certified_robustness
from testing.exact import exact_robustness
from testing.robust_accuracy import robust_accuracy
from threat_specification import L2, AnchorSet, Intersection, Linf, ProjectedDisplacement
from threat_specification.measuring import evaluate_threat_of
from threat_specification.norms import BoundLinf
from threat_specification.safe_moves.changes import safe_changes
from training.any_loop import TrainingAdversary

torch.manual_seed(0)
NET = nn.Sequential(nn.Flatten(), nn.Linear(16, 3))
NET[1].weight.data -= NET[1].weight.data.mean(1, keepdim=True)  # so that all classes occur
NET[1].bias.data.zero_()
X = torch.rand(12, 1, 4, 4)
with torch.no_grad():
    Y = NET(X).argmax(1)


class Wrapped(nn.Module):
    def __init__(self, how: Callable[[nn.Module, Tensor], Any]) -> None:
        super().__init__()
        self.net, self.how = NET, how

    def forward(self, images: Tensor) -> Any:
        return self.how(self.net, images)


def accuracy(model: nn.Module = NET, images: Any = X, labels: Any = Y) -> float:
    found = robust_accuracy(model, images, labels, Linf(), 0.03, attacks=["pgd"], steps=3)
    assert isinstance(found, float)
    return found


TRUTH = accuracy()
assert len(Y.unique()) == 3 and 0.1 < TRUTH < 0.9


@pytest.mark.parametrize(
    "labels",
    [
        Y.int(),
        Y.to(torch.uint8),
        Y.to(torch.int16),
        Y.tolist(),
        Y.numpy(),
        Y.numpy().astype(numpy.int32),
        tuple(Y.tolist()),
    ],
)
def test_labels_of_any_kind(labels: Any) -> None:
    assert accuracy(labels=labels) == TRUTH


@pytest.mark.parametrize("images", [X.double(), X.half().float(), X.numpy(), X.tolist(), X.clone().requires_grad_()])
def test_images_of_any_kind(images: Any) -> None:
    assert accuracy(images=images) == pytest.approx(TRUTH)


def test_models_of_other_numbers() -> None:
    assert accuracy(Wrapped(lambda net, x: net(x).double())) == TRUTH
    double = nn.Sequential(nn.Flatten(), nn.Linear(16, 3)).double()
    double.load_state_dict(NET.state_dict())
    assert accuracy(double) == TRUTH


def test_a_model_that_works_in_place_does_not_change_the_images() -> None:
    before = X.clone()
    expected = accuracy(Wrapped(lambda net, x: net(0.5 * x)))
    assert accuracy(Wrapped(lambda net, x: net(x.mul_(0.5)))) == expected
    assert accuracy(Wrapped(lambda net, x: net(x.clamp_(0, 1)))) == TRUTH  # whose values stay
    assert before.equal(X)


@pytest.mark.parametrize(
    ("how", "told"),
    [
        (lambda net, x: (net(x), x), "model: expected logits [B,K], got a tuple; wrap it"),
        (lambda net, x: {"logits": net(x)}, "model: expected logits [B,K], got a dict"),
        (
            lambda net, x: net(x).argmax(1),
            "model: expected logits [1,K] of two classes or more for an image, got torch.int64",
        ),
        (lambda net, x: net(x)[:, :1], "got torch.float32 [1, 1]"),
        (lambda net, x: net(x)[0], "got torch.float32 [3]"),
        (lambda net, x: net(x) * torch.nan, "the model's answers are not finite (NaN or infinity) for 12 of 12 images"),
        (lambda net, x: net(x).abs() * 1e39, "not finite"),
    ],
)
def test_answers_that_are_no_logits(how: Callable[[nn.Module, Tensor], Any], told: str) -> None:
    with pytest.raises(NonisotropicError) as error:
        accuracy(Wrapped(how))
    assert told in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"labels": Y + 3}, "labels: expected classes from 0 to 2, as the model has, got"),
        ({"labels": torch.full_like(Y, 99)}, "got 99 to 99"),
        ({"labels": Y - 3}, "as the model has, got -"),
        ({"labels": Y[:5]}, "labels: expected 12 whole numbers, one for each image, got torch.int64 [5]"),
        ({"labels": Y.float()}, "got torch.float32 [12]"),
        ({"labels": "012012"}, "labels: expected a tensor, an array or a list of numbers, got str"),
        ({"images": X[0]}, "images: expected [n,C,H,W], got [1, 4, 4]"),
        ({"images": X[:0], "labels": Y[:0]}, "images: expected at least one, got none"),
        ({"images": X * 255}, "in [0, 1]"),
        ({"images": None}, "images: expected a tensor, an array or a list of numbers, got NoneType"),
    ],
)
def test_arguments_that_mean_nothing(arguments: dict[str, Any], told: str) -> None:
    with pytest.raises(NonisotropicError) as error:
        accuracy(**arguments)
    assert told in str(error.value) and "\n" not in str(error.value)


def test_images_on_another_device() -> None:
    elsewhere = nn.Sequential(nn.Flatten(), nn.Linear(16, 3)).to("meta")
    with pytest.raises(NonisotropicError, match="images: expected them on meta, where the model is, got cpu"):
        accuracy(elsewhere)


@pytest.mark.parametrize("asked", [robust_accuracy, attack, exact_robustness, certified_robustness])
@pytest.mark.parametrize(
    ("images", "told"),
    [(torch.zeros(0, 1, 4, 4), "expected at least one, got none"), (torch.zeros(2, 4, 4), r"expected \[n,C,H,W\]")],
)
def test_every_question_checks_its_images_alike(asked, images: Tensor, told: str) -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(16, 2))
    with pytest.raises(UsageError, match=told):
        asked(net, images, torch.zeros(len(images), dtype=torch.long), Linf(), 0.1)


NO_NUMBERS = ("0.1", None, [0.1], torch.tensor([0.1, 0.2]), math.nan, -0.1)


@pytest.mark.parametrize("made", [Attack, TrainingAdversary])
@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        *(({"threshold": wrong}, "threshold: expected a finite number >= 0, got") for wrong in (*NO_NUMBERS, math.inf)),
        *(({"radius": wrong}, "radius: expected a number >= 0, got") for wrong in NO_NUMBERS if wrong is not None),
        *(({"steps": wrong}, "steps: expected a whole number >= 1, got") for wrong in (0, -1, 1.5, "3", None)),
        *(({"seed": wrong}, "seed: expected a whole number from -9.2") for wrong in ("a", 0.5, 10**30, None)),
        ({"threat": "PD"}, "threat: expected one, such as nonisotropic.Linf(), got a str"),
        ({"threat": Linf}, "got the class Linf"),
        ({"threat": Linf().bind(X, Y)}, "got a BoundLinf"),
    ],
)
def test_a_set_that_is_none_is_refused_before_anything_runs(made: Any, arguments: dict[str, Any], told: str) -> None:
    """A radius below 0 made the search for a point go on for ever; no steps made a figure without an attack."""
    with pytest.raises(UsageError) as error:
        made(**{"threat": Linf(), "threshold": 0.1, **arguments})
    assert told in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"shard_size": 0}, "shard_size: expected a whole number >= 1, got 0"),
        ({"attacks": "apgd_ce"}, "attacks: expected a list of names and functions, got 'apgd_ce' alone"),
    ],
)
def test_further_arguments_of_attacks(arguments: dict[str, Any], told: str) -> None:
    with pytest.raises(UsageError) as error:
        Attack(Linf(), 0.1, **arguments)
    assert told in str(error.value)


def test_numbers_of_other_libraries_are_numbers() -> None:
    made = Attack(Linf(), numpy.float32(0.1), torch.tensor(0.1), steps=numpy.int64(3), seed=-1)
    assert made(NET, X, Y).shape == X.shape


@pytest.mark.parametrize("asked", [robust_accuracy, attack, exact_robustness, certified_robustness])
@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"model": lambda images: NET(images)}, "model: expected a torch.nn.Module, got a function; wrap it"),
        ({"model": nn.Linear}, "got the class Linear"),
        ({"radius": -0.1}, "radius: expected a number >= 0"),
        ({"threat": None}, "threat: expected one"),
    ],
)
def test_every_question_checks_its_model_and_set_alike(asked: Any, arguments: dict[str, Any], told: str) -> None:
    with pytest.raises(UsageError) as error:
        asked(**{"model": NET, "images": X, "labels": Y, "threat": Linf(), "threshold": 0.1, **arguments})
    assert told in str(error.value)


def test_inference_mode_is_named_and_its_images_are_taken() -> None:
    with torch.inference_mode():
        images = X.clone()
        with pytest.raises(UsageError, match="call them outside of it"):
            accuracy()
        with pytest.raises(UsageError, match="call it outside of it"):
            TrainingAdversary(Linf(), 0.1)(NET, X, Y)
    assert accuracy(images=images) == TRUTH


@pytest.mark.parametrize(
    ("images", "labels", "told"),
    [
        (X, Y - 3, "labels: expected classes from 0 up, got -3"),
        (X, Y > 0, "labels: expected 12 integers, got torch.bool"),
        (X, Y.tolist(), "labels: expected a tensor, got a list"),
        (X.numpy(), Y, "examples: expected a tensor, got a ndarray"),
        (X[:0], Y[:0], "images: expected at least one, got none"),
    ],
)
def test_an_adversary_of_training_names_what_it_cannot_take(images: Any, labels: Any, told: str) -> None:
    with pytest.raises(UsageError) as error:
        TrainingAdversary(Linf(), 0.1)(NET, images, labels)
    assert told in str(error.value)


def test_an_adversary_of_training_fills_a_ball_however_it_is_written() -> None:
    """An intersection with a ball had a second bound of 8/255, unasked."""
    ways = (Linf(), 0.2), (Intersection([(Linf(), 0.4)]), 0.5), (Intersection([(Linf(), 0.2), (L2(), 50.0)]), 1.0)
    found = [TrainingAdversary(threat, level)(NET, X, Y) for threat, level in ways]
    assert [float((points - X).abs().max()) for points in found] == pytest.approx([0.2] * 3)
    plain, *others = (nn.functional.cross_entropy(NET(points), Y).item() for points in found)
    assert others == pytest.approx([plain] * 2, rel=0.02)


def test_an_adversary_of_training_knows_the_classes_of_each_model() -> None:
    """On a GPU a label that is no class ends the process, not the call."""
    adversary, four = TrainingAdversary(Linf(), 0.1), torch.arange(12) % 4
    net = nn.Sequential(nn.Flatten(), nn.Linear(16, 3))
    adversary(net, X, Y)
    with pytest.raises(UsageError, match="labels: expected classes from 0 to 2, as the model has, got 0 to 3"):
        adversary(net, X, four)
    net[1] = nn.Linear(16, 4)  # the same network, with another last layer
    assert adversary(net, X, four).shape == X.shape
    assert adversary(net.double(), X, four).dtype == torch.float32
    with pytest.raises(UsageError, match="labels: expected classes from 0 to 2"):
        net[1] = nn.Linear(16, 3)
        adversary(net.float(), X, four)
    for answers, told in ((lambda net, x: (net(x),), "got a tuple"), (lambda net, x: net(x)[:1], r"logits \[12,K\]")):
        with pytest.raises(UsageError, match=f"model: expected.*{told}"):
            adversary(Wrapped(answers), X, Y)


@pytest.mark.parametrize(
    ("call", "told"),
    [
        (
            lambda: evaluate_threat_of(X.numpy(), X, Y, Linf()),
            "change: expected changed images or a function, got a n",
        ),
        (lambda: evaluate_threat_of(X, X, Y, ["PD"]), "threats: expected threats, such as nonisotropic.L2(), got 'PD'"),
        (lambda: evaluate_threat_of(X, X, Y, "PD"), "threats: expected threats"),
        (lambda: evaluate_threat_of(X, X, Y, [Linf]), "threats: expected threats"),
        (lambda: evaluate_threat_of(X, X, Y - 3, Linf()), "labels: expected classes from 0 up"),
        (lambda: safe_changes(X.numpy()), "images: expected a tensor of at least one, got a ndarray"),
        (lambda: safe_changes(X[:0]), "images: expected a tensor of at least one, got none"),
        (lambda: safe_changes(X, ["quick"]), "changes: expected their names in a text"),
        (lambda: safe_changes(X, seed="a"), "seed: expected a whole number"),
        (lambda: AnchorSet(X.numpy(), Y), "anchors: expected images in a tensor, got a ndarray"),
        (lambda: AnchorSet(X, Y.tolist()), "anchors: expected labels in a tensor, got a list"),
        (lambda: AnchorSet(X, Y > 0), "anchors: expected 12 labels >= 0, got torch.bool"),
        (lambda: AnchorSet(X, Y.to("meta")), "anchors: expected labels on cpu, where the images are, got meta"),
        (lambda: Intersection((Linf(), 0.1)), "Intersection: expected pairs (threat, level), got "),
        (lambda: Intersection([("Linf", 0.1)]), "Intersection: expected pairs"),
        (lambda: Attack(Linf(), 0.1, safe_moves=["quick"]), "safe_moves: expected their names in a text"),
        (
            lambda: exact_robustness(NET, X, Y, Linf(), 0.1, seconds=math.nan),
            "seconds: expected a number >= 0",
        ),
        (lambda: ProjectedDisplacement(anchors=(X, Y)), "anchors: expected an AnchorSet(images, labels), got a tuple"),
    ],
)
def test_measures_name_what_they_cannot_take(call: Callable[[], Any], told: str) -> None:
    with pytest.raises(UsageError) as error:
        call()
    assert told in str(error.value)


class Quarter(BoundLinf):
    def evaluate(self, delta: Tensor) -> Tensor:
        return super().evaluate(delta) / 4

    def project(self, delta: Tensor, threshold: float, *bounds: Any) -> Tensor:
        return super().project(delta, 4 * threshold, *bounds)


class QuarterLinf(Linf):
    """A user's threat that measures otherwise than the one that it derives from."""

    def bind(self, examples: Tensor, labels: Tensor) -> BoundLinf:
        return Quarter(examples)


@pytest.mark.parametrize("prove", [exact_robustness, certified_robustness])
@pytest.mark.parametrize("threat", [QuarterLinf(), Intersection([(QuarterLinf(), 1.0)])])
def test_proofs_are_of_no_class_that_measures_otherwise(prove: Any, threat: Linf) -> None:
    """They took it for the ball of Linf: images were proven robust that attacks broke."""
    with pytest.raises(UsageError, match="expected a threat of half-spaces"):
        prove(NET, X, Y, threat, 0.1)


def test_a_set_of_a_class_of_ones_own_is_that_of_its_measure() -> None:
    """Beside another bound it was taken for the ball of Linf, which is a quarter of it."""
    far = TrainingAdversary(QuarterLinf(), 0.05, steps=20, reach=20.0)(NET, X, Y)
    assert 0.06 < float((far - X).abs().max()) <= 0.05 * 4 + 1e-6
    both = Intersection([(QuarterLinf(), 0.05), (L2(), 10.0)]).bind(X, Y)
    assert float(both.evaluate(both.project(torch.ones_like(X), 1.0)).max()) <= 1 + 1e-5


def test_proofs_are_of_float32() -> None:
    """Under fp16 half of what was proven robust was misclassified."""
    for prove, told in ((exact_robustness, "exact answers"), (certified_robustness, "certificates")):
        with torch.autocast("cpu", torch.bfloat16), pytest.raises(UsageError, match=f"{told}: .* got torch.autocast"):
            prove(NET, X, Y, Linf(), 0.01)


def test_a_default_of_float64_changes_nothing() -> None:
    torch.set_default_dtype(torch.float64)
    try:
        found = robust_accuracy(NET, X, Y, Linf(), 0.03, steps=3)
    finally:
        torch.set_default_dtype(torch.float32)
    assert found == robust_accuracy(NET, X, Y, Linf(), 0.03, steps=3)
