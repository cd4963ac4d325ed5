"""The picture of a trace: rate over time, gaps between requests, numbers of tokens."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from icl_optimizer.environments.traces import TokenDistribution, TraceStatistics
from icl_optimizer.environments.traces.statistics import GAP_EDGES_S
from icl_optimizer.errors import MissingDependencyError
from icl_optimizer.report.draw import DASHES, DPI, INSTALL
from icl_optimizer.report.palette import BLUE, SLATE, VERMILLION, Style

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SIZE = (10.5, 6.6)
MOST_POINTS = 1500
STEPS = (1, 5, 10, 30, 60, 360, 1440, 10080)
"""Minutes that a point of the rate may stand for."""
BINS_PER_DECADE = 12
STYLES = {
    "context": Style(BLUE, "solid"),
    "generated": Style(VERMILLION, "dash"),
    "total": Style(SLATE, "dot"),
}


def draw_trace(statistics: TraceStatistics, path: Path) -> None:
    """Write the picture of a trace to ``path`` as PNG.

    Raises:
        MissingDependencyError: Without matplotlib.
    """
    try:
        from matplotlib.figure import Figure as Picture
    except ImportError as error:
        raise MissingDependencyError(f"pictures need matplotlib: {INSTALL}") from error
    picture = Picture(figsize=SIZE, dpi=DPI, layout="constrained")
    # what a file is called is no mathematics
    title = statistics.name.replace("$", r"\$")
    picture.suptitle(
        f"{title}: {statistics.requests:,} requests in {duration_text(statistics.duration_s)}",
        fontsize=12,
    )
    grid = picture.add_gridspec(2, 3, height_ratios=(1.0, 1.15))
    _draw_rate(picture.add_subplot(grid[0, :]), statistics)
    _draw_gaps(picture.add_subplot(grid[1, 0]), statistics)
    _draw_histograms(picture.add_subplot(grid[1, 1]), statistics)
    _draw_cumulated(picture.add_subplot(grid[1, 2]), statistics)
    path.parent.mkdir(parents=True, exist_ok=True)
    # without the version of the library the same trace gives the same file
    picture.savefig(path, metadata={"Software": None})


def duration_text(seconds: float) -> str:
    """Return a duration in the unit that suits it."""
    for unit, size in (("days", 86400.0), ("h", 3600.0), ("min", 60.0)):
        if seconds >= 2 * size:
            return f"{seconds / size:,.1f} {unit}"
    return f"{seconds:,.1f} s"


def _draw_rate(axes: Axes, statistics: TraceStatistics) -> None:
    length = int(statistics.minutes[-1]) + 1
    step = next((s for s in STEPS if length <= s * MOST_POINTS), -(-length // MOST_POINTS))
    # what is not whole would look like a fall
    whole = max(1, int(statistics.duration_s // (60 * step)))
    counts = np.bincount(statistics.minutes // step, weights=statistics.minute_counts)
    rate = np.append(counts, np.zeros(whole))[:whole] / step
    name, minutes = _time_unit(statistics.duration_s)
    edges = np.arange(whole + 1) * step / minutes
    color = STYLES["context"].color
    axes.stairs(rate, edges, color=color, fill=True, alpha=0.25)
    axes.stairs(rate, edges, color=color, linewidth=1.0, baseline=None)
    mean = statistics.mean_rate * 60
    axes.axhline(mean, color="#444444", linestyle=DASHES["dash"], linewidth=1.0)
    axes.annotate(
        f"mean {mean:,.0f}",
        (1.0, mean),
        xycoords=("axes fraction", "data"),
        xytext=(4, 0),
        textcoords="offset points",
        va="center",
        fontsize=8,
        color="#444444",
    )
    axes.set_xlim(0, edges[-1])
    axes.set_ylim(0)
    axes.set_xlabel(f"Time since {statistics.start:%Y-%m-%d %H:%M:%S} ({name})")
    mean_of = "" if step == 1 else f",\nmean of {_step_text(step)}"
    axes.set_ylabel(f"Requests per minute{mean_of}")
    _finish(axes, "Rate")


def _time_unit(seconds: float) -> tuple[str, int]:
    """Return the unit of the time axis and its minutes."""
    if seconds < 3 * 3600:
        return "minutes", 1
    return ("hours", 60) if seconds < 3 * 86400 else ("days", 1440)


def _step_text(minutes: int) -> str:
    return f"{minutes} min" if minutes < 60 else duration_text(60.0 * minutes)


def _draw_gaps(axes: Axes, statistics: TraceStatistics) -> None:
    gaps = statistics.requests - 1
    mean = statistics.duration_s / max(gaps, 1)
    if mean == 0:
        axes.text(0.5, 0.5, "no time between requests", ha="center", transform=axes.transAxes)
        axes.set_axis_off()
        return
    survival = statistics.gap_survival
    shown = (survival > 0) & (mean / 1000 <= GAP_EDGES_S)
    x = np.append(GAP_EDGES_S[shown], statistics.longest_gap_s)
    y = np.append(survival[shown], 1 / gaps)
    style = STYLES["context"]
    axes.plot(x, y, color=style.color, linewidth=1.6, label="this trace")
    line = np.geomspace(mean / 1000, mean * np.log(2 * gaps + 1), 200)
    axes.plot(
        line,
        np.exp(-line / mean),
        color=SLATE,
        linestyle=DASHES["dash"],
        linewidth=1.3,
        label="Poisson of the same rate",
    )
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_ylim(0.5 / gaps, 1.6)
    axes.set_xlabel("Gap between requests, x (s)")
    axes.set_ylabel("Share of gaps of at least x")
    _legend(axes)
    _finish(axes, "Gaps between requests")


def _draw_histograms(axes: Axes, statistics: TraceStatistics) -> None:
    top = np.log10(max(statistics.context.max, statistics.generated.max, 9) + 1)
    exponents = np.arange(0, np.ceil(top * BINS_PER_DECADE) + 1) / BINS_PER_DECADE
    # whole numbers: without this, bins below 10 would hold one number or none by chance
    edges = np.unique(np.ceil(10**exponents)) - 0.5
    for name, tokens in (("context", statistics.context), ("generated", statistics.generated)):
        counts, _ = np.histogram(tokens.values, bins=edges, weights=tokens.counts)
        share = counts / statistics.requests / np.diff(np.log10(edges))
        style = STYLES[name]
        axes.stairs(share, edges, fill=True, color=style.color, alpha=0.16)
        axes.stairs(
            share,
            edges,
            color=style.color,
            linestyle=DASHES[style.dash],
            linewidth=1.4,
            label=name,
        )
    axes.set_xscale("log")
    axes.set_ylim(0)
    axes.set_xlabel("Tokens of a request")
    axes.set_ylabel("Share of requests per decade")
    axes.set_xlim(_lowest(statistics), edges[-1])
    _legend(axes)
    _finish(axes, "Numbers of tokens, density")


def _draw_cumulated(axes: Axes, statistics: TraceStatistics) -> None:
    distributions: dict[str, TokenDistribution] = {
        "context": statistics.context,
        "generated": statistics.generated,
        "total": statistics.total,
    }
    for name, tokens in distributions.items():
        # a logarithmic axis has no place for 0
        x = np.maximum(tokens.values, 0.5)
        style = STYLES[name]
        axes.plot(
            np.append(x[0], x),
            np.append(0.0, tokens.counts.cumsum() / statistics.requests),
            color=style.color,
            linestyle=DASHES[style.dash],
            linewidth=1.6,
            drawstyle="steps-post",
            label=name,
        )
    axes.set_xscale("log")
    axes.set_ylim(0, 1.02)
    axes.set_xlabel("Tokens of a request, x")
    axes.set_ylabel("Share of requests of at most x")
    axes.set_xlim(left=_lowest(statistics))
    _legend(axes)
    _finish(axes, "Numbers of tokens, cumulated")


def _lowest(statistics: TraceStatistics) -> float:
    """Return where the axis of token numbers begins."""
    lowest = min(int(statistics.context.values[0]), int(statistics.generated.values[0]))
    return 0.8 * max(0.5, lowest)


def _legend(axes: Axes) -> None:
    """Put the legend below, where no curve can run through it."""
    axes.legend(
        fontsize=8,
        frameon=False,
        loc="upper center",
        bbox_to_anchor=(0.5, -0.18),
        ncols=3,
        columnspacing=1.4,
        handlelength=2.6,
    )


def _finish(axes: Axes, title: str) -> None:
    axes.set_title(title, fontsize=10, loc="left")
    axes.grid(alpha=0.25, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
