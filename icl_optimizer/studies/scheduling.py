"""SLO-aware scheduling beside its paper: figures 2, 3a, 3b and the gap to what hindsight allows."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from icl_optimizer.baselines.hindsight import (
    Instance,
    hindsight_bound,
    improved,
    paper_optimum,
    relaxed_bound,
)
from icl_optimizer.comparison.config import default_config
from icl_optimizer.comparison.evaluation import HELD_OUT
from icl_optimizer.comparison.runner import compare
from icl_optimizer.comparison.statistics import Estimate, estimate
from icl_optimizer.environments.slo_scheduling import RATES, SLOSchedulingVectorEnv
from icl_optimizer.llm import load_llm
from icl_optimizer.report.formatting import with_interval
from icl_optimizer.report.palette import Entry, Palette
from icl_optimizer.rollout import progress
from icl_optimizer.studies.forecast_speed import speed_rows
from icl_optimizer.studies.pictures import picture, plot_series, save
from icl_optimizer.studies.published import SCHEDULING
from icl_optimizer.studies.tables import markdown, write_study

if TYPE_CHECKING:
    from matplotlib.axes import Axes

POLICIES = (
    "icl-predict",
    "table",
    "knn-predict",
    "linear-predict",
    "dqn-paper",
    "score-in-time",
    "sacrifice",
    "shortest-expected-completion",
    "shortest-queue",
    "round-robin",
    "score-greedy",
    "random",
    "oracle",
)
IN_PAPER = ("dqn-paper", "round-robin", "random")
DRAWN = ("icl-predict", "dqn-paper", "shortest-queue", "round-robin", "random")
SOLVED = 2
"""Held-out episodes per seed that the integer programme is solved for."""
MEASURES = ("score", "deadline_met", "hindsight_share")


def run_scheduling(
    out: Path, seeds: int = 5, *, interactions: int = 500, progress_bar: bool = True
) -> Path:
    """Compare all policies over the arrival rates; write tables and figures into ``out``.

    Args:
        out: Folder; the comparison goes into ``slo-scheduling`` in it, and goes on where it was
            interrupted.
        seeds: Repetitions.
        interactions: Decisions that the policies other than deep RL learn from.
        progress_bar: Whether to draw one.
    """
    folder = out / "slo-scheduling"
    config = default_config(
        "slo-scheduling", policies=POLICIES, seeds=seeds, interactions=interactions, train=True
    )
    compare(config, folder, resume=folder.exists(), progress_bar=progress_bar)
    results = pd.read_csv(folder / "results.csv", keep_default_na=False)
    measured = pd.concat([at_rates(results), _hindsight(seeds, progress_bar=progress_bar)])
    _draw_rates(measured, out)
    _draw_learning(results, out)
    path = write_study(out, "scheduling", measured, _table(measured))
    with path.open("a", encoding="utf-8") as file:
        file.write(
            "\n" + markdown(speed_rows(load_llm("llamacpp"), progress_bar=progress_bar)) + "\n"
        )
    return path


def at_rates(results: pd.DataFrame) -> pd.DataFrame:
    """Return the final evaluations at every arrival rate: policy, seed, rate, metric, value."""
    chosen = results[
        (results["split"] == "eval")
        & results["scenario"].str.startswith("arrival_rate=")
        & results["metric"].isin([*MEASURES, "response_time_s", "drop_rate", "episode_score"])
    ]
    rate = chosen["scenario"].str.removeprefix("arrival_rate=").astype(float)
    return chosen.assign(arrival_rate=rate)[["policy", "seed", "arrival_rate", "metric", "value"]]


def _hindsight(seeds: int, *, progress_bar: bool) -> pd.DataFrame:
    """Return what hindsight allows on the first held-out episodes of every seed, per task.

    ``bound``: no policy scores more (the integer programme, solved to 0.1 % or cut after 20 s, its
    bound holds either way); ``relaxed``: its linear relaxation, which :data:`hindsight_share`
    refers to; ``schedule``: the best schedule that a search found, so a score that was possible;
    ``paper``: the optimum of the paper's formulation as printed, without waiting, which is no
    bound for the system.
    """
    rows: list[dict[str, object]] = []
    total = len(RATES) * seeds * SOLVED
    with progress("hindsight", total, shown=progress_bar) as advance:
        for rate, seed in product(RATES, range(seeds)):
            env = SLOSchedulingVectorEnv(SOLVED, arrival_rate=rate)
            env.reset(seed=HELD_OUT + 1000 * seed)
            for i in range(SOLVED):
                for name, value in _solved(Instance(*env.instance(i))).items():
                    metric = f"hindsight_{name}"
                    rows.append(
                        {
                            "policy": "hindsight",
                            "seed": seed,
                            "arrival_rate": rate,
                            "metric": metric,
                            "value": value,
                        }
                    )
                advance(1)
    frame = pd.DataFrame(rows)
    keys = ["policy", "seed", "arrival_rate", "metric"]
    return frame.groupby(keys)["value"].mean().reset_index()


def _solved(instance: Instance) -> dict[str, float]:
    """Return bounds, the best schedule found and the paper's optimum, per task."""
    found = hindsight_bound(instance, time_limit_s=20.0)
    schedules = [improved(instance, seed=seed).total_score for seed in range(2)]
    printed = paper_optimum(instance).objective
    scores = {
        "bound": found.bound,
        "relaxed": relaxed_bound(instance),
        "schedule": max(schedules),
        "paper": np.nan if printed is None else printed,
    }
    return {name: value / instance.requests for name, value in scores.items()}


def value_of(measured: pd.DataFrame, policy: str, rate: float, metric: str) -> Estimate:
    """Return the mean over seeds with its interval."""
    mine = measured[
        (measured["policy"] == policy)
        & (measured["arrival_rate"] == rate)
        & (measured["metric"] == metric)
    ]
    return estimate(mine["value"].to_numpy(dtype=float))


def _table(measured: pd.DataFrame) -> list[list[str]]:
    header = ["policy", "measure", *(f"λ = {rate:g}" for rate in RATES)]
    rows = [header]
    for policy in POLICIES:
        for metric in MEASURES:
            values = [value_of(measured, policy, rate, metric) for rate in RATES]
            rows.append([policy, metric, *(with_interval(metric, v) for v in values)])
        if policy in IN_PAPER:
            told = [SCHEDULING.get((policy, rate)) for rate in RATES]
            cells = ["" if value is None else f"{value:.2f}" for value in told]
            rows.append([policy, "deadline_met, published", *cells])
    for name in ("bound", "relaxed", "schedule", "paper"):
        metric = f"hindsight_{name}"
        values = [value_of(measured, "hindsight", rate, metric) for rate in RATES]
        rows.append(["hindsight", name, *(with_interval(metric, v) for v in values)])
    return rows


def _draw_rates(measured: pd.DataFrame, out: Path) -> None:
    """Draw figures 3a and 3b: score and deadlines met against the arrival rate."""
    drawing, (left, right) = picture(1, 2)
    palette = Palette(Entry(policy) for policy in DRAWN)
    for policy in DRAWN:
        style = palette.style(Entry(policy))
        for axes, metric in ((left, "episode_score"), (right, "deadline_met")):
            values = [value_of(measured, policy, rate, metric) for rate in RATES]
            plot_series(axes, list(RATES), values, policy, style)
        told = {rate: v for (name, rate), v in SCHEDULING.items() if name == policy}
        if told:
            right.plot(
                list(told),
                list(told.values()),
                linestyle="none",
                marker="x",
                color=style.color,
                markersize=9,
                markeredgewidth=2,
            )
    left.set_ylabel("Score per episode of 30 tasks")
    right.set_ylabel("Deadlines met (crosses: published)")
    for axes in (left, right):
        axes.set_xscale("log", base=2)
        axes.set_xticks(RATES, [f"{rate:g}" for rate in RATES])
        axes.set_xlabel("Arrival rate λ (tasks/s)")
        axes.set_ylim(bottom=0)
    left.set_title("Fig. 3a: task scores", loc="left", fontsize=10)
    right.set_title("Fig. 3b: satisfied deadlines", loc="left", fontsize=10)
    save(drawing, left, out / "scheduling-fig3.png")


def _draw_learning(results: pd.DataFrame, out: Path) -> None:
    """Draw figure 2: score per episode over the decisions learned from, on held-out tasks."""
    drawing, (axes,) = picture(1, 1)
    learners = ("icl-predict", "table", "dqn-paper")
    palette = Palette(Entry(policy) for policy in learners)
    for policy in learners:
        _draw_curve(axes, results, policy, palette)
    axes.set_xscale("log")
    axes.set_xlabel("Decisions learned from")
    axes.set_ylabel("Score per held-out episode")
    axes.set_title("Fig. 2: convergence at λ = 1", loc="left", fontsize=10)
    save(drawing, axes, out / "scheduling-fig2.png")


def _draw_curve(axes: Axes, results: pd.DataFrame, policy: str, palette: Palette) -> None:
    curve = results[
        (results["policy"] == policy)
        & (results["split"] == "eval")
        & (results["scenario"] == "default")
        & (results["metric"] == "episode_score")
    ]
    steps = sorted(curve["step"].unique())
    values = [estimate(curve[curve["step"] == s]["value"].to_numpy(dtype=float)) for s in steps]
    plot_series(axes, steps, values, policy, palette.style(Entry(policy)))
