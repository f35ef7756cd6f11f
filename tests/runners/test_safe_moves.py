"""test --safe_moves and train --N_train_safe_moves, by the command; what they say, checked from the files alone."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy
import pytest
import torch
from safetensors.torch import load_file

from cli.main import main
from datasets.registry import dataset_info, load_dataset
from foundations.desc import derive_seed
from models.registry import build_model
from runners.test import moves
from testing.moves import with_moves
from tests.conftest import TINY, Command
from tests.threat_specification.attacks.linear import directions
from threat_specification import AnchorSet
from threat_specification.perturbations.draws import Draws
from threat_specification.perturbations.registry import SAFE

THRESHOLD, RADIUS = 0.3, 0.05
MOVES = "brighter:2,less_contrast:3,shift:3"
SET = ["--N_adv_eval", "--safe_moves=" + MOVES, f"--N_threshold={THRESHOLD}", f"--N_radius={RADIUS}"]
EVALUATED = ["test", *TINY, "--per_label=10", "--num_examples=24", "--N_attack_iter=5", *SET, "--save_adversarials"]
EVALUATED += ["--attacks=momentum_ce,random_search"]
WITHOUT = ["--N_adv_train", "--N_train_safe_moves", "--N_train_without_threat"]
FREE = ["--N_train_segmented", "--N_train_background=free"]


def test_the_figure_and_what_proves_it(digits_root: Command) -> None:
    """Every adversarial example is in the set, in float64, and the model is wrong there."""
    result = digits_root.result(*EVALUATED)
    made = digits_root.where(*EVALUATED)
    rows, found = dict(numpy.load(made / "examples.npz")), result["N_adv_moves"]
    test = load_dataset("digits").test
    index = torch.from_numpy(rows["index"])
    x, y = test.pixels(index), test.labels[index]
    images = load_file(made / "adversarials.safetensors")["N_adv_moves"]
    anchors = AnchorSet.load(
        digits_root.where("compute_threat", "--dataset_name=digits", "--per_label=10") / "anchors.safetensors"
    )
    model = build_model("conv", dataset_info("digits"))
    model.load_state_dict(load_file(digits_root.where("train", *TINY) / "model.safetensors"))
    model.eval()
    changes = [part.split(":") for part in MOVES.split(",")]
    seed = derive_seed(json.loads((made / "hparams.json").read_text())["hashed"]["seed"], 1, "test")
    changed = torch.stack([SAFE[name](x, Draws(seed, index, name), int(severity)) for name, severity in changes], 1)
    for images_of, right in zip(changed.unbind(1), rows["N_adv_moves_single"].T, strict=True):
        assert torch.equal(answers(model, images_of) == y, torch.from_numpy(right))
    weights = torch.from_numpy(rows["N_adv_moves_weights"]).double()
    broken = (rows["N_adv_moves_broken_by"] > 0) & (rows["N_adv_moves_broken_by"] <= 3)
    assert broken.sum() >= 5 and (weights[broken].sum(1) > 0.05).sum() >= 3
    for i in broken.nonzero()[0]:
        clean, image = x[i].flatten().double(), images[i].flatten().double()
        c, shifts = weights[i], changed[i].flatten(1).double() - clean
        assert c.min() >= 0 and c.sum() <= 1 + 1e-6
        assert (image - clean - c @ shifts).abs().max() <= RADIUS * (1 + 1e-5) + 2e-7
        assert image.min() >= 0 and image.max() <= 1
        threat = (directions(anchors, x[i], int(y[i])) @ (image - clean).numpy()).max()
        assert threat <= THRESHOLD * (1 + 1e-5) + 1e-7
        assert answers(model, images[i : i + 1])[0] != y[i]
    assert found["accuracy"] == rows["N_adv_moves_correct"].mean() <= result["N_adv"]["accuracy"]
    assert not (rows["N_adv_moves_correct"] & ~rows["N_adv_correct"]).any()
    assert found["single"] == dict(zip(MOVES.split(","), rows["N_adv_moves_single"].mean(0), strict=True))
    assert found["single_worst"] == rows["N_adv_moves_single"].all(1).mean() <= found["single_mean"]
    assert found["without_threat"] <= found["accuracy"] <= found["mixture_alone"] <= 1
    assert found["without_threat"] <= found["mixture_without_threat"] <= found["mixture_alone"]
    assert found["without_threat"] <= found["ball"]
    assert (made / "moves.png").is_file()
    told = digits_root(*EVALUATED).stdout
    assert "safe changes and noise" in told and "one safe change, the worst for each image" in told


def test_what_noise_alone_breaks_counts(digits_root: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    """Noise alone is in the set: even if no attack on mixtures found anything."""
    idle = lambda *given: replace(with_moves(*given), attacks={"none": lambda task: task.best_so_far().result})  # noqa: E731
    monkeypatch.setattr(moves, "with_moves", idle)
    monkeypatch.setenv("NONISOTROPIC_HOME", str(digits_root.root))
    words = [*EVALUATED, "--test_replicate=2"]
    assert main(words) == 0
    made = digits_root.where(*words)
    rows, found = dict(numpy.load(made / "examples.npz")), json.loads((made / "result.json").read_text())
    alone, mixed = found["N_adv"], found["N_adv_moves"]
    broken = rows["N_adv_broken_by"] > 0
    assert broken.sum() >= 3 and mixed["accuracy"] == alone["accuracy"] and mixed["without_threat"] == mixed["ball"]
    assert (rows["N_adv_moves_broken_by"][broken] == 2).all()
    assert mixed["attacks"] == {"none": mixed["mixture_alone"], "noise_alone": alone["accuracy"]}
    assert mixed["mixture_alone"] > mixed["accuracy"]
    assert mixed["accuracy_rounded"] == alone["accuracy_rounded"]


def answers(model: torch.nn.Module, images: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return model(images).argmax(1)


def test_a_model_is_trained_in_the_set(digits_root: Command) -> None:
    words = ["train", *TINY, "--per_label=10", "--N_adv_train", "--N_adv_train_attack_iter=1", "--N_train_safe_moves"]
    words += ["--N_adv_train_radius=0.02", f"--N_adv_train_threshold={THRESHOLD}"]
    assert digits_root.result(*words)["final"]["test_accuracy"] > 0.7
    made = digits_root.where(*words)
    assert made.parent.name.startswith("conv_N_adv_train+safe_moves_")
    hashed = json.loads((made / "hparams.json").read_text())["hashed"]["training"]
    assert hashed["N_train_safe_moves"].startswith("brighter:3,darker:3,")


def test_a_model_is_trained_without_the_threat(command: Command) -> None:
    """Needs no anchors, and is the run whose threshold nothing reaches; a threshold that binds is another."""
    words = ["train", *TINY, "--N_adv_train", "--N_adv_train_attack_iter=1", "--N_train_safe_moves=darker:5,shift"]
    words += ["--N_adv_train_radius=0", "--N_train_without_threat", "--training_steps=4it"]
    alone = load_file(command.ok(*words) / "model.safetensors")
    command.ok("compute_threat", TINY[0])
    words.remove("--N_train_without_threat")
    wide, narrow = (
        load_file(command.ok(*words, f"--N_adv_train_threshold={threshold}") / "model.safetensors")
        for threshold in (1e6, 0.001)
    )
    assert all(torch.allclose(value, wide[name], atol=1e-5) for name, value in alone.items())
    assert not all(torch.allclose(value, narrow[name], atol=1e-3) for name, value in alone.items())


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["test", *EVALUATED[1:], "--safe_moves=C:7"], "severity from 1 to 5"),
        (["test", *EVALUATED[1:], "--safe_moves=brigter"], "did you mean 'brighter'"),
        (
            ["test", *EVALUATED[1:], "--safe_moves=,"],
            "expected suites and corruptions, such as C:3,brighter:2, got ','",
        ),
        (["test", *TINY, "--standard_eval", "--safe_moves"], "--safe_moves: expected --N_adv_eval too"),
        (["test", *TINY, "--standard_eval", "--exact_eval"], "--exact_eval: expected --N_adv_eval too"),
        (["test", *EVALUATED[1:], "--segmented"], "expected --background=radius, got frozen"),
        (["test", *EVALUATED[1:], "--segmented", "--background=free"], "expected --background=radius, got free"),
        (["test", *EVALUATED[1:], "--attacks=post_hoc"], "post_hoc scales noise alone"),
        (["train", *TINY, "--N_adv_train", "--N_train_safe_moves", *FREE], "--N_train_background=radius, got free"),
        (["train", *TINY, "--N_adv_train", "--N_train_safe_moves", "--adv_start=last"], "another --adv_start"),
        (["train", *TINY, "--N_adv_train", "--N_adv_train_attack_iter=0"], "a number from 1 on"),
        (["train", *TINY, "--N_adv_train", "--N_train_without_threat"], "expected also --N_train_safe_moves"),
        (["train", *TINY, *WITHOUT, "--N_train_tangents"], "--N_train_tangents: expected no form of the threat beside"),
        (["train", *TINY, *WITHOUT, "--N_adv_train_threshold=0.3"], "--N_adv_train_threshold: expected none beside"),
        (["train", *TINY, *WITHOUT, "--N_adv_train_projection=scale"], "--N_adv_train_projection: expected none"),
        (["train", *TINY, *WITHOUT, "--N_train_coverage=0.9"], "--N_train_coverage: expected a threat, which"),
        (["train", *TINY, "--N_adv_train", "--N_train_safe_moves=D"], "--N_train_safe_moves: safe moves: expected"),
    ],
)
def test_wrong_flags(words: list[str], told: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 2
    assert told in capsys.readouterr().err
