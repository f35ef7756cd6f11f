"""The command that makes a described run, and the defaults that the names in a command imply."""

from __future__ import annotations

import dataclasses
import os
from typing import Any

from foundations.desc import Desc
from foundations.hparam_fields import format_value
from foundations.program import COMMAND, IN_CHECKOUT
from runners.test.protocol import flags as protocol_flags
from runners.train.defaults import named_defaults

__all__ = ["command", "named_defaults", "protocol_flags", "stored_command"]


def command(desc: Desc, program: str = COMMAND) -> str:
    """The command line that makes a run, with only those flags that differ from their default."""
    flags = desc.flags()
    defaults = named_defaults(flags)
    words = [f"{program} {desc.runner}", *_files(desc)]
    for name, value in flags.items():
        default = defaults.get(name, _field_defaults(desc).get(name))
        if value != default:
            words.append(f"--{name}" if value is True else f"--{name}={format_value(value)}")
    return " ".join(words)


def stored_command(desc: Desc) -> str:
    """`command` without absolute paths, since a run's directory contains none.

    A file is given by its name alone; its digest is part of the hash.
    """
    text = command(desc, IN_CHECKOUT)
    fields = {field.name: field for group in desc.hparams_classes() for field in dataclasses.fields(group)}
    for name, value in desc.flags().items():
        path_in = fields[name].metadata["path_in"] if name in fields else None
        if path_in and os.path.isabs(path := path_in(value)):
            text = text.replace(path, os.path.basename(path))
    for file in filter(os.path.isabs, _files(desc)):
        text = text.replace(file, os.path.basename(file))
    return text


def _files(desc: Desc) -> tuple[str, ...]:
    """The files that a description takes without a flag."""
    return getattr(desc, "files", ())


def _field_defaults(desc: Desc) -> dict[str, Any]:
    return {field.name: field.default for group in desc.hparams_classes() for field in dataclasses.fields(group)}
