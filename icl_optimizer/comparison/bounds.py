"""What no policy can beat on held-out episodes, where somebody knows."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel

from icl_optimizer.environments.base import BatchedEnv
from icl_optimizer.environments.qos_routing import QoSRoutingVectorEnv
from icl_optimizer.environments.slo_scheduling import SLOSchedulingVectorEnv


class _Known(NamedTuple):
    """How a bound is found: for at most so many episodes, from the environment and its episode."""

    environment: type[BatchedEnv]
    episodes: int
    bound: Callable[[BatchedEnv, int], float]


def hindsight_bounds(env: BatchedEnv, seed: int) -> NDArray[np.float64] | None:
    """Return the most that any policy can score in each of the first episodes, ``(k,)``.

    Relaxations, see :mod:`icl_optimizer.baselines.hindsight`: cheap, and the same on every machine.
    None where no bound is known.

    Args:
        env: The held-out environment, whatever it is doing; it is not touched.
        seed: The seed of the evaluation.
    """
    name = type(env).__name__
    if name not in _KNOWN:
        return None
    config: BaseModel = env.config  # type: ignore[attr-defined]
    return _bounds(name, config.model_dump_json(), env.num_envs, seed)


@lru_cache(maxsize=256)
def _bounds(name: str, config: str, num_envs: int, seed: int) -> NDArray[np.float64]:
    # a sub-environment's tasks depend on its own seed alone
    known = _KNOWN[name]
    cls = known.environment
    count = min(known.episodes, num_envs)
    parsed = cls.config_class.model_validate_json(config)  # type: ignore[attr-defined]
    env = cls(count, parsed)
    env.reset(seed=seed)
    return np.array([known.bound(env, i) for i in range(count)])


def _scheduling(env: BatchedEnv, index: int) -> float:
    from icl_optimizer.baselines.hindsight import Instance, relaxed_bound

    assert isinstance(env, SLOSchedulingVectorEnv)
    return relaxed_bound(Instance(*env.instance(index)))


def _routing(env: BatchedEnv, index: int) -> float:
    from icl_optimizer.baselines.hindsight import RoutingInstance, routing_bound

    assert isinstance(env, QoSRoutingVectorEnv)
    return routing_bound(RoutingInstance(*env.instance(index)))


_KNOWN = {
    known.environment.__name__: known
    for known in (
        _Known(SLOSchedulingVectorEnv, 10, _scheduling),
        _Known(QoSRoutingVectorEnv, 1, _routing),
    )
}
