"""Records of a training run: metrics.jsonl, timing.jsonl, a progress bar, trackers, curves."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Any

import torch

from foundations.environment import Environment
from foundations.files import write_text
from foundations.run_directory import RunDirectory
from runners.plots import write_figure
from runners.trackers import Trackers
from training.loop import Progress, Totals

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SHOW_EVERY = 0.5  # seconds between updates of the loss in the progress bar: each waits for the device

NAMES = {"clean": "train_accuracy", "adv": "train_adv_accuracy", "N_adv": "train_N_adv_accuracy"}
NAMES |= {"certified": "train_certified_accuracy"}


class History:
    """The epochs of a run so far; kept on every process, written by the primary.

    rows     rows of metrics.jsonl, without clock values
    timing   rows of timing.jsonl
    """

    def __init__(self, directory: RunDirectory, environment: Environment, batch_size: int, trackers: Trackers) -> None:
        self.directory, self.environment, self.batch_size = directory, environment, batch_size
        self.rows: list[dict[str, Any]] = []
        self.timing: list[dict[str, Any]] = []
        self.trackers = trackers
        self.epoch_started = self.shown = time.monotonic()
        self.batches_before = 0

    def start(self, step: int, total: int, batches_before: int) -> None:
        """Start the progress bar and the clock at a step; `batches_before` batches of its epoch were done earlier."""
        self.bar = self.environment.progress(None, "training", total=total * self.batch_size, unit="img")
        self.bar.update(step * self.batch_size)
        self.epoch_started, self.batches_before = time.monotonic(), batches_before
        self._write()
        self.trackers.start(step, self.rows)

    def show(self, progress: Progress) -> None:
        """Update the progress bar with loss and accuracy of the epoch so far; a callback for every step."""
        self.bar.update(self.batch_size)
        if not self.bar.disable and time.monotonic() - self.shown > SHOW_EVERY:
            means = _means({name: float(v) for name, v in progress.totals.sums.items()}, progress.totals.seen)
            self.bar.set_postfix({name: f"{value:.4f}" for name, value in means.items()})
            self.shown = time.monotonic()

    def epoch_means(self, totals: Totals) -> dict[str, float]:
        """Loss and accuracies of the epoch so far over all processes. A collective operation."""
        names = sorted(totals.sums)
        sums = torch.stack([totals.sums[name] for name in names]).double().cpu()
        seen = torch.tensor([totals.seen[name] for name in names], dtype=torch.float64)
        merged = self.environment.all_reduce_sum(torch.stack([sums, seen]).numpy())
        return _means(*(dict(zip(names, row, strict=True)) for row in merged.tolist()))

    def record(self, progress: Progress, means: dict[str, float], evaluated: dict[str, float]) -> None:
        """Add a line of metrics and a line of timing for the epoch that ended."""
        step = progress.step
        row = {"epoch": step.epoch + 1, "step": step.iteration, "lr": progress.lr, **means, **evaluated}
        self.rows.append(row)
        seconds = time.monotonic() - self.epoch_started
        rate = (progress.totals.batches - self.batches_before) * self.batch_size / max(seconds, 1e-9)
        self.timing.append({"epoch": row["epoch"], "seconds": round(seconds, 4), "examples_per_second": round(rate, 1)})
        self.epoch_started, self.batches_before = time.monotonic(), 0
        self._write()
        self.trackers.log(row, step.iteration)

    def finish(self) -> None:
        """Close the progress bar, and draw the curves."""
        self.bar.close()
        if self.environment.is_primary and self.rows:
            write_figure(self.directory / "curves.png", lambda: curves(self.rows))

    def _write(self) -> None:
        if self.environment.is_primary:
            for name, rows in (("metrics.jsonl", self.rows), ("timing.jsonl", self.timing)):
                write_text(self.directory / name, "".join(json.dumps(row) + "\n" for row in rows))


def _means(sums: dict[str, float], seen: dict[str, float]) -> dict[str, float]:
    """Means over those batches that contained the part, from sums over batches."""
    return {NAMES.get(name, f"train_{name}"): sums[name] / seen[name] for name in sorted(sums)}


def curves(rows: list[dict[str, Any]]) -> Figure:
    """Curves of loss, accuracies and learning rate over the epochs of one run."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 2.8), layout="constrained")
    loss, accuracy, rate = figure.subplots(1, 3)
    epochs = [row["epoch"] for row in rows]
    loss.plot(epochs, [row["train_loss"] for row in rows], marker=".")
    for name in dict.fromkeys(name for row in rows for name in row if name.endswith("_accuracy")):
        points = [(row["epoch"], row[name]) for row in rows if name in row]
        accuracy.plot(*zip(*points, strict=True), marker=".", label=name.removesuffix("_accuracy"))
    accuracy.legend(fontsize=7, frameon=False)
    rate.plot(epochs, [row["lr"] for row in rows], marker=".")
    for axes, label in ((loss, "training loss"), (accuracy, "accuracy"), (rate, "learning rate")):
        axes.set(xlabel="epoch", ylabel=label)
    return figure
