"""Find the load of scenario ``calibrated``: arrivals sped up until least loaded is often late.

``python -m icl_optimizer.environments.load_balancing_calibration [TRACE ...]`` prints the load
factor for each trace; those of the shipped traces are kept in :data:`.CALIBRATED`.
"""

from __future__ import annotations

import sys
from typing import Any

from icl_optimizer.environments.load_balancing import LoadBalancingVectorEnv
from icl_optimizer.environments.load_balancing_config import LoadBalancingConfig
from icl_optimizer.environments.traces import SHIPPED
from icl_optimizer.errors import ConfigurationError

TARGET = 0.4
"""Share of late requests: the middle of the 30 to 50 % that the scenario is to have."""
MOST = 1024.0
"""Load factors are sought below it."""


def least_loaded_violations(**settings: Any) -> float:
    """Return the share of late requests of least loaded in one pass over the held-out part."""
    env = LoadBalancingVectorEnv(1, LoadBalancingConfig(**{"part": "held-out", **settings}))
    load = env.problem.role("Load")
    observation, _ = env.reset(seed=0)
    late = 0.0
    for _ in range(env.problem.horizon):
        observation, *_, info = env.step(observation[:, load].argmin(axis=1))
        late += info["outcomes"].metrics["slo_violation"].sum()
    return float(late / env.problem.horizon)


def calibrate(trace: str, target: float = TARGET, *, digits: int = 2, **settings: Any) -> float:
    """Return the load factor at which least loaded is late for ``target`` of the requests.

    Lateness need not rise evenly with the load; the factor is one at which it crosses the target.

    Args:
        trace: Shipped name or file.
        target: Share of late requests in the held-out part, 0 to 1.
        digits: Decimals of the factor.
        settings: Further fields of the environment.

    Raises:
        ConfigurationError: No load factor below :data:`MOST` makes so many late, or every one does.
    """

    def late(factor: float) -> float:
        fixed = {"trace": trace, "scenario": "calibrated", "load_factor": factor}
        return least_loaded_violations(**settings | fixed)

    low, high = 0.0, 1.0
    while late(high) < target and high < MOST:
        low, high = high, 2 * high
    while MOST > high > 10**-digits / 2 + low:
        middle = (low + high) / 2
        low, high = (low, middle) if late(middle) >= target else (middle, high)
    if not 0 < low < high < MOST:
        raise ConfigurationError(
            f"target is {target} for '{trace}'; allowed: a share of late requests that is crossed "
            f"at a load factor between 0 and {MOST:g}."
        )
    return round(high, digits)


def main(traces: list[str]) -> None:
    """Print the load factor for each of ``traces``."""
    for trace in traces:
        factor = calibrate(trace)
        fixed = {"trace": trace, "scenario": "calibrated", "load_factor": factor}
        print(f"{trace}: load_factor {factor:g}, late {least_loaded_violations(**fixed):.1%}")


if __name__ == "__main__":
    main(sys.argv[1:] or list(SHIPPED))
