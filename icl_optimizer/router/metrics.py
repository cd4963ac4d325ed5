"""What the router counts, in the text format that Prometheus reads."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, get_args

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from icl_optimizer.decision import MadeBy

DECISION_BUCKETS = (0.0001, 0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30)
"""Seconds; a rule takes tens of microseconds, a language model up to seconds."""
RESPONSE_BUCKETS = (0.01, 0.03, 0.1, 0.3, 1, 2, 3, 5, 10, 20, 30, 60, 120, 300, 600)
"""Seconds."""
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
Outcome = Literal["ok", "failed", "cancelled"]
STATES = ("up", "full", "cooling", "probing")
"""What :meth:`RouterMetrics.server_state` may be told; anything else counts as ``other``."""
MADE_BY: tuple[str, ...] = get_args(MadeBy)
"""Values of the label ``made_by``; anything else counts as ``other``."""
_OTHER = "other"


class RouterMetrics:
    """Counters, gauges and histograms of one router, in a registry of their own.

    Labels only take values that are known beforehand (server names, status codes, states), so the
    number of series is bounded whatever callers send.
    """

    def __init__(self, servers: Sequence[str]) -> None:
        """Begin at zero.

        Args:
            servers: Names of all servers.
        """
        self._servers = frozenset(servers)
        self.registry = CollectorRegistry()
        self._define()
        for name in servers:
            self.server_state(name, 0, 0, "up")

    def _define(self) -> None:
        r = self.registry
        by_server = ["server"]
        self._requests = Counter(
            "router_requests_total",
            "Requests by the server that answered, what became of them, and HTTP status.",
            ["server", "outcome", "status"],
            registry=r,
        )
        self._refused = Counter(
            "router_refused_total", "Requests that no server was asked for.", ["status"], registry=r
        )
        self._decisions = Histogram(
            "router_decision_seconds",
            "Seconds that choosing a server took.",
            registry=r,
            buckets=DECISION_BUCKETS,
        )
        self._chosen = Counter(
            "router_decisions_total",
            "Decisions by the chosen server and by what decided.",
            ["server", "made_by"],
            registry=r,
        )
        self._response = Histogram(
            "router_response_seconds",
            "Seconds from a request to the end of its answer.",
            by_server,
            registry=r,
            buckets=RESPONSE_BUCKETS,
        )
        self._first = Histogram(
            "router_first_token_seconds",
            "Seconds from a request to the first token of its answer.",
            by_server,
            registry=r,
            buckets=RESPONSE_BUCKETS,
        )
        self._deadlines = Counter(
            "router_deadlines_total", "Deadlines, met or not.", ["server", "met"], registry=r
        )
        self._retries = Counter(
            "router_retries_total", "Requests sent again elsewhere.", ["server", "kind"], registry=r
        )
        self._cool_downs = Counter(
            "router_cool_downs_total", "Times a server began to cool down.", by_server, registry=r
        )
        self._tokens = Counter(
            "router_tokens_total", "Tokens.", ["server", "direction"], registry=r
        )
        self._dollars = Counter("router_dollars_total", "US dollars.", by_server, registry=r)
        self._waiting = Gauge(
            "router_server_waiting", "Requests that wait for a slot.", by_server, registry=r
        )
        self._in_service = Gauge(
            "router_server_in_service", "Requests that a server works on.", by_server, registry=r
        )
        self._state = Gauge(
            "router_server_state",
            "1 for the state a server is in.",
            ["server", "state"],
            registry=r,
        )
        self._connections = Gauge("router_connections", "Open connections of callers.", registry=r)
        self._evicted = Gauge(
            "router_connections_evicted", "Connections closed to make room for others.", registry=r
        )
        self._pending = Gauge("router_pool_writes_pending", "Examples not yet on disk.", registry=r)

    def decided(self, server: str, seconds: float, made_by: str) -> None:
        """Count a decision."""
        self._decisions.observe(seconds)
        maker = made_by if made_by in MADE_BY else _OTHER
        self._chosen.labels(self._server(server), maker).inc()

    def retried(self, server: str, kind: str) -> None:
        """Count a failure of ``server`` after which the request was sent elsewhere.

        Args:
            server: The one that failed.
            kind: Of an ``UpstreamError``.
        """
        self._retries.labels(self._server(server), kind).inc()

    def cooling(self, server: str) -> None:
        """Count the start of a cool-down."""
        self._cool_downs.labels(self._server(server)).inc()

    def finished(
        self,
        server: str,
        status: int,
        seconds: float,
        first_token_s: float | None,
        met: bool | None,
        tokens_in: int,
        tokens_out: int,
        dollars: float,
        outcome: Outcome | None = None,
    ) -> None:
        """Count a request that a server was asked for.

        Args:
            server: The last one asked.
            status: HTTP status that the caller got.
            seconds: From the request's arrival to its end.
            first_token_s: From the arrival to the first token; None when there was none.
            met: Whether the deadline was met; None when there was none, or nobody waited for it.
            tokens_in: Of the prompt.
            tokens_out: Of the answer.
            dollars: What the tokens cost.
            outcome: None for ``ok`` or ``failed`` by the status.
        """
        name = self._server(server)
        ended = outcome or ("ok" if status < 400 else "failed")
        self._requests.labels(name, ended, _status(status)).inc()
        self._response.labels(name).observe(seconds)
        if first_token_s is not None:
            self._first.labels(name).observe(first_token_s)
        if met is not None:
            self._deadlines.labels(name, "yes" if met else "no").inc()
        self._tokens.labels(name, "in").inc(max(0, tokens_in))
        self._tokens.labels(name, "out").inc(max(0, tokens_out))
        self._dollars.labels(name).inc(max(0.0, dollars))

    def refused(self, status: int) -> None:
        """Count a request that was answered without asking any server."""
        self._refused.labels(_status(status)).inc()

    def server_state(self, name: str, waiting: int, in_service: int, state: str) -> None:
        """Set a server's gauges.

        Args:
            name: Of the server.
            waiting: Requests that wait for a slot.
            in_service: Requests that have one.
            state: One of ``STATES``.
        """
        server = self._server(name)
        self._waiting.labels(server).set(waiting)
        self._in_service.labels(server).set(in_service)
        shown = state if state in STATES else _OTHER
        for each in (*STATES, _OTHER):
            self._state.labels(server, each).set(each == shown)

    def pool_pending(self, n: int) -> None:
        """Set how many examples are not yet on disk."""
        self._pending.set(n)

    def watch_connections(self, count: Callable[[], int], evicted: Callable[[], int]) -> None:
        """Have the gauges of connections ask these whenever they are read.

        Args:
            count: Returns how many are open.
            evicted: Returns how many were closed to make room.
        """
        self._connections.set_function(lambda: float(count()))
        self._evicted.set_function(lambda: float(evicted()))

    def render(self) -> bytes:
        """Return everything as Prometheus text; its media type is ``CONTENT_TYPE``."""
        return generate_latest(self.registry)

    def _server(self, name: str) -> str:
        return name if name in self._servers else _OTHER


def _status(status: int) -> str:
    return str(status) if 100 <= status <= 599 else _OTHER
