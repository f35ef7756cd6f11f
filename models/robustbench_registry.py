"""Names and published accuracies of the models in RobustBench's zoo (Croce et al. 2021, arXiv 2010.09670).

Both are read from the files of the installed library: the names from the source code of its registries, the accuracies
from the tables of the README in its metadata. Neither torch nor the library is imported, since that takes seconds.
"""

from __future__ import annotations

import ast
import functools
import importlib.util
import re
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from foundations.errors import RunError, UsageError, nearest

THREAT_MODELS = ("Linf", "L2", "corruptions")
HEADINGS = {"CIFAR-10": "cifar10", "CIFAR-100": "cifar100", "ImageNet": "imagenet"}
PUBLISHED_POWER = {  # radius of the attack in the published evaluation
    ("cifar10", "Linf"): 8 / 255,
    ("cifar10", "L2"): 0.5,
    ("cifar100", "Linf"): 8 / 255,
    ("imagenet", "Linf"): 4 / 255,
}
# The corruptions over whose five severities published accuracies of `corruptions` are means.
PUBLISHED_CORRUPTIONS = (
    "gaussian_noise", "shot_noise", "impulse_noise", "defocus_blur", "glass_blur", "motion_blur", "zoom_blur", "snow",
    "frost", "fog", "brightness", "contrast", "elastic_transform", "pixelate", "jpeg_compression",
)  # fmt: skip
# Small models that download_pretrained selects by default, besides the LEADING ones of the leaderboard.
SMALL = {
    ("cifar10", "Linf"): ("Wong2020Fast", "Rade2021Helper_R18_ddpm"),
    ("cifar10", "L2"): ("Rebuffi2021Fixing_R18_cutmix_ddpm", "Rade2021Helper_R18_ddpm"),
    ("cifar10", "corruptions"): ("Modas2021PRIMEResNet18", "Kireev2021Effectiveness_AugMixNoJSD"),
    ("cifar100", "Linf"): ("Rice2020Overfitting", "Rade2021Helper_R18_ddpm"),
    ("cifar100", "corruptions"): ("Addepalli2021Towards_PARN18", "Hendrycks2020AugMix_ResNeXt"),
    ("imagenet", "Linf"): ("Salman2020Do_R18", "Salman2020Do_R50"),
    ("imagenet", "corruptions"): ("Hendrycks2020AugMix", "Geirhos2018_SIN"),
}
LEADING = 5
_VARIABLES = {"linf": "Linf", "l2": "L2", "common_corruptions": "corruptions"}


@dataclass(frozen=True)
class ZooModel:
    """A model of the zoo.

    files          Google Drive identifiers of its weight files; () if the weights come from timm or torchvision
    is_ensemble    True if the files are numbered: {name}.pt_m{i}.pt instead of {name}.pt
    clean, robust  published accuracies in [0, 1]; None if they are not in the library's tables
    preprocessing  preprocessing of the images in the published evaluation; None if RobustBench names none
    """

    dataset_name: str
    threat_model: str
    name: str
    files: tuple[str, ...]
    is_ensemble: bool
    clean: float | None
    robust: float | None
    preprocessing: str | None

    def paths(self, models_dir: Path) -> list[Path]:
        """The paths of its weight files, in the layout of RobustBench."""
        path = models_dir / self.dataset_name / self.threat_model / f"{self.name}.pt"
        return [Path(f"{path}_m{i}.pt") for i in range(len(self.files))] if self.is_ensemble else [path]


def zoo_datasets() -> tuple[str, ...]:
    """The data sets for which the zoo has models."""
    return tuple(HEADINGS.values())


@functools.cache
def zoo(dataset_name: str, threat_model: str) -> dict[str, ZooModel]:
    """Name -> model, in the library's order; {} if the zoo has none for the data set and threat model."""
    if dataset_name not in zoo_datasets():
        return {}
    published = _published()
    models = {}
    for name, entry in _entries(dataset_name).get(threat_model, {}).items():
        clean, robust = published.get((dataset_name, threat_model, name), (None, None))
        drive = entry.get("gdrive_id")
        files = tuple(drive) if isinstance(drive, list) else (drive,) if drive else ()
        models[name] = ZooModel(
            dataset_name, threat_model, name, files, isinstance(drive, list), clean, robust, entry.get("preprocessing")
        )
    return models


def zoo_model(dataset_name: str, threat_model: str, name: str) -> ZooModel:
    """The model of a name; raises UsageError for an unknown name, with the nearest name or the right threat model."""
    known = zoo(dataset_name, threat_model)
    if name in known:
        return known[name]
    if not known:
        listed = ", ".join(f"{d} ({', '.join(t for t in THREAT_MODELS if zoo(d, t))})" for d in zoo_datasets())
        raise UsageError(f"RobustBench has no {threat_model} models of {dataset_name}; it has some of {listed}")
    elsewhere = [t for t in THREAT_MODELS if name in zoo(dataset_name, t)]
    hint = f"; it is among those of --threat_model={elsewhere[0]}" if elsewhere else nearest(name, list(known))
    raise UsageError(
        f"unknown model '{name}' of RobustBench's {dataset_name} {threat_model} zoo{hint}; "
        f"download_pretrained --dataset_name={dataset_name} --list shows all {len(known)}"
    )


def namesakes(model: ZooModel) -> list[str]:
    """The threat models of the same data set whose models of this name have other weights."""
    others = {threat: zoo(model.dataset_name, threat).get(model.name) for threat in THREAT_MODELS}
    return [threat for threat, other in others.items() if other is not None and other.files != model.files]


def selection(dataset_name: str, threat_model: str) -> list[str]:
    """The default selection: the LEADING models by published robust accuracy, then the SMALL ones."""
    known = zoo(dataset_name, threat_model)
    ranked = sorted((m for m in known.values() if m.robust is not None), key=lambda m: -(m.robust or 0))
    leading = [model.name for model in ranked[:LEADING]]
    return list(dict.fromkeys([*leading, *SMALL.get((dataset_name, threat_model), ())]))


@functools.cache
def _entries(dataset_name: str) -> dict[str, dict[str, dict]]:
    """Threat model -> name -> `gdrive_id` and `preprocessing`, parsed from the source of the library's registry."""
    found = importlib.util.find_spec("robustbench")
    if found is None or not found.submodule_search_locations:
        raise RunError("the package robustbench is not installed: pip install 'robustbench>=1.1.1,<1.2'")
    source = Path(found.submodule_search_locations[0]) / "model_zoo" / f"{dataset_name}.py"
    entries: dict[str, dict[str, dict]] = {}
    for node in ast.parse(source.read_text()).body:
        if not isinstance(node, ast.Assign) or not isinstance(node.targets[0], ast.Name):
            continue
        threat_model = _VARIABLES.get(node.targets[0].id)
        if threat_model is None:
            continue
        entries[threat_model] = {
            str(pair.elts[0].value): _literals(pair.elts[1])
            for pair in ast.walk(node.value)
            if isinstance(pair, ast.Tuple)
            and len(pair.elts) == 2
            and isinstance(pair.elts[0], ast.Constant)
            and isinstance(pair.elts[1], ast.Dict)
        }
    return entries


def _literals(node: ast.Dict) -> dict:
    return {
        ast.literal_eval(key): ast.literal_eval(value)
        for key, value in zip(node.keys, node.values, strict=True)
        if isinstance(key, ast.Constant) and key.value in ("gdrive_id", "preprocessing")
    }


@functools.cache
def _published() -> dict[tuple[str, str, str], tuple[float, float]]:
    """(data set, threat model, name) -> clean and robust accuracy, from the tables of the library's README."""
    dataset = threat = ""
    rows = {}
    for line in (metadata.distribution("robustbench").read_text("METADATA") or "").splitlines():
        if line.startswith("### "):
            dataset, threat = HEADINGS.get(line.strip("# \n"), ""), ""
        elif line.startswith("#### "):
            title = line.strip("# \n").lower()
            threat = next((name for name in THREAT_MODELS if name.lower() in title.split(",")[0]), "")
        elif dataset and threat and line.startswith("|"):
            name = re.search(r"<sup>\*\*(.+?)\*\*</sup>", line)
            percents = re.findall(r"<sub>(?:\*\*)?([\d.]+)%", line)
            if name and len(percents) >= 2:
                rows[dataset, threat, name[1]] = (float(percents[0]) / 100, float(percents[1]) / 100)
    return rows
