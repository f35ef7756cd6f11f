"""test --audit and --foreign_attacks by the command; the table, checked from the files alone."""

from __future__ import annotations

import re
from pathlib import Path

import numpy
import pytest

from cli.main import main
from tests.conftest import Command
from tests.runners.test_exact import MODEL, SET

MINE = """
def dark(model, images, labels, allowed):
    return images * 0.5
"""
TEST = ["test", *MODEL, *SET, "--attacks=random_search", "--N_attack_iter=1"]


def test_audit_beside_the_exact_answer(digits_root: Command, tmp_path: Path) -> None:
    digits_root.ok("train", *MODEL)
    (tmp_path / "mine.py").write_text(MINE)
    mine = f"--foreign_attacks=dark@{tmp_path / 'mine.py'}"
    words = [*TEST, mine, "--audit", "--audit_attacks=apgd_ce", "--exact_eval", "--N_thresholds=0.05,0.2"]
    result, made = digits_root.result(*words), digits_root.where(*words)
    found, rows = result["audit"], dict(numpy.load(made / "examples.npz"))
    names = ["random_search", "dark", "apgd_ce"]
    assert list(found["attacks"]) == names and list(result["N_adv"]["attacks"]) == names[:2]
    broken = rows["audit_broken"].reshape(24, 3, 3)  # three thresholds with the headline's radius
    assert [cell["threshold"] for cell in found["cells"]] == [0.05, 0.1, 0.2]
    right = rows["N_adv_clean_prediction"] == rows["label"]
    assert (rows["audit_right"] == right).all()
    exact = pytest.approx(1 - rows["exact_broken"].mean())
    assert found["is_exact"] and found["best"] == exact and result["exact"]["upper"] == exact
    for number, name in enumerate(names):
        of, alone = found["attacks"][name], (right & ~broken[:, number, 1]).mean()
        assert of["accuracy"] == alone and of["above_best"] == pytest.approx(alone - found["best"])
        assert 0 <= of["optimality"] <= 1 and of["member"] == (name != "apgd_ce")
    # The ensemble in the order of its members is the evaluation itself, but that the latter counts what it finds in
    # another set, attacked later, in every set that holds it.
    only = ~right | broken[:, :2, 1].any(1)
    assert found["in_turn"]["ensemble"][-1]["accuracy"] == (~only).mean() > found["best"]
    later = rows["N_adv_correct"] == ~only
    assert later.sum() >= 23 and not (rows["N_adv_correct"] & only).any() and broken[~later, :2].any((1, 2)).all()
    assert found["in_turn"]["by_gain"][-1]["accuracy"] == (right & ~broken[:, :, 1].any(1)).mean()
    told = digits_root(*words).stdout
    assert "| above the exact answer |" in told and re.search(r"apgd_ce +\| - ", told)
    assert (made / "audit.png").is_file()
    wrong = digits_root(*TEST, "--audit", "--audit_attacks=apdg")
    assert wrong.returncode == 2 and "unknown attack 'apdg'" in wrong.stderr
    page = digits_root.ok("report", "--dataset_name=digits")
    assert "Audit of the attacks on" in next(page.rglob("*.html")).read_text()


def test_the_file_of_foreign_attacks_enters_the_hash(digits_root: Command, tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    places = []
    for text in (MINE, MINE.replace("0.5", "0.4"), MINE):
        file.write_text(text)
        places.append(digits_root.where(*TEST, f"--foreign_attacks=dark@{file}"))
    assert places[0] == places[2] != places[1] and digits_root.where(*TEST) not in places
    assert digits_root.where(*TEST, "--audit") != digits_root.where(*TEST)
    assert digits_root.where(*TEST, "--audit_attacks=apgd_ce") == digits_root.where(*TEST)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ([*TEST, "--foreign_attacks=dark"], "--foreign_attacks: expected NAME,NAME@FILE.py, got dark"),
        ([*TEST, "--foreign_attacks=dark@/no/such.py"], "--foreign_attacks: cannot read /no/such.py"),
        (["test", *MODEL, "--standard_eval", "--audit"], "--audit: expected --N_adv_eval too"),
        (["test", *MODEL, "--audit"], "--audit: expected --N_adv_eval too"),
        (
            ["test", *MODEL, "--N_adv_eval", "--attacks=pgd,apgd_ce,pgd"],
            "expected each attack once, got pgd 2 times",
        ),
        (
            ["test", *MODEL, "--N_adv_eval", "--audit", "--audit_attacks=apgd_pm,apgd_pm"],
            "--audit_attacks: expected each attack once, got apgd_pm 2 times",
        ),
        (["test", *MODEL, "--standard_eval", "--foreign_attacks=a@b.py"], "--foreign_attacks: expected --N_adv_eval"),
    ],
)
def test_wrong_flags(words: list[str], told: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 2
    assert told in capsys.readouterr().err
