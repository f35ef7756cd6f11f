"""The part of the tangent form's lead that is owed to tangents that look like the corruptions it is judged by.

python benchmarks/study_tangents.py DATASET [--num_examples=300] [flags of the data set]

AUROC of unsafe changes against safe ones on test images, averaged as evaluate_threat does, of

    PD                 the plain form
    PD-T               all tangents
    two tangents       brightness and contrast alone
    leave family out   for every type of safe change, the form without the tangents that look like it (FAMILIES)
    another's          control: the tangents of another image of the same class

with 95 % bootstrap intervals over images; then AUROC by type for the types where PD is worst.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

import numpy
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[1]))

from cli.main import main as command_line
from cli.main import runner_parser
from cli.runner_registry import desc_class
from datasets.base import Dataset
from datasets.registry import load_dataset
from datasets.sampling import stratified_subset
from foundations.environment import make_environment
from foundations.results import markdown_table
from runners import corruptions
from runners.evaluate_threat import perturbations
from runners.evaluate_threat.desc import DEFAULT_SUITES
from runners.inputs import read_threat
from testing.perturbed import PerturbationEvaluation
from testing.separation import Bootstrap, Placements
from testing.shards import Shard
from threat_specification import L2
from threat_specification.projected_displacement.anchor_matrix import AnchorMatrix
from threat_specification.projected_displacement.tangents import TangentMetric, Tangents
from threat_specification.projected_displacement.threat import ProjectedDisplacement
from threat_specification.registry import TANGENTS

LIGHT, SHAPE, SHARPNESS = ("brightness", "contrast"), ("affine",), ("blur",)
# Tangents that look like a type of safe change; types of noise and occlusion have none.
FAMILIES: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("brightness", "contrast", "saturate", "color_jitter", "autocontrast", "posterize"), LIGHT),
    **dict.fromkeys(("snow", "frost", "fog", "grayscale"), LIGHT),
    **dict.fromkeys(("affine", "perspective", "elastic", "elastic_transform"), SHAPE),
    **dict.fromkeys(("zoom_blur", "motion_blur", "glass_blur", "caustic_refraction"), (*SHAPE, *SHARPNESS)),
    **dict.fromkeys(("defocus_blur", "gaussian_blur", "sharpness", "pixelate", "jpeg_compression"), SHARPNESS),
    "cocentric_sine_waves": (*LIGHT, *SHARPNESS),
}
SHARD, SEED, RESAMPLES, WORST = 100, 0, 1000, 8
Arrays = dict[str, numpy.ndarray]


@dataclass(frozen=True)
class Borrowed(Tangents):
    """Tangents of other images in place of those of the image itself."""

    images: Tensor | None = None

    def metric(self, images: Tensor, mask: Tensor | None = None, matrix: AnchorMatrix | None = None) -> TangentMetric:
        assert self.images is not None
        return super().metric(self.images, mask, matrix)


def without(names: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(name for name in TANGENTS if name not in names)


def of_same_class(labels: Tensor, index: Tensor) -> Tensor:
    """For each row of `index`, another row of the same class: the next one."""
    found = []
    for row in index.tolist():
        mates = (labels == labels[row]).nonzero().flatten().tolist()
        found.append(mates[(mates.index(row) + 1) % len(mates)])
    return torch.tensor(found)


def measured(data: Dataset, forms: dict[str, ProjectedDisplacement], count: int) -> tuple[Arrays, list]:
    """Threats [n, P] by form, and the P changes."""
    labels = data.test.labels.cpu()
    index = stratified_subset(labels, min(count, len(labels)), SEED)
    find = perturbations.Partners(data.test, SEED)
    changes = corruptions.safe(DEFAULT_SUITES, (1, 2, 3, 4, 5), SEED) + perturbations.unsafe(find, SEED)
    changes = [change for change in changes if change.group in ("safe", "unsafe")]
    parts = []
    for number, rows in enumerate(index.split(SHARD)):
        pixels = data.test.pixels(rows)
        other = data.test.pixels(of_same_class(labels, rows))
        forms["another's"].tangents = Borrowed(tuple(TANGENTS), 0.1, other)
        evaluation = PerturbationEvaluation(changes, {**forms, "L2": L2()})
        parts.append(evaluation(Shard(number, pixels, labels[rows], rows)))
        print(f"{(number + 1) * SHARD} images", file=sys.stderr, flush=True)
    return {name: torch.cat([part[name] for part in parts]).numpy() for name in parts[0]}, changes


def placements(threats: Arrays, changes: list, form_of: dict[str, str]) -> dict[str, Placements]:
    """By type of safe change, against the unsafe changes; averaged over severities."""
    unsafe = [column for column, change in enumerate(changes) if change.group == "unsafe"]
    types: dict[str, list[Placements]] = {}
    for column, change in enumerate(changes):
        if change.group == "safe":
            values = threats[form_of[change.name]]
            types.setdefault(change.name, []).append(Placements.of(values[:, column], values[:, unsafe]))
    return {name: Placements.mean(parts) for name, parts in types.items()}


def main(words: list[str]) -> None:
    count = next((int(word.split("=")[1]) for word in words if word.startswith("--num_examples=")), 300)
    flags = [f"--dataset_name={words[0]}", *(word for word in words[1:] if not word.startswith("--num_examples="))]
    if command_line(["compute_threat", *flags, "--quiet"]):
        raise SystemExit("failed: compute_threat")
    desc = desc_class("compute_threat").from_flags(runner_parser("compute_threat", flags).parse(flags))
    environment = make_environment("", "", "cpu", True, 0)
    data = load_dataset(desc.dataset, Path(desc.dataset.data_dir or "."))
    chosen = {"PD": (), "PD-T": tuple(TANGENTS), "two tangents": LIGHT, "another's": tuple(TANGENTS)}
    families = {"without " + ", ".join(names): without(names) for names in dict.fromkeys(FAMILIES.values())}
    forms = {name: read_threat(desc, environment, tangents=names) for name, names in (chosen | families).items()}
    threats, changes = measured(data, forms, count)
    safe = dict.fromkeys(change.name for change in changes if change.group == "safe")
    rows = {name: dict.fromkeys(safe, name) for name in (*chosen, "L2")}
    rows["leave family out"] = {
        kind: "without " + ", ".join(FAMILIES[kind]) if kind in FAMILIES else "PD-T" for kind in safe
    }
    found = {name: placements(threats, changes, form_of) for name, form_of in rows.items()}
    bootstrap = Bootstrap.over(len(threats["PD"]), RESAMPLES, SEED)
    intervals = {name: Placements.mean(list(of.values())).interval(bootstrap) for name, of in found.items()}
    print(f"\n{words[0]}, {len(threats['PD'])} images")
    shown = [[name, f"{i.auroc:.3f} [{i.low:.3f}, {i.high:.3f}]"] for name, i in intervals.items()]
    print(markdown_table(["threat", "AUROC"], shown))
    worst = sorted(safe, key=lambda kind: found["PD"][kind].auroc)[:WORST]
    lines = [[kind, *(f"{of[kind].auroc:.3f}" for of in found.values())] for kind in worst]
    print("\n" + markdown_table(["safe change", *found], lines))


if __name__ == "__main__":
    main(sys.argv[1:])
