"""Curves over interactions as lines of a panel."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from icl_optimizer.report.formatting import metric_value
from icl_optimizer.report.loading import Run
from icl_optimizer.report.measures import Curve, learners
from icl_optimizer.report.palette import Entry, Palette
from icl_optimizer.report.spec import Axis, Panel, Rule, Series

INTERACTIONS = ("interactions with the network", "decisions")
METRIC_AXES = {
    "optimality": Axis("optimality", "1 = oracle, 0 = random"),
    "reward": Axis("mean reward", "per decision"),
    "reward_regular": Axis("mean reward", "per decision"),
    "reward_quality": Axis("mean reward", "per decision"),
    "success_rate": Axis("success rate", "share of tasks"),
}
LOG_FROM = 8.0
"""Ratio of the longest to the shortest budget from which interactions are logarithmic."""
LOWEST_OPTIMALITY = -1.0


def curves_panel(
    title: str,
    run: Run,
    palette: Palette,
    curves: Mapping[Entry, Curve],
    metric: str,
    *,
    levels: Mapping[Entry, Curve] | None = None,
    rules: Iterable[Rule] = (),
    marks: Iterable[Rule] = (),
) -> Panel:
    """Return the curves as lines; fixed rules and ``levels`` as lines across the whole panel."""
    moving = learners(run)
    fixed = {e: c for e, c in curves.items() if e not in moving} | dict(levels or {})
    lines = {e: c for e, c in curves.items() if e not in fixed} or dict(fixed)
    budgets = [c.steps[-1] for c in lines.values()]
    # a learner whose weights were shipped is one point: rules are still drawn from the start
    first = min(c.steps[0] for c in curves.values())
    series = []
    for entry in palette.entries:
        if entry in lines:
            series.append(_line(palette, lines[entry]))
        elif entry in fixed:
            series.append(_level(palette, fixed[entry], first, max(budgets)))
    log = first > 0 and max(budgets) / min(budgets) >= LOG_FROM
    return Panel(
        title,
        Axis(*INTERACTIONS, log=log),
        _y_axis(metric, [v.mean for s in series for v in s.values]),
        tuple(series),
        rules=tuple(rules),
        marks=tuple(marks),
    )


def _line(palette: Palette, curve: Curve) -> Series:
    x = tuple(float(step) for step in curve.steps)
    return Series(palette.label(curve.entry), x, curve.values, palette.style(curve.entry))


def _level(palette: Palette, curve: Curve, first: int, last: int) -> Series:
    value = curve.values[-1]
    x = (float(first), float(last))
    name, style = palette.label(curve.entry), palette.style(curve.entry)
    return Series(name, x, (value, value), style, level=True)


def _y_axis(metric: str, means: list[float]) -> Axis:
    axis = METRIC_AXES[metric]
    if metric == "optimality" and min(means) < LOWEST_OPTIMALITY:
        return Axis(axis.name, axis.unit, limits=(LOWEST_OPTIMALITY, 1.1))
    return axis


def cut_note(panel: Panel) -> str:
    """Return that values are cut off, where they are."""
    cut = panel.y is not None and panel.y.limits is not None
    return f" Values below {LOWEST_OPTIMALITY:g} are cut off." if cut else ""


def endings(curves: Mapping[Entry, Curve], metric: str, palette: Palette) -> str:
    """Return where every line ends, in words."""
    ends = [
        f"{palette.label(e)} ends at {metric_value(metric, curves[e].values[-1].mean)} "
        f"after {curves[e].steps[-1]:,}"
        for e in palette.entries
        if e in curves
    ]
    return "; ".join(ends) + "."
