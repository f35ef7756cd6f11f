"""From a description back to the command that makes it, and the defaults that a command's names imply."""

from __future__ import annotations

import dataclasses
import os
from typing import Any

from foundations.desc import Desc, StoredRun
from foundations.settings import Hparams, format_value
from runners.descriptions import MultiDesc
from runners.recipes import named_defaults


def command(desc: Desc) -> str:
    """The command line that makes a run: only flags that differ from their default."""
    flags = _flags(desc)
    defaults = named_defaults(flags)
    words = [f"python nonisotropic.py {desc.runner}"]
    for name, value in flags.items():
        default = defaults.get(name, _field_defaults(desc).get(name))
        if value != default:
            words.append(f"--{name}" if value is True else f"--{name}={format_value(value)}")
    return " ".join(words)


def stored_command(desc: Desc) -> str:
    """`command` without absolute paths: a run's directory holds none. A file is known by its name and its digest."""
    text = command(desc)
    fields = {field.name: field for group in desc.hparams_classes() for field in dataclasses.fields(group)}
    for name, value in _flags(desc).items():
        path_in = fields[name].metadata["path_in"] if name in fields else None
        if path_in and os.path.isabs(path := path_in(value)):
            text = text.replace(path, os.path.basename(path))
    return text


def _flags(desc: Desc) -> dict[str, Any]:
    """Every flag of a description and of the runs it reads, flat."""
    if isinstance(desc, MultiDesc):
        names = {"model_name": ",".join(desc.model_names)} if len(desc.model_names) > 1 else {}
        return _flags(desc.children[0]) | names | {f"toggle_{name}": True for name in desc.toggled}
    flags: dict[str, Any] = {}
    for field in dataclasses.fields(desc):
        part = getattr(desc, field.name)
        if isinstance(part, Hparams):
            flags |= dataclasses.asdict(part)
    for name, run in desc.needed_runs().items():
        if desc.__dataclass_fields__[name].metadata["implied"](desc):
            continue
        more = {"train_dir": run.relative} if isinstance(run, StoredRun) else _flags(run)
        # Of the runs that one builds on, some may use class weights and others not.
        flags |= {flag: value for flag, value in more.items() if flag != "class_weights" or value}
    if desc.seed:
        flags["seed"] = desc.seed
    if desc.replicate != 1:
        flags[desc.replicate_flag] = desc.replicate
    return flags


def _field_defaults(desc: Desc) -> dict[str, Any]:
    return {field.name: field.default for group in desc.hparams_classes() for field in dataclasses.fields(group)}
