"""Claims by the command: a test run becomes a file, which another machine verifies, refutes or merges."""

from __future__ import annotations

import json
import random
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy
import pytest
from torch import nn

from cli.main import main
from runners.inputs import read_model
from testing.claims.claim import STANDING, Claim
from tests.conftest import TINY, Command
from tests.tampering import (
    CONTRADICTIONS,
    DAMAGE,
    EDITS,
    FALSE,
    Change,
    bomb,
    false_claim,
    images_without_end,
    no_flags,
)

QUICK = ["--per_label=10", "--num_examples=20", "--N_attack_iter=5", "--attacks=pgd", "--adv_test_attack_type=pgd"]
SETS = ["--N_threshold=0.1", "--N_radius=0.2", "--adv_test_attack_power=0.1"]
WORDS = [*TINY, *QUICK, *SETS, "--adv_eval", "--N_adv_eval"]
HOLDS = r"accuracy at most 0\.\d+ in (PD-?\w* <= 0\.1, Linf <= 0\.2|Linf <= 0\.1): \d+ of 20 images broken, all inside"


@pytest.fixture(scope="module")
def made(digits_root: Command) -> Path:
    """A claim about 20 digits."""
    digits_root.ok("test", *WORDS, "--save_adversarials")
    file = digits_root.root / "a.zip"
    done = digits_root("bundle", *WORDS, "--author=A", f"--output={file}")
    assert done.returncode == 0, done.stderr
    assert len(re.findall(HOLDS, done.stdout)) == 2 and done.stdout.strip().endswith(str(file))
    return file


@pytest.fixture(scope="module")
def weights(digits_root: Command) -> Path:
    (file,) = (digits_root.root / "runs/digits/train").glob("*/replicate_1/model.safetensors")
    return file


@pytest.fixture
def elsewhere(tmp_path: Path, made: Path) -> Command:
    """Another root, which has the file alone."""
    shutil.copy(made, tmp_path / "a.zip")
    return Command(tmp_path)


def told(capsys: pytest.CaptureFixture[str]) -> str:
    """The one line on stderr of a command that failed."""
    output = capsys.readouterr()
    assert output.err.count("\n") == 1 and not output.out and "unexpected" not in output.err, output.err + output.out
    return output.err


def test_another_machine_verifies_it(elsewhere: Command, weights: Path) -> None:
    file, model = elsewhere.root / "a.zip", [f"--model_source=file:{weights}", "--model_name=conv"]
    for flags in ([f"--train_dir={weights.parent}"], model):
        done = elsewhere("verify", str(file), *flags)
        assert done.returncode == 0, done.stderr
        assert len(re.findall(HOLDS, done.stdout)) == 2
    (kept,) = (elsewhere.root / "verified").glob("a_*/result.json")
    result = json.loads(kept.read_text())
    assert result["claim"] == Claim.read(file).digest and result["authors"] == ["A"] and result["doubtful"] == [0, 0]
    done = elsewhere("verify", str(file))
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert "the model conv_standard is not here; name it by --train_dir=DIR" in done.stderr
    assert "made by: python nonisotropic.py train --dataset_name=digits --model_name=conv" in done.stderr
    shutil.copytree(weights.parents[4], elsewhere.root / "runs")
    assert elsewhere("verify", str(file)).returncode == 0


def test_other_weights_are_refused(digits_root: Command, elsewhere: Command) -> None:
    other = digits_root.ok("train", "--dataset_name=digits", "--model_name=conv", "--training_steps=1it")
    done = elsewhere("verify", str(elsewhere.root / "a.zip"), f"--train_dir={other}")
    assert done.returncode == 1 and done.stderr.count("\n") == 1
    assert "these are other weights than the claim is about: expected SHA-256" in done.stderr


def test_the_claim_is_that_of_the_run(digits_root: Command, made: Path) -> None:
    """Broken are the images that the run broke, but for those that no rounding keeps; the ball of 25.5 steps is cut."""
    run = digits_root.where("test", *WORDS)
    result, claim = json.loads((run / "result.json").read_text()), Claim.read(made)
    with numpy.load(run / "examples.npz") as arrays:
        assert numpy.array_equal(claim.arrays["index"], arrays["index"])
        assert numpy.array_equal(claim.arrays["label"], arrays["label"])
        robust = [arrays["N_adv_correct"], arrays["adv_correct"]]
        clean = arrays["N_adv_broken_by"] < 0
    (told,) = claim.facts["runs"]
    assert told["reported"] == [result["N_adv"]["accuracy"], result["adv"]["accuracy"]] and told["author"] == "A"
    assert not any(word in json.dumps(claim.facts) for word in (str(digits_root.root), str(Path.home())))
    for place, standing in enumerate(robust):
        broken = claim.broken(place)
        assert bool(broken[clean].all()) and numpy.array_equal(claim.arrays["witness"][place] == 0, clean)
        lost = int((~standing & ~broken).sum())
        assert lost <= 3 and told["lost"][place] == max(0, int((~standing).sum()) - int(broken.sum()))


def test_the_same_bytes_twice(digits_root: Command, made: Path) -> None:
    again = digits_root.root / "again.zip"
    assert digits_root("bundle", *WORDS, "--author=A", f"--output={again}").returncode == 0
    assert again.read_bytes() == made.read_bytes()
    folder = digits_root.ok("bundle", *WORDS, "--author=A")
    assert (folder / "claim.zip").read_bytes() == made.read_bytes()


def test_answers_that_depend_on_the_batch_are_not_bundled(
    digits_root: Command, made: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whoever verifies asks about the points alone, or beside others: it was a claim, which nobody could check."""

    def mixed(*given: Any) -> nn.Module:
        model = read_model(*given)
        model.register_forward_hook(lambda module, images, answers: answers - 0.5 * answers.mean(0))
        return model

    monkeypatch.setattr("runners.bundle.runner.read_model", mixed)
    words = [f"--root_dir={digits_root.root}", "--author=B", "--quiet", "--device=cpu"]
    assert main(["bundle", *WORDS, *words]) == 1
    assert "answers depend on the other images of the batch: nobody could check" in told(capsys)


@pytest.mark.parametrize("change", [DAMAGE[0], EDITS[-1], bomb], ids=lambda change: change.__name__)
def test_a_tampered_file_is_refused(
    change: Change, made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "tampered.zip"
    path.write_bytes(change(made.read_bytes(), random.Random(0)))
    assert main(["verify", str(path), f"--root_dir={tmp_path}", "--quiet"]) == 1
    assert "tampered.zip is refused: " in told(capsys)


@pytest.mark.parametrize("change", CONTRADICTIONS, ids=lambda change: change.__name__)
def test_a_claim_that_contradicts_itself_is_refused_everywhere(
    change: Change, made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Else it would stand on a leaderboard as one that nobody has verified yet, though nobody ever could."""
    path = tmp_path / "tampered.zip"
    path.write_bytes(change(made.read_bytes(), random.Random(0)))
    for words in (["verify", str(path)], ["report", f"--site={tmp_path}/site", f"--claims={path}"]):
        assert main([*words, f"--root_dir={tmp_path}", "--quiet"]) == 1
        assert "tampered.zip is refused: it " in (line := told(capsys)) or "is refused: the rows of" in line


@pytest.mark.parametrize("change", [no_flags, images_without_end], ids=lambda change: change.__name__)
def test_flags_of_no_data_set_are_refused_by_a_site_too(
    change: Callable[[Claim, random.Random], None], made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "tampered.zip"
    path.write_bytes(false_claim(change)(made.read_bytes(), random.Random(0)))
    assert main(["report", f"--site={tmp_path}/site", f"--claims={path}", f"--root_dir={tmp_path}", "--quiet"]) == 1
    assert "tampered.zip is refused: " in told(capsys) and not (tmp_path / "site").exists()


@pytest.mark.parametrize("change", FALSE, ids=lambda change: change.__name__)
def test_a_false_claim_is_refuted(
    change: Change, made: Path, weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "false.zip"
    path.write_bytes(change(made.read_bytes(), random.Random(0)))
    Claim.read(path)  # it fits itself
    words = [f"--root_dir={tmp_path}", f"--train_dir={weights.parent}", "--quiet", "--device=cpu"]
    assert main(["verify", str(path), *words]) == 1


def test_what_is_not_there_is_told(digits_root: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = f"--root_dir={tmp_path}"
    for code, words, expected in (
        (2, ["verify", root], "expected the file of a claim, as in: python nonisotropic.py verify CLAIM.zip"),
        (2, ["verify", "a.zip", "b.zip", root], "expected one file, got a.zip b.zip"),
        (2, ["verify", "none.zip", root, "--quiet"], "cannot read none.zip: No such file"),
        (2, ["verify", "a.zip", "--trian_dir=x", root], "unknown argument --trian_dir (did you mean '--train_dir'?)"),
        (2, ["merge", "a.zip", root], "expected two files or more"),
        (2, ["train", "a.zip", root], "unknown argument a.zip"),
        (2, ["bundle", *TINY, "--standard_eval", root], "expected a test under attack"),
        (2, ["bundle", *WORDS, "--author= ", root], "--author: expected a name"),
    ):
        assert main(words) == code
        assert expected in told(capsys)
    assert main(["bundle", *TINY, *QUICK, "--adv_eval", f"--root_dir={digits_root.root}", "--quiet"]) == 1
    assert "the evaluation is not there yet; first run: python nonisotropic.py test " in told(capsys)
    digits_root.ok("test", *TINY, *QUICK, "--adv_eval")
    assert main(["bundle", *TINY, *QUICK, "--adv_eval", f"--root_dir={digits_root.root}", "--quiet"]) == 1
    line = told(capsys)
    assert "no adversarial examples in" in line and line.strip().endswith("--save_adversarials")


def test_two_labs_merge_in_any_order(digits_root: Command, elsewhere: Command, weights: Path) -> None:
    """The second attacks with fewer steps, but has another run too, in a set between."""
    second = [word for word in WORDS if word != "--N_attack_iter=5"] + ["--N_attack_iter=3"]
    between = [word for word in second if word != "--adv_test_attack_type=pgd"] + ["--adv_test_attack_type=apgd"]
    digits_root.ok("test", *second, "--save_adversarials")
    more = digits_root.ok("test", *between, "--save_adversarials")
    other = digits_root.root / "b.zip"
    done = digits_root("bundle", *second, "--author=B", f"--more_runs={more}", f"--output={other}")
    assert done.returncode == 0, done.stderr
    files = [str(elsewhere.root / "a.zip"), str(other)]
    merged = [elsewhere.root / name for name in ("ab.zip", "ba.zip", "abab.zip")]
    for words, output in zip((files, files[::-1], [*files, *files]), merged, strict=True):
        assert elsewhere("merge", *words, f"--output={output}").returncode == 0
    assert len({output.read_bytes() for output in merged}) == 1
    one, two, both = (Claim.read(path) for path in (*files, merged[0]))
    assert both.facts["authors"] == ["A", "B"] and len(both.facts["runs"]) == 3
    for place in range(2):
        assert numpy.array_equal(both.broken(place), one.broken(place) | two.broken(place))
    assert (both.arrays["witness"] == STANDING).any()
    done = elsewhere("verify", str(merged[0]), f"--train_dir={weights.parent}")
    assert done.returncode == 0 and len(re.findall(HOLDS, done.stdout)) == 2, done.stderr


def test_runs_of_other_anchors_are_no_one_claim(digits_root: Command, tmp_path: Path) -> None:
    """A ball has no anchors, so that a first run without them says nothing of those of the others."""
    words = [*TINY, "--num_examples=6", "--adv_test_attack_type=pgd", "--adv_test_attack_power=0.1"]
    inside = ["--N_adv_eval", "--attacks=pgd", "--N_attack_iter=1", "--per_label=2", "--save_adversarials"]
    digits_root.ok("compute_threat", "--dataset_name=digits", "--per_label=2")
    more = digits_root.ok("test", *words, *inside)
    digits_root.ok("test", *words, "--adv_eval", "--per_label=10", "--save_adversarials")
    bundled = ["bundle", *words, "--adv_eval", "--author=A", f"--output={tmp_path}/b.zip"]
    done = digits_root(*bundled, "--per_label=10", f"--more_runs={more}")
    assert done.returncode == 2 and "--more_runs: expected runs with the anchors that the flags name" in done.stderr
    assert digits_root(*bundled, "--per_label=2", f"--more_runs={more}").returncode == 0


def test_other_forms_and_grids(digits_root: Command, elsewhere: Command, weights: Path) -> None:
    """The tangent and the segmented form, and a grid: its points were found in each of its sets."""
    few = [word.replace("examples=20", "examples=10") for word in WORDS if word != "--adv_eval"]
    tangents = [*few, "--tangents=brightness,blur", "--N_thresholds=0.02,0.05"]
    segmented = [*few, "--segmented", "--background=free"]
    for words, sets in ((tangents, 3), (segmented, 1)):
        digits_root.ok("test", *words, "--save_adversarials")
        file = elsewhere.root / "form.zip"
        assert digits_root("bundle", *words, f"--output={file}").returncode == 0
        done = elsewhere("verify", str(file), f"--train_dir={weights.parent}")
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("accuracy at most") == sets
        claim = Claim.read(file)
        counts = {each["threshold"]: each["broken"] for each in claim.facts["claims"] if each["threat"]["name"] == "PD"}
        assert [counts[each] for each in sorted(counts)] == sorted(counts.values())
        (run,) = claim.facts["runs"]
        assert max(run["lost"]) <= 3 and None not in run["reported"]
        assert sets == 1 or len(set(counts.values())) > 1
    done = digits_root("bundle", *WORDS, "--segmented", "--mask_source=grabcut")
    assert done.returncode != 0 and done.stderr.count("\n") == 1


def rewritten(file: Path, **model: object) -> None:
    """The same claim with other words about its model, all digests made again."""
    claim = Claim.read(file)
    claim.facts["model"] |= model
    file.write_bytes(claim.to_bytes())


def test_a_claim_names_no_folder_and_no_address(elsewhere: Command, weights: Path) -> None:
    file = elsewhere.root / "a.zip"
    for source in (f"hf:{weights.parent}", f"file:{weights}"):
        told = {"model_name": "conv", "model_type": "pretrained", "model_source": source}
        rewritten(file, kind="published", directory="", description=told)
        done = elsewhere("verify", str(file))
        assert done.returncode == 1 and done.stderr.count("\n") == 1
        assert "is refused: it names a file of weights as published" in done.stderr


def test_what_the_file_chose_is_told(elsewhere: Command, weights: Path) -> None:
    file = elsewhere.root / "a.zip"
    claim = Claim.read(file)
    claim.facts["data"]["description"]["synthetic_classes"] = 7
    file.write_bytes(claim.to_bytes())
    done = elsewhere("verify", str(file), f"--train_dir={weights.parent}")
    assert done.returncode == 0, done.stderr
    about = done.stdout.splitlines()[0]
    told = f"{claim.facts['model']['sha256'][:12]}; 20 test images of digits, --synthetic_classes=7; anchors are 100 "
    assert told in about and "training images" in about, about
