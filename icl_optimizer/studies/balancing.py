"""Load balancing beside its paper: tables I and II, figures 4 to 10, and the ablation."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from icl_optimizer.comparison.config import ComparisonConfig
from icl_optimizer.comparison.runner import compare
from icl_optimizer.policies import get_policy_spec
from icl_optimizer.studies.balancing_ablation import run_ablation
from icl_optimizer.studies.balancing_figures import draw_values
from icl_optimizer.studies.balancing_pictures import draw_records
from icl_optimizer.studies.balancing_plan import NAME, BalancingPlan
from icl_optimizer.studies.balancing_records import run_records
from icl_optimizer.studies.balancing_tables import balancing_page

VALUES = ["scenario", "trace", "policy", "without", "seed", "metric", "value"]
"""Columns of ``balancing.csv``; ``without`` is the component of the reward that an ablation took
out while the policy learned."""
ELSEWHERE = "trace="
"""How sweep points on other traces begin."""
CURVE = ["scenario", "policy", "seed", "step", "metric", "value"]


def run_balancing(
    out: Path,
    seeds: int = 5,
    *,
    plan: BalancingPlan | None = None,
    progress_bar: bool = True,
) -> Path:
    """Compare all policies in every scenario; write tables and figures into ``out``.

    Comparisons, records of single requests and policies of the ablation are kept in
    ``load-balancing`` in it as they finish, and not run again.

    Args:
        out: Folder.
        seeds: Repetitions of the comparisons.
        plan: What to run; None for the whole study.
        progress_bar: Whether to draw one.

    Returns:
        The path of ``balancing.md``; beside it are ``balancing.csv`` and ``balancing-*.png``.

    Raises:
        ConfigurationError: The folder holds what was measured by another plan, or a name or value
            of the plan is wrong.
    """
    plan = plan or BalancingPlan()
    folder = out / NAME
    measured, curves = [], []
    for scenario in plan.scenarios:
        config = plan.comparison(scenario, seeds)
        place = folder / scenario
        compare(config, place, resume=place.exists(), jobs=plan.jobs, progress_bar=progress_bar)
        results = pd.read_csv(place / "results.csv", keep_default_na=False)
        trace = plan.environment(scenario).trace
        final = final_values(results, config.scenario, trace)
        measured.append(final.assign(scenario=scenario, without=""))
        curves.append(learning_curves(results, config).assign(scenario=scenario))
    records = run_records(plan, folder, progress_bar=progress_bar)
    if plan.ablation_seeds:
        measured.append(run_ablation(plan, folder, progress_bar=progress_bar))
    values = pd.concat(measured, ignore_index=True)[VALUES]
    curve = pd.concat(curves, ignore_index=True)[CURVE]
    out.mkdir(parents=True, exist_ok=True)
    values.to_csv(out / "balancing.csv", index=False)
    draw_values(values, curve, plan, out)
    draw_records(records, plan, out)
    path = out / "balancing.md"
    path.write_text(balancing_page(values, curve, records, plan), encoding="utf-8")
    return path


def final_values(results: pd.DataFrame, scenario: str, trace: str) -> pd.DataFrame:
    """Return the last evaluation of each policy on each trace: trace, policy, seed, metric, value.

    Args:
        results: What a comparison measured.
        scenario: Its name of the parameter point that policies learned at.
        trace: That they learned on.
    """
    evaluated = results[results["split"] == "eval"]
    home = evaluated["scenario"] == scenario
    chosen = evaluated[home | evaluated["scenario"].str.startswith(ELSEWHERE)]
    last = chosen.groupby(["policy", "scenario"])["step"].transform("max")
    chosen = chosen[chosen["step"] == last]
    other = chosen["scenario"].str.removeprefix(ELSEWHERE)
    traces = other.mask(chosen["scenario"] == scenario, trace)
    return chosen.assign(trace=traces)[["trace", "policy", "seed", "metric", "value"]]


def learning_curves(results: pd.DataFrame, config: ComparisonConfig) -> pd.DataFrame:
    """Return the evaluations of deep RL while it learned: policy, seed, step, metric, value.

    Policies whose weights came with the package were evaluated once and are not among them.
    """
    chosen = results[(results["split"] == "eval") & (results["scenario"] == config.scenario)]
    drl = [name for name in config.policies if get_policy_spec(name).is_drl]
    chosen = chosen[chosen["policy"].isin(drl)]
    several = chosen.groupby("policy")["step"].transform("nunique") > 1
    return chosen[several][["policy", "seed", "step", "metric", "value"]]
