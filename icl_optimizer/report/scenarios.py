"""The figures away from the training scenario, and how soon each policy is good."""

from __future__ import annotations

from dataclasses import dataclass

from icl_optimizer.comparison.statistics import Estimate, estimate
from icl_optimizer.report.formatting import number, share
from icl_optimizer.report.loading import Run, parse_scenario
from icl_optimizer.report.measures import (
    Curve,
    cost,
    eval_curves,
    last_step,
    learners,
    paper_note,
    per_entry,
    shipped,
)
from icl_optimizer.report.palette import BLUE, REFERENCES, SKY, Entry, Palette, Style
from icl_optimizer.report.spec import Axis, Bar, Figure, Panel, Rule, Series, decades

THRESHOLD = 0.95
DELAY = Axis("mean delay of a task", "s")
PAIR_STYLES = (
    (BLUE, "circle"),
    ("#003A5C", "square"),
    (SKY, "triangle"),
    ("#4C9CC9", "diamond"),
    ("#00263D", "down"),
)
"""Shades of the in-context learner's blue: here the marker tells the model pair."""


@dataclass(frozen=True)
class Sweep:
    """One parameter that is varied after learning."""

    key: str
    id: str
    title: str
    axis: Axis
    paper: str


SWEEPS = (
    Sweep("users", "delay-users", "Delay and users", Axis("users in the cell", "count"), "5(d)"),
    Sweep(
        "mean_tokens",
        "delay-tokens",
        "Delay and output size",
        Axis("mean output size", "tokens"),
        "5(e)",
    ),
    Sweep(
        "quality_share",
        "delay-quality-share",
        "Delay and quality tasks",
        Axis("quality-preferred tasks", "share of tasks"),
        "5(f)",
    ),
)


def scenario_figures(run: Run, palette: Palette) -> list[Figure | None]:
    """Return the sweeps, the open vocabulary and the interactions to 95 % of the oracle."""
    sweeps = [_delay(run, palette, sweep) for sweep in SWEEPS]
    return [*sweeps, _open_vocabulary(run, palette), _interactions(run, palette)]


Points = dict[tuple[str, Entry], dict[float, Estimate]]


def _sweep_points(run: Run, key: str) -> Points:
    """Return, per model pair and entry, the delay at each value of ``key``."""
    points: Points = {}
    data = run.extra_rows("delay_s")
    for name, rows in data.groupby("scenario", sort=False, observed=True):
        keys = parse_scenario(str(name))
        if key not in keys or "pair" not in keys:
            continue
        for entry, mine in per_entry(rows):
            line = points.setdefault((keys["pair"], entry), {})
            line[float(keys[key])] = estimate(last_step(mine)["value"].to_numpy())
    return points


def _delay(run: Run, palette: Palette, sweep: Sweep) -> Figure | None:
    points = _sweep_points(run, sweep.key)
    shown = [e for e in palette.entries if e.policy not in REFERENCES]
    swept = [e for e in shown if any(entry == e for _, entry in points)]
    if not swept:
        return None
    main = next((e for e in swept if e.policy == "icl"), swept[0])
    references = [e for e in palette.entries if e.policy in REFERENCES]
    pairs = list(dict.fromkeys(pair for pair, _ in points))
    series = [
        _sweep_line(palette, points[pair, entry], entry, pair, rank, entry != main)
        for entry in (main, *references)
        for rank, pair in enumerate(pairs)
        if (pair, entry) in points
    ]
    caption = (
        f"Delay against {sweep.axis.name}, one line per pair of edge and cloud model, decided by "
        f"{palette.label(main)} as it was after learning; faint lines are the oracle (dashed) "
        "and random choice (dotted), with the markers of the same pairs. Shaded: 95 % bootstrap "
        f"intervals over seeds. A delay counts only as far as the tasks' requirements are met: "
        f"read it beside the success rate.{paper_note(run, sweep.paper)}"
    )
    alt = f"Line chart of delay against {sweep.axis.name}. " + "; ".join(
        f"{s.name} goes from {number(s.values[0].mean)} s to {number(s.values[-1].mean)} s"
        for s in series
        if not s.faint
    )
    panel = Panel("", sweep.axis, DELAY, tuple(series))
    return Figure(sweep.id, sweep.title, caption, f"{alt}.", (panel,))


def _sweep_line(
    palette: Palette,
    line: dict[float, Estimate],
    entry: Entry,
    pair: str,
    rank: int,
    reference: bool,
) -> Series:
    base = palette.style(entry)
    shade, marker = PAIR_STYLES[rank % len(PAIR_STYLES)]
    style = Style(base.color if reference or entry.policy != "icl" else shade, base.dash, marker)
    x = tuple(sorted(line))
    name = f"{palette.label(entry)}: {pair.replace('+', ' + ')}"
    values = tuple(line[v] for v in x)
    legend = (palette.label(entry) if rank == 0 else "") if reference else None
    return Series(name, x, values, style, faint=reference, legend=legend)


def _open_vocabulary(run: Run, palette: Palette) -> Figure | None:
    data = run.extra_rows("balanced_accuracy")
    panels, seen = [], []
    for name, rows in data.groupby("scenario", sort=False, observed=True):
        keys = parse_scenario(str(name))
        if "words" not in keys:
            continue
        found = {e: estimate(last_step(r)["value"].to_numpy()) for e, r in per_entry(rows)}
        bars = [
            Bar(palette.label(e), found[e], palette.style(e), share(found[e].mean))
            for e in palette.entries
            if e in found
        ]
        axis = Axis("balanced accuracy", "0.5 = chance", limits=(0.0, 1.18))
        panels.append(Panel(_mix(keys), axis, bars=tuple(bars), rules=(Rule(0.5, "chance"),)))
        seen += [f"{_mix(keys)}: " + ", ".join(f"{b.name} {b.note}" for b in bars)]
    if not panels:
        return None
    caption = (
        "Share of right decisions, averaged over the two decisions, where the service is named "
        "by words that no policy met while learning, for several mixes of tasks; 0.5 is what a "
        "constant decision scores. Whiskers are 95 % bootstrap intervals over seeds."
    )
    alt = f"Bar charts of balanced accuracy with unseen words. {'; '.join(seen)}."
    return Figure("open-vocabulary", "Open vocabulary", caption, alt, tuple(panels))


def _mix(keys: dict[str, str]) -> str:
    parts = [f"{keys['words']} words"]
    for key, value in keys.items():
        if key == "quality_share":
            parts.append(f"{float(value):.0%} quality tasks".replace("%", " %"))
        elif key != "words":
            parts.append(f"{key} = {value}")
    return ", ".join(parts)


def _interactions(run: Run, palette: Palette) -> Figure | None:
    curves, moving = eval_curves(run, "optimality"), learners(run) - set(shipped(run))
    entries = [e for e in palette.entries if e in moving and e in curves]
    if not entries:
        return None
    bars = [_reach_bar(run, palette, curves[entry]) for entry in entries]
    axis = Axis("interactions to 95 %", "decisions", True, decades(bars, 1.0))
    caption = (
        "Interactions that each learner needs until its optimality stays at or above 0.95, mean "
        "over the seeds that got there; a hollow bar is a budget that was used up without. "
        "Whiskers are 95 % bootstrap intervals."
    )
    alt = "Bar chart of interactions to 95 % of the oracle. " + "; ".join(
        f"{b.name}: {b.note}" for b in bars
    )
    panel = Panel("", axis, bars=tuple(bars))
    title = "Interactions to 95 % of the oracle"
    return Figure("interactions-to-95", title, caption, f"{alt}.", (panel,))


def _reach_bar(run: Run, palette: Palette, curve: Curve) -> Bar:
    reached = cost(run, curve.entry, "interactions_to_95")
    name, style = palette.label(curve.entry), palette.style(curve.entry)
    if reached is None:
        budget = float(curve.steps[-1])
        value = Estimate(budget, budget, budget, 1)
        return Bar(name, value, style, "not reached", hollow=True)
    return Bar(name, reached, style, reached_text(run, reached))


def reached_text(run: Run, reached: Estimate) -> str:
    """Return the number of interactions, and how many seeds got there where not all did."""
    seeds = run.config.seed_count
    some = f" ({reached.n}/{seeds} seeds)" if reached.n < seeds else ""
    return f"{number(round(reached.mean))}{some}"
