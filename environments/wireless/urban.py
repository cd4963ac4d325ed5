"""The 3GPP urban channel: TR 38.901 large-scale gains and Rayleigh fading."""

from __future__ import annotations

import numpy as np

from icl_optimizer.errors import ConfigurationError

from .arrays import Floats, Ints, Singles
from .channel import ChannelDraws
from .config import RadioConfig
from .fading import fading_tape, read_tape
from .layout import hexagon_points, site_positions
from .pathloss import los_path_loss, los_probability, nlos_path_loss, shadowing_std


class UrbanChannel:
    """Path loss, line of sight and shadowing of TR 38.901, Rayleigh fading per resource block.

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
        self._tape = fading_tape(cfg.fading_tape_length)

    def draw_episode(
        self, rng: np.random.Generator, n_users: int, n_steps: int
    ) -> ChannelDraws:
        """Draw placements, line of sight, shadowing and fading offsets of one episode.

        Args:
            rng: The sub-environment's own generator.
            n_users: Users ``K``.
            n_steps: Scheduling intervals.

        Raises:
            ConfigurationError: If the fading trace is shorter than what one interval reads.
        """
        shape = (self._cfg.placement_attempts, n_users)
        links = (*shape, self._cfg.n_sites)
        return ChannelDraws(
            position=rng.random((*shape, 3), dtype=np.float32),
            sight=rng.random(links, dtype=np.float32),
            shadowing=rng.standard_normal(links, dtype=np.float32),
            fading=rng.integers(0, self._offsets(n_users), n_steps),
        )

    def large_scale_gain(self, draws: ChannelDraws) -> Floats:
        """Return power gains, each user at the first placement that its cell would serve.

        A placement counts when it keeps the least distance and the serving site is the strongest;
        if none does, the last one stands.

        Args:
            draws: A stack of ``E`` episodes.

        Returns:
            Linear power gains, shape ``(E, K, J)``, the serving site first.
        """
        n_envs, attempts, n_users, _ = draws.position.shape
        gain = np.empty((n_envs, n_users, self._cfg.n_sites))
        env, user = (i.ravel() for i in np.indices((n_envs, n_users)))
        for attempt in range(attempts):
            pick = (env, attempt, user)
            distance = self._distances(draws.position[pick])
            gain[env, user] = self._gain(distance, draws.sight[pick], draws.shadowing[pick])
            refused = distance[:, 0] < self._cfg.closest_m
            if attempts > 1:
                refused |= gain[env, user].argmax(axis=1) != 0
            env, user = env[refused], user[refused]
            if not len(env):
                break
        return gain

    def fading(self, offset: Ints, n_users: int, site: int = 0) -> Singles:
        """Return Rayleigh power gains towards ``site``, shape ``(E, K, Q)``; mean 1."""
        n_blocks = self._cfg.n_resource_blocks
        return read_tape(self._tape, offset + site * n_users * n_blocks, n_users, n_blocks)

    def best_fading(self, n_users: int) -> float:
        """Return the mean maximum of ``n_users`` unit exponentials: the harmonic number."""
        return float((1.0 / np.arange(1, n_users + 1)).sum())

    def _distances(self, uniforms: Singles) -> Floats:
        """Return horizontal distances in metres, ``(P, J)``, of ``P`` placements ``(P, 3)``."""
        points = hexagon_points(uniforms, self._cfg.spacing_m)
        apart = points[:, None, :] - self._sites
        return np.asarray(np.hypot(apart[..., 0], apart[..., 1]))

    def _gain(self, distance: Floats, sight: Singles, shadowing: Singles) -> Floats:
        """Return linear gains of links ``(P, J)``: path loss plus shadowing."""
        cfg = self._cfg
        geometry = (cfg.scenario, distance, cfg.carrier_ghz, cfg.antenna_height_m)
        clear = sight < los_probability(cfg.scenario, distance)
        loss = np.where(
            clear,
            los_path_loss(*geometry, cfg.user_height_m),
            nlos_path_loss(*geometry, cfg.user_height_m),
        )
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
