"""What no policy can beat on held-out episodes, where somebody knows."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from icl_optimizer.environments.base import BatchedEnv
from icl_optimizer.environments.slo_scheduling import SLOSchedulingVectorEnv

EPISODES = 10
"""Episodes that a bound is computed for."""


def hindsight_bounds(env: BatchedEnv, seed: int) -> NDArray[np.float64] | None:
    """Return the most that any policy can score in each of the first episodes, ``(k,)``.

    The relaxation of the time-indexed programme, see :mod:`icl_optimizer.baselines.hindsight`:
    cheap, and the same on every machine. None where no bound is known.

    Args:
        env: The held-out environment, whatever it is doing; it is reset.
        seed: The seed of the evaluation.
    """
    if not isinstance(env, SLOSchedulingVectorEnv):
        return None
    return _bounds(env.config.model_dump_json(), env.num_envs, seed)


@lru_cache(maxsize=256)
def _bounds(config: str, num_envs: int, seed: int) -> NDArray[np.float64]:
    from icl_optimizer.baselines.hindsight import Instance, relaxed_bound
    from icl_optimizer.environments.slo_scheduling_config import SLOSchedulingConfig

    # a sub-environment's tasks depend on its own seed alone
    count = min(EPISODES, num_envs)
    env = SLOSchedulingVectorEnv(count, SLOSchedulingConfig.model_validate_json(config))
    env.reset(seed=seed)
    return np.array([relaxed_bound(Instance(*env.instance(i))) for i in range(count)])
