"""Attack, then project (the paper's Table 3), by the command, against the same done by hand."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy
import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch.nn.functional import interpolate

from cli.main import main
from datasets.registry import dataset_info, load_dataset
from foundations.desc import Desc
from foundations.testing_hparams import TestingHparams
from models.registry import build_model
from runners.compute_threat.desc import ThreatDesc
from runners.evaluate_threat.desc import EvaluateThreatDesc
from runners.multi.desc import MultiTestDesc
from runners.test import threats
from runners.test.desc import TestDesc
from runners.test.published import same_radius
from runners.test.summary import EVALUATIONS, describe_set
from runners.test.then_project import PUBLISHED
from runners.train.desc import TrainDesc
from tests.conftest import TINY, Command
from threat_specification import AnchorSet, ProjectedDisplacement
from threat_specification.perturbations.registry import SUITES, versions

POWER = 0.1
ATTACKED = ["test", *TINY, "--per_label=10", "--num_examples=24", "--shard_size=8", "--adv_eval"]
ATTACKED += ["--adv_test_attack_type=pgd", f"--adv_test_attack_power_Linf={POWER}", "--save_adversarials"]
TREE = "".join(f"{digit}: {'round' if digit in (0, 6, 8, 9) else 'straight'}\n" for digit in range(10))


def test_attack_then_project(digits_root: Command, tmp_path: Path) -> None:
    tree = tmp_path / "tree.txt"
    tree.write_text(TREE)
    weights = f"--class_weights=tree:{tree}"
    anchors_at = digits_root.ok("compute_threat", "--dataset_name=digits", "--per_label=10", weights)
    inside = ["--N_adv_eval", f"--N_threshold={POWER}", f"--N_radius={POWER}", "--N_attack_iter=8"]
    inside += ["--attacks=momentum_ce,momentum_dlr"]
    words = [*ATTACKED, "--then_project=pd,pd_s,pd_w", weights, *inside]
    result = digits_root.result(*words)
    made = digits_root.where(*words)
    rows, found = dict(numpy.load(made / "examples.npz")), result["adv"]["then_project"]

    test = load_dataset("digits").test
    index = torch.from_numpy(rows["index"])
    x, y, z = test.pixels(index), test.labels[index], torch.from_numpy(load_file_of(made, "adv"))
    model = tiny(digits_root)
    anchors = AnchorSet.load(anchors_at / "anchors.safetensors")
    class_weights = load_file(anchors_at / "class_weights.safetensors")["class_weights"]
    forms = {
        "pd": ProjectedDisplacement(anchors=anchors),
        "pd_s": ProjectedDisplacement(anchors=anchors, segmented=True, mask_source="center"),
        "pd_w": ProjectedDisplacement(anchors=anchors, weighted=True, class_weights=class_weights),
    }
    attacked = torch.from_numpy(rows["adv_broken_by"] > 0)
    assert int(attacked.sum()) >= 10
    for name, threat in forms.items():
        projected = threat.project(x, y, z, POWER)
        with torch.no_grad():
            right = model(projected).argmax(1) == y
        assert found[name]["accuracy"] == float(right.double().mean())
        before, after = (threat.evaluate(x, y, images)[attacked].mean() for images in (z, projected))
        assert abs(found[name]["threat_before"] - float(before)) < 1e-5
        assert abs(found[name]["threat_after"] - float(after)) < 1e-5
        assert float(after) <= POWER * (1 + 1e-5) and found[name]["accuracy"] >= result["adv"]["accuracy"]
    # The attack does not know the set: what attacks inside it leave is no more.
    assert result["N_adv"]["accuracy"] <= found["pd"]["accuracy"]
    told = digits_root(*words).stdout
    assert "not adaptive, an upper bound" in told
    difference = found["pd"]["accuracy"] - result["N_adv"]["accuracy"]
    assert f"| {result['N_adv']['accuracy']:.4f}" in told and f"{difference:+.4f}" in told


def test_several_models_beside_the_published_figures() -> None:
    def measured(model: str, linf: float, pd: float, inside: float) -> dict[str, Any]:
        of = {"threshold": 16 / 255, "accuracy": pd, "threat_before": 0.3, "threat_after": 0.06, "distances": {}}
        published = PUBLISHED.get(model, {})
        ball = {"norm": "Linf", "radius": None, "threshold": 16 / 255, "accuracy": linf, "num_examples": 100}
        ball |= {"then_project": {"pd": {**of, "published": published.get("pd")}}}
        ball |= {"published_then_project": published.get("Linf")}
        inner = {"norm": "PD", "threshold": 16 / 255, "radius": 16 / 255, "accuracy": inside, "num_examples": 100}
        return {"adv": ball, "N_adv": inner}

    models = {"Liu2023Comprehensive_Swin-B": (0.1, 0.2, 0.15), "own": (0.0, 0.3, 0.3)}
    children = [{"name": name, "result": measured(name, *figures)} for name, figures in models.items()]
    lines = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in MultiTestDesc.summarize({"children": children}).split("an upper bound")[1].splitlines()[1:]
    ]
    assert lines[0][:3] == ["model", "set", "accuracy"] and lines[0][-1] == "published"
    assert [line[1:5] + line[-1:] for line in lines[2:]] == [
        ["Linf <= 0.06275", "0.1000", "-", "-", "0.12"],
        ["PD <= 0.06275", "0.2000", "0.1500", "+0.0500", "0.21"],
        ["Linf <= 0.06275", "0.0000", "-", "-", "-"],
        ["PD <= 0.06275", "0.3000", "0.3000", "+0.0000", "-"],
    ]
    assert same_radius(0.0627, 16 / 255) and not same_radius(8 / 255, 16 / 255)


def tiny(digits_root: Command) -> nn.Module:
    """The network under attack."""
    model = build_model("conv", dataset_info("digits")).eval()
    model.load_state_dict(load_file(digits_root.where("train", *TINY) / "model.safetensors"))
    return model


def load_file_of(directory: Path, name: str) -> numpy.ndarray:
    return load_file(directory / "adversarials.safetensors")[name].numpy()


def test_lazily_as_published_and_wrong_names(digits_root: Command) -> None:
    anchors = digits_root.ok("compute_threat", "--dataset_name=digits", "--per_label=10") / "anchors.safetensors"
    threat, test, model = (
        ProjectedDisplacement(anchors=AnchorSet.load(anchors)),
        load_dataset("digits").test,
        tiny(digits_root),
    )
    accuracies = {}
    for method in ("exact", "scale"):
        words = [*ATTACKED, "--then_project=pd", f"--then_project_method={method}"]
        accuracies[method] = digits_root.result(*words)["adv"]["then_project"]["pd"]["accuracy"]
        made = digits_root.where(*words)
        index = torch.from_numpy(dict(numpy.load(made / "examples.npz"))["index"])
        x, y, z = test.pixels(index), test.labels[index], torch.from_numpy(load_file_of(made, "adv"))
        with torch.no_grad():
            right = model(threat.project(x, y, z, POWER, method=method)).argmax(1) == y
        assert accuracies[method] == float(right.double().mean())
    # Scaling takes back more of the change than is needed.
    assert accuracies["scale"] > accuracies["exact"]
    for flag, told in (
        ("--then_project=pdw", "--then_project: expected one of pd, pd_s, pd_w, pd_t, got pdw"),
        ("--then_project=pd_w", "--then_project=pd_w: expected --class_weights=FILE"),
    ):
        done = digits_root(*ATTACKED, flag)
        assert done.returncode == 2 and told in done.stderr


@pytest.mark.parametrize("asked", [["--then_project=pd"], ["--N_adv_eval", "--attacks=pgd", "--N_attack_iter=5"]])
def test_anchors_divided_over_two_processes(digits_root: Command, tmp_path: Path, asked: list[str]) -> None:
    """Every process takes part in every shard: an odd number of shards would leave one of them waiting.

    Either use of the threat alone must bring that about.
    """
    words = [*ATTACKED, *asked]  # three shards
    alone = digits_root.ok(*words)
    several = Command(Path(shutil.copytree(digits_root.root, tmp_path / "several")))
    divided = several.root / alone.relative_to(digits_root.root)
    shutil.rmtree(divided)
    several.ok(*words, "--shard_anchors", "--hang_minutes=0.5", processes=2)
    figures, expected = (figures_of(json.loads((made / "result.json").read_text())) for made in (divided, alone))
    assert figures == pytest.approx(expected, abs=1e-5)
    assert expected["/adv/accuracy"] > 0
    rows, expected_rows = (dict(numpy.load(made / "examples.npz")) for made in (divided, alone))
    assert rows.keys() == expected_rows.keys()
    for name, values in expected_rows.items():
        assert numpy.allclose(values, rows[name], atol=1e-5, equal_nan=True), name


def figures_of(result: dict[str, Any]) -> dict[str, float]:
    """The numbers of the evaluations in result.json, by their places."""

    def inside(value: Any, place: str) -> dict[str, float]:
        if not isinstance(value, dict | list):
            return {place: value} if isinstance(value, int | float) else {}
        items = value.items() if isinstance(value, dict) else enumerate(value)
        return {where: leaf for name, inner in items for where, leaf in inside(inner, f"{place}/{name}").items()}

    return inside({name: result[name] for name in EVALUATIONS if name in result}, "")


def test_perceptual_distance_before_and_after(digits_root: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a stand-in for the package, whose distance is the mean square, with another factor for each backbone."""
    package = ModuleType("dreamsim")
    package.dreamsim = lambda pretrained, dreamsim_type, device: (  # type: ignore[attr-defined]
        lambda a, b: {"dino_vitb16": 100.0}[dreamsim_type] * (a - b).square().mean((1, 2, 3)),
        None,
    )
    monkeypatch.setitem(sys.modules, "dreamsim", package)
    digits_root.ok("compute_threat", "--dataset_name=digits", "--per_label=10")
    words = [*ATTACKED, "--then_project=pd", "--then_project_distances=dreamsim:dino_vitb16"]
    assert main([*words, f"--root_dir={digits_root.root}", "--device=cpu", "--quiet"]) == 0
    made = digits_root.where(*words)
    found = json.loads((made / "result.json").read_text())["adv"]["then_project"]["pd"]
    rows = dict(numpy.load(made / "examples.npz"))
    index, attacked = torch.from_numpy(rows["index"]), torch.from_numpy(rows["adv_broken_by"] > 0)
    test = load_dataset("digits").test
    x, y, z = test.pixels(index), test.labels[index], torch.from_numpy(load_file_of(made, "adv"))
    anchors = digits_root.where("compute_threat", "--dataset_name=digits", "--per_label=10") / "anchors.safetensors"
    threat = ProjectedDisplacement(anchors=AnchorSet.load(anchors))

    def mean(images: torch.Tensor) -> float:
        fit = {"size": (224, 224), "mode": "bilinear", "antialias": True}
        change = interpolate(images.float(), **fit) - interpolate(x, **fit)
        return float(100 * change.square().mean((1, 2, 3))[attacked].mean())

    distances = found["distances"]["DreamSim:dino_vitb16"]
    assert distances["before"] == pytest.approx(mean(z), rel=1e-4)
    assert distances["after"] == pytest.approx(mean(threat.project(x, y, z, POWER)), rel=1e-4)
    assert distances["after"] < distances["before"]
    told = digits_root(*words).stdout
    assert "mean DreamSim:dino_vitb16 before" in told and f"{distances['after']:.3f}" in told
    done = digits_root(*ATTACKED, "--then_project=pd", "--then_project_distances=ssim")
    assert done.returncode == 2 and "--then_project_distances: expected lpips, dreamsim" in done.stderr


@pytest.mark.parametrize(
    ("name", "flags", "form"),
    [
        ("pd_s", {"segmented": True, "background": "free", "segmented_norm": "masked"}, "masked norm, background free"),
        ("pd_t", {"tangents": "brightness,blur", "tangent_weight": 10.0}, "brightness+blur, lambda 10"),
        ("pd_t", {"tangents": "brightness,contrast,affine,blur"}, ""),
    ],
)
def test_the_set_is_the_one_that_attacks_inside_work_in(
    name: str, flags: dict[str, Any], form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another form by the same name stood beside it, and made the difference by which the bound is too high."""
    made: list[dict[str, Any]] = []
    monkeypatch.setattr(threats, "read_threat", lambda anchors, environment, **words: made.append(words))
    testing = TestingHparams(adv_eval=True, N_adv_eval=True, then_project=name, **flags)
    threats.projected_onto(testing, None, None)  # type: ignore[arg-type]
    threats.of_flags(testing, None, None, weighted=False)  # type: ignore[arg-type]
    projected, inside = made
    assert projected.items() <= inside.items() and projected.keys() >= flags.keys()
    assert threats.unusual(testing) == form
    told = describe_set({"norm": name.upper().replace("_", "-"), "form": form, "threshold": 0.1, "radius": None})
    assert told == f"{name.upper().replace('_', '-')}{form and f' ({form})'} <= 0.1"


@pytest.mark.parametrize(
    ("flags", "mended"),
    [
        ({"standard_eval": True, "corruption_eval": True, "corruption_suites": "C:3,torchvision:1"}, []),
        ({"N_adv_eval": True, "segmented": True, "adv_eval": True, "then_project": "pd_s"}, []),
        (
            {"N_adv_eval": True, "exact_eval": True},
            ["proofs of small layers and large logits", "images that bounds of single units left undecided"],
        ),
        ({"N_adv_eval": True, "segmented": True, "background": "free"}, ["a free background in sets of every size"]),
        ({"N_adv_eval": True, "segmented": True, "mask_source": "grabcut"}, ["images with empty masks"]),
        ({"N_adv_eval": True, "num_examples": 20}, ["samples of the first classes"]),
        ({"N_adv_eval": True, "attacks": "pgd,lean"}, ["the margin of probabilities on confident networks"]),
        (
            {"N_adv_eval": True, "audit": True, "audit_attacks": "apgd_pm"},
            ["the margin of probabilities on confident networks"],
        ),
        ({"corruption_eval": True, "corruption_suites": "torchvision:3"}, ["corruptions without the severity"]),
        ({"corruption_eval": True, "corruption_eval_files": "docs"}, ["files with fewer severities"]),
        (
            {"N_adv_eval": True, "adv_eval": True, "then_project": "pd_t", "tangents": "blur"},
            ["the form that then_project has"],
        ),
    ],
)
def test_figures_that_were_wrong_are_not_found_again(flags: dict[str, Any], mended: list[str]) -> None:
    """Their runs have other hashes; those of all others stay."""
    hashed = TestDesc.from_flags({"dataset_name": "digits", "model_name": "lenet_64", **flags}).hashed()
    assert hashed.get("mended", []) == mended


def test_corruptions_that_changed_are_another_run() -> None:
    named = {"dataset_name": "digits", "model_name": "lenet_64"}
    asked: list[tuple[type[Desc], dict[str, Any], set[str]]] = [
        (TestDesc, {"corruption_eval": True, "corruption_suites": "C-bar"}, set()),
        (TestDesc, {"corruption_eval": True, "corruption_suites": "C:3"}, set(SUITES["C"])),
        (TestDesc, {"N_adv_eval": True, "safe_moves": "quick:3"}, set()),
        (TestDesc, {"N_adv_eval": True, "safe_moves": "quick:3,snow:1"}, {"snow"}),
        (TrainDesc, {"N_adv_train": True, "N_train_safe_moves": "pixelate"}, {"pixelate"}),
        (EvaluateThreatDesc, {"suites": "torchvision"}, set()),
        (EvaluateThreatDesc, {"suites": "C,torchvision"}, set(SUITES["C"])),
    ]
    for desc, flags, names in asked:
        found = desc.from_flags({**named, **flags}).hashed().get("corruption_versions", {})
        assert found == versions(names) and bool(found) == bool(names)


def test_random_labels_are_those_of_training_not_of_the_threat() -> None:
    """Farthest points of a class are mislabelled ones first: half of the anchors would show another class."""
    noisy = {"dataset_name": "digits", "model_name": "lenet_64", "random_labels_fraction": 0.2, "N_adv_train": True}
    plain = {name: value for name, value in noisy.items() if name != "random_labels_fraction"}
    assert TrainDesc.from_flags(noisy).hash != TrainDesc.from_flags(plain).hash
    noisy_run, plain_run = (TestDesc.from_flags(flags | {"N_adv_eval": True}) for flags in (noisy, plain))
    assert noisy_run.anchors.hash == plain_run.anchors.hash
    assert noisy_run.train.anchors.hash == plain_run.train.anchors.hash
    for desc in (ThreatDesc, EvaluateThreatDesc):
        assert desc.from_flags(noisy).hash == desc.from_flags(plain).hash


def test_a_suite_named_twice_counts_once() -> None:
    once, twice = (
        EvaluateThreatDesc.from_flags({"dataset_name": "digits", "suites": suites, "severities": severities})
        for suites, severities in (("C,quick", (1.0, 3.0)), ("C,quick,C", (1.0, 3.0, 1.0)))
    )
    assert once.hash == twice.hash and twice.perturbation.suites == "C,quick"
