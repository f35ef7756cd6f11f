"""The weighted and the segmented form of PD, by the command line."""

from __future__ import annotations

import json
from pathlib import Path

import numpy
import pytest
import torch
from safetensors.torch import load_file, save_file

from cli.main import runner_parser
from datasets.base import Split
from foundations.desc import digest
from foundations.environment import Environment
from foundations.testing_hparams import TestingHparams
from runners import undefined
from runners.compute_threat.desc import ThreatDesc
from runners.inputs import read_threat
from runners.test import threats
from runners.train.desc import TrainDesc
from runners.train.runner import Train
from tests.conftest import TINY, Command
from threat_specification import AnchorSet, ProjectedDisplacement

ATTACKED = ["test", *TINY, "--N_adv_eval", "--per_label=10", "--num_examples=20", "--N_attack_iter=5"]
ATTACKED += ["--N_radius=0.4", "--N_threshold=0.2"]
SMALL = [*ATTACKED[:-2], "--N_radius=0.2", "--N_threshold=0.05"]
TREE = "".join(f"{digit}: {'round' if digit in (0, 6, 8, 9) else 'straight/pointed'}\n" for digit in range(10))


def found_threats(directory: Path) -> numpy.ndarray:
    arrays = numpy.load(directory / "examples.npz")
    return arrays["N_adv_threat"]


def test_weights_are_kept_with_the_anchors(digits_root: Command, tmp_path: Path) -> None:
    tree = tmp_path / "tree.txt"
    tree.write_text(TREE)
    weights_flag = f"--class_weights=tree:{tree}"
    missing = digits_root(*ATTACKED, "--weighted", weights_flag)
    assert missing.returncode == 1
    assert f"first run: python nonisotropic.py compute_threat --dataset_name=digits --per_label=10 {weights_flag}" in (
        missing.stderr
    )
    anchors_at = digits_root.ok("compute_threat", "--dataset_name=digits", "--per_label=10", weights_flag)
    weights = load_file(anchors_at / "class_weights.safetensors")["class_weights"]
    result = json.loads((anchors_at / "result.json").read_text())["class_weights"]
    assert result == {"form": "distance", "factor": 1.0, "moves_below_one": 0, "moves_looked_at": 100 * 90}
    # Depths 2 (round) and 3 (straight/pointed): 2 or 4 steps inside a group, 5 across.
    assert torch.allclose(weights[0, [6, 1]], torch.tensor([0.4, 1.0]))
    assert torch.allclose(weights[1, [2, 6]], torch.tensor([0.4, 1.0]))
    stored = (anchors_at / "hparams.json").read_text()
    assert str(tmp_path) not in stored and "tree:tree.txt" in stored

    result = digits_root.result(*ATTACKED, "--weighted", weights_flag)["N_adv"]
    assert result["norm"] == "PD-W"
    found = found_threats(digits_root.where(*ATTACKED, "--weighted", weights_flag))
    assert 0 < found.max() <= 0.2 * (1 + 1e-5)
    plain, weighted = (
        ProjectedDisplacement(anchors=AnchorSet.load(anchors_at / "anchors.safetensors"), **form)
        for form in ({}, {"weighted": True, "class_weights": weights})
    )
    x = torch.rand(30, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(30) % 10
    one, other = (threat.evaluate(x, labels, 1 - x) for threat in (plain, weighted))
    assert bool((other >= one * (1 - 1e-6)).all()) and not torch.allclose(one, other)


def test_moves_that_weights_call_harmless_are_told_with_how_many_were_looked_at(
    digits_root: Command, tmp_path: Path
) -> None:
    """They are those among 500 anchors at most: of more, a count alone says little."""
    weights = numpy.ones((10, 10))
    weights[0, 1:] = 1000  # whatever a 0 becomes
    numpy.savetxt(tmp_path / "large.csv", weights, delimiter=",")
    words = ["compute_threat", "--dataset_name=digits", "--per_label=60", "--class_weights_form=similarity"]
    words.append(f"--class_weights={tmp_path / 'large.csv'}")
    done = digits_root(*words)
    found = json.loads((digits_root.where(*words) / "result.json").read_text())["class_weights"]
    below, looked_at = found["moves_below_one"], found["moves_looked_at"]
    assert below == 50 * 450 < looked_at == 500 * 450
    told = f"by these weights {below:,} of {looked_at:,} moves from one anchor to another class's that were looked at"
    assert told in done.stderr


def test_a_measurement_with_weights_draws_them_by_class_distance(digits_root: Command, tmp_path: Path) -> None:
    tree = tmp_path / "tree.txt"
    tree.write_text(TREE)
    weights = f"--class_weights=tree:{tree}"
    digits_root.ok("compute_threat", "--dataset_name=digits", "--per_label=10", weights)
    words = ["evaluate_threat", "--dataset_name=digits", "--per_label=10", weights, "--suites=torchvision"]
    words.append("--coverage_images=20")
    made = digits_root.ok(*words, "--severities=3", "--num_examples=40", "--bootstrap=100")
    assert (made / "class_distance.png").is_file()
    rows = numpy.load(made / "examples.npz")
    assert (rows["PD-W"].astype(float) >= rows["PD"].astype(float) * (1 - 1e-6)).all()


def test_adversarial_examples_of_a_model_as_it_is(digits_root: Command, tmp_path: Path) -> None:
    """A checkpoint of somebody else's, without training anything; its numbers are those of the run that made it."""
    digits_root.ok("compute_threat", "--dataset_name=digits", "--per_label=10")
    weights = digits_root.where("train", *TINY) / "model.safetensors"
    words = ["evaluate_threat", "--dataset_name=digits", "--per_label=10", "--suites=torchvision", "--severities=3"]
    words += ["--num_examples=20", "--bootstrap=100", "--adversarials", "--adversarial_iter=3", "--coverage_images=20"]
    as_it_is = ["--model_name=conv", "--model_type=pretrained", f"--model_source=file:{weights}"]
    made = [digits_root.ok(*words, *model) for model in (as_it_is, TINY[1:])]
    assert made[0].parent.name.startswith("greedy_subsets_10_conv_pretrained_")
    first, second = (numpy.load(directory / "examples.npz")["PD"] for directory in made)
    assert numpy.array_equal(first, second)


def test_each_process_reads_its_part_of_the_anchors(digits_root: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without --shard_anchors, all of them. Figures do not tell: they are the same."""
    words = ["--dataset_name=digits", "--per_label=10"]
    prepared: list[bool] = []
    monkeypatch.setattr(
        ProjectedDisplacement, "prepare", lambda made, over_ranks, apart: prepared.append(over_ranks) or made
    )

    def read(rank: int, *more: str) -> AnchorSet:
        desc = ThreatDesc.from_flags(runner_parser("compute_threat", words).parse([*words, *more]))
        anchors = read_threat(desc, Environment(root_dir=digits_root.root, rank=rank, world_size=2)).anchors
        assert anchors is not None
        return anchors

    parts, whole = [read(rank, "--shard_anchors") for rank in (0, 1)], read(1)
    assert [len(part) for part in parts] == [50, 50] and len(whole) == 100
    assert torch.equal(torch.cat([part.images for part in parts]), whole.images)
    assert prepared == [True, True, False]


def test_the_form_of_earlier_versions_has_a_name(digits_root: Command, tmp_path: Path) -> None:
    """Similarities, scaled to the median of the plain threat; where such a run is found, the other says so."""
    tree = tmp_path / "earlier.txt"
    tree.write_text(TREE + "# of its own\n")
    words = ["compute_threat", "--dataset_name=digits", "--per_label=10", f"--class_weights=tree:{tree}"]
    made = digits_root.ok(*words, "--class_weights_form=similarity", "--class_weights_calibrate")
    weights = load_file(made / "class_weights.safetensors")["class_weights"]
    result = json.loads((made / "result.json").read_text())["class_weights"]
    assert result["form"] == "similarity" and result["factor"] != 1
    assert torch.allclose(weights[0, [6, 1]] / result["factor"], torch.tensor([2.0, 1.0]))
    desc = ThreatDesc.from_flags(runner_parser("compute_threat", words[1:]).parse(words[1:]))
    assert desc.earlier_version(digits_root.root) == ""
    content = desc.hashed()
    since = ("class_weights_form", "class_weights_calibrate", "selection_space")
    content["threat"] = {name: value for name, value in content["threat"].items() if name not in since}
    earlier = desc.directory(digits_root.root).parents[1] / f"{desc.name}_{digest(content)}"
    earlier.mkdir()
    missing = digits_root(*ATTACKED, "--weighted", f"--class_weights=tree:{tree}")
    told = "--class_weights_form=similarity --class_weights_calibrate --selection_space=raw keeps that"
    assert told in missing.stderr
    earlier.rmdir()


def test_an_earlier_run_by_wordnet_is_found(tmp_path: Path) -> None:
    """Its hash has no version of the distances."""
    (tmp_path / "data.noun").write_text("the content alone enters the hash")
    words = ["--dataset_name=digits", f"--class_weights=wordnet:{tmp_path / 'data.noun'}"]
    desc = ThreatDesc.from_flags(runner_parser("compute_threat", words).parse(words))
    content = desc.hashed()
    assert content.pop("wordnet_version") == 2
    since = ("class_weights_form", "class_weights_calibrate", "selection_space")
    content["threat"] = {name: value for name, value in content["threat"].items() if name not in since}
    (desc.directory(tmp_path).parents[1] / f"{desc.name}_{digest(content)}").mkdir(parents=True)
    assert "an earlier version made anchors with these weights" in desc.earlier_version(tmp_path)


def images_without_object_are_left_out(digits_root: Command, attacked: list[str], file: Path) -> None:
    """Nothing may change where a mask is empty: such images stood against every attack, and nothing told of them."""
    masks = torch.ones(360, 1, 8, 8, dtype=torch.uint8)
    masks[::2] = 0
    save_file({"masks": masks}, str(file))
    few = [*attacked, "--segmented", f"--mask_source=file:{file}"]
    done = digits_root(*few)
    result = json.loads((digits_root.where(*few) / "result.json").read_text())["N_adv"]
    assert 0 < result["excluded"] == 12 - result["num_examples"]
    assert f"left out: {result['excluded']} images that have an empty mask" in done.stderr
    with numpy.load(digits_root.where(*few) / "examples.npz") as rows:
        assert (rows["index"] % 2 == 1).all()
    words = ["evaluate_threat", "--dataset_name=digits", "--per_label=10", f"--mask_source=file:{file}"]
    words += ["--num_examples=20", "--suites=torchvision", "--severities=1", "--bootstrap=100", "--coverage_images=20"]
    measured = digits_root.ok(*words)
    assert json.loads((measured / "result.json").read_text())["excluded"] > 0
    with numpy.load(measured / "examples.npz") as rows:
        assert (rows["index"] % 2 == 1).all()
    save_file({"masks": torch.zeros_like(masks)}, str(file))
    refused = digits_root(*few)
    assert refused.returncode == 1 and "nothing is left" in refused.stderr


def test_segmented_by_a_file_and_backgrounds(digits_root: Command, tmp_path: Path) -> None:
    file = tmp_path / "masks.safetensors"
    save_file({"masks": torch.ones(360, 1, 8, 8, dtype=torch.uint8)}, str(file))
    few = ["--attacks=momentum_ce,momentum_dlr", "--num_examples=12"]
    attacked = [*ATTACKED, *few]
    everything = [*attacked, "--segmented", f"--mask_source=file:{file}"]
    assert digits_root.result(*everything)["N_adv"]["norm"] == "PD-S"
    save_file(
        {"masks": torch.ones(1437, 1, 8, 8, dtype=torch.uint8)}, str(of_training := tmp_path / "train.safetensors")
    )
    refused = digits_root(*attacked, "--segmented", f"--mask_source=file:{of_training}")
    assert refused.returncode == 2 and "for each of the 360 test images, got 1,437" in refused.stderr
    plain = found_threats(digits_root.ok(*attacked))
    # A mask of everything masks nothing, whichever norm.
    assert numpy.allclose(found_threats(digits_root.where(*everything)), plain, rtol=1e-6)

    assert numpy.allclose(found_threats(digits_root.ok(*everything, "--segmented_norm=masked")), plain, rtol=1e-6)

    images_without_object_are_left_out(digits_root, attacked, file)
    standing = {
        background: digits_root.result(*SMALL, *few, "--segmented", f"--background={background}")["N_adv"]["accuracy"]
        for background in ("frozen", "radius", "free")
    }
    assert standing["frozen"] > standing["radius"] >= standing["free"]


def test_anchors_other_than_those_of_training_are_reported_beside_them(digits_root: Command) -> None:
    trained = ["--N_adv_train", "--per_label=10", "--training_steps=2it", "--N_adv_train_attack_iter=2"]
    names = ["--dataset_name=digits", "--model_name=conv", *trained]
    digits_root.ok("compute_threat", "--dataset_name=digits", "--per_label=10", "--threat_replicate=2")
    digits_root.ok("train", *names)
    words = ["test", *names, "--N_adv_eval", "--num_examples=20", "--N_attack_iter=3", "--attacks=pgd"]
    same = digits_root.result(*words)
    assert "N_adv_train_anchors" not in same
    both = digits_root.result(*words, "--threat_replicate=2", "--train_threat_replicate=1")
    assert both["N_adv_train_anchors"]["name"] == same["N_adv"]["name"]
    assert both["N_adv"]["name"] != same["N_adv"]["name"]
    assert ",r2," in both["N_adv"]["name"]
    assert both["N_adv_train_anchors"]["accuracy"] == same["N_adv"]["accuracy"]


def test_an_image_is_left_out_where_any_threat_has_no_direction(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each threat has one of the images as an anchor of another class, and one as an anchor of its own class."""
    images, labels = torch.arange(5, dtype=torch.uint8).view(5, 1, 1, 1).expand(5, 1, 4, 4) * 50, torch.arange(5) % 2
    split = Split(images.contiguous(), labels)
    forms = [
        ProjectedDisplacement(anchors=AnchorSet(split.images[rows], torch.tensor([1, 0]))) for rows in ([0, 2], [4, 2])
    ]
    monkeypatch.setattr(undefined, "part_size", lambda shape: 2)
    found = [
        undefined.without_direction(forms[:count], split, torch.tensor([4, 3, 2, 0]), (1, 4, 4)) for count in range(3)
    ]
    assert [mask.tolist() for mask in found] == [[False] * 4, [False, False, False, True], [True, False, False, True]]


def test_the_flags_of_a_form_reach_its_threat(digits_root: Command) -> None:
    """The threat of an evaluation is the one that Python makes of the same words, and each word changes it."""
    words = ["compute_threat", "--dataset_name=digits", "--per_label=10"]
    desc = ThreatDesc.from_flags(runner_parser("compute_threat", words[1:]).parse(words[1:]))
    environment = Environment(root_dir=digits_root.root)
    anchors = read_threat(desc, environment).anchors
    generator = torch.Generator().manual_seed(0)
    images, changed = (torch.rand(4, 1, 8, 8, generator=generator) for _ in range(2))
    labels, before = torch.arange(4), None
    for form in (
        {},
        {"tangents": "brightness"},
        {"tangents": "brightness,blur"},
        {"tangents": "brightness,blur", "tangent_weight": 0.7},
        {"segmented": True, "mask_source": "center"},
        {"segmented": True, "mask_source": "center", "segmented_norm": "masked"},
    ):
        testing = TestingHparams(N_adv_eval=True, **form)
        found = threats.of_flags(testing, desc, environment, weighted=False).bind(images, labels)
        same = ProjectedDisplacement(anchors=anchors, **form).bind(images, labels)
        measured = found.evaluate(changed - images)
        assert torch.allclose(measured, same.evaluate(changed - images), rtol=1e-6), form
        assert before is None or not torch.allclose(measured, before, rtol=1e-3), form
        before = measured
    for name, value in (("background", "free"), ("projection", "scale")):
        testing = TestingHparams(N_adv_eval=True, segmented=True, mask_source="center", **{name: value})
        assert getattr(threats.of_flags(testing, desc, environment, weighted=False), name) == value


def test_they_reach_the_adversary_of_training(digits_root: Command) -> None:
    words = [*TINY, "--per_label=10", "--N_adv_train"]
    words += ["--N_train_tangents=brightness,blur", "--N_train_tangent_weight=0.7"]
    desc = TrainDesc.from_flags(runner_parser("train", words).parse(words))
    found = Train(desc, Environment(root_dir=digits_root.root))._threat_of_adversary()
    assert found is not None and found.anchors is not None
    images, changed = torch.rand(2, 4, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    form = {"tangents": "brightness,blur", "tangent_weight": 0.7}
    measured = [
        threat.bind(images, torch.arange(4)).evaluate(changed - images)
        for threat in (found, ProjectedDisplacement(anchors=found.anchors, **form))
    ]
    assert torch.allclose(*measured, rtol=1e-6)
