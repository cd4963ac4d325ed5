"""What a live run is: the fleet, when tasks arrive, and the twin that learners learn in."""

from __future__ import annotations

from typing import Any, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from icl_optimizer.environments.comma_lists import Numbers
from icl_optimizer.environments.fleet.config import DEMO, FleetConfig, load_fleet
from icl_optimizer.environments.fleet.twin import scheduling_config
from icl_optimizer.environments.queues.arrivals import Bursts
from icl_optimizer.environments.slo_scheduling_config import SLOSchedulingConfig
from icl_optimizer.environments.traces import Trace, read_trace
from icl_optimizer.errors import ConfigurationError
from icl_optimizer.settings_file import read_settings

_SAME = ("arrival_rate", "bursts", "horizon", "type_deadlines_s", "mixed_deadlines_s")
"""Fields that a live run and its twin have in common."""


class LiveConfig(BaseModel):
    """Real tasks to real servers, at real times."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    fleet: str | dict[str, Any] = Field(
        DEMO, description="A fleet file whose servers run, or `demo`, which is started and stopped."
    )
    twin: str | None = Field(
        None, description="Settings that `fleet measure` wrote; None: what the fleet file says."
    )
    arrival_rate: float = Field(1.0, gt=0, le=100, description="Mean arrivals per second.")
    bursts: Bursts | None = Field(
        None, description="Two-state modulation of the arrivals; None: Poisson."
    )
    trace: str | None = Field(
        None, description="Trace (shipped name or file) that arrivals are taken from instead."
    )
    time_scale: float = Field(
        1.0, gt=0, le=1e6, description="Seconds on the clock per second of the trace."
    )
    horizon: int = Field(30, ge=1, le=100_000, description="Tasks of an episode.")
    deadline_s: float | None = Field(
        None, gt=0, le=3600, description="Deadline, seconds from the arrival; None: the fleet's."
    )
    type_deadlines_s: dict[str, float] = Field(
        default_factory=dict, description="Deadlines of single task types that differ, seconds."
    )
    mixed_deadlines_s: Numbers = Field(
        (), description="Deadlines drawn at random for each task; they replace the others."
    )
    cancel: bool = Field(
        True, description="Cancel a request at its deadline; else wait for the late answer."
    )

    @model_validator(mode="after")
    def _scale_needs_trace(self) -> Self:
        if self.trace is None and self.time_scale != 1:
            raise ValueError(f"time_scale is {self.time_scale}; allowed: 1 without a trace")
        return self

    @property
    def fleet_config(self) -> FleetConfig:
        """The fleet as its file describes it."""
        return load_fleet(self.fleet)

    @property
    def recorded(self) -> Trace | None:
        """The trace that arrivals are taken from, if any."""
        if self.trace is None:
            return None
        trace = read_trace(self.trace)
        if len(trace) <= self.horizon:
            raise ConfigurationError(
                f"trace '{self.trace}' has {len(trace)} requests; allowed: more than horizon, "
                f"which is {self.horizon}."
            )
        return trace

    @property
    def twin_config(self) -> SLOSchedulingConfig:
        """The simulation of the same fleet and tasks.

        Raises:
            ConfigurationError: The fleet or the twin's settings cannot be read, or name other
                servers.
        """
        fleet = self.fleet_config
        fields = {name: getattr(self, name) for name in _SAME}
        if self.deadline_s is not None:
            fields["deadline_s"] = self.deadline_s
        trace = self.recorded
        if trace is not None:
            # simulated arrivals are drawn at the trace's mean rate
            span = float(trace.arrival_s[-1] - trace.arrival_s[0]) * self.time_scale
            fields["arrival_rate"] = (len(trace) - 1) / span
        measured = {} if self.twin is None else read_settings("twin", self.twin)
        config = scheduling_config(fleet, **measured | fields | {"cancel_late": self.cancel})
        if config.names != fleet.names:
            raise ConfigurationError(
                f"the twin's servers are {', '.join(config.names)}; allowed: those of the fleet, "
                f"{', '.join(fleet.names)}."
            )
        return config


def twin_of(config: LiveConfig) -> dict[str, Any]:
    """Return the settings of the simulation that policies learn in."""
    return config.twin_config.model_dump(exclude_defaults=True)
