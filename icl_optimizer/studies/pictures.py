"""Pictures of studies by matplotlib: series with intervals in the styles of the report."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from icl_optimizer.comparison.statistics import Estimate
from icl_optimizer.errors import MissingDependencyError
from icl_optimizer.report.draw import DASHES, DPI, INSTALL, MARKERS
from icl_optimizer.report.palette import Style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def picture(
    rows: int, columns: int, *, width: float = 5.2, height: float = 3.8
) -> tuple[Figure, list[Axes]]:
    """Return an empty picture with a grid of axes, and these row by row.

    Raises:
        MissingDependencyError: Without matplotlib.
    """
    try:
        from matplotlib.figure import Figure as Picture
    except ImportError as error:
        raise MissingDependencyError(f"pictures need matplotlib: {INSTALL}") from error
    drawing = Picture(figsize=(width * columns, height * rows), dpi=DPI, layout="constrained")
    grid = list(drawing.subplots(rows, columns, squeeze=False).flat)
    for axes in grid:
        axes.grid(visible=True, alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    return drawing, grid


def plot_series(
    axes: Axes, x: Sequence[float], values: Sequence[Estimate], name: str, style: Style
) -> None:
    """Draw means as a line with markers, and their intervals as a band."""
    axes.plot(
        x,
        [v.mean for v in values],
        color=style.color,
        linestyle=DASHES[style.dash],
        marker=MARKERS[style.marker],
        markersize=5,
        linewidth=1.6,
        label=name,
    )
    low, high = [v.low for v in values], [v.high for v in values]
    axes.fill_between(x, low, high, color=style.color, alpha=0.15, linewidth=0)


def save(drawing: Figure, axes: Axes | None, path: Path) -> None:
    """Write the picture as PNG, with the legend of ``axes``, if any, below it."""
    handles, names = axes.get_legend_handles_labels() if axes else ([], [])
    if handles:
        # about what a line, its name and the space after it take, in inches
        widest = 0.8 + 0.085 * max(map(len, names))
        columns = max(1, min(len(names), int(drawing.get_figwidth() / widest)))
        drawing.legend(handles, names, loc="outside lower center", ncols=columns, frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    # without the version of the library the same values give the same file
    drawing.savefig(path, metadata={"Software": None})
