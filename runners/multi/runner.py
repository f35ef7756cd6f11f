"""The multi_train and multi_test runners: run every combination of the toggled options, then write one table."""

from __future__ import annotations

from typing import Any

from foundations.errors import NonisotropicError, RunError
from foundations.lazy import load_object
from foundations.program import IN_CHECKOUT
from runners.base import Runner
from runners.commands import command
from runners.completion import finished_result
from runners.inputs import read_data, require_complete
from runners.multi.leaderboard import write_leaderboard


class MultiRunner(Runner):
    """A runner of several children; one that fails is reported, and the others still run."""

    def prepare(self) -> None:
        """Check once what all children share, the data set and the anchors: an error there is not theirs one by one."""
        root = self.environment.root_dir
        left = [child for child in self.desc.children if finished_result(child, root) is None]
        if not left:
            return
        read_data(left[0], self.environment)
        anchors = {run.directory(root): run for run in (child.needed_runs().get("anchors") for child in left) if run}
        if len(anchors) == 1 and all("anchors" in child.needed_runs() for child in left):
            require_complete(next(iter(anchors.values())), self.environment)

    def run(self) -> dict[str, Any]:
        children = []
        for number, desc in enumerate(self.desc.children, start=1):
            self.environment.log(f"[{number}/{len(self.desc.children)}] {desc.name}")
            children.append(self._run_child(number, desc))
        result: dict[str, Any] = {"children": children}
        if self.desc.runner == "multi_test" and self.environment.is_primary:
            result |= write_leaderboard(self.directory.path, self.environment.root_dir, list(children))
        return result

    def _run_child(self, number: int, desc: Any) -> dict[str, Any]:
        runner = load_object(desc.runner_class)(desc, self.environment)
        told = {
            "name": desc.name,
            "hparams": desc.stored(),
            "command": command(desc, IN_CHECKOUT),
            "directory": str(runner.directory.path.relative_to(self.environment.root_dir)),
        }
        try:
            return told | {"result": runner.execute()}
        except (NonisotropicError, ValueError, RuntimeError, OSError) as error:
            # The other processes may still be inside this child, waiting for this process.
            if not self.environment.watchdog.all_arrive(f"failed/{number}"):
                raise RunError(f"{desc.name} failed in one process of several: {error}") from error
            self.environment.log(f"{desc.name}: {error}")
            return told | {"error": str(error)}
