"""QoS-aware routing: all policies over the load, what graph and estimator add, more experts."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd

from icl_optimizer.baselines.weights import Case, find
from icl_optimizer.comparison.config import default_config
from icl_optimizer.comparison.evaluation import Held
from icl_optimizer.comparison.runner import compare
from icl_optimizer.comparison.statistics import Estimate, estimate
from icl_optimizer.environments.qos_routing import RATES
from icl_optimizer.environments.registry import get_spec, make
from icl_optimizer.errors import ConfigurationError
from icl_optimizer.llm import load_llm
from icl_optimizer.policies import get_policy_spec, make_policy
from icl_optimizer.report.formatting import with_interval
from icl_optimizer.report.palette import Entry, Palette
from icl_optimizer.studies.forecast_speed import speed_rows
from icl_optimizer.studies.pictures import picture, plot_series, save
from icl_optimizer.studies.pieces import finish_pieces
from icl_optimizer.studies.tables import markdown, write_study

NAME = "qos-routing"
ABLATION = ("han-ppo-no-impact",)
"""Learners that lack the estimator, beside those that a comparison runs by default."""
DRAWN = (
    "icl-predict",
    "linear-predict",
    "han-ppo",
    "mlp-ppo",
    "impact-greedy",
    "qos-greedy",
    "quality-greedy",
    "shortest-queue",
    "oracle",
)
DETAILS = {
    "success_rate": "in time",
    "drop_rate": "dropped",
    "latency_per_token_s": "latency per token, s",
    "kv_use": "KV memory in use",
    "qos_per_gpu_s": "QoS per busy GPU second",
    "hindsight_share": "share of the bound",
}
"""Measures of the table at three requests per second, and their headings."""
MEASURES = ("qos", *DETAILS)
TRACE = "arrivals=trace"
ELSEWHERE: tuple[dict[str, Any], ...] = (
    {"experts": 5},
    {"experts": 5, "arrival_rate": 5.0},
    {"arrival_rate": 6.0},
)
"""Where policies that learned with three experts at 3 requests per second are run unchanged."""
UNCHANGED = ("impact-greedy", "qos-greedy", "quality-greedy", "shortest-queue", "random", "oracle")


def run_routing(
    out: Path, seeds: int = 5, *, interactions: int = 2000, progress_bar: bool = True
) -> Path:
    """Compare all policies over the load; write tables and figures into ``out``.

    Args:
        out: Folder; the comparison goes into ``qos-routing`` in it, and goes on where it was
            interrupted.
        seeds: Repetitions.
        interactions: Decisions that the policies other than deep RL learn from.
        progress_bar: Whether to draw one.
    """
    folder = out / NAME
    policies = tuple(dict.fromkeys((*get_spec(NAME).policies, *ABLATION)))
    config = default_config(NAME, policies=policies, seeds=seeds, interactions=interactions)
    compare(config, folder, resume=folder.exists(), progress_bar=progress_bar)
    measured = at_points(pd.read_csv(folder / "results.csv", keep_default_na=False))
    elsewhere = run_elsewhere(out, seeds, progress_bar=progress_bar)
    _draw(measured, out)
    everything = pd.concat([measured, elsewhere])
    path = write_study(out, "routing", everything, load_table(measured, policies))
    with path.open("a", encoding="utf-8") as file:
        speed = speed_rows(load_llm("llamacpp"), NAME, progress_bar=progress_bar)
        for table in (detail_table(measured, policies), elsewhere_table(elsewhere), speed):
            file.write("\n" + markdown(table) + "\n")
    return path


def at_points(results: pd.DataFrame) -> pd.DataFrame:
    """Return the final evaluations at every rate and on the trace: policy, seed, scenario, ..."""
    points = [*(f"arrival_rate={rate:g}" for rate in RATES), TRACE]
    chosen = results[
        (results["split"] == "eval")
        & results["scenario"].isin(points)
        & results["metric"].isin(MEASURES)
    ]
    return chosen[["policy", "seed", "scenario", "metric", "value"]]


def run_elsewhere(
    out: Path,
    seeds: int,
    *,
    learners: Sequence[str] = ("han-ppo",),
    progress_bar: bool = True,
) -> pd.DataFrame:
    """Return what trained policies reach with other experts or loads, without learning more.

    Args:
        out: Keeps what is finished in ``elsewhere``.
        seeds: Repetitions; each takes the shipped weights of its seed.
        learners: Which of the policies that take any number of experts.
        progress_bar: Whether to draw one.
    """
    pieces = {}
    for index, settings in enumerate(ELSEWHERE):
        for policy in (*learners, *UNCHANGED):
            for seed in range(seeds):
                path = out / "elsewhere" / f"{index}-{policy}-{seed}.json"
                pieces[path] = partial(_run_there, policy, settings, seed)
    finish_pieces("elsewhere", pieces, progress_bar=progress_bar)
    rows = [row for path in pieces for row in json.loads(path.read_text(encoding="utf-8"))]
    return pd.DataFrame(rows)


def _run_there(policy: str, settings: dict[str, Any], seed: int) -> str:
    """Return as JSON rows what a policy reaches with these settings."""
    held = Held(NAME, settings, seed, tasks=1)
    decider = make_policy(policy, held.env.problem, env=make(NAME, 1, **settings), seed=seed)
    if policy not in UNCHANGED:
        decider.load(_weights(policy, seed))
    found = held.evaluate(decider, bounds=False)
    scenario = ";".join(f"{key}={value:g}" for key, value in settings.items())
    return json.dumps(
        [
            {"policy": policy, "seed": seed, "scenario": scenario, "metric": m, "value": found[m]}
            for m in MEASURES
            if m in found
        ]
    )


def _weights(policy: str, seed: int) -> Path:
    """Return the shipped weights, trained with the default settings."""
    case = Case(NAME, {}, policy, seed, get_policy_spec(policy).budget_in(NAME, {}))
    found = find(case)
    if found is None:
        raise ConfigurationError(
            f"policy '{policy}' has no shipped weights for seed {seed}; allowed: what "
            f"'icl-optimizer weights {NAME}' has made."
        )
    return found[1]


def value_of(measured: pd.DataFrame, policy: str, scenario: str, metric: str) -> Estimate | None:
    """Return the mean over seeds with its interval, or None where nothing was measured."""
    mine = measured[
        (measured["policy"] == policy)
        & (measured["scenario"] == scenario)
        & (measured["metric"] == metric)
    ]
    return estimate(mine["value"].to_numpy(dtype=float)) if len(mine) else None


def _cell(measured: pd.DataFrame, policy: str, scenario: str, metric: str) -> str:
    value = value_of(measured, policy, scenario, metric)
    return "" if value is None else with_interval(metric, value)


def load_table(measured: pd.DataFrame, policies: Sequence[str]) -> list[list[str]]:
    """Return the quality of service of each policy at every rate, and on the trace."""
    points = [*(f"arrival_rate={rate:g}" for rate in RATES), TRACE]
    header = ["policy", *(f"λ = {rate:g}" for rate in RATES), "trace, λ = 3"]
    rows = [[p, *(_cell(measured, p, point, "qos") for point in points)] for p in policies]
    return [header, *rows]


def detail_table(measured: pd.DataFrame, policies: Sequence[str]) -> list[list[str]]:
    """Return what else was measured of each policy at three requests per second."""
    header = ["policy at λ = 3", *DETAILS.values()]
    point = "arrival_rate=3"
    return [header, *([p, *(_cell(measured, p, point, m) for m in DETAILS)] for p in policies)]


def elsewhere_table(elsewhere: pd.DataFrame) -> list[list[str]]:
    """Return the quality of service of each policy where it did not learn."""
    scenarios = list(dict.fromkeys(elsewhere["scenario"]))
    policies = list(dict.fromkeys(elsewhere["policy"]))
    return [
        ["trained with 3 experts at λ = 3", *scenarios],
        *([p, *(_cell(elsewhere, p, s, "qos") for s in scenarios)] for p in policies),
    ]


def _draw(measured: pd.DataFrame, out: Path) -> None:
    """Draw quality of service, and what is in time, over the arrival rate."""
    drawing, (left, right) = picture(1, 2)
    palette = Palette(Entry(policy) for policy in DRAWN)
    for policy in DRAWN:
        style = palette.style(Entry(policy))
        for axes, metric in ((left, "qos"), (right, "success_rate")):
            found = {
                rate: value
                for rate in RATES
                if (value := value_of(measured, policy, f"arrival_rate={rate:g}", metric))
            }
            if found:
                plot_series(axes, list(found), list(found.values()), policy, style)
    left.set_ylabel("Quality of service per request")
    right.set_ylabel("Requests within the latency bound")
    for axes in (left, right):
        axes.set_xlabel("Arrival rate λ (requests/s)")
        axes.set_xticks(RATES, [f"{rate:g}" for rate in RATES])
        axes.set_ylim(bottom=0)
    save(drawing, left, out / "routing-rates.png")
