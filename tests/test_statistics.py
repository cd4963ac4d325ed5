"""Statistics of runs: worked by hand, held against rliable's values, and true of any scores."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from icl_optimizer.comparison.statistics import (
    ROBUST_FROM,
    aggregate,
    chance_of_order,
    difference,
    estimate,
    improvement,
    interquartile_mean,
    profile,
)

SCORES = st.lists(st.sampled_from([-1.0, 0.0, 0.25, 0.5, 1.0]), min_size=1, max_size=12)


def waves(runs: int, strata: int, shift: float, key: int) -> NDArray[np.float64]:
    """Return scores ``(strata, runs)`` that any program can make."""
    i, j = np.indices((runs, strata))
    scores: NDArray[np.float64] = np.round(np.sin(1.7 * i + 0.9 * j + key) + 0.3 * j + shift, 3)
    return scores.T


A, B = waves(12, 3, 0.2, 0), waves(10, 3, 0.0, 1)


def test_the_interquartile_mean_leaves_a_quarter_out_at_each_end() -> None:
    assert interquartile_mean(np.array([-100.0, 1, 2, 3, 4, 5, 6, 100])) == 3.5
    assert estimate([-100, 1, 2, 3, 4, 5, 6, 100]).mean == 3.5
    # fewer than eight: the plain mean
    assert estimate([-100, 1, 2, 3, 4, 5, 85]).mean == 0


def test_strata_are_pooled_for_the_centre() -> None:
    assert aggregate([[-100, 6, 2, 3], [4, 5, 1, 100]]).mean == 3.5
    assert aggregate([[1, 2], [6]]).mean == 3
    assert aggregate([[], [np.nan]]).n == 0


def test_runs_are_never_resampled_across_strata() -> None:
    # every resample of each stratum is itself, so nothing is left to vary
    fixed = aggregate([[0, 0, 0], [1, 1, 1]])
    assert (fixed.mean, fixed.low, fixed.high) == (0.5, 0.5, 0.5)
    free = estimate([0, 0, 0, 1, 1, 1])
    assert free.low < 0.5 < free.high


def test_wins_are_counted_pair_by_pair_and_ties_half() -> None:
    # 1 loses to 2 and 3; 3 beats 2 and ties with 3: 1.5 of 4
    assert improvement([[1, 3]], [[2, 3]]).mean == pytest.approx(0.375)
    # the mean over strata, however many runs each has
    assert improvement([[1, 3], [9]], [[2, 3], [1, 2, 3]]).mean == pytest.approx((0.375 + 1) / 2)
    # a stratum that one of them never met says nothing
    assert improvement([[1, 3], [9]], [[2, 3], []]).mean == pytest.approx(0.375)
    assert improvement([[1]], [[]]).n == 0
    with pytest.raises(ValueError, match="zip"):
        improvement([[1]], [[1], [2]])


def test_a_profile_counts_the_runs_above_each_level() -> None:
    found = profile([[0.1, 0.5, 0.5, 0.9]], [0.0, 0.1, 0.5, 0.9])
    assert [v.mean for v in found] == [1, 0.75, 0.25, 0]
    # strata weigh the same
    assert profile([[0, 0, 0, 0], [1]], [0.5])[0].mean == 0.5


def test_differences_are_of_centres_and_surer_with_more_runs() -> None:
    few, many = (difference([np.tile([1.0, 3.0], k)], [np.tile([0.0, 1.0], k)]) for k in (2, 50))
    assert few.mean == many.mean == 1.5
    assert few.low < many.low < 1.5 < many.high < few.high
    assert difference([[2, 2]], [[1, 1]]).low == 1


def test_luck_puts_three_above_three_once_in_twenty() -> None:
    assert chance_of_order(3, 3) == pytest.approx(1 / 20)
    assert chance_of_order(1, 4) == pytest.approx(1 / 5)


def test_values_are_those_of_rliable() -> None:
    """What rliable 1.2.0 gives for the same scores (numpy 2.4.6, pandas 2.3.3, arch 7.2.0).

    Centres are exact; ends of intervals vary with the draw of resamples.
    """
    centre, odds = aggregate(A), improvement(A, B)
    assert centre.mean == pytest.approx(0.5468888888888889)
    assert aggregate(B).mean == pytest.approx(0.3005)
    assert (centre.low, centre.high) == pytest.approx((0.21155, 0.87517), abs=0.03)
    assert odds.mean == pytest.approx(0.6194444444444445)
    assert improvement(B, A).mean == pytest.approx(0.38055555555555554)
    assert (odds.low, odds.high) == pytest.approx((0.47778, 0.75278), abs=0.02)
    shares = profile(A, [-0.5, 0.0, 0.5, 1.0])
    expected = [0.91666667, 0.72222222, 0.52777778, 0.36111111]
    lows, highs = [0.83333, 0.58333, 0.36111, 0.22222], [1.0, 0.86111, 0.69444, 0.5]
    np.testing.assert_allclose([v.mean for v in shares], expected, atol=1e-8)
    np.testing.assert_allclose([v.low for v in shares], lows, atol=0.03)
    np.testing.assert_allclose([v.high for v in shares], highs, atol=0.03)


def test_intervals_in_one_product_are_those_of_resampling_one_by_one() -> None:
    values = np.sort(A.ravel()[: ROBUST_FROM + 3])
    picks = np.random.default_rng(0).integers(values.size, size=(2000, values.size))
    ends = np.percentile(interquartile_mean(values[picks]), [2.5, 97.5])
    found = estimate(values[::-1])
    np.testing.assert_allclose([found.low, found.high], ends, rtol=1e-12)


@settings(deadline=None, max_examples=30)
@given(a=SCORES, b=SCORES)
def test_what_one_wins_the_other_loses(a: list[float], b: list[float]) -> None:
    forth, back = improvement([a], [b]), improvement([b], [a])
    assert forth.mean + back.mean == pytest.approx(1)
    assert improvement([a], [a]).mean == pytest.approx(0.5)
    brute = np.mean([(x > y) + 0.5 * (x == y) for x in a for y in b])
    assert forth.mean == pytest.approx(brute)
    assert 0 <= forth.low <= forth.high <= 1


@settings(deadline=None, max_examples=30)
@given(strata=st.lists(SCORES, min_size=1, max_size=3))
def test_a_profile_falls_from_one_to_nothing(strata: list[list[float]]) -> None:
    found = profile(strata, np.linspace(-1.5, 1.0, 11))
    means = [v.mean for v in found]
    assert means[0] == pytest.approx(1)
    assert means[-1] == 0
    for ends in (means, [v.low for v in found], [v.high for v in found]):
        assert all(x >= y - 1e-12 for x, y in pairwise(ends))


@settings(deadline=None, max_examples=20)
@given(value=st.floats(-10, 10), n=st.integers(1, 20))
def test_constants_have_no_spread(value: float, n: int) -> None:
    found = aggregate([[value] * n, [value] * n])
    assert (found.mean, found.low, found.high) == pytest.approx((value, value, value))


def test_single_runs_say_how_strata_differ() -> None:
    # nothing is known of how runs scatter within a stratum
    one, other = [[1.0], [1.0], [0.0]], [[0.0], [0.0], [1.0]]
    odds = improvement(one, other)
    assert odds.mean == pytest.approx(2 / 3)
    assert (odds.low, odds.high, odds.n) == (0.0, 1.0, 3)
    level = aggregate(one)
    assert level.mean == pytest.approx(2 / 3)
    assert level.low < 0.5 < 0.9 < level.high
