"""Requests simulated per second on experts that batch continuously: the bank against a loop."""

from __future__ import annotations

import time
from dataclasses import dataclass
from statistics import median

import numpy as np

from icl_optimizer.bench.result import BenchmarkResult, alternate, summarise
from icl_optimizer.environments.base import Floats, Ints
from icl_optimizer.environments.batching import ExpertBank, StepCosts
from icl_optimizer.environments.batching.reference import PlainExpert, PlainRequest, run_plain
from icl_optimizer.environments.queues import draw_arrivals

BATCH = 64
EXPERTS = 3
REQUESTS = 5000
PLAIN_REQUESTS = 2500
ROUNDS = 5
# about a model of 7 billion parameters on a current GPU, near capacity under the load below
COSTS = StepCosts(0.014, 7e-5, 3.4e-7, per_sequence_s=1e-4, prefill_s=2e-3)
KV_TOKENS = 60_000
MAX_RUNNING, QUEUE_SIZE = 64, 200


@dataclass(frozen=True)
class Load:
    """Requests in order of arrival, each ``(n, E)``."""

    expert: Ints
    arrival: Floats
    prompt: Ints
    answer: Ints


def draw_load(envs: int, count: int) -> Load:
    """Return Poisson arrivals, 3 per second, sent anywhere; 1,150 and 210 tokens on average.

    A sub-environment draws the same requests whatever the number of the others.
    """
    rngs = [np.random.default_rng(e) for e in range(envs)]
    arrival = draw_arrivals(rngs, count, 3.0).T.copy()
    expert, prompt, answer = (np.empty((count, envs), dtype=np.int64) for _ in range(3))
    for e, rng in enumerate(rngs):
        expert[:, e] = rng.integers(EXPERTS, size=count)
        prompt[:, e] = rng.geometric(1 / 1150, count)
        answer[:, e] = rng.geometric(1 / 210, count)
    return Load(expert, arrival, prompt, answer)


def vs_event_loop() -> BenchmarkResult:
    """Compare the batched experts with the plain event loop on one sub-environment."""
    load = draw_load(BATCH, REQUESTS)
    # the loops are compiled by the first calls
    bank_rate(draw_load(BATCH, 10))
    ours, theirs = alternate(
        "qos_simulator_vs_event_loop",
        ROUNDS,
        lambda _: bank_rate(load),
        lambda number: plain_rate(load, PLAIN_REQUESTS, number),
    )
    return summarise(
        "qos_simulator_vs_event_loop",
        "requests/s",
        f"{BATCH} x {EXPERTS} experts that batch continuously in one bank, which jumps in closed "
        "form where nobody comes or leaves, against a plain Python loop, iteration by iteration, "
        f"on {EXPERTS} experts; the same model and load (Poisson 3/s, 1,150 prompt and 210 answer "
        "tokens on average, sent at random), one core on both sides. episode_s: seconds of a whole "
        "episode of all sub-environments; episode_requests: how many requests that is",
        ours,
        theirs,
        details={
            "batch_size": float(BATCH),
            "episode_requests": float(BATCH * REQUESTS),
            "episode_s": BATCH * REQUESTS / median(ours),
        },
    )


def bank_rate(load: Load) -> float:
    """Return requests per second through a bank, its making and the drain at the end included."""
    count, envs = load.expert.shape
    rules = {"max_running": MAX_RUNNING, "queue_size": QUEUE_SIZE, "items": count}
    started = time.perf_counter()
    bank = ExpertBank(envs, [COSTS] * EXPERTS, [KV_TOKENS] * EXPERTS, **rules)
    for k in range(count):
        bank.advance(load.arrival[k])
        item = np.full(envs, k)
        bank.assign(load.expert[k], item, load.arrival[k], load.prompt[k], load.answer[k])
    bank.advance(np.full(envs, np.inf))
    return load.expert.size / (time.perf_counter() - started)


def plain_rate(load: Load, count: int, e: int) -> float:
    """Return requests per second of the plain loop on the first ``count`` of sub-environment e."""
    columns = (load.expert, load.arrival, load.prompt, load.answer)
    rows = zip(*(column[:count, e].tolist() for column in columns), strict=True)
    requests = [PlainRequest(*row) for row in rows]
    experts = [PlainExpert(COSTS, KV_TOKENS, MAX_RUNNING, QUEUE_SIZE) for _ in range(EXPERTS)]
    started = time.perf_counter()
    run_plain(experts, requests)
    return count / (time.perf_counter() - started)
