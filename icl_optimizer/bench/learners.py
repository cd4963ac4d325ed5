"""Seconds until a deep-RL baseline decides nearly as well as the oracle: many environments, or one.

Both sides learn on the congested offloading system, where a decision changes what later ones
earn, and stop at the second check in a row on held-out tasks that finds 95 % of the oracle's
optimality. Checks do not count.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from statistics import median
from typing import Any

from icl_optimizer.baselines.drl import DrlPolicy
from icl_optimizer.baselines.drl_config import PRESETS, DqnConfig, DrlConfig, PpoConfig
from icl_optimizer.bench.result import BenchmarkResult, alternate, summarise
from icl_optimizer.comparison.evaluation import Held
from icl_optimizer.environments.registry import make

SETTINGS: dict[str, Any] = {"congested": True}
HELD_OUT_TASKS = 1000
GOAL = 0.95
ROUNDS = 5
LIMIT = 20_000

# the presets with as many replayed decisions per decision, in fewer and larger gradient steps
BATCHED_DQN = DqnConfig(batch_size=256, train_every=32, learning_rate=3e-3, target_update=256)
BATCHED_PPO = PpoConfig(rollout=256, batch_size=128, learning_rate=2e-3)


@dataclass
class Stopwatch:
    """A callback that checks a policy every so often and stops it at the goal.

    Attributes:
        held: Held-out tasks.
        policy: What learns.
        every: Decisions between checks.
        seconds: Time spent learning, once the goal is reached.
    """

    held: Held
    policy: DrlPolicy
    every: int
    seconds: float | None = None
    _due: int = 0
    _passed: int = 0
    _checking: float = 0.0
    _started: float = field(default_factory=time.perf_counter)

    def __call__(self, _locals: dict[str, Any], _globals: dict[str, Any]) -> bool:
        """Return whether to go on."""
        if self.policy.num_timesteps < self._due + self.every:
            return True
        self._due = self.policy.num_timesteps
        before = time.perf_counter()
        good = self.held.evaluate(self.policy)["optimality"] >= GOAL
        self._checking += time.perf_counter() - before
        self._passed = self._passed + 1 if good else 0
        if self._passed == 2:
            self.seconds = time.perf_counter() - self._started - self._checking
        return self.seconds is None


def train_seconds(held: Held, config: DrlConfig, num_envs: int, every: int, seed: int) -> float:
    """Return the seconds that ``config`` learns in ``num_envs`` environments until the goal.

    Raises:
        RuntimeError: The goal was not reached.
    """
    env = make("offloading", num_envs, **SETTINGS)
    policy = DrlPolicy(env.problem, config, name=config.algorithm, env=env, seed=seed)
    watch = Stopwatch(held, policy, every)
    policy.learn(LIMIT, callback=watch)
    if watch.seconds is None:
        raise RuntimeError(
            f"{config.algorithm} with {num_envs} environments and seed {seed} did not reach "
            f"{GOAL:.0%} of the oracle in {LIMIT} decisions."
        )
    return watch.seconds


def dqn_batched_vs_single() -> BenchmarkResult:
    """Compare DQN on 32 environments with DQN on one."""
    return _contest("dqn_batched_vs_single", BATCHED_DQN, 32, every=128)


def ppo_batched_vs_single() -> BenchmarkResult:
    """Compare PPO on 32 environments with PPO on one."""
    return _contest("ppo_batched_vs_single", BATCHED_PPO, 32, every=256)


def _contest(name: str, config: DrlConfig, num_envs: int, every: int) -> BenchmarkResult:
    """Compare with one environment, under our settings or the preset, whichever is faster."""
    held = Held("offloading", SETTINGS, seed=0, tasks=HELD_OUT_TASKS)
    side: Callable[..., float] = partial(train_seconds, held)
    # torch does its own setting up in the first steps of a process
    DrlPolicy(held.env.problem, config, env=make("offloading", 1, **SETTINGS)).learn(300)
    ours, same, preset = alternate(
        name,
        ROUNDS,
        lambda seed: side(config, num_envs, every, seed),
        lambda seed: side(config, 1, every, seed),
        lambda seed: side(PRESETS[config.algorithm], 1, every, seed),
    )
    return summarise(
        name,
        "s",
        f"seconds of learning to {GOAL:.0%} of the oracle on {HELD_OUT_TASKS} held-out tasks of "
        f"the congested offloading system, {num_envs} environments in one batch against one; the "
        "peer is the faster of our settings and the preset on one environment; one seed a round",
        ours,
        min(same, preset, key=median),
        less_is_better=True,
        details={
            "environments": float(num_envs),
            "single_with_our_settings_s": median(same),
            "single_with_preset_s": median(preset),
        },
    )
