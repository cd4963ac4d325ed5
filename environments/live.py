"""Scheduling on a live fleet: the twin's tasks at real times, and real answers."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from icl_optimizer.environments.adapters import SingleEnv
from icl_optimizer.environments.base import BatchedEnv, Bools, Floats, Ints, Outcomes, StepResult
from icl_optimizer.environments.fleet.servers import Fleet
from icl_optimizer.environments.fleet.tasks import draw_checkable
from icl_optimizer.environments.live_attempt import Attempt
from icl_optimizer.environments.live_config import LiveConfig, twin_of
from icl_optimizer.environments.live_fleet import FleetThread, find_shared, shared_fleet
from icl_optimizer.environments.slo_scheduling import build_problem
from icl_optimizer.environments.slo_scheduling_tasks import draw_tasks
from icl_optimizer.errors import ConfigurationError


class LiveVectorEnv(BatchedEnv):
    """Send each arriving task to one of the real servers of a fleet.

    ## Description
    The tasks of the simulated twin (:class:`.SLOSchedulingVectorEnv` with the fleet's servers):
    the same seed brings the same types, arrivals and deadlines, here on the clock of the machine.
    What is asked are small tasks with known answers. A deadline counts from the scheduled arrival,
    so a slow decision costs what it costs; the request is cancelled when it is over.

    ## Action Space
    ``Discrete(servers)``.

    ## Observation Space
    That of the twin: requests at each server, index of the task type, deadline in seconds.

    ## Starting State
    Nothing under way, the first task just arrived.

    ## Rewards
    The scores of the tasks that were answered in time since the last decision. After the last task
    the environment waits until all are over.

    ## Episode End
    Truncated after ``horizon`` tasks.

    ## Information
    ``outcomes``: see :attr:`Attempt.metrics`.

    ## Arguments
    Every field of :class:`LiveConfig`, by keyword or as ``config``. There is one real fleet, so
    ``num_envs`` is 1. The fleet is opened by the first ``reset`` and closed by ``close``, unless
    :func:`.shared_fleet` holds it.

    ## Version History
    v0: initial version.
    """

    config_class = LiveConfig

    def __init__(
        self,
        num_envs: int = 1,
        config: LiveConfig | None = None,
        *,
        autoreset: bool = True,
        **fields: Any,
    ) -> None:
        """Read the fleet's description; nothing is started or sent."""
        self.config = config or LiveConfig(**fields)
        if num_envs != 1:
            raise ConfigurationError(f"num_envs is {num_envs}; allowed live: 1.")
        self.twin = self.config.twin_config
        super().__init__(1, build_problem(self.twin), autoreset=autoreset)
        self._recorded = self.config.recorded
        self._own: FleetThread | None = None
        self._under_way: set[asyncio.Task[None]] = set()
        self._over: deque[Attempt] = deque()
        self._origin = 0.0

    def close(self, **kwargs: Any) -> None:
        """Cancel what is under way, and close the fleet where it was opened here."""
        self._abandon()
        if self._own is not None:
            self._own.close()
            self._own = None

    def _begin(self, indices: Ints) -> None:
        self._abandon()
        self._thread()
        draws = draw_tasks(self.rngs, self.twin)
        # a stream of its own: arrivals must stay those of the twin
        rng = self.rngs[0].spawn(1)[0]
        self._kind, self._deadline_s = draws.kind[0], draws.deadline_s[0]
        self._arrival_s = draws.arrival_s[0] if self._recorded is None else self._replayed(rng)
        self._tasks = [draw_checkable(int(kind), rng) for kind in self._kind]

    def _replayed(self, rng: np.random.Generator) -> Floats:
        """Return the arrivals of a part of the trace, seconds, ``(horizon,)``."""
        assert self._recorded is not None
        times = self._recorded.arrival_s
        first = int(rng.integers(len(times) - self.problem.horizon))
        part = times[first : first + self.problem.horizon] - times[first]
        return np.asarray(part * self.config.time_scale)

    def _arrive(self, indices: Ints) -> None:
        if self.elapsed[0] == 0:
            # the first task is there as soon as somebody can decide
            self._origin = time.monotonic() - float(self._arrival_s[0])

    def _item(self) -> int:
        return min(int(self.elapsed[0]), self.problem.horizon - 1)

    def _observe(self) -> NDArray[Any]:
        item = self._item()
        lengths = self._thread().call(_lengths(self._thread().fleet))
        return np.array([[*lengths, self._kind[item], self._deadline_s[item]]], dtype=np.float64)

    def _advance(self, actions: Ints, decision_ids: Ints) -> StepResult:
        item = self._item()
        self._send(
            Attempt(
                item,
                int(actions[0]),
                int(decision_ids[0]),
                self._origin + float(self._arrival_s[item]),
                float(self._deadline_s[item]),
                self._tasks[item],
            )
        )
        if item == self.problem.horizon - 1:
            self._thread().call(_settled(self._under_way))
        else:
            following = self._origin + float(self._arrival_s[item + 1])
            time.sleep(max(0.0, following - time.monotonic()))
        self._forget_done()
        outcomes = self._outcomes()
        total = np.array([outcomes.reward.sum()])
        return StepResult(total, outcomes, np.zeros(1, dtype=np.bool_))

    def _send(self, attempt: Attempt) -> None:
        """Begin an attempt; it is in its server's queue, or refused there, when this returns."""
        thread = self._thread()

        async def run() -> None:
            await attempt.run(thread.fleet, cancel=self.config.cancel)
            self._over.append(attempt)

        async def begin() -> asyncio.Task[None]:
            task = asyncio.create_task(run())
            await asyncio.sleep(0)
            return task

        self._under_way.add(thread.call(begin()))

    def _forget_done(self) -> None:
        """Let go of attempts that are over; what went wrong in the program itself is raised."""
        done = {task for task in self._under_way if task.done()}
        self._under_way -= done
        for task in done:
            task.result()

    def _outcomes(self) -> Outcomes:
        """Return the outcomes of what was over since the last call, in order of its end."""
        done = [self._over.popleft() for _ in range(len(self._over))]
        names = Attempt(0, 0, 0, 0.0, 0.0, self._tasks[0]).metrics
        rows = [attempt.metrics for attempt in done]
        metrics = {name: np.array([row[name] for row in rows], np.float64) for name in names}
        return Outcomes(
            np.array([attempt.decision_id for attempt in done], dtype=np.int64),
            metrics["score"].copy(),
            metrics["deadline_met"].astype(np.bool_),
            np.zeros(len(done), dtype=np.bool_),
            metrics,
        )

    def _thread(self) -> FleetThread:
        """Return the fleet's thread, opened where nobody has."""
        shared = find_shared(self.config.fleet)
        if shared is not None:
            return shared
        if self._own is None:
            self._own = FleetThread(self.config.fleet)
        return self._own

    def _abandon(self) -> None:
        """Cancel whatever is under way and wait for its end."""
        if self._under_way:
            self._thread().call(_settled(self._under_way, cancel=True))
        self._under_way.clear()
        self._over.clear()

    def summarise(
        self, rewards: Floats, feasible: Bools, metrics: dict[str, Floats]
    ) -> dict[str, float]:
        """Return what the twin reports, and times to and between tokens, waits and failures."""
        served = (metrics["dropped"] == 0) & (metrics["failed"] == 0)
        answered = metrics["tokens"] > 0
        shares = {
            f"share_{name}": float((metrics["server"] == j).mean())
            for j, name in enumerate(self.twin.names)
        }
        times = {name: _mean(metrics[name][answered]) for name in ("ttft_s", "tpot_s", "queued_s")}
        return {
            "reward": float(rewards.mean()),
            "success_rate": float(feasible.mean()),
            "score": float(metrics["score"].mean()),
            "episode_score": float(metrics["score"].mean()) * self.problem.horizon,
            "deadline_met": float(metrics["deadline_met"].mean()),
            "response_time_s": _mean(metrics["response_time_s"][served]),
            "drop_rate": float(metrics["dropped"].mean()),
            "failure_rate": float(metrics["failed"].mean()),
            "decided_s": float(metrics["decided_s"].mean()),
            **times,
            **shares,
        }


class LiveEnv(SingleEnv):
    """One live scheduler as a :class:`gymnasium.Env`; see :class:`LiveVectorEnv`."""

    def __init__(self, config: LiveConfig | None = None, **fields: Any) -> None:
        """Build a batch of one; ``fields`` are those of :class:`LiveConfig`."""
        super().__init__(LiveVectorEnv(1, config, autoreset=False, **fields))

    def close(self) -> None:
        """Close the batch, and with it the fleet."""
        self.batch.close()


@contextmanager
def open_session(config: LiveConfig) -> Iterator[None]:
    """Hold the fleet open for all live environments with this configuration."""
    with shared_fleet(config.fleet):
        yield


async def _lengths(fleet: Fleet) -> list[int]:
    return fleet.queue_lengths()


async def _settled(tasks: set[asyncio.Task[None]], *, cancel: bool = False) -> None:
    """Return when all ``tasks`` have ended."""
    for task in tasks:
        if cancel:
            task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def _mean(values: Floats) -> float:
    return float(values.mean()) if values.size else 0.0


__all__ = ["Attempt", "LiveConfig", "LiveEnv", "LiveVectorEnv", "open_session", "twin_of"]
