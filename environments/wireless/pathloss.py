"""Urban path loss, line-of-sight probability and shadowing of 3GPP TR 38.901 (v16 and later).

Pure functions of the horizontal distance in metres, the carrier in GHz and antenna heights in
metres; results in dB unless said otherwise. Valid from 10 m to 5 km and for users below 13 m,
where the effective environment height is 1 m in both scenarios (Table 7.4.1-1, note 1).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from .arrays import Bools, Floats

Scenario = Literal["uma", "umi"]

SPEED_OF_LIGHT_M_S = 3.0e8  # the value that TR 38.901 prescribes
ENVIRONMENT_HEIGHT_M = 1.0
SURE_LOS_DISTANCE_M = 18.0


@dataclass(frozen=True)
class UrbanParameters:
    """Coefficients of one scenario in TR 38.901.

    Attributes:
        los_intercept_db: Constant of PL1 and PL2.
        los_slope: Factor of log10 of the 3-D distance in PL1; PL2 has 40 in every scenario.
        breakpoint_factor: Factor of the breakpoint term in PL2.
        nlos_intercept_db: Constant of PL'.
        nlos_slope: Factor of log10 of the 3-D distance in PL'.
        nlos_carrier_factor: Factor of log10 of the carrier in PL'.
        nlos_height_factor: Loss per metre of user height above 1.5 m, taken from PL'.
        los_decay_m: Decay distance of the line-of-sight probability (Table 7.4.2-1).
        los_shadow_db: Standard deviation of shadow fading in line of sight.
        nlos_shadow_db: The same without line of sight.
    """

    los_intercept_db: float
    los_slope: float
    breakpoint_factor: float
    nlos_intercept_db: float
    nlos_slope: float
    nlos_carrier_factor: float
    nlos_height_factor: float
    los_decay_m: float
    los_shadow_db: float
    nlos_shadow_db: float


URBAN: dict[Scenario, UrbanParameters] = {
    "uma": UrbanParameters(28.0, 22.0, 9.0, 13.54, 39.08, 20.0, 0.6, 63.0, 4.0, 6.0),
    "umi": UrbanParameters(32.4, 21.0, 9.5, 22.4, 35.3, 21.3, 0.3, 36.0, 4.0, 7.82),
}


def breakpoint_distance(carrier_ghz: float, bs_height_m: float, user_height_m: float) -> float:
    """Return d'_BP = 4 h'_BS h'_UT f_c / c in metres (Table 7.4.1-1, note 1)."""
    bs = bs_height_m - ENVIRONMENT_HEIGHT_M
    user = user_height_m - ENVIRONMENT_HEIGHT_M
    return 4.0 * bs * user * carrier_ghz * 1e9 / SPEED_OF_LIGHT_M_S


def los_path_loss(
    scenario: Scenario,
    distance_m: ArrayLike,
    carrier_ghz: float,
    bs_height_m: float,
    user_height_m: float,
) -> Floats:
    """Return the path loss in line of sight (Table 7.4.1-1, PL1 and PL2).

    Args:
        scenario: ``uma`` (urban macro) or ``umi`` (urban micro, street canyon).
        distance_m: Horizontal distance, any shape.
        carrier_ghz: Carrier frequency, GHz.
        bs_height_m: Height of the base station's antenna, metres.
        user_height_m: Height of the user's antenna, metres.

    Returns:
        Path loss in dB, the shape of ``distance_m``.
    """
    row = URBAN[scenario]
    horizontal = np.asarray(distance_m, dtype=np.float64)
    height = bs_height_m - user_height_m
    corner = breakpoint_distance(carrier_ghz, bs_height_m, user_height_m)
    log_distance = 0.5 * np.log10(horizontal**2 + height**2)
    near = row.los_slope * log_distance
    far = 40.0 * log_distance - row.breakpoint_factor * np.log10(corner**2 + height**2)
    loss = row.los_intercept_db + 20.0 * np.log10(carrier_ghz)
    return np.asarray(loss + np.where(horizontal <= corner, near, far))


def nlos_path_loss(
    scenario: Scenario,
    distance_m: ArrayLike,
    carrier_ghz: float,
    bs_height_m: float,
    user_height_m: float,
    clear_db: Floats | None = None,
) -> Floats:
    """Return the path loss without line of sight: max(PL_LOS, PL') (Table 7.4.1-1).

    Arguments and result are those of :func:`los_path_loss`; ``clear_db`` is what that returns for
    them, where it is known already.
    """
    row = URBAN[scenario]
    horizontal = np.asarray(distance_m, dtype=np.float64)
    log_distance = 0.5 * np.log10(horizontal**2 + (bs_height_m - user_height_m) ** 2)
    obstructed = (
        row.nlos_intercept_db
        + row.nlos_slope * log_distance
        + row.nlos_carrier_factor * np.log10(carrier_ghz)
        - row.nlos_height_factor * (user_height_m - 1.5)
    )
    if clear_db is None:
        clear_db = los_path_loss(scenario, distance_m, carrier_ghz, bs_height_m, user_height_m)
    return np.asarray(np.maximum(clear_db, obstructed))


def los_probability(scenario: Scenario, distance_m: ArrayLike) -> Floats:
    """Return the probability of line of sight for users below 13 m (Table 7.4.2-1).

    Args:
        scenario: ``uma`` or ``umi``.
        distance_m: Horizontal distance, any shape.

    Returns:
        Probabilities, the shape of ``distance_m``; 1 up to 18 m.
    """
    distance = np.maximum(np.asarray(distance_m, dtype=np.float64), SURE_LOS_DISTANCE_M)
    share = SURE_LOS_DISTANCE_M / distance
    return np.asarray(share + np.exp(-distance / URBAN[scenario].los_decay_m) * (1.0 - share))


def shadowing_std(scenario: Scenario, line_of_sight: Bools) -> Floats:
    """Return the standard deviation of shadow fading in dB (Table 7.4.1-1).

    Args:
        scenario: ``uma`` or ``umi``.
        line_of_sight: Whether each link is in line of sight, any shape.
    """
    row = URBAN[scenario]
    return np.asarray(np.where(line_of_sight, row.los_shadow_db, row.nlos_shadow_db))
