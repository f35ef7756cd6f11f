"""The source distribution and the wheel: built twice from the last commit, in two ways, to the same bytes."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path

from release.steps import ReleaseError, run, step
from release.wheel_tests import setup_module_of

NAME = "nonisotropic"


@dataclass(frozen=True)
class Artefacts:
    """The two files of a release."""

    sdist: Path
    wheel: Path


def build(checkout: Path, folder: Path) -> Artefacts:
    """Build and check both files below a folder; raises ReleaseError for whatever is not as it should be."""
    epoch = run(["git", "log", "-1", "--format=%ct"], checkout).strip()
    with step("built from the tree"):
        first = _built(_sources(checkout, folder / "here"), folder / "dist", epoch, "--sdist", "--wheel")
    with step("built at another place, the wheel from the source distribution: the same bytes"):
        again = _built(_sources(checkout, folder / "some" / "other place"), folder / "again", epoch)
        for one, other in ((first.sdist, again.sdist), (first.wheel, again.wheel)):
            if one.name != other.name or one.read_bytes() != other.read_bytes():
                raise ReleaseError(f"{one} and {other} differ: the build is not reproducible")
    with step("twine check --strict"):
        run([sys.executable, "-m", "twine", "check", "--strict", first.sdist, first.wheel], folder)
    with step("files of the wheel") as figures:
        figures.append(f"{check_files(checkout, first.wheel, names_in_wheel(checkout))} files")
    return first


def _sources(checkout: Path, folder: Path) -> Path:
    """The files of the last commit: nothing that lies beside them, and no modes of this user."""
    folder.mkdir(parents=True)
    archive = subprocess.run(
        ["git", "-c", "tar.umask=0022", "archive", "HEAD"], cwd=checkout, stdout=subprocess.PIPE, check=True
    )
    subprocess.run(["tar", "-x"], cwd=folder, input=archive.stdout, check=True)
    return folder


def _built(sources: Path, folder: Path, epoch: str, *what: str) -> Artefacts:
    run([sys.executable, "-m", "build", *what, "--outdir", folder, sources], sources, SOURCE_DATE_EPOCH=epoch)
    (sdist,), (wheel,) = folder.glob("*.tar.gz"), folder.glob("*.whl")
    return Artefacts(sdist, wheel)


def names_in_wheel(checkout: Path) -> set[str]:
    """The files that a wheel of the checkout has in its package."""
    return {f"{NAME}/{name}" for name, _ in setup_module_of(checkout).files_of_the_wheel(checkout)}


def check_files(checkout: Path, wheel: Path, expected: set[str]) -> int:
    """The number of files of a wheel; raises ReleaseError if they are not those expected in its package and, beside
    it, information with the licence: one top-level name, all data and the types, no tests."""
    setup = setup_module_of(checkout)
    information = f"{NAME}-{setup.version()}.dist-info"
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    inside = {name for name in names if not name.startswith(f"{information}/")}
    if inside != expected:
        raise ReleaseError(f"{wheel.name}: expected other files; these differ: {sorted(inside ^ expected)[:10]}")
    folders = [f"{NAME}/{package.replace('.', '/')}/" for package in setup.DATA]
    without = [each for each in folders if all(name.endswith(".py") for name in names if name.startswith(each))]
    missing = {f"{NAME}/py.typed", f"{information}/licenses/LICENSE", f"{information}/entry_points.txt"} - names
    tests = [name for name in names if "tests" in name.split("/")]
    if without or missing or tests:
        raise ReleaseError(f"{wheel.name}: no data in {without}, no {sorted(missing)}, tests {tests[:5]}")
    return len(names)
