"""What rewards from the live model cost beside those of a surrogate (Table IV of Chen et al.)."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from dataclasses import asdict, dataclass

import numpy as np

from icl_optimizer.baselines.drl_config import SurrogatePpoConfig, preset
from icl_optimizer.comparison.statistics import Estimate
from icl_optimizer.environments.registry import make
from icl_optimizer.environments.splitting.records import shipped_records
from icl_optimizer.policies import get_policy_spec
from icl_optimizer.studies.training_cost import TrainingCost, measure_training, peak_memory

NAME = "layer-splitting"
LIVE_STEPS = 40
"""Steps of the live environment that are timed."""
POLICIES = ("ppo-paper", "ppo-surrogate", "ppo-surrogate-shipped")


@dataclass(frozen=True)
class LiveCost:
    """What rewards of the live model take.

    Attributes:
        step_s: Seconds per decision, the model's answers included.
        peak_mb: Most memory of the process, in 10^6 bytes.
    """

    step_s: float
    peak_mb: float


def measure_live() -> LiveCost:
    """Return what decisions with rewards of the live model cost, in a fresh process."""
    done = subprocess.run(
        [sys.executable, "-m", __name__], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise RuntimeError(f"the live environment failed: {done.stderr[-2000:]}")
    return LiveCost(**json.loads(done.stdout.splitlines()[-1]))


def _live_steps() -> LiveCost:
    env = make(NAME, 1, rewards_from="live")
    env.reset(seed=0)
    rng = np.random.default_rng(0)
    env.step(rng.integers(3, size=1))  # the first one loads the model
    started = time.perf_counter()
    for _ in range(LIVE_STEPS):
        env.step(rng.integers(3, size=1))
    seconds = time.perf_counter() - started
    return LiveCost(seconds / LIVE_STEPS, peak_memory() / 1e6)


def cost_table(rewards: dict[str, Estimate], live: LiveCost | None = None) -> list[list[str]]:
    """Return Table IV: rewards, training time and memory with and without a surrogate.

    The rewards of a policy without a surrogate are learned from the measured table; what the live
    model would have taken is its measured time per decision, multiplied.

    Args:
        rewards: Of each policy in case A after its training.
        live: What the live model costs; measured when None.
    """
    live = live or measure_live()
    costs = {policy: measure_training(NAME, policy) for policy in POLICIES}
    true_steps = {policy: _true_steps(policy, cost) for policy, cost in costs.items()}
    base = rewards[POLICIES[0]].mean
    header = ["", "without a surrogate", "Algorithm 1", "surrogate of the shipped records"]
    changes = [f"{(rewards[p].mean - base) / abs(base):+.2%}" for p in POLICIES[1:]]
    return [
        header,
        ["policy", *POLICIES],
        ["reward after 24,000 decisions", *(f"{rewards[p].mean:.4f}" for p in POLICIES)],
        ["against without", "", *changes],
        ["rewards asked of the model", *(f"{true_steps[p]:,}" for p in POLICIES)],
        ["seconds of the learner (measured)", *(f"{costs[p].train_s:.1f}" for p in POLICIES)],
        [
            f"with the live model at {live.step_s:.2f} s per decision (multiplied)",
            *(_duration(costs[p].train_s + true_steps[p] * live.step_s) for p in POLICIES),
        ],
        [
            "memory in MB, of the live model where it is asked",
            *(f"{live.peak_mb if true_steps[p] else costs[p].peak_mb:.0f}" for p in POLICIES),
        ],
        ["memory in MB of the learner alone", *(f"{costs[p].peak_mb:.0f}" for p in POLICIES)],
        ["records measured before", "0", "0", f"{len(shipped_records()):,}"],
    ]


def _true_steps(policy: str, cost: TrainingCost) -> int:
    """Return how many rewards the policy takes from the model."""
    if get_policy_spec(policy).training.get("rewards_from") == "surrogate":
        return 0
    config = preset(policy, NAME)
    if isinstance(config, SurrogatePpoConfig):
        return config.true_rollouts * config.rollout
    return cost.decisions


def _duration(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < 120 else f"{seconds / 60:.1f} min"


if __name__ == "__main__":
    print(json.dumps(asdict(_live_steps())))
