"""Numbers on a chart, against those that matplotlib places itself."""

from __future__ import annotations

import io
import re
import zlib

import numpy
import pytest
from matplotlib.figure import Figure

from runners.sheets import Labels

AT = [(0.25, 0.75), (0.5, 0.5), (0.8, 0.2)]
TEXTS = ["0.25", "11.7", "340"]


def chart(ours: bool) -> Figure:
    figure = Figure(figsize=(2, 1), dpi=150)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    if ours:
        Labels(axes, AT, TEXTS, ["black", "#ff0000", "black"], size=20)
    else:
        for place, text, ink in zip(AT, TEXTS, ("black", "#ff0000", "black"), strict=True):
            axes.text(*place, text, color=ink, fontsize=20, ha="center", va="center_baseline")
    return figure


def test_pixels_hold_the_same_numbers() -> None:
    """Ink is where matplotlib puts it: its centres agree to a pixel and a half, its amount to a tenth."""
    pictures = []
    for ours in (True, False):
        buffer = io.BytesIO()
        chart(ours).savefig(buffer, format="rgba", dpi=150)
        pictures.append(255 - numpy.frombuffer(buffer.getvalue(), numpy.uint8).reshape(150, 300, 4).astype(float))
    for part in (slice(0, 125), slice(125, 200), slice(200, 300)):  # one number in each
        for channel in (0, 2):  # red takes no part of the first
            first, second = (picture[:, part, channel] for picture in pictures)
            assert first.sum() == pytest.approx(second.sum(), rel=0.1, abs=1)
            if second.sum() > 1:
                for axis in (0, 1):
                    centres = [
                        numpy.average(numpy.arange(ink.shape[axis]), weights=ink.sum(1 - axis))
                        for ink in (first, second)
                    ]
                    assert centres[0] == pytest.approx(centres[1], abs=1.5)


def test_a_pdf_holds_them_as_text_at_the_same_places() -> None:
    found = []
    for ours in (True, False):
        buffer = io.BytesIO()
        chart(ours).savefig(buffer, format="pdf")
        streams = re.findall(rb"stream\r?\n(.*?)\r?\nendstream", buffer.getvalue(), re.DOTALL)
        page = next(text for text in map(inflated, streams) if b" TJ" in text)
        moves = [[float(x) for x in move] for move in re.findall(rb"([-\d.]+) ([-\d.]+) cm", page)]
        found.append((re.findall(rb"\[(.*?)\] TJ", page), numpy.array(moves)))
    (texts, places), (expected, there) = found
    assert texts == expected and len(texts) == 3
    assert places == pytest.approx(there, abs=1)


def inflated(stream: bytes) -> bytes:
    try:
        return zlib.decompress(stream)
    except zlib.error:
        return b""
