"""Decisions per second on servers with queues: all episodes at once against one at a time."""

from __future__ import annotations

import time
from statistics import median

import numpy as np

from icl_optimizer.bench.result import BenchmarkResult, alternate, summarise
from icl_optimizer.environments.queues import QueueBank
from icl_optimizer.environments.slo_scheduling import SLOSchedulingVectorEnv
from icl_optimizer.environments.slo_scheduling_scalar import ScalarSLOSchedulingEnv

BATCH = 1024
ROUNDS = 7
EPISODES = 20
PLAIN_EPISODES = 200


def batched_vs_single() -> BenchmarkResult:
    """Compare the batched scheduling environment with its event-driven twin in plain Python."""
    batch, plain = SLOSchedulingVectorEnv(BATCH), ScalarSLOSchedulingEnv()
    # the loops are compiled by the first calls
    batch_rate(batch, 1)
    core_rate(1)
    ours, theirs, core = alternate(
        "queue_batched_vs_single",
        ROUNDS,
        lambda _: batch_rate(batch, EPISODES),
        lambda _: plain_rate(plain, PLAIN_EPISODES),
        lambda _: core_rate(EPISODES),
    )
    return summarise(
        "queue_batched_vs_single",
        "decisions/s",
        f"SLOSchedulingVectorEnv({BATCH}) against ScalarSLOSchedulingEnv, the same dynamics event "
        "by event in plain Python; whole episodes with random decisions, drawing of the tasks "
        "included; one core on both sides. core_steps_per_s: the queues alone, without tasks, "
        "observations and outcomes",
        ours,
        theirs,
        details={"batch_size": float(BATCH), "core_steps_per_s": median(core)},
    )


def batch_rate(env: SLOSchedulingVectorEnv, episodes: int) -> float:
    """Return decisions per second over whole episodes with random decisions, resets included."""
    steps = episodes * env.problem.horizon
    actions = np.random.default_rng(0).integers(len(env.problem.labels), size=(steps, env.num_envs))
    env.reset(seed=0)
    started = time.perf_counter()
    for row in actions:
        env.step(row)
    return steps * env.num_envs / (time.perf_counter() - started)


def plain_rate(env: ScalarSLOSchedulingEnv, episodes: int) -> float:
    """Return decisions per second of a single environment, its resets included."""
    horizon = env.problem.horizon
    actions = np.random.default_rng(0).integers(len(env.problem.labels), size=(episodes, horizon))
    env.reset(seed=0)
    started = time.perf_counter()
    for row in actions:
        env.reset()
        for action in row:
            env.step(action)
    return actions.size / (time.perf_counter() - started)


def core_rate(episodes: int, horizon: int = 30, servers: int = 4) -> float:
    """Return requests per second through the queues of :data:`BATCH` sub-environments."""
    rng, shape = np.random.default_rng(0), (horizon, BATCH)
    bank = QueueBank(BATCH, [1] * servers, [10] * servers, horizon)
    server = rng.integers(servers, size=shape)
    item = np.repeat(np.arange(horizon), BATCH).reshape(shape)
    arrival = np.cumsum(rng.standard_exponential(shape), axis=0)
    service = rng.exponential(3.0, shape)
    everyone = np.arange(BATCH)
    started = time.perf_counter()
    for _ in range(episodes):
        bank.reset(everyone)
        for k in range(horizon):
            bank.advance(arrival[k])
            bank.assign(server[k], item[k], arrival[k], service[k])
    return episodes * server.size / (time.perf_counter() - started)
