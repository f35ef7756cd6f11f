"""Figures of images: contact sheets and strips, as PNG."""

from __future__ import annotations

import io
import sys
import textwrap
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from foundations.files import write_bytes
from foundations.pixels import as_floats

if TYPE_CHECKING:
    import numpy
    from matplotlib.figure import Figure
    from matplotlib.transforms import Bbox

DPI = 150
# Neither a version nor a date in the files; a PNG compressed less takes half of the time and 5 % more space.
SAVING: dict[str, dict[str, Any]] = {
    "png": {"metadata": {"Software": None}, "pil_kwargs": {"compress_level": 3}},
    "pdf": {"metadata": {"CreationDate": None}},
}
# Okabe and Ito's colours, for colour-blind readers.
PALETTE = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00", "#56B4E9", "#000000", "#8C8C00")
CAPTION_WIDTH = 20  # letters below a picture of a strip
GAP = 2  # pixels between images, before enlargement


def write_figure(path: Path, make: Callable[[], Figure | None], kinds: Sequence[str] = ("png",)) -> bool:
    """Write a matplotlib figure as path.png, path.pdf or both; equal figures give equal bytes.

    Returns whether it was written. A picture that cannot be drawn is told of, and fails no run: its numbers are there.
    """
    try:
        with plain_style():
            figure = make()
            if figure is None:
                return False
            _number_log_axes(figure)
            box = _laid_out(figure)
            written = {kind: _rendered(figure, kind, box) for kind in kinds}
    except Exception as error:
        reason = " ".join(str(error).split()) or "no message"
        print(
            f"warning: cannot draw {path.with_suffix('.' + kinds[0])}: {type(error).__name__}: {reason}",
            file=sys.stderr,
        )
        return False
    for kind, content in written.items():
        write_bytes(path.with_suffix(f".{kind}"), content)
    return True


@contextmanager
def plain_style() -> Iterator[None]:
    """A block with matplotlib's own settings, whatever a notebook or a file of the user sets; `$` is no mathematics."""
    import matplotlib

    with matplotlib.rc_context(), warnings.catch_warnings():
        matplotlib.rcdefaults()
        matplotlib.rcParams["text.parse_math"] = False
        warnings.filterwarnings("ignore", "Glyph .* missing from", UserWarning)  # a name in a script without a font
        yield


def _number_log_axes(figure: Figure) -> None:
    """Label ticks of logarithmic axes with numbers: matplotlib's labels are TeX, which `plain_style` shows as it is."""
    from matplotlib.ticker import LogFormatter

    class Number(LogFormatter):
        def __call__(self, x: float, pos: int | None = None) -> str:
            return f"{x:g}" if super().__call__(x, pos) else ""

    for axes in figure.axes:
        for axis in (axes.xaxis, axes.yaxis):
            if axis.get_scale() == "log":
                axis.set_major_formatter(Number())
                axis.set_minor_formatter(Number(labelOnlyBase=False))


def _laid_out(figure: Figure) -> Bbox:
    """Lay a figure out once, not for each file, and return the part that is not empty, in inches."""
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    figure.set_dpi(DPI)
    renderer = FigureCanvasAgg(figure).get_renderer()
    if engine := figure.get_layout_engine():
        engine.execute(figure)
    figure.set_layout_engine(None)  # one that remains, "none" too, draws a figure once more for each file
    return figure.get_tightbbox(renderer).padded(matplotlib.rcParams["savefig.pad_inches"])


def _rendered(figure: Figure, kind: str, box: Bbox) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format=kind, dpi=DPI, bbox_inches=box, **SAVING[kind])
    return buffer.getvalue()


def write_contact_sheet(path: Path, images: Tensor, columns: int, row_names: Sequence[str]) -> None:
    """Write images [N,C,H,W] uint8 row by row, with a name for each row."""
    write_figure(path, lambda: _contact_sheet(images, columns, row_names))


def _grid(images: Tensor, columns: int) -> Tensor:
    """Images [N,C,H,W] side by side on white, [3,H',W']; without torchvision, which takes seconds to import."""
    count, _, height, width = images.shape
    columns = min(columns, count)
    grid = images.new_ones(3, -(-count // columns) * (height + GAP) + GAP, columns * (width + GAP) + GAP)
    for number, image in enumerate(images):
        top, left = number // columns * (height + GAP) + GAP, number % columns * (width + GAP) + GAP
        grid[:, top : top + height, left : left + width] = image
    return grid


def _contact_sheet(images: Tensor, columns: int, row_names: Sequence[str]) -> Figure:
    from matplotlib.figure import Figure

    grid = _grid(as_floats(images.cpu()), columns)
    height, width = grid.shape[1:]
    figure = Figure(figsize=(width / 100 + 1, height / 100 + 0.2))
    axes = figure.add_subplot()
    axes.imshow(shown(grid), interpolation="nearest")
    pitch = images.shape[2] + GAP
    axes.set_yticks([pitch * (i + 0.5) for i in range(len(row_names))], row_names, fontsize=7)
    axes.set_xticks([])
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    return figure


@dataclass(frozen=True)
class Column:
    """A column of images [n,C,H,W] in [0, 1] with a title, and with a caption for each image."""

    title: str
    images: Tensor
    captions: Sequence[str]


def write_strip(path: Path, columns: Sequence[Column]) -> None:
    """Write a figure with one row for each example and one column for each kind of image."""
    write_figure(path, lambda: _strip(columns))


def _strip(columns: Sequence[Column]) -> Figure:
    from matplotlib.figure import Figure

    rows = len(columns[0].images)
    columns = [replace(column, captions=[_wrapped(text) for text in column.captions]) for column in columns]
    lines = max(text.count("\n") + 1 for column in columns for text in column.captions)
    figure = Figure(figsize=(1.25 * len(columns), (1.3 + 0.1 * lines) * rows + 0.3), layout="constrained")
    grid = figure.subplots(rows, len(columns), squeeze=False)
    for place, column in enumerate(columns):
        for row, (image, caption) in enumerate(zip(column.images, column.captions, strict=True)):
            axes = grid[row][place]
            axes.imshow(shown(image), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
            axes.set_xticks([])
            axes.set_yticks([])
            axes.set_xlabel(caption, fontsize=7, labelpad=2)
            if row == 0:
                axes.set_title(column.title, fontsize=8)
    return figure


def _wrapped(caption: str) -> str:
    """The caption with lines that are no longer than a picture of a strip is wide."""
    return "\n".join(part for line in caption.split("\n") for part in textwrap.wrap(line, CAPTION_WIDTH) or [""])


def amplified(delta: Tensor) -> Tensor:
    """Perturbations [n,C,H,W] as images: grey is no change, and the largest change of each one fills the range."""
    largest = delta.flatten(1).abs().amax(1).clamp_min(1e-12).view(-1, 1, 1, 1)
    return (delta / largest + 1) / 2


def shown(image: Tensor) -> numpy.ndarray:
    """An image [C,H,W] in the layout of matplotlib: [H,W] for one channel, else [H,W,C]."""
    return (image[0] if len(image) == 1 else image.permute(1, 2, 0)).cpu().numpy()
