"""Labels that tell models apart: trainings of one name are called by the flags in which they differ."""

from __future__ import annotations

import dataclasses
import shlex
from collections import defaultdict
from dataclasses import replace
from pathlib import Path

from runners.report.collect import FinishedRun
from runners.train.desc import TrainDesc

Runs = dict[str, list[FinishedRun]]
Words = dict[str, str]  # flag -> value, of those that are not as by default

LONGEST = 20  # characters of a value


def tell_apart(runs: Runs) -> None:
    """Give those runs of a data set whose trainings share a name the flags that tell them apart, as `apart`."""
    flags = _flags_of_models(runs)
    models: dict[str, dict[str, Words]] = defaultdict(dict)  # by name
    for run, key in _with_models(runs):
        models[run.model_name][key] = flags.get(key, {})
    parts = {key: part for of in models.values() for key, part in _distinctions(of).items()}
    for runner, found in runs.items():
        runs[runner] = [replace(run, apart=parts.get(run.model[0], "")) if run.model else run for run in found]


def _with_models(runs: Runs) -> list[tuple[FinishedRun, str]]:
    """The runs that train or test a model, with its hash."""
    found = [run for runner in ("train", "test") for run in runs.get(runner, ())]
    return [(run, run.model[0]) for run in found if run.model]


def _flags_of_models(runs: Runs) -> dict[str, Words]:
    """Hash of a model -> its flags: from the run that trained it, or else from a test that was given them."""
    fields = [field for group in TrainDesc.hparams_classes() for field in dataclasses.fields(group)]
    known = {"seed", *(field.name for field in fields if field.metadata["hashed"])}
    flags: dict[str, Words] = {}
    for run, key in _with_models(runs):
        words = dict(_flag(word) for word in shlex.split(run.command) if word.startswith("--"))
        if key not in flags and "train_dir" not in words:
            # The place of the data is in the hash, by its content, only where files are the user's own.
            own = run.hparams["hashed"].get("dataset", {}).get("data_dir")
            told = known if own else known - {"data_dir"}
            flags[key] = {name: value for name, value in words.items() if name in told}
    return flags


def _flag(word: str) -> tuple[str, str]:
    name, _, value = word.removeprefix("--").partition("=")
    return name, value


def _distinctions(models: dict[str, Words]) -> dict[str, str]:
    """Hash of a model -> the flags that tell it from the others, as few as do; its hash too where no flags tell."""
    chosen = _telling(list(models.values()))
    told = {
        key: ", ".join(_shown(name, words[name]) for name in chosen if name in words) for key, words in models.items()
    }
    same = [part for part in told.values() if list(told.values()).count(part) > 1]
    return {key: ", ".join(filter(None, [part, key[:6] if part in same else ""])) for key, part in told.items()}


def _telling(models: list[Words]) -> list[str]:
    """Names of flags: each time the one by which most kinds of models are told apart, while it tells more of them."""
    names, chosen, kinds = list(dict.fromkeys(name for words in models for name in words)), list[str](), 1
    while True:
        counts = {name: len({tuple(words.get(each) for each in (*chosen, name)) for words in models}) for name in names}
        best = max(names, key=counts.__getitem__, default="")
        if not best or counts[best] <= kinds:
            return chosen
        chosen, kinds = [*chosen, best], counts[best]


def _shown(name: str, value: str) -> str:
    value = Path(value).name if name == "data_dir" else value
    short = value if len(value) <= LONGEST else f"{value[: LONGEST - 3]}..."
    return f"{name}={short}" if value else name
