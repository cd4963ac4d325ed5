"""The figures of policies while they learn, all at the training scenario."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace

from icl_optimizer.environments.registry import get_spec
from icl_optimizer.errors import ConfigurationError
from icl_optimizer.policies import get_policy_spec
from icl_optimizer.report.curves import curves_panel, cut_note, endings
from icl_optimizer.report.loading import Run
from icl_optimizer.report.loads import load_figures
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
from icl_optimizer.report.reliability import reliability_figures
from icl_optimizer.report.scenarios import scenario_figures
from icl_optimizer.report.spec import Axis, Figure, Panel, Rule

BAND = "Lines are means over seeds, shaded areas their 95 % bootstrap intervals."
ACROSS = "Rules that do not learn are drawn across."


def build_figures(run: Run) -> list[Figure]:
    """Return every figure whose data the run holds."""
    palette = Palette.of(run)
    built = [
        _learning_curve(run, palette),
        *reliability_figures(run, palette),
        _recovery(run, palette),
        _while_learning(run, palette),
        _reward_by_kind(run, palette),
        _success_rate(run, palette),
        _ablation(run, palette),
        *load_figures(run, palette),
        *queue_figures(run, palette),
        *scenario_figures(run, palette),
    ]
    return [figure for figure in built if figure is not None]


def learning_panel(run: Run, palette: Palette) -> Panel | None:
    """Return the curves of the headline metric; None where nothing was evaluated."""
    metric = headline(run)
    curves = eval_curves(run, metric)
    if not curves:
        return None
    rules = (Rule(0.95, "95 %"),) if metric == "optimality" else ()
    drift = run.config.drift_at
    marks = () if drift is None else (Rule(float(drift), "the environment changes"),)
    return curves_panel("", run, palette, curves, metric, rules=rules, marks=marks)


def _learning_curve(run: Run, palette: Palette) -> Figure | None:
    panel, metric = learning_panel(run, palette), headline(run)
    if panel is None:
        return None
    caption = (
        f"Greedy decisions on held-out tasks, after so many interactions. {BAND} {ACROSS}"
        f"{' Dashed: 95 % of the oracle.' if panel.rules else ''}{cut_note(panel)}"
    )
    ends = endings(eval_curves(run, metric), metric, palette)
    alt = f"Line chart of {metric} against interactions. {ends}"
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
    panel = curves_panel("", run, palette, curves, metric, rules=rules)
    panel = replace(panel, x=Axis("interactions since the environment changed", "decisions", True))
    caption = (
        f"The environment changed after {drift:,} interactions; the curves begin there. {BAND}"
        f"{cut_note(panel)}"
    )
    alt = (
        f"Line chart of {metric} against the interactions since the change. "
        f"{endings(curves, metric, palette)}"
    )
    return Figure("recovery", "Recovery from the change", caption, alt, (panel,))


def _while_learning(run: Run, palette: Palette) -> Figure | None:
    curves = train_curves(run)
    if not curves:
        return None
    alone = paid_by_difference(run, curves)
    kinds = {
        "Whole episodes: the reward": _of(curves, lambda e: e not in alone),
        "Single decisions: what each changes": _of(curves, lambda e: e in alone),
    }
    # one kind of reward needs no heading
    titles = [title for title, found in kinds.items() if found]
    panels = tuple(
        curves_panel(title if alone else "", run, palette, kinds[title], "reward")
        for title in titles
    )
    caption = (
        "Reward of the decisions made while learning, exploration included: the price of "
        f"learning. Moving average of {WINDOW} decisions. {BAND}"
    )
    if alone:
        caption += (
            " What learns from single decisions is paid here for what each of them changes, deep "
            "RL for the state that it leads to: the two kinds of reward do not compare."
        )
    alt = (
        "Line chart of the reward while learning against interactions. "
        f"{endings(curves, 'reward', palette)}"
    )
    title = "Reward while learning, with exploration"
    return Figure("reward-while-learning", title, caption, alt, panels)


def paid_by_difference(run: Run, entries: Iterable[Entry]) -> set[Entry]:
    """Return those that learn in an environment which pays single decisions differently.

    See :attr:`.EnvironmentSpec.one_by_one`; parameters that the run sets itself hold for all.
    """
    if run.config.environment.endswith(".py"):
        return set()  # a report runs no file of a user
    try:
        spec, settings = get_spec(run.config.environment).learned_in(run.config.settings)
    except ConfigurationError:
        # of a plugin that is not installed here
        return set()
    if not spec.one_by_one.keys() - settings.keys():
        return set()
    return {entry for entry in entries if not _is_drl(entry)}


def _is_drl(entry: Entry) -> bool:
    try:
        return get_policy_spec(entry.policy).is_drl
    except ConfigurationError:
        return entry.policy in DRL


def _reward_by_kind(run: Run, palette: Palette) -> Figure | None:
    kinds = (("reward_regular", "Regular tasks"), ("reward_quality", "Quality-preferred tasks"))
    panels, ends = [], []
    for metric, title in kinds:
        curves = _of(eval_curves(run, metric), lambda e: e.is_icl or e.policy in DRL)
        if not curves:
            return None
        panels.append(curves_panel(title, run, palette, curves, metric))
        ends.append(f"{title}: {endings(curves, metric, palette)}")
    caption = (
        "Reward per kind of task of the in-context learners and deep RL, greedy decisions on "
        f"held-out tasks. {BAND}{paper_note(run, '5(a)')}"
    )
    alt = f"Two line charts of the reward against interactions. {' '.join(ends)}"
    return Figure("reward-by-kind", "Reward per kind of task", caption, alt, tuple(panels))


def _success_rate(run: Run, palette: Palette) -> Figure | None:
    curves = eval_curves(run, "success_rate")
    if not curves:
        return None
    panel = curves_panel("", run, palette, curves, "success_rate")
    offloading = run.config.environment == "offloading"
    what = (
        "tasks with a quality requirement that were served by a model that meets it"
        if offloading
        else "decisions whose constraints hold"
    )
    caption = f"Share of the {what}. {BAND} {ACROSS}{paper_note(run, '5(b)')}"
    alt = (
        "Line chart of the success rate against interactions. "
        f"{endings(curves, 'success_rate', palette)}"
    )
    title = "Success rate of quality tasks" if offloading else "Success rate"
    return Figure("success-rate", title, caption, alt, (panel,))


def _ablation(run: Run, palette: Palette) -> Figure | None:
    every = eval_curves(run, "reward")
    curves = _of(every, lambda e: e.policy.startswith("icl"))
    if len({entry.policy for entry in curves}) < 2:
        return None
    reference = _of(every, lambda e: e.policy == "dqn")
    panel = curves_panel("", run, palette, curves, "reward", levels=reference)
    across = " The final level of dqn, at its own budget, is drawn across." if reference else ""
    caption = (
        "What replay and exploration add: the in-context learners with and without them, mean "
        f"reward of greedy decisions. {BAND}{across}{paper_note(run, '5(c)')}"
    )
    alt = (
        "Line chart of the reward of in-context learning variants against interactions. "
        f"{endings(curves | reference, 'reward', palette)}"
    )
    return Figure("ablation", "Replay and exploration", caption, alt, (panel,))


def _of(curves: Mapping[Entry, Curve], wanted: Callable[[Entry], bool]) -> dict[Entry, Curve]:
    return {entry: c for entry, c in curves.items() if wanted(entry)}
