"""From a request to a server: what the policy sees, what it says, and what is possible."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from threading import Lock
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from icl_optimizer.decision import Decision, Outcome
from icl_optimizer.environments.slo_scheduling_config import TASK_TYPES
from icl_optimizer.policy import one_hot
from icl_optimizer.router.requests import UNKNOWN_TASK, Choice, RoutedRequest, RouterError

if TYPE_CHECKING:
    from icl_optimizer.environments.fleet.servers import Fleet
    from icl_optimizer.policy import Policy

_SOONEST_S = 0.1


class Chooser:
    """Asks a policy where a request goes, and makes sure that somebody is there.

    A policy that asks a language model thinks in a thread of its own, about all requests that have
    come meanwhile at once; others answer on the spot. A server that is left alone, full or tried
    already looks full to the policy; should it be chosen nevertheless, the next best one is taken.

    Args:
        fleet: The servers.
        policy: Who decides; its observation is that of the fleet's twin.
        explore: Whether it may try decisions.
        timeout_s: Longest wait for a decision.
        thinks: Whether a decision may take long.

    Attributes:
        failures: Times that the policy failed, by the type of the error.
    """

    def __init__(
        self, fleet: Fleet, policy: Policy, *, explore: bool, timeout_s: float, thinks: bool
    ) -> None:
        """Begin with nothing to decide."""
        self.fleet, self.policy = fleet, policy
        self._explore, self._timeout_s = explore, timeout_s
        self._thread = ThreadPoolExecutor(1, "router-decide") if thinks else None
        self.failures: Counter[str] = Counter()
        self._at_work = Lock()
        self._unlearned: list[Outcome] = []
        self._asked: list[tuple[NDArray[np.float64], asyncio.Future[Decision]]] = []
        self._thinking: asyncio.Task[None] | None = None

    async def choose(
        self, request: RoutedRequest, task: str, deadline_s: float, tried: Collection[int] = ()
    ) -> Choice:
        """Return where ``request`` goes.

        Raises:
            RouterError: No server may be asked.
        """
        started = time.perf_counter()
        row = self._row(task, deadline_s, tried)
        reasons: list[str] = []
        try:
            decision = await self._decided(row)
        except TimeoutError:
            reasons.append(f"no decision within {self._timeout_s:g} s: the shortest queue")
            decision = self._fallback(row)
        except Exception as error:
            # whatever is wrong with the policy, the request must not suffer
            reasons.append(f"the policy failed ({type(error).__name__}): the shortest queue")
            self.failures[type(error).__name__] += 1
            decision = self._fallback(row)
        # the queues may have moved while the policy thought
        return self._possible(decision, reasons, started, task, deadline_s, tried)

    def choose_now(self, task: str, deadline_s: float) -> Choice:
        """Return where a request would go at this moment, without exploring.

        It waits for what the policy is thinking about, and does not give the event loop free.
        """
        started = time.perf_counter()
        row = self._row(task, deadline_s, ())
        with self._at_work:
            decision = self.policy.decide(row[None], explore=False)[0]
        return self._possible(decision, [], started, task, deadline_s, ())

    def learn(self, outcome: Outcome) -> None:
        """Let the policy learn, at once or when it has finished its thought; nobody waits."""
        self._unlearned.append(outcome)
        if self._thread is None:
            self._learn()
        else:
            self._start()

    def _learn(self) -> None:
        outcomes, self._unlearned = self._unlearned, []
        if not outcomes:
            return
        try:
            with self._at_work:
                self.policy.update(outcomes)
        except Exception as error:
            # an answer must not suffer from what can be learned from it
            self.failures[type(error).__name__] += 1

    async def close(self) -> None:
        """Let the policy finish its thought."""
        if self._thinking is not None:
            await asyncio.gather(self._thinking, return_exceptions=True)
        if self._thread is not None:
            await asyncio.to_thread(self._thread.shutdown)

    def _row(self, task: str, deadline_s: float, tried: Collection[int]) -> NDArray[np.float64]:
        """Return the observation: requests at each server, task type, deadline."""
        queues = [
            s.in_system if s.health.usable and s.index not in tried else s.config.queue_size
            for s in self.fleet.servers
        ]
        kind = 0 if task == UNKNOWN_TASK else TASK_TYPES.index(task)
        return np.array([*queues, kind, deadline_s], dtype=np.float64)

    async def _decided(self, row: NDArray[np.float64]) -> Decision:
        if self._thread is None:
            return self._decide(row[None])[0]
        answer: asyncio.Future[Decision] = asyncio.get_running_loop().create_future()
        self._asked.append((row, answer))
        self._start()
        return await asyncio.wait_for(answer, self._timeout_s)

    def _start(self) -> None:
        """Let the thinking begin, unless it goes on."""
        if self._thinking is None or self._thinking.done():
            self._thinking = asyncio.create_task(self._think())

    async def _think(self) -> None:
        """Decide for everybody who waits and learn what has come, until there is nothing left."""
        loop = asyncio.get_running_loop()
        while self._asked or self._unlearned:
            batch, self._asked = self._asked, []
            wanted = [(row, answer) for row, answer in batch if not answer.done()]
            if wanted:
                rows = np.array([row for row, _ in wanted])
                try:
                    decisions = await loop.run_in_executor(self._thread, self._decide, rows)
                except Exception as error:
                    _tell(wanted, error)
                else:
                    for (_, answer), decision in zip(wanted, decisions, strict=True):
                        if not answer.done():
                            answer.set_result(decision)
            # callers come first
            elif self._unlearned:
                await loop.run_in_executor(self._thread, self._learn)

    def _decide(self, rows: NDArray[np.float64]) -> list[Decision]:
        with self._at_work:
            return self.policy.decide(rows, explore=self._explore)

    def _fallback(self, row: NDArray[np.float64]) -> Decision:
        servers = self.fleet.servers
        load = [row[s.index] / s.config.slots for s in servers]
        action = int(np.argmin(load))
        context = self.policy.problem.describe(row)
        chances = one_hot(action, len(servers))
        return self.policy.rule_decision(context, action, chances, row, made_by="fallback")

    def _possible(
        self,
        decision: Decision,
        reasons: list[str],
        started: float,
        task: str,
        deadline_s: float,
        tried: Collection[int],
    ) -> Choice:
        """Return the decision, or the nearest one that can be carried out."""
        servers, usable = self.fleet.servers, self.fleet.usable()
        queues = tuple(self.fleet.queue_lengths())
        open_ = [i for i, can in enumerate(usable) if can and i not in tried]
        if not open_:
            raise self._nobody(tried)
        load = [queue / s.config.slots for queue, s in zip(queues, servers, strict=True)]
        server = nearest(decision, open_, load)
        if server != decision.action:
            wanted = servers[decision.action].config.name
            reasons.append(f"{wanted} {self._why_not(decision.action, tried)}")
        reasons.append(_words(decision, servers[server].config.name, queues[server]))
        return Choice(
            server,
            servers[server].config.name,
            decision.probabilities,
            decision.made_by,
            tuple(reasons),
            task,
            deadline_s,
            queues,
            decision,
            time.perf_counter() - started,
            # whatever the policy wanted, a server that cannot be asked is never taken
            decision.support if len(open_) == len(servers) else 0.0,
        )

    def _why_not(self, server: int, tried: Collection[int]) -> str:
        if server in tried:
            return "was tried already"
        one = self.fleet.servers[server]
        if one.full:
            return f"is full ({one.in_system} requests)"
        return f"failed and is left alone for {one.health.cooling_s:.1f} s"

    def _nobody(self, tried: Collection[int]) -> RouterError:
        """Return the error for a request that no server can take."""
        servers = self.fleet.servers
        full = [s for s in servers if s.health.usable and s.full]
        if full:
            service = [
                s.config.overhead_s + _usual_tokens(s.config.mean_tokens) / s.config.tokens_per_s
                for s in full
            ]
            wait = min(t / s.config.slots for t, s in zip(service, full, strict=True))
            return RouterError(
                429, "all servers that can be asked are full", "rate_limit_error", max(wait, 1.0)
            )
        if tried:
            text = "every server that could be asked has failed with this request"
            return RouterError(502, text, "server_error")
        wait = min(s.health.cooling_s for s in servers)
        text = "no server can be asked: all failed a moment ago"
        return RouterError(503, text, "server_error", max(wait, _SOONEST_S))


def nearest(decision: Decision, allowed: Sequence[int], load: Sequence[float]) -> int:
    """Return what was decided, else the next most probable server; of equals the least loaded.

    Args:
        decision: Of a policy.
        allowed: Servers that can be asked, at least one.
        load: Requests per slot at every server.
    """
    if decision.action in allowed:
        return decision.action
    return max(allowed, key=lambda i: (decision.probabilities[i], -load[i]))


def _tell(wanted: Sequence[tuple[Any, asyncio.Future[Decision]]], error: Exception) -> None:
    for _, answer in wanted:
        if not answer.done():
            answer.set_exception(error)


def _usual_tokens(means: dict[str, float]) -> float:
    return sum(means.values()) / len(means) if means else 100.0


def _words(decision: Decision, name: str, queue: int) -> str:
    chance = decision.probabilities[decision.action]
    return f"{decision.made_by}: {name}, probability {chance:.2f}, {queue} requests there"
