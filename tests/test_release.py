"""Refusals of `make release`, tried on small repositories, and wheels that it calls wrong."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from release import artefacts
from release.artefacts import check_files, names_in_wheel
from release.refusals import refusals
from release.steps import ReleaseError
from release.wheel_tests import FAST, setup_module_of, write_tests
from tests.conftest import PROJECT

PARTS = ("release", "foundations")
VERSION = setup_module_of(PROJECT).version()


def git(folder: Path, *words: str) -> None:
    named = ["-c", "user.name=A", "-c", "user.email=a@b.invalid", "-c", "commit.gpgsign=false"]
    subprocess.run(["git", *named, *words], cwd=folder, check=True, capture_output=True)


@pytest.fixture
def ready(tmp_path: Path) -> Path:
    """A repository of what a release reads first, that nothing stands against."""
    for name in PARTS:
        shutil.copytree(PROJECT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(PROJECT / "setup.py", tmp_path)
    (tmp_path / ".gitignore").write_text("__pycache__/\n")
    (tmp_path / "CHANGELOG.md").write_text(f"# Changelog\n\n## {VERSION} (2026-11-28)\n\n* All.\n")
    git(tmp_path, "init", "--quiet")
    git(tmp_path, "add", "--all")
    git(tmp_path, "commit", "--quiet", "--message=all")
    return tmp_path


def write(name: str, before: str, after: str) -> Callable[[Path], None]:
    """A committed change of a file."""

    def change(folder: Path) -> None:
        text = (folder / name).read_text()
        assert before in text
        (folder / name).write_text(text.replace(before, after))
        git(folder, "commit", "--quiet", "--all", "--message=change")

    return change


def test_nothing_stands_against_a_tree_that_is_ready(ready: Path) -> None:
    assert refusals(ready) == []


def lay(name: str) -> Callable[[Path], None]:
    """A file with a comment that is not committed."""

    def change(folder: Path) -> None:
        with (folder / name).open("a") as file:
            file.write("# changed\n")

    return change


def tag(name: str) -> Callable[[Path], None]:
    return lambda folder: git(folder, "tag", name)


DATED, PROGRAM = "YYYY-MM-DD", "foundations/program.py"
REFUSED: dict[str, tuple[Callable[[Path], None], str]] = {
    "changes": (lay("setup.py"), "got changes of setup.py: commit"),
    "strangers": (lay("new.py"), "got changes of new.py: commit"),
    "unreleased": (write("CHANGELOG.md", "2026-11-28", "unreleased"), f"({DATED})', got '## {VERSION} (unreleased)'"),
    "not_named": (write(PROGRAM, f'"{VERSION}"', '"7.0"'), f"'## 7.0 ({DATED})', got '## {VERSION} (2026"),
    "no_heading": (write("CHANGELOG.md", "## ", "### "), "got '## nothing (no date)'"),
    "tagged": (tag(f"v{VERSION}"), f"version {VERSION} is tagged already (v{VERSION})"),
    "tagged_without_v": (tag(VERSION), f"version {VERSION} is tagged already ({VERSION})"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_release_is_refused_in_a_line(name: str, ready: Path) -> None:
    change, told = REFUSED[name]
    change(ready)
    (line,) = refusals(ready)
    assert told in line and "\n" not in line


def test_the_command_refuses_builds_nothing_and_tells_all(ready: Path) -> None:
    REFUSED["unreleased"][0](ready)
    REFUSED["tagged"][0](ready)
    REFUSED["strangers"][0](ready)
    done = subprocess.run([sys.executable, "-m", "release"], cwd=ready, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 3)
    assert all(line.startswith("release: ") for line in done.stderr.splitlines())
    assert not (ready / "dist").exists()


def test_a_python_that_is_not_there_is_named(ready: Path) -> None:
    words = [sys.executable, "-m", "release", f"--pythons={sys.executable},python3.1"]
    done = subprocess.run(words, cwd=ready, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "release: --pythons: expected names or paths of Pythons, got python3.1\n"


@pytest.fixture(scope="module")
def expected() -> set[str]:
    return names_in_wheel(PROJECT)


def made(folder: Path, expected: set[str], leave_out: str = "", add: str = "") -> Path:
    """A wheel with empty files of the names expected, but for one, and one more."""
    information = [f"nonisotropic-{VERSION}.dist-info/{name}" for name in ("licenses/LICENSE", "entry_points.txt")]
    wheel = folder / f"nonisotropic-{VERSION}-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for name in [*expected, *information, *filter(None, [add])]:
            if not leave_out or not name.endswith(leave_out):
                archive.writestr(name, "")
    return wheel


def test_the_files_of_a_wheel_are_counted(expected: set[str], tmp_path: Path) -> None:
    assert check_files(PROJECT, made(tmp_path, expected), expected) == len(expected) + 2 > 250


@pytest.mark.parametrize(
    ("leave_out", "add"),
    [
        ("py.typed", ""),
        ("LICENSE", ""),
        ("pd-bench-1.json", ""),
        ("", "models/__init__.py"),
        ("", "nonisotropic/tests/test_a.py"),
        ("", f"nonisotropic-{VERSION}.dist-info/tests/a"),
    ],
)
def test_a_wheel_with_other_files_is_refused(leave_out: str, add: str, expected: set[str], tmp_path: Path) -> None:
    with pytest.raises(ReleaseError):
        check_files(PROJECT, made(tmp_path, expected, leave_out, add), expected)


@pytest.mark.parametrize("gone", ["py.typed", "pd-bench-1.json"])
def test_types_and_data_are_asked_for_even_if_the_build_forgets_them(
    gone: str, expected: set[str], tmp_path: Path
) -> None:
    without = {name for name in expected if not name.endswith(gone)}
    types, data = r"no \['nonisotropic/py\.typed'\]", r"no data in \['nonisotropic/runners/test/'\]"
    with pytest.raises(ReleaseError, match=types if gone == "py.typed" else data):
        check_files(PROJECT, made(tmp_path, without), without)


def test_a_build_that_differs_is_refused(ready: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def built(sources: Path, folder: Path, epoch: str, *what: str) -> artefacts.Artefacts:
        folder.mkdir(parents=True)
        (folder / "a.tar.gz").write_text("same")
        (folder / "a.whl").write_text(str(what))
        return artefacts.Artefacts(folder / "a.tar.gz", folder / "a.whl")

    monkeypatch.setattr(artefacts, "_built", built)
    with pytest.raises(ReleaseError, match=r"a\.whl differ: the build is not reproducible"):
        artefacts.build(ready, tmp_path / "built")


def test_tests_of_a_wheel_import_what_is_installed_alone(tmp_path: Path) -> None:
    write_tests(PROJECT, tmp_path)
    setup = setup_module_of(PROJECT)
    assert not {path.name for path in tmp_path.iterdir()} & {*setup.OURS, "nonisotropic.py"}
    text = (tmp_path / "tests/cli/test_main.py").read_text()
    assert "from nonisotropic.cli.main import" in text and "from cli.main import" not in text
    assert "from tests.conftest import" in (tmp_path / "tests/runners/test_runs.py").read_text()
    assert all((tmp_path / name).exists() for name in FAST)
