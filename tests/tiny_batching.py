"""Scenarios of experts that batch continuously, and what is known of their requests."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from hypothesis import strategies as st

from icl_optimizer.environments.base import Floats, Ints
from icl_optimizer.environments.batching import ExpertBank, Finished, StepCosts
from icl_optimizer.environments.batching.reference import PlainExpert, PlainRequest

Check = Callable[[ExpertBank, Floats, "Ledger"], None]


@dataclass
class Case:
    """Experts, and requests ``(E, n)`` in order of arrival."""

    costs: list[StepCosts]
    kv_tokens: list[int]
    rules: dict[str, Any]
    expert: Ints
    arrival: Floats
    prompt: Ints
    answer: Ints

    @property
    def shape(self) -> tuple[int, int]:
        """Sub-environments and requests in each."""
        return self.expert.shape[0], self.expert.shape[1]

    def bank(self, envs: int | None = None) -> ExpertBank:
        """Return idle experts."""
        rows, count = self.shape
        return ExpertBank(envs or rows, self.costs, self.kv_tokens, items=count, **self.rules)

    def plain(self) -> list[PlainExpert]:
        """Return the same experts as plain loops, for one sub-environment."""
        pairs = zip(self.costs, self.kv_tokens, strict=True)
        return [PlainExpert(cost, kv, **self.rules) for cost, kv in pairs]

    def plain_requests(self, e: int) -> list[PlainRequest]:
        """Return the requests of one sub-environment that are sent somewhere."""
        columns = (self.expert, self.arrival, self.prompt, self.answer)
        rows = zip(*(column[e].tolist() for column in columns), strict=True)
        return [PlainRequest(*row) for row in rows]

    def send(self, bank: ExpertBank, k: int, rows: Any = slice(None)) -> Any:
        """Assign the ``k``-th request everywhere."""
        item = np.full(len(bank.running), k)
        columns = (self.arrival, self.prompt, self.answer)
        return bank.assign(self.expert[rows, k], item, *(c[rows, k] for c in columns))


@dataclass
class Ledger:
    """What became of every request, each ``(E, n)``; NaN where nothing."""

    accepted: Any
    first_token: Floats
    finish: Floats
    gpu: Floats
    served: Ints

    @classmethod
    def empty(cls, shape: tuple[int, int]) -> Ledger:
        """Return the ledger of nobody."""
        times = (np.full(shape, np.nan) for _ in range(3))
        return cls(np.zeros(shape, bool), *times, np.zeros(shape, int))

    def write(self, done: Finished, case: Case) -> None:
        """Take down who left."""
        at = (done.env, done.item)
        np.testing.assert_array_equal(done.expert, case.expert[at])
        np.testing.assert_array_equal(done.arrival_s, case.arrival[at])
        assert self.accepted[at].all()
        order = list(zip(done.env, done.finish_s, strict=True))
        assert order == sorted(order)
        np.add.at(self.served, at, 1)
        self.first_token[at], self.finish[at] = done.first_token_s, done.finish_s
        self.gpu[at] = done.gpu_s


def cost(rng: np.random.Generator, grid: bool) -> StepCosts:
    """Return random costs; on the grid, sums of a few thousand of them are exact."""
    base, prompt, cached, sequence, prefill = (
        (rng.integers(1, 9, 5) / [64, 1024, 4096, 256, 64])
        if grid
        else rng.uniform(0.1, 1.0, 5) * [0.1, 1e-2, 1e-3, 1e-2, 0.1]
    )
    plain = rng.random(3) < 0.3
    costs = np.where(plain, 0.0, [cached, sequence, prefill])
    return StepCosts(float(base), float(prompt), *(float(c) for c in costs))


def make_case(rng: np.random.Generator, envs: int, count: int, grid: bool = False) -> Case:
    """Return a random case; on the grid, much happens at the same time, in exact numbers."""
    experts = int(rng.integers(1, 4))
    shape = (envs, count)
    gaps = rng.exponential(rng.choice([0.05, 0.3, 1.5]), shape)
    chunk = int(rng.choice([1, 7, 16, 64]))
    return Case(
        costs=[cost(rng, grid) for _ in range(experts)],
        kv_tokens=rng.integers(20, int(rng.choice([70, 200, 2000])), experts).tolist(),
        rules={
            "max_running": int(rng.choice([1, 2, 5, 40])),
            "queue_size": int(rng.choice([1, 3, 40])),
            "chunk_tokens": chunk if rng.random() < 0.5 else None,
        },
        expert=rng.integers(-1 if rng.random() < 0.3 else 0, experts, shape),
        arrival=np.cumsum(np.round(8 * gaps) / 8 if grid else gaps, axis=1),
        prompt=rng.integers(1, 40, shape),
        answer=rng.integers(1, int(rng.choice([2, 25])), shape),
    )


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """Return random cases of a few sub-environments."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    envs, count = draw(st.integers(1, 3)), draw(st.integers(1, 40))
    return make_case(rng, envs, count, draw(st.booleans()))


def play(case: Case, check: Check | None = None, tick: float | None = None) -> Ledger:
    """Send every request and drain the experts.

    Args:
        case: The experts and requests.
        check: Called whenever time has passed.
        tick: Seconds at a time; None for as much as possible at once.
    """
    envs, count = case.shape
    bank, ledger, now = case.bank(), Ledger.empty(case.shape), np.zeros(envs)

    def move(until: Floats) -> None:
        ledger.write(bank.advance(until), case)
        if check:
            check(bank, until, ledger)

    for k in range(count):
        while tick and (now + tick < case.arrival[:, k]).any():
            now = np.minimum(now + tick, case.arrival[:, k])
            move(now)
        now = case.arrival[:, k]
        move(now)
        ledger.accepted[:, k] = case.send(bank, k)
    while tick and (bank.running + bank.waiting).any():
        now = now + tick
        move(now)
    move(np.full(envs, np.inf))
    return ledger
