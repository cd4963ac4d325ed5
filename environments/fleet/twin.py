"""The simulated twin of a fleet: the scheduling environment with the fleet's servers in it."""

from __future__ import annotations

from typing import Any

from pydantic import ValidationError

from icl_optimizer.environments.fleet.config import FleetConfig, ServerConfig
from icl_optimizer.environments.slo_scheduling_config import ServedServer, SLOSchedulingConfig
from icl_optimizer.errors import invalid_fields


def scheduling_config(fleet: FleetConfig, **overrides: Any) -> SLOSchedulingConfig:
    """Return the configuration of a fleet's twin.

    Its servers have the names, slots, queues, speeds, lengths and scores that the fleet's
    description gives them. Like a live fleet it takes a task away at its deadline.

    Args:
        fleet: The servers.
        **overrides: Fields of :class:`SLOSchedulingConfig`, such as ``arrival_rate``.

    Raises:
        ConfigurationError: A field is not valid, or there are fewer than two servers.
    """
    fields = twin_settings(fleet) | overrides
    try:
        return SLOSchedulingConfig(**fields)
    except ValidationError as error:
        raise invalid_fields("the twin", error) from error


def twin_settings(fleet: FleetConfig) -> dict[str, Any]:
    """Return the fields in which the twin differs from the scheduling environment's defaults."""
    return {
        "servers": tuple(served_server(server) for server in fleet.servers),
        "deadline_s": fleet.deadline_s,
        "mixed_deadlines_s": fleet.deadlines_s,
        "length_spread": fleet.length_spread,
        "model_spread": fleet.model_spread,
        "relative_lengths": fleet.relative_lengths,
        "cancel_late": True,
    }


def served_server(server: ServerConfig) -> ServedServer:
    """Return what the twin simulates of a server."""
    fields = server.model_dump(include=set(ServedServer.model_fields))
    return ServedServer(**fields)
