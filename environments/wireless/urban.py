"""The 3GPP urban channel: TR 38.901 large-scale gains and Rayleigh fading."""

from __future__ import annotations

import numpy as np

from icl_optimizer.errors import ConfigurationError

from .arrays import Floats, Ints, Singles
from .channel import ChannelDraws
from .config import RadioConfig
from .fading import FadingWindows, fading_tape, windows_of_users
from .layout import hexagon_points, site_positions
from .pathloss import los_path_loss, los_probability, nlos_path_loss, shadowing_std

# Drops per episode, for K users: in an urban grid about two thirds of the drops in a cell find it
# the strongest, so these leave fewer than K in a few of a million episodes.
DROPS_PER_USER = 2
SPARE_DROPS = 16


class UrbanChannel:
    """Path loss, line of sight and shadowing of TR 38.901, Rayleigh fading per resource block.

    Users are dropped uniformly in the centre cell; those count whose strongest site is the centre,
    since a user attaches to its strongest site (assumption; without it a few users behind
    obstacles, 30 dB below the interference, would dominate every mean delay).
    Links of one user to different sites are independent, and so are users (assumption: no
    spatial correlation of shadowing). Antennas radiate equally in all directions (assumption).
    Fading is independent between resource blocks, users and intervals (assumption).

    Args:
        cfg: The radio parameters.
    """

    def __init__(self, cfg: RadioConfig) -> None:
        """Place the sites and load the fading trace."""
        self._cfg = cfg
        self._sites = site_positions(cfg.n_sites, cfg.spacing_m)
        self._trace = fading_tape(cfg.fading_tape_length)

    def draw_episode(self, rng: np.random.Generator, n_users: int, n_steps: int) -> ChannelDraws:
        """Draw placements, line of sight, shadowing and fading offsets of one episode.

        Args:
            rng: The sub-environment's own generator.
            n_users: Users ``K``.
            n_steps: Scheduling intervals.

        Raises:
            ConfigurationError: If the fading trace is shorter than what one interval reads.
        """
        offsets = self._offsets(n_users)
        n_drops = DROPS_PER_USER * n_users + SPARE_DROPS
        links = (n_drops, self._cfg.n_sites)
        return ChannelDraws(
            position=rng.random((n_drops, 3), dtype=np.float32),
            sight=rng.random(links, dtype=np.float32),
            shadowing=rng.standard_normal(links, dtype=np.float32),
            fading=rng.integers(0, offsets, n_steps),
        )

    def large_scale_gain(self, draws: ChannelDraws, n_users: int) -> Floats:
        """Return power gains of the first ``n_users`` drops that the serving site would serve.

        A drop counts when it keeps the least distance and the serving site is its strongest;
        should too few count, the first of the others fill up.

        Args:
            draws: A stack of ``E`` episodes.
            n_users: Users ``K``.

        Returns:
            Linear power gains, shape ``(E, K, J)``, the serving site first.
        """
        distance = self._distances(draws.position)
        gain = self._gain(distance, draws.sight, draws.shadowing)
        refused = distance[..., 0] < self._cfg.closest_m
        refused |= gain[..., 0] < gain.max(axis=-1)
        order = refused.argsort(axis=-1, kind="stable")[:, :n_users, None]
        return np.take_along_axis(gain, order, axis=1)

    def fading(self, offset: Ints, n_users: int, site: int = 0) -> FadingWindows:
        """Return where Rayleigh power gains towards ``site`` are; mean 1."""
        n_blocks = self._cfg.n_resource_blocks
        first = offset + site * n_users * n_blocks
        return windows_of_users(self._trace, first, n_users, n_blocks)

    def best_fading(self, n_users: int) -> float:
        """Return the mean maximum of ``n_users`` unit exponentials: the harmonic number."""
        return float((1.0 / np.arange(1, n_users + 1)).sum())

    def _distances(self, uniforms: Singles) -> Floats:
        """Return horizontal distances in metres, ``(..., J)``, of drops ``(..., 3)``."""
        points = hexagon_points(uniforms, self._cfg.spacing_m)
        x, y = (points[..., i, None] - self._sites[:, i] for i in range(2))
        return np.asarray(np.sqrt(x**2 + y**2))

    def _gain(self, distance: Floats, sight: Singles, shadowing: Singles) -> Floats:
        """Return linear gains of links ``(..., J)``: path loss plus shadowing."""
        cfg = self._cfg
        geometry = (cfg.scenario, distance, cfg.carrier_ghz, cfg.antenna_height_m)
        clear = sight < los_probability(cfg.scenario, distance)
        clear_db = los_path_loss(*geometry, cfg.user_height_m)
        loss = np.where(clear, clear_db, nlos_path_loss(*geometry, cfg.user_height_m, clear_db))
        loss_db = loss + shadowing * shadowing_std(cfg.scenario, clear)
        return np.asarray(10.0 ** (-loss_db / 10.0))

    def _offsets(self, n_users: int) -> int:
        """Return how many offsets leave room for what one interval reads."""
        cfg = self._cfg
        links = cfg.n_sites if cfg.interference_fading else 1
        window = links * n_users * cfg.n_resource_blocks
        if window > cfg.fading_tape_length:
            raise ConfigurationError(
                f"fading_tape_length is {cfg.fading_tape_length}; allowed: at least {window}, "
                f"which {n_users} users read in one interval."
            )
        return cfg.fading_tape_length - window + 1
