"""Declaration of hyperparameters: fields of frozen dataclasses with their help text, range and role in the hash.

Does not import torch. The command line (`cli/parsing.py`) and the run hash (`foundations/desc.py`) are both derived
from these declarations, so that every fact about a field is written only once.
"""

from __future__ import annotations

import dataclasses
import math
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar, get_type_hints

from foundations.digests import file_digest
from foundations.errors import UsageError
from foundations.step import iterations

Check = Callable[[Any], "str | None"]  # returns what was expected if the value is invalid, else None


def setting(
    default: Any,
    help: str,
    *,
    check: Check | None = None,
    hashed: bool = True,
    hashed_if_set: bool = False,
    when: str = "",
    alias: str = "",
    bare: str = "",
    path_in: Callable[[str], str] | None = None,
    shows: str = "",
) -> Any:
    """Declare one hyperparameter.

    check   returns what was expected if the value is invalid, else None; numbers must be finite in any case
    hashed  False for a field that changes only speed or display: it never enters the hash of a run
    hashed_if_set   the field enters the hash only if it differs from its default: for flags that were added when runs
            already existed
    when    name of a boolean (or "name=value" for a choice) of the same class, without which this field cannot change a
            result; the field enters the hash only if that condition holds; "a|b" means a or b
    alias   another name of the flag, for published recipes
    bare    value of the flag given alone, for a flag that otherwise takes a name
    path_in returns the path that a value contains, or ""; a file enters the hash by its content, a folder by the names
            and contents of its files
    shows   what stands for the value in the help, such as NAME,NAME (default: the choices, or a word for the type)
    """
    metadata = {"help": help, "check": check, "hashed": hashed, "when": when, "alias": alias, "path_in": path_in}
    metadata |= {"hashed_if_set": hashed_if_set, "bare": bare, "shows": shows}
    return dataclasses.field(default=default, kw_only=True, metadata=metadata)


def in_range(low: float, high: float = math.inf, *, above: bool = False) -> Check:
    """Accept low <= value <= high (low < value if `above`)."""
    opening = "(" if above else "["
    closing = ")" if high == math.inf else "]"
    expected = f"a number in {opening}{low:g}, {'inf' if high == math.inf else format(high, 'g')}{closing}"

    def check(value: Any) -> str | None:
        values = value if isinstance(value, tuple) else (value,)
        fits = all((low < v if above else low <= v) and v <= high for v in values)
        return None if fits else expected

    return check


@dataclass(frozen=True)
class OneOf:
    """Accept only these names."""

    choices: tuple[str, ...]

    def __call__(self, value: Any) -> str | None:
        return None if value in self.choices else f"one of {', '.join(self.choices)}"


def one_of(*choices: str) -> Check:
    """Accept only these names; the help shows them."""
    return OneOf(choices)


def whole_severities(value: tuple[float, ...]) -> str | None:
    """Accept one or more whole numbers from 1 to 5."""
    fits = value and all(number in (1, 2, 3, 4, 5) for number in value)
    return None if fits else "whole numbers from 1 to 5, such as 1,3,5"


def steps(value: str) -> str | None:
    """Accept a number of epochs or iterations, such as 40ep or 5000it."""
    try:
        iterations(value, 1)
    except UsageError:
        return "a number of epochs or iterations such as 40ep or 5000it"
    return None


def steps_list(value: str) -> str | None:
    """Accept an empty string or a comma-separated list of steps."""
    return next((expected for part in value.split(",") if value and (expected := steps(part))), None)


SHAPE = re.compile(r"(\d+)x(\d+)x(\d+)")


def shape(text: str) -> str | None:
    """Accept a shape CxHxW, such as 3x32x32."""
    found = SHAPE.fullmatch(text)
    return None if found and min(map(int, found.groups())) > 0 else "channels, height and width such as 3x32x32"


def the_path(value: str) -> str:
    """The value itself, for a flag whose value is a path."""
    return value


def path_of_file(value: str) -> str:
    """The path of `file:PATH`; "" for other sources."""
    return value.removeprefix("file:") if value.startswith("file:") else ""


def split_kind(value: str) -> tuple[str, str]:
    """Kind and path of a value `kind:PATH`, or "" and the path; a file whose name has a colon is a path."""
    kind, colon, path = value.partition(":")
    return (kind, path) if colon and kind.isidentifier() and not os.path.exists(value) else ("", value)


def whole_path(value: str) -> str:
    """The path of a value PATH or `kind:PATH`."""
    return split_kind(value)[1]


def path_after_kind(value: str) -> str:
    """The path of `kind:PATH` or `kind:model@PATH`; "" for a kind alone."""
    argument = value.partition(":")[2]
    return argument.partition("@")[2] or argument


def path_after_names(value: str) -> str:
    """The path of `NAME,NAME@PATH`; "" for an empty value."""
    return value.partition("@")[2]


def named_in_file(value: str) -> str | None:
    """Accept an empty string, or one or more names in a file of Python."""
    names, at, path = value.partition("@")
    named = all(name.strip().isidentifier() for name in names.split(","))
    return None if not value or (named and at and path.endswith(".py")) else "NAME,NAME@FILE.py"


def chunks(value: bool | int) -> str | None:
    """Accept True (the number is chosen by size) or a positive number of chunks."""
    return None if value is True or (value is not False and value >= 1) else "True or a number of chunks from 1 up"


Group = TypeVar("Group", bound="Hparams")


@dataclass(frozen=True)
class Hparams:
    """Base class of all groups of hyperparameters; checks types, finiteness and ranges when an object is created.

    heading   title of the group in --help
    """

    heading: ClassVar[str] = ""

    def __post_init__(self) -> None:
        types = get_type_hints(type(self))
        for field in dataclasses.fields(self):
            value = checked(field, types[field.name], getattr(self, field.name))
            object.__setattr__(self, field.name, value)
            path_in = field.metadata["path_in"]
            if path_in and (path := path_in(value)).startswith("~"):  # after --flag=, a shell leaves it as it is
                object.__setattr__(self, field.name, value.removesuffix(path) + os.path.expanduser(path))

    @classmethod
    def of(cls: type[Group], values: dict[str, Any]) -> Group:
        """Build the group from one flat dictionary of flags; flags of other groups are ignored."""
        return cls(**{field.name: values[field.name] for field in dataclasses.fields(cls) if field.name in values})

    def hashed(self) -> dict[str, Any]:
        """The fields that can change a result, including those with default values."""
        return {
            field.name: self._hashed_value(field)
            for field in dataclasses.fields(self)
            if field.metadata["hashed"]
            and self.is_active(field.metadata["when"])
            and not (field.metadata["hashed_if_set"] and getattr(self, field.name) == field.default)
        }

    def _hashed_value(self, field: dataclasses.Field) -> Any:
        value, path_in = getattr(self, field.name), field.metadata["path_in"]
        path = path_in(value) if path_in else ""
        if not path:
            return value
        try:
            return f"{value.removesuffix(path)}{file_digest(path)}"
        except OSError as error:
            raise UsageError(f"{flag_of(field)}: cannot read {error.filename or path}: {error.strerror}") from error

    def is_active(self, when: str) -> bool:
        """Check whether a condition such as 'N_aug' or 'adv_train_attack_norm=L2' holds.

        The conditions of the fields that it names must hold too.
        """
        return not when or any(self._holds(condition) for condition in when.split("|"))

    def needed(self, when: str) -> str:
        """The flags that a condition lacks, such as "--N_aug or --adv_train"; "" if it holds."""
        if self.is_active(when):
            return ""
        told = []
        for condition in when.split("|"):
            name, _, wanted = condition.partition("=")
            field = self.__dataclass_fields__.get(name)
            value = getattr(self, name)
            above = field.metadata["when"] if field and (value == wanted if wanted else bool(value)) else ""
            told.append(self.needed(above) if above else f"--{condition}")
        return " or ".join(told)

    def _holds(self, condition: str) -> bool:
        name, _, wanted = condition.partition("=")
        value = getattr(self, name)
        holds = value == wanted if wanted else bool(value)
        field = self.__dataclass_fields__.get(name)  # None for a property
        return holds and (field is None or self.is_active(field.metadata["when"]))


def checked(field: dataclasses.Field, declared: Any, value: Any) -> Any:
    """The value of a field, of its type; raises UsageError for another type, NaN, infinity, or out of its range."""
    value = _fit_type(flag_of(field), declared, value)
    check = field.metadata["check"]
    if check is not None and (expected := check(value)):
        raise UsageError(f"{flag_of(field)}: expected {expected}, got {format_value(value)}")
    return value


def flag_of(field: dataclasses.Field) -> str:
    """The flag of a field for messages, with its other name: whoever gave that one should find it."""
    return "/".join(f"--{name}" for name in (field.name, field.metadata["alias"]) if name)


def _fit_type(flag: str, expected: Any, value: Any) -> Any:
    """The value, with int converted to float where declared; raises UsageError for other types, NaN and infinity."""
    if expected is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if expected == tuple[float, ...]:
        value = tuple(float(v) for v in value)
    elif not isinstance(value, expected) or (expected is int and isinstance(value, bool)):
        raise UsageError(f"{flag}: expected {getattr(expected, '__name__', expected)}, got {value!r}")
    for number in value if isinstance(value, tuple) else (value,):
        if isinstance(number, float) and not math.isfinite(number):
            raise UsageError(f"{flag}: expected a finite number, got {number}")
    return value


def format_value(value: Any) -> str:
    """A value as it is written on the command line: 8/255 instead of 0.03137..., lists with commas."""
    if isinstance(value, bool) or not isinstance(value, (float, tuple)):
        return str(value)
    if isinstance(value, tuple):
        return ",".join(format_value(v) for v in value)
    is_8_bit_level = len(repr(value)) > 8 and (value * 255).is_integer()
    return f"{round(value * 255)}/255" if is_8_bit_level else f"{value!r}".removesuffix(".0")
