"""The public surface changes on purpose alone; versions agree; deprecated names go when it was promised."""

from __future__ import annotations

import difflib
import json
import re
from pathlib import Path

import pytest

import nonisotropic
from cli.main import main
from foundations import deprecation
from foundations.deprecation import DEPRECATED, Deprecation
from tests.conftest import PROJECT, Command
from tests.public_surface import FILE, surface

PROMISE = (
    "this is public: if the change is meant, say it in CHANGELOG.md as docs/stability.md asks, and write the file anew "
    "with `python tests/public_surface.py`"
)


def test_the_public_surface_is_the_one_that_was_written_down(command: Command) -> None:
    before, now = FILE.read_text(encoding="utf-8"), surface(command.ok)
    changes = difflib.unified_diff(before.splitlines(), now.splitlines(), "promised", "now", lineterm="", n=0)
    assert before == now, f"{PROMISE}\n" + "\n".join(changes)


def test_whatever_names_a_version_names_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    """results and wheels have it too: tests of runs and of the wheel look there."""
    citation = (PROJECT / "CITATION.cff").read_text(encoding="utf-8")
    archive = json.loads((PROJECT / ".zenodo.json").read_text(encoding="utf-8"))
    newest = re.search(r"^## (\S+)", (PROJECT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert newest is not None
    named = [*re.findall(r"^ *version: (.+)$", citation, re.MULTILINE), archive["version"], newest[1]]
    assert named == [nonisotropic.__version__] * 4
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"nonisotropic {nonisotropic.__version__}\n"


def numbers(version: str) -> tuple[int, ...]:
    return tuple(map(int, re.findall(r"\d+", version)))


def test_what_is_deprecated_is_gone_when_it_was_promised_to_be() -> None:
    for old, entry in DEPRECATED.items():
        assert numbers(entry.gone_in) > numbers(nonisotropic.__version__), f"{old}: remove it, and its entry"


@pytest.fixture
def an_old_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(DEPRECATED, "worst_images", Deprecation("attack", "9.0"))
    monkeypatch.setitem(DEPRECATED, "--examples", Deprecation("--num_examples", "9.0"))
    monkeypatch.setitem(DEPRECATED, "--lr_per", Deprecation("", "9.0"))
    monkeypatch.setattr(deprecation, "_told", set())


@pytest.mark.usefixtures("an_old_name")
def test_an_old_name_is_the_new_one_and_warns_once() -> None:
    with pytest.warns(FutureWarning, match=r"^worst_images is .* gone in version 9\.0; write attack$") as told:
        assert nonisotropic.worst_images is nonisotropic.attack
        assert nonisotropic.worst_images is nonisotropic.attack
    assert [Path(each.filename).name for each in told] == [Path(__file__).name]


@pytest.mark.usefixtures("an_old_name")
@pytest.mark.parametrize("old", [["--examples=7"], ["--examples", "7"]])
def test_an_old_flag_is_the_new_one(old: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    words = ["test", "--dataset_name=digits", "--model_name=conv", "--standard_eval"]
    where = []
    for last in (["--num_examples=7"], old):
        assert main([*words, *last, "--display_output_location", "--root_dir=/r"]) == 0
        where.append(capsys.readouterr().out)
    assert where[0] == where[1]


@pytest.mark.usefixtures("an_old_name")
def test_a_note_says_what_to_write_instead(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["train", "--dataset_name=digits", "--model_name=conv", "--training_steps=0it", f"--root_dir={tmp_path}"]
    assert main([*words, "--lr_per=0"]) == 0
    assert "note: --lr_per is deprecated and gone in version 9.0; nothing takes its place" in capsys.readouterr().err


def test_what_other_programs_import_from_a_checkout() -> None:
    """Names below the packages of this checkout, and arguments by position, that were promised to others."""
    import torch

    from foundations.hparams import AugmentationHparams, ThreatHparams, TrainingHparams
    from threat_specification import L2, AnchorSet, Intersection, Linf, ProjectedDisplacement

    anchors = AnchorSet(torch.rand(4, 1, 4, 4), torch.tensor([0, 0, 1, 1]))
    threat = ProjectedDisplacement(ThreatHparams(num_chunks=2), weighted=False, segmented=False, anchors=anchors)
    both = Intersection([(threat.prepare(num_devices=1), 0.1), (Linf(), 32 / 255), (L2(), 1.0)])
    x, y = torch.rand(2, 1, 4, 4), torch.tensor([0, 1])
    assert float(both.evaluate(x, y, both.project(x, y, torch.rand(2, 1, 4, 4), threshold=1.0)).max()) <= 1 + 1e-5
    assert AugmentationHparams() and TrainingHparams()
