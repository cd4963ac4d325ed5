"""Continuous batching: against a plain loop, and what must hold of every run."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from tiny_batching import Case, Ledger, cases, make_case, play

from icl_optimizer.environments.base import Floats
from icl_optimizer.environments.batching import ExpertBank, Finished, StepCosts
from icl_optimizer.environments.batching.reference import Iteration, PlainExpert, run_plain

fast = settings(max_examples=50, deadline=None)


# --- against the plain loop


@fast
@given(case=cases())
def test_the_bank_is_the_plain_loop(case: Case) -> None:
    ledger = play(case)
    for e in range(case.shape[0]):
        experts, requests = case.plain(), case.plain_requests(e)
        run_plain(experts, [r for r in requests if r.expert >= 0])
        assert ledger.accepted[e].tolist() == [r.accepted for r in requests]
        mine = np.stack([ledger.first_token[e], ledger.finish[e], ledger.gpu[e]], axis=1)
        nothing = (None, None, np.nan)
        theirs = [
            (r.first_token_s, r.finish_s, r.gpu_s) if r.accepted else nothing for r in requests
        ]
        np.testing.assert_allclose(mine, np.array(theirs, dtype=float), rtol=1e-9)


@pytest.mark.parametrize("chunk", [None, 256])
def test_a_long_episode_is_that_of_the_plain_loop(chunk: int | None) -> None:
    """The sizes of the real thing: near capacity, KV memory and batch both limit at times."""
    rng, shape = np.random.default_rng(5), (2, 600)
    case = Case(
        costs=[StepCosts(0.02, 7e-5, 3.4e-7, 2e-4, 2e-3)] * 3,
        kv_tokens=[9000, 20000, 60000],
        rules={"max_running": 12, "queue_size": 30, "chunk_tokens": chunk},
        expert=rng.integers(3, size=shape),
        arrival=np.cumsum(rng.exponential(1 / 4, shape), axis=1),
        prompt=rng.geometric(1 / 1150, shape),
        answer=rng.geometric(1 / 210, shape),
    )
    ledger = play(case)
    assert 0.7 < ledger.accepted.mean() < 1
    for e in range(2):
        experts, requests = case.plain(), case.plain_requests(e)
        run_plain(experts, requests)
        assert ledger.accepted[e].tolist() == [r.accepted for r in requests]
        theirs = [[r.first_token_s, r.finish_s, r.gpu_s] for r in requests if r.accepted]
        mine = np.stack([ledger.first_token[e], ledger.finish[e], ledger.gpu[e]], axis=1)
        np.testing.assert_allclose(mine[ledger.accepted[e]], np.array(theirs), rtol=1e-9)


@fast
@given(case=cases())
def test_what_is_seen_is_what_the_plain_loop_holds(case: Case) -> None:
    """At every arrival: who runs, who waits, tokens so far, memory and busy time."""
    envs, count = case.shape
    bank = case.bank()
    plain = [case.plain() for _ in range(envs)]
    requests = [case.plain_requests(e) for e in range(envs)]
    for k in range(count):
        bank.advance(case.arrival[:, k])
        for e, experts in enumerate(plain):
            number = {id(r): i for i, r in enumerate(requests[e])}
            for j, expert in enumerate(experts):
                expert.advance(requests[e][k].arrival_s)
                assert bank.running[e, j] == len(expert.running)
                assert bank.waiting[e, j] == len(expert.waiting)
                assert bank.kv_used[e, j] == expert.kv_used
                assert bank.busy_s[e, j] == pytest.approx(expert.busy_s, rel=1e-9)
                for items, own in (
                    (bank.running_items[e, j], expert.running),
                    (bank.waiting_items[e, j], list(expert.waiting)),
                ):
                    expected = [number[id(r)] for r in own]
                    assert items.tolist() == expected + [-1] * (len(items) - len(own))
            assert bank.generated[e].tolist() == [r.generated for r in requests[e]]
            if requests[e][k].expert >= 0:
                experts[requests[e][k].expert].submit(requests[e][k])
        case.send(bank, k)


# --- what must hold of every run


@fast
@given(case=cases())
def test_nobody_is_lost_or_finished_twice(case: Case) -> None:
    def check(bank: ExpertBank, now: Floats, ledger: Ledger) -> None:
        for e in range(case.shape[0]):
            there = [*bank.running_items[e].ravel(), *bank.waiting_items[e].ravel()]
            there = [item for item in there if item >= 0]
            assert len(there) == bank.running[e].sum() + bank.waiting[e].sum()
            left = np.flatnonzero(ledger.served[e]).tolist()
            assert sorted(there + left) == np.flatnonzero(ledger.accepted[e]).tolist()

    ledger = play(case, check)
    np.testing.assert_array_equal(ledger.served, ledger.accepted)


@settings(max_examples=25, deadline=None)
@given(case=cases())
def test_memory_batch_and_queue_are_never_exceeded(case: Case) -> None:
    """Looked at more often than the shortest iteration ends, so every iteration is seen."""
    kv, rules = np.array(case.kv_tokens), case.rules

    def check(bank: ExpertBank, now: Floats, ledger: Ledger) -> None:
        assert (bank.kv_used <= kv).all()
        assert (bank.running <= rules["max_running"]).all()
        assert (bank.waiting <= rules["queue_size"]).all()
        need = case.prompt + case.answer
        for e, j in np.ndindex(bank.running.shape):
            batch = bank.running_items[e, j, : bank.running[e, j]]
            assert bank.kv_used[e, j] == need[e, batch].sum()
            # the cache never holds more than was reserved for it
            assert (bank.generated[e, batch] < case.answer[e, batch]).all()

    play(case, check, tick=0.9 * min(cost.base_s for cost in case.costs))


@settings(max_examples=25, deadline=None)
@given(case=cases())
def test_admission_is_first_come_first_served(case: Case) -> None:
    def check(bank: ExpertBank, now: Floats, ledger: Ledger) -> None:
        for e, j in np.ndindex(bank.running.shape):
            batch = bank.running_items[e, j, : bank.running[e, j]].tolist()
            queue = bank.waiting_items[e, j, : bank.waiting[e, j]].tolist()
            assert batch + queue == sorted(batch + queue)
            # nobody overtook who still waits
            left = np.flatnonzero(ledger.served[e] & (case.expert[e] == j))
            assert not queue or not len(left) or left.max() < queue[0]
            # an expert with work is idle only between two iterations
            if queue and not batch and case.arrival[e, queue[0]] < now[e]:
                assert (ledger.finish[e, left] == now[e]).any()

    ledger = play(case, check, tick=0.9 * min(cost.base_s for cost in case.costs))
    for e, j in np.ndindex(case.shape[0], len(case.costs)):
        first = ledger.first_token[e, ledger.accepted[e] & (case.expert[e] == j)]
        assert (np.diff(first) >= 0).all()


@fast
@given(case=cases())
def test_an_expert_works_exactly_while_somebody_is_there(case: Case) -> None:
    bank = case.bank()
    ledger = Ledger.empty(case.shape)
    for k in range(case.shape[1]):
        ledger.write(bank.advance(case.arrival[:, k]), case)
        ledger.accepted[:, k] = case.send(bank, k)
    ledger.write(bank.advance(np.full(case.shape[0], np.inf)), case)
    for e, j in np.ndindex(bank.running.shape):
        own = ledger.accepted[e] & (case.expert[e] == j)
        present, end = 0.0, 0.0
        for arrival, finish in zip(case.arrival[e, own], ledger.finish[e, own], strict=True):
            present += max(finish - max(arrival, end), 0.0)
            end = max(end, finish)
        assert bank.busy_s[e, j] == pytest.approx(present, rel=1e-9)
        assert ledger.gpu[e, own].sum() == pytest.approx(bank.busy_s[e, j], rel=1e-9)
    assert (bank.kv_used == 0).all()
    assert (bank.running + bank.waiting == 0).all()


def test_busy_time_is_the_sum_of_the_iterations() -> None:
    case = make_case(np.random.default_rng(8), 1, 60)
    case.expert = np.maximum(case.expert, 0)
    spans: dict[int, list[float]] = {}

    def watch(expert: PlainExpert, it: Iteration) -> None:
        cached = sum(r.prompt + r.generated for r in it.decoding)
        prompt = sum(tokens for _, tokens in it.prefilling)
        lasts = expert.costs.seconds(len(it.decoding), cached, prompt)
        assert it.end_s - it.start_s == pytest.approx(lasts)
        spans.setdefault(id(expert), []).append(lasts)

    experts = case.plain()
    for expert in experts:
        expert.watch = watch
    run_plain(experts, case.plain_requests(0))
    bank = case.bank()
    for k in range(60):
        bank.advance(case.arrival[:, k])
        case.send(bank, k)
    bank.advance(np.array([np.inf]))
    expected = [sum(spans[id(expert)]) for expert in experts]
    np.testing.assert_allclose(bank.busy_s[0], expected, rtol=1e-9)


@settings(max_examples=25, deadline=None)
@given(case=cases())
def test_a_jump_is_one_iteration_after_another(case: Case) -> None:
    """Stopped more often than iterations end, the bank never jumps."""
    jumped = play(case)
    walked = play(case, tick=0.9 * min(cost.base_s for cost in case.costs))
    np.testing.assert_array_equal(jumped.accepted, walked.accepted)
    for name in ("first_token", "finish", "gpu"):
        np.testing.assert_allclose(getattr(jumped, name), getattr(walked, name), rtol=1e-9)


def state(bank: ExpertBank, rows: Any = slice(None)) -> list[Any]:
    names = ("running", "waiting", "kv_used", "busy_s", "running_items", "waiting_items")
    return [getattr(bank, name)[rows].tolist() for name in (*names, "generated")]


def departures(done: Finished, envs: Any) -> list[list[Any]]:
    """Return who left each of ``envs``, with all that is said of it."""
    rows = list(zip(*(values.tolist() for values in vars(done).values()), strict=True))
    return [[row[1:] for row in rows if row[0] == e] for e in envs]


@pytest.mark.parametrize("seed", range(6))
def test_a_batch_equals_singles(seed: int) -> None:
    case = make_case(np.random.default_rng(seed), 8, 60)
    batch, singles = case.bank(), [case.bank(1) for _ in range(8)]
    for k in range(61):
        now = case.arrival[:, k] if k < 60 else np.full(8, np.inf)
        done = batch.advance(now)
        accepted = case.send(batch, k) if k < 60 else None
        for e, single in enumerate(singles):
            assert departures(done, [e]) == departures(single.advance(now[e : e + 1]), [0])
            if accepted is not None:
                assert case.send(single, k, slice(e, e + 1)) == accepted[e]
            assert state(single) == state(batch, [e])


def test_the_same_seed_gives_the_same_run() -> None:
    runs = [play(make_case(np.random.default_rng(3), 4, 80)) for _ in range(2)]
    for name, values in vars(runs[0]).items():
        np.testing.assert_array_equal(values, vars(runs[1])[name])


def test_resetting_some_leaves_the_others_alone() -> None:
    kept, gone, cut = [0, 3], np.array([1, 2]), 30
    case = make_case(np.random.default_rng(11), 4, 60)
    case.rules = {"max_running": 4, "queue_size": 10}
    case.kv_tokens = [200] * len(case.costs)
    # two sub-environments begin anew at time 0, before the end of their former episode
    again = Case(**(vars(case) | {"arrival": case.arrival.copy()}))
    again.arrival[gone, cut:] -= again.arrival[gone, cut - 1, None]
    touched, control, fresh = case.bank(), case.bank(), case.bank(2)
    for k in range(60):
        if k == cut:
            assert (touched.running[gone].sum(axis=1) > 0).all()
            touched.reset(gone)
        done = touched.advance(again.arrival[:, k])
        expected = control.advance(case.arrival[:, k])
        assert departures(done, kept) == departures(expected, kept)
        if k >= cut:
            assert departures(done, gone) == departures(
                fresh.advance(again.arrival[gone, k]), [0, 1]
            )
            again.send(fresh, k, gone)
        again.send(touched, k)
        case.send(control, k)
        assert state(touched, kept) == state(control, kept)
        if k >= cut:
            assert state(touched, gone) == state(fresh)
