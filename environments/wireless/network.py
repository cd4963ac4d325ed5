"""The radio network of a batch of cells."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from icl_optimizer.errors import ConfigurationError

from .arrays import Floats, Ints
from .channel import Channel, ChannelDraws
from .config import RadioConfig
from .fading import FadingWindows
from .parallel import in_halves
from .scheduler import (
    LEAST_AVERAGE,
    moving_average,
    proportional_fair,
    shannon_rate,
    sinr,
)
from .urban import UrbanChannel

# user-block pairs worked on at once, which bounds the memory that fading interference takes
CHUNK_PAIRS = 2**20


@dataclass(frozen=True)
class _Cells:
    """Some cells in one interval: powers ``(K, n, J)`` and ``(K, n)``, fading offsets ``(n,)``."""

    received_w: Floats
    interference_w: Floats
    offset: Ints

    def __getitem__(self, part: slice) -> _Cells:
        return _Cells(self.received_w[:, part], self.interference_w[:, part], self.offset[part])


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
        # state has users first, as the scheduler wants it
        self._received_w = np.zeros((n_users, n_envs, 1))
        self._interference_w = np.zeros((n_users, n_envs))
        self._average = np.full((n_users, n_envs), LEAST_AVERAGE)
        self._offsets: Ints = np.zeros((n_envs, 0), dtype=np.int64)
        self._everyone: Ints = np.arange(n_envs)
        self._chunk = max(1, CHUNK_PAIRS // (n_users * cfg.n_resource_blocks))

    @property
    def capacity(self) -> Floats:
        """Capacity of every user, bit/s, positive; a new array, shape ``(E, K)``."""
        return self._average.T.copy()

    @property
    def mean_sinr(self) -> Floats:
        """Signal over mean interference plus noise, without fading; linear, ``(E, K)``."""
        return self._mean_sinr().T

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
        # a slice makes views where indices would make copies
        everyone = env_indices is None or len(env_indices) == self.n_envs
        rows = slice(None) if everyone else np.asarray(env_indices)
        envs = self._everyone[rows]
        cells = _Cells(
            self._received_w[:, rows],
            self._interference_w[:, rows],
            self._offsets[envs, np.asarray(interval)[rows]],
        )
        average = self._average[:, rows]
        throughput = self._schedule(cells, average)
        self._average[:, rows] = moving_average(average, throughput, self.cfg.pf_time_constant)
        return self.capacity

    def _start(self, envs: Ints, draws: ChannelDraws) -> None:
        """Place users and start averages in ``envs``."""
        gain = self.channel.large_scale_gain(draws, self.n_users)
        received = self.cfg.rb_power_w * gain.transpose(1, 0, 2)
        if received.shape[2] != self._received_w.shape[2]:
            self._received_w = np.zeros((self.n_users, self.n_envs, received.shape[2]))
        self._received_w[:, envs] = received
        self._interference_w[:, envs] = received[:, :, 1:].sum(axis=2)
        self._keep_offsets(envs, draws.fading)
        best = self._mean_sinr()[:, envs] * self.channel.best_fading(self.n_users)
        share = self.cfg.n_resource_blocks / self.n_users
        rate = share * shannon_rate(best, self.cfg.rb_bandwidth_hz)
        self._average[:, envs] = np.maximum(rate, LEAST_AVERAGE)

    def _keep_offsets(self, envs: Ints, offsets: Ints) -> None:
        """Keep the fading offsets ``(n, n_steps)`` of ``envs``."""
        n_steps, present = offsets.shape[1], self._offsets.shape[1]
        if not present:
            self._offsets = np.zeros((self.n_envs, n_steps), dtype=np.int64)
        elif present != n_steps:
            raise ConfigurationError(f"n_steps is {n_steps}; allowed: {present}, as at first.")
        self._offsets[envs] = offsets

    def _schedule(self, cells: _Cells, average: Floats) -> Floats:
        """Return each user's throughput in one interval, bit/s, ``(K, n)``."""
        throughput = np.empty_like(average)

        def work(first: int, end: int) -> None:
            for start in range(first, end, self._chunk):
                part = slice(start, min(start + self._chunk, end))
                fading, mean = self._sinr(cells[part])
                _, throughput[:, part] = proportional_fair(fading, mean, average[:, part])

        in_halves(work, len(cells.offset), least=self._chunk)
        # from nat/s/Hz to bit/s here, on K throughputs, instead of on K x Q rates
        return np.asarray(throughput * self.cfg.rb_bandwidth_hz / np.log(2.0))

    def _sinr(self, cells: _Cells) -> tuple[FadingWindows, Floats]:
        """Return the fading and the SINR ``(K, n)`` before it."""
        fading = self.channel.fading(cells.offset, self.n_users)
        signal = cells.received_w[:, :, 0]
        if not self.cfg.interference_fading:
            return fading, sinr(signal, cells.interference_w, self.cfg.rb_noise_w)
        ratio = sinr(
            fading.read() * signal[:, :, None], self._interference(cells), self.cfg.rb_noise_w
        )
        # the SINR itself takes the place of the fading: it is not a mean times a gain here
        start = np.arange(signal.size).reshape(signal.shape) * fading.n_blocks
        windows = FadingWindows(ratio.astype(np.float32).ravel(), start, fading.n_blocks)
        return windows, np.ones(signal.shape)

    def _interference(self, cells: _Cells) -> Floats:
        """Return the power from other sites, each of which fades, ``(K, n, Q)``."""
        total = np.zeros((*cells.interference_w.shape, 1))
        for site in range(1, cells.received_w.shape[2]):
            power = cells.received_w[:, :, site, None]
            total = total + power * self.channel.fading(cells.offset, self.n_users, site).read()
        return total

    def _mean_sinr(self) -> Floats:
        return sinr(self._received_w[:, :, 0], self._interference_w, self.cfg.rb_noise_w)
