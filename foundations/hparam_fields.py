"""How hyperparameters are declared: fields of frozen dataclasses carry their own help, range and role in the hash.

Torch-free. The command line (`cli/parsing.py`) and the run hash (`foundations/desc.py`) are both
derived from these declarations; nothing about a field is said twice.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar, get_type_hints

from foundations.errors import UsageError
from foundations.files import file_digest
from foundations.step import iterations

Check = Callable[[Any], "str | None"]  # returns what was expected when the value is unfit, else None


def setting(
    default: Any,
    help: str,
    *,
    check: Check | None = None,
    hashed: bool = True,
    hashed_if_set: bool = False,
    when: str = "",
    alias: str = "",
    path_in: Callable[[str], str] | None = None,
) -> Any:
    """Declare one hyperparameter.

    check   returns what was expected if the value is unfit, else None; numbers must be finite in any case
    hashed  False for what only changes speed or display: it never enters the hash of a run
    hashed_if_set   it enters the hash only where it is not the default: for flags that came later than runs
    when    name of a boolean (or a choice, "name=value") of the same class without which this field cannot
            change a result; it enters the hash only where that one is on; "a|b" means either
    alias   another name of the flag, for published recipes
    path_in the path that a value holds, or ""; a file enters the hash by its content, a folder by the names and
            sizes of its files
    """
    metadata = {"help": help, "check": check, "hashed": hashed, "when": when, "alias": alias, "path_in": path_in}
    metadata["hashed_if_set"] = hashed_if_set
    return dataclasses.field(default=default, kw_only=True, metadata=metadata)


def in_range(low: float, high: float = math.inf, *, above: bool = False) -> Check:
    """Accept low <= value <= high (low < value when `above`)."""
    opening = "(" if above else "["
    closing = ")" if high == math.inf else "]"
    expected = f"a number in {opening}{low:g}, {'inf' if high == math.inf else format(high, 'g')}{closing}"

    def check(value: Any) -> str | None:
        values = value if isinstance(value, tuple) else (value,)
        fits = all((low < v if above else low <= v) and v <= high for v in values)
        return None if fits else expected

    return check


def one_of(*choices: str) -> Check:
    """Accept exactly these names."""
    return lambda value: None if value in choices else f"one of {', '.join(choices)}"


def steps(value: str) -> str | None:
    """Accept 40ep or 5000it."""
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
    """Accept CxHxW."""
    found = SHAPE.fullmatch(text)
    return None if found and min(map(int, found.groups())) > 0 else "channels, height and width such as 3x32x32"


def the_path(value: str) -> str:
    """The value itself is a path."""
    return value


def path_of_file(value: str) -> str:
    """The path of `file:PATH`; other sources have none."""
    return value.removeprefix("file:") if value.startswith("file:") else ""


def whole_path(value: str) -> str:
    """The value is a path, perhaps after a `kind:`."""
    return value.partition(":")[2] or value


def path_after_kind(value: str) -> str:
    """The path of `kind:PATH` or `kind:model@PATH`; a kind alone has none."""
    argument = value.partition(":")[2]
    return argument.partition("@")[2] or argument


def chunks(value: bool | int) -> str | None:
    """Accept True (chosen by size) or a positive number of chunks."""
    return None if value is True or (value is not False and value >= 1) else "True or a number of chunks from 1 up"


Group = TypeVar("Group", bound="Hparams")


@dataclass(frozen=True)
class Hparams:
    """Base of all groups of hyperparameters: checks types, finiteness and ranges when made.

    heading   of the group in --help
    """

    heading: ClassVar[str] = ""

    def __post_init__(self) -> None:
        types = get_type_hints(type(self))
        for field in dataclasses.fields(self):
            value = _fit_type(field.name, types[field.name], getattr(self, field.name))
            object.__setattr__(self, field.name, value)
            check = field.metadata["check"]
            if check is not None and (expected := check(value)):
                raise UsageError(f"--{field.name}: expected {expected}, got {format_value(value)}")

    @classmethod
    def of(cls: type[Group], values: dict[str, Any]) -> Group:
        """From one flat dictionary of flags, in which there may be others."""
        return cls(**{field.name: values[field.name] for field in dataclasses.fields(cls) if field.name in values})

    def hashed(self) -> dict[str, Any]:
        """The fields that can change a result, defaults included."""
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
            raise UsageError(f"--{field.name}: cannot read {path}: {error.strerror}") from error

    def is_active(self, when: str) -> bool:
        """Whether a condition such as 'N_aug' or 'adv_train_attack_norm=L2' holds here, with what it rests on."""
        return not when or any(self._holds(condition) for condition in when.split("|"))

    def _holds(self, condition: str) -> bool:
        name, _, wanted = condition.partition("=")
        value = getattr(self, name)
        holds = value == wanted if wanted else bool(value)
        field = self.__dataclass_fields__.get(name)  # None for a property
        return holds and (field is None or self.is_active(field.metadata["when"]))


def _fit_type(name: str, expected: Any, value: Any) -> Any:
    """The value with ints widened to floats where floats are declared; refuses other types and NaN."""
    if expected is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if expected == tuple[float, ...]:
        value = tuple(float(v) for v in value)
    elif not isinstance(value, expected) or (expected is int and isinstance(value, bool)):
        raise UsageError(f"--{name}: expected {getattr(expected, '__name__', expected)}, got {value!r}")
    for number in value if isinstance(value, tuple) else (value,):
        if isinstance(number, float) and not math.isfinite(number):
            raise UsageError(f"--{name}: expected a finite number, got {number}")
    return value


def format_value(value: Any) -> str:
    """A value as one would write it on the command line: 8/255 instead of 0.03137..., lists with commas."""
    if isinstance(value, bool) or not isinstance(value, (float, tuple)):
        return str(value)
    if isinstance(value, tuple):
        return ",".join(format_value(v) for v in value)
    is_8_bit_level = len(repr(value)) > 8 and (value * 255).is_integer()
    return f"{round(value * 255)}/255" if is_8_bit_level else f"{value!r}".removesuffix(".0")
