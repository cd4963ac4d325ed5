"""The queueing core: properties of every schedule, and a recount by brute force."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from icl_optimizer.environments.base import Floats, Ints
from icl_optimizer.environments.queues import (
    DROPPED,
    Finished,
    QueueBank,
)
from icl_optimizer.errors import ConfigurationError

# --- every schedule, recounted


@dataclass
class Request:
    """What one sub-environment's ledger knows of a request."""

    server: int
    arrival: float
    service: float
    amount: float
    accepted: bool
    start: float
    finish: float


@dataclass
class Play:
    """A scenario, and what became of it: a ledger and the departures of each sub-environment."""

    slots: list[int]
    capacity: list[int]
    bank: QueueBank
    ledger: list[list[Request]]
    left: list[list[int]]


@st.composite
def scenarios(draw: st.DrawFn) -> dict[str, Any]:
    """Return servers and requests ``(E, n)``; on a grid, much happens at the same time."""
    servers, envs = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    count = draw(st.integers(1, 40))
    slots = draw(st.lists(st.integers(1, 3), min_size=servers, max_size=servers))
    room = draw(st.lists(st.integers(0, 5), min_size=servers, max_size=servers))
    grid = draw(st.booleans())
    mean_gap = draw(st.sampled_from([0.1, 0.5, 2.0]))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    gap, service = rng.exponential(mean_gap, (envs, count)), rng.exponential(1.0, (envs, count))
    if grid:
        gap, service = np.round(2 * gap) / 2, np.round(2 * service) / 2
    return {
        "slots": slots,
        "capacity": [a + b for a, b in zip(slots, room, strict=True)],
        "server": rng.integers(servers, size=(envs, count)),
        "arrival": np.cumsum(gap, axis=1),
        "service": service,
        "amount": rng.integers(1, 2000, size=(envs, count)).astype(np.float64),
        "grid": grid,
    }


def build(case: dict[str, Any], envs: int | None = None) -> QueueBank:
    rows, count = case["server"].shape
    return QueueBank(envs or rows, case["slots"], case["capacity"], count, recent=3)


def send(bank: QueueBank, case: dict[str, Any], k: int, rows: Any = slice(None)) -> Any:
    """Assign the ``k``-th request everywhere."""
    item = np.full(bank.in_system.shape[0], k)
    columns = (case[name][rows, k] for name in ("server", "arrival", "service", "amount"))
    server, arrival, service, amount = columns
    return bank.assign(server, item, arrival, service, amount)


def play(case: dict[str, Any], check: Callable[[Play, Floats], None] | None = None) -> Play:
    """Send every request, calling ``check`` before each and at the end; return the ledger."""
    envs, count = case["server"].shape
    bank = build(case)
    ledger, left = ([[] for _ in range(envs)] for _ in range(2))
    game = Play(case["slots"], case["capacity"], bank, ledger, left)

    def move(until: Floats) -> None:
        done = bank.advance(until)
        keys = [(e, t) for e, t in zip(done.env, done.finish_s, strict=True)]
        assert keys == sorted(keys)
        for e, item, server, *times in zip(*vars(done).values(), strict=True):
            game.left[e].append(int(item))
            entry = game.ledger[e][item]
            assert (server, *times) == (entry.server, entry.arrival, entry.start, entry.finish)
            assert entry.finish <= until[e]
        if check:
            check(game, until)

    for k in range(count):
        move(case["arrival"][:, k])
        accepted = send(bank, case, k)
        start, finish = bank.times(np.full(envs, k))
        for e in range(envs):
            columns = (case[name][e, k] for name in ("server", "arrival", "service", "amount"))
            server, *others = columns
            game.ledger[e].append(
                Request(int(server), *others, bool(accepted[e]), start[e], finish[e])
            )
    move(case["arrival"][:, -1] + 1.0)
    move(np.full(envs, np.inf))
    return game


def holds(requests: list[Request], now: float) -> list[Request]:
    """Return who is at the servers just after ``now``."""
    return [r for r in requests if r.accepted and r.arrival <= now < r.finish]


fast = settings(max_examples=60, deadline=None)


@fast
@given(case=scenarios())
def test_everything_leaves_once_or_is_dropped(case: dict[str, Any]) -> None:
    def check(game: Play, now: Floats) -> None:
        for e, (requests, left) in enumerate(zip(game.ledger, game.left, strict=True)):
            there = {i for i, r in enumerate(requests) if r.accepted and r.finish > now[e]}
            dropped = {i for i, r in enumerate(requests) if not r.accepted}
            assert len(left) == len(set(left))
            parts = (set(left), there, dropped)
            assert set().union(*parts) == set(range(len(requests)))
            assert sum(map(len, parts)) == len(requests)

    game = play(case, check)
    assert (game.bank.in_system == 0).all()
    assert (game.bank.load == 0).all()


@fast
@given(case=scenarios())
def test_every_schedule_is_that_of_fifo_servers(case: dict[str, Any]) -> None:
    game = play(case)
    for requests in game.ledger:
        for j, (slots, capacity) in enumerate(zip(game.slots, game.capacity, strict=True)):
            own = [r for r in requests if r.server == j]
            earlier: list[Request] = []
            for request in own:
                full = len(holds(earlier, request.arrival)) >= capacity
                assert request.accepted == (not full)
                if full:
                    assert (request.start, request.finish) == (DROPPED, DROPPED)
                    continue
                assert request.finish == request.start + request.service
                assert request.start >= request.arrival
                earlier.append(request)
            starts = [r.start for r in earlier]
            assert starts == sorted(starts)
            check_slots(earlier, slots)


def check_slots(requests: list[Request], slots: int) -> None:
    """Assert that the slots are never exceeded, and never idle while somebody waits."""
    for request in requests:
        # the number in service rises at starts alone
        serving = sum(r.start <= request.start < r.finish for r in requests)
        assert serving <= slots
    changes = sorted({t for r in requests for t in (r.arrival, r.start, r.finish)})
    for time in changes:
        serving = sum(r.start <= time < r.finish for r in requests)
        if any(r.arrival <= time < r.start for r in requests):
            assert serving == slots


@fast
@given(case=scenarios())
def test_state_is_what_a_recount_says(case: dict[str, Any]) -> None:
    def check(game: Play, now: Floats) -> None:
        bank, soon = game.bank, np.where(np.isfinite(now), now, 1e6)
        service = np.ones_like(bank.load)
        backlog, finish_if = bank.backlog(soon), bank.finish_if(soon, service)
        for e, j in np.ndindex(bank.in_system.shape):
            own = [r for r in game.ledger[e] if r.server == j]
            there = holds(own, now[e])
            busy = [r for r in there if r.start <= now[e]]
            assert bank.in_system[e, j] == len(there)
            assert bank.active[e, j] == len(busy)
            assert bank.waiting[e, j] == len(there) - len(busy)
            assert bank.full[e, j] == (len(there) == game.capacity[j])
            assert bank.load[e, j] == sum(r.amount for r in there)
            left = sum(r.finish - max(r.start, soon[e]) for r in there)
            assert backlog[e, j] == pytest.approx(left, abs=1e-9)
            # whoever comes now starts when all but slots - 1 of those there have left
            ends = sorted((r.finish for r in there), reverse=True)
            start = ends[game.slots[j] - 1] if len(ends) >= game.slots[j] else soon[e]
            expected = np.inf if bank.full[e, j] else start + 1.0
            assert finish_if[e, j] == expected
            if not case["grid"]:
                past = [r for r in own if r.accepted and r.finish <= now[e]]
                last = sorted(past, key=lambda r: r.finish)[-3:]
                mean = np.mean([r.finish - r.arrival for r in last]) if last else 0.0
                assert bank.mean_response[e, j] == pytest.approx(mean)

    play(case, check)


@fast
@given(case=scenarios())
def test_what_would_finish_is_what_finishes(case: dict[str, Any]) -> None:
    bank, rows = build(case), np.arange(len(case["server"]))
    for k in range(case["server"].shape[1]):
        now, service = case["arrival"][:, k], case["service"][:, k]
        bank.advance(now)
        expected = bank.finish_if(now, np.repeat(service[:, None], len(case["slots"]), axis=1))
        send(bank, case, k)
        finish = bank.times(np.full(len(rows), k))[1]
        np.testing.assert_array_equal(finish, expected[rows, case["server"][:, k]])


STATE = ("in_system", "load", "waiting", "active", "full", "mean_response")


def state(bank: QueueBank, rows: Any = slice(None)) -> list[Any]:
    return [getattr(bank, name)[rows].tolist() for name in STATE]


def departures(done: Finished, envs: Any) -> list[list[Any]]:
    """Return who left each of ``envs``, with all that is said of it."""
    rows = list(zip(*(values.tolist() for values in vars(done).values()), strict=True))
    return [[row[1:] for row in rows if row[0] == e] for e in envs]


@fast
@given(case=scenarios())
def test_a_batch_equals_singles(case: dict[str, Any]) -> None:
    envs, count = case["server"].shape
    batch, singles = build(case), [build(case, 1) for _ in range(envs)]
    for k in range(count + 1):
        now = case["arrival"][:, k] if k < count else np.full(envs, np.inf)
        done = batch.advance(now)
        for e, single in enumerate(singles):
            assert departures(done, [e]) == departures(single.advance(now[e : e + 1]), [0])
            assert state(single) == state(batch, [e])
            if k < count:
                send(single, case, k, slice(e, e + 1))
        if k < count:
            send(batch, case, k)


def test_resetting_some_leaves_the_others_alone() -> None:
    kept, gone, shape, cut = [0, 3], np.array([1, 2]), (4, 60), 30
    rng = np.random.default_rng(0)
    whole = {
        "slots": [1, 2],
        "capacity": [5, 5],
        "server": rng.integers(2, size=shape),
        "arrival": np.cumsum(rng.exponential(0.4, shape), axis=1),
        "service": rng.exponential(1.0, shape),
        "amount": np.ones(shape),
    }
    # two sub-environments begin anew at time 0, before the end of their former episode
    restarted = whole["arrival"].copy()
    restarted[gone, cut:] -= restarted[gone, cut - 1, None]
    again = whole | {"arrival": restarted}
    touched, control, fresh = build(whole), build(whole), build(whole, 2)
    for k in range(shape[1]):
        if k == cut:
            assert (touched.in_system[gone].sum(axis=1) > 0).all()
            touched.reset(gone)
        done = touched.advance(restarted[:, k])
        expected = control.advance(whole["arrival"][:, k])
        assert departures(done, kept) == departures(expected, kept)
        assert state(touched, kept) == state(control, kept)
        if k >= cut:
            assert departures(done, gone) == departures(fresh.advance(restarted[gone, k]), [0, 1])
            assert state(touched, gone) == state(fresh)
            send(fresh, again, k, gone)
        send(touched, again, k)
        send(control, whole, k)


def test_by_hand() -> None:
    """Two slots, room for three: the fourth is dropped, and takes no time from the others."""
    bank = QueueBank(1, [2], [3], 5)
    sent = [
        bank.assign(np.zeros(1, int), np.array([k]), np.array([t]), np.array([s]), np.array([w]))[0]
        for k, (t, s, w) in enumerate([(0.0, 4.0, 10.0), (1.0, 1.5, 20.0), (2.0, 1.0, 40.0)])
    ]
    assert sent == [True, True, True]
    assert bank.full.tolist() == [[True]]
    assert bank.backlog(np.array([2.0])).tolist() == [[2.0 + 0.5 + 1.0]]
    assert bank.load.tolist() == [[70.0]]
    assert not bank.assign(*(np.array([x]) for x in (0, 3, 2.25, 9.0)))[0]
    done = bank.advance(np.array([3.5]))
    # who leaves at the very moment has left
    assert done.item.tolist() == [1, 2]
    assert done.start_s.tolist() == [1.0, 2.5]
    assert done.finish_s.tolist() == [2.5, 3.5]
    assert bank.mean_response.tolist() == [[1.5]]
    assert (bank.active.tolist(), bank.waiting.tolist()) == ([[1]], [[0]])
    assert bank.advance(np.array([np.inf])).item.tolist() == [0]


# --- what it refuses


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"slots": [1, 0]}, r"slots are \[1, 0\]; allowed: at least 1 per server"),
        ({"slots": []}, r"slots are \[\]"),
        ({"slots": [[1, 1]]}, "slots are"),
        ({"capacity": [4]}, r"capacity is \[4\]; allowed: one number per server"),
        ({"capacity": [4, 0]}, r"no less than its slots, which are \[1, 1\]"),
        ({"items": 0}, "items is 0; allowed: at least 1"),
        ({"recent": 0}, "recent is 0; allowed: at least 1"),
    ],
)
def test_bad_servers_are_refused(arguments: dict[str, Any], message: str) -> None:
    good = {"num_envs": 2, "slots": [1, 1], "capacity": [4, 4], "items": 5}
    with pytest.raises(ConfigurationError, match=message):
        QueueBank(**(good | arguments))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"server": [0, 2]}, "sub-environment 1 is number 2 for server 2.* servers below 2"),
        ({"server": [-1, 0]}, "sub-environment 0 .* server -1"),
        ({"item": [2, 5]}, "number 5 .* numbers below 5"),
        ({"item": [-1, 2]}, "number -1"),
        ({"service": [1.0, -1.0]}, "-1 s of service"),
        ({"service": [np.nan, 1.0]}, "nan s of service"),
        ({"service": [1.0, np.inf]}, "inf s of service"),
        ({"now": [np.nan, 3.0]}, "at nan s"),
        ({"now": [np.inf, 3.0]}, "at inf s"),
        ({"now": [3.0, 1.5]}, r"run backwards \(the last arrival was at 2 s\)"),
        ({"now": [3.0, 9.0]}, r"after advance\(\) to the arrival"),
        ({"server": [0]}, r"server has shape \(1,\); allowed: \(2,\)"),
        ({"service": [1.0]}, "service_s has shape"),
        ({"amount": [1.0, 1.0, 1.0]}, "amount has shape"),
    ],
)
def test_bad_requests_change_nothing(arguments: dict[str, Any], message: str) -> None:
    bank = QueueBank(2, [1, 1], [4, 4], 5)
    first: dict[str, Ints | Floats] = {
        "server": np.zeros(2, np.int64),
        "item": np.array([1, 1]),
        "now": np.array([2.0, 2.0]),
        "service": np.array([9.0, 5.0]),
        "amount": np.ones(2),
    }
    bank.assign(*first.values())
    before = state(bank)
    later = first | {"item": np.array([2, 2]), "now": np.array([3.0, 3.0])}
    bad = later | {name: np.array(values) for name, values in arguments.items()}
    with pytest.raises(ConfigurationError, match=message):
        bank.assign(*bad.values())
    assert state(bank) == before
    assert bank.assign(*later.values()).all()


def test_time_of_another_shape_is_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"until_s has shape \(\); allowed: \(2,\)"):
        QueueBank(2, [1], [4], 5).advance(np.array(1.0))
