"""Learners of the split point: trained policies, what they choose, and their settings varied."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from icl_optimizer.comparison.evaluation import HELD_OUT, Held
from icl_optimizer.decision import Outcome
from icl_optimizer.environments.registry import make
from icl_optimizer.policies import get_policy_spec, make_policy
from icl_optimizer.policy import Policy
from icl_optimizer.rollout import Rollout
from icl_optimizer.studies.pieces import finish_pieces

NAME = "layer-splitting"
EPISODES = 500
"""Episodes whose rewards and last splits are drawn: the paper shows 500 splitting points."""
TASKS = 2_000
SWEPT: dict[str, tuple[float, ...]] = {
    "learning_rate": (1e-4, 3e-4, 5e-4, 7e-4),
    "batch_size": (50, 100, 150, 200),
    "clip_range": (0.1, 0.2, 0.3, 0.4),
    "gae_lambda": (0.9, 0.95, 0.99),
}
"""Values of figure 8, where the paper names them; 0.95 and the rest around them are chosen."""
SWEEP_POINTS = 10
"""Evaluations while learning."""


@dataclass(frozen=True)
class Trained:
    """A policy of one seed, trained in case A, and its settings that are not the preset's.

    Attributes:
        policy: Its name.
        seed: Seeds training and held-out episodes.
        settings: Fields of its configuration.
        learns: Whether it is trained at all, for what it would do untrained.
    """

    policy: str
    seed: int
    settings: Mapping[str, Any] = field(default_factory=dict)
    learns: bool = True

    @property
    def name(self) -> str:
        """As the pictures and files call it."""
        changed = "".join(f"-{key}={value:g}" for key, value in self.settings.items())
        return f"{self.policy}{changed}{'' if self.learns else '-untrained'}"

    def make(self) -> tuple[Policy, int]:
        """Return the policy with its environment, and how many decisions it learns from."""
        spec = get_policy_spec(self.policy)
        env = spec.training_env(NAME, {})
        policy = make_policy(self.policy, env.problem, env=env, seed=self.seed, **self.settings)
        return policy, spec.budget_in(NAME, {}) if spec.learns and self.learns else 0


def chosen(out: Path, who: list[Trained], *, progress_bar: bool = True) -> dict[str, pd.DataFrame]:
    """Return what trained policies earn and choose, one row per episode of case A.

    Args:
        out: Keeps what is finished in ``chosen``.
        who: Policies and seeds.
        progress_bar: Whether to draw one.

    Returns:
        By policy: columns seed, reward (mean of the episode), sigma, loss, split (the last one).
    """
    pieces = {out / "chosen" / f"{t.name}-{t.seed}.json": partial(_choose, t) for t in who}
    finish_pieces("chosen", pieces, progress_bar=progress_bar)
    found: dict[str, list[pd.DataFrame]] = {}
    for path, trained in zip(pieces, who, strict=True):
        rows = pd.DataFrame(json.loads(path.read_text(encoding="utf-8")))
        found.setdefault(trained.name, []).append(rows.assign(seed=trained.seed))
    return {name: pd.concat(parts, ignore_index=True) for name, parts in found.items()}


def _choose(trained: Trained) -> str:
    policy, budget = trained.make()
    if budget:
        policy.learn(budget)
    env = make(NAME, EPISODES)
    rollout = Rollout(policy, env, explore=False)
    rollout.reset(seed=HELD_OUT + 1000 * trained.seed)
    assert rollout.observations is not None
    link = rollout.observations[:, :2].tolist()
    rewards = np.zeros(EPISODES)
    outcomes: list[Outcome] = []
    for _ in range(env.problem.horizon):
        _, outcomes, reward = rollout.step()
        rewards += reward / env.problem.horizon
    rows = [
        {"reward": reward, "sigma": sigma, "loss": loss, "split": o.metrics["split_layer"]}
        for reward, (sigma, loss), o in zip(rewards.tolist(), link, outcomes, strict=True)
    ]
    return json.dumps(rows)


def sweeps(out: Path, seeds: int, *, progress_bar: bool = True) -> pd.DataFrame:
    """Return learning curves of PPO on surrogate rewards, one setting varied at a time.

    Args:
        out: Keeps what is finished in ``sweeps``.
        seeds: Repetitions.
        progress_bar: Whether to draw one.

    Returns:
        Columns setting, value, seed, step, reward (on held-out episodes, by the table).
    """
    who = [
        Trained("ppo-surrogate-shipped", seed, {setting: value})
        for setting, values in SWEPT.items()
        for value in values
        for seed in range(seeds)
    ]
    pieces = {out / "sweeps" / f"{t.name}-{t.seed}.json": partial(_curve, t) for t in who}
    finish_pieces("sweeps", pieces, progress_bar=progress_bar)
    parts = []
    for path, trained in zip(pieces, who, strict=True):
        ((setting, value),) = trained.settings.items()
        rows = pd.DataFrame(json.loads(path.read_text(encoding="utf-8")))
        parts.append(rows.assign(setting=setting, value=value, seed=trained.seed))
    return pd.concat(parts, ignore_index=True)


def _curve(trained: Trained) -> str:
    policy, budget = trained.make()
    held = Held(NAME, {}, trained.seed, TASKS)
    rows = []
    for part in range(1, SWEEP_POINTS + 1):
        policy.learn(budget * part // SWEEP_POINTS - policy.num_timesteps)
        found = held.evaluate(policy)
        rows.append(
            {"step": policy.num_timesteps} | {k: found[k] for k in ("reward", "optimality")}
        )
    return json.dumps(rows)
