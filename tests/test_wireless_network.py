"""The radio network: batched against plain Python, seeding, resets and errors."""

import numpy as np
import pytest

from icl_optimizer.environments.wireless import (
    Channel,
    ChannelDraws,
    FixedChannel,
    RadioConfig,
    RadioNetwork,
    ScalarRadioNetwork,
    UrbanChannel,
)
from icl_optimizer.environments.wireless.parallel import in_halves
from icl_optimizer.errors import ConfigurationError

SMALL = RadioConfig(n_resource_blocks=24, fading_tape_length=2**15)
STEPS = 12


def started(cfg: RadioConfig, seeds: list[int], n_users: int = 5) -> RadioNetwork:
    network = RadioNetwork(cfg, len(seeds), n_users)
    draws = [network.draw_episode(np.random.default_rng(s), STEPS) for s in seeds]
    network.reset(np.arange(len(seeds)), draws)
    return network


def trajectory(network: RadioNetwork) -> np.ndarray:
    """Return the capacities of all intervals, ``(STEPS, E, K)``."""
    return np.stack([network.step(np.full(network.n_envs, t)) for t in range(STEPS)])


@pytest.mark.parametrize("scenario", ["uma", "umi"])
@pytest.mark.parametrize("interference_fading", [False, True])
def test_batched_equals_plain_python(scenario: str, interference_fading: bool) -> None:
    cfg = SMALL.model_copy(
        update={"scenario": scenario, "interference_fading": interference_fading}
    )
    batched = trajectory(started(cfg, [1, 2, 3]))
    for i, seed in enumerate([1, 2, 3]):
        scalar = ScalarRadioNetwork(cfg, 5)
        scalar.reset(scalar.channel.draw_episode(np.random.default_rng(seed), 5, STEPS))
        plain = [scalar.step(t) for t in range(STEPS)]
        np.testing.assert_allclose(batched[:, i], plain, rtol=1e-4)


def test_batch_size_does_not_change_a_cell() -> None:
    alone = trajectory(started(SMALL, [7]))
    among = trajectory(started(SMALL, [3, 7, 5]))
    np.testing.assert_array_equal(alone[:, 0], among[:, 1])


def test_chunks_do_not_change_a_cell(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = trajectory(started(SMALL, list(range(7))))
    monkeypatch.setattr("icl_optimizer.environments.wireless.network.CHUNK_PAIRS", 250)
    np.testing.assert_array_equal(whole, trajectory(started(SMALL, list(range(7)))))


@pytest.mark.parametrize("cores", [1, 2])
def test_threads_do_not_change_a_cell(monkeypatch, cores: int) -> None:
    whole = trajectory(started(SMALL, list(range(7))))
    monkeypatch.setattr("icl_optimizer.environments.wireless.parallel._cores", lambda: cores)
    monkeypatch.setattr("icl_optimizer.environments.wireless.network.CHUNK_PAIRS", 250)
    np.testing.assert_array_equal(whole, trajectory(started(SMALL, list(range(7)))))


def test_an_error_in_either_half_is_raised(monkeypatch) -> None:
    monkeypatch.setattr("icl_optimizer.environments.wireless.parallel._cores", lambda: 2)
    done: list[int] = []

    def work(start: int, end: int) -> None:
        if start == bad:
            raise IndexError(start)
        done.append(end)

    for bad in (0, 2):
        with pytest.raises(IndexError, match=str(bad)):
            in_halves(work, 4, least=4)
    assert done == [4, 2]


def test_seed_decides() -> None:
    first = trajectory(started(SMALL, [4, 5]))
    np.testing.assert_array_equal(first, trajectory(started(SMALL, [4, 5])))
    assert not np.allclose(first, trajectory(started(SMALL, [4, 6]))[:, [0, 1]])


def test_only_the_chosen_cells_advance_and_reset() -> None:
    network, twin = started(SMALL, [1, 2, 3]), started(SMALL, [1, 2, 3])
    before = network.capacity
    both = twin.step(np.zeros(3, dtype=int))
    after = network.step(np.zeros(3, dtype=int), np.array([0, 2]))
    np.testing.assert_array_equal(after[[0, 2]], both[[0, 2]])
    np.testing.assert_array_equal(after[1], before[1])
    np.testing.assert_array_equal(network.step(np.zeros(3, dtype=int), np.array([], int)), after)
    network.reset(np.array([2]), [network.draw_episode(np.random.default_rng(3), STEPS)])
    np.testing.assert_array_equal(network.capacity[2], before[2])
    np.testing.assert_array_equal(network.capacity[:2], after[:2])


def test_hand_calculation_with_two_cells() -> None:
    # 50 dBm = 100 W over 2 blocks: 50 W each; -170 dBm/Hz = 1e-20 W/Hz * 100 kHz = 1e-15 W
    cfg = RadioConfig(
        n_resource_blocks=2,
        rb_bandwidth_hz=1e5,
        tx_power_dbm=50,
        noise_dbm_per_hz=-170,
        noise_figure_db=0,
        pf_time_constant=4,
    )
    # received 7e-14 W and 9e-15 W from the neighbour: SINR 7e-14 / (9e-15 + 1e-15) = 7
    channel = FixedChannel([[7e-14 / 50, 9e-15 / 50]], 2)
    network = RadioNetwork(cfg, 1, 1, channel)
    network.reset(np.array([0]), [network.draw_episode(np.random.default_rng(0), 3)])
    assert network.mean_sinr[0, 0] == pytest.approx(7.0)
    # the only user owns both blocks: 2 * 100 kHz * log2(8) = 600 kbit/s, at every interval
    assert network.capacity[0, 0] == pytest.approx(6e5, rel=1e-6)
    assert network.step(np.array([0]))[0, 0] == pytest.approx(6e5, rel=1e-6)


def test_two_fixed_users_share_one_block() -> None:
    # no neighbours; 1 W and 1e-15 W of noise: SINR 7 and 1, one block of 100 kHz: 300, 100 kbit/s
    cfg = RadioConfig(
        n_resource_blocks=1,
        rb_bandwidth_hz=1e5,
        tx_power_dbm=30,
        noise_dbm_per_hz=-170,
        noise_figure_db=0,
        pf_time_constant=2,
    )
    scalar = ScalarRadioNetwork(cfg, 2, FixedChannel([[7e-15], [1e-15]], 1))
    scalar.reset(scalar.channel.draw_episode(np.random.default_rng(0), 2, 3))
    scalar.capacity = [200e3, 50e3]
    # t_c = 2; 300/200 < 100/50: second user; averages 100 and 25 + 50 = 75
    assert scalar.step(0) == pytest.approx([100e3, 75e3])
    # 300/100 > 100/75: first user; averages 50 + 150 = 200 and 37.5
    assert scalar.step(1) == pytest.approx([200e3, 37.5e3])
    assert scalar.owner == [0]


def test_users_attach_to_the_serving_site() -> None:
    channel = UrbanChannel(RadioConfig())
    draws = [channel.draw_episode(np.random.default_rng(s), 20, 1) for s in range(50)]
    gain = channel.large_scale_gain(ChannelDraws.stack(draws), 20)
    assert gain.shape == (50, 20, 7)
    assert (gain.argmax(axis=2) == 0).all()


def test_averages_start_where_the_scheduler_takes_them() -> None:
    network = RadioNetwork(RadioConfig(pf_time_constant=20), 16, 10)
    draws = [network.draw_episode(np.random.default_rng(s), 60) for s in range(16)]
    network.reset(np.arange(16), draws)
    start = network.capacity
    for t in range(60):
        end = network.step(np.full(16, t))
    assert (end / start).mean() == pytest.approx(1.0, abs=0.05)


def test_a_cell_without_neighbours_has_no_interference() -> None:
    cfg = SMALL.model_copy(update={"n_sites": 1, "interference_fading": True})
    assert (trajectory(started(cfg, [1])) > trajectory(started(SMALL, [1]))).mean() > 0.5


def test_hopeless_user_keeps_a_positive_capacity() -> None:
    channel = FixedChannel([[1e-10], [0.0]], 4)
    cfg = RadioConfig(n_resource_blocks=4, pf_time_constant=2)
    network = RadioNetwork(cfg, 1, 2, channel)
    network.reset(np.array([0]), [network.draw_episode(np.random.default_rng(0), 50)])
    for t in range(50):
        capacity = network.step(np.array([t]))
    assert capacity[0, 1] == 1.0
    assert capacity[0, 0] > 1e6


def test_the_returned_capacity_is_the_callers() -> None:
    network = started(SMALL, [1])
    network.step(np.array([0]))[:] = 0.0
    assert (network.capacity > 0).all()


def test_channels_are_pluggable() -> None:
    channels: list[Channel] = [UrbanChannel(SMALL), FixedChannel([[1e-9, 1e-12]] * 5, 24)]
    for channel in channels:
        draws = channel.draw_episode(np.random.default_rng(0), 5, 3)
        gain = channel.large_scale_gain(ChannelDraws.stack([draws]), 5)
        assert gain.shape[:2] == (1, 5)
        assert channel.fading(draws.fading[:1], 5).read().shape == (5, 1, 24)


def test_errors_name_what_is_wrong() -> None:
    short = RadioNetwork(SMALL.model_copy(update={"fading_tape_length": 1000}), 1, 50)
    with pytest.raises(ConfigurationError, match=r"fading_tape_length is 1000.*at least 1200"):
        short.draw_episode(np.random.default_rng(0), 3)
    network = started(SMALL, [1])
    with pytest.raises(ConfigurationError, match="n_steps is 3; allowed: 12"):
        network.reset(np.array([0]), [network.draw_episode(np.random.default_rng(0), 3)])
    with pytest.raises(ConfigurationError, match="n_users is 3; allowed: 1"):
        FixedChannel([[1.0]], 4).draw_episode(np.random.default_rng(0), 3, 1)
    with pytest.raises(IndexError):
        network.step(np.array([STEPS]))
