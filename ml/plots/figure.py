"""Figure of runs side by side: one panel per metric, one color per run. Needs matplotlib but no display."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ml.errors import UserError
from ml.files import write_atomically
from ml.optional import optional_import
from ml.plots.labels import shorten
from ml.plots.series import Metrics, series, smooth

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure
    from matplotlib.legend import Legend
    from matplotlib.transforms import Bbox
    from matplotlib.typing import LegendLocType

USUAL_METRICS = ("loss", "learning_rate", "tokens_per_second")
MARKERS = "os^DvP*Xhp"  # of the validation of a run, so that runs differ in gray too

_WIDTH = 11.0  # inches
_ROW_HEIGHT = 2.5
_DPI = 150
_COLUMNS = 3
_LONGEST_TITLE = 36
_HELD_OUT = re.compile(r"validation_(?:.*_)?loss")
_HELD_OUT_DASHES = ((4.0, 1.5), (1.5, 1.2), (6.0, 1.2, 1.2, 1.2), (8.0, 2.0))
_NOT_SMOOTHED = re.compile(r"learning_rate|validation_.*")
_TITLES = {"loss": "loss (nats per token)", "tokens_per_second": "tokens per second"}
_LARGE_NUMBERS = ((1e12, "trillions"), (1e9, "billions"), (1e6, "millions"), (1e3, "thousands"))
_TIMES = ((86400.0, "days"), (3600.0, "hours"), (60.0, "minutes"), (1.0, "seconds"))
_GRAY = "#444444"


class Unit(NamedTuple):
    """Unit of an axis, with its size in measured units and the label of the axis."""

    size: float
    label: str


@dataclass(frozen=True)
class Curve:
    """One run to draw: its label in the legend and its metrics."""

    label: str
    metrics: Metrics


@dataclass(frozen=True)
class Style:
    """Options of a figure.

    Attributes:
        x: `tokens`, `step` or `seconds`.
        extra_metrics: Metrics to draw below the usual ones, one panel each.
        window: Logged steps in a running mean; None means a twentieth of the longest run, 1 no smoothing.
        logarithmic: The axes with a logarithmic scale: `x` and names of metrics.
    """

    x: str = "tokens"
    extra_metrics: tuple[str, ...] = ()
    window: int | None = None
    logarithmic: frozenset[str] = frozenset()


def draw(curves: Sequence[Curve], style: Style) -> Figure:
    """Draws the loss in a large panel, the other usual metrics beside it, extra ones below, with one legend.

    Raises:
        UserError: matplotlib is not installed, or a logarithmic axis has no positive value.
    """
    figure_class = _matplotlib_figure()
    metrics = [name for name in _panels(style) if any(name in curve.metrics.names for curve in curves)]
    num_rows = 2 + -(-max(len(metrics) - 3, 0) // _COLUMNS)
    figure = figure_class(figsize=(_WIDTH, num_rows * _ROW_HEIGHT), dpi=_DPI, layout="constrained")
    layout: Any = figure.get_layout_engine()  # the constrained one
    layout.set(w_pad=0.1, h_pad=0.08)
    unit = _unit(style.x, curves)
    for name, axes in zip(metrics, _axes(figure, num_rows, len(metrics)), strict=True):
        _draw_panel(axes, name, curves, style, unit)
    _add_legend(figure, curves)
    return figure


def save(figure: Figure, path: Path) -> None:
    """Writes the figure in the format of the file's suffix.

    Raises:
        UserError: The format is unknown, or the file cannot be written.
    """
    check_format(path)
    picture = io.BytesIO()
    figure.savefig(picture, format=path.suffix.removeprefix("."))
    try:
        write_atomically(path, picture.getvalue())
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}") from error


def check_format(path: Path) -> None:
    """Checks that figures can be written to a file.

    Raises:
        UserError: matplotlib is not installed, or does not support the file's suffix.
    """
    _matplotlib_figure()
    from matplotlib.backend_bases import FigureCanvasBase

    known = FigureCanvasBase.get_supported_filetypes()
    if path.suffix.removeprefix(".").lower() not in known:
        raise UserError(f"{path} must end in .png, or in another format that can be drawn: {', '.join(sorted(known))}")


def colors(count: int) -> list[tuple[float, float, float]]:
    """Returns one color per run, from dark to light, distinct in gray too and visible on white."""
    from matplotlib import colormaps

    places = np.linspace(0.0, 0.82, count) if count > 1 else [0.25]
    return [tuple(colormaps["viridis"](place)[:3]) for place in places]


def _matplotlib_figure() -> type[Figure]:
    return optional_import("matplotlib.figure", "plot", "drawing").Figure


def _panels(style: Style) -> list[str]:
    return list(dict.fromkeys([*USUAL_METRICS, *style.extra_metrics]))


def _axes(figure: Figure, num_rows: int, count: int) -> list[Axes]:
    """The first panel spans two rows and all but one column, two are beside it, the others below in rows."""
    grid = figure.add_gridspec(num_rows, _COLUMNS)
    first_row = [grid[0:2, 0:2], grid[0, 2], grid[1, 2]] if count > 1 else [grid[0:2, :]]
    below = [grid[2 + n // _COLUMNS, n % _COLUMNS] for n in range(max(count - 3, 0))]
    axes: list[Axes] = []
    for place in [*first_row, *below][:count]:
        axes.append(figure.add_subplot(place, sharex=axes[0] if axes else None))
    return axes


def _draw_panel(axes: Axes, name: str, curves: Sequence[Curve], style: Style, unit: Unit) -> None:
    measured = [series(curve.metrics, name, style.x) for curve in curves]
    window = 1 if _NOT_SMOOTHED.fullmatch(name) else style.window or max(len(each.x) for each in measured) // 20
    held_out = _held_out(curves) if name == "loss" else []
    for curve, points, color, marker in zip(curves, measured, colors(len(curves)), _markers(len(curves)), strict=True):
        _draw_measured(axes, points.x / unit.size, points.y, window, color, name, marker)
        for other, dashes in zip(held_out, _dashes(len(held_out)), strict=True):
            points = series(curve.metrics, other, style.x)
            look: dict[str, Any] = {
                "marker": marker,
                "markersize": 5,
                "linewidth": 1.1,
                "dashes": dashes,
                "markeredgecolor": "white",
            }
            axes.plot(points.x / unit.size, points.y, color=color, zorder=4, markeredgewidth=0.6, gid=other, **look)
    title = _TITLES.get(name, shorten(name.replace("_", " "), _LONGEST_TITLE))
    axes.set_title(title, fontsize=10, loc="left", parse_math=False)
    axes.set_xlabel(unit.label, fontsize=9)
    _finish(axes, name, style)
    if name == "loss":
        _explain_lines(axes, held_out, window)


def _draw_measured(axes: Axes, x: np.ndarray, y: np.ndarray, window: int, color: tuple, name: str, marker: str) -> None:
    """Draws the measured values, faint and below the running mean if they are smoothed."""
    is_sparse = name.startswith("validation_")
    look: dict[str, Any] = {"marker": marker, "markersize": 4} if is_sparse or len(x) == 1 else {}
    if window < 3:
        axes.plot(x, y, color=color, linewidth=1.4, gid=name, **look)
        return
    axes.plot(x, y, color=color, linewidth=0.7, alpha=0.28, gid=name, **look)
    axes.plot(x, smooth(y, window), color=color, linewidth=1.7, gid=f"{name} smoothed")


def _finish(axes: Axes, name: str, style: Style) -> None:
    """Scales, grid and spines."""
    for axis, key in (("x", "x"), ("y", name)):
        if key not in style.logarithmic:
            continue
        values = np.concatenate([getattr(line, f"get_{axis}data")() for line in axes.lines])
        if not (values > 0.0).any():
            raise UserError(f"--log={key}: nothing in the panel of {name} is above 0")
        getattr(axes, f"set_{axis}scale")("log", nonpositive="mask")
        _write_numbers_plainly(getattr(axes, f"{axis}axis"))
    axes.grid(True, which="major", color="#e4e4e4", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(which="both", labelsize=8)
    axes.margins(x=0.02)
    if name == "learning_rate" and name not in style.logarithmic:
        axes.yaxis.set_major_formatter("{x:.4g}")
    if name == "tokens_per_second" and name not in style.logarithmic:
        axes.set_ylim(0.0, 1.08 * max(np.asarray(line.get_ydata()).max(initial=0.0) for line in axes.lines) or 1.0)
        axes.yaxis.set_major_formatter("{x:,.0f}")


def _write_numbers_plainly(axis: Axis) -> None:
    """Labels ticks with plain numbers instead of powers of ten; minor ticks where matplotlib has room."""
    from matplotlib.ticker import LogFormatter

    class Plain(LogFormatter):
        def __call__(self, x: float, pos: int | None = None) -> str:
            return f"{x:g}" if super().__call__(x, pos) else ""

    axis.set_major_formatter(Plain())
    axis.set_minor_formatter(Plain(minor_thresholds=(1.0, 0.4)))


def _explain_lines(axes: Axes, held_out: Sequence[str], window: int) -> None:
    """A legend in gray for the kinds of lines, common to all runs."""
    from matplotlib.lines import Line2D

    handles = [Line2D([], [], color=_GRAY, linewidth=1.4, label="training")]
    if window >= 3:
        size = window - 1 + window % 2
        handles = [
            Line2D([], [], color=_GRAY, linewidth=0.7, alpha=0.4, label="training, each logged step"),
            Line2D([], [], color=_GRAY, linewidth=1.7, label=f"training, mean of {size} logged steps"),
        ]
    for other, dashes in zip(held_out, _dashes(len(held_out)), strict=True):
        label = other.removesuffix("_loss").replace("validation_", "validation: ")
        handles.append(Line2D([], [], color=_GRAY, linewidth=1.1, dashes=dashes, marker=MARKERS[0], label=label))
    axes.legend(handles=handles, fontsize=8, frameon=False, loc="upper right")


def _add_legend(figure: Figure, curves: Sequence[Curve]) -> None:
    """Adds a legend of the runs below the panels, in as many columns as fit, and enlarges the figure for it."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.lines import Line2D

    handles = [
        Line2D([], [], color=color, linewidth=2.0, marker=marker, markersize=5, label=curve.label)
        for curve, color, marker in zip(curves, colors(len(curves)), _markers(len(curves)), strict=True)
    ]
    renderer = FigureCanvasAgg(figure).get_renderer()

    def legend(num_columns: int, loc: LegendLocType) -> tuple[Legend, Bbox]:
        made = figure.legend(handles=handles, ncols=num_columns, loc=loc, fontsize=9, frameon=False, columnspacing=1.6)
        for text in made.get_texts():
            text.set_parse_math(False)  # a dollar in a name is a dollar
        return made, made.get_window_extent(renderer)

    probe, size = legend(1, "lower center")
    probe.remove()
    _, size = legend(max(1, min(len(curves), int(_WIDTH * _DPI / size.width))), "outside lower center")
    figure.set_size_inches(_WIDTH, figure.get_figheight() + size.height / _DPI)


def _held_out(curves: Sequence[Curve]) -> list[str]:
    names = dict.fromkeys(name for curve in curves for name in curve.metrics.names)
    return [name for name in names if _HELD_OUT.fullmatch(name)]


def _dashes(count: int) -> list[tuple[float, ...]]:
    return [_HELD_OUT_DASHES[n % len(_HELD_OUT_DASHES)] for n in range(count)]


def _markers(count: int) -> list[str]:
    return [MARKERS[n % len(MARKERS)] for n in range(count)]


def _unit(x: str, curves: Sequence[Curve]) -> Unit:
    """The unit of the x axis that gives readable numbers."""
    largest = max((record[x] for curve in curves for record in curve.metrics.records if x in record), default=0.0)
    if x == "step":
        return Unit(1.0, "step")
    if x == "seconds":
        times = [Unit(size, f"{name} of training") for size, name in _TIMES]
        return next((unit for unit in times if largest >= 2 * unit.size), times[-1])
    size, label = next(
        ((size, f"tokens ({name})") for size, name in _LARGE_NUMBERS if largest >= size), (1.0, "tokens")
    )
    return Unit(size, label)
