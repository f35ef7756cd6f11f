"""The zoo: names and figures as the installed library has them, models from files that are there."""

from __future__ import annotations

import subprocess
import sys
import warnings
from pathlib import Path
from types import ModuleType

import pytest
import torch

from datasets.registry import dataset_info
from foundations.errors import RunError
from foundations.program import COMMAND
from foundations.third_party import names_for_robustbench
from models import robustbench
from models.robustbench import load_zoo_model, zoo_library
from models.robustbench_registry import LEADING, THREAT_MODELS, selection, zoo, zoo_datasets, zoo_model

PROJECT = Path(__file__).resolve().parents[2]


def test_names_and_files_are_those_of_the_library() -> None:
    library = zoo_library()
    for dataset_name in zoo_datasets():
        theirs = library.all_models[library.BenchmarkDataset(dataset_name)]
        for threat_model in THREAT_MODELS:
            entries = theirs.get(library.ThreatModel(threat_model), {})
            models = zoo(dataset_name, threat_model)
            assert list(models) == list(entries)
            for name, entry in entries.items():
                drive = entry["gdrive_id"]
                assert models[name].is_ensemble == isinstance(drive, list)
                assert models[name].files == (tuple(drive) if isinstance(drive, list) else (drive,) if drive else ())
                assert models[name].preprocessing == entry.get("preprocessing")
    counts = {(d, t): len(zoo(d, t)) for d in zoo_datasets() for t in THREAT_MODELS}
    assert counts["cifar10", "Linf"] == 76 and counts["imagenet", "corruptions"] == 12 and sum(counts.values()) == 206


def test_published_accuracies_stand_beside_them() -> None:
    fast = zoo_model("cifar10", "Linf", "Wong2020Fast")
    assert (fast.clean, fast.robust) == (pytest.approx(0.8334), pytest.approx(0.4321))
    engstrom = zoo_model("cifar10", "L2", "Engstrom2019Robustness")
    assert (engstrom.clean, engstrom.robust) == (pytest.approx(0.9083), pytest.approx(0.6924))
    for dataset_name in zoo_datasets():
        for threat_model in THREAT_MODELS:
            for model in zoo(dataset_name, threat_model).values():
                assert model.clean is not None and model.robust is not None
                assert 0 <= model.robust <= model.clean <= 1


def test_the_short_selection_has_leaders_and_small_ones() -> None:
    for dataset_name in zoo_datasets():
        for threat_model in THREAT_MODELS:
            known = zoo(dataset_name, threat_model)
            if known:
                chosen = selection(dataset_name, threat_model)
                assert len(chosen) == LEADING + 2 == len(set(chosen))
                assert set(chosen) <= known.keys()
                best = max(known.values(), key=lambda model: model.robust or 0)
                assert chosen[0] == best.name


def test_the_registry_imports_neither_torch_nor_robustbench() -> None:
    code = f"import sys; from {zoo.__module__} import zoo; zoo('cifar10', 'Linf')\n"
    code += "sys.exit(bool({'torch', 'robustbench', 'timm'} & sys.modules.keys()))"
    assert subprocess.run([sys.executable, "-c", code], cwd=PROJECT).returncode == 0


def test_problems_of_import_are_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    class Refuses:
        def find_spec(self, name: str, path: object = None, target: object = None) -> None:
            if name == "robustbench.utils":
                raise ModuleNotFoundError("No module named 'gdown'", name="gdown")

    monkeypatch.delitem(sys.modules, "robustbench.utils", raising=False)
    monkeypatch.setattr(sys, "meta_path", [Refuses(), *sys.meta_path])
    with pytest.raises(RunError, match=r"No module named 'gdown'\): pip install 'robustbench>="):
        robustbench.zoo_library()


WITHOUT = """
import importlib.util, sys
known = importlib.util.find_spec
class Hides:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("pkg_resources", "autoattack"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
def find_spec(name, package=None):
    return None if name in ("pkg_resources", "autoattack") else known(name, package)
importlib.util.find_spec = find_spec
sys.meta_path.insert(0, Hides())
import nonisotropic
theirs = nonisotropic.import_robustbench()
import robustbench, robustbench.loaders
assert theirs is robustbench and robustbench.load_model and robustbench.benchmark
assert not {"pkg_resources", "autoattack", "autoattack.state"} & sys.modules.keys()
name = robustbench.loaders.pkg_resources.resource_filename("robustbench.loaders", "helper_files/x.txt")
print(name == robustbench.__file__.replace("__init__.py", "helper_files/x.txt"))
"""


def test_robustbench_needs_neither_old_setuptools_nor_another_name_of_autoattack() -> None:
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", WITHOUT], cwd=PROJECT, capture_output=True, text=True)
    assert (done.stdout, done.returncode) == ("True\n", 0), done.stderr


def test_what_is_installed_is_not_stood_in_for(monkeypatch: pytest.MonkeyPatch) -> None:
    theirs = {name: ModuleType(name) for name in ("pkg_resources", "autoattack")}
    for name, module in theirs.items():
        monkeypatch.setitem(sys.modules, name, module)
    with names_for_robustbench():
        assert all(sys.modules[name] is module for name, module in theirs.items())
    assert all(sys.modules[name] is module for name, module in theirs.items())


@pytest.mark.parametrize(
    ("dataset_name", "name"),
    [("cifar10", "Wong2020Fast"), ("cifar100", "Rice2020Overfitting"), ("imagenet", "Salman2020Do_R18")],
)
def test_models_load_from_the_librarys_own_places(dataset_name: str, name: str, tmp_path: Path) -> None:
    library = zoo_library()
    model = zoo_model(dataset_name, "Linf", name)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = library.all_models[library.BenchmarkDataset(dataset_name)][library.ThreatModel.Linf][name]["model"]()
    (path,) = model.paths(tmp_path)
    assert path == tmp_path / dataset_name / "Linf" / f"{name}.pt"
    path.parent.mkdir(parents=True)
    weights = made.state_dict()
    if dataset_name == "imagenet":  # its checkpoints lack the wrapper that normalises
        weights = {key.removeprefix("model."): value for key, value in weights.items() if key.startswith("model.")}
    torch.save(weights, path)
    info = dataset_info(dataset_name)
    classifier = load_zoo_model(model, info, tmp_path)
    images = torch.rand(1, 3, 32, 32)
    with torch.no_grad():
        assert classifier(images).equal(made.eval()(images))
    assert classifier(images).shape == (1, info.num_classes)


def test_what_is_not_there_names_the_command(tmp_path: Path) -> None:
    model = zoo_model("cifar10", "L2", "Rice2020Overfitting")
    command = "download_pretrained --dataset_name=cifar10 --threat_model=L2 --names=Rice2020Overfitting"
    with pytest.raises(RunError, match=f"it is not there; first run: {COMMAND} {command}"):
        load_zoo_model(model, dataset_info("cifar10"), tmp_path)
    (path,) = model.paths(tmp_path)
    path.parent.mkdir(parents=True)
    path.write_text("<!DOCTYPE html><html>Google Drive - Quota exceeded</html>")
    with pytest.raises(RunError, match="it is a web page, not weights"):
        load_zoo_model(model, dataset_info("cifar10"), tmp_path)
