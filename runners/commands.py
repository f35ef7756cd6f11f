"""The command that makes a described run, its file for --config, and the defaults that the names in a command imply."""

from __future__ import annotations

import dataclasses
import os
import shlex
from collections.abc import Callable, Iterator
from typing import Any

from foundations.desc import Desc
from foundations.hparam_fields import format_value
from foundations.program import COMMAND, IN_CHECKOUT
from foundations.toml_files import toml_line
from runners.test.protocol import flags as protocol_flags
from runners.train.defaults import named_defaults

__all__ = ["command", "named_defaults", "protocol_flags", "stored_command", "stored_config", "stored_flags", "words_of"]

CONFIG = "config.toml"  # file in a run's directory
Placed = Callable[[str], str]  # what becomes of a path


def command(desc: Desc, program: str = COMMAND, placed: Placed = str) -> str:
    """The command line that makes a run, with only those flags that differ from their default."""
    return " ".join([program, *map(shlex.quote, words_of(desc, placed))])


def words_of(desc: Desc, placed: Placed = str) -> list[str]:
    """The words of that command after the program, unquoted."""
    defaults = _defaults(desc)
    words = [desc.runner, *map(placed, _files(desc))]
    for name, value in _flags(desc, placed).items():
        if value != defaults.get(name):
            words.append(f"--{name}" if value is True else f"--{name}={format_value(value)}")
    return words


def stored_command(desc: Desc) -> str:
    """`command` without absolute paths, since a run's directory contains none.

    A file is given by its name alone; its digest is part of the hash.
    """
    return command(desc, IN_CHECKOUT, _without_folder)


def stored_flags(desc: Desc) -> dict[str, Any]:
    """All flags of a run, without absolute paths."""
    return _flags(desc, _without_folder)


def stored_config(desc: Desc) -> str:
    """All flags of a run as a file for --config, without absolute paths; those that differ from their default first."""
    flags, defaults = stored_flags(desc), _defaults(desc)
    files = {"files": tuple(map(_without_folder, _files(desc)))} if desc.takes else {}
    given = [name for name in flags if flags[name] != defaults.get(name)]
    usual = [name for name in flags if name not in given]
    lines = [f"# {IN_CHECKOUT} {desc.runner} --config=THIS_FILE is this run; flags beside it win.\n"]
    lines += [toml_line(name, value) for name, value in files.items()]
    lines += [_config_line(name, flags[name], desc.flags()[name]) for name in given]
    if usual:
        lines += ["\n# As by default. Without these lines, defaults follow the data set and model that are named.\n"]
        lines += [toml_line(name, flags[name]) for name in usual]
    return "".join(lines)


def _config_line(name: str, value: Any, as_given: Any) -> str:
    told = "" if value == as_given else f"# in a folder that is not stored; give it again as --{name}\n"
    return told + toml_line(name, value)


def _without_folder(path: str) -> str:
    return os.path.basename(path.rstrip("/")) if os.path.isabs(path) else path


def _flags(desc: Desc, placed: Placed) -> dict[str, Any]:
    """All flags of a run, whose paths `placed` changes."""
    path_in = {field.name: field.metadata["path_in"] for field in _fields(desc)}
    flags = desc.flags()
    for name, value in flags.items():
        if path_in.get(name) and (path := path_in[name](value)):
            flags[name] = value.removesuffix(path) + placed(path)
    return flags


def _files(desc: Desc) -> tuple[str, ...]:
    """The files that a description takes without a flag."""
    return getattr(desc, "files", ())


def _defaults(desc: Desc) -> dict[str, Any]:
    """The defaults of a run's flags; of its data set and model, where these have their own."""
    return {field.name: field.default for field in _fields(desc)} | named_defaults(desc.flags())


def _fields(desc: Desc) -> Iterator[dataclasses.Field]:
    for group in desc.hparams_classes():
        yield from dataclasses.fields(group)
