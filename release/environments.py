"""The trials of an installed wheel, in a new environment for each Python."""

from __future__ import annotations

import json
import re
import shutil
import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from release.steps import ReleaseError, run, step
from release.wheel_tests import FAST, write_tests

MODEL = ("--dataset_name=digits", "--model_name=conv", "--training_steps=2ep", "--quiet")
TEST = (*MODEL, "--standard_eval", "--N_adv_eval", "--save_adversarials", "--per_label=5", "--num_examples=20",
        "--N_attack_iter=3")  # fmt: skip
SMOKE: tuple[tuple[str, ...], ...] = (
    ("--version",),
    ("--help",),
    ("compute_threat", "--dataset_name=mnist_5k", "--quiet"),
    ("compute_threat", "--dataset_name=digits", "--per_label=5", "--quiet"),
    ("evaluate_threat", "--dataset_name=digits", "--per_label=5", "--num_examples=20", "--quiet"),
    ("train", *MODEL),
    ("test", *TEST),
    ("bundle", *TEST, "--output=claim.zip"),
    ("verify", "claim.zip", "--quiet"),
    ("report", "--dataset_name=digits", "--quiet"),
)
COLUMNS = ("Python", "install", "size", "import", "tests")
IMPORT_LIMIT = 0.3  # seconds beyond torch's own
ALL_NAMES = "import nonisotropic; [getattr(nonisotropic, name) for name in nonisotropic.__all__]"
SETUPTOOLS = ("setuptools==80.10.2", "setuptools>=82")  # with pkg_resources, and without
PAGE = """
import re, sys, types, warnings
from pathlib import Path
lightning = sys.modules["lightning"] = types.ModuleType("lightning")
lightning.Callback = object
warnings.simplefilter("ignore")
known = {}
for block in re.findall(r"```python\\n(.*?)```", Path(sys.argv[1]).read_text(encoding="utf-8"), re.DOTALL):
    exec(block, known)
"""
STRANGERS = ("cli", "foundations", "models", "runners", "testing", "threat_specification", "training")
BESIDE = f"""
import datasets, timm, nonisotropic
robustbench = nonisotropic.import_robustbench()
import {", ".join(STRANGERS)}
{ALL_NAMES}
assert callable(datasets.load_dataset), datasets
assert {{each.WHOSE for each in ({", ".join(STRANGERS)})}} == {{"theirs"}}
from nonisotropic.datasets import registry
assert registry.__name__ == "nonisotropic.datasets.registry"
"""


@dataclass
class Installed:
    """A new environment of a Python, with a wheel in it; `row` is what the table at the end says of it."""

    python: str
    folder: Path
    row: dict[str, str] = field(default_factory=lambda: dict.fromkeys(COLUMNS, "-"))

    def __post_init__(self) -> None:
        self.elsewhere.mkdir(parents=True)

    @property
    def elsewhere(self) -> Path:
        """An empty folder, far from the checkout."""
        return self.folder / "elsewhere"

    def program(self, name: str) -> Path:
        return self.folder / "env" / "bin" / name

    def run(self, program: str, *words: str | Path, cwd: Path | None = None, **variables: str) -> str:
        """The output of a program of the environment."""
        return run([self.program(program), *words], cwd or self.elsewhere, **variables)

    def pip(self, *words: str | Path) -> str:
        return self.run("python", "-m", "pip", "--disable-pip-version-check", *words)

    def site(self) -> Path:
        """The folder of installed packages."""
        return Path(self.run("python", "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip())


def check(
    python: str, wheel: Path, checkout: Path, folder: Path, tests: Sequence[str] = FAST
) -> tuple[dict[str, str], list[str]]:
    """Everything, for one Python: a row of figures, and what failed. The folder is removed."""
    there, failed = Installed(python, folder), list[str]()
    with _noted(failed):
        install(there, wheel)
        with _noted(failed):
            smoke(there, checkout)
        with _noted(failed):
            cost_of_import(there)
        with _noted(failed):
            any_setuptools(there)
        with _noted(failed):
            run_tests(there, wheel, checkout, tests)
        with _noted(failed):
            beside_others(there, wheel)
    shutil.rmtree(folder, ignore_errors=True)
    return there.row, failed


@contextmanager
def _noted(failed: list[str]) -> Iterator[None]:
    """A block whose failure is noted, and ends nothing but the block."""
    try:
        yield
    except ReleaseError as error:
        failed.append(str(error))


def install(there: Installed, wheel: Path) -> None:
    """As a user installs it: no extras, no constraints of ours."""
    with step("new environment, pip install, pip check") as figures:
        start = time.monotonic()
        run([there.python, "-m", "venv", there.folder / "env"], there.elsewhere)
        there.pip("install", "--quiet", wheel)
        there.pip("check")
        there.row["install"] = f"{time.monotonic() - start:.0f} s"
        size = sum(file.lstat().st_size for file in there.site().rglob("*") if file.is_file())
        there.row["size"] = f"{size / 1e9:.1f} GB"
        there.row["Python"] = there.run("python", "-V").split()[1]
        versions = {each["name"]: each["version"] for each in json.loads(there.pip("list", "--format=json"))}
        figures += [f"{name} {versions.get(name)}" for name in ("torch", "numpy", "setuptools")]


def smoke(there: Installed, checkout: Path) -> None:
    """The command, from a folder of its own, and the page of the Python interface."""
    for words in SMOKE:
        with step(" ".join(("nonisotropic", *words))[:90]):
            there.run("nonisotropic", *words)
    with step("the code of docs/api.md"):
        there.run("python", "-c", PAGE, checkout / "docs" / "api.md")


def cost_of_import(there: Installed) -> None:
    """Seconds that all public names cost beyond torch, the median of five; of the processor, which others may use."""
    code = "import time, torch; start = time.process_time(); {}; print(time.process_time() - start)"
    with step("import of all public names") as figures:
        seconds = statistics.median(float(there.run("python", "-c", code.format(ALL_NAMES))) for _ in range(5))
        there.row["import"] = f"{seconds:.2f} s"
        figures.append(f"{seconds:.3f} s beyond torch, median of 5")
        if seconds > IMPORT_LIMIT:
            raise ReleaseError(f"imports take {seconds:.2f} s beyond torch; expected at most {IMPORT_LIMIT} s")


def any_setuptools(there: Installed) -> None:
    """RobustBench asks for pkg_resources, which setuptools lost in version 82."""
    code = "import setuptools, nonisotropic; nonisotropic.import_robustbench(); print(setuptools.__version__)"
    with step("robustbench with setuptools") as figures:
        for number, each in enumerate(SETUPTOOLS):
            apart = there.folder / f"setuptools_{number}"
            there.pip("install", "--quiet", "--no-deps", "--target", apart, each)
            figures.append(there.run("python", "-W", "ignore", "-c", code, PYTHONPATH=str(apart)).split()[-1])


def run_tests(there: Installed, wheel: Path, checkout: Path, tests: Sequence[str]) -> None:
    """The tests, rewritten as the wheel is, in one process."""
    if not tests:
        return
    copy = there.folder / "tests of the wheel"
    write_tests(checkout, copy)
    there.pip("install", "--quiet", f"{wheel}[test]")
    there.pip("check")
    with step("tests against the installed wheel") as figures:
        start = time.monotonic()
        output = there.run("python", "-m", "pytest", "-q", "-p", "no:cacheprovider", *tests, cwd=copy)
        last = output.strip().splitlines()[-1]
        there.row["tests"] = f"{_counts(last)} in {time.monotonic() - start:.0f} s"
        figures.append(_counts(last))


def _counts(last: str) -> str:
    """The counts in pytest's last line."""
    return ", ".join(re.findall(r"\d+ (?:passed|skipped|deselected|xfailed)", last)) or last


def beside_others(there: Installed, wheel: Path) -> None:
    """Hugging Face's `datasets` and somebody's modules of all our names: nothing of theirs changes, all can be
    imported, and the command works."""
    with step("beside datasets, models, timm, robustbench") as figures:
        there.pip("uninstall", "--quiet", "--yes", "nonisotropic")
        there.pip("install", "--quiet", "datasets")
        site = there.site()
        for name in STRANGERS:
            if (site / name).exists() or (site / f"{name}.py").exists():
                raise ReleaseError(f"{name} is left in {site} by the wheel")
            (site / f"{name}.py").write_text("WHOSE = 'theirs'\n")
        before = _files(there.folder / "env")
        there.pip("install", "--quiet", "--no-deps", "--no-compile", wheel)
        after = _files(there.folder / "env")
        changed = [name for name, state in before.items() if after.get(name) != state]
        added = [name for name in after if name not in before]
        foreign = [name for name in added if not re.search(r"site-packages/nonisotropic|bin/nonisotropic$", name)]
        if changed or foreign:
            raise ReleaseError(f"the wheel changed {changed[:5]} and added {foreign[:5]}")
        figures.append(f"{len(added)} files added, {len(before)} of others as they were")
        there.run("python", "-W", "ignore", "-c", BESIDE)
        there.run("nonisotropic", "train", *MODEL, "--root_dir=again")
        there.pip("check")


def _files(folder: Path) -> dict[str, tuple[int, int]]:
    """Size and time of every file, without the bytecode that Python writes beside modules when it likes."""
    return {
        str(file.relative_to(folder)): (file.lstat().st_size, file.lstat().st_mtime_ns)
        for file in folder.rglob("*")
        if (file.is_file() or file.is_symlink()) and "__pycache__" not in file.parts
    }
