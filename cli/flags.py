"""The flags of each runner: groups of fields, and their names."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

from cli.runner_registry import RUNNERS, desc_class
from cli.shared_args import SharedArgs, ToggleHparams
from foundations.hparam_fields import Hparams, in_range, setting

# The conditions of these say when they enter the hash, not when they are used, or are no flags.
USED_ANYWAY = ("data_dir", "threat_model", "data_seed")


def groups_of(runner: str) -> list[type[Hparams]]:
    """All groups of flags that a runner accepts, in the order in which its help shows them."""
    described = list(desc_class(runner).flag_groups())
    toggles = [ToggleHparams] if desc_class(runner).has_toggles else []
    return [*described, *toggles, replicate_args(), SharedArgs]


def flags_of(runner: str) -> set[str]:
    """The names of all flags of a runner, without dashes, aliases included."""
    fields = [field for group in groups_of(runner) for field in dataclasses.fields(group)]
    return {"help", *(name for field in fields for name in (field.name, field.metadata["alias"]) if name)}


def without_effect(runner: str, values: dict[str, Any], arguments: Sequence[str]) -> str:
    """A line about the flags among the arguments that change nothing, since another one is off; "" if there are none.

    A sweep switches flags on and off itself, so nothing is said of its flags.
    """
    if desc_class(runner).has_toggles:
        return ""
    given = {word[2:].partition("=")[0] for word in arguments if word.startswith("--")}
    told = []
    for group in (each.of(values) for each in groups_of(runner)):
        for field in dataclasses.fields(group):
            is_given = bool(given & {field.name, field.metadata["alias"]}) and getattr(group, field.name) is not False
            if is_given and field.name not in USED_ANYWAY and (needed := group.needed(field.metadata["when"])):
                told.append(f"--{field.name} (needs {needed})")
    return f"without effect here: {', '.join(told)}" if told else ""


@functools.cache
def replicate_args() -> type[Hparams]:
    """The group of all flags --<...>_replicate.

    Every runner accepts all of them, so that the same flags can be used with several commands.
    """
    classes = [desc_class(name) for name in RUNNERS]
    fields = [
        (each.replicate_flag, int, setting(1, f"Which repetition of {each.runner}.", check=in_range(1)))
        for each in classes
        if each.replicate_flag
    ]
    heading = {"heading": "Repetitions"}
    return dataclasses.make_dataclass("ReplicateArgs", fields, bases=(Hparams,), namespace=heading, frozen=True)


def replicates() -> set[str]:
    """The names of all flags --<...>_replicate."""
    return {field.name for field in dataclasses.fields(replicate_args())}
