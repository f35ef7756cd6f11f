"""Commands on data sets in files and on the zoo, as a user runs them."""

from __future__ import annotations

import json
import shutil
import warnings
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch

from cli.main import main
from models.robustbench import zoo_library
from runners.commands import command
from runners.multi.desc import MultiTestDesc, MultiTrainDesc
from tests.conftest import Command
from tests.datasets import written

FAST = ("--model_name=Wong2020Fast", "--model_type=pretrained")


class Here:
    """Commands in this process, which has paid for its imports, writing below `root`."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def __call__(self, *words: str) -> int:
        return main([*words, f"--root_dir={self.root}", "--device=cpu", "--quiet"])

    def ok(self, capsys: pytest.CaptureFixture[str], *words: str) -> Path:
        """Run, demand success, and return the run's directory."""
        capsys.readouterr()
        assert self(*words) == 0, capsys.readouterr().err
        return Path(capsys.readouterr().out.splitlines()[-1])

    def result(self, capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, Any]:
        return json.loads((self.ok(capsys, *words) / "result.json").read_text())


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Here:
    """A root with small sets in data/, and Wong2020Fast with random weights in had.pt."""
    made = Here(tmp_path_factory.mktemp("real"))
    written.write_cifar10(made.root / "data" / "cifar-10-batches-py", 8, 20)
    written.write_imagenet(made.root / "data" / "imagenet", 5, 2)
    library = zoo_library()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        entry = library.all_models[library.BenchmarkDataset.cifar_10][library.ThreatModel.Linf]["Wong2020Fast"]
        torch.save(entry["model"]().state_dict(), made.root / "had.pt")
    return made


def cifar10(place: Here) -> tuple[str, ...]:
    return ("--dataset_name=cifar10", "--own_files", f"--data_dir={place.root}/data/cifar-10-batches-py")


def imagenet(place: Here) -> tuple[str, ...]:
    return ("--dataset_name=imagenet", "--own_files", f"--data_dir={place.root}/data/imagenet", "--image_size=32")


def test_missing_data_names_the_command_that_fetches_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert Here(tmp_path)("compute_threat", "--dataset_name=cifar10", "--per_label=7") == 1
    message = capsys.readouterr().err
    told = "or fetch it: python nonisotropic.py compute_threat --dataset_name=cifar10 --per_label=7 --download"
    assert message.strip().endswith(told)
    assert message.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_the_zoo_is_fetched_measured_and_fine_tuned(place: Here, capsys: pytest.CaptureFixture[str]) -> None:
    words = cifar10(place)
    assert place("test", *words, *FAST, "--standard_eval") == 1
    assert "first run: python nonisotropic.py download_pretrained --dataset_name=cifar10" in capsys.readouterr().err
    fetch = ("download_pretrained", "--dataset_name=cifar10", "--names=Wong2020Fast")

    had = place.root / "had" / "cifar10" / "Linf" / "Wong2020Fast.pt"
    had.parent.mkdir(parents=True)
    had.write_text("<html>quota exceeded</html>")
    assert main([*fetch, f"--source_dir={place.root}/had", f"--root_dir={place.root}"]) == 1
    told = "Wong2020Fast: it is a web page, not weights; it was removed. By hand: open https://"
    assert told in capsys.readouterr().err
    had.write_bytes((place.root / "had.pt").read_bytes())
    weights = place.ok(capsys, *fetch, f"--source_dir={place.root}/had") / "Wong2020Fast.pt"
    assert json.loads((weights.parent / "checksums.json").read_text()).keys() == {weights.name}
    assert place(*fetch, "--verify") == 0
    assert "| verified" in capsys.readouterr().out

    result = place.result(capsys, "test", *words, *FAST, "--standard_eval", "--num_examples=10")
    assert result["standard"]["num_examples"] == 10
    assert result["standard"]["published"] == pytest.approx(0.8334)

    tune = (*words, "--model_name=Wong2020Fast", "--training_steps=1it", "--batch_size=4", "--lr=0.001")
    trained = place.ok(capsys, "train", *tune, "--model_type=pretrained")
    assert trained.parent.name.startswith("Wong2020Fast_Linf_finetuned_standard_")
    asked = ("--standard_eval", "--num_examples=10")
    tested = place.result(capsys, "test", *tune, "--model_type=finetuned", *asked)
    assert "published" not in tested["standard"]
    by_directory = place.result(capsys, "test", *words, f"--train_dir={trained}", *asked)
    assert by_directory["standard"] == tested["standard"]


def test_adversarial_examples_of_several_models_of_the_zoo(place: Here, capsys: pytest.CaptureFixture[str]) -> None:
    """Measured in one run as in two, without training anything."""
    names, library = ("Wong2020Fast", "Andriushchenko2020Understanding"), zoo_library()
    offered = place.root / "offered" / "cifar10" / "Linf"
    offered.mkdir(parents=True)
    torch.manual_seed(0)
    for name in names:
        entry = library.all_models[library.BenchmarkDataset.cifar_10][library.ThreatModel.Linf][name]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            weights = entry["model"]().state_dict()
        # The published file of the second holds its weights under a name.
        torch.save({"last": weights} if name == names[1] else weights, offered / f"{name}.pt")
    fetch = ("download_pretrained", "--dataset_name=cifar10", f"--names={','.join(names)}")
    place.ok(capsys, *fetch, f"--source_dir={place.root}/offered")
    place.ok(capsys, "compute_threat", *cifar10(place), "--per_label=3")
    words = ("evaluate_threat", *cifar10(place), "--per_label=3", "--model_type=pretrained", "--adversarials")
    words += ("--num_images=12", "--suites=C", "--severities=1", "--bootstrap=100", "--adversarial_iter=2")
    words += ("--adversarial_Linf=0.5", "--adversarial_L2=20", "--coverage_images=6")
    both = place.ok(capsys, *words, f"--model_name={','.join(names)}")
    assert "_2_models_pretrained_" in both.parent.name
    assert f"--model_name={','.join(names)}" in json.loads((both / "hparams.json").read_text())["command"]
    rows, table = dict(numpy.load(both / "examples.npz")), json.loads((both / "result.json").read_text())["table"]
    columns = {row["perturbation"]: column for column, row in enumerate(table)}
    assert {f"apgd_{norm} of {name}" for norm in ("Linf", "L2") for name in names} <= columns.keys()
    alone = place.ok(capsys, *words, f"--model_name={names[1]}")
    single, listed = dict(numpy.load(alone / "examples.npz")), json.loads((alone / "result.json").read_text())["table"]
    for column, row in enumerate(listed):
        if row["group"] == "adversarial":
            together, first = (rows["PD"][:, columns[f"{row['perturbation']} of {name}"]] for name in reversed(names))
            assert numpy.isfinite(together).any()
            assert numpy.array_equal(together, single["PD"][:, column], equal_nan=True)
            assert not numpy.array_equal(together, first, equal_nan=True)


def test_several_models_of_the_zoo_are_several_runs() -> None:
    flags = {"dataset_name": "cifar10", "model_type": "pretrained", "standard_eval": True}
    named = MultiTestDesc.from_flags({**flags, "model_name": "Wong2020Fast,Rice2020Overfitting"})
    assert [child.model_name for child in named.children] == ["Wong2020Fast", "Rice2020Overfitting"]
    assert "--model_name=Wong2020Fast,Rice2020Overfitting" in command(named)
    assert len(MultiTestDesc.from_flags(flags).children) == 7
    toggled = MultiTrainDesc.from_flags(
        {**flags, "model_name": "Wong2020Fast,Rice2020Overfitting", "toggle_mixup": True}
    )
    assert len(toggled.children) == 4
    assert toggled.name == "2_models+mixup"


def test_published_weights_for_other_classes_are_not_tested(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("--dataset_name=synthetic", "--model_name=imagenet_resnet_18", "--model_type=pretrained")
    assert Here(tmp_path)("test", *words, "--standard_eval") == 1
    assert "tell 1000 classes apart, synthetic has 10; fine-tune them first" in capsys.readouterr().err


def test_images_in_files_by_one_process_and_by_several(place: Here, capsys: pytest.CaptureFixture[str]) -> None:
    words = imagenet(place)
    anchors = place.ok(capsys, "compute_threat", *words, "--per_label=2")
    assert json.loads((anchors / "result.json").read_text())["num_anchors"] == 6
    assert str(place.root) not in (anchors / "hparams.json").read_text()
    train = (*words, "--model_name=conv", "--training_steps=2ep", "--batch_size=5")
    runs = [place.ok(capsys, "train", *train)]
    together = Command(place.root / "together")
    together.root.mkdir()
    done = together("train", *train, "--num_workers=1", processes=2)
    assert done.returncode == 0, done.stderr
    runs.append(Path(done.stdout.splitlines()[-1]))
    losses = [json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])["train_loss"] for run in runs]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    asked = ("--standard_eval", "--N_adv_eval", "--per_label=2", "--N_attack_iter=2")
    tested = place.ok(capsys, "test", *train, *asked)
    assert numpy.load(tested / "examples.npz")["label"].tolist() == [0, 0, 1, 1, 999, 999]
    assert (tested / "strip.png").stat().st_size > 1000


def test_other_content_of_a_checkpoint_is_another_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shown = set()
    for content in (b"a", b"b"):
        file = tmp_path / f"{content.decode()}.pt"
        file.write_bytes(content)
        words = (
            "--dataset_name=cifar10",
            "--model_name=conv",
            "--model_type=pretrained",
            f"--model_source=file:{file}",
        )
        assert main(["test", *words, "--standard_eval", "--display_output_location"]) == 0
        shown.add(capsys.readouterr().out)
    assert len(shown) == 2


def test_a_folder_of_two_classes_in_every_runner(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    here = Here(tmp_path)
    written.write_folders(tmp_path / "set")
    words = ("--dataset_name=image_folder", "--image_size=16", f"--data_dir={tmp_path}/set", "--per_label=3")
    train = (*words, "--model_name=conv", "--training_steps=1ep", "--batch_size=8")
    here.ok(capsys, "compute_threat", *words)
    measured = here.ok(capsys, "evaluate_threat", *words, "--suites=C", "--severities=1", "--bootstrap=100")
    assert (measured / "gallery.png").is_file() and not (measured / "slice.png").exists()
    trained = here.ok(capsys, "train", *train)
    attacked = here.result(
        capsys, "test", *train, "--standard_eval", "--adv_eval", "--N_adv_eval", "--N_attack_iter=2", "--num_examples=4"
    )
    assert set(attacked["N_adv"]["attacks"]) and attacked["standard"]["num_examples"] == 4

    # A model is told from one of other classes, whose numbers are the same.
    assert json.loads((trained / "result.json").read_text())["classes"] == ["cat", "dog"]
    shutil.copytree(tmp_path / "set", tmp_path / "renamed")
    for split in ("train", "test"):
        (tmp_path / "renamed" / split / "cat").rename(tmp_path / "renamed" / split / "kitty")
    other = ("test", f"--train_dir={trained}", "--image_size=16", "--standard_eval")
    assert here(*other, f"--data_dir={tmp_path}/renamed") == 2
    told = capsys.readouterr().err
    assert "learnt other classes: expected 'cat' as class 0, got 'dog'" in told
    assert here(*other, f"--data_dir={tmp_path}/set") == 0
    capsys.readouterr()

    # A changed pixel is another set, whose anchors and model are not there.
    written.write_image(tmp_path / "set" / "test" / "dog" / "0.png", 20, 20)
    assert here("test", *train, "--standard_eval") == 1
    told = capsys.readouterr().err
    assert "the model is not there yet; first run: " in told
    assert "1 runs of that name have other settings, data or seeds, or are of an earlier version" in told
