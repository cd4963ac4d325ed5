"""Figures of load balancing from values by seed: learning curves and bars."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from icl_optimizer.comparison.statistics import Estimate, estimate
from icl_optimizer.policies import get_policy_spec
from icl_optimizer.report.formatting import number
from icl_optimizer.report.palette import BLUE, GREEN, ORANGE, SLATE, VERMILLION, Style
from icl_optimizer.studies.balancing_ablation import NOTHING, REMOVED
from icl_optimizer.studies.balancing_plan import CALIBRATED, BalancingPlan
from icl_optimizer.studies.balancing_tables import LATE, of
from icl_optimizer.studies.pictures import picture, plot_series, save
from icl_optimizer.studies.published import BALANCING

if TYPE_CHECKING:
    from matplotlib.axes import Axes

INK = "#222222"
KINDS = {
    "language model": BLUE,
    "deep RL": ORANGE,
    "from experience": GREEN,
    "learns nothing": SLATE,
}
"""Colours of bars and boxes by what decides."""
LEARNERS = (
    Style(BLUE, "solid", "circle"),
    Style(VERMILLION, "dash", "square"),
    Style(GREEN, "dot", "triangle"),
    Style(SLATE, "dashdot", "diamond"),
)


def kind_of(policy: str) -> str:
    """Return which of :data:`KINDS` decides."""
    spec = get_policy_spec(policy)
    if spec.needs_llm:
        return "language model"
    if spec.is_drl:
        return "deep RL"
    return "from experience" if spec.learns else "learns nothing"


def draw_values(values: pd.DataFrame, curves: pd.DataFrame, plan: BalancingPlan, out: Path) -> None:
    """Draw learning curves, figures 4 and 10 and the ablation into ``out``.

    Args:
        values: Everything measured, see ``balancing.csv``.
        curves: Evaluations of deep RL while it learned.
        plan: What was run.
        out: Folder.
    """
    if len(curves):
        _draw_learning(curves, plan, out / "balancing-learning.png")
    _draw_bars(
        values,
        plan,
        "episode_reward",
        "Cumulative reward on the held-out requests",
        "Fig. 4: cumulative reward",
        out / "balancing-fig4.png",
    )
    _draw_bars(
        values,
        plan,
        LATE,
        "SLO violations (%)",
        "Fig. 10: SLO violations",
        out / "balancing-fig10.png",
    )
    if plan.ablation_seeds:
        _draw_ablation(values, plan, out / "balancing-ablation.png")


def _draw_learning(curves: pd.DataFrame, plan: BalancingPlan, path: Path) -> None:
    """Draw the held-out reward per request over the decisions learned from."""
    scenarios = [s for s in plan.scenarios if (curves["scenario"] == s).any()]
    drawing, grid = picture(1, len(scenarios))
    policies = [p for p in plan.policies if (curves["policy"] == p).any()]
    for axes, scenario in zip(grid, scenarios, strict=True):
        here = curves[(curves["scenario"] == scenario) & (curves["metric"] == "reward")]
        for i, policy in enumerate(policies):
            mine = here[here["policy"] == policy].groupby("step")["value"]
            points = {float(str(step)): estimate(v.to_numpy(dtype=float)) for step, v in mine}
            style = LEARNERS[i % len(LEARNERS)]
            plot_series(axes, list(points), list(points.values()), policy, style)
        axes.set_xscale("log")
        axes.set_xlabel("Decisions learned from")
        axes.set_ylabel("Reward per held-out request")
        axes.set_title(f"Learning, {scenario}", loc="left", fontsize=10)
    save(drawing, grid[0], path)


def _draw_bars(
    values: pd.DataFrame, plan: BalancingPlan, metric: str, label: str, title: str, path: Path
) -> None:
    """Draw a bar per policy in a panel per scenario, with published shares of late requests."""
    height = 1.2 + 0.29 * len(plan.policies)
    drawing, grid = picture(1, len(plan.scenarios), height=height)
    factor = 100.0 if metric == LATE else 1.0
    for axes, scenario in zip(grid, plan.scenarios, strict=True):
        trace = plan.environment(scenario).trace
        found = [of(values, scenario, trace, p, metric) * factor for p in plan.policies]
        bars(axes, plan.policies, [estimate(v) for v in found])
        told = BALANCING.get(scenario, {}) if metric == LATE else {}
        _draw_told(axes, plan.policies, {p: 100 * v.late for p, v in told.items()})
        if metric == LATE:
            axes.set_xlim(left=0)
        axes.set_xlabel(label)
        axes.set_title(f"{title}, {scenario}", loc="left", fontsize=10)
    legend_of_kinds(grid[0], plan.policies)
    # a panel with published values has all entries of the legend
    told_first = next((i for i, s in enumerate(plan.scenarios) if s in BALANCING), 0)
    save(drawing, grid[0 if metric != LATE else told_first], path)


def bars(axes: Axes, names: Sequence[str], values: Sequence[Estimate]) -> None:
    """Draw horizontal bars with intervals and numbers, the first on top."""
    for place, (name, value) in enumerate(zip(names, values, strict=True)):
        _bar(axes, place, value, KINDS[kind_of(name)])
    _name_places(axes, names)


def _bar(axes: Axes, place: int, value: Estimate, color: str) -> None:
    """Draw a bar with its interval, and the mean where it ends."""
    axes.barh(place, value.mean, height=0.66, color=color, alpha=0.85)
    if value.low < value.high:
        reach = [[value.mean - value.low], [value.high - value.mean]]
        axes.errorbar(value.mean, place, xerr=reach, color=INK, capsize=2.5, linewidth=1.0)
    left = value.mean < 0
    axes.annotate(
        number(value.mean),
        (value.low if left else value.high, place),
        xytext=(-5 if left else 5, 0),
        textcoords="offset points",
        ha="right" if left else "left",
        va="center",
        fontsize=8,
    )
    axes.margins(x=0.16)


def _name_places(axes: Axes, names: Sequence[str]) -> None:
    axes.set_yticks(range(len(names)), list(names), fontsize=8)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.grid(visible=False, axis="y")
    axes.set_axisbelow(True)


def _draw_told(axes: Axes, names: Sequence[str], told: dict[str, float]) -> None:
    places = [i for i, name in enumerate(names) if name in told]
    if places:
        axes.plot(
            [told[names[i]] for i in places],
            places,
            linestyle="none",
            marker="X",
            markersize=8,
            color="black",
            markeredgecolor="white",
            label="published",
        )


def legend_of_kinds(axes: Axes, policies: Sequence[str]) -> None:
    """Enter the colours that occur into the legend of ``axes``."""
    occurring = {kind_of(policy) for policy in policies}
    for kind, color in KINDS.items():
        if kind in occurring:
            axes.bar([0], [0], color=color, alpha=0.85, label=kind)


def _draw_ablation(values: pd.DataFrame, plan: BalancingPlan, path: Path) -> None:
    """Draw what a policy reaches that was trained without one component of the reward."""
    drawing, grid = picture(1, 2, height=3.4)
    trace = plan.environment(CALIBRATED).trace
    labels = {LATE: ("SLO violations (%)", 100.0), "reward": ("Reward per request", 1.0)}
    for axes, (metric, (label, factor)) in zip(grid, labels.items(), strict=True):
        for place, without in enumerate(REMOVED):
            found = of(values, CALIBRATED, trace, plan.learner, metric, without)
            color = SLATE if without == NOTHING else KINDS["deep RL"]
            _bar(axes, place, estimate(found * factor), color)
        names = [f"without {name}" for name in REMOVED if name != NOTHING]
        _name_places(axes, ["all components", *names])
        axes.set_xlabel(f"{label}, all components counted")
        axes.set_title(f"Ablation: what {plan.learner} is trained by", loc="left", fontsize=10)
    save(drawing, grid[0], path)
