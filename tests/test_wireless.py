"""Radio physics and scheduling against values worked by hand, and their properties."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from icl_optimizer.environments.wireless import RadioConfig
from icl_optimizer.environments.wireless.fading import (
    FadingWindows,
    fading_tape,
    windows_of_users,
)
from icl_optimizer.environments.wireless.kernels import ln
from icl_optimizer.environments.wireless.layout import hexagon_points, site_positions
from icl_optimizer.environments.wireless.pathloss import (
    Scenario,
    breakpoint_distance,
    los_path_loss,
    los_probability,
    nlos_path_loss,
    shadowing_std,
)
from icl_optimizer.environments.wireless.scheduler import (
    moving_average,
    proportional_fair,
    shannon_rate,
    sinr,
)

UMA = (2.0, 25.0, 1.5)  # carrier in GHz, heights in m
UMI = (2.0, 10.0, 1.5)


def test_uma_los_before_the_breakpoint() -> None:
    # d3D = sqrt(100^2 + 23.5^2) = 102.7241, log10 = 2.011672
    # 28 + 22 * 2.011672 + 20 * log10(2) = 28 + 44.2568 + 6.0206 = 78.2774
    assert los_path_loss("uma", 100.0, *UMA) == pytest.approx(78.2774, abs=1e-4)


def test_uma_los_beyond_the_breakpoint() -> None:
    # d'BP = 4 * (25 - 1) * (1.5 - 1) * 2e9 / 3e8 = 320 m
    assert breakpoint_distance(*UMA) == pytest.approx(320.0)
    # d3D = sqrt(500^2 + 23.5^2) = 500.5520, log10 = 2.699449, times 40 = 107.9780
    # 9 * log10(320^2 + 23.5^2) = 9 * log10(102952.25) = 9 * 5.012636 = 45.1137
    # 28 + 107.9780 + 6.0206 - 45.1137 = 96.8849
    assert los_path_loss("uma", 500.0, *UMA) == pytest.approx(96.8849, abs=2e-4)


def test_uma_nlos() -> None:
    # 13.54 + 39.08 * 2.699449 + 6.0206 = 13.54 + 105.4945 + 6.0206 = 125.0551
    assert nlos_path_loss("uma", 500.0, *UMA) == pytest.approx(125.0551, abs=2e-4)


def test_umi_los_and_nlos() -> None:
    # d'BP = 4 * 9 * 0.5 * 2e9 / 3e8 = 120 m; d3D = sqrt(100^2 + 8.5^2) = 100.3606,
    # log10 = 2.001563; LOS: 32.4 + 21 * 2.001563 + 6.0206 = 80.4534
    assert los_path_loss("umi", 100.0, *UMI) == pytest.approx(80.4534, abs=2e-4)
    # 22.4 + 35.3 * 2.001563 + 21.3 * 0.30103 = 22.4 + 70.6552 + 6.4119 = 99.4671
    assert nlos_path_loss("umi", 100.0, *UMI) == pytest.approx(99.4671, abs=2e-4)


def test_los_probability() -> None:
    # 18 m: 1; 100 m: 18/100 + exp(-100/63) * 82/100 = 0.18 + 0.20447 * 0.82 = 0.34767
    np.testing.assert_allclose(los_probability("uma", [5.0, 18.0, 100.0]), [1, 1, 0.34767], 1e-4)
    # 0.18 + exp(-100/36) * 0.82 = 0.18 + 0.062177 * 0.82 = 0.230985
    np.testing.assert_allclose(los_probability("umi", [18.0, 100.0]), [1, 0.230985], 1e-4)


def test_shadowing_depends_on_sight() -> None:
    assert shadowing_std("uma", np.array([True, False])).tolist() == [4.0, 6.0]
    assert shadowing_std("umi", np.array([True, False])).tolist() == [4.0, 7.82]


@given(
    st.sampled_from(["uma", "umi"]),
    st.floats(10, 5000),
    st.floats(0, 100),
    st.floats(0.5, 100),
    st.floats(1.5, 12.9),
)
def test_loss_grows_with_distance_and_without_sight(
    scenario: Scenario, near: float, more: float, carrier: float, height: float
) -> None:
    link = (carrier, 25.0 if scenario == "uma" else 10.0, height)
    clear = los_path_loss(scenario, [near, near + more], *link)
    obstructed = nlos_path_loss(scenario, [near, near + more], *link)
    assert clear[1] >= clear[0] - 1e-9
    assert obstructed[1] >= obstructed[0] - 1e-9
    assert (obstructed >= clear).all()


def test_noise_and_power_per_resource_block() -> None:
    cfg = RadioConfig()
    # -174 + 9 = -165 dBm/Hz = 10^-19.5 W/Hz = 3.16228e-20; times 180 kHz = 5.6921e-15 W
    assert cfg.rb_noise_w == pytest.approx(5.6921e-15, rel=1e-5)
    # 46 dBm = 10^1.6 W = 39.8107 W over 100 blocks
    assert cfg.rb_power_w == pytest.approx(0.398107, rel=1e-6)


def test_sinr_and_rate_of_two_cells() -> None:
    # received 7e-14 W, from the other cell 9e-15 W, noise 1e-15 W: 7e-14 / 1e-14 = 7
    ratio = sinr(np.array([7e-14, 3e-14]), np.array([9e-15, 9e-15]), 1e-15)
    np.testing.assert_allclose(ratio, [7.0, 3.0], rtol=1e-12)
    # 100 kHz * log2(1 + 7) = 300 kbit/s, and log2(1 + 3) = 2
    np.testing.assert_allclose(shannon_rate(ratio, 1e5), [3e5, 2e5], rtol=1e-12)


def scheduled(ratio: np.ndarray, average: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Schedule blocks whose SINR is ``ratio``, ``(K, E, Q)``."""
    n_users, n_envs, n_blocks = ratio.shape
    start = np.arange(n_users * n_envs).reshape(n_users, n_envs) * n_blocks
    windows = FadingWindows(ratio.astype(np.float32).ravel(), start, n_blocks)
    return proportional_fair(windows, np.ones((n_users, n_envs)), average)


def test_scheduler_over_three_intervals() -> None:
    # one block, rates 3 and 1, averages from 1, t_c = 2
    # 1: 3/1 > 1/1, first user: averages 0.5 + 1.5 = 2 and 0.5
    # 2: 3/2 < 1/0.5, second: averages 1 and 0.25 + 0.5 = 0.75
    # 3: 3/1 > 1/0.75, first: averages 0.5 + 1.5 = 2 and 0.375
    unit = 1e6  # above the least average of 1 bit/s
    average = np.full((2, 1), unit)
    expected = [(0, [2.0, 0.5]), (1, [1.0, 0.75]), (0, [2.0, 0.375])]
    # ln(1 + SINR) = 3 and 1
    ratio = np.expm1(np.array([[[3.0]], [[1.0]]]))
    for first, after in expected:
        owner, throughput = scheduled(ratio, average)
        average = moving_average(average, throughput * unit, 2.0)
        assert owner.tolist() == [[first]]
        np.testing.assert_allclose(average[:, 0] / unit, after, rtol=1e-6)


def test_equal_claims_go_to_the_first_user() -> None:
    owner, throughput = scheduled(np.expm1(np.ones((3, 2, 4))), np.ones((3, 2)))
    assert owner.tolist() == [[0] * 4] * 2
    np.testing.assert_allclose(throughput, [[4.0, 4.0], [0.0, 0.0], [0.0, 0.0]], rtol=1e-6)


def test_logarithm_is_exact_to_single_precision() -> None:
    near_one = 1.0 + np.geomspace(1e-6, 1.0, 500)
    x = np.concatenate([near_one, np.geomspace(2.0, 1e12, 500)]).astype(np.float32)
    exact = np.log(x.astype(np.float64))
    np.testing.assert_allclose([ln.py_func(v) for v in x], exact, rtol=2e-7)
    # the compiled loop: one user owns every block, so its throughput is the sum
    for value, expected in zip(x, exact, strict=True):
        ratio = np.array([[[value - np.float32(1)]]])
        _, throughput = scheduled(ratio, np.ones((1, 1)))
        assert throughput[0, 0] == pytest.approx(expected, rel=2e-7)


@given(st.integers(1, 400), st.integers(1, 4), st.integers(1, 12), st.integers(0, 2**32 - 1))
def test_every_block_has_one_owner(n_users: int, n_envs: int, n_blocks: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    # few distinct values, so that ties occur
    ratio = rng.integers(0, 5, (n_users, n_envs, n_blocks))
    average = rng.integers(1, 4, (n_users, n_envs)).astype(np.float64)
    owner, throughput = scheduled(ratio, average)
    levels = np.log1p(np.arange(5))
    rates = levels[ratio]
    metric = rates / average[:, :, None]
    won = np.take_along_axis(metric, owner[None].astype(np.int64), axis=0)[0]
    np.testing.assert_allclose(won, metric.max(axis=0), rtol=1e-6)
    # no earlier user makes the very same claim
    same = (ratio == np.take_along_axis(ratio, owner[None].astype(np.int64), 0)) & (
        average[:, :, None] == np.take_along_axis(average, owner.T.astype(np.int64), 0).T[None]
    )
    np.testing.assert_array_equal(same.argmax(axis=0), owner)
    mine = owner[None] == np.arange(n_users)[:, None, None]
    np.testing.assert_allclose(throughput, (rates * mine).sum(axis=2), rtol=1e-5, atol=1e-6)


def test_fading_outside_its_trace_is_an_error() -> None:
    trace = np.ones(10, np.float32)
    for start in (-1, 8):
        with pytest.raises(IndexError, match=f"from {start} to {start + 3} in a trace of 10"):
            proportional_fair(
                FadingWindows(trace, np.array([[start]]), 3), np.ones((1, 1)), np.ones((1, 1))
            )


def run_scheduler(mean_sinr: list[float], intervals: int = 400) -> tuple[np.ndarray, np.ndarray]:
    """Return the mean throughput and the share of blocks of users who fade by Rayleigh."""
    rng, n_users, n_envs, n_blocks = np.random.default_rng(1), len(mean_sinr), 8, 20
    mean = np.repeat(np.array(mean_sinr)[:, None], n_envs, axis=1)
    average = np.log1p(mean) * n_blocks
    total, blocks = np.zeros(n_users), np.zeros(n_users)
    for _ in range(intervals):
        offset = rng.integers(0, 2**16 - n_users * n_blocks, n_envs)
        windows = windows_of_users(fading_tape(2**16), offset, n_users, n_blocks)
        owner, throughput = proportional_fair(windows, mean, average)
        average = moving_average(average, throughput, 50.0)
        total += throughput.mean(axis=1)
        blocks += np.bincount(owner.ravel(), minlength=n_users) / owner.size
    return total / intervals, blocks / intervals


def test_equal_users_get_equal_throughput() -> None:
    throughput, _ = run_scheduler([10.0, 10.0])
    assert throughput[0] == pytest.approx(throughput[1], rel=0.02)


def test_unequal_users_get_similar_shares_of_blocks() -> None:
    throughput, share = run_scheduler([100.0, 10.0])
    np.testing.assert_allclose(share, 0.5, atol=0.08)
    assert throughput[0] > 1.5 * throughput[1]


def test_fading_has_exponential_gains() -> None:
    tape = fading_tape(2**18)
    # unit exponential: mean 1, variance 1, P(x > 1) = 1/e
    assert tape.mean() == pytest.approx(1.0, rel=1e-3)
    assert tape.var() == pytest.approx(1.0, rel=0.02)
    assert (tape > 1).mean() == pytest.approx(np.exp(-1), rel=0.01)
    window = windows_of_users(tape, np.array([7]), 2, 3).read()
    np.testing.assert_array_equal(window[:, 0], tape[7:13].reshape(2, 3))


def test_sites_form_hexagonal_rings() -> None:
    distance = np.linalg.norm(site_positions(19, 500.0), axis=1)
    # centre, six at 1, six at sqrt(3), six at 2 spacings
    expected = np.repeat([0.0, 1.0, np.sqrt(3), 2.0], [1, 6, 6, 6]) * 500.0
    np.testing.assert_allclose(distance, expected, atol=1e-9)
    assert len({tuple(p) for p in site_positions(19, 500.0).round(6)}) == 19


def test_drops_are_uniform_in_the_cell_nearest_to_the_centre() -> None:
    points = hexagon_points(np.random.default_rng(0).random((20000, 3), dtype=np.float32), 500.0)
    apart = np.linalg.norm(points[:, None] - site_positions(7, 500.0), axis=2)
    assert (apart[:, 0] <= apart.min(axis=1) + 1e-3).all()
    np.testing.assert_allclose(points.mean(axis=0), 0.0, atol=4.0)
    # half the area lies within r with pi r^2 = area / 2, area = sqrt(3)/2 * 500^2
    half = np.sqrt(np.sqrt(3) / 4 * 500.0**2 / np.pi)
    assert (apart[:, 0] < half).mean() == pytest.approx(0.5, abs=0.01)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("scenario", "rural"),
        ("carrier_ghz", 0.1),
        ("n_resource_blocks", 0),
        ("n_sites", 20),
        ("inter_site_distance_m", 5.0),
        ("min_distance_m", 400.0),
        ("user_height_m", 20.0),
        ("pf_time_constant", 1.0),
        ("noise_figure_db", float("nan")),
        ("bandwith", 1.0),
    ],
)
def test_bad_configuration_names_the_field(field: str, value: object) -> None:
    with pytest.raises(ValidationError, match=field):
        RadioConfig.model_validate({field: value})


def test_scenarios_bring_their_distances() -> None:
    macro, micro = RadioConfig(), RadioConfig(scenario="umi")
    assert (macro.spacing_m, macro.closest_m, macro.antenna_height_m) == (500.0, 35.0, 25.0)
    assert (micro.spacing_m, micro.closest_m, micro.antenna_height_m) == (200.0, 10.0, 10.0)
    assert RadioConfig(scenario="umi", min_distance_m=20).closest_m == 20.0
