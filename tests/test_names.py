"""`datasets`, `models`, `tests` are other people's package names too: ours win, theirs survive."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

from setuptools import find_packages

PROJECT = Path(__file__).resolve().parent.parent


def test_our_packages_win_over_others_of_the_same_name(tmp_path: Path) -> None:
    for name in ("datasets", "models", "training", "tests"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise RuntimeError('the wrong package')")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    words = ["train", "--dataset_name=digits", "--model_name=conv", "--training_steps=0it", f"--root_dir={tmp_path}/r"]
    done = subprocess.run(
        [sys.executable, str(PROJECT / "nonisotropic.py"), *words],
        env=environment,
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr


def test_an_imported_stranger_is_named(tmp_path: Path) -> None:
    (tmp_path / "datasets.py").write_text("")
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); import datasets; sys.path.insert(0, {str(PROJECT)!r});"
    code += "import nonisotropic; sys.exit(nonisotropic.main())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 1
    assert "expected the package 'datasets' of" in done.stderr
    assert "Traceback" not in done.stderr


def test_nonisotropic_robustbench_and_timm_in_one_process() -> None:
    code = (
        "import nonisotropic, robustbench, timm, autoattack, pyautoattack, datasets, models;"
        "assert autoattack.AutoAttack is pyautoattack.AutoAttack and pyautoattack.__spec__.name == 'pyautoattack';"
        "print(datasets.__file__, models.__file__)"
    )
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], cwd=PROJECT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [str(PROJECT / name / "__init__.py") for name in ("datasets", "models")]


def test_setup_names_every_package_but_the_tests() -> None:
    written = re.search(r"include=(\[[^]]*\])", (PROJECT / "setup.py").read_text())
    assert written
    ours = {
        str(file.parent.relative_to(PROJECT)).replace("/", ".")
        for file in PROJECT.rglob("__init__.py")
        if file.relative_to(PROJECT).parts[0] not in {"tests", "benchmarks", ".venv"}
    }
    assert set(find_packages(str(PROJECT), include=ast.literal_eval(written[1]))) == ours


def test_a_wheel_is_refused(tmp_path: Path) -> None:
    done = subprocess.run(
        [
            sys.executable,
            str(PROJECT / "setup.py"),
            "-q",
            "bdist_wheel",
            "-d",
            str(tmp_path),
            "-b",
            str(tmp_path / "b"),
        ],
        cwd=PROJECT,
        capture_output=True,
        text=True,
    )
    assert done.returncode != 0
    assert "editable install only" in done.stderr
    assert not list(tmp_path.glob("*.whl"))
