"""What a request to LiteLLM says about itself: deadline, task type, whose fault a failure is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from icl_optimizer.environments.slo_scheduling_config import TASK_TYPES
from icl_optimizer.errors import unknown_name

_SERVERS_FAULT = (401, 402, 404, 408, 429)
"""Statuses below 500 that say something about a deployment, as for LiteLLM's cooldowns."""


def asked_of(kwargs: Mapping[str, Any], usual_s: float) -> tuple[str | None, float]:
    """Return task type, None where none is named, and deadline in seconds.

    ``metadata`` of a request holds them as ``task_type`` and ``deadline_s``, or its headers to the
    proxy as ``x-task-type`` and ``x-deadline-s``.

    Args:
        kwargs: The request.
        usual_s: Deadline of a request that names none.

    Raises:
        ValueError: One is not valid.
    """
    told = {**_headers(kwargs), **metadata_of(kwargs)}
    return _task(told), _deadline(told, usual_s)


def metadata_of(kwargs: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the metadata of a request or of its parameters; it may be empty."""
    found = kwargs.get("litellm_metadata") or kwargs.get("metadata")
    return found if isinstance(found, Mapping) else {}


def _headers(kwargs: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return what the headers of a request to LiteLLM's proxy say, named as in metadata."""
    headers = (kwargs.get("proxy_server_request") or {}).get("headers") or {}
    lower = {str(name).lower(): value for name, value in headers.items()}
    names = {"deadline_s": "x-deadline-s", "task_type": "x-task-type"}
    return {name: lower[header] for name, header in names.items() if header in lower}


def _deadline(told: Mapping[str, Any], usual: float) -> float:
    given = told.get("deadline_s", usual)
    try:
        seconds = float(given)
    except (TypeError, ValueError):
        seconds = 0.0
    if not 0 < seconds <= 3600:
        raise ValueError(f"deadline_s is {given!r}; allowed: more than 0, at most 3600 s.")
    return seconds


def _task(told: Mapping[str, Any]) -> str | None:
    given = told.get("task_type")
    if given is None:
        return None
    name = str(given).replace("-", " ")
    if name not in TASK_TYPES:
        raise unknown_name("task type", name, TASK_TYPES)
    return name


def callers_fault(error: Any) -> bool:
    """Return whether a failure says nothing about the deployment."""
    status = getattr(error, "status_code", None)
    if not isinstance(status, int):
        return False
    return 400 <= status < 500 and status not in _SERVERS_FAULT
