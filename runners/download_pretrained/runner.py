"""The download_pretrained runner: fetch weights of RobustBench's zoo into models/ below the root."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from foundations.errors import RunError, UsageError
from models.downloading import Wanted, from_drive, from_folder, from_url, obtain, only_one, verify
from models.robustbench_registry import ZooModel, namesakes, selection, zoo, zoo_model
from runners.base import Runner
from runners.checks import names_in


class DownloadPretrained(Runner):
    """A runner that keeps existing files; files that fail are reported, and the others are still fetched."""

    def prepare(self) -> None:
        download, self.threat_model = self.desc.download, self.desc.threat_model
        if not zoo(self.desc.dataset_name, self.threat_model):
            zoo_model(self.desc.dataset_name, self.threat_model, "")  # raises UsageError with what exists
        self.models_dir = self.environment.root_dir / "models"
        names = names_in(download.names)
        if names and download.all:
            raise UsageError("--all: expected no --names beside it")
        known = list(zoo(self.desc.dataset_name, self.threat_model))
        names = names or (
            known if download.all or download.list else selection(self.desc.dataset_name, self.threat_model)
        )
        self.chosen = [zoo_model(self.desc.dataset_name, self.threat_model, name) for name in names]

    def run(self) -> dict[str, Any]:
        if self.desc.download.list:
            return {"models": [self._told(model, self._state(model)) for model in self.chosen]}
        if not self.environment.is_primary:
            return {"models": []}
        if self.desc.download.verify:
            return self._concluded([self._told(model, self._verified(model)) for model in self.chosen])
        with only_one(self.models_dir):
            return self._concluded(self._fetch_all())

    def _fetch_all(self) -> list[dict[str, Any]]:
        bar = self.environment.progress(None, "fetching", unit="B")
        bar.unit_scale = True
        with ThreadPoolExecutor(self.desc.download.parallel) as workers:
            states = list(workers.map(lambda model: self._fetch(model, bar), self.chosen))
        bar.close()
        return [self._told(model, state) for model, state in zip(self.chosen, states, strict=True)]

    def _fetch(self, model: ZooModel, bar: Any) -> str:
        if not model.files:
            return "comes by itself: timm or torchvision fetch it when it is used first"
        try:
            done = {obtain(wanted, bar) for wanted in self._wanted(model)}
            return "fetched" if "fetched" in done else "there already"
        except (RunError, OSError) as error:
            return f"failed: {error}"

    def _wanted(self, model: ZooModel) -> list[Wanted]:
        download = self.desc.download
        files = []
        for path, identifier in zip(model.paths(self.models_dir), model.files, strict=True):
            relative = f"{model.dataset_name}/{model.threat_model}/{path.name}"
            page = f"https://drive.google.com/uc?id={identifier}"
            by_hand = (
                f"By hand: open {page} in a browser and save it as {path}, or name its folder with --source_dir=DIR"
            )
            if download.source_dir:
                fetch = from_folder(Path(download.source_dir).expanduser(), self._names(relative, model, path.name))
            elif download.mirror:
                fetch = from_url(f"{download.mirror.rstrip('/')}/{relative}")
            else:
                fetch = from_drive(identifier)
            files.append(Wanted(path, fetch, by_hand))
        return files

    def _names(self, relative: str, model: ZooModel, name: str) -> list[str]:
        """Places of a file below --source_dir: under its name alone only if that says which weights they are."""
        return [relative] if namesakes(model) else [relative, name]

    def _state(self, model: ZooModel) -> str:
        if not model.files:
            return "comes by itself"
        return "there" if all(path.is_file() for path in model.paths(self.models_dir)) else "-"

    def _verified(self, model: ZooModel) -> str:
        if not model.files:
            return "comes by itself"
        problems = [(path, verify(path)) for path in model.paths(self.models_dir)]
        wrong = [f"{path}: {problem}" for path, problem in problems if problem]
        return f"failed: {'; '.join(wrong)}" if wrong else "verified"

    def _told(self, model: ZooModel, state: str) -> dict[str, Any]:
        return {"name": model.name, "clean": model.clean, "robust": model.robust, "state": state}

    def _concluded(self, models: list[dict[str, Any]]) -> dict[str, Any]:
        """The result; raises RunError with all that is known if a model could not be obtained."""
        failed = [model for model in models if model["state"].startswith("failed")]
        reasons = [f"{model['name']}: {model['state'].removeprefix('failed: ')}" for model in failed]
        for reason in reasons[1:]:
            self.environment.log(reason)
        if failed:
            others = f" and {len(failed) - 1} more (above)" if len(failed) > 1 else ""
            raise RunError(
                f"{len(failed)} of {len(models)} models could not be had. {reasons[0]}{others}. The same command goes "
                "on from what was fetched. Files that you have belong in "
                f"{self.models_dir}/{self.desc.dataset_name}/{self.threat_model}, or name their folder with "
                "--source_dir=DIR"
            )
        return {"models": models}
