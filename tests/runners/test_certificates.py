"""train --certified_train and test --certify by the commands; what they say, checked from the files alone."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy
import pytest
from safetensors.torch import load_file

from cli.main import main
from runners.test import certified
from runners.test.bracket import SAYS_NOTHING, UNKNOWN
from testing.certificates import CertificateEvaluation
from tests.conftest import Command

PLAIN = ["--dataset_name=digits", "--model_name=lenet_32", "--training_steps=6ep"]
MODEL = [*PLAIN, "--certified_train", "--certified_train_radius=0.05"]
SET = ["--per_label=10", "--N_adv_eval", "--N_threshold=0.1", "--N_radius=0.05", "--num_examples=30"]
WEAK = ["--attacks=momentum_ce", "--N_attack_iter=5", "--shard_size=10"]
CERTIFY = ["test", *MODEL, *SET, *WEAK, "--certify"]


@pytest.fixture(scope="module")
def trained(digits_root: Command) -> Command:
    digits_root.ok("train", *MODEL)
    digits_root.ok("train", *PLAIN)
    return digits_root


def test_the_bracket_by_the_command(trained: Command) -> None:
    result, made = trained.result(*CERTIFY, "--exact_eval"), trained.where(*CERTIFY, "--exact_eval")
    found, rows = result["certified"], dict(numpy.load(made / "examples.npz"))
    robust, box = rows["certified_robust"], rows["certified_box"]
    assert (found["num_examples"], found["accuracy"], found["box_accuracy"]) == (30, robust.mean(), box.mean())
    assert (found["threshold"], found["norm"], found["radius"]) == (0.1, "PD", 0.05) and found["certified_training"]
    assert "certified_seconds" not in rows and found["seconds_per_example"] > 0
    assert (robust >= box).all() and not (robust & ~rows["N_adv_correct"]).any()
    assert not (robust & rows["exact_broken"]).any() and (rows["exact_robust"] >= robust).all()
    assert 0.3 < found["accuracy"] <= result["exact"]["accuracy"] <= result["N_adv"]["accuracy"]
    assert ((rows["certified_margin"] < 0) >= robust).all()
    assert (rows["certified_margin"] <= rows["certified_box_margin"]).all()
    told = trained(*CERTIFY, "--exact_eval").stdout
    bracket = f"[{found['accuracy']:.4f}, {result['N_adv']['accuracy']:.4f}]"
    assert (
        "| certified " in told and f"accuracy in this set lies in {bracket}" in told and not (made / "shards").exists()
    )
    plain = [word for word in CERTIFY if word != "--certify"]
    assert trained.where(*plain).parent != trained.where(*CERTIFY).parent


def test_processes_and_a_restart_make_the_same_bits(trained: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    """One process, two, two that divide the anchors, and one that was ended after its first shard of certificates."""
    one = dict(numpy.load(trained.ok(*CERTIFY) / "examples.npz"))
    copies = {name: Command(Path(shutil.copytree(trained.root, trained.root.parent / name))) for name in "abc"}
    for copy in copies.values():
        shutil.rmtree(copy.where(*CERTIFY).parent)
    made = {"a": copies["a"].ok(*CERTIFY, processes=2), "b": copies["b"].ok(*CERTIFY, "--shard_anchors", processes=2)}
    call, root, numbers = CertificateEvaluation.__call__, f"--root_dir={copies['c'].root}", []

    def once(self: CertificateEvaluation, shard: object) -> dict:
        numbers.append(shard.number)
        if numbers == [0, 1]:
            raise KeyboardInterrupt
        return call(self, shard)

    monkeypatch.setattr(CertificateEvaluation, "__call__", once)
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        raise SystemExit(main([*CERTIFY, root]))
    assert main([*CERTIFY, root]) == 0
    assert numbers == [0, 1, 1, 2]
    made["c"] = copies["c"].where(*CERTIFY)
    for name, path in made.items():
        rows = dict(numpy.load(path / "examples.npz"))
        for column in one:
            same = numpy.array_equal if name != "b" or one[column].dtype != "float32" else numpy.allclose
            assert same(one[column], rows[column]), (name, column)


def test_what_is_certified_and_broken_ends_the_run(trained: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    root, words = f"--root_dir={trained.root}", [*CERTIFY, "--test_replicate=2"]
    evaluate = certified.evaluate

    def unsound(*arguments: object, **options: object) -> dict[str, numpy.ndarray]:
        found = evaluate(*arguments, **options)
        return found | {"certified_box": numpy.ones_like(found["certified_box"])}

    monkeypatch.setattr(certified, "evaluate", unsound)
    assert main([*words, root, "--quiet"]) == 1
    monkeypatch.undo()
    assert main([*words, root, "--quiet"]) == 0


def test_the_contradiction_names_its_first_image() -> None:
    class Attacked:
        cells = ()
        headline = None

    class Threat:
        radius = 0.1

    Attacked.headline = Threat
    arrays = {
        "certified_robust": numpy.array([True, False, True, True]),
        "certified_box": numpy.array([False, False, False, True]),
        "N_adv_correct": numpy.array([True, False, True, True]),
    }
    index = numpy.array([4, 7, 9, 11])
    certified.refuse_contradictions(arrays, {"N_adv": Attacked}, index)
    wrong = {
        "an attack: image 9 is the first of 2": {"N_adv_correct": numpy.array([True, False, False, False])},
        "the exact answers: image 11": {"exact_broken": numpy.array([False, True, False, True])},
    }
    for told, changed in wrong.items():
        with pytest.raises(RuntimeError, match=f"certified robust but broken by {told}"):
            certified.refuse_contradictions(arrays | changed, {"N_adv": Attacked}, index)


def test_weights_from_elsewhere_have_a_bracket_if_some_images_are_certified(trained: Command) -> None:
    """They were said not to be trained for certificates, which nobody knows."""
    weights = trained.where("train", *MODEL) / "model.safetensors"
    words = ["--dataset_name=digits", "--model_name=lenet_32", "--model_type=pretrained"]
    words += [f"--model_source=file:{weights}", *SET, *WEAK, "--certify"]
    found, told = trained.result("test", *words)["certified"], trained("test", *words).stdout
    assert found["certified_training"] is None and found["accuracy"] > 0.3
    assert f"accuracy in this set lies in [{found['accuracy']:.4f}, " in told and "not trained" not in told
    none = [*words, "--N_radius=0.9"]
    assert trained.result("test", *none)["certified"]["accuracy"] == 0 and UNKNOWN in trained("test", *none).stdout


def test_a_model_without_certified_training_has_no_bracket(trained: Command) -> None:
    words = ["test", *PLAIN, *SET, *WEAK, "--certify", "--N_radius=0.5"]
    result = trained.result(*words)
    assert result["certified"]["accuracy"] == 0 and not result["certified"]["certified_training"]
    assert SAYS_NOTHING in trained(*words).stdout
    trained.ok(*CERTIFY)
    page = trained.ok("report", "--dataset_name=digits") / "report.md"
    text = page.read_text()
    table = text[text.index("### Certificates") :].split("\n\n")[1]
    with_, without = (
        next(line for line in table.splitlines() if name in line) for name in ("lenet_32_c", "lenet_32_s")
    )
    assert "[" in with_.split("|")[5] and without.split("|")[5].strip() == "-" and SAYS_NOTHING in without
    assert "Brackets" in text


def test_training_by_the_command(trained: Command) -> None:
    """Its record, its hash, and two processes against one."""
    made = trained.where("train", *MODEL)
    history = [json.loads(line) for line in (made / "metrics.jsonl").read_text().splitlines()]
    assert all(0 <= row["train_certified_accuracy"] <= row["train_accuracy"] for row in history[3:])
    assert "lenet_32_certified_train_" in str(made)
    short = ["train", *MODEL, "--training_steps=8it", "--validation_fraction=0.2", "--select=best"]
    one = trained.ok(*short)
    copy = Command(Path(shutil.copytree(trained.root, trained.root.parent / "two")))
    shutil.rmtree(copy.where(*short).parent)
    kept, again = (load_file(path / "model.safetensors") for path in (one, copy.ok(*short, processes=2)))
    assert all(kept[name].allclose(value, atol=1e-5) for name, value in again.items())
    row = json.loads((trained.where(*short) / "metrics.jsonl").read_text().splitlines()[-1])
    assert 0 <= row["validation_robust_accuracy"] <= row["validation_accuracy"]
    unchanged = trained.where("train", *PLAIN)
    assert trained.where("train", *PLAIN, "--certified_train_radius=0.3", "--certified_train_ramp=0.1") == unchanged


def test_random_weights_are_scaled(trained: Command) -> None:
    """With steps of no length the weights that are kept are the initial ones."""
    still = [*PLAIN, "--certified_train", "--lr=1e-30", "--training_steps=1it"]
    scaling = [*still, "--certified_train_scaling"]
    usual = load_file(trained.ok("train", *still) / "model.safetensors")
    scaled = load_file(trained.ok("train", *scaling) / "model.safetensors")
    for name, weights in usual.items():
        if name.endswith("weight"):
            inputs = weights[0].numel()
            assert float(scaled[name].double().abs().sum()) == pytest.approx(2 * weights.numel() / inputs, rel=1e-5)
            ratio = scaled[name] / weights
            assert ratio.allclose(ratio.flatten()[0], rtol=1e-4)
        elif name.endswith("bias"):
            assert float(scaled[name].abs().max()) < 1e-20
        else:
            assert scaled[name].equal(weights)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["test", *PLAIN, "--standard_eval", "--certify"], "--certify: expected --N_adv_eval too"),
        ([*CERTIFY, "--tf32"], "--certify: expected a network in float32"),
        (["train", *PLAIN, "--certified_train", "--model_name=resnet_8"], "--certified_train: "),
        (["train", *PLAIN, "--certified_train", "--model_name=vgg_11"], "layer network.1, BatchNorm2d: its statistics"),
        (["train", *PLAIN, "--certified_train", "--certified_train_ramp=2"], "--certified_train_ramp: expected"),
        (
            [
                "train",
                *PLAIN,
                "--certified_train",
                "--certified_train_scaling",
                "--model_type=pretrained",
                f"--model_source=file:{__file__}",
            ],
            "--certified_train_scaling: expected random weights, which it scales, got --model_type=pretrained",
        ),
    ],
)
def test_wrong_flags(words: list[str], told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*words, f"--root_dir={tmp_path}"]) == 2
    assert told in capsys.readouterr().err
