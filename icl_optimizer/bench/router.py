"""What the router adds to a request, beside LiteLLM's proxy, and how many requests it takes.

Both stand in front of the same stub server, which answers at once, under two names; the load comes
from a third process in an open loop, and latencies count from the moment a request was due.
"""

from __future__ import annotations

import tempfile
from collections import defaultdict
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from icl_optimizer.bench.litellm_proxy import LiteLLMProxy, find_python, litellm_version
from icl_optimizer.bench.result import BenchmarkResult, alternate, summarise
from icl_optimizer.bench.result import Side as RoundOfSide
from icl_optimizer.studies.load import LoadPlan, LoadResult, Moment, load_in_process
from icl_optimizer.studies.router_process import RouterProcess, fleet_at
from icl_optimizer.studies.stub_process import StubProcess

NAME = "router_overhead_vs_litellm"
Side = Literal["direct", "ours", "shuffle", "least_busy"]
SIDES: tuple[Side, ...] = ("direct", "ours", "shuffle", "least_busy")
PEERS: tuple[Side, ...] = ("shuffle", "least_busy")
RATES = (20, 50)
"""Requests per second at which the overhead is measured."""
STEPS = (30, 40, 50, 60, 80, 100, 125, 150, 200, 250, 300, 400, 500, 600, 800, 1000)
"""Requests per second of the search for the highest rate."""


@dataclass(frozen=True)
class Effort:
    """How long is measured.

    Attributes:
        rounds: Repetitions of everything but the search.
        seconds: Of load at one rate.
        step_seconds: Of load at one rate of the search.
        steps: Rates of the search.
    """

    rounds: int = 3
    seconds: float = 8.0
    step_seconds: float = 5.0
    steps: tuple[int, ...] = STEPS


@dataclass(frozen=True)
class Endpoint:
    """Where load goes."""

    url: str
    headers: Mapping[str, str]

    def load(self, rate: float, seconds: float, *, stream: bool = False) -> LoadResult:
        """Return what became of requests at ``rate`` per second."""
        return load_in_process(
            LoadPlan(
                url=self.url,
                rate=rate,
                duration_s=seconds,
                stream_share=float(stream),
                headers=dict(self.headers),
            )
        )


class Measured:
    """Latencies in milliseconds, by side, rate and round."""

    def __init__(self) -> None:
        """Begin with none."""
        self._results: dict[tuple[Side, int, bool], list[LoadResult]] = defaultdict(list)

    def add(self, side: Side, rate: int, result: LoadResult, *, stream: bool = False) -> None:
        """Take the result of one round in.

        Raises:
            RuntimeError: Not every request was answered, so that latencies mean nothing.
        """
        if result.errors():
            raise RuntimeError(f"{side} at {rate} requests/s: {result.errors()}")
        self._results[side, rate, stream].append(result)

    def rounds(self, side: Side, rate: int, q: float) -> list[float]:
        """Return a percentile of each round, less that of asking directly."""
        return [
            1e3 * (mine.percentile(q) - direct.percentile(q))
            for mine, direct in zip(
                self._results[side, rate, False], self._results["direct", rate, False], strict=True
            )
        ]

    def all(
        self, side: Side, rate: int, q: float, moment: Moment = "end_s", *, stream: bool = False
    ) -> float:
        """Return a percentile over the requests of all rounds."""
        samples = [s for result in self._results[side, rate, stream] for s in result.samples]
        return 1e3 * LoadResult(tuple(samples)).percentile(q, moment)

    def added(self, side: Side, rate: int, q: float) -> float:
        """Return a percentile over all rounds, less that of asking directly."""
        return self.all(side, rate, q) - self.all("direct", rate, q)

    def details(self) -> dict[str, float]:
        """Return p50 and p99 of every side and rate, and the first byte of streams."""
        found = {
            f"{side}_p{q}_at_{rate}_ms": self.all(side, rate, q)
            for side in SIDES
            for rate in RATES
            for q in (50, 99)
        }
        for side in SIDES:
            found[f"{side}_first_byte_p50_at_{RATES[0]}_ms"] = self.all(
                side, RATES[0], 50, "first_s", stream=True
            )
        return found


def overhead_vs_litellm(effort: Effort | None = None) -> BenchmarkResult:
    """Compare what both add to the median at the first of :data:`RATES`."""
    how = effort or Effort()
    version = litellm_version(find_python())
    measured = Measured()
    with ExitStack() as held:
        endpoints = _endpoints(held)
        for endpoint in endpoints.values():
            endpoint.load(RATES[0], 3.0)
            endpoint.load(RATES[0], 1.0, stream=True)
        alternate(NAME, how.rounds, *(_side(measured, s, endpoints[s], how) for s in SIDES))
        best = min(PEERS, key=lambda side: measured.all(side, RATES[0], 50))
        compared: tuple[Side, ...] = ("ours", best)
        highest = {
            side: _highest_rate(endpoints[side], measured.all(side, RATES[0], 99), how)
            for side in compared
        }
    return _summary(measured, highest, best, version)


def _endpoints(held: ExitStack) -> dict[Side, Endpoint]:
    folder = Path(held.enter_context(tempfile.TemporaryDirectory()))
    stub = held.enter_context(StubProcess())
    urls = {"a": stub.url, "b": stub.url}
    fleet = fleet_at(urls, slots=1000, queue_size=1000)
    ours = held.enter_context(RouterProcess(fleet, folder / "ours"))
    peers = {
        side: held.enter_context(LiteLLMProxy(urls, folder / "litellm", strategy))
        for side, strategy in (("shuffle", "simple-shuffle"), ("least_busy", "least-busy"))
    }
    return {
        "direct": Endpoint(stub.url, {}),
        "ours": Endpoint(ours.url, ours.headers),
        "shuffle": Endpoint(peers["shuffle"].url, peers["shuffle"].headers),
        "least_busy": Endpoint(peers["least_busy"].url, peers["least_busy"].headers),
    }


def _side(measured: Measured, side: Side, endpoint: Endpoint, how: Effort) -> RoundOfSide:
    def measure(_: int) -> float:
        for rate in RATES:
            measured.add(side, rate, endpoint.load(rate, how.seconds))
        streamed = endpoint.load(RATES[0], how.seconds / 2, stream=True)
        measured.add(side, RATES[0], streamed, stream=True)
        return measured.all(side, RATES[0], 50)

    return measure


def _highest_rate(endpoint: Endpoint, usual_p99_ms: float, how: Effort) -> float:
    """Return the highest rate of the search at which p99 is below twice the usual one.

    A rate at which it is not gets a second try, since a single pause of the machine is enough for
    one of them.
    """
    highest = float(RATES[0])
    for rate in how.steps:
        tries = (endpoint.load(rate, how.step_seconds) for _ in range(2))
        if not any(_holds(result, 2 * usual_p99_ms) for result in tries):
            return highest
        highest = float(rate)
    return highest


def _holds(result: LoadResult, most_ms: float) -> bool:
    return not result.errors() and 1e3 * result.percentile(99) <= most_ms


def _summary(
    measured: Measured, highest: Mapping[Side, float], best: Side, version: str
) -> BenchmarkResult:
    low = RATES[0]
    details = measured.details()
    for rate in RATES:
        for q in (50, 99):
            ours, peer = measured.added("ours", rate, q), measured.added(best, rate, q)
            details[f"ours_adds_p{q}_at_{rate}_ms"] = ours
            details[f"litellm_adds_p{q}_at_{rate}_ms"] = peer
            if ours > 0:
                # nothing added is nothing to divide by
                details[f"ratio_p{q}_at_{rate}"] = peer / ours
    details["ours_highest_rate"] = highest["ours"]
    details["litellm_highest_rate"] = highest[best]
    return summarise(
        NAME,
        f"ms added to the median at {low} requests/s",
        f"router with the policy shortest-queue, against LiteLLM {version}'s proxy (one worker, no "
        "database, log level ERROR, the faster of simple-shuffle and least-busy), both with a key, "
        "in front of two deployments that are one stub server which answers at once; open loop "
        "from a process of its own, latency from the moment a request was due to the end of its "
        "answer, less that of asking the stub directly; the highest rate is the last one before "
        f"p99 doubles from what it is at {low} requests/s",
        measured.rounds("ours", low, 50),
        measured.rounds(best, low, 50),
        less_is_better=True,
        details=details,
    )
