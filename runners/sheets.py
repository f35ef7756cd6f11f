"""Figures of many small pictures or panels in one axes; an axes for each would take many times as long to draw."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy
from matplotlib.artist import Artist
from matplotlib.backends.backend_agg import RendererAgg
from matplotlib.collections import PolyCollection
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.path import Path
from matplotlib.transforms import IdentityTransform
from torch import Tensor

from runners.plots import shown

POINT = 1 / 72  # inches
ROOM = 0.075  # inches between pictures side by side
TITLE = 0.13  # inches above a picture, for its title
HIGH = 0.73  # height of a digit of size 1


@dataclass
class Sheet:
    """A figure whose only axes covers it and is measured in inches from its upper left corner.

    pitch    from the left of a cell to that of the next one, and from the top of a cell to that of the one below
    corner   left and top of the first cell
    rest     what is left free at the right of the last cell and below it
    """

    rows: int
    columns: int
    pitch: tuple[float, float]
    corner: tuple[float, float] = (0.0, 0.0)
    rest: tuple[float, float] = (0.0, 0.0)
    figure: Figure = field(init=False)
    axes: Any = field(init=False)

    def __post_init__(self) -> None:
        counts = (self.columns, self.rows)
        width, height = (
            first + count * pitch + last
            for first, count, pitch, last in zip(self.corner, counts, self.pitch, self.rest, strict=True)
        )
        self.figure = Figure(figsize=(width, height))
        self.figure.suppressComposite = True  # in a PDF too, each picture keeps its own pixels
        self.axes = self.figure.add_axes((0, 0, 1, 1), xlim=(0, width), ylim=(height, 0), autoscale_on=False)
        self.axes.set_axis_off()
        self._frames: tuple[list[Any], list[str]] = ([], [])

    def cell(self, number: int) -> tuple[float, float]:
        """The upper left corner of a cell; cells are counted row by row."""
        row, column = divmod(number, self.columns)
        return self.corner[0] + column * self.pitch[0], self.corner[1] + row * self.pitch[1]

    def picture(self, number: int, image: Tensor, title: str, caption: str, colour: str) -> None:
        """An image [C,H,W] in [0, 1] in a frame, its title above it and its caption below."""
        left, top = self.cell(number)
        side = self.pitch[0] - ROOM
        height, width = (side * length / max(image.shape[1:]) for length in image.shape[1:])
        left, top = left + (self.pitch[0] - width) / 2, top + TITLE + (side - height) / 2
        right, bottom, centre = left + width, top + height, left + width / 2
        look: dict[str, Any] = {"cmap": "gray", "vmin": 0, "vmax": 1, "interpolation": "nearest", "aspect": "auto"}
        self.axes.imshow(shown(image), extent=(left, right, bottom, top), **look)
        self._frames[0].append([(left, top), (right, top), (right, bottom), (left, bottom)])
        self._frames[1].append(colour)
        self.axes.text(centre, top - 3 * POINT, title, fontsize=7, color=colour, ha="center", va="baseline")
        self.axes.text(centre, bottom + 2.5 * POINT, caption, fontsize=6.5, ha="center", va="top")

    def finished(self) -> Figure:
        """The figure, with the frames of all pictures."""
        corners, colours = self._frames
        look: dict[str, Any] = {"linewidths": 1.5, "joinstyle": "miter"}
        self.axes.add_collection(PolyCollection(corners, facecolors="none", edgecolors=colours, **look))
        return self.figure


class Labels(Artist):
    """Short numbers centred at points of an axes, as so many `axes.text`, which would take ten times as long.

    Files of pixels get them as outlines, one shape for each colour; others as text, which can be copied from them.
    """

    def __init__(self, axes: Any, at: Sequence[tuple[float, float]], texts: Sequence[str], inks: Sequence[str],
                 size: float) -> None:  # fmt: skip
        super().__init__()
        self.at, self.texts, self.inks, self.font = at, texts, inks, FontProperties(size=size)
        self.set_zorder(3)
        self.set_in_layout(False)  # they lie inside the axes
        axes.add_artist(self)
        self.set_transform(axes.transData)

    def draw(self, renderer: Any) -> None:
        context = renderer.new_gc()
        if isinstance(renderer, RendererAgg):
            self._fill(renderer, context)
        else:
            self._write(renderer, context)
        context.restore()

    def _fill(self, renderer: RendererAgg, context: Any) -> None:
        context.set_linewidth(0)
        scale = renderer.points_to_pixels(self.font.get_size_in_points())
        outlines: dict[str, list[Path]] = {}
        for place, text, ink in zip(self.get_transform().transform(self.at), self.texts, self.inks, strict=True):
            letters = [_letter(letter) for letter in text]
            left = place - scale * numpy.array([sum(wide for _, wide in letters), HIGH]) / 2
            for outline, wide in letters:
                outlines.setdefault(ink, []).append(Path(left + scale * outline.vertices, outline.codes))
                left[0] += scale * wide
        for ink, paths in outlines.items():
            renderer.draw_path(context, Path.make_compound_path(*paths), IdentityTransform(), to_rgba(ink))

    def _write(self, renderer: Any, context: Any) -> None:
        _, height = renderer.get_canvas_width_height()
        forms = ["".join("0" if letter.isdigit() else letter for letter in text) for text in self.texts]
        # All digits are equally wide.
        sizes = {form: renderer.get_text_width_height_descent(form, self.font, False) for form in set(forms)}
        places = self.get_transform().transform(self.at)
        for (x, y), text, form, ink in zip(places, self.texts, forms, self.inks, strict=True):
            wide, high, below = sizes[form]
            base = y - high / 2 + below
            context.set_foreground(ink)
            renderer.draw_text(context, x - wide / 2, height - base if renderer.flipy() else base, text, self.font, 0)


@cache
def _letter(letter: str) -> tuple[Path, float]:
    """The outline of a letter of size 1, and how far the next one is from it."""
    from matplotlib.textpath import text_to_path

    font = FontProperties(size=text_to_path.FONT_SCALE)
    vertices, codes = text_to_path.get_text_path(font, letter)
    wide, _, _ = text_to_path.get_text_width_height_descent(letter, font, False)
    return Path(numpy.asarray(vertices) / text_to_path.FONT_SCALE, codes), wide / text_to_path.FONT_SCALE
