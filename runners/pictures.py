"""Pictures of images: contact sheets and strips, as PNG."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from foundations.files import write_bytes

if TYPE_CHECKING:
    from matplotlib.figure import Figure

GAP = 2  # pixels between images, before enlargement


def write_figure(path: Path, figure: Figure) -> None:
    """A matplotlib figure as PNG."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=150, bbox_inches="tight", metadata={"Software": None})
    write_bytes(path, buffer.getvalue())


def write_contact_sheet(path: Path, images: Tensor, columns: int, row_names: Sequence[str]) -> None:
    """Images [N,C,H,W] uint8, row by row, each row with its name."""
    grid = _tile(images.float() / 255, columns)
    write_figure(path, _framed(grid, row_names, images.shape[2] + GAP, column_names=()))


def write_strip(path: Path, columns: dict[str, Tensor], row_names: Sequence[str]) -> None:
    """One row for each example, one column for each kind of picture: name -> images [n,C,H,W] in [0, 1]."""
    images = torch.stack(list(columns.values()), dim=1).flatten(0, 1)
    grid = _tile(images, len(columns))
    write_figure(path, _framed(grid, row_names, images.shape[2] + GAP, list(columns)))


def amplified(delta: Tensor) -> Tensor:
    """Perturbations [n,C,H,W] as pictures: grey is no change, the largest change of each fills the range."""
    largest = delta.flatten(1).abs().amax(1).clamp_min(1e-12).view(-1, 1, 1, 1)
    return (delta / largest + 1) / 2


def _tile(images: Tensor, columns: int) -> Tensor:
    """[C, height, width] with white gaps."""
    from torchvision.utils import make_grid

    return make_grid(images.cpu(), nrow=columns, padding=GAP, pad_value=1.0)


def _framed(grid: Tensor, row_names: Sequence[str], pitch: int, column_names: Sequence[str]) -> Figure:
    from matplotlib.figure import Figure

    height, width = grid.shape[1:]
    scale = max(0.012, 2.2 / max(width, 1)) if width < 600 else 0.012
    figure = Figure(figsize=(width * scale + 1, height * scale + 0.4))
    axes = figure.add_subplot()
    axes.imshow(grid.permute(1, 2, 0).numpy(), interpolation="nearest")
    axes.set_yticks([GAP + pitch * (i + 0.5) - GAP / 2 for i in range(len(row_names))], row_names, fontsize=7)
    axes.set_xticks([GAP + pitch * (i + 0.5) - GAP / 2 for i in range(len(column_names))], column_names, fontsize=7)
    axes.xaxis.tick_top()
    axes.tick_params(length=0)
    for side in axes.spines.values():
        side.set_visible(False)
    return figure
