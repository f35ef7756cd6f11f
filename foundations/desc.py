"""Descriptions of runs: hyperparameters -> hash -> directory.

A description is a frozen dataclass that declares groups of hyperparameters and the runs that it builds on; its flags,
hash and directory are derived here from these declarations.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, get_type_hints

from foundations.errors import UsageError
from foundations.files import read_json
from foundations.hparam_fields import Hparams


def digest(content: Any) -> str:
    """The first 12 hex digits of the SHA-256 of canonical JSON (sorted keys, no spaces)."""
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def builds_on(
    needed: Callable[[Any], bool] = lambda desc: True,
    implied: Callable[[Any], bool] = lambda desc: False,
    default: Any = dataclasses.MISSING,
) -> Any:
    """Declare a run that this one reads; its hash and replicate enter the hash of this run if `needed(desc)` holds.

    implied   whether its flags follow from the other flags, and are left out of the command that repeats this run
    """
    return dataclasses.field(kw_only=True, default=default, metadata={"needed": needed, "implied": implied})


GIVEN_TO_SOME = ("class_weights", "random_labels_fraction")  # flags that one run has and another, below it, has not


@dataclass(frozen=True, kw_only=True)
class Desc:
    """Description of one run. Subclasses add fields of type `Hparams`, and of type `Desc` through `builds_on`.

    runner          name on the command line
    purpose         what it does, as one line of --help
    runner_class    "module:Class" that executes the run
    replicate_flag  the flag that gives the number of the repetition
    more_flags      groups of flags that are not part of the description
    has_toggles     whether it takes --toggle_<option>, and makes one run for each combination
    takes           the files that it takes without a flag, as usage shows them; from_flags has them as "files"
    always_anew     whether it runs every time, because what it shows may have changed; it is never complete
    """

    runner: ClassVar[str] = ""
    purpose: ClassVar[str] = ""
    runner_class: ClassVar[str] = ""
    replicate_flag: ClassVar[str] = ""
    more_flags: ClassVar[tuple[type[Hparams], ...]] = ()
    has_toggles: ClassVar[bool] = False
    takes: ClassVar[str] = ""
    always_anew: ClassVar[bool] = False

    seed: int = 0
    replicate: int = 1

    @classmethod
    def parts(cls) -> dict[str, Any]:
        """Name and class of every field that is a group of hyperparameters or a run."""
        hints = get_type_hints(cls)
        return {
            field.name: hints[field.name]
            for field in dataclasses.fields(cls)
            if isinstance(hints[field.name], type) and issubclass(hints[field.name], (Hparams, Desc))
        }

    @classmethod
    def hparams_classes(cls) -> Iterator[type[Hparams]]:
        """Every group of hyperparameters of this description and of the runs it builds on, each once, as declared."""
        seen: dict[type[Hparams], None] = {}
        for part in cls.parts().values():
            seen.update(dict.fromkeys(part.hparams_classes() if issubclass(part, Desc) else [part]))
        yield from seen

    @classmethod
    def flag_groups(cls) -> Iterator[type[Hparams]]:
        """All groups of flags: hyperparameters and `more_flags`, of this description and of the runs it builds on."""
        runs = [part for part in cls.parts().values() if issubclass(part, Desc)]
        beside = (group for run in runs for group in run.flag_groups())
        yield from dict.fromkeys([*cls.hparams_classes(), *cls.more_flags, *beside])

    @classmethod
    def runs_below(cls) -> Iterator[type[Desc]]:
        """The descriptions of the runs that this one may build on, those first that others build on."""
        runs = [part for part in cls.parts().values() if issubclass(part, Desc)]
        yield from dict.fromkeys(run for part in runs for run in (*part.runs_below(), part))

    @classmethod
    def replicate_flags(cls) -> set[str]:
        """Flags that give the number of the repetition, of this run and of the runs it builds on."""
        below = (part.replicate_flags() for part in cls.parts().values() if issubclass(part, Desc))
        return {cls.replicate_flag}.union(*below) - {""}

    @classmethod
    def summarize(cls, result: dict[str, Any]) -> str:
        """The result as text for the user: a line, or a table."""
        return ""

    @classmethod
    def headline(cls, result: dict[str, Any]) -> dict[str, str]:
        """The main figures of a result, for a table over several runs."""
        return {}

    @classmethod
    def from_flags(cls, values: dict[str, Any]) -> Any:
        """Build the description, and those it builds on, from one flat dictionary of flags."""
        made: dict[str, Any] = {}
        for name, part in cls.parts().items():
            made[name] = part.from_flags(values) if issubclass(part, Desc) else part.of(values)
        return cls(seed=values.get("seed", 0), replicate=values.get(cls.replicate_flag, 1), **made)

    @property
    def dataset_name(self) -> str:
        """The name of the data set of this run; a part of its directory."""
        dataset: Any = vars(self)["dataset"]
        return dataset.dataset_name

    @property
    def name(self) -> str:
        """A readable name of the run; comes before the hash in its directory."""
        return self.runner

    def hashed(self) -> dict[str, Any]:
        """Everything that can change the result of this run, except its replicate number."""
        content: dict[str, Any] = {"runner": self.runner, "seed": self.seed}
        for name, run in self.needed_runs().items():
            content[name] = {"hash": run.hash, "replicate": run.replicate}
        for field in dataclasses.fields(self):
            # A group that has nothing to say leaves no trace: hashes are those of the time before there was the group.
            if isinstance(group := getattr(self, field.name), Hparams) and (entries := group.hashed()):
                content[field.name] = entries
        return content

    def needed_runs(self) -> dict[str, Any]:
        """The runs that this one reads, as it is configured."""
        return {
            field.name: getattr(self, field.name)
            for field in dataclasses.fields(self)
            if "needed" in field.metadata and field.metadata["needed"](self)
        }

    def flags(self) -> dict[str, Any]:
        """All flags of this description and of the runs that it reads, in one flat dictionary."""
        flags: dict[str, Any] = {}
        for field in dataclasses.fields(self):
            part = getattr(self, field.name)
            if isinstance(part, Hparams):
                flags |= dataclasses.asdict(part)
        for name, run in self.needed_runs().items():
            if self.__dataclass_fields__[name].metadata["implied"](self):
                # Its own flags follow from others; those of the anchors that it uses are of this run only where it
                # builds on them itself.
                run = run.anchors
            # Some of these runs may use class weights, or random labels, and others not: keep those that are given.
            flags |= {flag: value for flag, value in run.flags().items() if value or flag not in GIVEN_TO_SOME}
        if self.seed:
            flags["seed"] = self.seed
        if self.replicate != 1:
            flags[self.replicate_flag] = self.replicate
        return flags

    @property
    def hash(self) -> str:
        return digest(self.hashed())

    def is_satisfied_by(self, result: dict[str, Any]) -> bool:
        """Check whether a stored result contains everything that was asked for, also by flags outside the hash."""
        return True

    def directory(self, root: Path) -> Path:
        """The directory of this run below a root."""
        folder = root / "runs" / self.dataset_name / self.runner
        return folder / f"{self.name}_{self.hash}" / f"replicate_{self.replicate}"

    def instead(self, values: dict[str, Any], root: Path, beside: dict[str, Any]) -> str:
        """Text for the user where flags ask for something else than the run, which is then done; else "". On all ranks.

        beside   flags that were given and describe no run, such as --device
        """
        return ""

    def opened(self, root: Path) -> Path:
        """The path that the user opens to see the result: the directory, or a page."""
        return self.directory(root)

    def stored(self) -> dict[str, Any]:
        """The content of hparams.json."""
        return {
            "runner": self.runner,
            "dataset_name": self.dataset_name,
            "name": self.name,
            "hash": self.hash,
            "replicate": self.replicate,
            "hashed": self.hashed(),
        }


@dataclass(frozen=True)
class StoredRun:
    """A run given by its directory; used in place of the `Desc` that made it."""

    path: Path
    content: dict[str, Any]

    @classmethod
    def read(cls, path: Path, root: Path, runner: str) -> StoredRun:
        """Read hparams.json of a run's directory, given directly or relative to the root.

        Raises UsageError if the file was edited or belongs to another runner.
        """
        path = path if path.is_dir() else root / path
        file = path / "hparams.json"
        if not file.is_file():
            raise UsageError(f"expected a run's directory (with hparams.json), got {path}")
        content = read_json(file)
        told = ("runner", "name", "hash", "dataset_name")
        is_ours = (
            isinstance(content, dict)
            and all(isinstance(content.get(name), str) for name in told)
            and isinstance(content.get("replicate"), int)
            and isinstance(content.get("hashed"), dict)
        )
        if not is_ours or content["hash"] != digest(content["hashed"]):
            raise UsageError(
                f"{file} was edited or written by another version: its hash does not fit its content; put the file "
                "back, or remove the directory and run again"
            )
        if content["runner"] != runner:
            raise UsageError(f"expected the directory of a {runner} run, got one of {content['runner']}: {path}")
        return cls(path, content)

    @property
    def name(self) -> str:
        return self.content["name"]

    @property
    def hash(self) -> str:
        return self.content["hash"]

    @property
    def replicate(self) -> int:
        return self.content["replicate"]

    @property
    def dataset_name(self) -> str:
        return self.content["dataset_name"]

    @property
    def relative(self) -> str:
        """The path below the root in which the run was made: runs/<dataset>/train/<name>_<hash>/replicate_<k>."""
        return "/".join(self.path.absolute().parts[-5:])

    def directory(self, root: Path) -> Path:
        return self.path

    def flags(self) -> dict[str, Any]:
        """The flag that names this run."""
        return {"train_dir": self.relative}


def derive_seed(seed: int, replicate: int, purpose: str) -> int:
    """A 63-bit seed for one purpose of one run; independent of rank, batch size and other hyperparameters."""
    text = f"{seed}/{replicate}/{purpose}"
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1
