"""Registry of the runners: name -> "module:Class" of the description of its runs, imported on demand.

To add a runner, create a folder below runners/ with a desc.py, and add a line here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from foundations.lazy import load_object

if TYPE_CHECKING:
    from foundations.desc import Desc

RUNNERS: dict[str, str] = {
    "compute_threat": "runners.compute_threat.desc:ThreatDesc",
    "evaluate_threat": "runners.evaluate_threat.desc:EvaluateThreatDesc",
    "train": "runners.train.desc:TrainDesc",
    "multi_train": "runners.multi.desc:MultiTrainDesc",
    "test": "runners.test.desc:TestDesc",
    "multi_test": "runners.multi.desc:MultiTestDesc",
    "bundle": "runners.bundle.desc:BundleDesc",
    "verify": "runners.verify.desc:VerifyDesc",
    "merge": "runners.merge.desc:MergeDesc",
    "report": "runners.report.desc:ReportDesc",
    "download_pretrained": "runners.download_pretrained.desc:DownloadDesc",
}


def desc_class(runner: str) -> type[Desc]:
    """The description class of a runner."""
    return load_object(RUNNERS[runner])
