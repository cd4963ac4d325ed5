"""Network environments, batched first; importing the package registers them with Gymnasium."""

from __future__ import annotations

from icl_optimizer.environments.registry import EnvironmentSpec, environment_names, get_spec, make

__all__ = ["EnvironmentSpec", "environment_names", "get_spec", "make"]
