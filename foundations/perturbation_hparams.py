"""The hyperparameters of `evaluate_threat`. Torch-free; `foundations/settings.py` says how a field is declared."""

from __future__ import annotations

from dataclasses import dataclass

from foundations.errors import UsageError, nearest
from foundations.settings import Hparams, in_range, path_after_kind, setting, whole_path

SUITE_NAMES = ("C", "C-bar", "torchvision")
PERCEPTUAL = ("lpips", "dreamsim")


def whole_severities(value: tuple[float, ...]) -> str | None:
    """Accept whole numbers from 1 to 5, at least one."""
    fits = value and all(number in (1, 2, 3, 4, 5) for number in value)
    return None if fits else "whole numbers from 1 to 5, such as 1,3,5"


def suites(value: str) -> str | None:
    """Accept names of suites, comma-separated, or none."""
    unknown = next((name for name in split(value) if name not in SUITE_NAMES), None)
    return None if unknown is None else f"suites among {', '.join(SUITE_NAMES)}{nearest(unknown, list(SUITE_NAMES))}"


def perceptual(value: str) -> str | None:
    """Accept lpips, dreamsim and model:<architecture>, comma-separated."""
    fits = all(name in PERCEPTUAL or (name.startswith("model:") and name != "model:") for name in split(value))
    return None if fits else "lpips, dreamsim or model:<architecture>, comma-separated"


def split(value: str) -> list[str]:
    """The names of a comma-separated list."""
    return [name.strip() for name in value.split(",") if name.strip()]


@dataclass(frozen=True)
class PerturbationHparams(Hparams):
    """Which perturbations of which images are measured, and by what."""

    num_images: int = setting(
        1000,
        "Measure a seeded, class-stratified sample of at most this many test images.",
        check=in_range(1),
        alias="num_examples",
    )
    images_per_shard: int = setting(
        250,
        "Images measured together; fixed, whatever the number of processes.",
        check=in_range(1),
        alias="shard_size",
    )
    severities: tuple[float, ...] = setting(
        (1.0, 2.0, 3.0, 4.0, 5.0), "Severities of the safe perturbations.", check=whole_severities
    )
    suites: str = setting(
        ",".join(SUITE_NAMES),
        "Safe perturbations made on the fly: C (19 common corruptions), C-bar (ImageNet-C-bar), torchvision.",
        check=suites,
    )
    corruption_files: str = setting(
        "",
        "Folder of corrupted test images too: CIFAR-10-C, CIFAR-100-C (.npy), ImageNet-C, 3DCC (folders).",
        path_in=whole_path,
    )
    morphs: bool = setting(
        False,
        "An unsafe source that is not PD's own: strong targeted changes by a robust --model_name, "
        "where the judge sees the other class.",
    )
    judge_name: str = setting(
        "conv",
        "Architecture of the judge of --morphs, trained apart, as usual: without augmentation and adversaries.",
        when="morphs",
    )
    adversarials: bool = setting(
        False, "Adversarial examples of --model_name too: a group of their own, outside the AUROC."
    )
    adversarial_Linf: float = setting(
        8 / 255,
        "Their l-inf radius in pixels of [0, 1]; the default depends on the data set.",
        check=in_range(0),
        when="adversarials",
    )
    adversarial_L2: float = setting(
        0.5, "Their l2 radius; the default depends on the data set.", check=in_range(0), when="adversarials"
    )
    adversarial_iter: int = setting(40, "Steps of those attacks.", check=in_range(1), when="adversarials")
    perceptual: str = setting(
        "",
        "Perceptual distances beside the others: lpips, dreamsim, model:<architecture> (features of a model trained "
        "with the same flags), comma-separated.",
        check=perceptual,
    )
    threat_masks: str = setting(
        "",
        "PD-S too: masks from center, grabcut, sam:CHECKPOINT or file:MASKS.safetensors.",
        path_in=path_after_kind,
        alias="mask_source",
    )
    stability: bool = setting(
        False,
        "PD with 5, 10, 20 and 50 anchors a class, and with anchors from either half of the training images, too.",
    )
    bootstrap: int = setting(1000, "Resamples of the images for the 95 % intervals.", check=in_range(100))

    def __post_init__(self) -> None:
        super().__post_init__()
        if not split(self.suites) and not self.corruption_files:
            raise UsageError("--suites: expected at least one, or --corruption_files, got neither")
