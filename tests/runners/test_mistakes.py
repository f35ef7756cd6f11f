"""A mistake is told in a line, with the right exit code, and leaves nothing behind."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy
import pytest
import torch
from PIL import Image

from cli.main import main
from datasets.registry import load_dataset
from tests.conftest import TINY, Command


def fails(command: Command, code: int, told: str, *words: str, **options: object) -> None:
    done = command(*words, **options)  # type: ignore[arg-type]
    assert done.returncode == code, done.stderr
    assert told in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stderr.count("\n") <= 2
    assert done.stdout == ""


def left_behind(root: Path) -> list[Path]:
    return [path for path in root.rglob("*") if path.is_file()]


def test_missing_anchors(command: Command, digits_root: Command) -> None:
    shutil.copytree(digits_root.root / "runs" / "digits" / "train", command.root / "runs" / "digits" / "train")
    before = left_behind(command.root)
    told = "first run: python nonisotropic.py compute_threat --dataset_name=digits --per_label=7 --threat_replicate=2"
    words = ["test", *TINY, "--N_adv_eval", "--per_label=7", "--threat_replicate=2"]
    fails(command, 1, told, *words)
    assert left_behind(command.root) == before


def test_missing_model(command: Command) -> None:
    told = "first run: python nonisotropic.py train --dataset_name=digits --model_name=conv --training_steps=3ep"
    fails(command, 1, told, "test", *TINY, "--standard_eval")
    fails(command, 1, "no finished run of digits", "report", "--dataset_name=digits")
    assert left_behind(command.root) == []


def test_too_many_anchors_or_examples(command: Command, digits_root: Command) -> None:
    told = "--per_label: expected at most 142, the images of class 0, got 500"
    fails(command, 2, told, "compute_threat", "--dataset_name=digits", "--per_label=500")
    assert left_behind(command.root) == []
    told = "--num_examples: expected at most 360, the test images, got 361"
    fails(digits_root, 2, told, "test", *TINY, "--standard_eval", "--num_examples=361")


def test_too_few_images_to_hold_some_out(command: Command) -> None:
    told = "--validation_fraction: of 4 images it leaves none to train on; lower it"
    words = ("--subsample_fraction=0.0027", "--validation_fraction=0.9")
    fails(command, 2, told, "train", "--dataset_name=digits", "--model_name=conv", "--training_steps=1ep", *words)
    assert left_behind(command.root) == []


@pytest.mark.parametrize("place", ["a file", "a link to nowhere"])
def test_a_directory_that_cannot_be_written(command: Command, place: str) -> None:
    target = command.root / "root"
    if place == "a file":
        target.write_text("")
    else:
        target.symlink_to("/proc/nowhere/at/all")
    fails(
        command,
        1,
        "choose a writable place with --root_dir",
        "compute_threat",
        "--dataset_name=digits",
        root=str(target),
    )
    assert left_behind(command.root) in ([], [target])


def test_damaged_weights_are_named(command: Command, digits_root: Command) -> None:
    shutil.copytree(digits_root.root / "runs/digits/train", command.root / "runs/digits/train")
    weights = command.where("train", *TINY) / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    fails(command, 1, "cannot read the weights", "test", *TINY, "--standard_eval")


def test_edited_runs_are_not_built_on(command: Command, digits_root: Command) -> None:
    """The model would be tested against other anchors than its result says."""
    shutil.copytree(digits_root.root / "runs", command.root / "runs")
    words = ("test", *TINY, "--N_adv_eval", "--per_label=10", "--attacks=l2_inscribed", "--num_examples=20")
    anchors = command.where("compute_threat", "--dataset_name=digits", "--per_label=10")
    file, content = anchors / "hparams.json", (anchors / "hparams.json").read_text()
    file.write_text(content.replace('"per_label": 10', '"per_label": 11'))
    edited = "was edited or written by another version: its hash does not fit its content; put the file back, or remove"
    fails(command, 2, edited, *words)
    fails(command, 2, edited, "compute_threat", "--dataset_name=digits", "--per_label=10")  # not "complete already"
    other = json.loads(content)
    file.write_text(json.dumps({**other, "replicate": 2}))
    fails(command, 1, "belongs to another run", *words)
    fails(command, 1, "belongs to another run", "compute_threat", "--dataset_name=digits", "--per_label=10")
    file.write_text(content)
    result = anchors / "result.json"
    result.write_text(result.read_text().replace('"per_label": 10', '"per_label": "10"'))
    fails(command, 1, "its checksum does not fit its content", *words)


def test_training_that_diverges(command: Command) -> None:
    fails(command, 1, "try a smaller --lr", "train", *TINY, "--lr=1e30")
    assert not list(command.root.rglob("result.json"))


def test_mistakes_under_torchrun_are_told_once(command: Command) -> None:
    done = command("train", *TINY, "--lr=fast", torchrun=2)
    assert done.returncode != 0
    assert done.stderr.count("--lr: expected a number such as 0.03 or 8/255, got 'fast'") == 1
    done = command("train", *TINY, "--batch_size=1", torchrun=2)
    assert done.stderr.count("--batch_size: expected at least one example for each of 2 processes, got 1") == 1


@pytest.mark.parametrize("flags", [("--N_adv_train", "--shard_anchors"), ("--adv_train", "--awp")])
def test_processes_that_work_on_a_part_together_need_an_example_in_it(
    flags: tuple[str, str], digits_root: Command
) -> None:
    """One without any would not ask, and the others would wait for it."""
    done = digits_root("train", *TINY, "--per_label=10", *flags, "--batch_size=5", "--accumulation=3", processes=2)
    assert done.returncode == 2
    assert f"{flags[1]}: expected an example in every part of a batch, got 5 examples for 6 parts" in done.stderr


def test_batch_normalisation_of_one_example_is_told_before_the_first_step(command: Command) -> None:
    train = ["train", "--dataset_name=digits", "--training_steps=3it", "--batch_size=4", "--accumulation=4"]
    done = command(*train, "--model_name=vgg_11")
    assert done.returncode == 2
    assert "batch normalisation needs two examples in every part of a batch" in done.stderr
    assert not command.where(*train, "--model_name=vgg_11").exists()
    command.ok(*train, "--model_name=conv")  # it has none


def test_images_that_a_network_cannot_take_are_told_before_the_first_step(command: Command) -> None:
    words = ["--dataset_name=synthetic", "--synthetic_shape=3x16x16", "--training_steps=1it"]
    done = command("train", *words, "--model_name=torchvision:inception_v3")
    assert done.returncode == 1 and "the model does not take images of (3, 16, 16)" in done.stderr


@pytest.mark.parametrize("evaluation", ["--standard_eval", "--N_adv_eval"])
def test_a_model_without_an_answer_is_an_error(
    digits_root: Command, evaluation: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """For one clean image of six, in the last shard."""
    from models.normalize import Classifier

    answer = Classifier.forward

    def forward(self: Classifier, images: torch.Tensor) -> torch.Tensor:
        logits = answer(self, images)
        return logits * torch.where(images.flatten(1).sum(1) == brightest, torch.nan, 1.0).view(-1, 1)

    words = ["test", *TINY, "--per_label=10", evaluation, "--num_examples=20", "--shard_size=6", "--N_attack_iter=2"]
    words += ["--attacks=pgd", f"--root_dir={digits_root.root}", "--device=cpu", "--quiet"]
    rows = dict(numpy.load(digits_root.ok(*words[:-3]) / "examples.npz"))
    sums = load_dataset("digits").test.pixels(torch.from_numpy(rows["index"])).flatten(1).sum(1)
    brightest = float(sums.max())
    assert int((sums == brightest).sum()) == 1
    shutil.rmtree(digits_root.where(*words[:-3]))
    monkeypatch.setattr(Classifier, "forward", forward)
    assert main(words) == 1
    row = int(rows["index"][int(sums.argmax())])
    assert f"not finite (NaN or infinity) for 1 of 20 images, the first is number {row}" in capsys.readouterr().err


def test_a_folder_where_a_file_is_to_be_written_and_the_reverse(command: Command) -> None:
    """Told by the flag that named the place, before anything is computed; --root_dir has nothing to do with it."""
    folder, file = command.root / "folder", command.root / "file"
    folder.mkdir()
    file.write_text("kept")
    told = f": expected a file to write, got the folder {folder}"
    fails(command, 2, f"--output{told}", "bundle", *TINY, "--adv_eval", f"--output={folder}")
    fails(command, 2, f"--output{told}", "merge", "a.zip", "b.zip", f"--output={folder}")
    sweep = ["multi_train", *TINY, "--toggle_mixup"]
    fails(command, 2, f"--write_commands{told}", *sweep, f"--write_commands={folder}")
    fails(command, 2, f"--write_slurm{told}", *sweep, f"--write_commands={file}", f"--write_slurm={folder}")
    told = "--write_slurm: expected another file than --write_commands"
    fails(command, 2, told, *sweep, f"--write_commands={file}", f"--write_slurm={folder}/../file")
    told = f"--site: expected a folder to write into, got the file {file}"
    fails(command, 2, told, "report", f"--site={file}")
    assert left_behind(command.root) == [file] and file.read_text() == "kept"


def test_more_than_the_memory_of_the_machine(command: Command, tmp_path: Path) -> None:
    told = "the memory of this machine does not suffice ("
    vast = ["train", "--dataset_name=digits", "--model_name=lenet_99999999999", "--training_steps=1it"]
    fails(command, 1, told, *vast)
    for row, place in enumerate(("train/a", "train/b", "test/a", "test/b")):
        (tmp_path / place).mkdir(parents=True)
        Image.new("RGB", (8, 8), (row, 0, 0)).save(tmp_path / place / "0.png")
    own = ["compute_threat", "--dataset_name=image_folder", f"--data_dir={tmp_path}", "--per_label=1"]
    fails(command, 1, told, *own, "--image_size=99999999")  # and no word of a damaged file


def test_weights_that_are_not_there_are_a_mistake_of_the_command_line_for_every_runner(command: Command) -> None:
    source = ["--model_source=file:nothere", "--model_name=conv"]
    told = "--model_source: cannot read nothere: No such file or directory"
    fails(command, 2, told, "test", "--dataset_name=digits", "--model_type=pretrained", "--standard_eval", *source)
    fails(command, 2, told, "verify", "claim.zip", *source)
