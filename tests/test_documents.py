"""The commands of README and guides are real, their links lead somewhere, and tables are those of the registries."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from cli.main import main
from cli.runner_registry import RUNNERS
from datasets.registry import DATASETS, load_dataset
from foundations.errors import RunError, UsageError
from foundations.program import COMMAND
from foundations.results import markdown_table
from models.registry import ARCHITECTURES

PROJECT = Path(__file__).resolve().parent.parent
DOCUMENTS = {file: file.read_text() for file in (PROJECT / "README.md", *sorted((PROJECT / "docs").glob("*.md")))}
ALL = "\n".join(DOCUMENTS.values())
COMMANDS = dict.fromkeys(
    re.findall(r"^(?:srun )?(?:python|torchrun .*?) ?nonisotropic\.py ([a-z].*)$", ALL, re.MULTILINE)
)


def code_of(document: str) -> list[str]:
    """The blocks of Python of a document."""
    return re.findall(r"```python\n(.*?)```", DOCUMENTS[PROJECT / document], re.DOTALL)


def test_there_are_commands_and_all_runners_among_those_of_the_readme() -> None:
    assert len(COMMANDS) >= 50
    readme = DOCUMENTS[PROJECT / "README.md"]
    assert all(f"nonisotropic.py {runner} " in readme for runner in RUNNERS)
    assert readme.count("\n") <= 80  # a screen and a half


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
        assert re.sub(r" +|-+", " ", table) in re.sub(r" +|-+", " ", ALL), f"expected in the documents:\n{table}"


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda file: file.name)
def test_links_and_files_it_names_are_there(document: Path) -> None:
    text = DOCUMENTS[document]
    for link in re.findall(r"\]\((?!http)([^)]+)\)", text):
        file, _, heading = link.partition("#")
        target = document.parent / file if file else document
        assert target.is_file(), link
        headings = re.findall(r"^#+ (.*)$", target.read_text(), re.MULTILINE) if heading else []
        assert not heading or heading in {re.sub(r"\W+", "-", words.lower()).strip("-") for words in headings}, link
    for name in re.findall(r"`((?:\w+/)+\w+\.py)`", text):
        assert (PROJECT / name).is_file(), name


def test_the_example_from_python_runs(capsys: pytest.CaptureFixture[str]) -> None:
    import torch

    from tests.testing.test_gradient_masking import Brightness

    (code,) = [block for block in code_of("docs/extending.md") if "robust_accuracy" in block]
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(1, 1, 4, 4, generator=generator) * 0.2 + 0.3
    known = {
        "train_images": (torch.rand(2, 1, 4, 4, generator=generator) * 255).byte(),
        "train_labels": torch.arange(2),
        "model": Brightness(),
        "x": x,
        "y": torch.zeros(1, dtype=torch.long),
        "perturbed": x + 0.01,
    }
    exec(code, known)
    assert capsys.readouterr().out.startswith("1.0\n1.0 ")


def test_the_example_of_a_threat_is_one_by_name_and_another_than_a_norm_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It ended in an AttributeError where training asked for the size of its steps."""
    import torch

    from testing.robust_accuracy import robust_accuracy
    from tests.testing.test_gradient_masking import Brightness
    from threat_specification import registry

    (code,) = [block for block in code_of("docs/extending.md") if "class Half" in block]
    known: dict[str, Any] = {}
    exec(code, known)
    monkeypatch.setattr(registry, "load_object", lambda name: known["Half"])
    threat = registry.norm("Linf")
    assert type(threat) is known["Half"] and threat.usual_change(0.02, 64) == 0.04
    x, y = torch.full((3, 1, 4, 4), 0.7 - 0.05), torch.zeros(3, dtype=torch.long)
    found = [robust_accuracy(Brightness(), x, y, threat, level, attacks=["apgd_ce"]) for level in (0.02, 0.03)]
    assert found == [1.0, 0.0]
    monkeypatch.setattr(registry, "load_object", lambda name: type("Other", (), {}))
    with pytest.raises(UsageError, match=r"expected a class derived from threat_specification.norms.Norm.*got Other"):
        registry.norm("Linf")


def test_the_example_by_the_name_of_a_data_set_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    from threat_specification import ProjectedDisplacement

    (code,) = [block for block in code_of("docs/extending.md") if "Displacement.of(" in block]
    monkeypatch.setenv("NONISOTROPIC_HOME", str(tmp_path))
    words = ["compute_threat", "--dataset_name=mnist_5k", "--quiet"]
    with pytest.raises(RunError, match=f"make them: {COMMAND} compute_threat --dataset_name=mnist_5k,"):
        ProjectedDisplacement.of("mnist_5k")
    assert main(words) == 0
    x = load_dataset("mnist_5k").test.pixels(slice(0, 4))
    known = {"x": x, "y": load_dataset("mnist_5k").test.labels[:4], "perturbed": 1 - x}
    exec(code, known)
    assert bool((known["left"] <= 0.1 * (1 + 1e-6)).all()) and bool((known["threats"] > 0.1).all())
    assert torch.equal(known["left"], known["threat"].evaluate(x, known["y"], known["projected"]))
    nearest, scaled = ((known[name] - known["perturbed"]).flatten(1).norm(dim=1) for name in ("projected", "lazily"))
    assert bool((nearest < scaled).all())
    (run,) = (tmp_path / "runs/mnist_5k/compute_threat").glob("*/replicate_1")
    by_path = ProjectedDisplacement.of(str(run))
    assert by_path.anchors is not None and by_path.anchors.digest == known["threat"].anchors.digest
    with pytest.raises(RunError, match="--class_weights=FILE"):
        ProjectedDisplacement.of("mnist_5k", weighted=True)
    assert main([*words, "--class_weights=tree:docs/digits_tree.txt"]) == 0
    weighted = ProjectedDisplacement.of("mnist_5k", weighted=True)
    assert bool((weighted(x, known["y"], 1 - x) >= known["threats"]).all())
    assert ProjectedDisplacement.of("mnist_5k").anchors.digest == by_path.anchors.digest


def test_the_file_of_flags_that_is_shown_is_the_one_that_commands_read() -> None:
    shown = re.findall(r"```toml\n(.*?)```", DOCUMENTS[PROJECT / "docs/runs.md"], re.DOTALL)
    assert shown == [(PROJECT / "docs/experiment.toml").read_text()]
