"""The README's commands are real, and its tables are those of the registries."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from cli.main import main
from datasets.registry import DATASETS
from foundations.results import markdown_table
from models.registry import ARCHITECTURES

README = (Path(__file__).resolve().parent.parent / "README.md").read_text()
COMMANDS = re.findall(r"^(?:python|torchrun .*?) ?nonisotropic\.py ([a-z].*)$", README, re.MULTILINE)


def test_there_are_commands() -> None:
    assert len(COMMANDS) >= 12


@pytest.mark.parametrize("words", COMMANDS)
def test_every_command_describes_a_run(words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*words.replace(" --display_output_location", "").split(), "--display_output_location"]) == 0
    assert capsys.readouterr().out


def test_tables_are_those_of_the_registries() -> None:
    data_sets = [[name, "x".join(map(str, info.shape)), info.summary] for name, info in DATASETS.items()]
    networks = [[family.usage.replace("|", "\\|"), family.summary] for family in ARCHITECTURES.values()]
    for header, rows in (
        (["`--dataset_name`", "images", "content"], data_sets),
        (["`--model_name`", "network"], networks),
    ):
        table = markdown_table(header, rows)
        assert re.sub(r" +|-+", " ", table) in re.sub(r" +|-+", " ", README), f"expected in the README:\n{table}"


def test_pictures_and_files_it_names_are_there() -> None:
    root = Path(__file__).resolve().parent.parent
    for name in re.findall(r"\]\((?!http)([^)]+)\)", README) + re.findall(r"`(\w+/\w+\.py)`", README):
        assert (root / name).is_file(), name


def test_the_example_from_python_runs(capsys: pytest.CaptureFixture[str]) -> None:
    import torch

    from tests.testing.test_gradient_masking import Brightness

    (code,) = [block for block in re.findall(r"```python\n(.*?)```", README, re.DOTALL) if "robust_accuracy" in block]
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(4, 1, 4, 4, generator=generator) * 0.2 + 0.3
    known = {
        "train_images": (torch.rand(8, 1, 4, 4, generator=generator) * 255).byte(),
        "train_labels": torch.arange(8) % 2,
        "model": Brightness(),
        "x": x,
        "y": torch.zeros(4, dtype=torch.long),
        "perturbed": x + 0.01,
    }
    exec(code, known)
    assert capsys.readouterr().out.startswith("1.0\n1.0 ")
