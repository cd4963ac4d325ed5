"""The queueing core against queueing theory."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from icl_optimizer.environments.base import Floats
from icl_optimizer.environments.queues import Bursts, QueueBank, draw_arrivals, theory
from icl_optimizer.errors import ConfigurationError

Service = Callable[[np.random.Generator, int], Floats]


def exponential(rng: np.random.Generator, size: int) -> Floats:
    return rng.standard_exponential(size)


def constant(rng: np.random.Generator, size: int) -> Floats:
    return np.ones(size)


def lognormal(rng: np.random.Generator, size: int) -> Floats:
    """Return lognormal times of mean 1 and log-standard deviation 0.5."""
    return np.asarray(np.exp(0.5 * rng.standard_normal(size) - 0.125))


def mean_waits(slots: int, utilisation: float, service: Service, steps: int) -> Floats:
    """Return the mean wait in each of 2,000 queues, without the first 100 requests."""
    envs, warm, ring = 2000, 100, 64
    rng = np.random.default_rng(0)
    bank = QueueBank(envs, [slots], [ring], ring, recent=1)
    now, waited = np.zeros(envs), np.zeros(envs)
    first = np.zeros(envs, np.int64)
    for k in range(warm + steps):
        now = now + rng.standard_exponential(envs) / (slots * utilisation)
        bank.advance(now)
        # numbers come again, long after their former bearers have left
        item = np.full(envs, k % ring)
        assert bank.assign(first, item, now, service(rng, envs)).all()
        if k >= warm:
            waited += bank.times(item)[0] - now
    return waited / steps


@pytest.mark.parametrize(
    ("slots", "utilisation", "service", "steps", "expected"),
    [
        pytest.param(1, 0.5, exponential, 1000, theory.mm1_wait(0.5), id="M/M/1"),
        pytest.param(2, 0.5, exponential, 1500, theory.mmc_wait(2, 0.5), id="M/M/2"),
        pytest.param(3, 0.5, exponential, 2500, theory.mmc_wait(3, 0.5), id="M/M/3"),
        pytest.param(5, 0.6, exponential, 4200, theory.mmc_wait(5, 0.6), id="M/M/5"),
        pytest.param(1, 0.5, constant, 800, theory.md1_wait(0.5), id="M/D/1"),
        pytest.param(
            1, 0.5, lognormal, 800, theory.mg1_wait(0.5, theory.lognormal_cv2(0.5)), id="M/G/1"
        ),
    ],
)
def test_mean_wait_is_that_of_theory(
    slots: int, utilisation: float, service: Service, steps: int, expected: float
) -> None:
    waits = mean_waits(slots, utilisation, service, steps)
    error = waits.std(ddof=1) / np.sqrt(len(waits))
    assert 4 * error < 0.02 * expected
    assert waits.mean() == pytest.approx(expected, rel=0.02)


def test_formulas_agree_where_they_meet() -> None:
    assert theory.mm1_wait(0.7) == pytest.approx(0.7 / 0.3)
    assert theory.mmc_wait(1, 0.7, 3.0) == pytest.approx(theory.mm1_wait(0.7, 3.0))
    assert theory.md1_wait(0.7, 2.0) == pytest.approx(theory.mm1_wait(0.7, 2.0) / 2)
    assert theory.erlang_c(1, 0.7) == pytest.approx(0.7)
    # Erlang's printed table: 10 lines, 5 Erlang
    assert theory.erlang_b(10, 5.0) == pytest.approx(0.0184, abs=5e-5)
    assert theory.erlang_c(10, 5.0) == pytest.approx(0.0361, abs=5e-5)
    assert theory.lognormal_cv2(0.5) == pytest.approx(lognormal_sample_cv2(0.5), rel=0.02)


def lognormal_sample_cv2(spread: float) -> float:
    sample = np.exp(spread * np.random.default_rng(0).standard_normal(400_000))
    return float(sample.var() / sample.mean() ** 2)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: theory.mm1_wait(1.0), "utilisation is 1.0; allowed: more than 0, less than 1"),
        (lambda: theory.mmc_wait(2, 1.5), "utilisation is 1.5"),
        (lambda: theory.mg1_wait(-0.1, 1.0), "utilisation is -0.1"),
        (lambda: theory.erlang_b(0, 1.0), "servers are 0"),
    ],
)
def test_formulas_refuse_queues_without_end(call: Callable[[], float], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        call()


def test_littles_law() -> None:
    """The mean number in system is rate times time, each measured on its own."""
    envs, count = 400, 200
    rngs = [np.random.default_rng(i) for i in range(envs)]
    arrival = draw_arrivals(rngs, count, 4.0, Bursts(factor=5.0, share=0.3, mean_s=5.0))
    rng = np.random.default_rng(0)
    bank = QueueBank(envs, [1, 2, 1], [4, 8, 6], count)
    area, accepted, sojourn = np.zeros(envs), 0, 0.0
    for k in range(count):
        now = arrival[:, k]
        done = bank.advance(now)
        sojourn += float((done.finish_s - done.arrival_s).sum())
        server, item = rng.integers(3, size=envs), np.full(envs, k)
        accepted += int(bank.assign(server, item, now, rng.standard_exponential(envs)).sum())
        # a random moment before the next arrival stands for all of them
        gap = (arrival[:, k + 1] if k + 1 < count else now + 60.0) - now
        done = bank.advance(now + gap * rng.random(envs))
        sojourn += float((done.finish_s - done.arrival_s).sum())
        area += gap * bank.in_system.sum(axis=1)
    done = bank.advance(np.full(envs, np.inf))
    sojourn += float((done.finish_s - done.arrival_s).sum())
    time_s = float((arrival[:, -1] + 60.0).sum())
    number, rate, response = area.sum() / time_s, accepted / time_s, sojourn / accepted
    assert 0.5 * envs * count < accepted < 0.95 * envs * count
    assert number == pytest.approx(rate * response, rel=0.01)
