"""The report of a sweep: points by policies, and every comparison with the points as strata."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from icl_optimizer.comparison.statistics import Estimate, aggregate, estimate
from icl_optimizer.report.formatting import metric_value, number, with_interval
from icl_optimizer.report.palette import Entry, Palette
from icl_optimizer.report.reliability import both_figures, ranked
from icl_optimizer.report.spec import Axis, Figure, Heat, Panel
from icl_optimizer.report.summary import COSTS, Table, terminal_table
from icl_optimizer.report.sweep_loading import METRIC, SweepRun, load_sweep
from icl_optimizer.report.verdict import how_sure, price
from icl_optimizer.report.writing import FIGURES, REPORT, write_page

if TYPE_CHECKING:
    from rich.table import Table as RichTable


def write_sweep_report(folder: str | Path) -> Path:
    """Write ``report.html`` and its figures into the folder of a sweep.

    Returns:
        The report's path.

    Raises:
        ConfigurationError: It is none.
        MissingDependencyError: Without matplotlib or plotly.
    """
    run = load_sweep(folder)
    palette = _palette(run)
    figures = [
        _points_figure(run, palette),
        *both_figures({"": run.scores}, METRIC, palette, "seeds, within points"),
    ]
    return write_page(
        run.folder / REPORT,
        "sweep.html.j2",
        [figure for figure in figures if figure is not None],
        run.folder / FIGURES,
        title=f"Sweep: {run.config.title}",
        sentence=sweep_verdict(run),
        run=run,
        levels=sweep_table(run),
        costs=_cost_table(run, palette),
        points=[
            [p.point, p.environment, p.scenario, p.llm, f"{p.seeds}", f"{p.interactions:,}"]
            for p in run.config.points
        ],
    )


def sweep_summary(folder: str | Path) -> RichTable:
    """Return the levels of the sweep in ``folder`` as a table for the terminal."""
    return terminal_table(sweep_table(load_sweep(folder)))


def sweep_verdict(run: SweepRun) -> str:
    """Return which policy is best over the points, how surely, and what it costs."""
    palette = _palette(run)
    known = {e: sum(s.size > 0 for s in strata) for e, strata in run.scores.items()}
    # a policy that met the easy points alone is not held against one that met them all
    field = [e for e in _order(run) if e.policy != "oracle" and known[e] == max(known.values())]
    if not field:
        return "The oracle alone was evaluated, so there is no verdict."
    best, rest, k = field[0], field[1:], known[field[0]]
    level = aggregate(run.scores[best])
    low, high = (metric_value(METRIC, end) for end in (level.low, level.high))
    name = palette.label(best)
    leads = sum(_leads(run, best, field, i) for i in range(len(run.strata)))
    cost = price(lambda metric: run.costs.get(best, {}).get(metric), learns=True)
    sentence = (
        f"Over {k} points and {level.n:,} runs {name} is highest, with {METRIC} "
        f"{metric_value(METRIC, level.mean)} (95 % interval {low} to {high}), and has "
        f"the highest mean at {leads} of them; {cost}."
    )
    if not rest:
        return sentence
    sure = how_sure((name, best), (palette.label(rest[0]), rest[0]), run.scores)
    return f"{sentence} {sure}".strip()


def _leads(run: SweepRun, best: Entry, field: Sequence[Entry], stratum: int) -> bool:
    means = {e: run.scores[e][stratum].mean() for e in field if run.scores[e][stratum].size}
    return best in means and means[best] >= max(means.values())


def sweep_table(run: SweepRun) -> Table:
    """Return every policy's level over all its points."""
    palette = _palette(run)
    table = Table(["policy", f"{METRIC} over points", "lowest point", "points", "runs"])
    for entry in _order(run):
        strata = [s for s in run.scores[entry] if s.size]
        level = aggregate(strata)
        lowest = min(float(s.mean()) for s in strata)
        table.rows.append(
            [
                palette.label(entry),
                with_interval(METRIC, level),
                metric_value(METRIC, lowest),
                f"{len(strata)}",
                f"{level.n:,}",
            ]
        )
    return table


def _order(run: SweepRun) -> list[Entry]:
    """Return the entries, those with the highest level first, references last."""
    return ranked(run.scores)


def _palette(run: SweepRun) -> Palette:
    named = dict.fromkeys(name for p in run.config.points for name in p.policies)
    order = {name: i for i, name in enumerate(named)}
    return Palette(sorted(run.scores, key=lambda e: (order.get(e.policy, len(order)), e.llm)))


def _points_figure(run: SweepRun, palette: Palette) -> Figure:
    entries = _order(run)
    rows = tuple(
        tuple(estimate(run.scores[e][i]) if run.scores[e][i].size else None for e in entries)
        for i in range(len(run.strata))
    )
    names = tuple(palette.label(e) for e in entries)
    heat = Heat("point", "policy", tuple(run.strata), names, rows, (0.0, 1.0))
    caption = (
        "Optimality of greedy decisions on held-out tasks after the interactions that all policies "
        "of a point share; the darker, the nearer to the oracle. What is 0 or worse is palest. "
        "Point at a cell for its 95 % bootstrap interval over seeds."
    )
    told = "; ".join(
        f"{point}: highest {names[_best(values)]}"
        for point, values in zip(run.strata, rows, strict=True)
    )
    panel = Panel("", Axis(METRIC, "1 = oracle, 0 = random"), heat=heat)
    alt = f"Heat map of {METRIC} by point and policy. {told}."
    return Figure("points", "Points and policies", caption, alt, (panel,))


def _best(values: Sequence[Estimate | None]) -> int:
    means = [-np.inf if v is None else v.mean for v in values]
    return int(np.argmax(means))


def _cost_table(run: SweepRun, palette: Palette) -> Table:
    known = [m for m in COSTS if any(m in found for found in run.costs.values())]
    table = Table(["policy", *(COSTS[m] for m in known)])
    for entry in palette.entries:
        found = run.costs.get(entry, {})
        cells = [number(found[m].mean) if m in found else "–" for m in known]
        table.rows.append([palette.label(entry), *cells])
    return table
