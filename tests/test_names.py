"""`datasets`, `models`, `tests` are other people's package names too: ours win, theirs survive."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

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
        "import nonisotropic; nonisotropic.import_robustbench();"
        "import robustbench, timm, pyautoattack, datasets, models;"
        "assert robustbench.eval.AutoAttack is pyautoattack.AutoAttack;"
        "assert pyautoattack.__spec__.name == 'pyautoattack';"
        "print(datasets.__file__, models.__file__)"
    )
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], cwd=PROJECT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [str(PROJECT / name / "__init__.py") for name in ("datasets", "models")]
