"""Continuous batching: schedules worked by hand, the value of a request, and what is refused."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from tiny_batching import Case, cases, make_case

from icl_optimizer.environments.base import Floats, Ints
from icl_optimizer.environments.batching import ExpertBank, Finished, StepCosts
from icl_optimizer.errors import ConfigurationError

# --- by hand

# an iteration lasts 1 + D/8 + C/4, and 2 + P/2 more if it prefills: exact in binary
COSTS = StepCosts(
    base_s=1.0,
    per_prompt_token_s=0.5,
    per_cached_token_s=0.25,
    per_sequence_s=0.125,
    prefill_s=2.0,
)
A, B, C = (4, 3), (2, 2), (3, 1)


def serve(*requests: tuple[float, tuple[int, int]], **rules: Any) -> tuple[Finished, ExpertBank]:
    """Send (arrival, (prompt, answer)) to one expert, in order; return who left."""
    rules = {"max_running": 8, "queue_size": 8, "items": 8, "kv": 100} | rules
    bank = ExpertBank(1, [COSTS], [rules.pop("kv")], **rules)
    parts = []
    for k, (arrival, (prompt, answer)) in enumerate(requests):
        parts.append(bank.advance(np.array([arrival])))
        sent = (np.array([x]) for x in (0, k, arrival, prompt, answer))
        assert bank.assign(*sent)[0]
    parts.append(bank.advance(np.array([np.inf])))
    columns = zip(*(vars(part).values() for part in parts), strict=True)
    return Finished(*(np.concatenate(column) for column in columns)), bank


def test_one_request_by_hand() -> None:
    done, bank = serve((1.0, A))
    # prefill: 1 + 4/2 + 2 = 5, to 6, the first token; then with 4 + 1 tokens cached
    # 1 + 1/8 + 5/4 = 2.375, to 8.375; with 6: 1 + 1/8 + 6/4 = 2.625, to 11
    assert (done.first_token_s.tolist(), done.finish_s.tolist()) == ([6.0], [11.0])
    assert done.gpu_s.tolist() == bank.busy_s[0].tolist() == [10.0]


def test_two_requests_by_hand() -> None:
    done, bank = serve((1.0, A), (6.5, B))
    # B comes during A's second iteration, 6 to 8.375, and waits for its end; the next one gives
    # A its third token (6 cached) and prefills B's 2: 1 + 1/8 + 6/4 + 2/2 + 2 = 5.625, to 14;
    # then B alone with 2 + 1 cached: 1 + 1/8 + 3/4 = 1.875, to 15.875
    assert done.item.tolist() == [0, 1]
    assert done.first_token_s.tolist() == [6.0, 14.0]
    assert done.finish_s.tolist() == [14.0, 15.875]
    # they share the iteration of 5.625
    assert done.gpu_s.tolist() == [5 + 2.375 + 5.625 / 2, 5.625 / 2 + 1.875]
    assert bank.busy_s.tolist() == [[14.875]]


# A and B reserve 7 + 4 = 11 tokens, C needs 4 more: beyond 12, within 100
@pytest.mark.parametrize("rules", [{"kv": 12}, {"max_running": 2}])
def test_three_requests_by_hand(rules: dict[str, int]) -> None:
    done, bank = serve((0.0, A), (0.0, B), (0.0, C), **rules)
    # A and B are prefilled together: 1 + 6/2 + 2 = 6; both decode with 5 + 3 cached:
    # 1 + 2/8 + 8/4 = 3.25, to 9.25, where B leaves and C gets in; A decodes with 6 cached while
    # C's 3 are prefilled: 1 + 1/8 + 6/4 + 3/2 + 2 = 6.125, to 15.375, where both leave
    assert done.item.tolist() == [1, 0, 2]
    assert done.first_token_s.tolist() == [6.0, 6.0, 15.375]
    assert done.finish_s.tolist() == [9.25, 15.375, 15.375]
    assert done.gpu_s.tolist() == [3 + 1.625, 3 + 1.625 + 3.0625, 3.0625]
    assert bank.busy_s.tolist() == [[15.375]]


def test_chunks_by_hand() -> None:
    done, bank = serve((0.0, (6, 2)), (0.0, (3, 2)), chunk_tokens=4)
    # 4 of the first: 1 + 4/2 + 2 = 5; its other 2 and 2 of the second: 5, to 10; the first decodes
    # with 7 cached beside the last 1 of the second: 1 + 1/8 + 7/4 + 1/2 + 2 = 5.375, to 15.375;
    # the second decodes with 4 cached: 1 + 1/8 + 4/4 = 2.125, to 17.5
    assert done.first_token_s.tolist() == [10.0, 15.375]
    assert done.finish_s.tolist() == [15.375, 17.5]
    # the second takes no part in the first iteration
    assert done.gpu_s.tolist() == [5 + 2.5 + 2.6875, 2.5 + 2.6875 + 2.125]
    assert bank.busy_s.tolist() == [[17.5]]


def one(*values: float) -> list[Any]:
    """Return each value as the array of one sub-environment."""
    return [np.array([value]) for value in values]


def test_who_arrives_with_the_end_of_an_iteration_is_in_the_next() -> None:
    bank = ExpertBank(1, [COSTS], [100], max_running=8, queue_size=1, items=4)
    bank.assign(*one(0, 0, 1.0, *A))
    # the queue of one is full until the first iteration has begun
    assert not bank.assign(*one(0, 1, 1.0, *B))[0]
    assert len(bank.advance(np.array([6.0]))) == 0
    assert (bank.running[0, 0], bank.busy_s[0, 0], bank.generated[0, 0]) == (1, 5.0, 1)
    assert bank.assign(*one(0, 1, 6.0, *B))[0]
    assert (bank.waiting_items[0, 0].tolist(), bank.kv_used[0, 0]) == ([1], 7)
    bank.advance(np.array([6.01]))
    assert (bank.running_items[0, 0, :3].tolist(), bank.kv_used[0, 0]) == ([0, 1, -1], 11)
    # A decodes with 5 cached while B's 2 are prefilled: 1 + 1/8 + 5/4 + 2/2 + 2 = 5.375
    bank.advance(np.array([11.375]))
    assert bank.generated[0].tolist() == [2, 1, 0, 0]


def test_what_is_not_accepted_changes_nothing() -> None:
    bank = ExpertBank(2, [COSTS], [6], max_running=8, queue_size=8, items=4)
    now, item, expert = np.zeros(2), np.array([0, 0]), np.array([-1, 0])
    # sent nowhere; 4 + 3 tokens do not fit into 6
    accepted = bank.assign(expert, item, now, np.array([4, 4]), np.array([2, 3]))
    assert accepted.tolist() == [False, False]
    assert (bank.waiting == 0).all()
    assert len(bank.advance(np.full(2, np.inf))) == 0
    assert bank.assign(np.zeros(2, int), item, now, np.array([4, 4]), np.array([2, 2])).all()


# --- the value of a request


def served_well(bank: ExpertBank, worth: Floats, answer: Ints, bound_s: float) -> Floats:
    """Return the worth of all who are still to finish below the bound, ``(E, N)``."""
    value = np.zeros(bank.running.shape)
    done = bank.advance(np.full(len(value), np.inf))
    well = (done.finish_s - done.arrival_s) / answer[done.env, done.item] < bound_s
    np.add.at(value, (done.env, done.expert), worth[done.env, done.item] * well)
    return value


@settings(max_examples=40, deadline=None)
@given(case=cases())
def test_value_is_that_of_two_copies_run_to_the_end(case: Case) -> None:
    (envs, count), experts = case.shape, len(case.costs)
    rng = np.random.default_rng(0)
    worth, own = rng.random((envs, count)), rng.random((envs, count, experts))
    bank = case.bank()
    for k in range(count):
        bank.advance(case.arrival[:, k])
        request = (case.arrival[:, k], case.prompt[:, k], case.answer[:, k])
        bound = float(rng.choice([0.02, 0.1, 0.3, 1.0]))
        before = state(bank)
        value = bank.value_if(*request, worth, own[:, k], bound)
        assert state(bank) == before
        without = served_well(copy.deepcopy(bank), worth, case.answer, bound)
        for j in range(experts):
            joined, mine = copy.deepcopy(bank), worth.copy()
            mine[:, k] = own[:, k, j]
            joined.assign(np.full(envs, j), np.full(envs, k), *request)
            with_it = served_well(joined, mine, case.answer, bound)
            np.testing.assert_allclose(value[:, j], (with_it - without)[:, j], atol=1e-12)
        case.send(bank, k)


def test_value_by_hand() -> None:
    """The second of two requests makes the first late, and is late itself (see above)."""
    bank = ExpertBank(1, [COSTS] * 2, [100, 100], max_running=8, queue_size=8, items=2)
    worth, own = np.array([[0.75, 9.0]]), np.array([[0.5, 0.25]])

    def value(bound_s: float) -> list[float]:
        return bank.value_if(*one(6.5, *B), worth, own, bound_s)[0].tolist()

    bank.assign(*one(0, 0, 1.0, *A))
    bank.advance(np.array([6.5]))
    # A takes 10/3 s per token alone, 13/3 with B; B takes 9.375/2 there; alone at the other expert
    # 1 + 2/2 + 2 = 4, then 1.875: 5.875/2
    assert value(2.9) == [0.0, 0.0]
    assert value(3.0) == [0.0, 0.25]
    assert value(10 / 3) == [0.0, 0.25]
    assert value(4.0) == [-0.75, 0.25]
    # at the bound is late
    assert value(13 / 3) == [-0.75, 0.25]
    assert value(4.5) == [0.0, 0.25]
    assert value(4.7) == [0.5, 0.25]


def state(bank: ExpertBank) -> list[Any]:
    names = ("running", "waiting", "kv_used", "busy_s", "running_items", "waiting_items")
    return [getattr(bank, name).tolist() for name in (*names, "generated")]


# --- what it refuses


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"base_s": 0.0}, "base_s is 0; allowed: above 0"),
        ({"base_s": np.inf}, "base_s is inf; allowed: seconds"),
        ({"per_prompt_token_s": -1e-5}, "per_prompt_token_s is -1e-05; allowed: seconds, at least"),
        ({"per_cached_token_s": np.nan}, "per_cached_token_s is nan"),
        ({"per_sequence_s": -1.0}, r"per_sequence_s is -1\.0"),
        ({"prefill_s": -1.0}, r"prefill_s is -1\.0"),
    ],
)
def test_bad_costs_are_refused(arguments: dict[str, float], message: str) -> None:
    good = {"base_s": 0.1, "per_prompt_token_s": 0.0, "per_cached_token_s": 0.0}
    with pytest.raises(ConfigurationError, match=message):
        StepCosts(**(good | arguments))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_envs": 0}, "num_envs is 0; allowed: at least 1"),
        ({"costs": [], "kv_tokens": []}, "costs is empty; allowed: one StepCosts per expert"),
        ({"kv_tokens": [50]}, r"kv_tokens is \[50\]; allowed: .* each of the 2 experts"),
        ({"kv_tokens": [50, 0]}, r"kv_tokens is \[50, 0\]; allowed: .*, at least 1"),
        ({"kv_tokens": [50.5, 9.0]}, r"kv_tokens is \[50\.5, 9\.0\]; allowed: a whole number"),
        ({"max_running": 0}, "max_running is 0; allowed: at least 1"),
        ({"queue_size": 0}, "queue_size is 0; allowed: at least 1"),
        ({"items": 0}, "items is 0; allowed: at least 1"),
        ({"chunk_tokens": 0}, "chunk_tokens is 0; allowed: at least 1"),
    ],
)
def test_bad_experts_are_refused(arguments: dict[str, Any], message: str) -> None:
    good = {"num_envs": 2, "costs": [COSTS, COSTS], "kv_tokens": [50, 50]}
    rules = {"max_running": 4, "queue_size": 4, "items": 5}
    with pytest.raises(ConfigurationError, match=message):
        ExpertBank(**(good | rules | arguments))


def busy_bank() -> ExpertBank:
    """Return two sub-environments at 2 s, each with a request in its first iteration, to 5 s."""
    bank = ExpertBank(2, [COSTS, COSTS], [50, 50], max_running=4, queue_size=4, items=5)
    zeros = np.zeros(2, dtype=np.int64)
    bank.assign(zeros, zeros, np.zeros(2), np.array([4, 4]), np.array([3, 3]))
    bank.advance(np.full(2, 2.0))
    return bank


GOOD: dict[str, list[Any]] = {
    "expert": [0, 1],
    "item": [1, 1],
    "now": [2.5, 2.5],
    "prompt": [4, 4],
    "answer": [3, 3],
}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"expert": [0, 2]}, r"expert is 2 in sub-environment 1; allowed: -1 \(none\) to 1"),
        ({"expert": [-2, 0]}, "expert is -2 in sub-environment 0"),
        ({"item": [1, 5]}, "item is 5 in sub-environment 1; allowed: 0 to 4"),
        ({"item": [-1, 1]}, "item is -1"),
        ({"item": [0, 1]}, "item is 0 in .* 0; allowed: a request that was not accepted before"),
        ({"prompt": [0, 4]}, "prompt is 0 in sub-environment 0; allowed: at least 1 token"),
        ({"answer": [3, -1]}, "answer is -1 in sub-environment 1; allowed: at least 1 token"),
        ({"now": [np.nan, 2.5]}, "now is nan in sub-environment 0; allowed: finite seconds"),
        ({"now": [2.5, np.inf]}, "now is inf in sub-environment 1"),
        ({"now": [1.5, 2.5]}, r"now is 1\.5 .* allowed: finite seconds, not before 2, the time"),
        ({"now": [2.5, 5.0]}, r"now is 5\.0 .* allowed: a time to which advance\(\) has been"),
        ({"expert": [0]}, r"expert is an array of int64 with shape \(1,\); allowed: int64, \(2,\)"),
        ({"prompt": [4.0, 4.0]}, "prompt is an array of float64 .*; allowed: int64"),
        ({"now": [3, 3]}, "now is an array of int64 .*; allowed: float64"),
    ],
)
def test_bad_requests_change_nothing(arguments: dict[str, Any], message: str) -> None:
    bank = busy_bank()
    before = state(bank)
    bad = {name: np.array(values) for name, values in (GOOD | arguments).items()}
    with pytest.raises(ConfigurationError, match=message):
        bank.assign(**bad)
    assert state(bank) == before
    assert bank.assign(**{name: np.array(values) for name, values in GOOD.items()}).all()


def test_who_is_sent_nowhere_is_not_looked_at() -> None:
    bank = busy_bank()
    accepted = bank.assign(*(np.array(x) for x in ([-1, 1], [0, 1], [9.9, 2.5], [0, 4], [0, 3])))
    assert accepted.tolist() == [False, True]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"now": [2.5, 7.0]}, r"now is 7\.0 in sub-environment 1; allowed: a time to which"),
        ({"prompt": [0, 4]}, "prompt is 0 in sub-environment 0"),
        ({"worth": np.ones((2, 4))}, r"worth is an array .* \(2, 4\); allowed: float64, \(2, 5\)"),
        ({"own_worth": np.ones(2)}, r"own_worth is an array .* allowed: float64, \(2, 2\)"),
        ({"bound_s": np.nan}, "bound_s is nan; allowed: seconds, above 0"),
    ],
)
def test_value_of_nothing_is_refused(arguments: dict[str, Any], message: str) -> None:
    good = {name: GOOD[name] for name in ("now", "prompt", "answer")}
    rest = {"worth": np.ones((2, 5)), "own_worth": np.ones((2, 2)), "bound_s": 0.5}
    values = {
        name: value if name == "bound_s" else np.array(value)
        for name, value in (good | rest | arguments).items()
    }
    with pytest.raises(ConfigurationError, match=message):
        busy_bank().value_if(**values)


@pytest.mark.parametrize(
    ("until", "message"),
    [
        ([1.0, np.nan], "until is nan in sub-environment 1; allowed: seconds, inf to the end"),
        ([1.0], r"until is an array of float64 with shape \(1,\); allowed: float64, \(2,\)"),
    ],
)
def test_bad_times_are_refused(until: list[float], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        busy_bank().advance(np.array(until))


def test_memory_of_a_long_drain_is_enough() -> None:
    """Every request of the episode leaves in one call."""
    case = make_case(np.random.default_rng(2), 2, 40)
    case.kv_tokens, case.expert = [4000] * len(case.costs), np.zeros((2, 40), dtype=np.int64)
    case.arrival = np.zeros((2, 40))
    case.rules = {"max_running": 40, "queue_size": 40}
    bank = case.bank()
    for k in range(40):
        assert case.send(bank, k).all()
    assert len(bank.advance(np.full(2, np.inf))) == 80


def test_after_the_end_time_goes_on() -> None:
    bank = busy_bank()
    finish = bank.advance(np.full(2, np.inf)).finish_s
    good = {name: np.array(values) for name, values in GOOD.items()}
    with pytest.raises(ConfigurationError, match=f"now is .*not before {finish[0]:g}"):
        bank.assign(**(good | {"now": np.nextafter(finish, 0.0)}))
    assert bank.assign(**(good | {"now": finish})).all()


def test_no_iteration_ends_early_by_rounding() -> None:
    """What has ended just before the end of an iteration ended by then, to the last digit."""
    rng, envs = np.random.default_rng(0), 2000
    many = rng.integers(1, 200, envs)
    for _ in range(5):
        base, cached = float(rng.uniform(0.01, 0.02)), float(rng.uniform(1e-7, 1e-4))
        costs = StepCosts(base, 0.0, cached)
        bank = ExpertBank(envs, [costs], [1000], max_running=1, queue_size=1, items=1)
        zeros = np.zeros(envs, dtype=np.int64)
        bank.assign(zeros, zeros, np.zeros(envs), np.full(envs, 30), np.full(envs, 300))
        # the first token after base, then many more, the first of them with 31 tokens cached
        end = base + (many * (base + cached * 31) + cached * (many * (many - 1) / 2))
        until = np.nextafter(end, 0.0)
        bank.advance(until)
        # at work since time 0, so this is when the last iteration ended
        assert (bank.busy_s[:, 0] <= until).all()
        bank.advance(end * (1 + 1e-12))
        np.testing.assert_array_equal(bank.generated[:, 0], many + 1)
