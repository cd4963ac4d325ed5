"""Heat maps: colours that the colour-blind tell apart, and every value written on its cell."""

from __future__ import annotations

import html
from typing import TYPE_CHECKING, Any

from icl_optimizer.comparison.statistics import Estimate
from icl_optimizer.report.formatting import number
from icl_optimizer.report.spec import Heat, Panel

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SEQUENTIAL = ("#f7fbff", "#9ecae1", "#3182bd", "#08306b")
"""Pale to dark in one hue: its order is seen without any colour."""
DIVERGING = ("#b35806", "#fdb863", "#f7f7f7", "#92c5de", "#2166ac")
"""Orange to blue through white, the pair of hues that all colour-blind people tell apart."""
NOTHING = "#e3e6ea"
MOST_LABELS = 600
"""Cells up to which values are written on them."""
ROW_HEIGHT = 30

Json = dict[str, Any]
Rgb = tuple[int, int, int]


def cell_text(value: Estimate | None) -> str:
    """Return what stands on a cell: two digits, without the zero before a fraction."""
    if value is None:
        return ""
    mean = value.mean
    if abs(mean) >= 10:
        return number(mean)
    return f"{mean:.2f}"


def color(heat: Heat, mean: float) -> Rgb:
    """Return the colour of a value as red, green and blue from 0 to 255."""
    stops = [_rgb(stop) for stop in (DIVERGING if heat.even else SEQUENTIAL)]
    low, high = heat.limits
    share = min(max((mean - low) / (high - low), 0.0), 1.0) if high > low else 0.5
    place = share * (len(stops) - 1)
    i = min(int(place), len(stops) - 2)
    red, green, blue = (
        round(a + (b - a) * (place - i)) for a, b in zip(stops[i], stops[i + 1], strict=True)
    )
    return red, green, blue


def ink(background: Rgb) -> str:
    """Return black or white, whichever is read better on ``background``."""
    light = 0.299 * background[0] + 0.587 * background[1] + 0.114 * background[2]
    return "#000000" if light > 140 else "#ffffff"


def draw_heat(axes: Axes, panel: Panel) -> None:
    """Draw the heat map of ``panel``."""
    heat = panel.heat
    assert heat is not None, "panels of a figure are of a kind"
    shades = [
        [_rgb(NOTHING) if v is None else color(heat, v.mean) for v in row] for row in heat.values
    ]
    axes.imshow(shades, aspect="auto", interpolation="none")
    if _labelled(heat):
        for y, row in enumerate(heat.values):
            for x, value in enumerate(row):
                shade = ink(shades[y][x])
                text = cell_text(value)
                axes.text(x, y, text, ha="center", va="center", fontsize=8, color=shade)
    axes.set_xticks(
        range(len(heat.columns)), [_plain(c) for c in heat.columns], rotation=35, ha="right"
    )
    axes.set_yticks(range(len(heat.rows)), [_plain(r) for r in heat.rows])
    axes.set_xlabel(f"{heat.column}; colour: {panel.x.label}")
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)


def heat_traces(panel: Panel, axes: Json) -> list[Json]:
    """Return the heat map of ``panel`` for plotly; empty cells are grey."""
    heat = panel.heat
    assert heat is not None, "panels of a figure are of a kind"
    stops = DIVERGING if heat.even else SEQUENTIAL
    low, high = heat.limits
    return [
        axes
        | {
            "type": "heatmap",
            "z": [[None if v is None else v.mean for v in row] for row in heat.values],
            "customdata": [[_told(v) for v in row] for row in heat.values],
            "x": list(range(len(heat.columns))),
            "y": list(range(len(heat.rows))),
            "text": [[_pair(r, c) for c in heat.columns] for r in heat.rows],
            "hovertemplate": "%{text}<br>%{customdata}<extra></extra>",
            "zmin": low,
            "zmax": high,
            "colorscale": [[i / (len(stops) - 1), stop] for i, stop in enumerate(stops)],
            "showscale": False,
            "xgap": 2,
            "ygap": 2,
        }
    ]


def heat_axes(heat: Heat) -> tuple[Json, Json]:
    """Return the x and the y axis of a heat map for plotly."""
    plain = {"zeroline": False, "showgrid": False, "automargin": True, "fixedrange": True}
    x = plain | {
        "tickvals": list(range(len(heat.columns))),
        "ticktext": [html.escape(c) for c in heat.columns],
        "tickangle": -45,
    }
    y = plain | {
        "tickvals": list(range(len(heat.rows))),
        "ticktext": [f"{html.escape(r)} " for r in heat.rows],
        "range": [len(heat.rows) - 0.5, -0.5],
    }
    return x, y


def heat_labels(panel: Panel, axes: Json) -> list[Json]:
    """Return the values written on the cells for plotly."""
    heat = panel.heat
    assert heat is not None, "panels of a figure are of a kind"
    if not _labelled(heat):
        return []
    size = 12 if len(heat.columns) < 8 else 10
    return [
        {
            "name": "cell",
            "text": cell_text(value),
            "xref": axes["xaxis"],
            "yref": axes["yaxis"],
            "x": x,
            "y": y,
            "showarrow": False,
            "font": {"color": ink(color(heat, value.mean)), "size": size},
        }
        for y, row in enumerate(heat.values)
        for x, value in enumerate(row)
        if value is not None
    ]


def _labelled(heat: Heat) -> bool:
    return len(heat.rows) * len(heat.columns) <= MOST_LABELS


def _told(value: Estimate | None) -> str:
    if value is None:
        return "not measured"
    interval = f" ({number(value.low)} to {number(value.high)})" if value.n > 1 else ""
    return f"{number(value.mean)}{interval}"


def _pair(row: str, column: str) -> str:
    return f"<b>{html.escape(row)}</b>, {html.escape(column)}"


def _rgb(text: str) -> Rgb:
    return int(text[1:3], 16), int(text[3:5], 16), int(text[5:7], 16)


def _plain(name: str) -> str:
    """Return ``name`` as plain text: no mathematics."""
    return name.replace("$", r"\$")
