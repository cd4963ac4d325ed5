"""The radio network of a batch of cells."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from icl_optimizer.errors import ConfigurationError

from .arrays import Floats, Ints, Singles
from .channel import Channel, ChannelDraws
from .config import RadioConfig
from .scheduler import (
    LEAST_AVERAGE,
    log_rate,
    moving_average,
    proportional_fair,
    shannon_rate,
    sinr,
)
from .urban import UrbanChannel

# user-block pairs worked on at once, so that intermediate arrays stay in a core's cache
CHUNK_PAIRS = 2**16


class RadioNetwork:
    """Downlink capacity of every user in a batch of cells, one scheduling interval per step.

    Users have full buffers (assumption). The capacity C of a user in eq. (2) of Zhou et al.
    (2024) is the proportional-fair scheduler's own moving average of its throughput: in a single
    interval a user may own no resource block at all (assumption).

    A cell's trajectory depends on its draws alone, not on the batch it is in.

    Args:
        cfg: The radio parameters.
        n_envs: Sub-environments ``E``.
        n_users: Users ``K`` in each cell.
        channel: Gains and fading; by default the 3GPP urban channel of ``cfg``.
    """

    def __init__(
        self, cfg: RadioConfig, n_envs: int, n_users: int, channel: Channel | None = None
    ) -> None:
        """Set up cells without users; :meth:`reset` places them."""
        self.cfg = cfg
        self.n_envs = n_envs
        self.n_users = n_users
        self.channel: Channel = channel or UrbanChannel(cfg)
        self._received_w = np.zeros((n_envs, n_users, 1))
        self._capacity = np.full((n_envs, n_users), LEAST_AVERAGE)
        self._offsets: Ints = np.zeros((n_envs, 0), dtype=np.int64)
        self._everyone: Ints = np.arange(n_envs)
        self._chunk = max(1, CHUNK_PAIRS // (n_users * cfg.n_resource_blocks))

    @property
    def mean_sinr(self) -> Floats:
        """Signal over mean interference plus noise, without fading; linear, ``(E, K)``."""
        return self._mean_sinr(self._everyone)

    def draw_episode(self, rng: np.random.Generator, n_steps: int) -> ChannelDraws:
        """Draw everything random in one cell's episode of ``n_steps`` scheduling intervals.

        Raises:
            ConfigurationError: If the fading trace is too short for the users.
        """
        return self.channel.draw_episode(rng, self.n_users, n_steps)

    def reset(self, env_indices: Ints, draws: Sequence[ChannelDraws]) -> None:
        """Start an episode in some cells.

        The averages start near where the scheduler takes them: an equal share of the blocks, each
        at the mean fading of the best user.

        Args:
            env_indices: Which sub-environments, shape ``(n,)``.
            draws: Their draws, in order, all for the same number of intervals.

        Raises:
            ConfigurationError: If the number of intervals is not that of the other cells.
        """
        for start in range(0, len(draws), self._chunk):
            part = slice(start, start + self._chunk)
            self._start(np.asarray(env_indices)[part], ChannelDraws.stack(draws[part]))

    def step(self, interval: Ints, env_indices: Ints | None = None) -> Floats:
        """Schedule one interval.

        Args:
            interval: Index of the interval in each cell's episode, shape ``(E,)``.
            env_indices: The sub-environments to advance, shape ``(n,)``; by default all.

        Returns:
            Capacity of every user, bit/s, positive, shape ``(E, K)``.

        Raises:
            IndexError: If an interval lies outside the episode.
        """
        indices = self._everyone if env_indices is None else np.asarray(env_indices)
        offsets = self._offsets[indices, np.asarray(interval)[indices]]
        for start in range(0, len(indices), self._chunk):
            part = slice(start, start + self._chunk)
            self._schedule(indices[part], offsets[part])
        return self._capacity.copy()

    def _start(self, envs: Ints, draws: ChannelDraws) -> None:
        """Place users and start averages in ``envs``."""
        received = self.cfg.rb_power_w * self.channel.large_scale_gain(draws)
        if received.shape[2] != self._received_w.shape[2]:
            self._received_w = np.zeros((self.n_envs, *received.shape[1:]))
        self._received_w[envs] = received
        self._keep_offsets(envs, draws.fading)
        best = self._mean_sinr(envs) * self.channel.best_fading(self.n_users)
        share = self.cfg.n_resource_blocks / self.n_users
        rate = share * shannon_rate(best, self.cfg.rb_bandwidth_hz)
        self._capacity[envs] = np.maximum(rate, LEAST_AVERAGE)

    def _keep_offsets(self, envs: Ints, offsets: Ints) -> None:
        """Keep the fading offsets ``(n, n_steps)`` of ``envs``."""
        n_steps, present = offsets.shape[1], self._offsets.shape[1]
        if not present:
            self._offsets = np.zeros((self.n_envs, n_steps), dtype=np.int64)
        elif present != n_steps:
            raise ConfigurationError(f"n_steps is {n_steps}; allowed: {present}, as at first.")
        self._offsets[envs] = offsets

    def _schedule(self, envs: Ints, offsets: Ints) -> None:
        """Advance ``envs`` by one interval whose fading starts at ``offsets``; both ``(n,)``."""
        rates = log_rate(self._sinr(envs, offsets))
        _, throughput = proportional_fair(rates, self._capacity[envs])
        # converted here, on K throughputs, instead of on K x Q rates
        throughput *= self.cfg.rb_bandwidth_hz / np.log(2.0)
        self._capacity[envs] = moving_average(
            self._capacity[envs], throughput, self.cfg.pf_time_constant
        )

    def _sinr(self, envs: Ints, offsets: Ints) -> Singles:
        """Return the SINR of ``envs`` on every block, ``(n, K, Q)``."""
        received = self._received_w[envs]
        fading = self.channel.fading(offsets, self.n_users)
        interference = self._interference(received, offsets)
        return sinr(fading, received[:, :, :1], interference, self.cfg.rb_noise_w)

    def _interference(self, received: Floats, offsets: Ints) -> Floats | Singles:
        """Return the power from other sites, ``(n, K, 1)``, or ``(n, K, Q)`` if it fades."""
        if not self.cfg.interference_fading:
            return np.asarray(received[:, :, 1:].sum(axis=2, keepdims=True))
        total = np.zeros(1, dtype=np.float32)
        for site in range(1, received.shape[2]):
            power = received[:, :, site, None].astype(np.float32)
            total = total + power * self.channel.fading(offsets, self.n_users, site)
        return total

    def _mean_sinr(self, envs: Ints) -> Floats:
        received = self._received_w[envs]
        interference = received[:, :, 1:].sum(axis=2)
        return np.asarray(received[:, :, 0] / (interference + self.cfg.rb_noise_w))
