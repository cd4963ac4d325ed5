"""Arrivals: Poisson and bursty, held against what is known of both processes."""

from __future__ import annotations

import numpy as np
import pytest
from pydantic import ValidationError

from icl_optimizer.environments.base import Floats
from icl_optimizer.environments.queues import Bursts, draw_arrivals
from icl_optimizer.environments.queues.theory import mmpp_dispersion

BURSTS = Bursts(factor=6.0, share=0.25, mean_s=4.0)


def arrivals(envs: int, count: int, rate: float, bursts: Bursts | None, seed: int = 0) -> Floats:
    # one generator for all, one after the other
    return draw_arrivals([np.random.default_rng(seed)] * envs, count, rate, bursts)


def counted(times: Floats, window_s: float) -> Floats:
    """Return how many came in the first ``window_s``, ``(E,)``; all of them must be known."""
    assert (times[:, -1] > window_s).all()
    return (times <= window_s).sum(axis=1).astype(np.float64)


@pytest.mark.parametrize("bursts", [None, BURSTS])
def test_times_ascend_and_the_seed_decides(bursts: Bursts | None) -> None:
    times = arrivals(5, 300, 2.0, bursts)
    assert times.shape == (5, 300)
    assert (times > 0).all()
    assert (np.diff(times, axis=1) > 0).all()
    np.testing.assert_array_equal(arrivals(5, 300, 2.0, bursts), times)
    assert (arrivals(5, 300, 2.0, bursts, seed=1) != times).all()
    assert len(np.unique(times[:, 0])) == 5


def test_each_generator_makes_its_own_row() -> None:
    rngs = [np.random.default_rng(i) for i in (3, 4)]
    both = draw_arrivals(rngs, 20, 1.0, BURSTS)
    np.testing.assert_array_equal(both[1:], arrivals(1, 20, 1.0, BURSTS, seed=4))


@pytest.mark.parametrize("rate", [0.5, 8.0])
def test_poisson_gaps_are_exponential(rate: float) -> None:
    gaps = np.diff(arrivals(200, 500, rate, None), axis=1, prepend=0.0)
    # standard errors: 0.3 % of the mean; 0.3 % of the coefficient of variation
    assert gaps.mean() == pytest.approx(1 / rate, rel=0.015)
    assert gaps.std() / gaps.mean() == pytest.approx(1.0, rel=0.015)
    # no memory: a gap says nothing of the next one
    assert abs(np.corrcoef(gaps[:, :-1].ravel(), gaps[:, 1:].ravel())[0, 1]) < 0.015


def test_the_same_seed_gives_the_same_pattern_at_every_rate() -> None:
    slow, fast = (arrivals(3, 50, rate, None) for rate in (0.5, 4.0))
    np.testing.assert_allclose(slow, 8 * fast)


@pytest.fixture(scope="module")
def bursty() -> Floats:
    return arrivals(20_000, 200, 1.0, BURSTS)


@pytest.mark.parametrize("window_s", [1.0, 10.0, 40.0])
def test_bursts_hold_the_mean_rate_and_the_dispersion(bursty: Floats, window_s: float) -> None:
    counts = counted(bursty, window_s)
    dispersion = mmpp_dispersion(BURSTS, 1.0, window_s)
    # stationary: the rate is right from the first second on; 20,000 windows
    error = np.sqrt(dispersion / window_s / len(counts))
    assert counts.mean() / window_s == pytest.approx(1.0, abs=4 * error)
    assert counts.var() / counts.mean() == pytest.approx(dispersion, rel=0.06)
    assert dispersion > 1.5


def test_dispersion_has_the_limits_of_theory() -> None:
    assert mmpp_dispersion(BURSTS, 1.0, 1e-6) == pytest.approx(1.0, abs=1e-4)
    quiet, burst = BURSTS.rates(1.0)
    ends, begins = 1 / 4.0, 1 / 12.0
    limit = 1 + 2 * ends * begins * (burst - quiet) ** 2 / (
        (ends + begins) ** 2 * (quiet * ends + burst * begins)
    )
    assert mmpp_dispersion(BURSTS, 1.0, 1e9) == pytest.approx(limit)
    # hardly any bursts are hardly different from none
    assert mmpp_dispersion(Bursts(factor=1.001), 5.0, 60.0) == pytest.approx(1.0, abs=1e-4)


def test_bursts_take_their_share_of_the_time_and_last_as_said() -> None:
    # all but silent between bursts, 100 per second in them, so that one can see which is on
    bursts = Bursts(factor=1e6, share=0.3, mean_s=1.0)
    times = arrivals(4000, 1000, 30.0, bursts)
    in_burst = times[:, 0] < 0.1
    assert in_burst.mean() == pytest.approx(0.3, abs=0.03)
    gaps = np.diff(times[in_burst], axis=1)
    last = (gaps > 0.15).argmax(axis=1)
    rows = np.arange(len(gaps))
    assert (gaps[rows, last] > 0.15).all()
    # what is left of an exponential time is distributed as the whole, so the first burst is no
    # shorter than others; but two of them are one to us if the silence between is short
    unseen = 1 - np.exp(-0.15 / bursts.quiet_s)
    length = bursts.mean_s / (1 - unseen)
    assert times[in_burst][rows, last].mean() == pytest.approx(length, rel=0.12)
    assert gaps[rows, last].mean() == pytest.approx(bursts.quiet_s + 0.15, rel=0.12)


def test_rates_and_lengths_balance() -> None:
    quiet, burst = BURSTS.rates(3.0)
    assert burst == pytest.approx(6 * quiet)
    assert 0.75 * quiet + 0.25 * burst == pytest.approx(3.0)
    assert BURSTS.mean_s / (BURSTS.mean_s + BURSTS.quiet_s) == pytest.approx(0.25)


@pytest.mark.parametrize(
    ("field", "value"),
    [("factor", 1.0), ("share", 0.0), ("share", 1.0), ("mean_s", 0.0), ("factor", np.nan)],
)
def test_bad_bursts_name_the_field(field: str, value: float) -> None:
    with pytest.raises(ValidationError, match=field):
        Bursts.model_validate({field: value})
