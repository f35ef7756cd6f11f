"""Accuracy under corruptions by the command, against loops that know nothing of shards and tables."""

from __future__ import annotations

import csv
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from safetensors.torch import load_file

from cli.main import main
from datasets.registry import load_dataset
from foundations.desc import derive_seed, digest
from foundations.errors import UsageError
from foundations.input_hparams import DatasetHparams
from foundations.results import is_intact, sealed
from foundations.testing_hparams import TestingHparams
from models.building import architecture
from models.robustbench_registry import PUBLISHED_CORRUPTIONS, zoo_model
from runners.corruptions import from_files, safe
from runners.report.collect import FinishedRun
from runners.report.corruption_table import corruption_tables
from runners.test.corruption_desc import WHAT, BaselineRun, check_baseline, corruption_summary, corruption_table
from runners.test.corruptions import by_category, of_the_paper, published
from runners.test.desc import COMPARED, MENDED, TestDesc
from runners.train.desc import TrainDesc
from testing.corruptions import mean_accuracy
from tests.conftest import TINY, Command
from threat_specification.perturbations.draws import Draws
from threat_specification.perturbations.registry import SAFE, SUITES, versions

ASKED = ("--standard_eval", "--corruption_eval", "--num_examples=24", "--shard_size=10")
CHANGES = ("--corruption_suites=torchvision:2,C", "--corruption_severities=5,1")
COLUMNS = [(name, severity) for name in SUITES["C"] for severity in (1, 5)]
COLUMNS += [(name, 1 if name == "autocontrast" else 2) for name in SUITES["torchvision"]]  # it has no other severity

# The four of C that are the paper's validation set, and those of other suites.
NOT_OF_THE_PAPER = {"speckle_noise", "gaussian_blur", "spatter", "saturate", *SUITES["torchvision"]}


def here(root: Path, *words: str) -> int:
    """The command in this process, which has paid for its imports."""
    return main([*words, f"--root_dir={root}", "--device=cpu", "--quiet"])


def read(directory: Path) -> tuple[dict[str, Any], dict[str, numpy.ndarray]]:
    """The figures, and the rows of the images."""
    with numpy.load(directory / "examples.npz", allow_pickle=False) as arrays:
        return json.loads((directory / "result.json").read_text())["corruption"], dict(arrays)


@pytest.fixture(scope="module")
def tested(digits_root: Command) -> Path:
    return digits_root.ok("test", *TINY, *ASKED, *CHANGES)


@pytest.fixture(scope="module")
def model(digits_root: Command) -> torch.nn.Module:
    """The trained model, read without a runner."""
    data, flags = load_dataset("digits"), {"dataset_name": "digits", "model_name": "conv"}
    network = architecture(TrainDesc.from_flags(flags).model, "digits", data.info)
    network.load_state_dict(load_file(digits_root.where("train", *TINY) / "model.safetensors"))
    return network.eval()


def test_figures_are_those_of_a_loop_over_images(tested: Path, model: torch.nn.Module) -> None:
    found, rows = read(tested)
    test, seed = load_dataset("digits").test, derive_seed(0, 1, "test")
    right = numpy.zeros((24, len(COLUMNS)), bool)
    for i, row in enumerate(rows["index"].tolist()):
        index = torch.tensor([row])
        for j, (name, severity) in enumerate(COLUMNS):
            image = SAFE[name](test.pixels(index), Draws(seed, index, name), severity)
            with torch.no_grad():
                right[i, j] = int(model(image).argmax()) == int(test.labels[row])
    assert (rows["corruption_correct"] == right).all()
    assert not rows["corruption_no_answer"].any() and found["no_answer"] == 0
    means: dict[str, list[float]] = {}
    for j, (name, severity) in enumerate(COLUMNS):
        assert found["by_corruption"][name][str(severity)] == pytest.approx(right[:, j].mean())
        means.setdefault(name, []).append(right[:, j].mean())
    assert list(found["by_corruption"]) == list(means)
    assert found["accuracy"] == pytest.approx(numpy.mean([numpy.mean(of) for of in means.values()]))
    noise = [means[name] for name in ("gaussian_noise", "shot_noise", "impulse_noise", "speckle_noise")]
    assert found["by_category"]["noise"] == pytest.approx(numpy.mean(noise))
    assert 0.2 < found["accuracy"] < rows["standard_correct"].mean()  # the corruptions do something
    with (tested / "corruptions.csv").open() as file:
        told = {(row["corruption"], int(row["severity"])): float(row["accuracy"]) for row in csv.DictReader(file)}
    assert list(told) == COLUMNS and list(told.values()) == pytest.approx(right.mean(0).tolist())
    assert (tested / "corruptions.png").read_bytes()[:4] == b"\x89PNG"


def test_mce_is_that_of_the_paper(tested: Path, digits_root: Command, capsys: pytest.CaptureFixture[str]) -> None:
    """Against the model after 0 steps, whose errors are the unit."""
    untrained = ("--dataset_name=digits", "--model_name=conv", "--training_steps=0it")
    assert here(digits_root.root, "train", *untrained) == 0
    assert here(digits_root.root, "test", *untrained, *ASKED, *CHANGES) == 0
    baseline = Path(capsys.readouterr().out.splitlines()[-1])
    compared = (*TINY, *ASKED, *CHANGES, f"--corruption_baseline={baseline.relative_to(digits_root.root)}")
    assert here(digits_root.root, "test", *compared) == 0
    printed = capsys.readouterr().out
    (ours, rows), (theirs, others) = read(Path(printed.splitlines()[-1])), read(baseline)
    assert ours["by_corruption"] == read(tested)[0]["by_corruption"]
    errors = [numpy.mean(~of["corruption_correct"], axis=0) for of in (rows, others)]
    ratios = {}
    for name in ours["by_corruption"]:
        columns = [j for j, (of, _) in enumerate(COLUMNS) if of == name]
        ratios[name] = errors[0][columns].sum() / errors[1][columns].sum()
    assert ours["CE"] == pytest.approx(ratios)
    papers = [ratio for name, ratio in ratios.items() if name not in NOT_OF_THE_PAPER]
    assert ours["mCE_over"] == len(papers) == 15 and ours["mCE"] == pytest.approx(numpy.mean(papers))
    assert 0 < ours["mCE"] < 0.8 and ours["mCE"] != pytest.approx(numpy.mean(list(ratios.values())))
    means = [
        numpy.mean(list(of.values())) for name, of in ours["by_corruption"].items() if name not in NOT_OF_THE_PAPER
    ]
    assert ours["accuracy_of_paper"] == pytest.approx(numpy.mean(means))
    assert ours["baseline"] == {
        "name": "conv_standard",
        "accuracy": theirs["accuracy"],
        "num_examples": 24,
        "same_images": True,
    }
    assert corruption_table(ours)[1][-1][-1] == f"{ours['mCE']:.3f}"  # the row of means says the same
    told = f"mCE {ours['mCE']:.4f} over the paper's 15 of 27 corruptions: errors in units of those of conv_standard"
    assert told in printed
    stored = json.loads((Path(printed.splitlines()[-1]) / "hparams.json").read_text())
    assert stored["hashed"]["baseline"]["hash"] == baseline.parent.name.rpartition("_")[2]
    assert str(digits_root.root) not in json.dumps(stored)
    again = stored["command"].split()[2:]
    assert here(digits_root.root, *again, "--display_output_location") == 0
    assert capsys.readouterr().out.strip() == printed.splitlines()[-1].strip()


def test_files_are_evaluated_alone_on_the_same_images(
    tested: Path, digits_root: Command, model: torch.nn.Module, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """In the format of CIFAR-10-C: all severities of a corruption one after the other."""
    test = load_dataset("digits").test
    images = test.read(slice(None)).permute(0, 2, 3, 1).numpy()
    darker = numpy.concatenate([(images * (1 - 0.15 * severity)).astype(numpy.uint8) for severity in range(1, 6)])
    folder = tmp_path / "DIGITS-C"
    folder.mkdir()
    numpy.save(folder / "brightness.npy", darker)
    numpy.save(folder / "labels.npy", numpy.tile(test.labels.numpy(), 5).astype(numpy.uint8))
    words = ("test", *TINY, *ASKED, f"--corruption_eval_files={folder}", "--corruption_severities=2,5")
    assert here(digits_root.root, *words) == 0
    found, rows = read(Path(capsys.readouterr().out.splitlines()[-1]))
    assert list(found["by_corruption"]) == ["brightness (file)"] and list(found["by_category"]) == ["digital"]
    assert (rows["index"] == read(tested)[1]["index"]).all()
    stored = numpy.load(folder / "brightness.npy").reshape(5, len(test), 8, 8, 1)
    for severity in (2, 5):
        chosen = torch.from_numpy(stored[severity - 1, rows["index"]]).permute(0, 3, 1, 2) / 255
        with torch.no_grad():
            right = (model(chosen).argmax(1) == test.labels[rows["index"]]).float().mean()
        assert found["by_corruption"]["brightness (file)"][str(severity)] == pytest.approx(float(right))
    assert here(digits_root.root, *words, "--corruption_suites=C-bar:1") == 0  # beside a suite, if one is named
    both = read(Path(capsys.readouterr().out.splitlines()[-1]))[0]["by_corruption"]
    assert list(both) == [*SUITES["C-bar"], "brightness (file)"]
    assert both["brightness (file)"] == found["by_corruption"]["brightness (file)"]
    numpy.save(folder / "fog.npy", darker[: len(test)])  # of one severity
    assert here(digits_root.root, *words, "--shard_size=9") == 2
    assert "expected the severities 2, 5 of each, got fog with 1 alone" in capsys.readouterr().err
    assert here(digits_root.root, *words, "--split=validation") == 2
    assert "--corruption_eval_files: expected --split=test" in capsys.readouterr().err


def test_flags_that_mean_the_same_name_the_same_run(digits_root: Command, capsys: pytest.CaptureFixture[str]) -> None:
    def where(*words: str) -> str:
        assert here(digits_root.root, "test", *TINY, *words, "--display_output_location") == 0
        return capsys.readouterr().out

    # Without --corruption_eval the others leave no trace.
    assert where("--standard_eval") == where(
        "--standard_eval", "--corruption_suites=C-bar", "--corruption_severities=1"
    )
    asked = where("--corruption_eval")
    assert asked == where("--corruption_eval", "--corruption_suites=C", "--corruption_severities=5,4,3,2,1")
    assert where("--corruption_eval", "--corruption_suites=C-bar:2, C") == where(
        "--corruption_eval", "--corruption_suites=C,C-bar:2"
    )
    assert len({asked, where("--standard_eval"), where("--corruption_eval", "--corruption_suites=C:3")}) == 3


def test_mistakes(tested: Path, digits_root: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def refused(*words: str) -> str:
        code = here(digits_root.root, "test", *TINY, "--corruption_eval", "--num_examples=24", *words)
        told = capsys.readouterr().err
        assert code in (1, 2) and told.count("\n") == 1, told
        return told

    assert "--corruption_suites: expected one of C, C-bar, torchvision, quick, got C-bra" in refused(
        "--corruption_suites=C-bra"
    )
    assert "a severity from 1 to 5, such as C:3, got C:6" in refused("--corruption_suites=C:6")
    assert "whole numbers from 1 to 5" in refused("--corruption_severities=0.5")
    baseline = "--corruption_baseline="
    assert f"{baseline[:-1]}: expected a run's directory" in refused(f"{baseline}/nowhere")
    trained = digits_root.where("train", *TINY)
    assert "expected the directory of a test run, got one of train" in refused(f"{baseline}{trained}")
    assert "the same --corruption_suites, C, got C,torchvision:2" in refused(f"{baseline}{tested}")
    clean = digits_root.where("test", *TINY, "--standard_eval", "--num_examples=10")
    assert here(digits_root.root, "test", *TINY, "--standard_eval", "--num_examples=10") == 0
    capsys.readouterr()
    assert "expected a test with --corruption_eval" in refused(f"{baseline}{clean}")
    assert "expected a test on digits, got one on mnist_5k" in told_of_another_set(tested, tmp_path, refused)
    assert "on the same images, got one with --image_size 8, not None" in told_of_others(tested, tmp_path, refused)
    begun = copied(tested, tmp_path / "begun")
    (begun / "result.json").unlink()
    assert "expected a finished test" in refused(*CHANGES, f"{baseline}{begun}")
    perfect = copied(tested, tmp_path / "perfect")
    result = json.loads((perfect / "result.json").read_text())
    assert is_intact(result)
    result["corruption"]["by_corruption"]["fog"] = {"1": 1.0, "5": 1.0}
    (perfect / "result.json").write_text(
        json.dumps(sealed({name: value for name, value in result.items() if name != "checksum"}))
    )
    told = refused(*CHANGES, f"{baseline}{perfect}")
    assert "expected a model that errs under every corruption, got none under fog" in told


def copied(directory: Path, to: Path) -> Path:
    return Path(shutil.copytree(directory, to))


def told_of_another_set(tested: Path, tmp_path: Path, refused: Any) -> str:
    """The message for a baseline of another data set."""
    other = copied(tested, tmp_path / "other")
    content = json.loads((other / "hparams.json").read_text())
    content["dataset_name"] = "mnist_5k"
    content["hash"] = digest(content["hashed"])
    (other / "hparams.json").write_text(json.dumps(content))
    return refused(*CHANGES, f"--corruption_baseline={other}")


def told_of_others(tested: Path, tmp_path: Path, refused: Any) -> str:
    """The message for a baseline on other images under the same name, as of two folders."""
    other = copied(tested, tmp_path / "images")
    content = json.loads((other / "hparams.json").read_text())
    content["hashed"]["dataset"]["image_size"] = 8
    content["hash"] = digest(content["hashed"])
    (other / "hparams.json").write_text(json.dumps(content))
    return refused(*CHANGES, f"--corruption_baseline={other}")


def test_a_baseline_may_have_learnt_from_other_training_images(tested: Path) -> None:
    content, testing = json.loads((tested / "hparams.json").read_text()), TestingHparams(corruption_eval=True)
    theirs = content["hashed"]["testing"]
    testing = replace(testing, **{name: theirs[name] for name in WHAT})
    stored = BaselineRun(tested, content)
    check_baseline(stored, DatasetHparams(dataset_name="digits", subsample_fraction=0.5, data_seed=3), testing)
    check_baseline(stored, DatasetHparams(dataset_name="digits"), testing)
    with pytest.raises(UsageError, match=r"--subsample_fraction 1\.0, not 0\.5"):
        held_out = replace(testing, split="validation")
        check_baseline(stored, DatasetHparams(dataset_name="digits", subsample_fraction=0.5), held_out)


def test_a_baseline_under_other_images_of_corruptions_is_refused(tested: Path) -> None:
    """Its errors were the unit of mCE although fog showed something else there."""
    content = json.loads((tested / "hparams.json").read_text())
    hashed = content["hashed"]
    flags = {"dataset_name": "digits", "model_name": "conv", "corruption_eval": True, "num_examples": 24}
    desc = TestDesc.from_flags(flags | {name: hashed["testing"][name] for name in WHAT})

    def with_baseline(**changed: Any) -> TestDesc:
        return replace(desc, baseline=BaselineRun(tested, content | {"hashed": hashed | changed}))

    assert with_baseline().baseline and hashed["corruption_versions"] == versions(["C", "torchvision"])
    of_moves = {"corruption_versions": hashed["corruption_versions"] | {"shift": 7}}  # of quick, in another evaluation
    assert with_baseline(**of_moves).baseline
    for other, named in (({"fog": 2}, "fog"), ({"snow": 1, "fog": 2}, "fog, snow")):
        with pytest.raises(UsageError, match=f"got one under other versions of {named}; test the baseline again"):
            with_baseline(corruption_versions=hashed["corruption_versions"] | other)
    with pytest.raises(UsageError, match="other versions of elastic_transform, glass_blur, pixelate, snow, zoom_blur"):
        with_baseline(corruption_versions={})  # of a time that knew no versions
    assert "corruptions without the severity" in hashed["mended"]
    with pytest.raises(UsageError, match="since this was mended: corruptions without the severity; test"):
        with_baseline(mended=[fault for fault in hashed["mended"] if fault != "corruptions without the severity"])
    assert MENDED.keys() >= COMPARED.keys()


def measured_at(levels: str, accuracy: float = 0.9) -> dict[str, float]:
    """Severity -> accuracy, a tenth less at each next one."""
    return {level: accuracy - 0.1 * int(level) for level in levels}


@pytest.mark.parametrize(
    ("accuracies", "row", "told"),
    [
        (
            {"fog": measured_at("12345"), "snow": measured_at("12345"), "affine": {"3": 0.1}, "elastic": {"3": 0.1}},
            ["0.3500", "0.800", "0.700", "0.600", "0.500", "0.400"],
            "means by severity are over the 2 of 4 corruptions that have all 5, the first mean over all 4",
        ),
        (
            {"fog": measured_at("35"), "autocontrast": {"1": 0.5}},
            ["0.5000", "-", "-", "-"],
            "no corruption has all 3 severities: there are no means by severity",
        ),
        ({"fog": measured_at("13"), "snow": measured_at("13", 0.7)}, ["0.6000", "0.700", "0.500"], ""),
    ],
)
def test_means_by_severity_are_over_the_same_corruptions(
    accuracies: dict[str, dict[str, float]], row: list[str], told: str
) -> None:
    """At severity 3 stood 0.35, below 0.5 at severity 4, since corruptions of that severity alone were in it."""
    found = {"accuracy": mean_accuracy(accuracies), "by_corruption": accuracies, "by_category": {}, "no_answer": 0}
    assert corruption_table(found)[1][-1] == ["mean", *row]
    summary = corruption_summary({"corruption": found}).splitlines()
    assert (told in summary) if told else not any("severity are" in line for line in summary)
    run = FinishedRun(Path("a"), "a", {"name": "a", "replicate": 1}, {"corruption": found | {"num_examples": 9}})
    tables = corruption_tables([run])
    assert tables[1].note == "; ".join(filter(None, ["The last row has means", told])) + "."


def test_a_corruption_without_the_severity_is_made_at_its_nearest() -> None:
    """Of torchvision:3 the mean left autocontrast out, whose only severity is 1."""
    made = {change.name: change.severity for change in safe(["torchvision"], (3.0, 5.0), 0) if change.severity < 5}
    assert made == {name: 1 if name == "autocontrast" else 3 for name in SUITES["torchvision"]}


@pytest.mark.parametrize(
    ("counts", "asked", "told"),
    [
        ({"brightness": 5, "fog": 2}, (1, 2, 3, 4, 5), "severities 1, 2, 3, 4, 5 of each, got fog with 1, 2 alone"),
        ({"brightness": 3, "fog": 2, "snow": 1}, (1, 2, 3, 4), "3 of each, got fog with 1, 2 alone, snow with 1"),
        ({"brightness": 1, "fog": 1}, (2, 3), "2, 3 of each, got brightness with 1 alone, fog with 1 alone"),
        (dict(zip("abcdef", (5, 1, 1, 1, 1, 1), strict=True)), (1, 2), "d with 1 alone and 2 more such; ask for"),
        ({"brightness": 5, "fog": 2, "snow": 5}, (1, 2), ""),
        ({"brightness": 2, "fog": 2}, (1, 2, 3, 4, 5), ""),
    ],
)
def test_files_with_fewer_severities_are_refused(
    counts: dict[str, int], asked: tuple[float, ...], told: str, tmp_path: Path
) -> None:
    """Fog with its two mildest severities counted as much as corruptions with all five."""
    data = load_dataset("digits")
    labels = data.test.labels.numpy()
    numpy.save(tmp_path / "labels.npy", numpy.tile(labels, 5))
    for name, count in counts.items():
        numpy.save(tmp_path / f"{name}.npy", numpy.zeros((count * len(labels), 8, 8, 1), numpy.uint8))
    if told:
        with pytest.raises(UsageError, match=re.escape(told)):
            from_files(tmp_path, data, asked)
        return
    made = from_files(tmp_path, data, asked)
    assert [(each.name, each.severity) for each in made] == [
        (f"{of} (file)", level) for of in counts for level in (1, 2)
    ]


def test_the_papers_corruptions_have_the_same_severities() -> None:
    made = {name: {"1": 0.5, "2": 0.5} for name in PUBLISHED_CORRUPTIONS}
    assert len(of_the_paper(made)[0]) == 15
    assert of_the_paper(made | {"fog": {"1": 0.5}}) == ([], "")
    files = {f"{name} (file)": {"3": 0.5} for name in PUBLISHED_CORRUPTIONS}
    assert (
        of_the_paper(made | files | {"fog (file)": {"2": 0.5}})[1] == "for the same ones made here, not those of files"
    )


def test_what_robustbench_published_stands_beside_the_same_corruptions() -> None:
    assert set(PUBLISHED_CORRUPTIONS) < set(SUITES["C"])
    made = {name: {str(level): 0.5 for level in range(1, 6)} for name in SUITES["C"]}
    made["spatter"] = {str(level): 0.0 for level in range(1, 6)}  # not among the published ones
    entry = zoo_model("cifar10", "corruptions", "Modas2021PRIMEResNet18")
    fields = published(entry, made)
    assert fields["published"] == pytest.approx(0.8905) and fields["accuracy_of_published"] == pytest.approx(0.5)
    files = {f"{name} (file)": {str(level): 0.25 for level in range(1, 6)} for name in PUBLISHED_CORRUPTIONS}
    assert published(entry, made | files)["accuracy_of_published"] == pytest.approx(0.25)
    assert published(entry, {"fog": {"1": 0.5}})["accuracy_of_published"] is None
    assert published(zoo_model("cifar10", "Linf", "Wong2020Fast"), made) == {}
    found = {"accuracy": 0.4, "by_corruption": made, "by_category": by_category(made), "no_answer": 3, **fields}
    told = corruption_summary({"corruption": found})
    assert (
        "RobustBench published 0.8905, for the mean over the 15 corruptions of CIFAR-10-C, severities 1 to 5; "
        "here 0.5000 for the same ones made here, not those of files"
    ) in told
    assert "no finite answer for 3 corrupted images, which count as wrong" in told
    assert "not all of them were measured" in corruption_summary({"corruption": found | published(entry, {})})
