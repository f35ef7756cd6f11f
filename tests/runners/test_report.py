"""The page over finished runs: complete, linked, quick, and good to look at in a real browser."""

from __future__ import annotations

import csv
import json
import random
import re
import shutil
import time
from pathlib import Path
from typing import Any

import pytest

from foundations.desc import digest
from foundations.environment import Environment
from foundations.input_hparams import DatasetHparams
from foundations.results import sealed
from runners.report.desc import ReportDesc
from runners.report.runner import Report
from tests.browser import CHROMIUM, look_at
from tests.conftest import TINY, Command

MANY = 300
MEASURED = [
    "evaluate_threat",
    "--dataset_name=digits",
    "--per_label=10",
    "--num_examples=20",
    "--severities=1,5",
    "--coverage_images=20",
]
MEASURED += ["--suites=C", "--bootstrap=100"]
TESTED = [
    "test",
    *TINY,
    "--standard_eval",
    "--corruption_eval",
    "--corruption_severities=1,5",
    "--N_adv_eval",
    "--adv_eval",
    "--per_label=10",
    "--num_examples=10",
]
TESTED += ["--adv_test_attack_type=pgd", "--N_attack_iter=3", "--N_thresholds=0.05"]


@pytest.fixture(scope="module")
def finished(digits_root: Command, tmp_path_factory: pytest.TempPathFactory) -> Command:
    """A root with one run of each kind, apart from others."""
    copy = Command(tmp_path_factory.mktemp("reported"))
    for words in (["compute_threat", "--dataset_name=digits", "--per_label=10"], ["train", *TINY]):
        made = digits_root.where(*words)
        shutil.copytree(made, copy.root / made.relative_to(digits_root.root))
    copy.ok(*MEASURED)
    copy.ok(*TESTED)
    return copy


def render(root: Path, dataset_name: str) -> tuple[Path, float]:
    """The folder of the report, and the seconds of computation that it took."""
    desc = ReportDesc(dataset=DatasetHparams(dataset_name=dataset_name))
    started = time.process_time()
    Report(desc, Environment(root_dir=root, quiet=True)).execute()
    return desc.directory(root), time.process_time() - started


def test_every_number_leads_to_its_run_and_command(finished: Command) -> None:
    folder, _ = render(finished.root, "digits")
    page = (folder / "report.html").read_text()
    links = set(re.findall(r'<td[^>]*><a href="([^"]+)" title="([^"]+)"', page))
    assert len(links) >= 4
    for link, command in links:
        assert (folder / link / "result.json").is_file()
        assert json.loads((folder / link / "hparams.json").read_text())["command"] == command
    result = json.loads((finished.where(*MEASURED) / "result.json").read_text())
    auroc = f"{result['separation']['PD']['auroc']:.3f}"
    for file in ("report.html", "report.md", "report.csv"):
        assert auroc in (folder / file).read_text()
    assert not re.search(r"https?:|<script src|<link rel=.stylesheet|@import|url\(", page)
    rows = list(csv.DictReader((folder / "report.csv").read_text().splitlines()))
    found = {row["table"] for row in rows}
    assert {"Separation", "Accuracy", "Trained models", "Choices of anchors", "Environment and versions"} <= found
    assert all((finished.root / row["directory"]).is_dir() for row in rows if row["directory"])
    corrupted = json.loads((finished.where(*TESTED) / "result.json").read_text())["corruption"]
    cells = {(row["table"], row["row"], row["column"]): row["value"] for row in rows}
    assert cells["Accuracy", "conv_standard", "corruptions"].startswith(f"{corrupted['accuracy']:.4f} [")
    assert cells["Accuracy under corruptions", "conv_standard", "blur"] == f"{corrupted['by_category']['blur']:.4f}"
    fog = cells["Under each corruption, conv_standard", "fog", "severity 5"]
    assert fog == f"{corrupted['by_corruption']['fog']['5']:.3f}"


def test_the_answer_comes_first(finished: Command, tmp_path: Path) -> None:
    """Its sentences, from the results alone; who cannot be told from the leader is named."""
    shutil.copytree(finished.root / "runs", tmp_path / "runs")
    directory = next((tmp_path / "runs/digits/test").glob("*/replicate_1"))
    alone = (render(tmp_path, "digits")[0] / "report.md").read_text()
    result = json.loads((directory / "result.json").read_text())
    assert "no other model was measured there" in alone and alone.index("* Under") < alone.index("## Accuracy")
    assert alone.index("## Accuracy") < alone.index("## Threats")
    tenth = {"strong": (0.9, 0.1, []), "near": (0.8, 0.9, []), "far": (0.2, 0.2, ["its gradient vanishes"])}
    for name, (inside, clean, warnings) in tenth.items():
        copy = Path(shutil.copytree(directory.parent, directory.parent.parent / name)) / "replicate_1"
        (copy / "examples.npz").unlink()  # of the figures before: models are told apart by their intervals here
        content = json.loads((copy / "result.json").read_text())
        content.pop("checksum")
        content["N_adv"] |= {"accuracy": inside, "warnings": warnings}
        content["standard"]["accuracy"] = content["corruption"]["accuracy"] = content["adv"]["accuracy"] = clean
        (copy / "result.json").write_text(json.dumps(sealed(content)))
        hparams = json.loads((copy / "hparams.json").read_text())
        (copy / "hparams.json").write_text(json.dumps(hparams | {"name": name}))
        if name == "strong":  # the same in a smaller set, where others were not measured, says nothing beside them
            small = Path(shutil.copytree(copy.parent, copy.parent.parent / "small")) / "replicate_1"
            content["N_adv"] |= {"accuracy": 1.0, "radius": 1e-3}
            (small / "result.json").write_text(json.dumps(sealed(content)))
            (small / "hparams.json").write_text(json.dumps(hparams | {"name": "small"}))
    shutil.rmtree(directory.parent)
    folder, _ = render(tmp_path, "digits")
    told = [line[2:] for line in (folder / "report.md").read_text().splitlines() if line.startswith("* ")]
    assert len(told) == 5
    sets = f"(PD <= {result['N_adv']['threshold']:.4g}, Linf <= {result['N_adv']['radius']:.4g})"
    assert told[0].startswith(f"Under nonisotropic attack {sets}, strong stands best of 3: it is right on 90.0% of 10")
    assert told[0].endswith("; near cannot be told from it by so few images.")
    assert told[1].startswith("Under isotropic attack ") and ", near stands best of 4" in told[1]
    measured = json.loads((finished.where(*MEASURED) / "result.json").read_text())
    assert told[2].startswith(
        f"PD tells unsafe changes from safe ones with AUROC {measured['separation']['PD']['auroc']:.3f}"
    )
    weak = [name for name, of in measured["separation_by_perturbation"].items() if of["PD"]["auroc"] < 0.75]
    assert all(name in told[2] for name in weak[:1])
    assert told[3:] == ["Figures of far may be too high.", "Look first at the table of warnings."]
    assert "<li>Under nonisotropic attack (PD &lt;= " in (folder / "report.html").read_text()


def test_figures_on_held_out_images_have_a_table_of_their_own(finished: Command, tmp_path: Path) -> None:
    """Settings are chosen by them: beside figures on test images they would look like those."""
    shutil.copytree(finished.root / "runs", tmp_path / "runs")
    directory = next((tmp_path / "runs/digits/test").glob("*/replicate_1"))
    other = Path(shutil.copytree(directory.parent, directory.parent.parent / "held_out")) / "replicate_1/hparams.json"
    hparams = json.loads(other.read_text())
    hparams["hashed"]["testing"]["split"] = "validation"
    other.write_text(json.dumps(hparams | {"name": "held_out", "hash": digest(hparams["hashed"])}))
    folder, _ = render(tmp_path, "digits")
    rows = list(csv.DictReader((folder / "report.csv").read_text().splitlines()))
    tables = {name: {row["directory"].split("/")[3] for row in rows if row["table"] == name} for name in
              ("Accuracy", "Accuracy on images held out of training")}  # fmt: skip
    assert tables == {
        "Accuracy": {directory.parent.name},
        "Accuracy on images held out of training": {"held_out"},
    }


def test_all_data_sets_on_one_page(finished: Command, tmp_path: Path) -> None:
    for name in ("digits", "mnist_5k"):
        shutil.copytree(finished.root / "runs/digits/compute_threat", tmp_path / "runs" / name / "compute_threat")
    folder, _ = render(tmp_path, "")
    page = (folder / "report.html").read_text()
    assert folder == tmp_path / "reports/all"
    for title in ("digits: Anchors", "mnist_5k: Anchors"):
        assert f">{title}</h2>" in page


def many_runs(finished: Command, root: Path) -> Path:
    """A root with 300 finished runs: half trained, half tested, accuracies shuffled."""
    generator = random.Random(1)
    shutil.copytree(finished.root / "runs/digits", root / "runs/digits")
    for runner in ("train", "test"):
        (source,) = (root / "runs/digits" / runner).glob("*/replicate_1")
        for number in range(MANY // 2 - 1):
            copy = root / "runs/digits" / runner / f"conv_{number}/replicate_1"
            shutil.copytree(source, copy)
            for name in ("hparams.json", "result.json"):
                content: dict[str, Any] = json.loads((copy / name).read_text())
                content.pop("checksum", None)
                if name == "hparams.json":
                    content["name"] = f"conv_<{number}>"
                elif runner == "test":
                    content["N_adv"]["accuracy"] = round(generator.random(), 4)
                (copy / name).write_text(json.dumps(content if name == "hparams.json" else sealed(content)))
    return root


def test_three_hundred_runs_on_one_page(finished: Command, tmp_path: Path) -> None:
    folder, _ = render(many_runs(finished, tmp_path), "digits")
    page = (folder / "report.html").read_text()
    assert page.count("conv_&lt;") >= 2 * (MANY // 2 - 1) and "conv_<" not in page


needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine")


@needs_browser
@pytest.mark.parametrize("width", [400, 1200])
def test_in_a_browser(finished: Command, tmp_path: Path, width: int) -> None:
    folder, _ = render(many_runs(finished, tmp_path) if width == 400 else finished.root, "digits")
    seen = look_at(folder / "report.html", width, tmp_path, dark=width == 1200)
    assert seen["ink"] == ("rgb(232, 232, 230)" if width == 1200 else "rgb(26, 26, 26)")
    assert seen["errors"] == [] and seen["console"] == []
    assert seen["scroll"] == seen["width"]
    assert seen["cut"] == [] or width > 400  # where there is room, wide tables scroll
    assert seen["zoomed"] and seen["closed"]
    assert len(seen["images"]) >= 8 and all(size > 100 for size in seen["images"])
    assert any("nonisotropic attack" in title for title in seen["sorted"]) == (width == 400)  # else it has one row
    by_perturbation = next(order for title, order in seen["sorted"].items() if title.startswith("perturbation"))
    assert by_perturbation["up"] == sorted(by_perturbation["up"]) and len(by_perturbation["up"]) == 19
    assert by_perturbation["down"] == by_perturbation["up"][::-1]


@needs_browser
def test_numbers_sort_as_numbers(tmp_path: Path) -> None:
    from runners.report.page import Section, html_page
    from runners.report.tables import Table

    table = Table("Numbers", ["value"])
    for value in ("10.5 [9, 12]", "-", "9.1", "-3e2", "0.25"):
        table.add([value], None)
    (tmp_path / "page.html").write_text(html_page("x", "y", [Section("s", [table])]))
    (order,) = look_at(tmp_path / "page.html", 400, tmp_path)["sorted"].values()
    assert order["up"] == ["-3e2", "0.25", "9.1", "10.5 [9, 12]", "-"]
