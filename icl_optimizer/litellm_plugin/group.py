"""The deployments of one model name as servers of a fleet, and a policy that chooses."""

from __future__ import annotations

import re
import time
from collections import deque
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from threading import Lock
from typing import Any

import numpy as np
from numpy.typing import NDArray

from icl_optimizer.decision import Decision, Outcome
from icl_optimizer.environments.fleet.config import FleetConfig, load_fleet
from icl_optimizer.environments.slo_scheduling_config import TASK_TYPES
from icl_optimizer.policy import Policy
from icl_optimizer.router.building import router_policy
from icl_optimizer.router.choice import nearest
from icl_optimizer.router.settings import RouterSettings

HINTS = "icl_optimizer"
"""Key below a deployment's ``model_info`` for fields of a server in a fleet file."""
_GENERATED_ID = re.compile(r"[0-9a-f]{64}")
_QUEUE_PER_SLOT = 4

Deployment = Mapping[str, Any]


@dataclass(frozen=True)
class Attempt:
    """A request on its way to a deployment.

    Attributes:
        decision: Why it went there; None where there was nothing to choose.
        server: Index of the deployment in its group.
        task: Task type.
        deadline_s: Time allowed, seconds.
        began: When it was chosen, on the monotonic clock.
    """

    decision: Decision | None
    server: int
    task: str
    deadline_s: float
    began: float


class DeploymentGroup:
    """Deployments that serve the same model name.

    Args:
        deployments: Entries of LiteLLM's model list.
        settings: Which policy decides, and how.

    Attributes:
        fleet: The deployments as servers.
        ids: LiteLLM's ids of the deployments, in the same order.
        in_system: Requests on their way at each of them.
        policy: Who decides; None where there is only one deployment.

    Raises:
        ConfigurationError: A hint is not valid, or the policy is unknown or does not suit.
    """

    def __init__(self, deployments: Sequence[Deployment], settings: RouterSettings) -> None:
        """Make the policy."""
        self.fleet = fleet_of(deployments)
        self.ids = tuple(deployment_id(d) for d in deployments)
        self.in_system = [0] * len(self.ids)
        self.policy: Policy | None = None
        if len(self.ids) > 1:
            self.policy = router_policy(settings.policy, self.fleet, settings)
        self._explore, self._learns = settings.explore, settings.learn
        self._thinking = Lock()
        self._unlearned: deque[Outcome] = deque()

    def choose(self, task: str, deadline_s: float, usable: Collection[str]) -> Attempt:
        """Return where a request goes; it counts as on its way from now on.

        Args:
            task: Its type.
            deadline_s: Time allowed, seconds.
            usable: Ids of the deployments that may be asked, at least one of the group's.
        """
        began = time.monotonic()
        open_ = [i for i, name in enumerate(self.ids) if name in usable]
        decision = self._decided(task, deadline_s, open_)
        server = open_[0] if decision is None else self._possible(decision, open_)
        self.in_system[server] += 1
        return Attempt(decision, server, task, deadline_s, began)

    def finish(self, attempt: Attempt, *, answered: bool) -> None:
        """Take a request away and learn from it.

        Args:
            attempt: As :meth:`choose` returned it.
            answered: Whether the deployment gave an answer.
        """
        self.forget(attempt)
        seconds = time.monotonic() - attempt.began
        decision = attempt.decision
        if decision is None or not self._learns:
            return
        met = answered and seconds <= attempt.deadline_s
        score = self.fleet.servers[attempt.server].score(attempt.task)
        self._unlearned.append(
            Outcome(
                decision.id,
                decision.context,
                attempt.server,
                score if met else 0.0,
                met,
                observation=decision.observation,
                metrics={"response_time_s": seconds, "deadline_met": float(met)},
            )
        )
        # while the policy thinks, what came meanwhile waits for its next decision
        if self._thinking.acquire(blocking=False):
            try:
                self._learn()
            finally:
                self._thinking.release()

    def forget(self, attempt: Attempt) -> None:
        """Take a request away of which nothing was heard."""
        self.in_system[attempt.server] -= 1

    def _decided(self, task: str, deadline_s: float, open_: Sequence[int]) -> Decision | None:
        if self.policy is None:
            return None
        row = self._row(task, deadline_s, open_)
        with self._thinking:
            self._learn()
            return self.policy.decide(row[None], explore=self._explore)[0]

    def _learn(self) -> None:
        outcomes = [self._unlearned.popleft() for _ in range(len(self._unlearned))]
        if outcomes and self.policy is not None:
            self.policy.update(outcomes)

    def _row(self, task: str, deadline_s: float, open_: Sequence[int]) -> NDArray[np.float64]:
        """Return the observation; a deployment that may not be asked looks full."""
        sizes = [server.queue_size for server in self.fleet.servers]
        queues = [
            min(count, size) if i in open_ else size
            for i, (count, size) in enumerate(zip(self.in_system, sizes, strict=True))
        ]
        return np.array([*queues, TASK_TYPES.index(task), deadline_s], dtype=np.float64)

    def _possible(self, decision: Decision, open_: Sequence[int]) -> int:
        """Return the decision, or the next best deployment that may be asked."""
        slots = [server.slots for server in self.fleet.servers]
        load = [queue / n for queue, n in zip(self.in_system, slots, strict=True)]
        return nearest(decision, open_, load)


def deployment_id(deployment: Deployment) -> str:
    """Return LiteLLM's id of a deployment."""
    return str(deployment["model_info"]["id"])


def fleet_of(deployments: Sequence[Deployment]) -> FleetConfig:
    """Return deployments as the servers of a fleet.

    A server is named by the deployment's own ``id``, else by its model. ``max_parallel_requests``
    are its slots. ``model_info: {icl_optimizer: {...}}`` holds further fields of a server in a
    fleet file, such as ``tokens_per_s`` or ``scores``; rules that know speeds need them.

    Raises:
        ConfigurationError: A field is not valid.
    """
    names = _different(_name(d) for d in deployments)
    servers = [
        _server(name, deployment) for name, deployment in zip(names, deployments, strict=True)
    ]
    return load_fleet({"servers": servers})


def _server(name: str, deployment: Deployment) -> dict[str, Any]:
    parameters = deployment["litellm_params"]
    slots = parameters.get("max_parallel_requests") or 1
    fields = {
        "name": name,
        "llm": f"litellm:{parameters['model']}",
        "slots": slots,
        **(deployment["model_info"].get(HINTS) or {}),
    }
    fields.setdefault("queue_size", max(10, _QUEUE_PER_SLOT * fields["slots"]))
    return fields


def _name(deployment: Deployment) -> str:
    given = deployment_id(deployment)
    if _GENERATED_ID.fullmatch(given):
        given = str(deployment["litellm_params"]["model"]).rsplit("/", 1)[-1]
    return re.sub(r"[^A-Za-z0-9._-]+", "-", given).lstrip("._-")[:60] or "server"


def _different(names: Iterable[str]) -> list[str]:
    """Return the names, those that occur again with a number."""
    result: list[str] = []
    for name in names:
        tries = [name, *(f"{name}-{i}" for i in range(2, len(result) + 3))]
        result.append(next(t for t in tries if t not in result))
    return result
