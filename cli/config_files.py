"""Configuration files: flags in TOML, read as if they stood on the command line before its own.

dataset_name = "digits"     # for all runners that have this flag
lr = 0.05
[test]                      # for this runner, over the lines above, and for what builds on its runs
standard_eval = true
"""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, get_type_hints

from cli.flags import flags_of, groups_of
from cli.parsing import Parser, convert
from cli.published_flags import ELSEWHERE, SUITES, TRANSLATIONS, translated
from cli.runner_registry import RUNNERS, desc_class
from cli.shared_args import ToggleHparams
from foundations.errors import UsageError, nearest
from foundations.hparam_fields import Hparams, checked
from foundations.program import COMMAND
from foundations.text_files import read_text
from foundations.toml_files import parse_toml

COMMAND_LINE_ONLY = ("config", "debug", "display_output_location", "help")
FILES = "files"  # the words that `verify` and `merge` take without a flag
TOLD = 4  # keys of other runners that a note names

# Type of a flag -> types of TOML that it takes, and how a message names them. Lists are of numbers and text.
TAKEN: dict[Any, tuple[tuple[type, ...], str]] = {
    bool: ((bool,), "true or false"),
    bool | int: ((bool, int), "true or a whole number"),
    int: ((int, str), "a whole number"),
    float: ((int, float, str), 'a number such as 0.03 or "8/255"'),
    str: ((str, list), "text, or a list of names"),
    tuple[float, ...]: ((int, float, str, list), 'numbers such as [0.1, "8/255"]'),
}


@dataclass
class Configuration:
    """The words of the command line that the files of --config stand for."""

    words: list[str] = field(default_factory=list)
    files: tuple[str, ...] = ()
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Entry:
    """A key of a file, in the table of a runner or above all tables (table "")."""

    path: str
    table: str
    key: str
    value: Any
    line: int

    @property
    def place(self) -> str:
        return f"{self.path}, line {self.line}" if self.line else self.path

    def mistake(self, message: str) -> UsageError:
        return UsageError(f"{self.place}: {message}")


def configured(runner: str, arguments: Sequence[str]) -> Configuration:
    """Read the files that --config names, in their order: a later one wins, as a later flag does."""
    parser = Parser(add_help=False, allow_abbrev=False)
    parser.add_argument("--config", action="append", default=[])
    made = Configuration()
    for path in parser.parse_known_args(arguments)[0].config:
        _add_file(made, runner, path)
    return made


def _add_file(made: Configuration, runner: str, path: str) -> None:
    if not path:
        raise UsageError("--config: expected a file, got none")
    entries = list(_entries(path))
    for entry in entries:
        _check_name(entry)
    own = known(runner)
    strangers = [entry.key for entry in entries if not entry.table and entry.key not in own]
    if strangers:
        told = ", ".join(strangers[:TOLD]) + (", ..." if len(strangers) > TOLD else "")
        made.notes.append(f"{path}: left out what {runner} does not have: {told}")
    below = [each.runner for each in desc_class(runner).runs_below() if each.runner in RUNNERS]
    for table in ("", *below, runner):
        mine = [entry for entry in entries if entry.table == table and entry.key in own]
        if table in below:
            mine = [entry for entry in mine if _flags_set(runner, entry) <= describing(table)]
            made.notes += [
                f"{path}: {runner} takes {entry.key} from [{table}], as that of the run it builds on; it is one of its "
                f"own flags too: [{runner}] has the last word"
                for entry in mine
                if _flags_set(runner, entry) & own_flags(runner)
            ]
        _refuse_doubles(runner, mine)
        written = [word for entry in mine for word in _words(runner, entry)]
        words, notes = translated(written, flags_of(runner).__contains__)
        made.words += words
        made.notes += notes
        made.files = next((tuple(_file_names(entry)) for entry in mine if entry.key == FILES), made.files)


def _entries(path: str) -> Iterator[Entry]:
    """All keys of a file; raises UsageError for a table that is none of a runner."""
    text = read_text(path)
    for key, value in parse_toml(text, path).items():
        if not isinstance(value, dict):
            yield Entry(path, "", key, value, _line_of(text, "", key))
            continue
        if key not in RUNNERS:
            raise UsageError(
                f"{path}: [{key}]: expected a runner{nearest(key, list(RUNNERS))}, one of {', '.join(RUNNERS)}"
            )
        for name, inner in value.items():
            if isinstance(inner, dict):
                raise UsageError(f"{path}: [{key}.{name}]: expected no table in a table; write its flags in [{key}]")
            yield Entry(path, key, name, inner, _line_of(text, key, name))


def _line_of(text: str, table: str, key: str) -> int:
    """The number of the line where a key of a table stands; 0 if it is written in an unusual way."""
    current, name = "", f"[\"']?{re.escape(key)}[\"']?"
    dotted = re.compile(rf"\s*{re.escape(table)}\s*\.\s*{name}\s*=")
    for number, line in enumerate(text.split("\n"), start=1):
        if header := re.match(r"\s*\[\s*([^\[\]]+?)\s*\]", line):
            current = header[1].strip("\"'")
        elif re.match(rf"\s*{name}\s*=", line) if current == table else not current and dotted.match(line):
            return number
    return 0


@functools.cache
def known(runner: str) -> set[str]:
    """The keys that a runner takes: its flags, the published ones that stand for some of them, and its files."""
    published = {*TRANSLATIONS, *ELSEWHERE} | (set(SUITES) if runner == "evaluate_threat" else set())
    files = {FILES} if desc_class(runner).takes else set()
    return flags_of(runner) | published | files


def describing(runner: str) -> set[str]:
    """The flags that say which run of a runner is meant: those that enter its hash, and repetitions.

    A run that builds on it reads them in its table, so that `test` finds the model that `train` made.
    """
    described = desc_class(runner)
    groups = [*described.hparams_classes(), *([ToggleHparams] if described.has_toggles else [])]
    names = {each.name for group in groups for each in dataclasses.fields(group) if each.metadata["hashed"]}
    return {"seed", *names, *described.replicate_flags()}


def own_flags(runner: str) -> set[str]:
    """The flags of a runner's own groups, which are not only those of the runs that it builds on."""
    described = desc_class(runner)
    groups = [part for part in described.parts().values() if issubclass(part, Hparams)]
    return {"seed", *(each.name for group in groups for each in dataclasses.fields(group))}


def _check_name(entry: Entry) -> None:
    """Raise UsageError for a key that no runner knows, or not the one of its table."""
    if entry.key in COMMAND_LINE_ONLY:
        raise entry.mistake(f"{entry.key} stands on the command line alone")
    of = {name: known(name) for name in RUNNERS}
    here = of[entry.table] if entry.table else set().union(*of.values())
    if entry.key in here:
        return
    others = [name for name in RUNNERS if entry.key in of[name]]
    if others:
        raise entry.mistake(f"{entry.table} has no {entry.key}, which is a flag of {', '.join(others)}")
    see = f"{COMMAND} {entry.table or 'RUNNER'} --help"
    raise entry.mistake(f"unknown key {entry.key}{nearest(entry.key, sorted(here))}; see {see}")


@functools.cache
def _fields(runner: str) -> dict[str, tuple[dataclasses.Field, Any]]:
    """Name or alias of each flag of a runner -> its field and type."""
    found: dict[str, tuple[dataclasses.Field, Any]] = {}
    for group in groups_of(runner):
        types = get_type_hints(group)
        for each in dataclasses.fields(group):
            found |= {name: (each, types[each.name]) for name in (each.name, each.metadata["alias"]) if name}
    return found


def _words(runner: str, entry: Entry) -> list[str]:
    """The words that an entry stands for; raises UsageError for a value that the flag does not take."""
    if entry.key == FILES:
        return []
    fields = _fields(runner)
    if entry.key not in fields:
        return [f"--{entry.key}={_text(entry, entry.value)}"]
    flag, declared = fields[entry.key]
    taken, expected = TAKEN[declared]
    if entry.value is True and flag.metadata["bare"]:
        return [f"--{flag.name}={flag.metadata['bare']}"]
    is_other_number = isinstance(entry.value, bool) and bool not in taken
    if is_other_number or not isinstance(entry.value, taken):
        raise entry.mistake(f"{entry.key}: expected {expected}, got {_shown(entry.value)}")
    text = _text(entry, entry.value)
    try:
        checked(flag, declared, convert(declared, text))
    except UsageError as error:
        raise entry.mistake(f"{entry.key}: {str(error).removeprefix(f'--{flag.name}: ')}") from error
    return [f"--{flag.name}={text}"]


def _text(entry: Entry, value: Any) -> str:
    """A value as a word of the command line."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        if any(isinstance(part, (bool, list, dict)) for part in value):
            raise entry.mistake(f"{entry.key}: expected a list of numbers or of text, got {_shown(value)}")
        return ",".join(_text(entry, part) for part in value)
    if not isinstance(value, (str, int, float)):
        raise entry.mistake(f"{entry.key}: expected text or a number, got {_shown(value)}")
    return str(value)


def _file_names(entry: Entry) -> list[str]:
    names = [entry.value] if isinstance(entry.value, str) else entry.value
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise entry.mistake(f'{FILES}: expected paths such as ["a.zip", "b.zip"], got {_shown(entry.value)}')
    return names


def _refuse_doubles(runner: str, entries: Sequence[Entry]) -> None:
    """Raise UsageError for two keys of one table that set the same flag, by an alias or a published name."""
    seen: dict[str, Entry] = {}
    for entry in entries:
        for name in _flags_set(runner, entry):
            if name in seen:
                raise entry.mistake(f"{entry.key} is the flag {seen[name].key} of line {seen[name].line} again")
            seen[name] = entry


def _flags_set(runner: str, entry: Entry) -> set[str]:
    """The flags that a key sets, by their own names. Suites add up, each is its own."""
    if entry.key in SUITES:
        return {entry.key}
    fields = _fields(runner)
    try:
        words = translated(_words(runner, entry), flags_of(runner).__contains__)[0]
    except UsageError as error:
        raise error if entry.path in str(error) else entry.mistake(str(error)) from error
    names = [word.removeprefix("--").partition("=")[0] for word in words]
    return {fields[name][0].name if name in fields else name for name in names}


def _shown(value: Any) -> str:
    shown = str(value).lower() if isinstance(value, bool) else repr(value) if isinstance(value, str) else str(value)
    return shown if len(shown) < 60 else f"{shown[:57]}..."
