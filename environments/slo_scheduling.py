"""SLO-aware scheduling of tasks to language models with queues (Mekrache et al. 2025)."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel

from icl_optimizer.environments.adapters import SingleEnv
from icl_optimizer.environments.base import BatchedEnv, Bools, Floats, Ints, Outcomes, StepResult
from icl_optimizer.environments.queues import Finished, QueueBank
from icl_optimizer.environments.registry import SweepPoint
from icl_optimizer.environments.slo_scheduling_config import TASK_TYPES, SLOSchedulingConfig
from icl_optimizer.environments.slo_scheduling_expert import SchedulingExpert
from icl_optimizer.environments.slo_scheduling_tasks import TaskDraws, draw_tasks
from icl_optimizer.errors import ConfigurationError
from icl_optimizer.problem import Category, Column, Context, Problem, Quantity

DUMP = "dump"
QUEUE = "Queue"
"""Role of the columns that hold queue sizes."""
LEVELS = ("empty", "one", "two", "three", "several", "long")
"""Queue sizes 0, 1, 2, 3, 4 to 5 and more in words."""
RATES = (0.5, 1.0, 2.0, 4.0, 8.0)
"""Arrival rates of figures 3a and 3b."""


class SLOSchedulingVectorEnv(BatchedEnv):
    """Send each arriving task to one of several language models, each with a FIFO queue.

    ## Description
    Tasks of five types arrive at random. Each model answers at its own speed and scores
    differently by type; a task that is not answered by its deadline, or that finds the queue
    full, scores nothing. A late one holds the model up all the same, unless ``cancel_late`` takes
    it away at its deadline. With ``servers`` these take the place of the models.

    ## Action Space
    ``Discrete(models)``, eq. (10): which model; with ``dump_action`` one more, which sends the
    task where the queue is longest.

    ## Observation Space
    ``Box``, eq. (9): tasks at each model (waiting and in service), index of the task type,
    deadline in seconds.

    ## Starting State
    Empty queues, the first task.

    ## Rewards
    Eq. (11): the scores of the tasks that finish in time between this task's arrival and the
    next one's. After the last task the queues drain, so no score is lost.

    ## Episode End
    Truncated after ``horizon`` tasks.

    ## Information
    ``outcomes``: of each task that finished or was dropped, its score as ``reward``, whether it
    was in time as ``feasible``, and ``deadline_met``, ``score``, ``response_time_s`` (0 if
    dropped), ``dropped``, ``server``.

    ## Arguments
    Every field of :class:`SLOSchedulingConfig`, by keyword or as ``config``.

    ## References
    Mekrache, Ksentini, Verikoukis, "DRL-enabled SLO-aware Task Scheduling for Large Language
    Models in 6G Networks", 2025. Scores: LiveBench, White et al. 2024.

    ## Version History
    v0: initial version.
    """

    config_class = SLOSchedulingConfig

    def __init__(
        self,
        num_envs: int = 1,
        config: SLOSchedulingConfig | None = None,
        *,
        autoreset: bool = True,
        **fields: Any,
    ) -> None:
        """Set up the servers."""
        self.config = config or SLOSchedulingConfig(**fields)
        super().__init__(num_envs, build_problem(self.config), autoreset=autoreset)
        slots, sizes = self.config.slots_each, self.config.capacity
        self.queues = QueueBank(num_envs, slots, sizes, self.config.horizon)
        self._speed, self._overhead_s = self.config.speeds, self.config.overheads
        self._late = np.zeros((num_envs, self.config.horizon), dtype=np.bool_)
        self._tasks = TaskDraws.empty(num_envs, self.config)
        self._ids_of = np.zeros((num_envs, self.config.horizon), dtype=np.int64)
        self._rows = np.arange(num_envs)

    def change(self, config: BaseModel) -> None:
        """Let other parameters hold from the next decision on; see :meth:`BatchedEnv.change`.

        Rates, lengths, the noise of scores, and deadlines among those that the column knows change
        with the next episode's tasks.
        """
        new = SLOSchedulingConfig.model_validate(config)
        for field in ("queue_size", "slots", "models", "cancel_late", "servers"):
            old, given = getattr(self.config, field), getattr(new, field)
            if old != given:
                raise ConfigurationError(
                    f"slo-scheduling: {field} is {given!r} in mid-run; allowed: {old!r}, as it was."
                )
        problem = build_problem(new)
        if (problem.labels, problem.columns, problem.horizon) != (
            self.problem.labels,
            self.problem.columns,
            self.problem.horizon,
        ):
            raise ConfigurationError(
                "slo-scheduling: labels, columns or horizon are different in mid-run; allowed: "
                "parameters that leave them as they are, such as mean_tokens or score_noise."
            )
        self.config, self.problem = new, problem

    def _begin(self, indices: Ints) -> None:
        self._tasks.fill(indices, draw_tasks([self.rngs[i] for i in indices], self.config))
        self.queues.reset(indices)

    def _item(self) -> Ints:
        """Return the number of the present task in each episode, ``(E,)``."""
        return np.minimum(self.elapsed, self.config.horizon - 1)

    def _now(self, values: NDArray[Any]) -> NDArray[Any]:
        return values[self._rows, self._item()]

    def _observe(self) -> NDArray[Any]:
        models = len(self._speed)
        observations = np.empty((self.num_envs, models + 2))
        observations[:, :models] = self.queues.in_system
        observations[:, models] = self._now(self._tasks.kind)
        observations[:, models + 1] = self._now(self._tasks.deadline_s)
        return observations

    def instance(self, index: int) -> tuple[Floats, Floats, Floats, Floats, Ints, Ints]:
        """Return what is known in hindsight of the present episode of one sub-environment.

        Returns:
            Arrivals ``(n,)``, service times and scores ``(n, models)``, deadlines ``(n,)`` after
            arrival, in seconds, and capacity and slots of each model, ``(models,)``.
        """
        tasks = self._tasks
        service = self._overhead_s + tasks.tokens[index] / self._speed
        return (
            tasks.arrival_s[index],
            service,
            tasks.score[index],
            tasks.deadline_s[index],
            self.queues.capacity,
            self.queues.slots,
        )

    def _longest(self) -> Ints:
        """Return where a hopeless task hurts least: the longest queue, ``(E,)``."""
        return np.asarray(self.queues.in_system.argmax(axis=1))

    def action_values(self) -> Floats:
        """Return the score of the present task at each model, known in hindsight, ``(E, labels)``.

        Where nothing would be in time, the longest backlog comes first, by less than any score.
        """
        arrival = self._now(self._tasks.arrival_s)
        service = self._overhead_s + self._now(self._tasks.tokens) / self._speed
        finish = self.queues.finish_if(arrival, service)
        in_time = finish <= (arrival + self._now(self._tasks.deadline_s))[:, None]
        backlog = np.where(self.queues.full, np.inf, self.queues.backlog(arrival))
        hurts_least = 1e-9 * (1 - 1 / (1 + backlog))
        values = np.where(in_time, self._now(self._tasks.score), hurts_least)
        if self.config.dump_action:
            values = np.hstack([values, values[self._rows, self._longest()][:, None]])
        return np.asarray(values)

    def _advance(self, actions: Ints, decision_ids: Ints) -> StepResult:
        item = self._item()
        server = actions
        if self.config.dump_action:
            server = np.where(actions == len(self._speed), self._longest(), actions)
        arrival = self._now(self._tasks.arrival_s)
        self._ids_of[self._rows, item] = decision_ids
        tokens = self._tasks.tokens[self._rows, item, server]
        service = self._overhead_s[server] + tokens / self._speed[server]
        accepted = self._assign(server, item, arrival, service)
        last = item == self.config.horizon - 1
        following = np.minimum(item + 1, self.config.horizon - 1)
        until = np.where(last, np.inf, self._tasks.arrival_s[self._rows, following])
        finished = self.queues.advance(until)
        outcomes = self._outcomes(finished, np.flatnonzero(~accepted), item, server)
        rewards = np.bincount(
            finished.env, outcomes.reward[: len(finished)], minlength=self.num_envs
        )
        nothing = np.zeros(self.num_envs, dtype=np.bool_)
        return StepResult(rewards.astype(np.float64), outcomes, nothing)

    def _assign(self, server: Ints, item: Ints, arrival: Floats, service: Floats) -> Bools:
        """Give each task to its server; return which were accepted, ``(E,)``."""
        if not self.config.cancel_late:
            return self.queues.assign(server, item, arrival, service)
        patience = self._now(self._tasks.deadline_s)
        accepted = self.queues.assign(server, item, arrival, service, None, patience)
        start, _ = self.queues.times(item)
        # it leaves at its deadline, so that when it left does not tell whether it was in time
        self._late[self._rows, item] = start + service > arrival + patience
        return accepted

    def _outcomes(self, finished: Finished, dropped: Ints, item: Ints, server: Ints) -> Outcomes:
        """Return the outcomes of tasks that finished, then of those dropped just now."""
        env, k = finished.env, finished.item
        response = finished.finish_s - finished.arrival_s
        # the same sum as an oracle's, so that a tie at the deadline is the same for both
        in_time = finished.finish_s <= finished.arrival_s + self._tasks.deadline_s[env, k]
        if self.config.cancel_late:
            in_time &= ~self._late[env, k]
        score = np.where(in_time, self._tasks.score[env, k, finished.server], 0.0)
        none = np.zeros(len(dropped))
        met = np.concatenate([in_time, none]).astype(np.bool_)
        rewards = np.concatenate([score, none])
        metrics = {
            "deadline_met": met.astype(np.float64),
            "score": rewards,
            "response_time_s": np.concatenate([response, none]),
            "dropped": np.concatenate([np.zeros(len(env)), none + 1]),
            "server": np.concatenate([finished.server, server[dropped]]).astype(np.float64),
        }
        ids = np.concatenate([self._ids_of[env, k], self._ids_of[dropped, item[dropped]]])
        return Outcomes(ids, rewards, met, np.zeros(len(ids), dtype=np.bool_), metrics)

    def summarise(
        self, rewards: Floats, feasible: Bools, metrics: dict[str, Floats]
    ) -> dict[str, float]:
        """Return score per task and per episode, deadlines met, response time, drops, shares."""
        served = metrics["dropped"] == 0
        shares = {
            f"share_{name}": float((metrics["server"] == j).mean())
            for j, name in enumerate(self.config.names)
        }
        response = metrics["response_time_s"][served]
        return {
            "reward": float(rewards.mean()),
            "success_rate": float(feasible.mean()),
            "score": float(metrics["score"].mean()),
            "episode_score": float(metrics["score"].mean()) * self.problem.horizon,
            "deadline_met": float(metrics["deadline_met"].mean()),
            "response_time_s": float(response.mean()) if response.size else 0.0,
            "drop_rate": float(1 - served.mean()),
            **shares,
        }


class SLOSchedulingEnv(SingleEnv):
    """One scheduler as a :class:`gymnasium.Env`; see :class:`SLOSchedulingVectorEnv`."""

    def __init__(self, config: SLOSchedulingConfig | None = None, **fields: Any) -> None:
        """Build a batch of one; ``fields`` are those of :class:`SLOSchedulingConfig`."""
        super().__init__(SLOSchedulingVectorEnv(1, config, autoreset=False, **fields))


def build_problem(config: SLOSchedulingConfig) -> Problem:
    """Return labels and observation columns for ``config``."""
    labels = (*config.names, DUMP) if config.dump_action else config.names
    columns: list[Column] = [
        Quantity(
            f"{name} queue",
            "tasks",
            0.0,
            float(config.capacity[action]),
            (1.0, 2.0, 3.0, 4.0, 6.0),
            LEVELS,
            action,
            QUEUE,
        )
        for action, name in enumerate(config.names)
    ]
    columns.append(Category("Task", TASK_TYPES, len(TASK_TYPES)))
    columns.append(_deadline_column(config))
    return Problem(
        "slo-scheduling",
        labels,
        tuple(columns),
        config.horizon,
        _profiles(config),
        SchedulingExpert(config),
    )


def _profiles(config: SLOSchedulingConfig) -> tuple[Context, ...]:
    """Return what is known of each decision beforehand; of a server only its name is."""
    known: list[dict[str, str]] = [{"Model": server.name} for server in config.servers]
    known = known or [
        {"Model": m.family, "Size": f"{m.billions:g} billion parameters"} for m in config.served
    ]
    if config.dump_action:
        known.append(dict.fromkeys(known[0], "none"))
    return tuple(Context(words) for words in known)


def _deadline_column(config: SLOSchedulingConfig) -> Quantity:
    """Return the column of the deadline, in words where deadlines differ."""
    possible = config.possible_deadlines
    edges = tuple((a + b) / 2 for a, b in pairwise(possible))
    words = tuple(f"{value:g} s" for value in possible)
    high = 2 * max(possible)
    if len(possible) == 1:
        # what never differs says nothing in a prompt
        return Quantity("Deadline", "s", 0.0, high)
    return Quantity("Deadline", "s", 0.0, high, edges, words)


def sweep_points(config: SLOSchedulingConfig) -> list[SweepPoint]:
    """Return the arrival rates of figures 3a and 3b."""
    return [SweepPoint(f"arrival_rate={rate:g}", {"arrival_rate": rate}) for rate in RATES]
