"""Environment steps per second: the batched offloading cell against its peers."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode, SyncVectorEnv, VectorEnv

from icl_optimizer.bench.result import BenchmarkResult, alternate, summarise
from icl_optimizer.environments.offloading import OffloadingEnv, OffloadingVectorEnv
from icl_optimizer.environments.offloading_config import OffloadingConfig
from icl_optimizer.environments.offloading_scalar import ScalarOffloadingEnv
from icl_optimizer.errors import MissingDependencyError

BATCH_SIZES = (512, 1024, 2048, 4096)
PEER_ENVS = 8
ROUNDS = 7
EPISODES = 2
HORIZON = OffloadingConfig().horizon


def batched_vs_single() -> BenchmarkResult:
    """Compare the batched environment with its plain Python twin in Gymnasium's SyncVectorEnv."""
    batch, rate = best_batch()
    peer = synchronous(ScalarOffloadingEnv)
    own_single = synchronous(OffloadingEnv)
    ours, theirs = alternate(
        "env_batched_vs_single", ROUNDS, lambda _: rate(), lambda _: vector_rate(peer, 1)
    )
    return summarise(
        "env_batched_vs_single",
        "decisions/s",
        f"OffloadingVectorEnv({batch}) against gymnasium SyncVectorEnv of {PEER_ENVS} "
        "ScalarOffloadingEnv, the same dynamics in plain Python; whole episodes, resets included; "
        "long batches use two cores where there are two, the peer one",
        ours,
        theirs,
        details={
            "batch_size": float(batch),
            "single_env_in_sync_vector_env": vector_rate(own_single, 1),
        },
    )


def vs_mobile_env() -> BenchmarkResult:
    """Compare with mobile-env's medium scenario: 7 stations and 15 users on both sides."""
    peer = make_mobile_env()
    batch, rate = best_batch(users=15)
    single = SyncVectorEnv([partial(OffloadingEnv, users=15)])
    ours, theirs = alternate(
        "env_vs_mobile_env", ROUNDS, lambda _: rate(), lambda _: single_rate(peer)
    )
    return summarise(
        "env_vs_mobile_env",
        "steps/s",
        f"OffloadingVectorEnv({batch}, users=15), 7 sites, against mobile-medium-central-v0 (7 "
        "stations, 15 users), which has no batched form. A step of either updates the rate of "
        "every user. Ours has fading and proportional-fair scheduling on 100 resource blocks and "
        "decides on one task; theirs moves the users, shares each station's rate equally and "
        "decides on every user's connections",
        ours,
        theirs,
        details={
            "batch_size": float(batch),
            "one_environment_each": vector_rate(single, EPISODES) / single_rate(peer),
        },
    )


def best_batch(**fields: Any) -> tuple[int, Callable[[], float]]:
    """Return the batch size with the highest rate, and a function that measures it again."""
    rates = {}
    for size in BATCH_SIZES:
        env = OffloadingVectorEnv(size, **fields)
        vector_rate(env, 1)
        rates[size] = partial(vector_rate, env, EPISODES)
    best = max(BATCH_SIZES, key=lambda size: rates[size]())
    return best, rates[best]


def synchronous(make: Callable[[], gym.Env[Any, Any]]) -> SyncVectorEnv:
    """Return environments of one kind, one after the other in a step, as Gymnasium does it."""
    # the autoreset within a step wastes none on restarting
    return SyncVectorEnv([make] * PEER_ENVS, autoreset_mode=AutoresetMode.SAME_STEP)


def vector_rate(env: VectorEnv[Any, Any, Any], episodes: int) -> float:
    """Return decisions per second over whole episodes with random actions."""
    steps = episodes * HORIZON
    actions = np.random.default_rng(0).integers(2, size=(steps, env.num_envs))
    env.reset(seed=0)
    started = time.perf_counter()
    for row in actions:
        env.step(row)
    return steps * env.num_envs / (time.perf_counter() - started)


def single_rate(env: gym.Env[Any, Any]) -> float:
    """Return steps per second over one episode of a single environment with random actions."""
    env.action_space.seed(0)
    actions: Sequence[Any] = [env.action_space.sample() for _ in range(10_000)]
    env.reset(seed=0)
    steps, truncated = 0, False
    started = time.perf_counter()
    while not truncated:
        truncated = env.step(actions[steps])[3]
        steps += 1
    env.reset()
    return steps / (time.perf_counter() - started)


def make_mobile_env() -> gym.Env[Any, Any]:
    """Return mobile-env's medium scenario with its central handler."""
    try:
        import mobile_env  # noqa: F401  (registers its environments)
    except ImportError as error:
        raise MissingDependencyError(
            "benchmark 'env_vs_mobile_env' needs the peer. Install it: pip install mobile-env"
        ) from error
    return gym.make("mobile-medium-central-v0", disable_env_checker=True)
