"""What training a policy costs: seconds, and memory of a process that does nothing else."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from icl_optimizer.environments.registry import get_spec
from icl_optimizer.policies import get_policy_spec, make_policy

STATUS = Path("/proc/self/status")


@dataclass(frozen=True)
class TrainingCost:
    """What one training took.

    Attributes:
        decisions: What the policy learned from.
        train_s: Seconds within ``learn``.
        process_s: Seconds from the start of the process to its end, imports included.
        peak_mb: Most memory that the process held at any time, libraries included, in 10^6 bytes.
    """

    decisions: int
    train_s: float
    process_s: float
    peak_mb: float


def measure_training(
    environment: str,
    policy: str,
    *,
    decisions: int | None = None,
    settings: Mapping[str, Any] | None = None,
    seed: int = 0,
) -> TrainingCost:
    """Train a policy in a fresh process and return what that took.

    Args:
        environment: Name of the environment.
        policy: Name of the policy.
        decisions: What to learn from; the policy's own budget when None.
        settings: Parameters of the environment that differ from the defaults.
        seed: Seed of the policy.

    Raises:
        ConfigurationError: A name or a value is wrong.
        RuntimeError: The process failed; the message ends with what it printed.
    """
    given = dict(settings or {})
    get_spec(environment).config(given)
    budget = decisions or get_policy_spec(policy).budget_in(environment, given)
    what = json.dumps([environment, policy, budget, given, seed])
    started = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", __name__, what], capture_output=True, text=True, check=False
    )
    seconds = time.perf_counter() - started
    if done.returncode:
        raise RuntimeError(f"training '{policy}' in a process failed: {done.stderr[-2000:]}")
    return TrainingCost(process_s=seconds, **json.loads(done.stdout.splitlines()[-1]))


def _train(
    environment: str, policy: str, decisions: int, settings: dict[str, Any], seed: int
) -> dict[str, Any]:
    spec = get_policy_spec(policy)
    env = spec.training_env(environment, settings)
    learner = make_policy(policy, env.problem, env=env, seed=seed)
    started = time.perf_counter()
    learner.learn(decisions)
    seconds = time.perf_counter() - started
    cost = asdict(TrainingCost(learner.num_timesteps, seconds, 0.0, peak_memory() / 1e6))
    del cost["process_s"]
    return cost


def peak_memory() -> int:
    """Return the most memory that this process has held so far, bytes.

    Linux tells it for the program alone. Elsewhere what the system tells may include the process
    that started it.
    """
    if STATUS.exists():
        (line,) = (t for t in STATUS.read_text().splitlines() if t.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


if __name__ == "__main__":
    print(json.dumps(_train(*json.loads(sys.argv[1]))))
