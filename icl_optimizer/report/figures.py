"""The figures of policies while they learn, all at the training scenario."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace

from icl_optimizer.report.formatting import metric_value
from icl_optimizer.report.loading import Run
from icl_optimizer.report.measures import (
    WINDOW,
    Curve,
    eval_curves,
    headline,
    learners,
    paper_note,
    train_curves,
)
from icl_optimizer.report.palette import DRL, Entry, Palette
from icl_optimizer.report.queues import queue_figures
from icl_optimizer.report.scenarios import scenario_figures
from icl_optimizer.report.spec import Axis, Figure, Panel, Rule, Series

INTERACTIONS = ("interactions with the network", "decisions")
BAND = "Lines are means over seeds, shaded areas their 95 % bootstrap intervals."
ACROSS = "Rules that do not learn are drawn across."
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


def build_figures(run: Run) -> list[Figure]:
    """Return every figure whose data the run holds."""
    palette = Palette.of(run)
    built = [
        _learning_curve(run, palette),
        _recovery(run, palette),
        _while_learning(run, palette),
        _reward_by_kind(run, palette),
        _success_rate(run, palette),
        _ablation(run, palette),
        *queue_figures(run, palette),
        *scenario_figures(run, palette),
    ]
    return [figure for figure in built if figure is not None]


def _learning_curve(run: Run, palette: Palette) -> Figure | None:
    metric = headline(run)
    curves = eval_curves(run, metric)
    if not curves:
        return None
    rules = (Rule(0.95, "95 %"),) if metric == "optimality" else ()
    drift = run.config.drift_at
    marks = () if drift is None else (Rule(float(drift), "the environment changes"),)
    panel = _panel("", run, palette, curves, metric, rules=rules, marks=marks)
    caption = (
        f"Greedy decisions on held-out tasks, after so many interactions. {BAND} {ACROSS}"
        f"{' Dashed: 95 % of the oracle.' if rules else ''}{_cut_note(panel)}"
    )
    alt = f"Line chart of {metric} against interactions. {_endings(curves, metric, palette)}"
    return Figure("learning-curve", "Learning curve", caption, alt, (panel,))


def _recovery(run: Run, palette: Palette) -> Figure | None:
    """Return the curves after a drift, over the interactions since."""
    drift, metric = run.config.drift_at, headline(run)
    if drift is None:
        return None
    moving = learners(run)
    curves = {
        entry: curve.since(drift)
        for entry, curve in eval_curves(run, metric).items()
        if entry in moving and curve.steps[-1] > drift
    }
    if not curves:
        return None
    rules = (Rule(0.95, "95 %"),) if metric == "optimality" else ()
    panel = _panel("", run, palette, curves, metric, rules=rules)
    panel = replace(panel, x=Axis("interactions since the environment changed", "decisions", True))
    caption = (
        f"The environment changed after {drift:,} interactions; the curves begin there. {BAND}"
        f"{_cut_note(panel)}"
    )
    alt = (
        f"Line chart of {metric} against the interactions since the change. "
        f"{_endings(curves, metric, palette)}"
    )
    return Figure("recovery", "Recovery from the change", caption, alt, (panel,))


def _while_learning(run: Run, palette: Palette) -> Figure | None:
    curves = train_curves(run)
    if not curves:
        return None
    panel = _panel("", run, palette, curves, "reward")
    caption = (
        "Reward of the decisions made while learning, exploration included: the price of "
        f"learning. Moving average of {WINDOW} decisions. {BAND}"
    )
    alt = (
        "Line chart of the reward while learning against interactions. "
        f"{_endings(curves, 'reward', palette)}"
    )
    title = "Reward while learning, with exploration"
    return Figure("reward-while-learning", title, caption, alt, (panel,))


def _reward_by_kind(run: Run, palette: Palette) -> Figure | None:
    kinds = (("reward_regular", "Regular tasks"), ("reward_quality", "Quality-preferred tasks"))
    panels, endings = [], []
    for metric, title in kinds:
        curves = _of(eval_curves(run, metric), lambda e: e.is_icl or e.policy in DRL)
        if not curves:
            return None
        panels.append(_panel(title, run, palette, curves, metric))
        endings.append(f"{title}: {_endings(curves, metric, palette)}")
    caption = (
        "Reward per kind of task of the in-context learners and deep RL, greedy decisions on "
        f"held-out tasks. {BAND}{paper_note(run, '5(a)')}"
    )
    alt = f"Two line charts of the reward against interactions. {' '.join(endings)}"
    return Figure("reward-by-kind", "Reward per kind of task", caption, alt, tuple(panels))


def _success_rate(run: Run, palette: Palette) -> Figure | None:
    curves = eval_curves(run, "success_rate")
    if not curves:
        return None
    panel = _panel("", run, palette, curves, "success_rate")
    offloading = run.config.environment == "offloading"
    what = (
        "tasks with a quality requirement that were served by a model that meets it"
        if offloading
        else "decisions whose constraints hold"
    )
    caption = f"Share of the {what}. {BAND} {ACROSS}{paper_note(run, '5(b)')}"
    alt = (
        "Line chart of the success rate against interactions. "
        f"{_endings(curves, 'success_rate', palette)}"
    )
    title = "Success rate of quality tasks" if offloading else "Success rate"
    return Figure("success-rate", title, caption, alt, (panel,))


def _ablation(run: Run, palette: Palette) -> Figure | None:
    every = eval_curves(run, "reward")
    curves = _of(every, lambda e: e.policy.startswith("icl"))
    if len({entry.policy for entry in curves}) < 2:
        return None
    reference = _of(every, lambda e: e.policy == "dqn")
    panel = _panel("", run, palette, curves, "reward", levels=reference)
    across = " The final level of dqn, at its own budget, is drawn across." if reference else ""
    caption = (
        "What replay and exploration add: the in-context learners with and without them, mean "
        f"reward of greedy decisions. {BAND}{across}{paper_note(run, '5(c)')}"
    )
    alt = (
        "Line chart of the reward of in-context learning variants against interactions. "
        f"{_endings(curves | reference, 'reward', palette)}"
    )
    return Figure("ablation", "Replay and exploration", caption, alt, (panel,))


def _of(curves: Mapping[Entry, Curve], wanted: Callable[[Entry], bool]) -> dict[Entry, Curve]:
    return {entry: c for entry, c in curves.items() if wanted(entry)}


def _panel(
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


def _cut_note(panel: Panel) -> str:
    cut = panel.y is not None and panel.y.limits is not None
    return f" Values below {LOWEST_OPTIMALITY:g} are cut off." if cut else ""


def _endings(curves: Mapping[Entry, Curve], metric: str, palette: Palette) -> str:
    """Return where every line ends, in words."""
    ends = [
        f"{palette.label(e)} ends at {metric_value(metric, curves[e].values[-1].mean)} "
        f"after {curves[e].steps[-1]:,}"
        for e in palette.entries
        if e in curves
    ]
    return "; ".join(ends) + "."
