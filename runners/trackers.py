"""Trackers of experiments: they are told what metrics.jsonl and result.json say. Optional packages, imported when used.

To add one, write a `Tracker` and add a line to TRACKERS. Nothing here imports torch.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import secrets
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from foundations.environment import Environment
from foundations.errors import RunError
from foundations.files import read_json, write_json
from foundations.hparam_fields import Hparams, setting
from foundations.lazy import load_object
from foundations.run_directory import RunDirectory
from runners.checks import names_in
from runners.commands import stored_command, stored_flags

PROJECT = "nonisotropic"
FOLDER = "trackers"  # below the root: what trackers keep on this machine, unless their own variables say where
KEYS = "trackers.json"  # in a run's directory: tracker -> the key by which it finds the run again
NONE = "none"


@dataclass(frozen=True)
class TrackedRun:
    """A run as a tracker is told of it when it starts.

    folder   the run's directory            store   the folder below the root for what trackers keep
    step     optimizer steps done so far    flags   all flags, without absolute paths
    """

    folder: Path
    store: Path
    dataset: str
    runner: str
    name: str
    step: int
    flags: dict[str, Any]
    quiet: bool


class Tracker(ABC):
    """One tool. What it raises ends the tracking, not the run.

    package   its name for pip and for import
    """

    package: ClassVar[str]

    def __init__(self, module: Any) -> None:
        self.module = module

    @abstractmethod
    def start(self, run: TrackedRun, key: str) -> str:
        """Begin a run, or go on with the one of a key; returns the key by which it is found again."""

    @abstractmethod
    def log(self, figures: dict[str, float], step: int) -> None:
        """Record figures after an optimizer step."""

    @abstractmethod
    def finish(self, figures: dict[str, float], is_complete: bool) -> None:
        """Record the final figures and end; an incomplete run goes on later."""


class TensorBoard(Tracker):
    """Events in tensorboard/ of the run's directory."""

    package = "tensorboard"

    def start(self, run: TrackedRun, key: str) -> str:
        writer = load_object("torch.utils.tensorboard:SummaryWriter")
        self.step = run.step
        self.writer = writer(str(run.folder / "tensorboard"), purge_step=run.step + 1)
        return "tensorboard"

    def log(self, figures: dict[str, float], step: int) -> None:
        self.step = step
        for name, value in figures.items():
            self.writer.add_scalar(name, value, step)

    def finish(self, figures: dict[str, float], is_complete: bool) -> None:
        self.log({f"final/{name}": value for name, value in figures.items()}, self.step)
        self.writer.close()


class WandB(Tracker):
    """Weights & Biases. WANDB_MODE=offline keeps runs below the root, and does not ask the server for earlier ones."""

    package = "wandb"

    def start(self, run: TrackedRun, key: str) -> str:
        run.store.mkdir(parents=True, exist_ok=True)
        key = key or secrets.token_hex(8)
        self.run = self.module.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            group=os.environ.get("WANDB_RUN_GROUP", run.dataset),
            dir=os.environ.get("WANDB_DIR", str(run.store)),
            job_type=run.runner,
            name=run.name,
            id=key,
            resume="allow",
            config=run.flags,
            settings=self.module.Settings(silent=run.quiet, console="off"),
        )
        return key

    def log(self, figures: dict[str, float], step: int) -> None:
        self.run.log(figures, step=step)

    def finish(self, figures: dict[str, float], is_complete: bool) -> None:
        self.run.summary.update({f"final/{name}": value for name, value in figures.items()})
        self.run.finish(exit_code=0 if is_complete else 1)


class MLflow(Tracker):
    """MLflow: the server or store of MLFLOW_TRACKING_URI, else mlflow.db below the root."""

    package = "mlflow"
    MOST_PARAMETERS = 100  # in one call

    def start(self, run: TrackedRun, key: str) -> str:
        given, artifacts = os.environ.get("MLFLOW_TRACKING_URI"), {}
        if not given:
            run.store.mkdir(parents=True, exist_ok=True)
            artifacts = {"artifact_location": (run.store / "mlflow_artifacts").as_uri()}
        self.client = self.module.MlflowClient(given or f"sqlite:///{run.store / 'mlflow.db'}")
        if key:
            self.key = key
            self.client.update_run(key, status="RUNNING")
            return key
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
        experiment = self.client.get_experiment_by_name(name)
        number = experiment.experiment_id if experiment else self.client.create_experiment(name, **artifacts)
        tags = {"runner": run.runner, "dataset_name": run.dataset}
        self.key = self.client.create_run(number, run_name=run.name, tags=tags).info.run_id
        parameter = self.module.entities.Param
        told = [parameter(name, str(value)) for name, value in run.flags.items()]
        for first in range(0, len(told), self.MOST_PARAMETERS):
            self.client.log_batch(self.key, params=told[first : first + self.MOST_PARAMETERS])
        return self.key

    def log(self, figures: dict[str, float], step: int) -> None:
        now, metric = int(1000 * time.time()), self.module.entities.Metric
        self.client.log_batch(self.key, [metric(name, float(value), now, step) for name, value in figures.items()])

    def finish(self, figures: dict[str, float], is_complete: bool) -> None:
        if figures:
            self.log({f"final/{name}": value for name, value in figures.items()}, 0)
        self.client.set_terminated(self.key, "FINISHED" if is_complete else "KILLED")


class Trackio(Tracker):
    """Trackio, on this machine: TRACKIO_DIR, else its own folder in the home of the user."""

    package = "trackio"

    def start(self, run: TrackedRun, key: str) -> str:
        key = key or f"{run.name}-{secrets.token_hex(3)}"  # it finds runs by their names
        self.step = run.step
        self.module.init(
            project=os.environ.get("TRACKIO_PROJECT", PROJECT),
            name=key,
            group=run.dataset,
            config=run.flags,
            resume="allow",
            embed=False,
        )
        return key

    def log(self, figures: dict[str, float], step: int) -> None:
        self.step = step
        self.module.log({name: value for name, value in figures.items() if name != "step"}, step=step)  # its own word

    def finish(self, figures: dict[str, float], is_complete: bool) -> None:
        if figures:
            self.log({f"final/{name}": value for name, value in figures.items()}, self.step)
        self.module.finish()


TRACKERS: dict[str, type[Tracker]] = {
    "tensorboard": TensorBoard,
    "wandb": WandB,
    "mlflow": MLflow,
    "trackio": Trackio,
}


def known_trackers(value: str) -> str | None:
    """Accept `none`, or names of TRACKERS with commas."""
    fits = value == NONE or (value and all(name in TRACKERS for name in value.split(",")))
    return None if fits else f"{NONE}, or one or more of {', '.join(TRACKERS)} with commas"


@dataclass(frozen=True)
class TrackingHparams(Hparams):
    """The trackers that are told the figures of a run."""

    heading: ClassVar[str] = "Tracking"

    tracker: str = setting(
        NONE,
        f"Also tell the figures of train and test to {', '.join(TRACKERS)} (docs/training.md).",
        check=known_trackers,
        hashed=False,
    )

    @property
    def names(self) -> list[str]:
        return [] if self.tracker == NONE else list(dict.fromkeys(names_in(self.tracker)))


class Trackers:
    """The trackers of a run, on the primary process. One that fails is left out with a warning; the run goes on."""

    def __init__(self, names: Sequence[str], desc: Any, directory: RunDirectory, environment: Environment) -> None:
        self.desc, self.directory, self.environment = desc, directory, environment
        self.active: dict[str, Tracker] = {}
        for name in names if environment.is_primary else ():
            with self._random_states_kept():
                self.active[name] = TRACKERS[name](_imported(name))

    def start(self, step: int, rows: Sequence[dict[str, Any]]) -> None:
        """Begin, or go on after `step` steps; a tracker that is new to a run is told its earlier rows of metrics."""
        if not self.active:
            return
        desc, keys = self.desc, self._keys()
        told = stored_flags(desc) | {"hash": desc.hash, "command": stored_command(desc)}
        store, name = self.environment.root_dir / FOLDER, f"{desc.name}_{desc.hash}_{desc.replicate}"
        run = TrackedRun(
            self.directory.path, store, desc.dataset_name, desc.runner, name, step, told, self.environment.quiet
        )

        def begin(name: str, tracker: Tracker) -> None:
            key = tracker.start(run, keys.get(name, ""))
            for row in () if name in keys else rows:
                tracker.log(row, row["step"])
            keys[name] = key

        self._each(begin)
        write_json(self.directory / KEYS, keys)

    def log(self, figures: dict[str, Any], step: int) -> None:
        self._each(lambda name, tracker: tracker.log(figures, step))

    def finish(self, figures: dict[str, Any], is_complete: bool = True) -> None:
        numbers = {name: value for name, value in figures.items() if isinstance(value, (int, float))}
        self._each(lambda name, tracker: tracker.finish(numbers, is_complete))
        self.active = {}

    @contextmanager
    def ended_by_errors(self) -> Iterator[None]:
        """A block whose errors, a request to end among them, end the tracking too."""
        try:
            yield
        except BaseException:
            self.finish({}, is_complete=False)
            raise

    def _each(self, action: Callable[[str, Tracker], None]) -> None:
        for name in list(self.active):
            self._try(name, action)

    def _try(self, name: str, action: Callable[[str, Tracker], None]) -> None:
        try:
            # Results of the run alone are printed on stdout.
            with self._random_states_kept(), contextlib.redirect_stdout(sys.stderr):
                action(name, self.active[name])
        except Exception as error:
            del self.active[name]
            text = " ".join(f"{type(error).__name__}: {error}".split())
            self.environment.log(f"warning: the tracker {name} failed and is told no more; the run goes on: {text}")

    def _keys(self) -> dict[str, str]:
        with contextlib.suppress(RunError):
            keys = read_json(self.directory / KEYS)
            if isinstance(keys, dict) and all(isinstance(key, str) for key in keys.values()):
                return keys
        return {}

    @staticmethod
    def _random_states_kept() -> contextlib.AbstractContextManager[None]:
        """A package that draws a random number must not change the run."""
        kept: contextlib.AbstractContextManager[None] = load_object("training.random_states:random_states_kept")()
        return kept


def _imported(name: str) -> Any:
    """The package of a tracker; raises RunError if it is not there or cannot be imported."""
    package = TRACKERS[name].package
    try:
        return importlib.import_module(package)
    except ModuleNotFoundError as error:
        if error.name != package:
            raise RunError(f"--tracker={name}: cannot import {package}: {error}") from error
        raise RunError(f"--tracker={name} needs a package: pip install {package}") from error
    except Exception as error:
        text = " ".join(f"{type(error).__name__}: {error}".split())
        raise RunError(f"--tracker={name}: cannot import {package}: {text}") from error
