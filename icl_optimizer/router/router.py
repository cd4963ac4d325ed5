"""The router: asks the policy, sends, tries elsewhere, and passes answers on."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from icl_optimizer.environments.fleet.config import FleetConfig, load_fleet
from icl_optimizer.environments.fleet.health import HealthPolicy
from icl_optimizer.environments.fleet.servers import Fleet, Served, Server
from icl_optimizer.environments.fleet.upstream import Upstream, UpstreamError
from icl_optimizer.environments.slo_scheduling_config import TASK_TYPES
from icl_optimizer.errors import unknown_name
from icl_optimizer.policy import Policy
from icl_optimizer.router.building import fleet_problem, router_policy, thinks_long
from icl_optimizer.router.choice import Chooser
from icl_optimizer.router.delivery import Delivery
from icl_optimizer.router.journey import Books, Journey
from icl_optimizer.router.metrics import RouterMetrics
from icl_optimizer.router.pool_store import PoolStore
from icl_optimizer.router.requests import UNKNOWN_TASK, Choice, Routed, RoutedRequest, RouterError
from icl_optimizer.router.settings import RouterSettings

if TYPE_CHECKING:
    from icl_optimizer.router.classifier import TaskClassifier


BLIND = ("random", "round-robin", "shortest-queue", "least-connections")
"""Policies that do not look at the task type."""
_WRITE_EVERY_S = 1.0


class Router:
    """Sends requests to the servers of a fleet, as a policy decides, and lets it learn.

    Args:
        fleet: A fleet file, its fields, or a :class:`FleetConfig`.
        policy: Name of a policy that suits slo-scheduling, or a policy for the fleet's problem;
            None for that of the settings.
        settings: Everything else.
        health: When a server is left alone.
        upstreams: Wires by server's name, instead of those that the fleet's specs name.

    Raises:
        ConfigurationError: Anything of it is not valid; nothing was sent yet.

    Example:
        >>> async def ask(fleet_file):
        ...     async with Router(fleet_file, "shortest-queue") as router:
        ...         messages = [{"role": "user", "content": "What is 7 times 6?"}]
        ...         routed = await router.route(RoutedRequest({"messages": messages}))
        ...         answer = b"".join([chunk async for chunk in routed.chunks])
        ...         return routed.choice.name, answer
    """

    def __init__(
        self,
        fleet: FleetConfig | Mapping[str, Any] | str | Path,
        policy: str | Policy | None = None,
        settings: RouterSettings | None = None,
        *,
        health: HealthPolicy | None = None,
        upstreams: Mapping[str, Upstream] | None = None,
    ) -> None:
        """Make the policy, and let it learn from the pool on disk."""
        self.settings = settings or RouterSettings()
        self.config = load_fleet(fleet)
        self.problem = fleet_problem(self.config)
        self.fleet = Fleet(self.config, health, upstreams)
        name = self.settings.policy if policy is None else policy
        long = not isinstance(name, str) or thinks_long(name)
        if isinstance(name, str):
            name = router_policy(name, self.config, self.settings)
        self.policy = name
        pool = None
        if self.settings.pool is not None:
            pool = PoolStore(self.settings.pool, self.problem)
            known = list(pool.outcomes())
            self.policy.learn_from(known)
            # exploration goes on where it was, too
            self.policy.explored = max(self.policy.explored, len(known))
        self.chooser = Chooser(
            self.fleet,
            self.policy,
            explore=self.settings.explore,
            timeout_s=self.settings.decision_timeout_s,
            thinks=long,
        )
        self.books = Books(self.config, self.chooser, self.settings, pool)
        for server in self.fleet.servers:
            server.on_rest = self.metrics.cooling
        self._classifier: TaskClassifier | None = None
        # to find the type takes milliseconds, for nobody where it is neither looked at nor kept
        kept = self.settings.pool is not None or self.settings.decision_log is not None
        self._blind = self.policy.name in BLIND and not kept
        self._writing: asyncio.Task[None] | None = None
        self._deliveries: set[asyncio.Task[None]] = set()
        self._started = time.monotonic()

    @property
    def metrics(self) -> RouterMetrics:
        """What Prometheus reads."""
        return self.books.metrics

    @property
    def in_flight(self) -> int:
        """Answers that are still being read."""
        return len(self._deliveries)

    async def __aenter__(self) -> Self:
        """Open the wires to the servers."""
        if not self._blind:
            self._classifier = await asyncio.to_thread(_make_classifier)
        await self.fleet.__aenter__()
        self._writing = asyncio.create_task(self._write())
        self._started = time.monotonic()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """End what is under way, write what is not on disk yet, close everything."""
        tasks = [*self._deliveries, *([self._writing] if self._writing is not None else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self.fleet.__aexit__(kind, error, trace)
        await self.chooser.close()
        self.books.close()

    def choose(self, request: RoutedRequest) -> Choice:
        """Return where ``request`` would go at this moment; nothing is sent or learned.

        Raises:
            RouterError: The request is not valid, or no server may be asked.
        """
        journey = self._journey(request, _given_task(request) or self._found_task(request))
        return self.chooser.choose_now(journey.task, journey.deadline_s)

    async def route(self, request: RoutedRequest) -> Routed:
        """Send ``request`` where the policy says; elsewhere, as long as no token came back.

        Returns:
            The answer; iterate over its chunks. Call its ``close`` when the client goes away.

        Raises:
            RouterError: The request is not valid, or nobody answered it.
        """
        self.books.totals.requests += 1
        journey = None
        try:
            journey = self._journey(request, await self._task(request))
            served, first = await self._sent(journey)
        except RouterError as error:
            self.books.refused(journey, error.status)
            raise
        except Exception:
            self.books.refused(journey, 500)
            raise
        return self._routed(journey, served, first)

    def status(self) -> dict[str, Any]:
        """Return what the live page shows, as plain JSON values."""
        servers = self.fleet.servers
        for server in servers:
            told = server.waiting, server.in_service, _state(server)
            self.metrics.server_state(server.config.name, *told)
        return {
            "policy": self.policy.name,
            "uptime_s": round(time.monotonic() - self._started, 1),
            "deadline_s": self.config.deadline_s,
            "servers": [_server_status(server) for server in servers],
            "totals": self.books.summary(),
            "decisions": list(self.books.recent),
        }

    async def _write(self) -> None:
        """Write now and then what could not be written when it came."""
        while True:
            await asyncio.sleep(_WRITE_EVERY_S)
            self.books.flush()

    async def _sent(self, journey: Journey) -> tuple[Served, list[bytes]]:
        """Return an answer that has begun, and what came of it so far."""
        tried: set[int] = set()
        failure: UpstreamError | None = None
        most = self.settings.attempts or len(self.fleet.servers)
        try:
            while len(tried) < most:
                await self._choose(journey, tried, failure)
                try:
                    return await self._begun(journey)
                except UpstreamError as error:
                    failure = error
                self.books.failed_early(journey, failure)
                if failure.callers:
                    break
                # where it only waited it was not sent, and may go again
                if failure.kind != "open":
                    tried.add(journey.choice.server)
        except asyncio.CancelledError:
            self.books.cancelled(journey, None)
            raise
        assert failure is not None
        raise _told(failure)

    async def _choose(
        self, journey: Journey, tried: set[int], failure: UpstreamError | None
    ) -> None:
        # what is left of it when a server has failed before
        deadline_s = journey.left_s if journey.choices else journey.deadline_s
        try:
            choice = await self.chooser.choose(journey.request, journey.task, deadline_s, tried)
        except RouterError:
            if failure is None:
                raise
            # what the last server said tells more than that there is no other
            raise _told(failure) from None
        journey.choices.append(choice)
        self.books.sent(journey, failure)

    async def _begun(self, journey: Journey) -> tuple[Served, list[bytes]]:
        """Send the request to the server chosen last and wait for the first token."""
        request, index = journey.request, journey.choice.server
        patience = self.settings.first_token_timeout_s if request.streams else None
        body, price = request.body, self.config.servers[index].price
        journey.counts_for_us = False
        if request.streams and "stream_options" not in body and (price.input or price.output):
            # dollars need the tokens of the prompt, too
            body = {**body, "stream_options": {"include_usage": True}}
            journey.counts_for_us = True
        served = await self.fleet.serve(index, request.path, body, patience)
        return served, await served.begin(patience)

    def _routed(self, journey: Journey, served: Served, first: list[bytes]) -> Routed:
        delivery = Delivery(journey, served, first, self.books)
        self._deliveries.add(delivery.task)
        delivery.task.add_done_callback(self._deliveries.discard)
        choice = journey.choice
        headers = {
            "x-request-id": journey.request.id,
            "x-server": choice.name,
            "x-made-by": choice.made_by,
            "x-attempts": str(len(journey.choices)),
        }
        if choice.task != UNKNOWN_TASK:
            headers["x-task-type"] = choice.task.replace(" ", "-")
        media_type = "text/event-stream" if served.streams else "application/json"
        return Routed(choice, media_type, headers, delivery.chunks(), delivery.close)

    def _journey(self, request: RoutedRequest, task: str) -> Journey:
        deadline = self.config.deadline_s if request.deadline_s is None else request.deadline_s
        return Journey(request, task, deadline)

    async def _task(self, request: RoutedRequest) -> str:
        # to find the type takes milliseconds, in which other requests go on
        given = _given_task(request)
        if given is not None:
            return given
        if self._blind:
            return UNKNOWN_TASK
        return await asyncio.to_thread(self._found_task, request)

    def _found_task(self, request: RoutedRequest) -> str:
        from icl_optimizer.router.classifier import prompt_text

        if self._classifier is None:
            self._classifier = _make_classifier()
        return self._classifier.classify(prompt_text(request.body))[0]


def _make_classifier() -> TaskClassifier:
    from icl_optimizer.router.classifier import TaskClassifier

    return TaskClassifier()


def _given_task(request: RoutedRequest) -> str | None:
    if request.task is not None and request.task not in TASK_TYPES:
        text = str(unknown_name("task type", request.task, TASK_TYPES))
        raise RouterError(400, text, "invalid_request_error")
    return request.task


def _told(failure: UpstreamError) -> RouterError:
    """Return what a client is told when nobody answered."""
    text = f"no server answered; the last one: {failure}"
    if failure.kind == "request":
        return RouterError(failure.status or 400, str(failure), "invalid_request_error")
    if failure.kind == "rate limit":
        return RouterError(429, text, "rate_limit_error", failure.retry_after or 1.0)
    status = {"timeout": 504, "open": 503}.get(failure.kind, 502)
    return RouterError(status, text, "server_error", failure.retry_after or 1.0)


_STATES = {"up": "up", "cooling": "cooling", "trying": "probing"}


def _state(server: Server) -> str:
    full = server.health.state == "up" and server.full
    return "full" if full else _STATES[server.health.state]


def _server_status(server: Server) -> dict[str, Any]:
    return {
        "name": server.config.name,
        "state": _state(server),
        "waiting": server.waiting,
        "in_service": server.in_service,
        "slots": server.config.slots,
        "queue_size": server.config.queue_size,
        "served": server.served,
        "failed": server.failures,
        "cooling_s": round(server.health.cooling_s, 1),
        "tokens_per_s": server.config.tokens_per_s,
    }
