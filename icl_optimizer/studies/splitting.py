"""Layer splitting: channels, surrogate, learners by case, and what the surrogate saves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd

from icl_optimizer.comparison.config import default_config
from icl_optimizer.comparison.runner import compare
from icl_optimizer.comparison.statistics import Estimate, estimate
from icl_optimizer.environments.registry import get_spec
from icl_optimizer.environments.splitting.records import shipped_records
from icl_optimizer.report.formatting import with_interval
from icl_optimizer.studies.splitting_channels import (
    channels_table,
    draw_channels,
    shipped_channels,
)
from icl_optimizer.studies.splitting_cost import POLICIES, cost_table
from icl_optimizer.studies.splitting_learning import NAME, Trained, chosen, sweeps
from icl_optimizer.studies.splitting_pictures import (
    draw_choices,
    draw_curves,
    draw_sweeps,
    draw_violins,
)
from icl_optimizer.studies.tables import markdown, write_study

CASES = ("L", "H", "A")
LEARNERS = ("ppo-split", "ppo-paper", "ppo-surrogate", "a2c-paper", "dqn-paper")
"""Those of figure 5, and ours."""
SWEEP_SEEDS = 2


def run_splitting(out: Path, seeds: int = 5, *, progress_bar: bool = True) -> Path:
    """Compare all policies in every case; write tables and figures into ``out``.

    Args:
        out: Folder; what is finished is kept there and not repeated.
        seeds: Repetitions; sweeps of settings have at most two.
        progress_bar: Whether to draw one.

    Returns:
        The path of the table of the cases.
    """
    results = {case: _compared(case, out, seeds, progress_bar) for case in CASES}
    values = pd.concat(results.values(), ignore_index=True)
    path = write_study(out, "splitting", values, case_table(results))
    _write(out, "surrogate", surrogate_table(shipped_records()))
    _write(out, "channels", channels_table(shipped_channels()))
    draw_channels({"SmolLM2-135M-Instruct": shipped_channels()}, out / "splitting-channels.png")
    draw_curves(results, LEARNERS, out / "splitting-curves.png")
    who = [
        Trained(policy, seed, learns=learns)
        for policy, learns in (
            ("ppo-split", True),
            ("ppo-paper", True),
            ("ppo-surrogate", True),
            ("random", True),
            ("ppo-paper", False),
        )
        for seed in range(seeds)
    ]
    found = chosen(out, who, progress_bar=progress_bar)
    draw_violins(found, out / "splitting-violins.png")
    draw_choices(found["ppo-split"], out / "splitting-choices.png")
    draw_sweeps(
        sweeps(out, min(seeds, SWEEP_SEEDS), progress_bar=progress_bar),
        out / "splitting-sweeps.png",
    )
    rewards = {policy: final(results["A"], policy, "reward") for policy in POLICIES}
    _write(out, "cost", cost_table({p: r for p, r in rewards.items() if r is not None}))
    return path


def _write(out: Path, name: str, table: Sequence[Sequence[str]]) -> None:
    out.joinpath(f"splitting-{name}.md").write_text(markdown(table) + "\n", encoding="utf-8")


def _compared(case: str, out: Path, seeds: int, progress_bar: bool) -> pd.DataFrame:
    """Return the evaluations of all policies in one case, as they learned."""
    folder = out / f"case-{case}"
    policies = tuple(dict.fromkeys((*get_spec(NAME).policies, *LEARNERS, *POLICIES)))
    settings = {} if case == "A" else {"case": case}
    config = default_config(NAME, policies=policies, seeds=seeds, settings=settings, sweeps=False)
    compare(config, folder, resume=folder.exists(), progress_bar=progress_bar)
    rows = pd.read_csv(folder / "results.csv", keep_default_na=False)
    columns = ["policy", "seed", "step", "metric", "value"]
    return rows.loc[rows["split"] == "eval", columns].assign(case=case)


def final(rows: pd.DataFrame, policy: str, metric: str) -> Estimate | None:
    """Return what a policy reached with its last evaluation, over seeds; None where it was not."""
    mine = rows[(rows["policy"] == policy) & (rows["metric"] == metric)]
    if not len(mine):
        return None
    last = mine.sort_values("step").groupby("seed")["value"].last()
    return estimate(last)


def case_table(results: Mapping[str, pd.DataFrame]) -> list[list[str]]:
    """Return optimality by case, and the reward in case A, a row per policy."""
    policies = dict.fromkeys(policy for rows in results.values() for policy in rows["policy"])
    header = ["policy", *(f"optimality, case {case}" for case in results)]
    header += ["reward, case A", "split layer, case A", "perplexity ratio, case A"]
    table = [header]
    for policy in policies:
        cells = [final(rows, policy, "optimality") for rows in results.values()]
        details = [
            (metric, final(results["A"], policy, metric))
            for metric in ("reward", "split_layer", "perplexity_ratio")
        ]
        texts = ["" if c is None else with_interval("optimality", c) for c in cells]
        texts += ["" if c is None else with_interval(metric, c) for metric, c in details]
        table.append([policy, *texts])
    return table


def surrogate_table(records: pd.DataFrame) -> list[list[str]]:
    """Return how well a surrogate foretells held-out records, and whole cells held out."""
    from icl_optimizer.baselines.surrogate import HeldOut, cross_validate

    table = [["held out", "compared with", "target", "R²", "MSE", "MAE", "MAE / std"]]
    ways: tuple[tuple[HeldOut, str], ...] = (
        ("record", "records"),
        ("cell", "cells of (layer, loss)"),
    )
    for by, name in ways:
        scores = cross_validate(records, 5, by)
        for accuracy, against in (
            (scores.held_out, "records"),
            (scores.floor, "records; by the other records' means"),
            (scores.of_means, "means of records"),
        ):
            for target, e in (("extra nats", accuracy.extra_nats), ("f", accuracy.quality)):
                errors = [f"{e.r2:.4f}", f"{e.mse:.5f}", f"{e.mae:.4f}", f"{e.share:.3f}"]
                table.append([name, against, target, *errors])
    return table
