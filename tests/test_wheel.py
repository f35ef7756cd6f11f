"""A wheel installs one package, whose commands write what those of the checkout write, beside packages of others."""

from __future__ import annotations

import ast
import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch

from nonisotropic import __version__
from release.wheel_tests import setup_module_of
from tests.conftest import PROJECT, Command

INFORMATION = f"nonisotropic-{__version__}.dist-info"
OURS = ("cli", "datasets", "foundations", "models", "runners", "testing", "threat_specification", "training")
SOURCES = (*OURS, "nonisotropic.py", "setup.py", "pyproject.toml", "README.md", "LICENSE")


def built(checkout: Path, made: Path, *what: str) -> Path:
    """The output of setup.py for a checkout, without isolation or network; everything is written below `made`."""
    words = ["-q", "egg_info", "-e", str(made), "build", "-b", str(made / "build"), *what, "-d", str(made / "dist")]
    made.mkdir()
    done = subprocess.run([sys.executable, "setup.py", *words], cwd=checkout, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (file,) = (made / "dist").iterdir()
    return file


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of what is installed, since a build writes beside it."""
    copy = tmp_path_factory.mktemp("sources")
    for name in SOURCES:
        if (PROJECT / name).is_dir():
            shutil.copytree(PROJECT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(PROJECT / name, copy)
    (copy / "tests").mkdir()
    (copy / "tests" / "test_a.py").write_text("")
    return copy


@pytest.fixture(scope="module")
def wheel(sources: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return built(sources, tmp_path_factory.mktemp("wheel") / "made", "bdist_wheel")


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder into which a wheel was unpacked, as pip does, by another path, as homes on clusters have."""
    folder = tmp_path_factory.mktemp("installed")
    zipfile.ZipFile(wheel).extractall(folder / "real")
    (folder / "linked").symlink_to(folder / "real")
    return folder / "linked"


@pytest.fixture(scope="module")
def somebodys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of somebody who has modules by all the names that the checkout has: an import of one that the build
    has forgotten to change finds theirs."""
    folder = tmp_path_factory.mktemp("somebody")
    for name in OURS:
        (folder / f"{name}.py").write_text("WHOSE = 'theirs'\n")
    return folder


def run(installed: Path, folder: Path, *words: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Python in a folder, with the wheel before everything that is installed."""
    environment = {**os.environ, "PYTHONPATH": str(installed), "OMP_NUM_THREADS": "1", **variables}
    return subprocess.run([sys.executable, *words], cwd=folder, env=environment, capture_output=True, text=True)


def files_below(folder: Path) -> dict[str, Path]:
    return {str(file.relative_to(folder)): file for file in folder.rglob("*") if file.is_file()}


def test_a_wheel_has_all_our_files_below_one_package_and_nothing_else(wheel: Path) -> None:
    ours = {
        str(file.relative_to(PROJECT))
        for name in OURS
        for file in (PROJECT / name).rglob("*")
        if file.is_file() and "__pycache__" not in file.parts
    }
    names = set(zipfile.ZipFile(wheel).namelist())
    inside = {name for name in names if name.startswith("nonisotropic/")}
    of_package = {"__init__.py", "__main__.py", "py.typed"}
    assert inside == {f"nonisotropic/{name}" for name in ours | of_package}
    information = names - inside
    assert {name.split("/")[0] for name in information} == {INFORMATION}
    assert wheel.name == f"nonisotropic-{__version__}-py3-none-any.whl"
    text = zipfile.ZipFile(wheel).read(f"{INFORMATION}/entry_points.txt").decode()
    assert text == "[console_scripts]\nnonisotropic = nonisotropic:main\n"
    assert zipfile.ZipFile(wheel).read(f"{INFORMATION}/top_level.txt") == b"nonisotropic\n"
    assert "setuptools" not in re.sub(
        r"Provides-Extra: test.*", "", zipfile.ZipFile(wheel).read(f"{INFORMATION}/METADATA").decode(),
        flags=re.DOTALL,
    )  # fmt: skip


def test_only_imports_and_references_differ(installed: Path) -> None:
    """Undone word by word, a file of the wheel is that of the checkout; and no import or reference was forgotten."""
    top = "|".join(OURS)
    changed = 0
    for file in sorted((installed / "nonisotropic").rglob("*.py")):
        name = file.relative_to(installed / "nonisotropic")
        if name.name == "__main__.py":
            continue
        text = file.read_text()
        back = re.sub(rf'(from |")nonisotropic\.({top})\b', r"\1\2", text)
        back = re.sub(rf"^( *)from nonisotropic import ({top})$", r"\1import \2", back, flags=re.MULTILINE)
        original = PROJECT / ("nonisotropic.py" if str(name) == "__init__.py" else name)
        assert back == original.read_text(), name
        changed += back != text
        for node in ast.walk(ast.parse(text)):
            imported = []
            if isinstance(node, ast.ImportFrom):
                imported = [node.module or ""]
            elif isinstance(node, ast.Import):
                imported = [alias.name for alias in node.names]
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                module = node.value.partition(":")[0]
                is_module = re.fullmatch(r"\w+(\.\w+)+", module) is not None
                is_ours = is_module and Path(installed, "nonisotropic", f"{module.replace('.', '/')}.py").is_file()
                imported = [module] * is_ours
            assert not {each.split(".")[0] for each in imported} & set(OURS), (name, node.lineno)  # type: ignore[attr-defined]
    assert changed > 100


@pytest.mark.parametrize(
    "source",
    ["import models.lenet\n", "import models as m\n", "import os, models\n", "x = 'models.lenet:build'\n",
     "x = ('models.'\n     'lenet:build')\n", "from  models import lenet\n"],
)  # fmt: skip
def test_the_build_refuses_what_it_cannot_change(source: str) -> None:
    with pytest.raises(ValueError, match=r"a\.py: expected "):
        setup_module_of(PROJECT).below_one_package(source.encode(), "a.py")


def test_the_build_leaves_what_is_not_ours() -> None:
    source = (
        b'"""import models; \xc3\xa9"""\n# from models import x\nimport modelsx\nfrom torchvision import models\n'
        b'x = "models.lenet"; y = f"models.{x}:build"; z = "noise:shot"\n'
    )
    assert setup_module_of(PROJECT).below_one_package(source, "a.py") == source
    moved = setup_module_of(PROJECT).below_one_package("é = 1; from models.lenet import build\n".encode(), "a.py")
    assert moved.decode() == "é = 1; from nonisotropic.models.lenet import build\n"


def test_a_source_distribution_makes_the_same_wheel(sources: Path, wheel: Path, tmp_path: Path) -> None:
    archive = built(sources, tmp_path / "made", "sdist")
    shutil.unpack_archive(archive, tmp_path, filter="data")
    (folder,) = tmp_path.glob("nonisotropic-*")
    assert not (folder / "tests").exists()
    again = zipfile.ZipFile(built(folder, tmp_path / "again", "bdist_wheel"))
    first = zipfile.ZipFile(wheel)
    assert sorted(again.namelist()) == sorted(first.namelist())
    assert all(again.read(name) == first.read(name) for name in first.namelist() if not name.endswith("RECORD"))


def test_source_distributions_of_equal_sources_are_equal(
    sources: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same for any folder, time of writing and rights of reading; the release compares wheels too."""
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")
    other = Path(shutil.copytree(sources, tmp_path / "some" / "other place"))
    for file in other.rglob("*.py"):
        os.utime(file, (1, 1))
        file.chmod(0o600)
    first, second = (built(place, tmp_path / place.name, "sdist") for place in (sources, other))
    assert first.read_bytes() == second.read_bytes()


def test_a_module_that_has_gone_leaves_the_next_build(sources: Path, tmp_path: Path) -> None:
    left = tmp_path / "made" / "build" / "lib" / "nonisotropic" / "models" / "gone.py"
    words = ["-q", "egg_info", "-e", str(tmp_path), "build", "-b", str(tmp_path / "made" / "build")]
    left.parent.mkdir(parents=True)
    left.write_text("")
    subprocess.run([sys.executable, "setup.py", *words], cwd=sources, capture_output=True, check=True)
    assert not left.exists() and left.with_name("lenet.py").is_file()


NAMES_STAY = """
import datasets, models, nonisotropic
assert datasets.WHOSE == models.WHOSE == 'theirs'
for name in nonisotropic.__all__:
    getattr(nonisotropic, name)
from nonisotropic.datasets import registry
assert datasets.WHOSE == models.WHOSE == 'theirs' and registry.__name__ == 'nonisotropic.datasets.registry'
print(nonisotropic.__file__)
"""


def test_names_of_others_stay_theirs(installed: Path, somebodys: Path) -> None:
    done = run(installed, somebodys, "-c", NAMES_STAY)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(installed / "nonisotropic" / "__init__.py")


REFERENCES = """
import ast, re
from pathlib import Path
import nonisotropic
from nonisotropic.foundations.lazy import load_object
found = set()
for file in Path(nonisotropic.__file__).parent.rglob("*.py"):
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Constant) and re.fullmatch(r"nonisotropic(\\.\\w+)+:\\w+", str(node.value)):
            found.add(node.value)
for reference in found:
    assert load_object(reference).__module__.startswith("nonisotropic."), reference
print(len(found))
"""


def test_every_reference_leads_into_the_package(installed: Path, somebodys: Path) -> None:
    done = run(installed, somebodys, "-c", REFERENCES)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 60


RUNS = (
    ("compute_threat", "--dataset_name=digits", "--per_label=5"),
    ("train", "--dataset_name=digits", "--model_name=conv", "--training_steps=4it", "--N_adv_train", "--per_label=5",
     "--num_workers=1"),
    ("test", "--dataset_name=digits", "--model_name=conv", "--training_steps=4it", "--N_adv_train", "--per_label=5",
     "--standard_eval", "--N_adv_eval", "--num_examples=20", "--N_attack_iter=3"),
)  # fmt: skip
ALL_OF_THEM = """
import runpy, sys
for words in {runs!r}:
    sys.argv = ["nonisotropic", *words, "--quiet"]
    try:
        runpy.run_module("nonisotropic", run_name="__main__", alter_sys=True)
    except SystemExit as end:
        assert not end.code, end.code
"""


def without_times(file: Path) -> object:
    """The content of a run's file, but for clocks."""
    if file.name == "timing.jsonl":
        return None
    if file.name == "state.pt":
        state = torch.load(file, weights_only=True)
        return json.dumps({**state, "timing": []}, default=torch.Tensor.tolist)
    if file.name == "result.json":
        return json.loads(file.read_text()) | {"wall_seconds": 0, "checksum": ""}
    return file.read_bytes()


def test_commands_of_a_wheel_write_the_bytes_of_the_checkout(
    installed: Path, somebodys: Path, tmp_path: Path, command: Command
) -> None:
    here, there = tmp_path / "checkout", tmp_path / "wheel"
    for words in RUNS:
        assert command(*words, "--quiet", root=str(here)).returncode == 0
    done = run(installed, somebodys, "-c", ALL_OF_THEM.format(runs=RUNS), NONISOTROPIC_HOME=str(there))
    assert done.returncode == 0, done.stderr
    ours, theirs = files_below(here), files_below(there)
    assert ours.keys() == theirs.keys() and len(ours) > 15
    for name, file in ours.items():
        assert without_times(file) == without_times(theirs[name]), name


def test_output_of_a_wheel_is_in_the_current_folder_and_messages_say_its_command(
    installed: Path, somebodys: Path
) -> None:
    words = ["-m", "nonisotropic", "test", "--dataset_name=digits", "--model_name=conv", "--standard_eval"]
    done = run(installed, somebodys, *words, "--display_output_location", NONISOTROPIC_HOME="")
    assert done.stdout.startswith(f"{somebodys}/output/runs/digits/"), done.stderr
    done = run(installed, somebodys, *words, NONISOTROPIC_HOME="")
    assert (done.returncode, "first run: nonisotropic train --dataset_name=digits" in done.stderr) == (1, True)
