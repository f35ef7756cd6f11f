"""Description of the evaluate_threat runner: threats of perturbed images."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from datasets.human_sets import check_human_set
from foundations.desc import Desc, builds_on
from foundations.errors import UsageError, nearest
from foundations.hparam_fields import Hparams, in_range, one_of, path_after_kind, setting, whole_path, whole_severities
from foundations.input_hparams import DatasetHparams, PrecisionHparams
from foundations.results import between, markdown_table, rounded
from runners.checks import (
    EXPECTED_DISTANCES,
    FEWER_SEVERITIES,
    PACKAGE_DISTANCES,
    SUITE_NAMES,
    check_dataset,
    names_in,
    truly_labelled,
    versions_of,
)
from runners.compute_threat.desc import ThreatDesc
from runners.evaluate_threat.human_desc import HumanHparams, human_summary
from runners.test.desc import ModelByDirectory
from runners.train.desc import (
    PLAIN,
    PretrainedDesc,
    TrainDesc,
    flags_of_training,
    stored_model,
    trained_alike,
    with_stored_model,
)

# Version of what is measured: 2 has the tangent form, and coverage; in 3 samples do not prefer the first classes.
MEASURED = 3
HEADLINE = 0.95  # the coverage of the headline
DEFAULT_SUITES = ("C", "C-bar", "torchvision")


def suites(value: str) -> str | None:
    """Accept a comma-separated list of names of suites, or an empty string."""
    unknown = next((name for name in names_in(value) if name not in SUITE_NAMES), None)
    return None if unknown is None else f"suites among {', '.join(SUITE_NAMES)}{nearest(unknown, list(SUITE_NAMES))}"


def perceptual(value: str) -> str | None:
    """Accept a comma-separated list of lpips, dreamsim, dreamsim:<backbone> and model:<architecture>."""
    names = [name for name in names_in(value) if name not in PACKAGE_DISTANCES]
    unknown = next((name for name in names if not name.startswith("model:") or name == "model:"), None)
    if unknown is None:
        return None
    hint = nearest(unknown, [*PACKAGE_DISTANCES, "model:conv"])
    return f"{EXPECTED_DISTANCES} or model:<architecture>, comma-separated{hint}"


@dataclass(frozen=True)
class PerturbationHparams(Hparams):
    """The perturbations, the images and the measures of a measurement."""

    heading: ClassVar[str] = "Perturbations"

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
        ",".join(DEFAULT_SUITES),
        "Safe perturbations made on the fly: C (19 common corruptions), C-bar (ImageNet-C-bar), torchvision, "
        "quick (nine cheap ones).",
        check=suites,
        shows="NAME,NAME",
    )
    corruption_files: str = setting(
        "",
        "Measure also a folder of corrupted test images: CIFAR-10-C, CIFAR-100-C (.npy), ImageNet-C, 3DCC (folders).",
        path_in=whole_path,
    )
    morphs: bool = setting(
        False,
        "An unsafe source that is not PD's own: strong targeted changes by a robust --model_name, "
        "where the judge sees the other class.",
    )
    judge_name: str = setting(
        "conv",
        "Architecture of the judge of --morphs: another trained model, without augmentation and adversaries.",
        when="morphs",
    )
    adversarials: bool = setting(
        False, "Measure also adversarial examples of --model_name: a group of their own, outside the AUROC."
    )
    adversarial_Linf: float = setting(
        8 / 255,
        "Their l-inf radius; pixels are in [0, 1]; the default depends on the data set.",
        check=in_range(0),
        when="adversarials",
    )
    adversarial_L2: float = setting(
        0.5,
        "Their l2 radius; pixels are in [0, 1]; the default depends on the data set.",
        check=in_range(0),
        when="adversarials",
    )
    adversarial_iter: int = setting(40, "Steps of those attacks.", check=in_range(1), when="adversarials")
    perceptual: str = setting(
        "",
        "Perceptual distances beside the others: lpips, dreamsim, dreamsim:<backbone> (the paper's is dino_vitb16), "
        "model:<architecture> (features of a model trained with the same flags), comma-separated.",
        check=perceptual,
        shows="NAME,NAME",
    )
    threat_masks: str = setting(
        "",
        "Measure also PD-S, with masks from center (an ellipse), grabcut, sam:CHECKPOINT or file:MASKS.safetensors.",
        path_in=path_after_kind,
        alias="mask_source",
    )
    threat_segmented_norm: str = setting(
        "full",
        "Norm in PD-S: full or masked, as --segmented_norm of test.",
        check=one_of("full", "masked"),
        when="threat_masks",
        alias="segmented_norm",
    )
    stability: bool = setting(
        False,
        "Measure also PD with 5, 10, 20 and 50 anchors a class, and with anchors from either half of the training "
        "images.",
    )
    coverage_images: int = setting(
        250,
        "Number of training images (none of them an anchor) on whose changes thresholds of a given coverage are found.",
        check=in_range(1),
    )
    bootstrap: int = setting(1000, "Resamples of the images for the 95 % intervals.", check=in_range(100))

    def __post_init__(self) -> None:
        super().__post_init__()
        # A suite named twice would count twice in every mean.
        object.__setattr__(self, "suites", ",".join(dict.fromkeys(names_in(self.suites))))
        object.__setattr__(self, "severities", tuple(dict.fromkeys(self.severities)))
        if not names_in(self.suites) and not self.corruption_files:
            raise UsageError("--suites: expected at least one, or --corruption_files, got neither")


# Comparisons of unsafe with safe changes: title in tables -> field in result.json.
COMPARISONS = {
    "overall": "separation",
    "matched in l2": "separation_matched",
    "directions": "separation_directions",
    "morphs": "separation_morphs",
    "morphs, matched": "separation_morphs_matched",
}


@dataclass(frozen=True, kw_only=True)
class EvaluateThreatDesc(Desc):
    """A measurement of threats on perturbed test images.

    train      the model whose adversarial examples or morphs are measured, if asked for
    more       further models of the zoo, which are measured in the same way
    judge      the model that must classify a morph as the other class
    features   the model whose features --perceptual=model:<architecture> compares
    """

    runner = "evaluate_threat"
    purpose = "measure the threat of safe and of unsafe changes, and how well it tells them apart"
    runner_class = "runners.evaluate_threat.runner:EvaluateThreat"
    replicate_flag = "evaluate_replicate"
    more_flags = (ModelByDirectory,)

    dataset: DatasetHparams
    perturbation: PerturbationHparams
    human: HumanHparams = HumanHparams()
    precision: PrecisionHparams
    anchors: ThreatDesc = builds_on()
    train: Any = builds_on(lambda desc: desc.train is not None)
    judge: Any = builds_on(lambda desc: desc.judge is not None, implied=lambda desc: True)
    features: Any = builds_on(lambda desc: desc.features is not None, implied=lambda desc: desc.train is not None)
    more: tuple[PretrainedDesc, ...] = ()

    @classmethod
    def hparams_classes(cls) -> Any:
        yield from dict.fromkeys([*super().hparams_classes(), *TrainDesc.hparams_classes()])

    @classmethod
    def flag_groups(cls) -> Any:
        yield from dict.fromkeys([*super().flag_groups(), *TrainDesc.flag_groups()])

    @classmethod
    def runs_below(cls) -> Any:
        yield from dict.fromkeys([*TrainDesc.runs_below(), TrainDesc, *super().runs_below()])

    @classmethod
    def replicate_flags(cls) -> set[str]:
        return super().replicate_flags() | TrainDesc.replicate_flags()

    @classmethod
    def from_flags(cls, values: dict[str, Any]) -> EvaluateThreatDesc:
        """Build the description; it builds on runs of models only if a flag needs them."""
        if values.get("train_dir"):
            _, values = with_stored_model(values)
        perturbation, dataset = PerturbationHparams.of(values), DatasetHparams.of(values)
        check_dataset(dataset)
        seen = [name.removeprefix("model:") for name in names_in(perturbation.perceptual) if name.startswith("model:")]
        models = cls._models(values) if perturbation.morphs or perturbation.adversarials else []
        if len(seen) > 1:
            raise UsageError(f"--perceptual: expected at most one model:<architecture>, got {len(seen)}")
        return cls(
            seed=values.get("seed", 0),
            replicate=values.get(cls.replicate_flag, 1),
            dataset=dataset,
            perturbation=perturbation,
            human=HumanHparams.of(values),
            precision=PrecisionHparams.of(values),
            anchors=ThreatDesc.from_flags(values),
            train=models[0] if models else None,
            more=tuple(models[1:]),
            judge=trained_alike(values | PLAIN, perturbation.judge_name) if perturbation.morphs else None,
            features=trained_alike(values, seen[0]) if seen else None,
        )

    @staticmethod
    def _models(values: dict[str, Any]) -> list[Any]:
        """The models to measure: several only if they are of the zoo, by a comma-separated --model_name."""
        if values.get("train_dir"):
            return [stored_model(values["train_dir"], values.get("root_dir", ""))]
        names = names_in(values.get("model_name") or "")
        if not names:
            raise UsageError(
                "--morphs and --adversarials need a model: add --model_name with its training flags, or with "
                "--model_type=pretrained"
            )
        if values.get("model_type") == "pretrained":
            return [PretrainedDesc.from_flags({**values, "model_name": name}) for name in dict.fromkeys(names)]
        return [TrainDesc.from_flags(values)]

    @property
    def models(self) -> tuple[Any, ...]:
        """All models whose adversarial examples or morphs are measured."""
        return () if self.train is None else (self.train, *self.more)

    def hashed(self) -> dict[str, Any]:
        """A version of the measurement enters too, so that results that lack something are not taken for new ones."""
        more = [{"hash": run.hash, "replicate": run.replicate} for run in self.more]
        found = super().hashed() | {"measured": MEASURED} | ({"more": more} if more else {})
        mended = {"mended": [FEWER_SEVERITIES]} if self.perturbation.corruption_files else {}
        return found | mended | versions_of(names_in(self.perturbation.suites))

    def flags(self) -> dict[str, Any]:
        names = ",".join(run.model.model_name for run in self.models) if self.more else ""
        flags = super().flags() | flags_of_training(self.train, self.anchors)
        return flags | ({"model_name": names} if names else {})

    def __post_init__(self) -> None:
        check_human_set(self.human.human, self.dataset_name)
        object.__setattr__(self, "dataset", truly_labelled(self.dataset))
        if self.judge is not None and (self.judge.hash, self.judge.replicate) == (
            self.train.hash,
            self.train.replicate,
        ):
            raise UsageError("--judge_name: expected another model than the one that makes the morphs, got the same")

    @property
    def name(self) -> str:
        if self.more:
            return f"{self.anchors.name}_{len(self.models)}_models_pretrained"
        return self.anchors.name + ("" if self.train is None else f"_{self.train.name}")

    @classmethod
    def summarize(cls, result: dict[str, Any]) -> str:
        """A table of how well each threat separates unsafe from safe changes."""
        shown = {title: result[key] for title, key in COMPARISONS.items() if result.get(key)}

        def cell(found: dict[str, Any], threat: str) -> str:
            return (
                f"{rounded(found[threat]['auroc'], 3)} {between(found[threat]['low'], found[threat]['high'])}"
                if threat in found
                else "-"
            )

        rows = [[threat, *(cell(found, threat) for found in shown.values())] for threat in result["threats"]]
        covered = ""
        if result["coverage"]:
            covered = (
                f"at thresholds that hold {HEADLINE:.0%} of the safe changes of "
                f"{result['coverage']['num_training_images']} training images\n{coverage_table(result)}\n"
            )
        images = f"{result['num_examples']} images of {result['dataset_name']}"
        return (
            f"{covered}AUROC of telling unsafe from safe changes of {images} "
            f"(95 % intervals; {result['num_matched_pairs']} matched pairs)\n{markdown_table(['threat', *shown], rows)}"
            f"{human_summary(result)}"
        )


def coverage_table(result: dict[str, Any], level: float = HEADLINE) -> str:
    """At equal coverage: threshold, and what it holds of the changes of test images; a Markdown table."""
    rows = []
    for name, levels in result["coverage"]["threats"].items():
        found = levels[f"{level:g}"]
        rows.append(
            [
                name,
                f"{found['threshold']:.3g}",
                rounded(found["safe_held"], 3),
                f"{rounded(found['unsafe_held'], 3)} {between(found['low'], found['high'])}",
            ]
        )
    return markdown_table(["threat", "threshold", "safe held", "unsafe held"], rows)
