"""The radio network of one cell in plain Python: the reference for the batched one."""

from __future__ import annotations

import math

import numpy as np

from .arrays import Ints
from .channel import Channel, ChannelDraws
from .config import RadioConfig
from .scheduler import LEAST_AVERAGE
from .urban import UrbanChannel


class ScalarRadioNetwork:
    """What :class:`~.network.RadioNetwork` computes, for one cell, user by user.

    Written to be read and to be compared with; it uses the same channel and the same draws.

    Args:
        cfg: The radio parameters.
        n_users: Users in the cell.
        channel: Gains and fading; by default the 3GPP urban channel of ``cfg``.
    """

    def __init__(self, cfg: RadioConfig, n_users: int, channel: Channel | None = None) -> None:
        """Set up a cell without users."""
        self.cfg = cfg
        self.n_users = n_users
        self.channel: Channel = channel or UrbanChannel(cfg)
        self.owner: list[int] = []
        self.capacity: list[float] = []
        self._received_w: list[list[float]] = []
        self._offsets: list[int] = []

    def reset(self, draws: ChannelDraws) -> None:
        """Start an episode from ``draws``."""
        stack = ChannelDraws.stack([draws])
        gain = self.channel.large_scale_gain(stack, self.n_users)[0].tolist()
        self._received_w = [[self.cfg.rb_power_w * g for g in row] for row in gain]
        self._offsets = draws.fading.tolist()
        self.capacity = [self._first_average(row) for row in self._received_w]

    def step(self, interval: int) -> list[float]:
        """Schedule one interval; return the capacity of every user, bit/s."""
        rates = self._rates(np.array([self._offsets[interval]]))
        throughput = [0.0] * self.n_users
        self.owner = []
        for block in range(self.cfg.n_resource_blocks):
            user = self._choose(rates, block)
            self.owner.append(user)
            throughput[user] += rates[user][block]
        weight = 1.0 / self.cfg.pf_time_constant
        for user in range(self.n_users):
            average = (1.0 - weight) * self.capacity[user] + weight * throughput[user]
            self.capacity[user] = max(average, LEAST_AVERAGE)
        return list(self.capacity)

    def _choose(self, rates: list[list[float]], block: int) -> int:
        """Return the user with the largest rate relative to its average on ``block``."""
        best, best_metric = 0, -1.0
        for user in range(self.n_users):
            metric = rates[user][block] / self.capacity[user]
            if metric > best_metric:
                best, best_metric = user, metric
        return best

    def _rates(self, offset: Ints) -> list[list[float]]:
        """Return the rate of each user on each block, bit/s; eq. (2) of Zhou et al. (2024)."""
        if self.cfg.interference_fading:
            return self._rates_with_fading_interference(offset)
        rates = []
        bandwidth = self.cfg.rb_bandwidth_hz
        fading = self.channel.fading(offset, self.n_users).read()[:, 0].tolist()
        for received, gains in zip(self._received_w, fading, strict=True):
            mean = received[0] / (sum(received[1:]) + self.cfg.rb_noise_w)
            rates.append([bandwidth * math.log2(1.0 + mean * gain) for gain in gains])
        return rates

    def _rates_with_fading_interference(self, offset: Ints) -> list[list[float]]:
        """Return the same rates when each interferer fades by itself."""
        sites = range(len(self._received_w[0]))
        windows = [self.channel.fading(offset, self.n_users, j) for j in sites]
        fading = [w.read()[:, 0].tolist() for w in windows]
        rates = []
        for user, received in enumerate(self._received_w):
            row = []
            for block in range(self.cfg.n_resource_blocks):
                power = [received[j] * fading[j][user][block] for j in sites]
                ratio = power[0] / (sum(power[1:]) + self.cfg.rb_noise_w)
                row.append(self.cfg.rb_bandwidth_hz * math.log2(1.0 + ratio))
            rates.append(row)
        return rates

    def _first_average(self, received: list[float]) -> float:
        """Return an equal share of the blocks at the mean fading of the best user, bit/s."""
        mean = received[0] / (sum(received[1:]) + self.cfg.rb_noise_w)
        rate = math.log2(1.0 + mean * self.channel.best_fading(self.n_users))
        share = self.cfg.n_resource_blocks / self.n_users
        return max(share * self.cfg.rb_bandwidth_hz * rate, LEAST_AVERAGE)
