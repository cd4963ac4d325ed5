"""Heat maps of servers: how much each got of the requests, and where objectives were met."""

from __future__ import annotations

from collections.abc import Mapping

from icl_optimizer.comparison.statistics import Estimate, estimate
from icl_optimizer.report.formatting import share
from icl_optimizer.report.loading import Run
from icl_optimizer.report.measures import last_step, per_entry
from icl_optimizer.report.palette import Entry, Palette
from icl_optimizer.report.spec import Axis, Figure, Heat, Panel

SHARE = "share_"
OBJECTIVES = {
    "deadline_met": ("Deadlines met", "answered by their deadline", "more is better"),
    "slo_violation_rate": ("Late responses", "late or not answered", "less is better"),
    "qos": ("Requests within the latency bound", "within the latency bound", "more is better"),
}
"""Of the objectives, the first that a run has is shown: heading, what is counted, reading."""
MEASURED_BY = {"qos": "success_rate"}
HERE = "as learned"


def load_figures(run: Run, palette: Palette) -> list[Figure | None]:
    """Return the load per server and the objectives by scenario; None for what there is not."""
    return [_load(run, palette), _objectives(run, palette)]


def _load(run: Run, palette: Palette) -> Figure | None:
    metrics = [m for m in run.metrics if m.startswith(SHARE)]
    columns = {m.removeprefix(SHARE): _by_entry(run, m) for m in metrics}
    columns = {name: found for name, found in columns.items() if found}
    if not columns:
        return None
    heat = _heat("server", columns, palette)
    caption = (
        "Share of the held-out requests that each server got, by policy, as it was after learning. "
        "What is missing to 1 in a row was dropped."
    )
    panel = Panel("", Axis("requests", "share"), heat=heat)
    title, alt = "Load per server", f"Heat map of the share of requests per server. {_told(heat)}"
    return Figure("server-load", title, caption, alt, (panel,))


def _objectives(run: Run, palette: Palette) -> Figure | None:
    found = next((m for m in OBJECTIVES if not run.rows(m).empty), None)
    if found is None:
        return None
    title, counted, reading = OBJECTIVES[found]
    metric = MEASURED_BY.get(found, found)
    columns = {HERE: _by_entry(run, metric)}
    for name, rows in run.extra_rows(metric).groupby("scenario", sort=False, observed=True):
        columns[str(name)] = {
            e: estimate(last_step(mine)["value"].to_numpy()) for e, mine in per_entry(rows)
        }
    heat = _heat("scenario", columns, palette)
    caption = (
        f"Share of the requests that were {counted}, by policy and scenario; {reading}. "
        f"“{HERE}” is the scenario of learning, {run.scenario}."
    )
    panel = Panel("", Axis("requests", "share"), heat=heat)
    alt = f"Heat map of the share of requests {counted}. {_told(heat)}"
    return Figure("objectives", f"{title}, by scenario", caption, alt, (panel,))


def _by_entry(run: Run, metric: str) -> dict[Entry, Estimate]:
    return {
        entry: estimate(last_step(rows)["value"].to_numpy())
        for entry, rows in per_entry(run.rows(metric))
    }


def _heat(column: str, columns: Mapping[str, Mapping[Entry, Estimate]], palette: Palette) -> Heat:
    entries = [e for e in palette.entries if any(e in found for found in columns.values())]
    values = tuple(tuple(found.get(e) for found in columns.values()) for e in entries)
    names = tuple(palette.label(e) for e in entries)
    return Heat("policy", column, names, tuple(columns), values, (0.0, 1.0))


def _told(heat: Heat) -> str:
    rows = (
        f"{name}: "
        + ", ".join(
            f"{column} {share(v.mean)}"
            for column, v in zip(heat.columns, values, strict=True)
            if v is not None
        )
        for name, values in zip(heat.rows, heat.values, strict=True)
    )
    return f"{'; '.join(rows)}."
