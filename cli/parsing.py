"""Conversion of dataclasses of hyperparameters to command-line flags, with argparse from the standard library.

(The alternative, tyro, prints a box of 8 to 16 lines for a mistake where this parser prints one line, and takes
0.13 s longer to show the same help.)
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any, NoReturn, get_type_hints

from foundations.errors import UsageError, nearest
from foundations.hparam_fields import Hparams, OneOf, format_value, the_path, whole_path


class Parser(argparse.ArgumentParser):
    """An argument parser that raises a one-line `UsageError` for every mistake."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(message.removeprefix("argument "))

    def parse(self, arguments: Sequence[str], takes_files: bool = False) -> dict[str, Any]:
        """Return all flags with their values; an unknown flag raises an error that suggests the nearest known flag.

        takes_files   words that belong to no flag are files, the value of "files"
        """
        values, unknown = self.parse_known_args(arguments)
        if takes_files:
            values.files = tuple(word for word in unknown if not word.startswith("-"))
            unknown = [word for word in unknown if word.startswith("-")]
        if unknown:
            flag = unknown[0].split("=")[0]
            suggestion = nearest(flag, list(self._option_string_actions)) if flag.startswith("-") else ""
            raise UsageError(f"unknown argument {flag}{suggestion}; see {self.prog} --help")
        return vars(values)


def make_parser(
    program: str,
    summary: str,
    groups: Iterable[type[Hparams]],
    defaults: dict[str, Any],
    hidden: Collection[str] = (),
    add_help: bool = True,
    takes: str = "",
) -> Parser:
    """Build a parser for all fields of the groups.

    `defaults` overrides the defaults of the fields; the help does not show the flags in `hidden`; `takes` are words
    for the usage, before the flags.
    """
    parser = Parser(
        prog=program,
        usage=" ".join(filter(None, [program, takes, "--flag=value ..."])),
        description=summary[0].upper() + summary[1:] + ".",
        allow_abbrev=False,
        add_help=add_help,
        formatter_class=lambda prog: argparse.HelpFormatter(prog, max_help_position=40, width=120),
    )
    for group in groups:
        section = parser.add_argument_group(group.heading)
        types = get_type_hints(group)
        for field in dataclasses.fields(group):
            default = defaults.get(field.name, field.default)
            add_flag(section, field, types[field.name], default, field.name in hidden)
    return parser


def add_flag(section: Any, field: dataclasses.Field, declared: Any, default: Any, hide: bool = False) -> None:
    """Add one field as a flag; a boolean flag, or one with a value for that, may be given alone."""
    names = [f"--{name}" for name in (field.name, field.metadata["alias"]) if name]
    shown = "" if default in ("", ()) or default is False else f" [{format_value(default)}]"
    alone = True if declared is bool else field.metadata["bare"]
    options: dict[str, Any] = {"nargs": "?", "const": alone} if alone else {}
    section.add_argument(
        *names,
        type=_PARSERS[declared],
        default=default,
        metavar=_shown(field, declared),
        help=argparse.SUPPRESS if hide else (field.metadata["help"] + shown).replace("%", "%%"),
        **options,
    )


def _shown(field: dataclasses.Field, declared: Any) -> str:
    """The word or choices that stand for the value of a flag in the help."""
    check, path_in = field.metadata["check"], field.metadata["path_in"]
    if field.metadata["shows"]:
        return str(field.metadata["shows"])
    if isinstance(check, OneOf):
        return "|".join(check.choices)
    return "PATH" if path_in in (the_path, whole_path) else _METAVARS[declared]


def convert(declared: Any, text: str) -> Any:
    """The value that a flag of a type takes from a word; raises UsageError, without the flag's name, for none."""
    try:
        return _PARSERS[declared](text)
    except argparse.ArgumentTypeError as error:
        raise UsageError(str(error)) from error


def _fails_as(expected: str, convert: Callable[[str], Any]) -> Callable[[str], Any]:
    """A converter whose error message says what was expected."""

    def parse(text: str) -> Any:
        try:
            return convert(text)
        except (ValueError, KeyError, ZeroDivisionError):
            raise argparse.ArgumentTypeError(f"expected {expected}, got '{text}'") from None

    return parse


def _number(text: str) -> float:
    numerator, slash, denominator = text.partition("/")
    return float(numerator) / (float(denominator) if slash else 1.0)


def _boolean(text: str) -> bool:
    return {"true": True, "false": False}[text.lower()]


def _boolean_or_integer(text: str) -> bool | int:
    return _boolean(text) if text.lower() in ("true", "false") else int(text)


def _numbers(text: str) -> tuple[float, ...]:
    return tuple(_number(part) for part in text.split(",") if text)


_PARSERS: dict[Any, Callable[[str], Any]] = {
    str: str,
    int: _fails_as("a whole number", int),
    float: _fails_as("a number such as 0.03 or 8/255", _number),
    bool: _fails_as("true or false, or the flag alone", _boolean),
    bool | int: _fails_as("true or a whole number", _boolean_or_integer),
    tuple[float, ...]: _fails_as("numbers such as 0.1,8/255", _numbers),
}
_METAVARS: dict[Any, str] = {
    str: "NAME",
    int: "N",
    float: "X",
    bool: "true|false",
    bool | int: "True|N",
    tuple[float, ...]: "X,X,...",
}
