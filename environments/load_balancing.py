"""Load balancing of recorded requests over unequal servers (Abbaraju)."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from icl_optimizer.environments.adapters import SingleEnv
from icl_optimizer.environments.base import BatchedEnv, Bools, Floats, Ints, Outcomes, StepResult
from icl_optimizer.environments.load_balancing_config import LoadBalancingConfig
from icl_optimizer.environments.load_balancing_problem import ROLES, build_problem
from icl_optimizer.environments.load_balancing_requests import load_requests
from icl_optimizer.environments.load_balancing_reward import COMPONENTS, IMMEDIATE, immediate
from icl_optimizer.environments.queues import Finished, QueueBank
from icl_optimizer.environments.registry import SweepPoint
from icl_optimizer.environments.traces import FEATURES, SHIPPED


class LoadBalancingVectorEnv(BatchedEnv):
    """Send each request of a trace to one of several servers of different speed and width.

    ## Description
    Requests arrive as recorded, or squeezed into less time. A request takes its total tokens over
    the server's tokens per second once it has a slot; until then it waits, first come, first
    served. It should be answered within 2 s of its arrival.

    ## Action Space
    ``Discrete(servers)``: which server.

    ## Observation Space
    ``Box``: the features of the request (calendar, tokens, rolling and lagged figures, gaps;
    robust-scaled on the training part), and of each server the requests waiting, tokens in
    flight, mean response of the last completions in seconds, active requests, tokens per second
    and slots; 37 numbers for three servers. Long queues are clipped.

    ## Starting State
    Idle servers; a window of the part of the trace, at a random place unless it is the whole part.

    ## Rewards
    Section IV: ``-0.01`` per second of estimated processing, ``-0.1`` per request waiting at the
    chosen server, ``-10`` if it has no free slot, ``0.1`` times the balance of loads, ``+1`` if the
    request is accepted; all paid at the decision. Under high load ``-5`` at completion if the
    response took longer than 2 s, and at once for a dropped request, which is late for good
    (assumption: otherwise a drop would be the cheaper failure).

    ## Episode End
    Truncated after ``horizon`` requests; then the servers finish what they have.

    ## Information
    ``outcomes``: of each request that finished or was dropped, its whole ``reward``, as
    ``feasible`` whether it was in time, and ``response_time_s`` (0 if dropped), ``slo_violation``,
    ``queue_length`` (waiting at the chosen server when it came), ``dropped``, ``server``, and the
    weighted components of the reward (``reward_time``, ...).

    ## Arguments
    Every field of :class:`LoadBalancingConfig`, by keyword or as ``config``.

    ## References
    Abbaraju, "Intelligent Load Balancing Using Reinforcement Learning for Heterogeneous LLM
    Inference Systems". Traces: Patel et al., "Splitwise", ISCA 2024.

    ## Version History
    v0: initial version.
    """

    def __init__(
        self,
        num_envs: int = 1,
        config: LoadBalancingConfig | None = None,
        *,
        autoreset: bool = True,
        **fields: Any,
    ) -> None:
        """Read the trace, unless it has been read before, and set up the servers."""
        self.config = config or LoadBalancingConfig(**fields)
        self.requests = load_requests(self.config)
        super().__init__(num_envs, build_problem(self.config, self.requests), autoreset=autoreset)
        servers = self.config.setup.servers
        horizon = self.problem.horizon
        self._speed = np.array([s.tokens_per_s for s in servers])
        self._slots = np.array([s.slots for s in servers], dtype=np.int64)
        self._late = self.config.setup.slo_weight
        room = self.config.queue_size if self.config.when_full == "queue" else 0
        one_by_one = self.config.start_rule == "last-finish"
        self.queues = QueueBank(
            num_envs,
            np.ones_like(self._slots) if one_by_one else self._slots,
            self._slots + room,
            horizon,
            recent=self.config.recent,
        )
        self._first = np.zeros(num_envs, dtype=np.int64)
        self._ids_of = np.zeros((num_envs, horizon), dtype=np.int64)
        self._paid = np.zeros((num_envs, horizon, len(IMMEDIATE)))
        self._met_waiting = np.zeros((num_envs, horizon))
        self._rows = np.arange(num_envs)
        self._high = np.array([c.high for c in self.problem.columns[len(FEATURES) :]])

    def _begin(self, indices: Ints) -> None:
        places = self.requests.end - self.requests.begin - self.problem.horizon + 1
        for i in indices:
            self._first[i] = self.requests.begin + self.rngs[i].integers(places)
        self.queues.reset(indices)

    def _item(self) -> Ints:
        """Return the number of the present request in each episode, ``(E,)``."""
        return np.minimum(self.elapsed, self.problem.horizon - 1)

    def _arrival(self, item: Ints) -> Floats:
        """Return when request ``item`` arrives, seconds since the episode began, ``(E,)``."""
        times = self.requests.arrival_s
        return np.asarray(times[self._first + item] - times[self._first])

    def _tokens(self) -> Floats:
        return np.asarray(self.requests.tokens[self._first + self._item()])

    @property
    def _waiting(self) -> Ints:
        return np.asarray(np.maximum(self.queues.in_system - self._slots, 0))

    def _observe(self) -> NDArray[Any]:
        queues = self.queues
        servers = np.empty((*queues.in_system.shape, len(ROLES)))
        by_role = {
            "Waiting": self._waiting,
            "Load": queues.load,
            "Response": queues.mean_response,
            "Active": np.minimum(queues.in_system, self._slots),
            "Speed": self._speed,
            "Slots": self._slots,
        }
        for place, role in enumerate(ROLES):
            servers[:, :, place] = by_role[role]
        # sums of what came and went may be off by a rounding error
        shown = np.maximum(np.minimum(servers.reshape(self.num_envs, -1), self._high), 0.0)
        return np.hstack([self.requests.features[self._first + self._item()], shown])

    def _immediate(self) -> Floats:
        """Return what each server would pay at once, ``(components, E, servers)``."""
        return immediate(
            self.config.weights,
            self._tokens()[:, None],
            self.queues.load,
            self._waiting,
            self._speed,
            self._slots,
            self.queues.in_system >= self._slots,
            self.queues.full,
        )

    def action_values(self) -> Floats:
        """Return the whole reward of the present request at each server, ``(E, servers)``.

        It is known when the request would finish, but not what it does to later ones.
        """
        now = self._arrival(self._item())
        finish = self.queues.finish_if(now, self._tokens()[:, None] / self._speed)
        late = finish > (now + self.config.slo_s)[:, None]
        return np.asarray(self._immediate().sum(axis=0) + self._late * late)

    def _advance(self, actions: Ints, decision_ids: Ints) -> StepResult:
        item, tokens = self._item(), self._tokens()
        now, waiting = self._arrival(item), self._waiting
        self._ids_of[self._rows, item] = decision_ids
        self._paid[self._rows, item] = self._immediate()[:, self._rows, actions].T
        self._met_waiting[self._rows, item] = waiting[self._rows, actions]
        accepted = self.queues.assign(actions, item, now, tokens / self._speed[actions], tokens)
        last = item == self.problem.horizon - 1
        following = np.minimum(item + 1, self.problem.horizon - 1)
        finished = self.queues.advance(np.where(last, np.inf, self._arrival(following)))
        dropped = np.flatnonzero(~accepted)
        outcomes = self._outcomes(finished, dropped, item, actions)
        settled = np.concatenate([finished.env, dropped])
        rewards = self._paid[self._rows, item].sum(axis=1) + np.bincount(
            settled, outcomes.metrics["reward_slo"], minlength=self.num_envs
        )
        return StepResult(rewards, outcomes, np.zeros(self.num_envs, dtype=np.bool_))

    def _outcomes(self, finished: Finished, dropped: Ints, item: Ints, server: Ints) -> Outcomes:
        """Return the outcomes of requests that finished, then of those dropped just now."""
        env = np.concatenate([finished.env, dropped])
        k = np.concatenate([finished.item, item[dropped]])
        gone = np.arange(len(env)) >= len(finished)
        response = np.zeros(len(env))
        response[~gone] = finished.finish_s - finished.arrival_s
        late = gone.copy()
        # the same sum as an oracle's, so that a tie is the same for both
        late[~gone] = finished.finish_s > finished.arrival_s + self.config.slo_s
        paid = np.column_stack([self._paid[env, k], self._late * late])
        metrics = {
            "response_time_s": response,
            "slo_violation": late.astype(np.float64),
            "queue_length": self._met_waiting[env, k],
            "dropped": gone.astype(np.float64),
            "server": np.concatenate([finished.server, server[dropped]]).astype(np.float64),
            **{f"reward_{name}": paid[:, i] for i, name in enumerate(COMPONENTS)},
        }
        nothing = np.zeros(len(env), dtype=np.bool_)
        return Outcomes(self._ids_of[env, k], paid.sum(axis=1), ~late, nothing, metrics)

    def summarise(
        self, rewards: Floats, feasible: Bools, metrics: dict[str, Floats]
    ) -> dict[str, float]:
        """Return reward per request and episode, response, violations, queue, drops, shares."""
        served = metrics["dropped"] == 0
        response = metrics["response_time_s"][served]
        parts = {name: float(metrics[name].mean()) for name in metrics if "reward_" in name}
        shares = {
            f"share_{label.replace(' ', '_')}": float((metrics["server"] == j).mean())
            for j, label in enumerate(self.problem.labels)
        }
        return {
            "reward": float(rewards.mean()),
            "success_rate": float(feasible.mean()),
            "episode_reward": float(rewards.mean()) * self.problem.horizon,
            "response_time_s": float(response.mean()) if response.size else 0.0,
            "response_time_p95_s": float(np.percentile(response, 95)) if response.size else 0.0,
            "slo_violation_rate": float(metrics["slo_violation"].mean()),
            "queue_length": float(metrics["queue_length"].mean()),
            "drop_rate": float(1 - served.mean()),
            **shares,
            **parts,
        }


class LoadBalancingEnv(SingleEnv):
    """One load balancer as a :class:`gymnasium.Env`; see :class:`LoadBalancingVectorEnv`."""

    def __init__(self, config: LoadBalancingConfig | None = None, **fields: Any) -> None:
        """Build a batch of one; ``fields`` are those of :class:`LoadBalancingConfig`."""
        super().__init__(LoadBalancingVectorEnv(1, config, autoreset=False, **fields))


def sweep_points(config: LoadBalancingConfig) -> list[SweepPoint]:
    """Return the other shipped traces, on which a trained policy shows how it generalises.

    Features are scaled as where it learned.
    """
    return [
        SweepPoint(f"trace={name}", {"trace": name, "scaling_trace": config.trace})
        for name in SHIPPED
        if name != config.trace
    ]
