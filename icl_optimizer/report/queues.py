"""The figures of requests to servers with queues: over arrival rates, and violations by policy."""

from __future__ import annotations

from dataclasses import dataclass, replace

from icl_optimizer.comparison.statistics import Estimate, estimate
from icl_optimizer.report.formatting import number
from icl_optimizer.report.loading import Run, parse_scenario
from icl_optimizer.report.measures import last_step, per_entry
from icl_optimizer.report.palette import Entry, Palette
from icl_optimizer.report.spec import Axis, Bar, Figure, Panel, Series, decades

RATE = Axis("arrival rate", "tasks per second")
FASTEST_S = 1e-3
"""Least response time that a logarithmic axis shows."""


@dataclass(frozen=True)
class Measure:
    """One metric that a figure shows."""

    metric: str
    id: str
    title: str
    axis: Axis
    caption: str


OVER_RATES = (
    Measure(
        "score",
        "score-rates",
        "Score over arrival rates",
        Axis("score of a task", "0 to 1"),
        "Mean score of a task; one that is late or dropped scores 0.",
    ),
    Measure(
        "deadline_met",
        "deadlines-rates",
        "Deadlines met over arrival rates",
        Axis("deadlines met", "share of tasks"),
        "Share of the tasks that were answered by their deadline.",
    ),
    Measure(
        "hindsight_share",
        "hindsight-rates",
        "Share of what hindsight allows",
        Axis("score over the bound", "share"),
        "Score over a bound that no policy can pass: the relaxed time-indexed programme with "
        "everything known beforehand, on the first episodes.",
    ),
)
ROUTED = (
    Measure(
        "qos",
        "qos-rates",
        "Quality of service over arrival rates",
        Axis("quality of service of a request", "0 to 1"),
        "Mean quality of the answers; one that is too slow for the bound, or dropped, counts 0.",
    ),
    Measure(
        "success_rate",
        "in-time-rates",
        "Requests within the latency bound",
        Axis("within the bound", "share of requests"),
        "Share of the requests whose latency per token stayed below the bound.",
    ),
    Measure(
        "drop_rate",
        "drops-rates",
        "Requests dropped",
        Axis("dropped", "share of requests"),
        "Share of the requests that the policy dropped, or that found no room.",
    ),
    Measure(
        "qos_per_gpu_s",
        "efficiency-rates",
        "Efficiency over arrival rates",
        Axis("quality of service per busy GPU second", "1/s"),
        "Quality of service over the time that GPUs were busy.",
    ),
)
BY_POLICY = (
    Measure(
        "slo_violation_rate",
        "violations",
        "Late responses",
        Axis("late responses", "share of requests"),
        "Share of the held-out requests that were answered after the objective, or not at all.",
    ),
    Measure(
        "response_time_s",
        "responses",
        "Response time",
        Axis("mean response time", "s", True),
        "Mean response time of the held-out requests.",
    ),
)


def queue_figures(run: Run, palette: Palette) -> list[Figure | None]:
    """Return what there is of both kinds; None for what the run did not measure."""
    measures = ROUTED if run.extra_rows("qos").size else OVER_RATES
    rates = [_over_rates(run, palette, measure) for measure in measures]
    if not run.rows("slo_violation_rate").size:
        return rates
    return [*rates, *(_by_policy(run, palette, measure) for measure in BY_POLICY)]


def _over_rates(run: Run, palette: Palette, measure: Measure) -> Figure | None:
    lines: dict[Entry, dict[float, Estimate]] = {}
    for name, rows in run.extra_rows(measure.metric).groupby("scenario", sort=False, observed=True):
        rate = parse_scenario(str(name)).get("arrival_rate")
        if rate is None:
            continue
        for entry, mine in per_entry(rows):
            value = estimate(last_step(mine)["value"].to_numpy())
            lines.setdefault(entry, {})[float(rate)] = value
    if not lines:
        return None
    series = tuple(
        _line(palette, entry, lines[entry]) for entry in palette.entries if entry in lines
    )
    caption = (
        f"{measure.caption} Policies as they were after learning, on held-out tasks. Shaded: 95 % "
        "bootstrap intervals over seeds."
    )
    alt = f"Line chart of {measure.axis.name} against the arrival rate. " + "; ".join(
        f"{s.name} goes from {number(s.values[0].mean)} to {number(s.values[-1].mean)}"
        for s in series
    )
    panel = Panel("", RATE, measure.axis, series)
    return Figure(measure.id, measure.title, caption, f"{alt}.", (panel,))


def _line(palette: Palette, entry: Entry, line: dict[float, Estimate]) -> Series:
    x = tuple(sorted(line))
    return Series(palette.label(entry), x, tuple(line[v] for v in x), palette.style(entry))


def _by_policy(run: Run, palette: Palette, measure: Measure) -> Figure | None:
    panels = []
    here = run.rows(measure.metric)
    if here.empty:
        return None
    elsewhere = run.extra_rows(measure.metric)
    for title, data in (
        (run.scenario, here),
        *elsewhere.groupby("scenario", sort=False, observed=True),
    ):
        found = {e: estimate(last_step(r)["value"].to_numpy()) for e, r in per_entry(data)}
        bars = tuple(
            Bar(palette.label(e), found[e], palette.style(e), number(found[e].mean))
            for e in palette.entries
            if e in found
        )
        axis = measure.axis
        if axis.log:
            axis = replace(axis, limits=decades(bars, FASTEST_S))
        panels.append(Panel(str(title), axis, bars=bars))
    caption = f"{measure.caption} Whiskers are 95 % bootstrap intervals over seeds."
    alt = f"Bar charts of {measure.axis.name}. " + "; ".join(
        f"{p.title}: {', '.join(f'{b.name} {b.note}' for b in p.bars)}" for p in panels
    )
    return Figure(measure.id, measure.title, caption, f"{alt}.", tuple(panels))
