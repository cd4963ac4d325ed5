"""The studies by name."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from pathlib import Path

from icl_optimizer.errors import unknown_name

STUDIES = {
    "backends": "run_backends",
    "balancing": "run_balancing",
    "cold-start": "run_cold_start",
    "faults": "run_faults",
    "inference": "run_inference",
    "levers": "run_levers",
    "off-policy": "run_off_policy",
    "router-endpoint": "run_router_endpoint",
    "router-faults": "run_router_faults",
    "router-access": "run_router_access",
    "routing": "run_routing",
    "scale": "run_scale",
    "scheduling": "run_scheduling",
    "splitting": "run_splitting",
    "twin": "run_twin",
}


def run_study(name: str, out: Path, seeds: int | None = None) -> Path:
    """Run the study ``name`` and return its table's path.

    Args:
        name: Of the study.
        out: Folder for the tables.
        seeds: Repetitions; None for the study's own number.

    Raises:
        ConfigurationError: There is no such study.
    """
    if name not in STUDIES:
        raise unknown_name("study", name, STUDIES)
    module = import_module(f"icl_optimizer.studies.{name.replace('-', '_')}")
    run: Callable[..., Path] = getattr(module, STUDIES[name])
    return run(out) if seeds is None else run(out, seeds)
