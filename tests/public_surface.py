"""python tests/public_surface.py: writes down what is public, in tests/public_surface.txt (a test compares it).

Names of `nonisotropic` with their signatures, flags with their defaults and runners, and what runs write. What that
means for people is in docs/stability.md.
"""

from __future__ import annotations

import dataclasses
import inspect
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import nonisotropic
from cli.main import groups_of
from cli.published_flags import ELSEWHERE, SUITES, TRANSLATIONS
from cli.runner_registry import RUNNERS, desc_class
from foundations.deprecation import DEPRECATED
from foundations.files import read_json
from foundations.hparam_fields import format_value

FILE = Path(__file__).resolve().parent / "public_surface.txt"
PROGRAM = FILE.parents[1] / "nonisotropic.py"
MODEL = ("--dataset_name=digits", "--model_name=conv", "--training_steps=1ep")
TEST = (*MODEL, "--standard_eval", "--adv_eval", "--N_adv_eval", "--save_adversarials", "--per_label=5",
        "--num_examples=10", "--N_attack_iter=2", "--N_thresholds=0.05,0.1")  # fmt: skip
# One run of each runner that measures or trains something; with files and keys that every such run has.
RUNS: tuple[tuple[str, ...], ...] = (
    ("compute_threat", "--dataset_name=digits", "--per_label=5"),
    (
        "evaluate_threat",
        "--dataset_name=digits",
        "--per_label=5",
        "--num_examples=10",
        "--suites=quick",
        "--severities=3,5",
        "--bootstrap=100",
        "--coverage_images=20",
    ),
    ("train", *MODEL),
    ("test", *TEST),
)
# Objects of result.json whose keys are names of data.
OPEN = {
    *("attacks", "coverage", "coverage_normalised", "moves", "packages", "perturbations", "quantiles", "seconds"),
}

Run = Callable[..., Path]  # words of a command -> the directory of the run


def names() -> Iterator[str]:
    """The public names with signatures; of classes, what their users call."""
    for name in sorted(nonisotropic.__all__, key=str.lower):
        value = getattr(nonisotropic, name)
        if not inspect.isclass(value) or issubclass(value, Exception):
            yield name if inspect.isclass(value) else f"{name}{_signature(value)}"
            continue
        yield f"class {name}{_signature(value)}"
        fields = {field.name for field in dataclasses.fields(value)} if dataclasses.is_dataclass(value) else set()
        for member in sorted({*dir(value)} - fields):
            if (member.startswith("_") and member != "__call__") or not _is_ours(value, member):
                continue
            found = inspect.getattr_static(value, member)
            function = found.__func__ if isinstance(found, (classmethod, staticmethod)) else found
            yield f"    {member}{_signature(function) if inspect.isfunction(function) else ''}"


def _is_ours(value: type, member: str) -> bool:
    """True if a member is declared by a class of ours, not by torch or Python."""
    return any(member in vars(each) for each in value.__mro__ if _top(each) in OURS)


def _top(value: type) -> str:
    return value.__module__.removeprefix("nonisotropic.").split(".")[0]


OURS = {"foundations", "models", "testing", "threat_specification", "training"}


def _signature(function: Any) -> str:
    """The parameters as they are written, with annotations."""
    return str(inspect.signature(function)).replace("'", "")


def flags() -> Iterator[str]:
    """Every flag with its alias and default as declared, below the runners that have it."""
    runners: dict[str, list[str]] = {}
    for runner in RUNNERS:
        for group in groups_of(runner):
            for field in dataclasses.fields(group):
                alias = f" (--{field.metadata['alias']})" if field.metadata["alias"] else ""
                runners.setdefault(f"--{field.name}={format_value(field.default)}{alias}", []).append(runner)
    together: dict[str, list[str]] = {}
    for flag, those in runners.items():
        together.setdefault("all" if len(those) == len(RUNNERS) else ", ".join(those), []).append(flag)
    for those, found in together.items():
        yield f"{those}:"
        yield from (f"    {flag}" for flag in sorted(found, key=str.lower))
    yield f"translated or answered: {', '.join(sorted({*TRANSLATIONS, *SUITES, *ELSEWHERE}, key=str.lower))}"
    yield f"deprecated: {', '.join(sorted(DEPRECATED)) or 'none'}"


def written(run: Run) -> Iterator[str]:
    """Files of runs, and the keys of their result.json: an object a line."""
    for words in RUNS:
        directory = run(*words)
        yield f"{words[0]}: {', '.join(sorted({file.name for file in directory.rglob('*') if file.is_file()}))}"
        yield from (f"    {line}" for line in dict.fromkeys(_objects(read_json(directory / "result.json"), "")))


def _objects(value: Any, path: str) -> Iterator[str]:
    """A line for every object: its path (lists as `a[]`) and keys; `*` where keys are names of data."""
    if isinstance(value, list):
        for each in value:
            yield from _objects(each, f"{path}[]")
    elif isinstance(value, dict):
        shapes = {tuple(sorted(each)) if isinstance(each, dict) else () for each in value.values()}
        are_data = path.rpartition(".")[2] in OPEN or (len(shapes) == 1 and shapes != {()})
        yield f"{path or 'result.json'}: {'*' if are_data else ', '.join(sorted(value))}"
        for key, below in value.items():
            yield from _objects(below, f"{path}.{'*' if are_data else key}".lstrip("."))


def surface(run: Run) -> str:
    """The content of the file."""
    takes = [f"{name} {desc_class(name).takes}".rstrip() for name in RUNNERS]
    parts = {
        "import nonisotropic": names(),
        "Runners": takes,
        "Flags, with the defaults that hold where a data set or model sets no others": flags(),
        "Files of a run, and the keys of its result.json": written(run),
    }
    blocks = ["\n".join([f"## {title}", "", *lines]) for title, lines in parts.items()]
    title = "# What is public. Written by `python tests/public_surface.py`; see docs/stability.md."
    return "\n\n".join([title, *blocks]) + "\n"


def main() -> None:
    with tempfile.TemporaryDirectory() as root:
        variables = {**os.environ, "NONISOTROPIC_HOME": root, "OMP_NUM_THREADS": "1", "NONISOTROPIC_DEVICE": "cpu"}

        def run(*words: str) -> Path:
            command = [sys.executable, str(PROGRAM), *words]
            subprocess.run([*command, "--quiet"], env=variables, check=True, stdout=subprocess.DEVNULL)
            told = subprocess.run(
                [*command, "--display_output_location"], env=variables, check=True, capture_output=True, text=True
            )
            return Path(told.stdout.strip())

        FILE.write_text(surface(run), encoding="utf-8")


if __name__ == "__main__":
    main()
