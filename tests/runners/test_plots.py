"""Pictures, which fail no run."""

from __future__ import annotations

from pathlib import Path

import matplotlib
import numpy
import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torchvision.utils import make_grid

from foundations.signals import Interrupted
from runners import plots
from runners.plots import Column, _strip, write_contact_sheet, write_figure
from tests.conftest import Command


def titled(title: str) -> Figure:
    figure = Figure()
    figure.add_subplot().set_title(title)
    return figure


def test_settings_of_a_notebook_and_of_the_user_change_nothing(command: Command, tmp_path: Path) -> None:
    (tmp_path / "matplotlibrc").write_text("text.usetex: True\nfigure.dpi: 7\naxes.facecolor: red\n")
    words = ("compute_threat", "--dataset_name=digits", "--per_label=2")
    plain = command.ok(*words) / "anchors.png"
    other = Command(tmp_path / "other")
    other.root.mkdir()
    settings = {"MPLBACKEND": "module://nowhere.backend_inline", "MATPLOTLIBRC": str(tmp_path / "matplotlibrc")}
    done = other(*words, environment=settings)
    assert done.returncode == 0 and "warning" not in done.stderr
    assert (other.where(*words) / "anchors.png").read_bytes() == plain.read_bytes()


def test_names_are_text_and_settings_are_given_back(tmp_path: Path) -> None:
    matplotlib.rcParams["lines.linewidth"] = 3.25
    for name in ("a$b_{c$", "猫", "\\frac"):
        assert write_figure(tmp_path / "picture", lambda name=name: titled(name), ("png", "pdf"))  # type: ignore[misc]
    images = torch.zeros(2, 3, 4, 4, dtype=torch.uint8)
    write_contact_sheet(tmp_path / "sheet.png", images, 1, ["$x", "$"])
    assert {file.name for file in tmp_path.iterdir()} == {"picture.png", "picture.pdf", "sheet.png"}
    assert matplotlib.rcParams["lines.linewidth"] == 3.25
    matplotlib.rcParams["lines.linewidth"] = matplotlib.rcParamsDefault["lines.linewidth"]


@pytest.mark.parametrize("largest", [1.1, 2.3, 30.0, 1e5])
def test_log_axes_have_numbers(largest: float, tmp_path: Path) -> None:
    """They were in TeX, which is shown as it is, since names are text."""
    figure = Figure()
    axes = figure.add_subplot()
    axes.plot([1, largest], [1, 1 / largest])
    axes.set(xscale="log", yscale="log")
    assert write_figure(tmp_path / "picture", lambda: figure)
    for axis in (axes.xaxis, axes.yaxis):
        values = [*axis.get_majorticklocs(), *axis.get_minorticklocs()]
        labels = [label.get_text() for label in axis.get_ticklabels(which="both")]
        told = dict(zip(values, labels, strict=True))
        assert sum(map(bool, labels)) >= 2
        assert all(float(label) == pytest.approx(value, rel=1e-5) for value, label in told.items() if label)


def test_a_figure_is_drawn_once_for_each_file(tmp_path: Path) -> None:
    class Counting(Figure):
        draws = 0

        def draw(self, renderer: object) -> None:
            self.draws += 1
            super().draw(renderer)

    figure = Counting(layout="constrained")
    figure.subplots(2, 2)
    assert write_figure(tmp_path / "picture", lambda: figure, ("png", "pdf"))
    assert figure.draws == 2


def test_a_request_to_end_is_no_picture_that_fails(tmp_path: Path) -> None:
    def interrupted() -> Figure:
        raise Interrupted("stopped")

    with pytest.raises(Interrupted):
        write_figure(tmp_path / "picture.png", interrupted)


def test_a_picture_that_fails_is_told_of(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def fails() -> Figure:
        figure = titled("x")
        figure.axes[0].imshow(numpy.zeros((2, 2, 7)))
        return figure

    assert not write_figure(tmp_path / "picture.png", fails)
    told = capsys.readouterr().err
    assert told.startswith(f"warning: cannot draw {tmp_path / 'picture.png'}: TypeError: ") and told.count("\n") == 1
    assert not write_figure(tmp_path / "picture.png", lambda: None)
    assert list(tmp_path.iterdir()) == [] and capsys.readouterr().err == ""


def test_captions_of_neighbours_in_a_strip_do_not_touch() -> None:
    """Widest of letters that names have; each caption below its own picture, and above the next one."""
    names = [
        "seen as Smileys_and_Emotion",
        "seen as black-footed ferret, polecat",
        "0.44 shift\n0.39 brighter",
        "l-inf 0.1",
    ]
    columns = [Column("its change\n(amplified)", torch.rand(2, 3, 8, 8), [name, name]) for name in names]
    figure = _strip(columns)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    renderer = canvas.get_renderer()
    captions = [axes.xaxis.label.get_window_extent(renderer) for axes in figure.axes]
    pictures = [axes.get_window_extent(renderer) for axes in figure.axes]
    for number, one in enumerate(captions):
        others = [*captions[:number], *captions[number + 1 :], *pictures]
        assert not any(one.overlaps(other) for other in others)
    assert all(box.width > 0.9 * figure.dpi for box in pictures)


@pytest.mark.parametrize(("shape", "columns"), [((7, 1, 5, 4), 3), ((2, 3, 4, 4), 5), ((1, 1, 3, 3), 1)])
def test_images_of_a_sheet_lie_as_torchvision_lays_them(shape: tuple[int, ...], columns: int) -> None:
    images = torch.rand(shape)
    expected = make_grid(images, nrow=columns, padding=plots.GAP, pad_value=1.0)
    if len(images) == 1:  # torchvision leaves a single image without a border
        assert torch.equal(plots._grid(images, columns)[:, plots.GAP : -plots.GAP, plots.GAP : -plots.GAP], expected)
    else:
        assert torch.equal(plots._grid(images, columns), expected)
