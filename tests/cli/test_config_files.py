"""Configuration files: they are flags, told in a file; mistakes name the file and the line."""

from __future__ import annotations

from pathlib import Path

import pytest

from cli.main import main
from cli.runner_registry import RUNNERS, desc_class
from foundations.program import COMMAND
from runners.train.defaults import RECIPES
from tests.conftest import Command

SMALL = ["--standard_eval", "--N_adv_eval", "--num_examples=5", "--N_attack_iter=2", "--attacks=apgd_ce"]
SHARED = """\
dataset_name = "mnist_5k"   # for all
model_name = "mnist_lenet"
N_adv_train = true
N_adv_train_radius = "8/255"
milestone_steps = ["2ep", "4ep"]
lr_schedule = "milestones"

[compute_threat]
per_label = 20

[train]
lr = 0.02
batch_size = 64
quiet = true

[test]
standard_eval = true
N_adv_eval = true
N_thresholds = [0.05, "8/255"]
"""
TRAIN = ["--dataset_name=mnist_5k", "--model_name=lenet", "--N_adv_train", "--N_adv_train_radius=8/255", "--lr=0.02"]
TRAIN += ["--milestone_steps=2ep,4ep", "--lr_schedule=milestones", "--per_label=20", "--batch_size=64"]
TEST = [*TRAIN, "--standard_eval", "--N_adv_eval", "--N_thresholds=0.05,8/255"]
WRITTEN_OUT = {
    "compute_threat": ["--dataset_name=mnist_5k", "--per_label=20"],
    "evaluate_threat": ["--dataset_name=mnist_5k", "--per_label=20"],
    "train": TRAIN,
    "multi_train": TRAIN,
    "test": TEST,
    "multi_test": TEST,
    "bundle": TEST,
    "report": ["--dataset_name=mnist_5k"],
}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "my experiment.toml"


def where(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert main([*words, "--display_output_location"]) == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("runner", WRITTEN_OUT)
def test_a_file_is_its_flags_written_out(runner: str, file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One file serves all runners: each finds the runs that the others made with it."""
    file.write_text(SHARED)
    assert where(capsys, runner, f"--config={file}") == where(capsys, runner, *WRITTEN_OUT[runner])
    assert where(capsys, runner, "--config", str(file)) == where(capsys, runner, *WRITTEN_OUT[runner])


def test_flags_win_over_tables_and_tables_over_the_rest(
    file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file.write_text('dataset_name = "digits"\nmodel_name = "conv"\nlr = 0.5\ntrain.lr = 0.4\n')
    named = ["train", "--dataset_name=digits", "--model_name=conv"]
    assert where(capsys, "train", f"--config={file}") == where(capsys, *named, "--lr=0.4")
    assert where(capsys, "multi_train", f"--config={file}") == where(capsys, "multi_train", *named[1:], "--lr=0.4")
    for words in ([f"--config={file}", "--lr=0.3"], ["--lr=0.3", f"--config={file}"]):
        assert where(capsys, "train", *words) == where(capsys, *named, "--lr=0.3")
    later = tmp_path / "later.toml"
    later.write_text("lr = 0.2\nN_aug = true\n")
    both = where(capsys, "train", f"--config={file}", f"--config={later}")
    assert both == where(capsys, *named, "--lr=0.2", "--N_aug")
    assert where(capsys, "train", f"--config={file}", f"--config={later}", "--N_aug=false") == where(
        capsys, *named, "--lr=0.2"
    )


def test_a_table_speaks_for_its_run_not_for_how_others_are_run(
    file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    named = ["--dataset_name=digits", "--model_name=conv"]
    file.write_text(f'[train]\ntrain_replicate = 2\nroot_dir = "{tmp_path}/of train"\n')
    assert "of train" in where(capsys, "train", *named, f"--config={file}")
    test = where(capsys, "test", *named, "--standard_eval", f"--config={file}")
    assert test == where(capsys, "test", *named, "--standard_eval", "--train_replicate=2")


def test_flags_of_the_run_itself_from_another_table_are_told(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Plain training uses no anchors, but the images are those of the table of anchors: not in silence."""
    file.write_text("[compute_threat]\nsubsample_fraction = 0.1\nper_label = 5\n")
    words = ["train", "--dataset_name=digits", "--model_name=conv", f"--config={file}"]
    assert main([*words, "--training_steps=0it", f"--root_dir={file.parent}/root"]) == 0
    told = capsys.readouterr().err
    assert "train takes subsample_fraction from [compute_threat]" in told and "per_label" not in told


def test_aliases_published_names_and_flags_given_alone(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    named = ["--dataset_name=mnist_5k", "--model_name=lenet"]
    file.write_text(
        'optimizer_name = "adamw"\nuse_amp = true\nema = false\nN_train_tangents = true\nN_adv_train = true'
    )
    words = ["--optimizer=adamw", "--precision=fp16", "--N_train_tangents", "--N_adv_train"]
    assert where(capsys, "train", *named, f"--config={file}") == where(capsys, "train", *named, *words)
    file.write_text("[multi_train]\ntoggle_N_adv = true\n")
    for runner, more in (("multi_train", []), ("multi_test", ["--standard_eval"])):
        words = [runner, *named, *more]
        assert where(capsys, *words, f"--config={file}") == where(capsys, *words, "--toggle_N_adv_train")
    file.write_text("common_2d = true\ncommon_2d_bar = true\n")
    words = ["evaluate_threat", named[0]]
    assert where(capsys, *words, f"--config={file}") == where(capsys, *words, "--suites=C,C-bar")
    assert where(capsys, *words, f"--config={file}", "--suites=torchvision") == where(
        capsys, *words, "--suites=torchvision"
    )


NAMED = 'dataset_name = "digits"\nmodel_name = "conv"\n'


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("lr = \n", "expected TOML: Invalid value (at line 3, column 6)"),
        ("lr = 1\nlr = 2", "expected TOML: Cannot overwrite a value (at "),
        ("lrr = 0.1", f", line 3: unknown key lrr (did you mean 'lr'?); see {COMMAND} RUNNER --help"),
        ("batch-size = 9", ", line 3: unknown key batch-size (did you mean 'batch_size'?)"),
        ("[train]\nlrr = 1", f", line 4: unknown key lrr (did you mean 'lr'?); see {COMMAND} train --help"),
        ("[test]\nstandrd_eval = true", ", line 4: unknown key standrd_eval (did you mean 'standard_eval'?)"),
        (
            "[train]\n\nstandard_eval = true",
            ", line 5: train has no standard_eval, which is a flag of test, multi_test",
        ),
        ("[trian]\nlr = 1", "[trian]: expected a runner (did you mean 'train'?), one of compute_threat, "),
        ("[train.more]\nlr = 1", "[train.more]: expected no table in a table; write its flags in [train]"),
        ("lr = nan", ", line 3: lr: expected a finite number, got nan"),
        ("lr = -inf", ", line 3: lr: expected a finite number, got -inf"),
        ("lr = -1", ", line 3: lr: expected a number in (0, inf), got -1"),
        ("lr = true", ', line 3: lr: expected a number such as 0.03 or "8/255", got true'),
        ("lr = [0.1, 0.2]", ", line 3: lr: expected a number"),
        ('lr = "fast"', ", line 3: lr: expected a number such as 0.03 or 8/255, got 'fast'"),
        ("lr = 2020-01-01", ", line 3: lr: expected a number"),
        ("batch_size = 12.0", ", line 3: batch_size: expected a whole number, got 12.0"),
        ("batch_size = true", ", line 3: batch_size: expected a whole number, got true"),
        ('N_aug = "yes"', ", line 3: N_aug: expected true or false, got 'yes'"),
        ("N_aug = 1", ", line 3: N_aug: expected true or false, got 1"),
        ("optimizer = 3", ", line 3: optimizer: expected text, or a list of names, got 3"),
        ("optimizer = false", ", line 3: optimizer: expected text, or a list of names, got false"),
        ("pixel_mean = [[0.1], 0.2]", ", line 3: pixel_mean: expected a list of numbers or of text, got [[0.1], 0.2]"),
        ('lr_schedule = "up"', ", line 3: lr_schedule: expected one of cosine, milestones, onecycle, constant, got up"),
        ('optimizer_name = "sgd"\noptimizer = "sgd"', ", line 4: optimizer is the flag optimizer_name of line 3 again"),
        ('use_amp = true\nprecision = "fp32"', ", line 4: precision is the flag use_amp of line 3 again"),
        ("num_train = 3", ", line 3: --num_train is a flag of the paper's research code: use --subsample_fraction"),
        ('config = "other.toml"', ", line 3: config stands on the command line alone"),
        ("debug = true", ", line 3: debug stands on the command line alone"),
    ],
)
def test_mistakes_name_file_and_line(
    text: str, told: str, file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file.write_text(NAMED + text)
    assert main(["train", f"--config={file}", f"--root_dir={tmp_path}/root"]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith(f"nonisotropic: {file}") and told in captured.err
    assert captured.err.count("\n") == 1 and captured.out == ""
    assert not (tmp_path / "root").exists()


def test_an_alias_beside_its_flag_is_refused(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file.write_text("toggle_N_adv_train = true\ntoggle_N_adv = false\n")
    assert main(["multi_train", "--dataset_name=digits", "--model_name=conv", f"--config={file}"]) == 2
    assert "line 2: toggle_N_adv is the flag toggle_N_adv_train of line 1 again" in capsys.readouterr().err


@pytest.mark.parametrize(("name", "told"), [("", "expected a file"), ("none", "No such file"), (".", "Is a directory")])
def test_files_that_are_none(name: str, told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = f"{tmp_path}/{name}" if name else ""
    assert main(["train", f"--config={path}"]) == 2
    assert told in capsys.readouterr().err
    assert main(["train", "--config"]) == 2
    assert "--config: expected one argument" in capsys.readouterr().err


def test_keys_of_other_runners_alone_are_left_out_with_a_note(
    file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file.write_text('dataset_name = "digits"\nmodel_name = "conv"\nlr = 1\nN_aug = true\nmixup = true\nawp = true')
    assert main(["compute_threat", f"--config={file}", "--per_label=2", f"--root_dir={tmp_path}/root"]) == 0
    told = capsys.readouterr().err
    assert f"note: {file}: left out what compute_threat does not have: model_name, lr, N_aug, mixup, ...\n" in told


def test_the_same_bytes_as_flags_written_out(command: Command, tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_text(f'{NAMED}training_steps = "2it"\nbatch_size = 32\n[train]\nlr = "1/20"\n')
    by_file = command.ok("train", "--config=a.toml")
    kept = {path.name: path.read_bytes() for path in by_file.glob("*") if path.suffix in (".json", ".toml", ".jsonl")}
    kept["model.safetensors"] = (by_file / "model.safetensors").read_bytes()
    by_file.rename(tmp_path / "away")
    words = ["--dataset_name=digits", "--model_name=conv", "--training_steps=2it", "--batch_size=32", "--lr=0.05"]
    assert command.ok("train", *words) == by_file
    for name in kept.keys() - {"result.json", "timing.jsonl"}:  # these two have clock values
        assert (by_file / name).read_bytes() == kept[name], name
    assert {"config.toml", "hparams.json", "metrics.jsonl"} < kept.keys()


@pytest.fixture(scope="module")
def everything(digits_root: Command) -> Command:
    """A run of each runner that makes directories below runs/."""
    words = ["--dataset_name=digits", "--model_name=conv", "--training_steps=3ep", "--per_label=10"]
    digits_root.ok("evaluate_threat", words[0], words[3], "--num_examples=6", "--suites=quick", "--severities=1")
    digits_root("multi_train", *words[:2], "--training_steps=1it", "--toggle_N_adv_train", words[3])
    digits_root.ok("multi_test", *words, *SMALL, "--save_adversarials")
    digits_root.ok("bundle", *words, *SMALL, "--save_adversarials", "--author=Jane Doe")
    digits_root.ok("report", words[0])
    digits_root.ok("download_pretrained", "--dataset_name=cifar10", "--list")
    return digits_root


def test_every_run_is_repeated_by_its_own_file(
    everything: Command, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The file names the directory that it lies in, with all flags said, the defaults too."""
    found = {}
    monkeypatch.setenv("NONISOTROPIC_HOME", str(everything.root))
    for file in everything.root.rglob("config.toml"):
        runner = file.read_text().split()[3]
        found[runner] = file
        assert where(capsys, runner, f"--config={file}") == f"{file.parent}\n"
        assert str(everything.root) not in file.read_text()
    assert set(found) == set(RUNNERS) - {"verify", "merge"}
    assert 'author = "Jane Doe"' in found["bundle"].read_text()
    assert "per_label = 10" in found["multi_train"].read_text()


def test_a_run_is_repeated_when_defaults_have_changed(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """By its file, which says them; a command that leaves them out is another run then."""
    words = ["train", "--dataset_name=digits", "--model_name=conv", "--training_steps=0it"]
    made = command.ok(*words)
    monkeypatch.setenv("NONISOTROPIC_HOME", str(command.root))
    monkeypatch.setitem(RECIPES, ("conv", "*"), {"lr": 0.03, "momentum": 0.5})
    assert where(capsys, "train", f"--config={made}/config.toml") == f"{made}\n" != where(capsys, *words)


def test_the_files_of_verify_and_merge(everything: Command) -> None:
    (claim,) = everything.root.rglob("claim.zip")
    done = everything("verify", str(claim))
    (file,) = (everything.root / "verified").glob("*/config.toml")
    assert done.returncode == 0, done.stderr
    assert 'files = ["claim.zip"]' in file.read_text()  # as the stored command: no folder of this machine
    assert everything.where("verify", f"--config={file}", str(claim)) == file.parent
    (everything.root / "claim.zip").write_bytes(claim.read_bytes())  # beside it, as where commands of these tests run
    assert everything.where("verify", f"--config={file}") == file.parent
    (everything.root / "merge.toml").write_text(f'[merge]\nfiles = ["{claim}", "claim.zip"]\n')
    by_words = everything.where("merge", str(claim), "claim.zip")
    assert everything.where("merge", "--config=merge.toml") == by_words
    assert desc_class("merge").takes


def test_a_path_of_this_machine_is_not_stored(command: Command, tmp_path: Path) -> None:
    weights = tmp_path / "some where" / "weights.csv"
    weights.parent.mkdir()
    weights.write_text("\n".join(",".join("0" if i == j else "0.5" for i in range(10)) for j in range(10)))
    words = ["compute_threat", "--dataset_name=digits", "--per_label=2"]
    made = command.ok(*words, f"--class_weights={weights}")
    text = (made / "config.toml").read_text()
    assert str(tmp_path) not in text and str(tmp_path) not in (made / "hparams.json").read_text()
    assert 'again as --class_weights\nclass_weights = "weights.csv"\n' in text
    assert command.where(words[0], f"--config={made}/config.toml", f"--class_weights={weights}") == made
