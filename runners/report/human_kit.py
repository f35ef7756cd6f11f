"""A kit for a study with people: a page that asks, and the pairs that `--human` reads together with the answers.

The pairs are those that a finished evaluate_threat run kept. Answers of annotators (.csv) go into the same folder.
"""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import Any

import numpy

from datasets.human_pairs import HumanPairs, read_pairs, write_pairs
from datasets.human_sets import PAIRS
from foundations.errors import RunError, UsageError
from foundations.files import write_text
from foundations.program import COMMAND
from runners.evaluate_threat.human_desc import STUDY
from runners.report.collect import FinishedRun
from runners.report.study_page import study_html

PAGE = "study.html"


def chosen_run(runs: list[FinishedRun], dataset_name: str) -> FinishedRun:
    """The first run that keeps pairs; raises RunError if there is none."""
    if found := next((run for run in runs if (run.path / STUDY).is_file()), None):
        return found
    words = f"{COMMAND} evaluate_threat --dataset_name={dataset_name}"
    if runs:
        words += f" --evaluate_replicate={1 + max(run.hparams['replicate'] for run in runs)}"
    raise RunError(f"--human_kit: expected a measurement that keeps pairs of images, got none; make one: {words}")


def write_kit(run: FinishedRun, folder: Path) -> dict[str, Any]:
    """Write the page and the pairs into a folder; returns what the result says of them."""
    pairs = _pairs_of(run)
    _check_answers(folder, pairs)
    images = [[png(image) for image in images] for images in (pairs.clean, pairs.changed)]
    classes = [] if pairs.classes is None else pairs.classes.tolist()
    title = f"Which class do you see? ({run.hparams['dataset_name']})"
    page = study_html(title, pairs.study, classes, list(zip(*images, strict=True)), max(pairs.clean.shape[2:]))
    write_pairs(folder / PAIRS, pairs)
    write_text(folder / PAGE, page)
    return {
        "page": f"{folder.name}/{PAGE}",
        "pairs": len(pairs),
        "study": pairs.study,
        "source": run.relative,
        "then": f"{run.command} --human=FOLDER",
    }


def _pairs_of(run: FinishedRun) -> HumanPairs:
    try:
        return read_pairs(run.path / STUDY, needs_people=False)
    except UsageError as error:
        raise RunError(f"{str(error).removeprefix('--human: ')}; remove {run.path} and run again") from error


def _check_answers(folder: Path, pairs: HumanPairs) -> None:
    """Raise RunError if the folder holds answers to other pairs, which new pairs would make worthless."""
    answers = sorted(folder.glob("*.csv"))
    if not answers or not (folder / PAIRS).is_file():
        return
    earlier = read_pairs(folder / PAIRS, needs_people=False).study
    if earlier != pairs.study:
        raise RunError(
            f"--human_kit: {folder} holds answers ({answers[0].name}) to other pairs than those of the measurement now "
            f"(study {earlier}, not {pairs.study}); move that folder away first"
        )


def png(image: numpy.ndarray) -> str:
    """An image [C,H,W] as PNG in base64."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(image[0] if len(image) == 1 else image.transpose(1, 2, 0)).save(buffer, "PNG", optimize=True)
    return base64.b64encode(buffer.getvalue()).decode()
