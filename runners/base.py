"""Base class of all runners: skip complete runs, own a directory, write the result last."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from foundations.arithmetic import arithmetic
from foundations.devices import describe_device
from foundations.environment import Environment
from foundations.errors import RunError
from foundations.files import write_text
from foundations.input_hparams import PrecisionHparams
from foundations.results import describe_environment
from foundations.run_directory import LOCK, Lock, RunDirectory
from runners.commands import CONFIG, stored_command, stored_config
from runners.completion import finished_result


class Runner(ABC):
    """One run: connects data, model, threat and loop. Subclasses implement `prepare` and `run`."""

    def __init__(self, desc: Any, environment: Environment) -> None:
        self.desc = desc
        self.environment = environment
        self.directory = RunDirectory(desc.directory(environment.root_dir))

    def execute(self) -> dict[str, Any]:
        """Return the result: from disk if the run is complete, else by running it."""
        finished = finished_result(self.desc, self.environment.root_dir)
        if self.environment.broadcast(finished is not None):
            self.environment.log(f"complete already: {self.directory.path}")
            if self.environment.is_primary:
                self.directory.tidy_after_a_kill()
            return finished if finished is not None else self.directory.result()
        started = time.monotonic()
        with arithmetic(self._tf32()):
            self.prepare()
            with self._alone():
                finished = finished_result(self.desc, self.environment.root_dir)
                if self.environment.broadcast(finished is not None):  # completed by another command during `prepare`
                    return finished if finished is not None else self.directory.result()
                return self._run(started)

    def _tf32(self) -> bool:
        """True if networks compute in TF32; logs a note if that changes nothing on this device."""
        precision: PrecisionHparams = getattr(self.desc, "precision", PrecisionHparams())
        if precision.tf32 and self.environment.device.type != "cuda":
            self.environment.log(f"note: --tf32 changes nothing on {self.environment.device_name}")
        return precision.tf32

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Hold the lock of the run for the duration of a block; raises RunError if another command makes this run."""
        lock = Lock(self.directory / LOCK)
        holder = lock.acquire() if self.environment.is_primary else ""
        try:
            if not self.environment.broadcast(not holder):
                raise RunError(
                    f"{holder or 'another process'} is making this run; wait for it, or stop it: {self.directory.path}"
                )
            yield
        finally:
            lock.release()

    def _run(self, started: float) -> dict[str, Any]:
        resumed = bool(self.directory.devices())
        devices = self._devices() if self.environment.is_primary else []
        if self.environment.is_primary:
            self.directory.open({**self.stored(), "devices": devices})
            write_text(self.directory / CONFIG, stored_config(self.desc))
        self.environment.barrier()
        try:
            result = self.run()
        except RunError:
            if self.environment.is_primary:
                self.directory.check()  # raises a clearer error if the directory was removed
            raise
        result = {
            "runner": self.desc.runner,
            "dataset_name": self.desc.dataset_name,
            **result,
            "wall_seconds": round(time.monotonic() - started, 3),
            **({"resumed": True} if resumed else {}),  # its seconds are those of the last command alone
            "environment": {**describe_environment(self.environment), "devices": devices},
        }
        if self.environment.is_primary:
            self.directory.finish(result)
            self.directory.tidy()
        self.environment.barrier()
        return result

    def _devices(self) -> list[str]:
        """The devices on which this run is made, first to last; says so if it goes on on another kind of device."""
        here, earlier = describe_device(self.environment.device_name), self.directory.devices()
        if not earlier or earlier[-1] == here:
            return earlier or [here]
        self.environment.log(
            f"note: going on on {here} with what was begun on {earlier[-1]}: last bits may differ from those of a run "
            "on one kind of device"
        )
        return [*earlier, here]

    def stored(self) -> dict[str, Any]:
        """The content of hparams.json."""
        return {**self.desc.stored(), "command": stored_command(self.desc)}

    @abstractmethod
    def prepare(self) -> None:
        """Read all inputs, and raise an error for what cannot be done, before anything is written."""

    @abstractmethod
    def run(self) -> dict[str, Any]:
        """Do the work; returns the runner's own fields of result.json."""
