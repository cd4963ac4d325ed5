"""The page of the study of load balancing: measured and published numbers side by side."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from icl_optimizer.comparison.statistics import Estimate, estimate
from icl_optimizer.policies import get_policy_spec
from icl_optimizer.report.formatting import with_interval
from icl_optimizer.studies.balancing_ablation import REMOVED
from icl_optimizer.studies.balancing_plan import CALIBRATED, LEAST_LOADED, BalancingPlan
from icl_optimizer.studies.balancing_records import Records
from icl_optimizer.studies.published import BALANCING
from icl_optimizer.studies.tables import markdown

LATE = "slo_violation_rate"
RATIO = "violations over least loaded's"


@dataclass(frozen=True)
class Measure:
    """A column of the tables: a metric, as ``factor`` times what was measured."""

    metric: str
    title: str
    factor: float = 1.0


MEASURES = (
    Measure("episode_reward", "cumulative reward"),
    Measure("reward", "reward per request"),
    Measure("response_time_s", "mean response (s)"),
    Measure("queue_length", "mean queue length"),
    Measure(LATE, "SLO violations (%)", 100.0),
)
TOLD = ("published reward", "response (s)", "queue length", "SLO violations (%)")
TITLES = {"nominal": "Table I: nominal load", "high-load": "Table II: high load"}
NOTE = (
    "Published rewards are of about 5,000 requests, of which none can earn more than 1.1 by the "
    "printed components (1 for being accepted, 0.1 for balance; the others are costs), so that "
    "5,500 is the most that 5,000 requests earn: they cannot be compared with rewards measured "
    "here."
)


def of(
    values: pd.DataFrame, scenario: str, trace: str, policy: str, metric: str, without: str = ""
) -> pd.Series[float]:
    """Return the values of a metric by seed."""
    mine = values[
        (values["scenario"] == scenario)
        & (values["trace"] == trace)
        & (values["policy"] == policy)
        & (values["without"] == without)
        & (values["metric"] == metric)
    ]
    return mine.set_index("seed")["value"].astype(float)


def balancing_page(
    values: pd.DataFrame, curves: pd.DataFrame, records: Records, plan: BalancingPlan
) -> str:
    """Return the tables as Markdown.

    Args:
        values: Everything measured, see ``balancing.csv``.
        curves: Evaluations of deep RL while it learned.
        records: Of single requests.
        plan: What was run.
    """
    parts = ["# Load balancing", "Means [95 % intervals] over seeds, on held-out requests alone."]
    for scenario in plan.scenarios:
        parts += _scenario(values, scenario, plan, len(records[scenario][plan.learner]))
    if any(scenario in BALANCING for scenario in plan.scenarios):
        parts.append(NOTE)
    if plan.generalise:
        parts += _generalisation(values, plan)
    if plan.ablation_seeds:
        parts += _ablation(values, plan)
    parts += ["## Learning curves", _curves_told(curves, plan)]
    return "\n\n".join(parts) + "\n"


def _scenario(values: pd.DataFrame, scenario: str, plan: BalancingPlan, requests: int) -> list[str]:
    trace = plan.environment(scenario).trace
    title = TITLES.get(scenario, f"Scenario {scenario}")
    text = f"{requests:,} held-out requests of {_name(trace)}."
    told = scenario in BALANCING
    header = ["policy", *(m.title for m in MEASURES), *(TOLD if told else [RATIO])]
    rows = [header]
    for policy in plan.policies:
        row = [policy, *_cells(values, scenario, trace, policy)]
        row += _told(scenario, policy) if told else [_ratio_cell(values, scenario, trace, policy)]
        rows.append(row)
    return [f"## {title}", text, markdown(rows)]


def _cells(
    values: pd.DataFrame, scenario: str, trace: str, policy: str, without: str = ""
) -> list[str]:
    cells = []
    for measure in MEASURES:
        found = of(values, scenario, trace, policy, measure.metric, without)
        cells.append(with_interval(measure.metric, estimate(found * measure.factor)))
    return cells


def _told(scenario: str, policy: str) -> list[str]:
    told = BALANCING[scenario].get(policy)
    if told is None:
        return [""] * len(TOLD)
    return [
        f"{told.reward:,.0f}",
        f"{told.response_s:.2f}",
        f"{told.queue_length:.1f}",
        f"{100 * told.late:.1f}",
    ]


def ratio(values: pd.DataFrame, scenario: str, trace: str, policy: str) -> Estimate:
    """Return a policy's share of late requests over least loaded's, seed by seed."""
    mine, theirs = (of(values, scenario, trace, p, LATE) for p in (policy, LEAST_LOADED))
    return estimate(mine / theirs.where(theirs > 0))


def _ratio_cell(values: pd.DataFrame, scenario: str, trace: str, policy: str) -> str:
    return with_interval("ratio", ratio(values, scenario, trace, policy))


def _generalisation(values: pd.DataFrame, plan: BalancingPlan) -> list[str]:
    """Return a table per trace that nothing was learned on."""
    parts = []
    home = plan.environment(plan.scenarios[0]).trace
    for trace in dict.fromkeys(values[values["trace"] != home]["trace"]):
        header = ["policy"]
        for scenario in plan.scenarios:
            header += [f"{scenario}: reward per request", "SLO violations (%)", RATIO]
        rows = [header]
        for policy in plan.policies:
            row = [policy]
            for scenario in plan.scenarios:
                reward = of(values, scenario, trace, policy, "reward")
                late = 100 * of(values, scenario, trace, policy, LATE)
                row += [with_interval("reward", estimate(reward))]
                row += [with_interval(LATE, estimate(late))]
                row += [_ratio_cell(values, scenario, trace, policy)]
            rows.append(row)
        title = f"## Learned on {_name(home)}, run on {_name(trace)}"
        parts += [title, markdown(rows)]
    return parts


def _ablation(values: pd.DataFrame, plan: BalancingPlan) -> list[str]:
    trace = plan.environment(CALIBRATED).trace
    rows = [["taken out", *(m.title for m in MEASURES)]]
    for without in REMOVED:
        rows.append([without, *_cells(values, CALIBRATED, trace, plan.learner, without)])
    text = (
        f"{plan.learner} after {plan.ablation_interactions:,} decisions in the calibrated scenario "
        f"without one component of the reward (seeds: {plan.ablation_seeds}), evaluated with all "
        "of them."
    )
    return ["## Ablation of the reward", text, markdown(rows)]


def _curves_told(curves: pd.DataFrame, plan: BalancingPlan) -> str:
    """Return which learning curves are drawn, and why others are not."""
    drl = [name for name in plan.policies if get_policy_spec(name).is_drl]
    lines = []
    for scenario in plan.scenarios:
        drawn = set(curves[curves["scenario"] == scenario]["policy"])
        if missing := [name for name in drl if name not in drawn]:
            lines.append(f"- {scenario}: {', '.join(missing)} not drawn")
    if not lines:
        return "All in `balancing-learning.png`."
    reason = (
        "Weights that come with the package were evaluated once; `BalancingPlan(train=True)` "
        "trains anew, with curves."
    )
    return "\n".join([*lines, "", reason])


def _name(trace: str) -> str:
    """Return a shipped trace's name, or a file's without its folder."""
    return Path(trace).name
