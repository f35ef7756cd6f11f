"""The runners of the command line. Loaded lazily: a listing imports none of them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Entry:
    """A runner's class as "module:Class", and what it does in one line."""

    runner: str
    summary: str


RUNNERS: dict[str, Entry] = {
    "compute_threat": Entry(
        "runners.compute_threat:ComputeThreat", "choose anchors: a few training images of each class"
    ),
    "train": Entry("runners.train:Train", "train a model"),
    "multi_train": Entry("runners.multi:MultiRunner", "train over all combinations of toggled options"),
    "test": Entry("runners.test:Test", "measure accuracy: clean, under isotropic and under nonisotropic attacks"),
    "multi_test": Entry("runners.multi:MultiRunner", "test over all combinations of toggled options"),
    "report": Entry("runners.report.runner:Report", "one page of tables and pictures over all finished runs"),
    "download_pretrained": Entry(
        "runners.download_pretrained:DownloadPretrained", "fetch robust models of RobustBench's zoo"
    ),
}
