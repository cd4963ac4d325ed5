"""Which components of the reward matter: a policy trained without each of them in turn."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import pandas as pd

from icl_optimizer.comparison.evaluation import Held
from icl_optimizer.environments.load_balancing_reward import COMPONENTS
from icl_optimizer.environments.registry import make
from icl_optimizer.policies import get_policy_spec, make_policy
from icl_optimizer.studies.balancing_plan import CALIBRATED, NAME, BalancingPlan
from icl_optimizer.studies.pieces import finish_pieces

NOTHING = "nothing"
REMOVED = (NOTHING, *COMPONENTS)
"""What is taken out of the reward while learning."""


def run_ablation(plan: BalancingPlan, folder: Path, *, progress_bar: bool = True) -> pd.DataFrame:
    """Train without each component, evaluate with all of them, on the calibrated scenario.

    Args:
        plan: What to run.
        folder: Keeps what is finished.
        progress_bar: Whether to draw one.

    Returns:
        Columns ``scenario``, ``trace``, ``policy``, ``without``, ``seed``, ``metric``, ``value``.
    """
    budget = plan.ablation_interactions
    paths = {
        (without, seed): folder / "ablation" / f"{plan.learner}-{budget}-{without}-seed{seed}.json"
        for seed in range(plan.ablation_seeds)
        for without in REMOVED
    }
    pieces = {path: partial(_measured, plan, *key) for key, path in paths.items()}
    finish_pieces("ablation", pieces, jobs=plan.jobs, progress_bar=progress_bar)
    rows = [
        (without, seed, metric, value)
        for (without, seed), path in paths.items()
        for metric, value in json.loads(path.read_text(encoding="utf-8")).items()
    ]
    frame = pd.DataFrame(rows, columns=["without", "seed", "metric", "value"])
    trace = plan.environment(CALIBRATED).trace
    return frame.assign(scenario=CALIBRATED, trace=trace, policy=plan.learner)


def _measured(plan: BalancingPlan, without: str, seed: int) -> str:
    """Return as JSON what a policy trained without this component reaches under the full reward."""
    full = plan.settings_in(CALIBRATED)
    learned = full if without == NOTHING else full | {f"weights.{without}": 0.0}
    env = make(NAME, get_policy_spec(plan.learner).envs_in(NAME), **learned)
    policy = make_policy(plan.learner, env.problem, env=env, seed=seed)
    policy.learn(plan.ablation_interactions)
    return json.dumps(Held(NAME, full, seed, tasks=1).evaluate(policy, bounds=False), indent=1)
