"""A site of claims by the command: figures are those of the files, whatever people call their models and themselves."""

from __future__ import annotations

import base64
import copy
import io
import json
import random
import re
import shutil
from html import escape
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy
import pytest
from PIL import Image

from cli.main import main
from datasets.registry import load_dataset
from testing.claims.claim import ITSELF, STANDING, Claim, merged, settled
from testing.claims.judging import described
from tests.browser import CHROMIUM, look_at
from tests.conftest import Command
from tests.tampering import another_label, changes_undone, false_claim

QUICK = ["--per_label=10", "--num_examples=10", "--N_attack_iter=8", "--attacks=pgd", "--N_adv_eval"]
QUICK += ["--N_threshold=0.1", "--N_radius=51/255", "--N_thresholds=0.02"]
QUICK += ["--corruption_eval", "--corruption_suites=quick", "--corruption_severities=3", "--certify"]
HOSTILE = "<script>alert(1)</script>\"'&|`#{}: [x](javascript:alert(1)) www.example.org https://example.org"
AUTHOR = "../../<img src=x onerror=alert(1)>" + "W" * 300


class Page(HTMLParser):
    """The tables of a page as texts, its pictures, and the elements and attributes that it is made of."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tables: list[list[list[str]]] = []
        self.tags: list[str] = []
        self.given: set[str] = set()
        self.links: list[str] = []
        self.pictures: list[str] = []
        self.in_cell = False
        self.feed(path.read_text())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.tags.append(tag)
        self.given |= set(given)
        self.links += [str(given["href"])] if tag == "a" else []
        self.pictures += [str(given["src"])] if tag == "img" else []
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")
            self.in_cell = True

    def handle_endtag(self, tag: str) -> None:
        self.in_cell = self.in_cell and tag not in ("td", "th")

    def handle_data(self, data: str) -> None:
        if self.in_cell:
            self.tables[-1][-1][-1] += data


def renamed(claim: Claim, name: str, author: str) -> Claim:
    """The claim under other names."""
    claim = copy.deepcopy(claim)
    claim.facts["authors"] = [author]
    claim.facts["runs"] = [{**run, "author": author, "command": name} for run in claim.facts["runs"]]
    claim.facts["model"] |= {"name": name, "obtain": name}
    return claim


def weaker(claim: Claim) -> Claim:
    """A claim about another model, of which nothing is known that breaks an image in any set but itself."""
    claim = renamed(claim, "other", "B")
    claim.facts["model"]["sha256"] = "1" * 64
    by_points = claim.arrays["witness"] > ITSELF
    claim.arrays["witness"][by_points], claim.arrays["found_by"][by_points] = STANDING, 0
    return claim


def about_unknown_images(claim: Claim) -> Claim:
    claim = renamed(claim, HOSTILE, AUTHOR)
    claim.facts["data"] |= {"sha256": "0" * 64, "description": {"dataset_name": HOSTILE}}
    return claim


@pytest.fixture(scope="module")
def home(digits_root: Command) -> Command:
    """A claim that is verified, a weaker one about the same images, and a hostile one."""
    words, folder = (
        ["--dataset_name=digits", "--model_name=conv", "--training_steps=3ep", *QUICK],
        digits_root.root / "claims",
    )
    digits_root.ok("test", *words, "--save_adversarials")
    for made in (["bundle", *words, "--author=A", f"--output={folder}/A.zip"], ["verify", f"{folder}/A.zip"]):
        done = digits_root(*made)
        assert done.returncode == 0, done.stderr
    claim = Claim.read(folder / "A.zip")
    (folder / "more").mkdir()
    for name, change in (("B", weaker), ("more/hostile", about_unknown_images)):
        (folder / f"{name}.zip").write_bytes(merged([settled(change(claim))]).to_bytes())
    shutil.copy(folder / "A.zip", folder / "again.zip")
    return digits_root


@pytest.fixture(scope="module")
def site(home: Command) -> Path:
    done = home("report", f"--site={home.root}/site")
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"site of 3 claims in 2 tables, 1 verified here\n{home.root}/site/index.html\n"
    return home.root / "site"


@pytest.fixture(scope="module")
def told(site: Path) -> dict[str, Any]:
    return json.loads((site / "leaderboard.json").read_text())


def ours(told: dict[str, Any]) -> dict[str, Any]:
    (table,) = [table for table in told["tables"] if table["dataset"] == "digits"]
    return table


def test_figures_are_those_of_the_files(home: Command, told: dict[str, Any]) -> None:
    assert told["format"] == "nonisotropic leaderboard" and told["version"] == 3
    rows = {row["authors"][0]: row for row in ours(told)["rows"]}
    for author, verified in (("A", True), ("B", False)):
        claim, row = Claim.read(home.root / f"claims/{author}.zip"), rows[author]
        assert row["claim_sha256"] == claim.digest and row["images"] == 10
        assert row["accuracy_at_most"] == [
            1 - claim.broken(place).mean() for place in range(len(claim.facts["claims"]))
        ]
        assert row["clean_at_most"] == 1 - (claim.arrays["witness"][0] == ITSELF).mean()
        assert ours(told)["sets"][0]["name"] == described(claim.facts["claims"][0])
        assert row["verified_here"] == verified and (row["doubtful"] is not None) == verified
    (record,) = (home.root / "verified").glob("*/result.json")
    assert rows["A"]["record"] == f"verified/{record.parent.name}"
    assert rows["A"]["doubtful"] == json.loads(record.read_text())["doubtful"]
    means = [sum(row["accuracy_at_most"]) for row in ours(told)["rows"]]
    assert means == sorted(means, reverse=True) and means[0] > means[1]


def test_the_page_shows_what_the_json_says(site: Path, told: dict[str, Any]) -> None:
    page = Page(site / "index.html")
    assert len(page.tables) == len(told["tables"]) == 2
    assert re.findall(r'h2 id="([^"]*)"', (site / "index.html").read_text()) == ["table-1", "table-2", "enter"]
    for table, shown in zip(told["tables"], page.tables, strict=True):
        assert len(shown) == 1 + len(table["rows"])
        assert [head for head in shown[0] if head.startswith("at most in")] == [
            f"at most in {each['name']}" for each in table["sets"]
        ]
        for row, (rank, *cells) in zip(table["rows"], shown[1:], strict=True):
            assert rank == str(row["rank"] or "-")
            assert cells[0].startswith(row["model"][:50]) and row["weights_sha256"][:8] in cells[0]
            figures = [f"{value:.4f}" for value in (row["clean_at_most"], *row["accuracy_at_most"])]
            verified = [f"yes: {row['record']}", str(sum(row["doubtful"]))] if row["verified_here"] else ["no", "-"]
            told_of = [f"{share:.4f}" for share in row["told_certified"] if share is not None]
            told_of += [f"{share:.4f}" for share in row["told_corruptions"].values()]
            told_of += [f"{row['told_passes']:.0f}", f"{row['told_seconds']:.0f}"]
            assert cells[1:-3] == [*figures, *told_of] and cells[-2:] == verified
            assert cells[-3].startswith(row["authors"][0][:50])
            assert {row["page"], "leaderboard.json"} <= set(page.links) and (site / row["card"]).is_file()


def test_what_is_told_is_that_of_the_run(home: Command, told: dict[str, Any]) -> None:
    (run,) = (home.root / "runs/digits/test").glob("conv_*/replicate_1/result.json")
    result = json.loads(run.read_text())
    for row in ours(told)["rows"]:
        assert row["told_corruptions"] == {"quick, severities 3": result["corruption"]["accuracy"]}
        assert row["told_passes"] == sum(result["N_adv"]["passes"].values()) > 20
        assert row["told_seconds"] == result["wall_seconds"] > 0
        names = [each["name"] for each in ours(told)["sets"]]
        certified = dict(zip(names, row["told_certified"], strict=True))
        assert certified == {names[0]: None, names[1]: result["certified"]["accuracy"]} and "0.1, " in names[1]


def test_a_refuted_claim_is_shown_as_refuted(home: Command, tmp_path: Path) -> None:
    """A record of a claim that did not hold takes the place of one that verified it, and the entry stands last."""
    (weights,) = (home.root / "runs/digits/train").glob("conv_*/replicate_1/model.safetensors")
    false = tmp_path / "false.zip"
    false.write_bytes(false_claim(changes_undone)((home.root / "claims/A.zip").read_bytes(), random.Random(0)))
    words = ["verify", str(false), f"--train_dir={weights.parent}", f"--root_dir={tmp_path}", "--quiet"]
    assert main(words) == 1
    (kept,) = (tmp_path / "verified").glob("false_*/refuted.json")
    assert main(["report", f"--site={tmp_path}/site", f"--claims={home.root}/claims/B.zip,{false}", *words[-2:]]) == 0
    (table,) = json.loads((tmp_path / "site/leaderboard.json").read_text())["tables"]
    last = table["rows"][-1]
    assert last["claim_sha256"] == Claim.read(false).digest and [row["refuted_here"] for row in table["rows"]] == [0, 1]
    assert not last["verified_here"] and last["doubtful"] is None
    (shown,) = Page(tmp_path / "site/index.html").tables
    assert shown[-1][-2] == f"refuted: verified/{kept.parent.name}"
    (reason, *_) = json.loads(kept.read_text())["refuted"]
    assert escape(f"refuted: {reason}") in (tmp_path / "site" / last["page"]).read_text()


def test_a_claim_of_other_labels_than_it_says_is_refuted(home: Command, tmp_path: Path) -> None:
    """Every image would be wrong as it is: by its own digest they are the labels that are here, and it lies."""
    (weights,) = (home.root / "runs/digits/train").glob("conv_*/replicate_1/model.safetensors")
    false = tmp_path / "false.zip"
    false.write_bytes(false_claim(another_label)((home.root / "claims/A.zip").read_bytes(), random.Random(0)))
    for words in ([], ["verify", str(false), f"--train_dir={weights.parent}"]):  # by the page alone; by verify first
        assert not words or main([*words, f"--root_dir={tmp_path}", "--quiet"]) == 1
        assert bool(list((tmp_path / "verified").glob("false_*/refuted.json"))) == bool(words)
        asked = [f"--site={tmp_path}/site", f"--claims={home.root}/claims/B.zip,{false}", f"--root_dir={tmp_path}"]
        assert main(["report", *asked, "--quiet"]) == 0
        (table,) = json.loads((tmp_path / "site/leaderboard.json").read_text())["tables"]
        assert [(row["refuted_here"], row["rank"]) for row in table["rows"]] == [(False, 1), (True, None)]


def test_a_verified_claim_stands_under_the_name_that_was_found(home: Command, tmp_path: Path) -> None:
    """Nothing in a file ties a name to its weights: it was shown as verified whatever it was."""
    (weights,) = (home.root / "runs/digits/train").glob("conv_*/replicate_1/model.safetensors")
    spoofed, claim = tmp_path / "spoofed.zip", Claim.read(home.root / "claims/A.zip")
    claim.facts["model"] |= {"name": "TRADES-70-16", "description": {"model_name": "wideresnet"}}
    spoofed.write_bytes(claim.to_bytes())
    root, asked = [f"--root_dir={tmp_path}", "--quiet"], ["report", f"--site={tmp_path}/site"]
    for checked, name in ((False, "TRADES-70-16"), (True, "conv_standard")):
        assert not checked or main(["verify", str(spoofed), f"--train_dir={weights.parent}", *root]) == 0
        assert main([*asked, f"--claims={spoofed}", *root]) == 0
        (table,) = json.loads((tmp_path / "site/leaderboard.json").read_text())["tables"]
        (row,) = table["rows"]
        assert (row["model"], row["told_model"], row["model_found_here"]) == (name, "TRADES-70-16", checked)
        assert row["network"] == ("conv" if checked else "wideresnet") and row["page"].startswith(name)
        (shown,) = Page(tmp_path / "site/index.html").tables
        assert shown[1][1] == f"{name}{'' if checked else ', told'} ({row['weights_sha256'][:8]})"
        page, card = ((tmp_path / "site" / row[kind]).read_text() for kind in ("page", "card"))
        assert f"<dt>model, {'found here as' if checked else 'told'}</dt><dd>{name}</dd>" in page
        assert "<dt>model, told</dt><dd>TRADES-70-16</dd>" in page
        assert f"model_name_is_told: {str(not checked).lower()}" in card
    (kept,) = (tmp_path / "verified").glob("spoofed_*/result.json")
    result = json.loads(kept.read_text())
    assert result["found_as"] == {"name": "conv_standard", "network": "conv"}
    assert result["about"].startswith("conv_standard (the file says model TRADES-70-16, network wideresnet), weights ")


def test_pictures_are_those_of_the_claim(home: Command, site: Path, told: dict[str, Any]) -> None:
    (row,) = [row for row in ours(told)["rows"] if row["authors"] == ["A"]]
    page, arrays = Page(site / row["page"]), Claim.read(home.root / "claims/A.zip").arrays
    assert 3 <= len(page.pictures) == 3 * min(12, len(set(arrays["owner"].tolist())))
    clean, changed, larger = (
        numpy.asarray(Image.open(io.BytesIO(base64.b64decode(source.partition(",")[2])))).astype(int)
        for source in page.pictures[:3]
    )
    image = load_dataset("digits").test.images[int(arrays["index"][arrays["owner"][0]])][0].numpy()
    delta = arrays["delta"][0][0].astype(int)
    assert numpy.array_equal(clean, image) and numpy.array_equal(changed - clean, delta)
    assert numpy.abs((larger - 128) * numpy.abs(delta).max() / 127 - delta).max() <= 0.5
    (other,) = [row for row in ours(told)["rows"] if row["authors"] == ["B"]]
    assert "No pictures: this claim has no changed images" in (site / other["page"]).read_text()
    curve = [cells for table in page.tables for cells in table if cells[0] in ("0.02", "0.1")]
    assert [float(cells[1]) for cells in curve] == sorted((float(cells[1]) for cells in curve), reverse=True) != []


def test_hostile_names_are_only_text(site: Path, told: dict[str, Any]) -> None:
    """They make no element, no attribute, no address and no file elsewhere."""
    (table,) = [table for table in told["tables"] if table["dataset"] != "digits"]
    (row,) = table["rows"]
    assert (row["model"], row["authors"]) == (HOSTILE, [AUTHOR])
    assert {path.name for path in site.iterdir()} == {"index.html", "leaderboard.json"} | {
        row[name] for table in told["tables"] for row in table["rows"] for name in ("page", "card")
    }
    for name in ("index.html", row["page"]):
        page, text = Page(site / name), (site / name).read_text()
        assert page.tags.count("script") == 1 and not page.given & {"onerror", "onclick", "onload"}
        assert not page.pictures and not any(":" in link or ".." in link for link in page.links)
        assert 'src="http' not in text and str(site.parent) not in text
    assert "No pictures: the data set" in (site / row["page"]).read_text()
    body = re.sub(r"\\.", "", (site / row["card"]).read_text().split("---\n", 2)[2])  # without what is escaped
    assert "javascript" in body and not re.search(r"[<\[`&@]|https?:|www\.", body)


def test_cards_are_read_by_the_hub(home: Command, site: Path, told: dict[str, Any]) -> None:
    yaml = pytest.importorskip("yaml")
    for table in told["tables"]:
        for row in table["rows"]:
            text = (site / row["card"]).read_text()
            (model,) = yaml.safe_load(text.split("---\n", 2)[1])["model-index"]
            (result,) = model["results"]
            assert model["name"] == row["model"] and result["task"]["type"] == "image-classification"
            assert result["dataset"]["type"] == table["dataset"] and result["source"]["url"] == row["page"]
            assert [metric["value"] for metric in result["metrics"]] == [row["clean_at_most"], *row["accuracy_at_most"]]
            assert not any(metric["verified"] for metric in result["metrics"])
            assert result["metrics"][0]["args"]["verified_by_forward_passes"] == row["verified_here"]
            hub = pytest.importorskip("huggingface_hub")
            assert len(hub.ModelCard(text).data.eval_results) == len(result["metrics"])


def test_the_same_bytes_in_any_order(home: Command, site: Path) -> None:
    files = [f"{home.root}/claims/{name}.zip" for name in ("B", "more/hostile", "A")]
    other = home.root / "other"
    assert home("report", f"--site={other}", f"--claims={','.join(files)}").returncode == 0
    assert {path.name: path.read_bytes() for path in site.iterdir()} == {
        path.name: path.read_bytes() for path in other.iterdir()
    }


def test_an_edited_record_verifies_nothing(home: Command, tmp_path: Path) -> None:
    (record,) = (home.root / "verified").glob("*/result.json")
    edited = tmp_path / "verified" / record.parent.name / "result.json"
    edited.parent.mkdir(parents=True)
    edited.write_text(record.read_text().replace('"doubtful"', '"doubtfuls"'))
    site = tmp_path / "site"
    words = ["report", f"--site={site}", f"--claims={home.root}/claims/A.zip", f"--root_dir={tmp_path}", "--quiet"]
    assert main([*words, "--site_url=https://example.org/site/"]) == 0
    (table,) = json.loads((site / "leaderboard.json").read_text())["tables"]
    assert not table["rows"][0]["verified_here"]
    assert (
        f'url: "https://example.org/site/{table["rows"][0]["page"]}"' in (site / table["rows"][0]["card"]).read_text()
    )


def test_mistakes_are_told(home: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "damaged.zip").write_bytes((home.root / "claims/A.zip").read_bytes()[:-1])
    site, damaged = f"--site={tmp_path}/site", f"--claims={home.root}/claims/A.zip,{tmp_path}/damaged.zip"
    for code, words, expected in (
        (1, [site], "expected claims (*.zip) below"),
        (1, [site, damaged], "damaged.zip is refused: "),
        (2, [site, "--claims=none.zip"], "cannot read none.zip"),
        (2, ["--claims=a.zip"], "expected --site=DIR too"),
        (2, [site, "--dataset_name=digits"], "expected neither --human_kit nor --dataset_name"),
        (2, [site, "--site_url=example.org"], "expected an address that begins with https://, got 'example.org'"),
    ):
        assert main(["report", *words, f"--root_dir={tmp_path}", "--quiet"]) == code
        line = capsys.readouterr().err
        assert expected in line and line.count("\n") == 1
    assert not (tmp_path / "site").exists()


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine")
@pytest.mark.parametrize("width", [400, 1200])
def test_looks_right_in_a_browser(site: Path, told: dict[str, Any], width: int, tmp_path: Path) -> None:
    (hostile,) = [table for table in told["tables"] if table["dataset"] != "digits"]
    for name in ("index.html", ours(told)["rows"][0]["page"], hostile["rows"][0]["page"]):
        seen = look_at(site / name, width, tmp_path)
        assert seen["scroll"] <= seen["width"] and not seen["errors"] and not seen["console"], name
        assert seen["cut"] == [] and all(seen["images"])
        for table in seen["sorted"].values():
            assert table["down"] == table["up"][::-1] or len(set(table["up"])) < len(table["up"])
        assert not seen["images"] or (seen["zoomed"] and seen["closed"])
