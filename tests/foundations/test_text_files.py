"""Text that people write with whatever editor, and paths as they write them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from foundations.errors import UsageError
from foundations.hparam_fields import split_kind, whole_path
from foundations.input_hparams import DatasetHparams, ModelHparams, ThreatHparams
from foundations.text_files import read_text
from tests.conftest import Command
from tests.fork_server import PROGRAM
from threat_specification.projected_displacement.class_weights import class_weights_from, read_tree

TREE = "cät: animal/pet\ndog: animal/pet\n\n"
NAMES = ["cät", "dog"]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_trees_of_any_editor(tmp_path: Path, encoding: str, end: str) -> None:
    (tmp_path / "tree.txt").write_bytes(TREE.replace("\n", end).encode(encoding))
    assert read_text(tmp_path / "tree.txt") == TREE
    assert read_tree(tmp_path / "tree.txt", NAMES).steps.tolist() == [[0, 2], [2, 0]]


def test_other_text_is_refused_with_its_line(tmp_path: Path) -> None:
    (tmp_path / "tree.txt").write_bytes("dog: pet\ncät: pet\n".encode("latin-1"))
    with pytest.raises(UsageError, match=r"tree.txt: expected text in UTF-8, line 2 is not; save it as UTF-8"):
        read_tree(tmp_path / "tree.txt", NAMES)
    with pytest.raises(UsageError, match=r"cannot read .*: Is a directory"):
        read_tree(tmp_path, NAMES)
    (tmp_path / "tree.txt").write_text("cät: animal\\pet\ndog: animal\\farm\n")
    with pytest.raises(UsageError, match=r"line 1: expected groups divided by /, got"):
        read_tree(tmp_path / "tree.txt", NAMES)


@pytest.mark.parametrize("name", ["weights.csv", "WEIGHTS.CSV", "of:2.csv"])
def test_matrices_of_any_editor_under_any_name(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"\xef\xbb\xbf0,0.5\r\n0.25,0\r\n\r\n")
    weights, _ = class_weights_from(str(tmp_path / name), NAMES)
    assert torch.equal(weights, torch.tensor([[0, 0.5], [0.25, 0]]))
    assert whole_path(str(tmp_path / name)) == str(tmp_path / name)


def test_a_colon_in_a_name_is_no_kind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert split_kind("tree:a.txt") == ("tree", "a.txt") and split_kind("a.txt") == ("", "a.txt")
    (tmp_path / "tree:a.txt").write_text("")
    assert split_kind("tree:a.txt") == ("", "tree:a.txt")
    assert split_kind("sets/tree:a.txt") == ("", "sets/tree:a.txt")


def test_the_home_folder_in_any_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A shell leaves the sign as it is after --flag=."""
    monkeypatch.setenv("HOME", str(tmp_path))
    assert DatasetHparams(dataset_name="digits", data_dir="~/x").data_dir == f"{tmp_path}/x"
    assert ThreatHparams(class_weights="tree:~/t.txt").class_weights == f"tree:{tmp_path}/t.txt"
    source = ModelHparams(model_name="conv", model_type="pretrained", model_source="file:~/m.pt").model_source
    assert source == f"file:{tmp_path}/m.pt"


def test_closed_streams(command: Command) -> None:
    words = f"{sys.executable} {PROGRAM} compute_threat --dataset_name=digits --per_label=2"
    environment = f"NONISOTROPIC_HOME={command.root} OMP_NUM_THREADS=1"
    done = subprocess.run(f"{environment} {words} 2>&- >&-", shell=True, timeout=120)
    assert done.returncode == 0
    assert (command.where("compute_threat", "--dataset_name=digits", "--per_label=2") / "result.json").is_file()
