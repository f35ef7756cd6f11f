"""Attacks of other libraries and of users: what counts is what the set and the model say of their points."""

from __future__ import annotations

import math
import random
from dataclasses import replace
from pathlib import Path

import numpy
import pytest
import torch
from torch import Tensor, nn

from benchmarks import foreign_attacks
from foundations.errors import RunError, UsageError
from foundations.testing_hparams import TestingHparams
from runners.test import audit
from runners.test.under_attack import inside
from testing.evaluations import AttackEvaluation
from testing.foreign import Foreign, chosen_attacks, foreign, own, read_foreign
from testing.robust_accuracy import robust_accuracy
from testing.shards import Shard
from tests.threat_specification.attacks.linear import best_margin, directions, problem
from threat_specification import Linf, ProjectedDisplacement
from threat_specification.attacks.registry import pd_auto
from threat_specification.attacks.search import Cell

THRESHOLD, RADIUS = 0.06, 0.1


def attacked(attack, model, images, labels, threat, cell: Cell) -> dict[str, Tensor]:
    """The rows of an evaluation by one attack; without the warnings of `robust_accuracy`."""
    shard = Shard(0, images, labels, torch.arange(len(labels)))
    return AttackEvaluation(model, threat, cell, foreign([attack]), 10, 0)(shard)


def far_away(model: nn.Module, images: Tensor, labels: Tensor, allowed) -> Tensor:
    """A point outside of everything."""
    return images + 7 * torch.rand_like(images)


def by_one_gradient(model: nn.Module, images: Tensor, labels: Tensor, allowed) -> Tensor:
    """One careless step of 0.1, with a backward pass through the weights."""
    images.requires_grad_(True)
    torch.nn.functional.cross_entropy(model(images), labels).backward()
    return images + 0.1 * images.grad.sign()


def at_random(model: nn.Module, images: Tensor, labels: Tensor, allowed) -> Tensor:
    return images + 0.1 * torch.randn_like(images) + float(numpy.random.rand()) * 0.01 + random.random() * 0.01  # noqa: NPY002


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of foolbox's imports
@pytest.mark.parametrize("attack", [far_away, by_one_gradient, foreign_attacks.foolbox_pgd_inside])
def test_points_are_projected_and_judged_by_us(attack) -> None:
    """Every perturbed image is in the set by loops, and what counts as broken is broken; no more than can be."""
    model, anchors, images, labels = problem(2)  # of which CE has the right gradient
    found = attacked(attack, model, images, labels, ProjectedDisplacement(anchors=anchors), Cell(THRESHOLD, RADIUS))
    assert all(weight.grad is None for weight in model.parameters())
    can_be = [
        best_margin(model, anchors, x, int(y), THRESHOLD, RADIUS) > 0 for x, y in zip(images, labels, strict=True)
    ]
    broken = found["N_adv_broken_by"] == 1
    assert not (broken & ~torch.tensor(can_be)).any()
    for x, seen, y in zip(images, found["N_adv_image"], labels, strict=True):
        change = (seen.double() - x.double()).flatten().numpy()
        assert (directions(anchors, x, int(y)) @ change).max() <= THRESHOLD * (1 + 1e-5) + 1e-7
        assert abs(change).max() <= RADIUS + 1e-6
    assert (model(found["N_adv_image"]).argmax(1) != labels)[broken].all()
    if attack is foreign_attacks.foolbox_pgd_inside:  # in the set at every step: it finds most of what there is
        assert broken.sum() >= 0.7 * sum(can_be) > 3
    else:
        assert broken.sum() < sum(can_be)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of foolbox's imports
@pytest.mark.parametrize("name", ["foolbox_pgd", "foolbox_ddn", "autoattack_apgd"])
def test_attacks_of_libraries_in_their_own_ball(name: str) -> None:
    """In an l-inf ball alone nothing is lost by the projection: PGD and Auto-PGD find what a linear model loses."""
    model, _, images, labels = problem(2)
    weight, bias = model.weight.detach(), model.bias.detach()
    worst = [
        max(
            float((bias[k] - bias[y]) + (weight[k] - weight[y]) @ x.flatten()
                  + (torch.where(weight[k] > weight[y], (1 - x.flatten()).clamp_max(0.1), -x.flatten().clamp_max(0.1))
                     @ (weight[k] - weight[y])))
            for k in range(2) if k != y
        )
        for x, y in zip(images, labels.tolist(), strict=True)
    ]  # fmt: skip
    attack = getattr(foreign_attacks, name)
    found = attacked(attack, model, images, labels, Linf(), Cell(0.1, math.inf))
    broken, can_be = found["N_adv_broken_by"] == 1, torch.tensor(worst) > 0
    assert not (broken & ~can_be).any() and 2 < can_be.sum() < len(images)
    assert broken.sum() >= (0.2 if name == "foolbox_ddn" else 0.9) * can_be.sum()


def test_random_numbers_are_seeded_and_given_back() -> None:
    """The same points in each call, whatever the state of the global generators, which stays as it was."""
    model, anchors, images, labels = problem(4)
    arguments = (model, images, labels, ProjectedDisplacement(anchors=anchors), Cell(THRESHOLD, RADIUS))
    found = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        numpy.random.seed(seed)  # noqa: NPY002
        random.seed(seed)
        before = torch.get_rng_state(), numpy.random.get_state()[1].copy(), random.getstate()  # noqa: NPY002
        found.append(attacked(at_random, *arguments)["N_adv_image"])
        assert torch.equal(torch.get_rng_state(), before[0]) and random.getstate() == before[2]
        assert (numpy.random.get_state()[1] == before[1]).all()  # noqa: NPY002
    assert torch.equal(found[0], found[1])


def lacks_a_package(model: nn.Module, images: Tensor, labels: Tensor, allowed) -> Tensor:
    import not_installed_anywhere  # type: ignore[import-not-found]

    return not_installed_anywhere(images)


def lacks_memory(model: nn.Module, images: Tensor, labels: Tensor, allowed) -> Tensor:
    raise torch.OutOfMemoryError("CUDA out of memory")


def test_a_function_that_fails_is_named_but_for_a_lack_of_memory() -> None:
    """The evaluation meets that by smaller parts."""
    model, anchors, images, labels = problem(4)
    asked = (model, images, labels, ProjectedDisplacement(anchors=anchors), Cell(THRESHOLD, RADIUS))
    with pytest.raises(RunError, match="attack lacks_a_package: its function failed: ModuleNotFoundError: No module"):
        attacked(lacks_a_package, *asked)
    with pytest.raises(torch.OutOfMemoryError):
        attacked(lacks_memory, *asked)


def wrong_shape(model: nn.Module, images: Tensor, labels: Tensor, allowed) -> Tensor:
    return images[:1]


def no_tensor(model: nn.Module, images: Tensor, labels: Tensor, allowed):
    return images.numpy()


def not_a_number(model: nn.Module, images: Tensor, labels: Tensor, allowed) -> Tensor:
    return images / 0


@pytest.mark.parametrize(
    ("attack", "told"),
    [
        (wrong_shape, r"attack wrong_shape: .*\[24, 1, 6, 6\], got \[1, 1, 6, 6\]"),
        (no_tensor, "attack no_tensor: .* got ndarray"),
        (not_a_number, "attack not_a_number: .* got NaN or infinity"),
    ],
)
def test_points_that_are_none(attack, told: str) -> None:
    model, anchors, images, labels = problem(4)
    with pytest.raises(UsageError, match=told):
        robust_accuracy(model, images, labels, ProjectedDisplacement(anchors=anchors), 0.1, attacks=[attack])


def test_names() -> None:
    assert list(chosen_attacks([], 4)) == pd_auto(4)
    found = chosen_attacks(["apgd_ce", far_away], 4)
    assert list(found) == ["apgd_ce", "far_away"] and isinstance(found["far_away"], Foreign)
    assert list(own(found)) == ["apgd_ce"]
    with pytest.raises(UsageError, match="different names, got far_away twice"):
        chosen_attacks([far_away, far_away], 4)


def apgd_ce(model: nn.Module, images: Tensor, labels: Tensor, allowed) -> Tensor:
    return images


def test_a_function_does_not_take_the_place_of_a_member_of_its_name(tmp_path: Path) -> None:
    """A user's `apgd_ce` that does nothing made robust accuracy too high; the list of attacks was as before."""
    for attacks in (["standard", apgd_ce], [apgd_ce, "lean", "standard"], ["apgd_ce", apgd_ce]):
        with pytest.raises(UsageError, match="different names, got apgd_ce twice; give a function another name"):
            chosen_attacks(attacks, 4)
    assert list(chosen_attacks([apgd_ce], 4)) == ["apgd_ce"] and len(chosen_attacks(["standard", "lean"], 4)) > 8
    (tmp_path / "mine.py").write_text("def apgd_ce(model, x, y, allowed):\n    return x\n")
    words = TestingHparams(N_adv_eval=True, foreign_attacks=f"apgd_ce@{tmp_path / 'mine.py'}")
    with pytest.raises(UsageError, match="got apgd_ce twice"):
        inside(words, nn.Identity(), Linf(), 4, 0, {})
    alone = inside(replace(words, attacks="pgd"), nn.Identity(), Linf(), 4, 0, {})
    assert list(alone.attacks) == ["pgd", "apgd_ce"]
    with pytest.raises(UsageError, match="got apgd_ce twice"):
        audit.evaluation(alone, "all", 4)


def test_files(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text("def one(model, x, y, allowed):\n    return x\n\ntwo = one\n")
    assert list(read_foreign(f"one@{file}")) == ["one"] and read_foreign("") == {}
    for value, told in {
        f"on@{file}": "unknown function of .* 'on' .did you mean 'one'",
        f"one@{tmp_path}/no.py": "cannot run .*no.py: FileNotFoundError",
    }.items():
        with pytest.raises(UsageError, match=told):
            read_foreign(value)
    file.write_text("import not_installed_anywhere\n")
    with pytest.raises(UsageError, match="ModuleNotFoundError"):
        read_foreign(f"one@{file}")


def widens(model: nn.Module, images: Tensor, labels: Tensor, allowed) -> Tensor:
    allowed.upper.add_(1)
    return images


def moves_images(model: nn.Module, images: Tensor, labels: Tensor, allowed) -> Tensor:
    allowed.bound.examples.clamp_(0.2, 0.8)
    return images


def changes_weights(model: nn.Module, images: Tensor, labels: Tensor, allowed) -> Tensor:
    with torch.no_grad():
        next(model._model[0].parameters()).add_(1)
    return images


@pytest.mark.parametrize("attack", [widens, moves_images, changes_weights])
def test_a_function_that_changes_what_others_need_is_refused(attack) -> None:
    model, anchors, images, labels = problem(2)
    with pytest.raises(UsageError, match="changed them in place"):
        attacked(attack, model, images, labels, ProjectedDisplacement(anchors=anchors), Cell(THRESHOLD, RADIUS))


def test_points_in_bytes_are_refused() -> None:
    model, anchors, images, labels = problem(2)

    def in_bytes(model: nn.Module, images: Tensor, labels: Tensor, allowed) -> Tensor:
        return (images * 255).byte()

    with pytest.raises(UsageError, match=r"got torch\.uint8; of bytes, give them divided by 255"):
        attacked(in_bytes, model, images, labels, ProjectedDisplacement(anchors=anchors), Cell(THRESHOLD, RADIUS))
