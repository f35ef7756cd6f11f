"""Descriptions of multi_train and multi_test: several runs of one runner."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from foundations.desc import Desc
from foundations.hparam_fields import Hparams, setting, the_path
from foundations.results import markdown_table
from models.robustbench_registry import selection
from runners.checks import names_in
from runners.completion import plan
from runners.multi.sweep import write_sweep
from runners.test.desc import TestDesc
from runners.test.summary import then_project_table
from runners.train.desc import TrainDesc

TOGGLE = "toggle_"


@dataclass(frozen=True)
class PlanArgs(Hparams):
    """Flags to show or write the plan without running it."""

    heading: ClassVar[str] = "Plan"

    dry_run: bool = setting(False, "Print the runs with their directories, and run none.", hashed=False)
    write_commands: str = setting(
        "",
        "Write the commands of the runs that are left, those that they build on first, into this file, and run none.",
        path_in=the_path,
        hashed=False,
    )
    write_slurm: str = setting(
        "", "Also write a script that runs that list as arrays of Slurm.", path_in=the_path, hashed=False
    )


@dataclass(frozen=True, kw_only=True)
class MultiDesc(Desc):
    """Several runs of one runner, one after the other: every combination of the toggled booleans.

    With pretrained models, also every model of a comma-separated --model_name; of the short selection if none is named.
    """

    runner_class = "runners.multi.runner:MultiRunner"
    more_flags = (PlanArgs,)
    has_toggles = True
    child_class: ClassVar[type[Desc]] = Desc

    children: tuple[Any, ...] = ()
    toggled: tuple[str, ...] = ()
    model_names: tuple[str, ...] = ()

    @classmethod
    def hparams_classes(cls) -> Any:
        yield from cls.child_class.hparams_classes()

    @classmethod
    def flag_groups(cls) -> Any:
        yield from dict.fromkeys([*cls.child_class.flag_groups(), *cls.more_flags])

    @classmethod
    def runs_below(cls) -> Any:
        yield from (*cls.child_class.runs_below(), cls.child_class)

    @classmethod
    def replicate_flags(cls) -> set[str]:
        return cls.child_class.replicate_flags()

    @classmethod
    def from_flags(cls, values: dict[str, Any]) -> Any:
        """Build one child for each combination; without toggles, the single child that the flags describe."""
        toggled = tuple(flag.removeprefix(TOGGLE) for flag, on in values.items() if flag.startswith(TOGGLE) and on)
        combinations: list[dict[str, bool]] = [{}]
        for name in toggled:
            combinations = [{**rest, name: value} for rest in combinations for value in (False, True)]
        names = _model_names(values)
        children = [
            cls.child_class.from_flags({**values, "model_name": name, **combination})
            for name in names
            for combination in combinations
        ]
        # Toggles do not change a test of published weights: equal children are kept once.
        distinct = tuple({(child.hash, child.replicate): child for child in children}.values())
        return cls(seed=values.get("seed", 0), children=distinct, toggled=toggled, model_names=names)

    @property
    def dataset_name(self) -> str:
        return self.children[0].dataset_name

    @property
    def name(self) -> str:
        one = "".join(self.children[0].name.rsplit("_standard", 1))
        return "+".join([one if len(self.model_names) == 1 else f"{len(self.model_names)}_models", *self.toggled])

    def hashed(self) -> dict[str, Any]:
        children = [{"hash": child.hash, "replicate": child.replicate} for child in self.children]
        return {"runner": self.runner, "children": children}

    def flags(self) -> dict[str, Any]:
        names = {"model_name": ",".join(self.model_names)} if len(self.model_names) > 1 else {}
        flags: dict[str, Any] = {}
        for child in reversed(self.children):  # the first has nothing toggled on, only others may use anchors
            flags |= child.flags()
        return flags | names | {f"{TOGGLE}{name}": True for name in self.toggled}

    def instead(self, values: dict[str, Any], root: Path, beside: dict[str, Any]) -> str:
        """Print the plan, or write it as files that run it elsewhere."""
        asked = PlanArgs.of(values)
        if asked.dry_run:
            return plan(self, root)
        if asked.write_commands or asked.write_slurm:
            return write_sweep(self, root, asked.write_commands, asked.write_slurm, beside)
        return ""

    @classmethod
    def summarize(cls, result: dict[str, Any]) -> str:
        """A table with one row for each child: its name, its main metrics, and how it ended."""
        children = result["children"]
        metrics = [cls.child_class.headline(child["result"]) if "result" in child else {} for child in children]
        columns = list(dict.fromkeys(name for row in metrics for name in row))
        rows = [
            [child["name"], *(row.get(name, "-") for name in columns), child.get("error", "complete")]
            for child, row in zip(children, metrics, strict=True)
        ]
        return markdown_table(["run", *columns, "status"], rows)


@dataclass(frozen=True, kw_only=True)
class MultiTrainDesc(MultiDesc):
    """Training runs over all combinations of the toggled booleans."""

    runner = "multi_train"
    purpose = "train over all combinations of toggled options"
    child_class = TrainDesc


@dataclass(frozen=True, kw_only=True)
class MultiTestDesc(MultiDesc):
    """Evaluations of the models of `multi_train` with the same toggles."""

    runner = "multi_test"
    purpose = "test over all combinations of toggled options"
    child_class = TestDesc

    @classmethod
    def runs_below(cls) -> Any:
        yield from (*super().runs_below(), MultiTrainDesc)

    @classmethod
    def summarize(cls, result: dict[str, Any]) -> str:
        """The table of the models, and that of attack-then-project if it was asked for."""
        done = [(child["name"], child["result"]) for child in result["children"] if "result" in child]
        return "\n\n".join(filter(None, (super().summarize(result), then_project_table(done))))


def _model_names(values: dict[str, Any]) -> tuple[str, ...]:
    name = values.get("model_name", "")
    if values.get("model_type", "scratch") == "scratch" or values.get("train_dir"):
        return (name,)
    names = tuple(names_in(name))
    if not names and not values.get("model_source"):
        names = tuple(selection(values.get("dataset_name", ""), values.get("threat_model", "Linf")))
    return names or ("",)
