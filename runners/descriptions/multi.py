"""multi_train and multi_test: several runs of one runner."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from foundations.desc import Desc
from models.robustbench_registry import selection
from runners.descriptions.test import TestDesc
from runners.descriptions.train import TOGGLES, TrainDesc


@dataclass(frozen=True, kw_only=True)
class MultiDesc(Desc):
    """Several runs of one runner, one after the other: every combination of the toggled booleans.

    With pretrained models, of every model in a comma-separated --model_name; of the short selection when none is named.
    """

    child_class: ClassVar[type[Desc]] = Desc

    children: tuple[Any, ...] = ()
    toggled: tuple[str, ...] = ()
    model_names: tuple[str, ...] = ()

    @classmethod
    def hparams_classes(cls) -> Any:
        yield from cls.child_class.hparams_classes()

    @classmethod
    def from_flags(cls, values: dict[str, Any]) -> Any:
        """One child for each combination; without toggles, the one that the flags describe."""
        toggled = tuple(name for name in TOGGLES if values.get(f"toggle_{name}"))
        combinations: list[dict[str, bool]] = [{}]
        for name in toggled:
            combinations = [{**rest, name: value} for rest in combinations for value in (False, True)]
        names = _model_names(values)
        children = [
            cls.child_class.from_flags({**values, "model_name": name, **combination})
            for name in names
            for combination in combinations
        ]
        # Toggles make no difference to a test of published weights.
        distinct = tuple({(child.hash, child.replicate): child for child in children}.values())
        return cls(seed=values.get("seed", 0), children=distinct, toggled=toggled, model_names=names)

    @property
    def dataset_name(self) -> str:
        return self.children[0].dataset_name

    @property
    def name(self) -> str:
        one = "".join(self.children[0].name.rsplit("_standard", 1))
        return "+".join([one if len(self.model_names) == 1 else f"{len(self.model_names)}_models", *self.toggled])

    def hashed(self) -> dict[str, Any]:
        children = [{"hash": child.hash, "replicate": child.replicate} for child in self.children]
        return {"runner": self.runner, "children": children}


@dataclass(frozen=True, kw_only=True)
class MultiTrainDesc(MultiDesc):
    """Training runs over all combinations of the toggled booleans."""

    runner = "multi_train"
    child_class = TrainDesc


@dataclass(frozen=True, kw_only=True)
class MultiTestDesc(MultiDesc):
    """Evaluations of the models of `multi_train` with the same toggles."""

    runner = "multi_test"
    child_class = TestDesc


def _model_names(values: dict[str, Any]) -> tuple[str, ...]:
    name = values.get("model_name", "")
    if values.get("model_type", "scratch") == "scratch" or values.get("train_dir"):
        return (name,)
    names = tuple(part.strip() for part in name.split(",") if part.strip())
    if not names and not values.get("model_source"):
        names = tuple(selection(values.get("dataset_name", ""), values.get("threat_model", "Linf")))
    return names or ("",)
