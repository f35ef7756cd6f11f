"""The adversarial examples of a finished test run, an evaluation under attack each, and the sets that it was about."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy
from torch import Tensor

from foundations.errors import RunError, UsageError
from foundations.files import read_json
from foundations.run_directory import RunDirectory
from foundations.testing_hparams import TestingHparams
from testing.claims import schema
from testing.claims.claim import sets_of

POINTS = "adversarials.safetensors"
RELEVANT = ("train", "anchors", "dataset", "precision")  # what test runs of one claim share, beside the images
SOFTWARE = ("torch", "torchvision", "numpy")


@dataclass(frozen=True)
class Layer:
    """One evaluation of one run: `adv` or `N_adv`.

    hashed   what was hashed of the run
    made     its command and the software
    cells    the sets and their accuracies under attack, the headline first
    """

    path: str
    name: str
    hashed: dict[str, Any]
    made: dict[str, Any]
    cells: list[tuple[dict[str, Any], float]]

    @property
    def headline(self) -> dict[str, Any]:
        return self.cells[0][0]

    @cached_property
    def _examples(self) -> dict[str, numpy.ndarray]:
        with numpy.load(Path(self.path) / "examples.npz", allow_pickle=False) as file:
            return {name: file[name] for name in ("index", "label", f"{self.name}_broken_by")}

    @property
    def index(self) -> numpy.ndarray:
        return self._examples["index"]

    @property
    def labels(self) -> numpy.ndarray:
        return self._examples["label"]

    @property
    def broken(self) -> numpy.ndarray:
        """[n] bool: the examples that an attack broke."""
        return self._examples[f"{self.name}_broken_by"] > 0

    def images(self, numbers: Tensor) -> Tensor:
        """The perturbed images of examples by their numbers, ascending, [q,C,H,W] in [0, 1]."""
        from safetensors import safe_open

        with safe_open(Path(self.path) / POINTS, "pt") as file:
            rows = file.get_slice(self.name)
            start, end = int(numbers[0]), int(numbers[-1]) + 1
            return rows[start:end][numbers - start]

    def reported(self, asked: dict[str, Any]) -> float | None:
        """The accuracy under attack in a set; None if the run did not attack there."""
        return next((accuracy for each, accuracy in self.cells if each == asked), None)

    def check_same(self, other: Layer) -> None:
        """Raise UsageError for a run about another model, other images or other anchors."""
        for name in RELEVANT:
            mine, its = self.hashed.get(name), other.hashed.get(name)
            if mine != its and not (name == "anchors" and None in (mine, its)):
                raise UsageError(f"--more_runs: expected runs with the same {name}, got another one: {self.path}")
        splits = {each.hashed["testing"]["split"] for each in (self, other)}
        if len(splits) > 1 or not numpy.array_equal(self.index, other.index):
            raise UsageError(f"--more_runs: expected runs on the same images, got others: {self.path}")


def layers_of(path: Path) -> list[Layer]:
    """The evaluations of a finished test run; raises RunError if it kept no adversarial examples."""
    directory = RunDirectory(path)
    result, content = directory.result(), read_json(directory / "hparams.json")
    command = str(content["command"])
    if not (directory / POINTS).is_file():
        raise RunError(f"no adversarial examples in {path}; first run: {command} --save_adversarials")
    hashed = content["hashed"]
    testing = TestingHparams(**hashed["testing"])
    if testing.eot != 1:
        raise UsageError(f"--eot={testing.eot}: expected 1: nobody can check a model that answers at random")
    packages = result["environment"]["packages"]
    software = {"python": result["environment"]["python"], **{name: packages[name] for name in SOFTWARE}}
    made = {"command": command, "software": software}
    cells = {"adv": _ball_cells, "N_adv": _nonisotropic_cells}
    return [
        Layer(str(path), name, hashed, made, of(result[name], testing)) for name, of in cells.items() if name in result
    ]


def _ball_cells(result: dict[str, Any], testing: TestingHparams) -> list[tuple[dict[str, Any], float]]:
    if result["norm"] not in ("Linf", "L2"):
        raise UsageError(f"bundle: expected a ball of Linf or L2, got {result['norm']}")
    return [(_set({"name": result["norm"]}, result["threshold"], None), result["accuracy"])]


def _nonisotropic_cells(result: dict[str, Any], testing: TestingHparams) -> list[tuple[dict[str, Any], float]]:
    """The headline and the grid: the sets that have both bounds."""
    form = _form(testing)
    cells = [(_set(form, row["threshold"], row["radius"]), row["accuracy"]) for row in result["curve"]]
    headline = _set(form, result["threshold"], result["radius"])
    return sorted(cells, key=lambda cell: cell[0] != headline)


def _form(testing: TestingHparams) -> dict[str, Any]:
    if testing.segmented and testing.mask_source != "center":
        came = testing.mask_source
        raise UsageError(f"bundle: expected --mask_source=center, which every machine can repeat, got {came}")
    return {
        "name": "PD",
        "weighted": testing.weighted,
        "segmented": testing.segmented,
        "mask_source": testing.mask_source if testing.segmented else "",
        "segmented_norm": testing.segmented_norm,
        "background": testing.background,
        "tangents": testing.tangents,
        "tangent_weight": testing.tangent_weight if testing.tangents else 0.0,
    }


def _set(form: dict[str, Any], threshold: float, radius: float | None) -> dict[str, Any]:
    return {"threat": form, "threshold": threshold, "radius": radius}


def sets_among(layers: Sequence[Layer]) -> list[dict[str, Any]]:
    """All sets that these evaluations were about, each once, in their order in a claim."""
    sets = {schema.canonical_json(each): each for layer in layers for each, _ in layer.cells}
    return sets_of({"claims": [sets[name] for name in sorted(sets)]})
