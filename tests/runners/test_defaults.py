"""Defaults of training by model and kind of data set."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from cli.main import runner_parser
from datasets.info import DatasetInfo
from datasets.registry import DATASETS
from foundations.errors import UsageError
from foundations.hparams import AugmentationHparams, TrainingHparams
from runners.evaluate_threat.desc import EvaluateThreatDesc
from runners.multi.desc import MultiTrainDesc
from runners.test.desc import TestDesc
from runners.train.checks import notices
from runners.train.defaults import FINE_TUNING, RECIPES, kind_of, named_defaults, recipe
from runners.train.desc import TrainDesc
from training.schedule import Schedule


def images(channels: int, side: int) -> DatasetInfo:
    return DatasetInfo(
        summary="", loader="", shape=(channels, side, side), classes=("a", "b"), mean=(0.5,) * channels, std=(0.5,)
    )


def named(dataset_name: str, model_name: str, model_type: str = "scratch", **more: object) -> dict[str, Any]:
    return named_defaults({"dataset_name": dataset_name, "model_name": model_name, "model_type": model_type, **more})


@pytest.mark.parametrize(
    ("model", "info", "expected"),
    [
        ("lenet", images(1, 28), {"lr": 0.1, "momentum": 0.0, "batch_size": 32, "training_steps": "40ep"}),
        ("resnet_18", images(3, 32), {"lr": 0.1, "momentum": 0.9, "weight_decay": 5e-4, "training_steps": "160ep",
                                      "lr_schedule": "milestones", "random_crop": 4, "random_flip": True}),
        ("lenet", images(3, 32), {"lr": 0.1, "momentum": 0.0, "batch_size": 32, "training_steps": "160ep"}),
        ("conv", images(3, 32), {"lr": 0.02, "adv_train_growth_epochs": 10, "training_steps": "160ep"}),
        ("resnet50", images(3, 224), {"lr": 0.1, "lr_per": 256, "warmup_steps": "5ep", "training_steps": "90ep",
                                      "random_crop": 0}),
        ("resnet_8", images(1, 28), {"random_flip": False, "lr_per": 0}),
    ],
)  # fmt: skip
def test_each_kind_has_its_recipe(model: str, info: DatasetInfo, expected: dict[str, object]) -> None:
    made = recipe(model, info)
    fields = dataclasses.asdict(TrainingHparams()) | dataclasses.asdict(AugmentationHparams()) | made
    assert {name: fields[name] for name in expected} == expected


def test_recipes_are_of_flags_that_there_are() -> None:
    for entry in (*RECIPES.values(), FINE_TUNING):
        training = {name: value for name, value in entry.items() if name in TrainingHparams.__dataclass_fields__}
        TrainingHparams(**training)
        AugmentationHparams(**{name: value for name, value in entry.items() if name not in training})


@pytest.mark.parametrize(("models", "kinds"), RECIPES)
def test_every_recipe_takes_effect(models: str, kinds: str) -> None:
    """A change of any number of the table changes the defaults of some model on some images."""
    examples = {
        "*": "pretrained",
        "torchvision:*": "torchvision:alexnet",
        "timm:*": "timm:resnet18",
        "vit_*": "vit_b_16",
        "convnext_*": "convnext_tiny",
        "lenet_*": "lenet_300",
        "conv_*": "conv_8",
    }
    model = examples.get(models, models.replace("*", "18"))
    info = images(*{"*": (1, 28), "small_colour": (3, 32), "large_colour": (3, 224)}[kinds])
    entry = RECIPES[models, kinds]
    assert {name: recipe(model, info)[name] for name in entry} == entry


def test_kinds_and_the_rate_for_a_batch() -> None:
    assert [kind_of(images(c, s)) for c, s in ((1, 300), (3, 64), (3, 65))] == ["grey", "small_colour", "large_colour"]
    assert TrainingHparams(lr=0.1, lr_per=256, batch_size=1024).peak_lr == pytest.approx(0.4)
    assert TrainingHparams(lr=0.1, batch_size=1024).peak_lr == 0.1


def test_the_data_set_has_the_last_word_but_for_fine_tuning() -> None:
    assert named("mnist_5k", "lenet")["training_steps"] == "40ep"
    assert named("digits", "conv")["training_steps"] == "40ep"
    tuned = named("digits", "conv", "pretrained")
    assert tuned["training_steps"] == "10ep" and tuned["lr"] == 0.01 and tuned["N_radius"] == 0.3
    colour = named("cifar10", "Wong2020Fast", "pretrained")
    assert colour["random_crop"] == 4 and colour["weight_decay"] == 5e-4 and colour["milestone_steps"] == ""


@pytest.mark.parametrize("dataset_name", DATASETS)
def test_fine_tuning_has_the_same_defaults_with_and_without_a_name(dataset_name: str) -> None:
    """A sweep over the zoo names no model; `test` of one of its models must find the same run."""
    for model_type in ("pretrained", "finetuned"):
        assert named(dataset_name, "", model_type) == named(dataset_name, "Wong2020Fast", model_type)


def test_a_sweep_over_the_zoo_makes_the_runs_that_test_looks_for() -> None:
    words = ["--dataset_name=cifar10", "--toggle_N_aug", "--model_type=pretrained"]
    sweep = MultiTrainDesc.from_flags(runner_parser("multi_train", words).parse(words))
    assert len(sweep.children) >= 4
    for child in sweep.children:
        words = ["--dataset_name=cifar10", f"--model_name={child.model.model_name}", "--model_type=finetuned"]
        words += ["--standard_eval"] + ["--N_aug"] * child.augmentation.N_aug
        assert TestDesc.from_flags(runner_parser("test", words).parse(words)).train.hash == child.hash


def test_folders_and_synthetic_images_are_of_the_kind_of_their_size() -> None:
    small, large = (named("image_folder", "resnet_20", image_size=size) for size in (0, 224))
    assert small["training_steps"] == "160ep" and small["random_crop"] == 4
    assert large["training_steps"] == "90ep" and large["lr_per"] == 256 and "random_crop" not in large
    assert "random_flip" in named("synthetic", "conv")
    assert named("cifar10", "resnet_20")["random_flip"] and not named("svhn", "resnet_20")["random_flip"]
    assert "random_flip" not in named("synthetic", "conv", synthetic_shape="1x28x28")


@pytest.mark.parametrize("given", [{}, {"lr": 0.03, "adv_train": True}])
def test_a_judge_is_trained_by_its_own_recipe_and_the_flags_given(given: dict[str, object]) -> None:
    base = {"dataset_name": "mnist_5k", "model_name": "lenet", "morphs": True, "judge_name": "conv"}
    made = EvaluateThreatDesc.from_flags({**named("mnist_5k", "lenet"), **base, **given})
    alone = {**named("mnist_5k", "conv"), "dataset_name": "mnist_5k", "model_name": "conv"}
    assert made.judge.hash == TrainDesc.from_flags(alone | {k: v for k, v in given.items() if k == "lr"}).hash
    assert made.train.training.momentum == 0.0 and made.judge.training.momentum == 0.9


def test_what_does_not_come_about_is_told() -> None:
    def told(size: int = 100, total: int = 10, warmup: int = 0, milestones: tuple[int, ...] = (), **flags: Any) -> str:
        training = TrainingHparams(batch_size=100, **flags)
        batches = type("Batches", (), {"batch_size": size, "__len__": lambda self: 5})()
        schedule = Schedule(total, warmup, milestones, 0.1, "milestones" if milestones else "constant")
        return " ".join(notices(training, schedule, batches))  # type: ignore[arg-type]

    assert told() == told(warmup=9) == told(milestones=(9,)) == ""
    assert "still rises when training ends, at step 10 of a warm-up of 10" in told(warmup=10)
    assert "before 1 of its --milestone_steps" in told(milestones=(5, 10))
    assert "batches have all 64 training images; the learning rate 0.5 is" in told(size=64, lr=0.5, lr_per=100)
    assert "adversaries reach their full size in epoch 3" in told(adv_train=True, adv_train_start_epoch=2)


@pytest.mark.parametrize("mixing", ["mixup", "cutmix"])
def test_mixing_of_a_clean_part_that_there_is_not_is_refused(mixing: str) -> None:
    """Two cells of a sweep would have the same weights, and a study would read that mixing does nothing."""
    flags = {"dataset_name": "digits", "model_name": "conv", "adv_train": True, "adv_clean_weight": 0.0, mixing: True}
    with pytest.raises(UsageError, match=f"--{mixing}: it mixes clean images, which --adv_clean_weight=0 leaves out"):
        TrainDesc.from_flags(flags)
    for more in ({"adv_loss": "trades"}, {"adv_train_start_epoch": 1}, {"adv_clean_weight": 0.5}, {"adv_train": False}):
        TrainDesc.from_flags(flags | more)
