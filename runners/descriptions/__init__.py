"""What each runner's run is, a file a runner. Torch-free: command line and `--display_output_location` need no more.

To add a runner: a description here, a file beside this folder, an entry in cli/runner_registry.py.
"""

from __future__ import annotations

from foundations.desc import Desc
from runners.descriptions.compute_threat import ThreatDesc
from runners.descriptions.download_pretrained import DownloadDesc
from runners.descriptions.evaluate_threat import EvaluateThreatDesc
from runners.descriptions.multi import MultiDesc, MultiTestDesc, MultiTrainDesc
from runners.descriptions.report import ReportDesc
from runners.descriptions.test import TestDesc
from runners.descriptions.train import TOGGLES, PretrainedDesc, TrainDesc, stored_model

__all__ = [
    "DESCRIPTIONS",
    "TOGGLES",
    "EvaluateThreatDesc",
    "MultiDesc",
    "MultiTestDesc",
    "MultiTrainDesc",
    "PretrainedDesc",
    "ReportDesc",
    "TestDesc",
    "ThreatDesc",
    "TrainDesc",
    "stored_model",
]

DESCRIPTIONS: dict[str, type[Desc]] = {
    "compute_threat": ThreatDesc,
    "evaluate_threat": EvaluateThreatDesc,
    "train": TrainDesc,
    "multi_train": MultiTrainDesc,
    "test": TestDesc,
    "multi_test": MultiTestDesc,
    "report": ReportDesc,
    "download_pretrained": DownloadDesc,
}
