"""Bounds and schedules in hindsight against enumeration of every assignment."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from icl_optimizer.baselines.hindsight import (
    Instance,
    clairvoyant_greedy,
    hindsight_bound,
    improved,
    paper_optimum,
    relaxed_bound,
    simulate,
)
from icl_optimizer.baselines.hindsight.search import server_score
from icl_optimizer.errors import ConfigurationError

SOLVER = 1e-6
"""What the solver's tolerances may lose."""


def instance(
    arrival: list[float],
    service: list[list[float]],
    score: list[list[float]],
    deadline: float = 10.0,
    capacity: tuple[int, ...] = (10, 10),
    slots: tuple[int, ...] = (1, 1),
) -> Instance:
    return Instance(
        np.array(arrival),
        np.array(service),
        np.array(score),
        np.full(len(arrival), deadline),
        np.array(capacity),
        np.array(slots),
    )


def random_instance(
    seed: int, n: int = 5, m: int = 2, *, grid: float | None = None, equal: bool = False
) -> Instance:
    """Return a crowded instance; with ``grid``, all times are multiples of it."""
    rng = np.random.default_rng(seed)

    def times(low: float, high: float, shape: tuple[int, ...]) -> Any:
        values = rng.uniform(low, high, shape)
        return values if grid is None else np.maximum(1, np.round(values / grid)) * grid

    capacity = rng.integers(1, 4, m)
    return Instance(
        np.sort(times(0, 4, (n,))),
        times(0.3, 4, (n, m)),
        rng.uniform(0, 1, (n, m)) * (rng.random((n, m)) < 0.9),
        np.repeat(times(2, 6, (1,)), n) if equal else times(1, 6, (n,)),
        capacity,
        np.ones(m, dtype=int) if equal else np.minimum(capacity, rng.integers(1, 3, m)),
    )


def optimum(known: Instance) -> float:
    """Return the best total score of any assignment, drops included."""
    options = product(range(-1, known.servers), repeat=known.requests)
    return max(simulate(known, np.array(option)).total_score for option in options)


# Server 0 serves a for 4 s, then b for 4 s; c finds two in the system and is dropped.
HAND = instance(
    [0.0, 1.0, 2.0, 4.0],
    [[4.0, 9.0], [4.0, 2.0], [1.0, 7.0], [1.0, 1.0]],
    [[0.5, 0.9], [0.5, 0.2], [0.5, 0.9], [0.4, 0.3]],
    deadline=6.0,
    capacity=(2, 1),
)


def test_the_simulation_by_hand() -> None:
    seen = simulate(HAND, np.array([0, 0, 0, 0]))
    # a: 0 + 4; b: 4 + 4 = 8 > 1 + 6, late; c: dropped; at 4 a has just left: d: 8 + 1, by 4 + 6
    np.testing.assert_array_equal(seen.finish_s, [4.0, 8.0, np.nan, 9.0])
    assert seen.in_time.tolist() == [True, False, False, True]
    assert (seen.total_score, seen.deadlines_met) == (pytest.approx(0.9), 2)
    # without b, c is taken in (4 + 1 by 2 + 6) and d still waits for it (5 + 1)
    seen = simulate(HAND, np.array([0, -1, 0, 0]))
    np.testing.assert_array_equal(seen.finish_s, [4.0, np.nan, 5.0, 6.0])
    assert seen.total_score == pytest.approx(1.4)


def test_bounds_and_schedules_by_hand() -> None:
    # b on server 1, which needs 2 s, makes it 1.6: everybody in time
    assert optimum(HAND) == pytest.approx(1.6)
    found = hindsight_bound(HAND, resolution_s=1.0)
    assert found.status == "optimal"
    assert found.bound == pytest.approx(1.6, abs=2e-3)
    assert found.assignment.tolist() == [0, 1, 0, 0]
    assert improved(HAND, 50).total_score == pytest.approx(1.6)
    # the greedy one: a on 0 (alone in time); b on 1 (on 0 it would be late); c on 0; d on 0
    assert clairvoyant_greedy(HAND).assignment.tolist() == [0, 1, 0, 0]


def test_two_slots_serve_two_at_a_time() -> None:
    known = instance(
        [0.0, 0.0, 1.0, 1.5], [[3.0], [2.0], [1.0], [1.0]], [[1.0]] * 4, 10.0, (3,), (2,)
    )
    # 0 and 1 start at once, 2 waits for the slot that is free at 2, 3 finds three in the system
    np.testing.assert_array_equal(simulate(known, np.zeros(4, int)).finish_s, [3, 2, 3, np.nan])


def test_a_hopeless_request_goes_where_it_hurts_least() -> None:
    service = [[5.0, 5.0], [3.0, 3.0], [9.0, 9.0], [9.0, 9.0]]
    known = instance([0.0] * 4, service, [[0.5, 0.4], [0.4, 0.5]] + [[1.0, 1.0]] * 2, 5.0)
    # the last two take 9 s, more than the deadline: first to the longer backlog, 5 s, not 3
    assert clairvoyant_greedy(known).assignment.tolist() == [0, 1, 0, 0]
    full = replace(known, capacity=np.array([10, 1]))
    # where a full server drops them
    assert clairvoyant_greedy(full).assignment.tolist() == [0, 1, 1, 1]


@settings(max_examples=25, deadline=None, derandomize=True)
@given(st.integers(0, 10**6), st.sampled_from([0.07, 0.5, 1.0, 3.0]), st.booleans())
@example(1068, 0.1, False)  # the presolve of HiGHS 1.12 may cut off the optimum of this one
def test_no_assignment_beats_a_bound(seed: int, resolution_s: float, round_times: bool) -> None:
    known = random_instance(seed, grid=0.5 if round_times else None)
    best = optimum(known)
    found = hindsight_bound(known, resolution_s=resolution_s)
    assert found.status == "optimal"
    assert found.value <= found.bound + SOLVER
    assert best <= found.bound + SOLVER
    assert found.bound <= relaxed_bound(known, resolution_s=resolution_s) + 1e-3
    assert clairvoyant_greedy(known).total_score <= best + SOLVER
    assert improved(known, 20).total_score <= best + SOLVER


@pytest.mark.parametrize("seed", range(5))
def test_the_bound_comes_down_to_the_optimum(seed: int) -> None:
    """First come, first served costs nothing: one slot, equal deadlines, room in the queue."""
    roomy = np.array([6, 6])
    known = replace(random_instance(seed, n=6, grid=0.5, equal=True), capacity=roomy)
    best = pytest.approx(optimum(known), abs=1e-4)
    assert hindsight_bound(known, resolution_s=0.5, gap=1e-6).bound == best
    known = replace(random_instance(seed, equal=True), capacity=roomy)
    best = pytest.approx(optimum(known), rel=2e-3)
    assert hindsight_bound(known, resolution_s=0.1).bound == best


def test_rounding_loses_no_start() -> None:
    """The second may start at 3 at the latest, which comes out as 2.9999999999999996."""
    known = instance([0.0, 0.3], [[3.0], [1.1]], [[1.0], [1.0]], 3.8, (2,), (1,))
    assert 0.3 + (3.8 - 1.1) < 3
    assert optimum(known) == 2.0
    assert hindsight_bound(known, resolution_s=1.0).bound >= 2.0 - SOLVER


def test_the_bound_does_not_know_the_order_of_the_queue() -> None:
    """Serving the short one first would leave its place to the third."""
    known = instance([0.0, 0.0, 2.0], [[4.0], [1.0], [1.0]], [[1.0]] * 3, 10.0, (2,), (1,))
    assert optimum(known) == pytest.approx(2.0)
    assert hindsight_bound(known).bound == pytest.approx(3.0, abs=4e-3)


def test_the_bound_knows_that_servers_are_busy_and_full() -> None:
    """Without the row in question each of these bounds would be higher."""
    service, score = [[2.0]] * 4, [[1.0]] * 4
    crowd = instance([0.0] * 4, service, score, 4.5, (4,), (1,))
    # two of 2 s fit into 4.5 s
    assert hindsight_bound(crowd, resolution_s=0.5).bound == pytest.approx(2.0, abs=3e-3)
    assert hindsight_bound(
        replace(crowd, slots=np.array([2])), resolution_s=0.5
    ).bound == pytest.approx(4.0, abs=5e-3)
    # patient requests, but only one or three may be there
    for capacity, slots in ((1, 1), (3, 1), (3, 2)):
        full = instance([0.0] * 4, service, score, 100.0, (capacity,), (slots,))
        assert hindsight_bound(full, resolution_s=0.5).bound == pytest.approx(capacity, abs=5e-3)
    # steps of 3 s see no work in any single request, the windows do: 24 s are left for 50 times 2 s
    coarse = instance([0.0] * 50, [[2.0]] * 50, [[1.0]] * 50, 24.0, (50,), (1,))
    assert relaxed_bound(coarse, resolution_s=3.0) < 16


def test_local_search_finds_the_optimum_of_small_instances() -> None:
    for seed in range(6):
        known = random_instance(seed)
        assert improved(known, 300).total_score == pytest.approx(optimum(known))


def crowded(n: int, seed: int = 0) -> Instance:
    rng = np.random.default_rng(seed)
    return Instance(
        np.sort(rng.uniform(0, n / 3, n)),
        rng.lognormal(1.0, 0.5, (n, 3)),
        rng.uniform(0.1, 0.4, (n, 3)),
        np.full(n, 10.0),
        np.array([3, 4, 10]),
        np.array([1, 2, 1]),
    )


def test_local_search_repeats_and_never_loses() -> None:
    known = crowded(60)
    greedy, first = clairvoyant_greedy(known), improved(known, 30, seed=3)
    assert np.array_equal(first.assignment, improved(known, 30, seed=3).assignment)
    assert first.total_score > greedy.total_score * 1.1
    again = improved(known, 1, start=first.assignment)
    assert again.total_score >= first.total_score
    assert relaxed_bound(known) >= again.total_score
    # what is not in time was dropped
    assert np.array_equal(first.assignment >= 0, first.in_time)


def test_the_compiled_queue_is_the_simulated_one() -> None:
    known = crowded(200, seed=1)
    for seed in range(5):
        assignment = np.random.default_rng(seed).integers(-1, 3, known.requests)
        seen = simulate(known, assignment)
        arrays = (known.arrival_s, known.service_s, known.score, known.deadline_s, assignment)
        for j, (capacity, slots) in enumerate(zip(known.capacity, known.slots, strict=True)):
            total = server_score(j, *arrays, np.empty(slots), np.empty(capacity))
            assert total == pytest.approx(seen.scores[assignment == j].sum())


def test_capacity_holds_and_slots_are_kept_busy_in_order() -> None:
    known = crowded(200)
    seen = simulate(known, np.random.default_rng(0).integers(-1, 3, known.requests))
    assert np.isnan(seen.finish_s[seen.assignment >= 0]).any()
    for j in range(known.servers):
        served = np.flatnonzero((seen.assignment == j) & ~np.isnan(seen.finish_s))
        begin, end = known.arrival_s[served], seen.finish_s[served]
        start = end - known.service_s[served, j]
        present = (begin[:, None] <= begin) & (begin < end[:, None])
        assert present.sum(axis=0).max() <= known.capacity[j]
        assert (np.diff(start) >= -1e-9).all()
        running = (start[:, None] <= start + 1e-9) & (start + 1e-9 < end[:, None])
        assert running.sum(axis=0).max() <= known.slots[j]


@pytest.mark.parametrize("seed", range(6))
def test_the_papers_problem_against_enumeration(seed: int) -> None:
    known = replace(random_instance(seed, n=4), capacity=np.array([2, 3]), slots=np.array([1, 1]))
    best = -np.inf
    for option in map(np.array, product(range(2), repeat=4)):
        taken = known.service_s[np.arange(4), option]
        if (np.bincount(option, minlength=2) <= known.capacity).all() and (
            taken <= known.deadline_s
        ).all():
            best = max(best, known.score[np.arange(4), option].sum())
    found = paper_optimum(known, sigma=2.0)
    assert found.status == ("infeasible" if best == -np.inf else "optimal")
    if found.assignment is not None:
        assert found.objective == pytest.approx(best)
        chosen = known.score[np.arange(4), found.assignment].sum()
        assert chosen == pytest.approx(best)
        assert found.gap == pytest.approx(0.0, abs=1e-4)


def test_why_the_papers_problem_is_infeasible() -> None:
    many = instance([0.0] * 5, [[1.0, 1.0]] * 5, [[1.0, 1.0]] * 5, capacity=(2, 2))
    assert paper_optimum(many).status == "infeasible"
    assert "5 requests, but the capacities of all servers sum to 4" in paper_optimum(many).reason
    slow = instance([0.0, 1.0], [[1.0, 1.0], [11.0, 12.0]], [[1.0, 1.0]] * 2)
    assert "request 1 would be late on every server" in paper_optimum(slow).reason
    picky = instance([0.0] * 3, [[1.0, 11.0]] * 3, [[1.0, 1.0]] * 3, capacity=(2, 2))
    assert "too little capacity" in paper_optimum(picky).reason
    assert paper_optimum(picky).assignment is None


def test_the_paper_lets_nobody_wait() -> None:
    """So its optimum is above what the system can score."""
    known = instance([0.0] * 4, [[6.0, 6.0]] * 4, [[1.0, 0.5]] * 4)
    assert paper_optimum(known).objective == pytest.approx(4.0)
    assert optimum(known) == pytest.approx(1.5)


def test_nothing_to_serve() -> None:
    one, none = np.array([1, 1]), np.empty((0, 2))
    for known in (
        Instance(np.empty(0), none, none, np.empty(0), one, one),
        instance([0.0], [[11.0, 12.0]], [[1.0, 1.0]]),
        instance([0.0], [[1.0, 1.0]], [[0.0, 0.0]]),
    ):
        assert hindsight_bound(known).bound == relaxed_bound(known) == 0
        assert improved(known, 5).total_score == 0
        assert clairvoyant_greedy(known).total_score == 0


def test_one_start_that_nothing_limits() -> None:
    known = instance([0.0], [[1.0, 20.0]], [[0.7, 1.0]], deadline=1.0)
    assert hindsight_bound(known).bound == pytest.approx(0.7)
    assert relaxed_bound(known) == pytest.approx(0.7)


def test_the_bound_holds_when_the_time_limit_cuts_it() -> None:
    known = crowded(60)
    cut = hindsight_bound(known, resolution_s=0.25, time_limit_s=1e-6)
    assert cut.status == "time limit"
    assert improved(known, 50).total_score <= cut.bound <= known.score_limit
    assert cut.gap == pytest.approx((cut.bound - cut.value) / cut.bound)


GOOD = instance([0.0, 1.0], [[1.0, 2.0], [1.0, 2.0]], [[0.1, 0.2], [0.1, 0.2]])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"arrival_s": [1.0, 0.0]}, r"arrival_s\[1\] is 0.0; allowed: times in order"),
        ({"arrival_s": [0.0, np.nan]}, r"arrival_s\[1\] is nan; allowed: finite"),
        ({"service_s": [[1.0, 2.0], [0.0, 1.0]]}, r"service_s\[1, 0\] is 0.0; allowed: .* above 0"),
        ({"service_s": [[1.0, 2.0]]}, r"service_s has shape \(1, 2\); allowed: \(2, 2\)"),
        ({"score": [[0.1, -1.0], [0.1, 0.2]]}, r"score\[0, 1\] is -1.0; allowed: numbers from 0"),
        ({"deadline_s": [1.0, 0.0]}, r"deadline_s\[1\] is 0.0"),
        ({"deadline_s": [1.0]}, r"deadline_s has shape \(1,\); allowed: \(2,\)"),
        ({"capacity": [0, 1]}, r"capacity\[0\] is 0; allowed: whole numbers from 1"),
        ({"capacity": [1.5, 1.0]}, r"capacity is of type float64; allowed: whole numbers"),
        ({"capacity": []}, "capacity is empty"),
        ({"slots": [1, 11]}, r"slots\[1\] is 11; allowed: .* 1 to the server's capacity"),
    ],
)
def test_errors_name_field_value_and_what_is_allowed(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        replace(GOOD, **{name: np.array(values) for name, values in change.items()})


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: simulate(GOOD, np.array([0, 2])), r"assignment\[1\] is 2; allowed: -1 .* to 1"),
        (lambda: simulate(GOOD, np.array([0])), r"assignment has shape \(1,\); allowed: \(2,\)"),
        (lambda: hindsight_bound(GOOD, resolution_s=0.0), "resolution_s is 0.0; allowed"),
        (lambda: hindsight_bound(GOOD, time_limit_s=-1.0), "time_limit_s is -1.0; allowed"),
        (lambda: hindsight_bound(GOOD, gap=0.0), "gap is 0.0; allowed"),
        (lambda: relaxed_bound(GOOD, resolution_s=np.inf), "resolution_s is inf; allowed"),
        (lambda: paper_optimum(GOOD, sigma=-1.0), "sigma is -1.0; allowed"),
        (lambda: improved(GOOD, 0), "rounds is 0; allowed: whole numbers from 1"),
    ],
)
def test_wrong_arguments(call: Callable[[], object], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        call()


def test_an_instance_cannot_be_changed() -> None:
    with pytest.raises(ValueError, match="read-only"):
        GOOD.score[0, 0] = 1.0
