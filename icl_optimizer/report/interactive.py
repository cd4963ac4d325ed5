"""The interactive picture of a figure, as the plain data that plotly.js takes."""

from __future__ import annotations

import html
import math
from typing import Any

from icl_optimizer.errors import MissingDependencyError
from icl_optimizer.report.draw import INSTALL
from icl_optimizer.report.formatting import number
from icl_optimizer.report.heat import ROW_HEIGHT, heat_axes, heat_labels, heat_traces
from icl_optimizer.report.spec import Axis, Bar, Figure, Kind, Panel, Rule, Series, tick_text, ticks

FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, sans-serif"
INK, GRID = "#1b1f24", "#e6e8eb"
MARKERS = {
    "triangle": "triangle-up",
    "down": "triangle-down",
    "left": "triangle-left",
    "right": "triangle-right",
    "plus": "cross",
    "cross": "x",
}
LINE_HEIGHT, BAR_HEIGHT = 370, 30
GAPS: dict[Kind, int] = {"lines": 85, "bars": 75, "heat": 130}
"""Pixels between panels, for the axis of the one and the heading of the next."""

Json = dict[str, Any]


def interactive(figure: Figure) -> Json:
    """Return ``{"data": [...], "layout": {...}}`` of ``figure``, checked by plotly.

    Panels lie under each other, so that a phone shows them at full width.
    """
    try:
        from plotly.graph_objects import Figure as Picture
    except ImportError as error:
        raise MissingDependencyError(f"the report needs plotly: {INSTALL}") from error
    bars = figure.kind == "bars"
    traces: list[Json] = []
    layout = _layout(figure)
    listed: set[str] = set()
    for i, panel in enumerate(figure.panels):
        suffix = "" if i == 0 else str(i + 1)
        axes = {"xaxis": f"x{suffix}", "yaxis": f"y{suffix}"}
        top, bottom = _domain(figure, i)
        if panel.heat is not None:
            traces += heat_traces(panel, axes)
            x, y = heat_axes(panel.heat)
            x |= {"anchor": axes["yaxis"]}
            layout["annotations"] += heat_labels(panel, axes)
        else:
            traces += _bar_traces(panel, axes) if bars else _line_traces(panel, axes, listed)
            listed |= {s.listed_as for s in panel.series}
            x, y = _x_axis(panel, axes["yaxis"]), _y_axis(panel)
        layout[f"xaxis{suffix}"] = x
        layout[f"yaxis{suffix}"] = y | {"domain": [bottom, top]}
        layout["annotations"] += _annotations(panel, axes, top)
        layout["shapes"] += [_rule(rule, axes, across=not bars) for rule in panel.rules]
        layout["shapes"] += [_rule(mark, axes, across=False) for mark in panel.marks]
    picture: Json = Picture(data=traces, layout=layout).to_plotly_json()
    return {"data": picture["data"], "layout": picture["layout"]}


def _layout(figure: Figure) -> Json:
    lines = figure.kind == "lines"
    return {
        "template": None,
        "paper_bgcolor": "#ffffff",
        "plot_bgcolor": "#ffffff",
        "font": {"family": FONT, "size": 13, "color": INK},
        "margin": {
            "l": 10,
            "r": 40 if figure.panels[0].rules and lines else 14,
            "t": 40,
            "b": 10,
        },
        # names under the columns of a heat map stand on end
        "height": _inner_height(figure) + (130 if figure.kind == "heat" else 70),
        "hovermode": "closest",
        "showlegend": lines,
        "legend": {
            "orientation": "h",
            "yref": "container",
            "y": 0,
            "yanchor": "bottom",
            "x": 0,
            "itemwidth": 36,
        },
        "annotations": [],
        "shapes": [],
    }


def _height(panel: Panel) -> int:
    if panel.heat is not None:
        return ROW_HEIGHT * len(panel.heat.rows)
    return BAR_HEIGHT * len(panel.bars) + 30 if panel.bars else LINE_HEIGHT


def _domain(figure: Figure, i: int) -> tuple[float, float]:
    """Return top and bottom of panel ``i`` in the unit interval, first panel on top."""
    whole = _inner_height(figure)
    above = sum(_height(p) + GAPS[figure.kind] for p in figure.panels[:i])
    return 1 - above / whole, max(1 - (above + _height(figure.panels[i])) / whole, 0.0)


def _inner_height(figure: Figure) -> int:
    """Return the pixels of all panels and of what lies between them."""
    return sum(map(_height, figure.panels)) + GAPS[figure.kind] * (len(figure.panels) - 1)


def _x_axis(panel: Panel, anchor: str) -> Json:
    return _axis(panel.x, panel) | {"anchor": anchor, "automargin": True}


def _y_axis(panel: Panel) -> Json:
    if panel.y is not None:
        return _axis(panel.y, panel) | {"automargin": True}
    count = len(panel.bars)
    return {
        "tickvals": list(range(count)),
        "ticktext": [f"{html.escape(b.name)}  " for b in panel.bars],
        "range": [count - 0.4, -0.6],
        "automargin": True,
        "zeroline": False,
        "fixedrange": True,
    }


def _axis(axis: Axis, panel: Panel) -> Json:
    shown: Json = {
        "title": {"text": html.escape(axis.label), "standoff": 8},
        "gridcolor": GRID,
        "zeroline": False,
        "linecolor": "#8a9099",
        "ticks": "outside",
        "tickcolor": "#8a9099",
    }
    if axis.limits is not None:
        shown["range"] = [math.log10(v) if axis.log else v for v in axis.limits]
    if axis.log:
        places = ticks(*(axis.limits or panel.x_range()))
        text = [tick_text(p) for p in places]
        shown |= {"type": "log", "tickvals": places, "ticktext": text}
    return shown


def _line_traces(panel: Panel, axes: Json, listed: set[str]) -> list[Json]:
    bands = [_band(s, axes) for s in panel.series]
    return bands + [_line(s, panel, axes, s.listed_as not in listed) for s in panel.series]


def _band(series: Series, axes: Json) -> Json:
    red, green, blue = (int(series.style.color[i : i + 2], 16) for i in (1, 3, 5))
    alpha = 0.07 if series.faint or series.level else 0.15
    return axes | {
        "type": "scatter",
        "x": [*series.x, *reversed(series.x)],
        "y": [*(v.high for v in series.values), *(v.low for v in reversed(series.values))],
        "fill": "toself",
        "fillcolor": f"rgba({red},{green},{blue},{alpha})",
        "line": {"width": 0},
        "mode": "lines",
        "hoverinfo": "skip",
        "legendgroup": html.escape(series.listed_as or series.name),
        "showlegend": False,
    }


def _line(series: Series, panel: Panel, axes: Json, new: bool) -> Json:
    style = series.style
    intervals = [f"{number(v.low)} to {number(v.high)}" for v in series.values]
    name = html.escape(series.name)
    return axes | {
        "type": "scatter",
        "name": html.escape(series.listed_as),
        "x": list(series.x),
        "y": [v.mean for v in series.values],
        "customdata": intervals,
        "hovertemplate": f"<b>{name}</b><br>{html.escape(panel.x.name)}: %{{x:,}}<br>"
        "%{y:.3g} (%{customdata})<extra></extra>",
        "mode": "lines" if series.level or len(series.x) > 25 else "lines+markers",
        "line": {"color": style.color, "dash": style.dash, "width": 1.2 if series.faint else 2},
        "marker": {"symbol": MARKERS.get(style.marker, style.marker), "size": 7},
        "opacity": 0.65 if series.faint else 1.0,
        "legendgroup": html.escape(series.listed_as or series.name),
        "showlegend": new and bool(series.listed_as),
    }


def _bar_traces(panel: Panel, axes: Json) -> list[Json]:
    return [_bar(place, bar, axes) for place, bar in enumerate(panel.bars)]


def _bar(place: int, bar: Bar, axes: Json) -> Json:
    value, color, name = bar.value, bar.style.color, html.escape(bar.name)
    interval = f"{number(value.low)} to {number(value.high)}" if value.n > 1 else "no interval"
    trace = axes | {
        "type": "bar",
        "orientation": "h",
        "name": name,
        "x": [value.mean],
        "y": [place],
        "width": 0.66,
        "customdata": [interval],
        "hovertemplate": f"<b>{name}</b><br>%{{x:,.3g}} (%{{customdata}})<extra></extra>",
        "marker": {"color": color, "line": {"color": color, "width": 1}},
    }
    if bar.hollow:
        trace["marker"] |= {"pattern": {"shape": "/", "fillmode": "replace", "fgcolor": color}}
    if value.n > 1:
        trace["error_x"] = {
            "type": "data",
            "array": [value.high - value.mean],
            "arrayminus": [value.mean - value.low],
            "color": INK,
            "thickness": 1.2,
            "width": 4,
        }
    return trace


def _annotations(panel: Panel, axes: Json, top: float) -> list[Json]:
    notes = [_bar_note(place, bar, panel, axes) for place, bar in enumerate(panel.bars)]
    if panel.series:
        notes += [_rule_note(rule, axes) for rule in panel.rules]
        notes += [_mark_note(mark, axes, log=panel.x.log) for mark in panel.marks]
    if panel.title:
        where = {"xref": "paper", "x": 0, "yref": "paper", "y": top}
        shape = {"xanchor": "left", "yanchor": "bottom", "showarrow": False, "yshift": 4}
        notes.append({"text": f"<b>{html.escape(panel.title)}</b>"} | where | shape)
    return notes


def _bar_note(place: int, bar: Bar, panel: Panel, axes: Json) -> Json:
    end = math.log10(bar.value.high) if panel.x.log else bar.value.high
    return {
        "text": html.escape(bar.note),
        "xref": axes["xaxis"],
        "yref": axes["yaxis"],
        "x": end,
        "y": place,
        "xanchor": "left",
        "xshift": 6,
        "showarrow": False,
        "bgcolor": "rgba(255,255,255,0.75)",
        "borderpad": 0,
    }


def _rule(rule: Rule, axes: Json, *, across: bool) -> Json:
    line = {"color": "#444444", "width": 1.2, "dash": "dash"}
    if across:
        domain, ends = f"{axes['xaxis']} domain", {"x0": 0, "x1": 1, "y0": rule.at, "y1": rule.at}
        return {"type": "line", "xref": domain, "yref": axes["yaxis"], "line": line} | ends
    domain, ends = f"{axes['yaxis']} domain", {"y0": 0, "y1": 1, "x0": rule.at, "x1": rule.at}
    return {"type": "line", "yref": domain, "xref": axes["xaxis"], "line": line} | ends


def _rule_note(rule: Rule, axes: Json) -> Json:
    return {
        "text": html.escape(rule.text),
        "xref": f"{axes['xaxis']} domain",
        "yref": axes["yaxis"],
        "x": 1,
        "y": rule.at,
        "xanchor": "left",
        "yanchor": "middle",
        "showarrow": False,
        "font": {"color": "#444444"},
    }


def _mark_note(mark: Rule, axes: Json, *, log: bool) -> Json:
    return {
        "text": html.escape(mark.text),
        "xref": axes["xaxis"],
        "yref": f"{axes['yaxis']} domain",
        "x": math.log10(mark.at) if log else mark.at,
        "y": 1,
        "xanchor": "left",
        "yanchor": "top",
        "showarrow": False,
        "font": {"color": "#444444"},
    }
