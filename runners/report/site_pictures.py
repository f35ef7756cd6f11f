"""Adversarial examples of a claim as pictures: the image, the image changed, and the change alone, made larger."""

from __future__ import annotations

from dataclasses import dataclass

import numpy
import torch

from datasets.base import Dataset
from runners.claims import images_of
from runners.report.human_kit import png
from testing.claims.claim import Claim
from testing.claims.judging import described

MOST = 12  # of a claim
GREY = 128  # no change


@dataclass(frozen=True)
class Shown:
    """Three pictures as PNG in base64: clean, perturbed, and the change `times` larger around grey."""

    row: int
    label: str
    sets: list[str]
    times: float
    pictures: tuple[str, str, str]


def shown_of(claim: Claim, data: Dataset) -> list[Shown]:
    """The smallest point of some images, spread over those that have one."""
    arrays, facts = claim.arrays, claim.facts
    owners, points = numpy.unique(arrays["owner"], return_index=True)
    chosen = numpy.unique(numpy.linspace(0, len(owners) - 1, min(MOST, len(owners))).round().astype(int))
    examples = images_of(data, facts["data"]["split"])
    shown = []
    for owner, point in zip(owners[chosen].tolist(), points[chosen].tolist(), strict=True):
        row, label = int(arrays["index"][owner]), int(arrays["label"][owner])
        clean = examples.read(torch.tensor([row]))[0].cpu().numpy()
        delta = arrays["delta"][point].astype("int16")
        sets = [
            described(each)
            for each, used in zip(facts["claims"], arrays["witness"], strict=True)
            if used[owner] == point + 1
        ]
        times = (GREY - 1) / max(1, int(numpy.abs(delta).max()))
        images = (clean, (clean + delta).clip(0, 255), (GREY + delta * times).round().clip(0, 255))
        first, second, third = (png(image.astype("uint8")) for image in images)
        shown.append(Shown(row, data.info.title(label), sets, times, (first, second, third)))
    return shown
