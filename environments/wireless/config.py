"""Parameters of the radio network, with their sources."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field, model_validator

from .pathloss import Scenario

TYPICAL_SPACING_M: dict[Scenario, float] = {"uma": 500.0, "umi": 200.0}
TYPICAL_MIN_DISTANCE_M: dict[Scenario, float] = {"uma": 35.0, "umi": 10.0}
TYPICAL_BS_HEIGHT_M: dict[Scenario, float] = {"uma": 25.0, "umi": 10.0}


class RadioConfig(BaseModel):
    """The downlink of one cell among its neighbours; eq. (2) of Zhou et al. (2024).

    The paper gives the rate equation, proportional-fair scheduling, orthogonal resource blocks
    inside the cell and "3GPP urban networks"; every number here is therefore an assumption, taken
    from TR 38.901 Table 7.2-1 and the usual 20 MHz system.

    Raises:
        pydantic.ValidationError: Naming the field, its value and what is allowed.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    scenario: Scenario = Field(
        default="uma",
        description="Urban macro or urban micro (street canyon) of TR 38.901. Assumption.",
    )
    carrier_ghz: float = Field(
        default=2.0, ge=0.5, le=100, description="Carrier frequency, GHz. Assumption."
    )
    n_resource_blocks: int = Field(
        default=100, ge=1, le=1000, description="Resource blocks of the cell: 20 MHz. Assumption."
    )
    rb_bandwidth_hz: float = Field(
        default=180e3,
        ge=1e3,
        le=1e8,
        description="Bandwidth b_q of one resource block, Hz. Assumption.",
    )
    tx_power_dbm: float = Field(
        default=46,
        ge=-30,
        le=80,
        description="Power of a site, dBm, in equal parts over the resource blocks. Assumption.",
    )
    noise_dbm_per_hz: float = Field(
        default=-174, ge=-200, le=-100, description="Noise density N_0, dBm/Hz. Assumption."
    )
    noise_figure_db: float = Field(
        default=9, ge=0, le=30, description="Noise figure of the users' receivers, dB. Assumption."
    )
    n_sites: int = Field(
        default=7,
        ge=1,
        le=19,
        description="Sites: the serving one in the centre, then the nearest of a hexagonal grid, "
        "all sending on every resource block. Assumption.",
    )
    inter_site_distance_m: float | None = Field(
        default=None,
        ge=40,
        le=1900,
        description="Distance of neighbouring sites, metres; None: 500 (uma), 200 (umi). The "
        "limit keeps every link within the 5 km of TR 38.901. Assumption.",
    )
    min_distance_m: float | None = Field(
        default=None,
        ge=10,
        description="Least horizontal distance of a user from its site, metres; None: 35 (uma), "
        "10 (umi). Assumption.",
    )
    bs_height_m: float | None = Field(
        default=None,
        gt=1,
        le=150,
        description="Height of the sites' antennas, metres; None: 25 (uma), 10 (umi). Assumption.",
    )
    user_height_m: float = Field(
        default=1.5, ge=1.5, lt=13, description="Height of the users' antennas, metres. Assumption."
    )
    pf_time_constant: float = Field(
        default=100,
        ge=2,
        description="Time constant of the scheduler's moving average, in scheduling intervals. "
        "Assumption.",
    )
    interference_fading: bool = Field(
        default=False,
        description="Whether interference fades fast too, or counts by its mean. Assumption.",
    )
    fading_tape_length: int = Field(
        default=2**18, ge=1000, le=2**26, description="Samples of the fading trace. Assumption."
    )

    @model_validator(mode="after")
    def _check_room(self) -> RadioConfig:
        if self.closest_m >= self.spacing_m / 2:
            raise ValueError(
                f"min_distance_m is {self.closest_m:g}; allowed: less than half of "
                f"inter_site_distance_m, which is {self.spacing_m:g}"
            )
        return self

    @property
    def spacing_m(self) -> float:
        """Distance of neighbouring sites, metres."""
        return self.inter_site_distance_m or TYPICAL_SPACING_M[self.scenario]

    @property
    def closest_m(self) -> float:
        """Least horizontal distance of a user from its site, metres."""
        return self.min_distance_m or TYPICAL_MIN_DISTANCE_M[self.scenario]

    @property
    def antenna_height_m(self) -> float:
        """Height of the sites' antennas, metres."""
        return self.bs_height_m or TYPICAL_BS_HEIGHT_M[self.scenario]

    @property
    def rb_power_w(self) -> float:
        """Power p_q that a site sends on one resource block, watts."""
        return dbm_to_watt(self.tx_power_dbm) / self.n_resource_blocks

    @property
    def rb_noise_w(self) -> float:
        """Noise power b_q N_0 on one resource block, the noise figure included, watts."""
        return dbm_to_watt(self.noise_dbm_per_hz + self.noise_figure_db) * self.rb_bandwidth_hz


def dbm_to_watt(dbm: float) -> float:
    """Convert a level in dBm to watts."""
    return float(10.0 ** ((dbm - 30.0) / 10.0))
