"""Adversarial examples of a finished test run: a layer for each evaluation under attack, with the sets that it used."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
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

POINTS = "adversarials.safetensors"
RELEVANT = ("train", "anchors", "dataset", "precision")  # what test runs of one claim share, beside the images
SOFTWARE = ("torch", "torchvision", "numpy")


@dataclass(frozen=True)
class Points:
    """Perturbed images of one set, [n,C,H,W], and [n] bool: those that an attack broke there.

    cell   the place among the images of further cells; None for the headline
    """

    asked: dict[str, Any]
    broken: numpy.ndarray
    path: str
    name: str
    cell: int | None

    def images(self, numbers: Tensor) -> Tensor:
        """Those of examples by their numbers, ascending, [q,C,H,W] in [0, 1]."""
        from safetensors import safe_open

        start, end = int(numbers[0]), int(numbers[-1]) + 1
        with safe_open(Path(self.path) / POINTS, "pt") as file:
            if self.cell is None:
                return file.get_slice(self.name)[start:end][numbers - start]
            return file.get_slice(f"{self.name}_cells")[start:end, self.cell : self.cell + 1][numbers - start, 0]


@dataclass(frozen=True)
class Layer:
    """One evaluation of one run: `adv` or `N_adv`.

    hashed    what was hashed of the run
    made      what its author tells of it that nobody can check: command, software, accuracy under corruptions, cost
    headline  the set that was attacked first
    cells     all sets with both bounds, small ones first, and their accuracies under attack
    columns   their places among all cells
    certified the share of images that the run certified in the headline; None without certificates
    """

    path: str
    name: str
    hashed: dict[str, Any]
    made: dict[str, Any]
    headline: dict[str, Any]
    cells: list[tuple[dict[str, Any], float]]
    columns: list[int]
    certified: float | None = None

    @cached_property
    def _examples(self) -> dict[str, numpy.ndarray]:
        with numpy.load(Path(self.path) / "examples.npz", allow_pickle=False) as file:
            return {name: file[name] for name in file if name in ("index", "label") or name.startswith(self.name)}

    @property
    def index(self) -> numpy.ndarray:
        return self._examples["index"]

    @property
    def labels(self) -> numpy.ndarray:
        return self._examples["label"]

    def points(self) -> Iterator[Points]:
        """The points that the run kept, of small sets first."""
        from safetensors import safe_open

        with safe_open(Path(self.path) / POINTS, "np") as file:
            has_cells = f"{self.name}_cells" in file.keys()  # noqa: SIM118
        by = self._examples[f"{self.name}_broken_by"]
        further = 0
        for (asked, _), column in zip(self.cells, self.columns, strict=True):
            if asked == self.headline:
                yield Points(asked, by > 0, self.path, self.name, None)
            elif has_cells:
                broken = ~self._examples[f"{self.name}_cells"][:, column] & (by >= 0)
                yield Points(asked, broken, self.path, self.name, further)
                further += 1

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
    made = {"command": command, "software": software, **_told(result, testing)}
    certified = {"N_adv": result.get("certified", {}).get("accuracy")}
    under_attack = {name: of for name, of in {"adv": _ball, "N_adv": _nonisotropic}.items() if name in result}
    return [
        Layer(str(path), name, hashed, made, *of(result[name], testing), certified.get(name))
        for name, of in under_attack.items()
    ]


def _told(result: dict[str, Any], testing: TestingHparams) -> dict[str, Any]:
    """The word of a run beside its points: mean accuracy under corruptions, passes for an image in its nonisotropic
    sets, and seconds.
    """
    corruptions = None
    if "corruption" in result:
        severities = ", ".join(f"{level:g}" for level in testing.corruption_severities)
        files = " and files" if testing.corruption_eval_files else ""
        of = f"{testing.corruption_suites or 'none made here'}{files}, severities {severities}"
        corruptions = {"accuracy": result["corruption"]["accuracy"], "of": of}
    passes = sum(result["N_adv"]["passes"].values()) if "N_adv" in result else None
    return {"corruptions": corruptions, "passes": passes, "seconds": float(result["wall_seconds"])}


Cells = tuple[dict[str, Any], list[tuple[dict[str, Any], float]], list[int]]  # headline, cells and columns of a layer


def _ball(result: dict[str, Any], testing: TestingHparams) -> Cells:
    if result["norm"] not in ("Linf", "L2"):
        raise UsageError(f"bundle: expected a ball of Linf or L2, got {result['norm']}")
    ball = _set({"name": result["norm"]}, result["threshold"], None)
    return ball, [(ball, result["accuracy"])], [0]


def _nonisotropic(result: dict[str, Any], testing: TestingHparams) -> Cells:
    form = _form(testing)
    rows = sorted([*result["curve"], *result["references"]], key=_order)
    columns = [column for column, row in enumerate(rows) if row in result["curve"]]
    cells = [(_set(form, rows[n]["threshold"], rows[n]["radius"]), rows[n]["accuracy"]) for n in columns]
    return _set(form, result["threshold"], result["radius"]), cells, columns


def _order(row: dict[str, Any]) -> list[float]:
    """The place of a cell in an evaluation: by threshold, then by radius, and none last."""
    return [math.inf if row[name] is None else row[name] for name in ("threshold", "radius")]


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
    return [sets[name] for name in sorted(sets)]
