"""The static picture of a figure, by matplotlib."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from icl_optimizer.errors import MissingDependencyError
from icl_optimizer.report.heat import draw_heat
from icl_optimizer.report.spec import Bar, Figure, Panel, Series, tick_text, ticks

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Picture

DPI = 160
WIDTH = 7.2
INSTALL = "pip install 'icl-optimizer[report]'"

DASHES: dict[str, Any] = {
    "solid": "-",
    "dash": (0, (5, 2)),
    "dot": (0, (1.2, 1.6)),
    "dashdot": (0, (5, 2, 1.2, 2)),
    "longdash": (0, (9, 2.5)),
}
MARKERS = {
    "circle": "o",
    "square": "s",
    "triangle": "^",
    "down": "v",
    "left": "<",
    "right": ">",
    "diamond": "D",
    "plus": "P",
    "cross": "X",
    "star": "*",
    "pentagon": "p",
    "hexagon": "h",
}


def draw(figure: Figure, path: Path) -> None:
    """Write ``figure`` to ``path`` as PNG, 160 dots per inch.

    Raises:
        MissingDependencyError: Without matplotlib.
    """
    try:
        from matplotlib.figure import Figure as Picture
    except ImportError as error:
        raise MissingDependencyError(f"figures need matplotlib: {INSTALL}") from error
    sizes = {"lines": _line_size, "bars": _bar_size, "heat": _heat_size}
    drawers = {"lines": _draw_lines, "bars": _draw_bars, "heat": draw_heat}
    lines, bars = figure.kind == "lines", figure.kind == "bars"
    # a picture of its own, without pyplot: no display, no global state
    picture = Picture(figsize=sizes[figure.kind](figure), dpi=DPI, layout="constrained")
    rows, columns = (1, len(figure.panels)) if lines else (len(figure.panels), 1)
    grid = picture.subplots(rows, columns, squeeze=False, sharex=bars)
    for axes, panel in zip(grid.flat, figure.panels, strict=True):
        drawers[figure.kind](axes, panel)
        axes.set_title(_text(panel.title), fontsize=10, loc="left")
    if bars:
        grid.flat[-1].set_xlabel(figure.panels[-1].x.label)
    elif lines:
        _legend(picture, list(grid.flat))
    path.parent.mkdir(parents=True, exist_ok=True)
    # without the version of the library the same run gives the same file
    picture.savefig(path, metadata={"Software": None})


def _line_size(figure: Figure) -> tuple[float, float]:
    names = list({s.listed_as: None for p in figure.panels for s in p.series if s.listed_as})
    rows = -(-len(names) // _legend_columns(names))
    return WIDTH * (1.0 if len(figure.panels) == 1 else 1.35), 3.7 + 0.2 * rows


def _bar_size(figure: Figure) -> tuple[float, float]:
    count = sum(len(p.bars) for p in figure.panels)
    return WIDTH, 0.8 + 0.45 * len(figure.panels) + 0.3 * count


def _heat_size(figure: Figure) -> tuple[float, float]:
    rows = sum(len(p.heat.rows) for p in figure.panels if p.heat is not None)
    return WIDTH, 1.2 * len(figure.panels) + 0.3 * rows


def _draw_lines(axes: Axes, panel: Panel) -> None:
    assert panel.y is not None, "lines have a y axis"
    for series in panel.series:
        _draw_series(axes, series)
    for rule in panel.rules:
        axes.axhline(rule.at, color="#444444", linestyle=(0, (6, 3)), linewidth=0.9, zorder=1)
        axes.annotate(
            rule.text,
            (1.0, rule.at),
            xycoords=("axes fraction", "data"),
            xytext=(3, 0),
            textcoords="offset points",
            va="center",
            fontsize=8,
            color="#444444",
        )
    for mark in panel.marks:
        axes.axvline(mark.at, color="#444444", linewidth=0.9, zorder=1)
        axes.annotate(
            mark.text,
            (mark.at, 1.0),
            xycoords=("data", "axes fraction"),
            xytext=(3, -3),
            textcoords="offset points",
            va="top",
            fontsize=8,
            color="#444444",
        )
    _scale_x(axes, panel)
    axes.set_xlabel(panel.x.label)
    axes.set_ylabel(panel.y.label)
    if panel.y.limits is not None:
        axes.set_ylim(*panel.y.limits)
    axes.grid(alpha=0.25, linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)


def _draw_series(axes: Axes, series: Series) -> None:
    style = series.style
    axes.fill_between(
        series.x,
        [v.low for v in series.values],
        [v.high for v in series.values],
        color=style.color,
        alpha=0.08 if series.faint or series.level else 0.16,
        linewidth=0,
    )
    dense = len(series.x) > 25
    axes.plot(
        series.x,
        [v.mean for v in series.values],
        color=style.color,
        linestyle=DASHES[style.dash],
        linewidth=1.0 if series.faint else 1.6,
        alpha=0.65 if series.faint else 1.0,
        marker="" if series.level else MARKERS[style.marker],
        markersize=4.5,
        markevery=6 if dense else 1,
        label=_text(series.listed_as) or "_",
    )


def _scale_x(axes: Axes, panel: Panel) -> None:
    if not panel.x.log:
        return
    low, high = panel.x.limits or panel.x_range()
    places = ticks(low, high)
    axes.set_xscale("log")
    axes.set_xticks(places, [tick_text(p) for p in places])
    axes.set_xticks([], minor=True)


def _legend(picture: Picture, grid: list[Axes]) -> None:
    """List every line once, whichever panels it is in."""
    pairs = [pair for axes in grid for pair in zip(*axes.get_legend_handles_labels(), strict=True)]
    listed = {name: handle for handle, name in reversed(pairs)}
    names = list(dict.fromkeys(name for _, name in pairs))
    picture.legend(
        [listed[name] for name in names],
        names,
        loc="outside lower center",
        ncols=_legend_columns(names),
        fontsize=8,
        frameon=False,
        handlelength=3.4,
    )


def _legend_columns(names: list[str]) -> int:
    longest = max(map(len, names))
    fitting = max(1, int(105 / (longest + 10)))
    return min(fitting, len(names))


def _draw_bars(axes: Axes, panel: Panel) -> None:
    places = range(len(panel.bars))
    for place, bar in zip(places, panel.bars, strict=True):
        _draw_bar(axes, place, bar)
    axes.set_yticks(list(places), [_text(b.name) for b in panel.bars])
    axes.set_ylim(len(panel.bars) - 0.4, -0.6)
    for rule in panel.rules:
        axes.axvline(rule.at, color="#444444", linestyle=(0, (6, 3)), linewidth=0.9, zorder=3)
    _scale_x(axes, panel)
    if panel.x.limits is not None:
        axes.set_xlim(*panel.x.limits)
    axes.grid(axis="x", alpha=0.25, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def _draw_bar(axes: Axes, place: int, bar: Bar) -> None:
    value, color = bar.value, bar.style.color
    axes.barh(
        place,
        value.mean,
        height=0.66,
        color="none" if bar.hollow else color,
        edgecolor=color,
        hatch="////" if bar.hollow else None,
        alpha=0.6 if bar.hollow else 0.85,
    )
    if value.n > 1:
        reach = [[value.mean - value.low], [value.high - value.mean]]
        axes.errorbar(value.mean, place, xerr=reach, color="#222222", capsize=2.5, linewidth=1.0)
    axes.annotate(
        _text(bar.note),
        (value.high, place),
        xytext=(5, 0),
        textcoords="offset points",
        va="center",
        fontsize=8,
        bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.75, "pad": 0.5},
        zorder=4,
    )


def _text(name: str) -> str:
    """Return ``name`` as plain text: no mathematics, and no underscore that hides it."""
    plain = name.replace("$", r"\$")
    return f" {plain}" if plain.startswith("_") else plain
