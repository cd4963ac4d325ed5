"""Load on an OpenAI-compatible endpoint: requests leave when they are due, answered or not.

An open loop: every latency counts from the moment at which its request was due, so that an endpoint
that stalls cannot hide behind requests that were not sent meanwhile (coordinated omission).
"""

from __future__ import annotations

import asyncio
import json
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

if TYPE_CHECKING:
    import aiohttp
    from aiohappyeyeballs import AddrInfoType

Became = Literal["answered", "error", "broken", "unanswered"]
Moment = Literal["headers_s", "first_s", "end_s"]

_DONE = b"data: [DONE]"
_SMALL = 4096


class LoadPlan(BaseModel):
    """What is sent."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    url: str = Field(description="Base URL, with /v1.")
    rate: float = Field(gt=0, le=10_000, description="Requests per second.")
    duration_s: float = Field(gt=0, le=3600, description="How long requests leave.")
    arrivals: Literal["even", "poisson"] = Field("even", description="Gaps between them.")
    seed: int = Field(0, ge=0, description="Of the gaps.")
    stream_share: float = Field(0.0, ge=0, le=1, description="Share of streamed answers.")
    model: str = Field("stub", description="Name of the model in requests.")
    prompt: str = Field("What is 2 + 3?", description="Of each request.")
    max_tokens: int = Field(16, ge=1, description="Longest answer.")
    headers: dict[str, str] = Field(default_factory=dict, description="Further headers.")
    timeout_s: float = Field(30.0, gt=0, description="Longest time for one request.")
    read_pause_s: float = Field(
        0.0, ge=0, description="Pause after every piece that is read; a slow client."
    )

    def due(self) -> list[float]:
        """Return when requests are due, in seconds after the start."""
        count = max(1, round(self.rate * self.duration_s))
        if self.arrivals == "even":
            return [i / self.rate for i in range(count)]
        gaps = np.random.default_rng(self.seed).exponential(1 / self.rate, count)
        return [float(t) for t in np.cumsum(gaps)]

    def streams(self, number: int) -> bool:
        """Return whether a request asks for a stream; spread evenly over the run."""
        share = self.stream_share
        return int((number + 1) * share) > int(number * share)


@dataclass(frozen=True)
class Sample:
    """One request. Times are seconds after it was due, None where it did not come to that.

    Attributes:
        due_s: After the start of the run.
        sent_s: When it left; the generator's own delay.
        headers_s: Status and headers were there.
        first_s: The first byte of the body was there.
        end_s: Everything was read, or it failed.
        status: HTTP status.
        streamed: Whether a stream was asked for.
        became: ``answered``: a whole answer. ``error``: a status of 400 and more, or an event of a
            stream, says what went wrong. ``broken``: cut short without a word. ``unanswered``: no
            status.
        detail: The error.
        attempts: Header ``x-attempts`` of the router: servers asked.
    """

    due_s: float
    sent_s: float
    headers_s: float | None
    first_s: float | None
    end_s: float
    status: int | None
    streamed: bool
    became: Became
    detail: str = ""
    attempts: int = 1


@dataclass(frozen=True)
class LoadResult:
    """All requests of a run, in the order in which they were due."""

    samples: tuple[Sample, ...]

    def count(self, became: Became) -> int:
        """Return how many requests ended so."""
        return sum(s.became == became for s in self.samples)

    @property
    def lost(self) -> int:
        """Requests with neither an answer nor an error that says what went wrong."""
        return self.count("broken") + self.count("unanswered")

    def errors(self) -> dict[str, int]:
        """Return what went wrong, with counts."""
        return dict(Counter(s.detail for s in self.samples if s.became != "answered"))

    def statuses(self) -> dict[str, int]:
        """Return how many requests had which status."""
        return dict(Counter(str(s.status or "none") for s in self.samples))

    def percentile(self, q: float, moment: Moment = "end_s") -> float:
        """Return a percentile, 0 to 100, of a latency over the answered requests, in seconds.

        Returns:
            NaN where nothing was answered.
        """
        values = [getattr(s, moment) for s in self.samples if s.became == "answered"]
        return float(np.percentile(values, q)) if values else float("nan")


async def run_load(plan: LoadPlan) -> LoadResult:
    """Send what ``plan`` says and wait until everything is over."""
    import aiohttp

    timeout = aiohttp.ClientTimeout(plan.timeout_s)
    factory = _small_socket if plan.read_pause_s else None
    connector = aiohttp.TCPConnector(limit=0, socket_factory=factory)
    async with aiohttp.ClientSession(
        connector=connector, timeout=timeout, headers=plan.headers, auto_decompress=False
    ) as session:
        start = time.perf_counter()
        tasks = []
        for number, due in enumerate(plan.due()):
            await asyncio.sleep(max(0.0, start + due - time.perf_counter()))
            tasks.append(asyncio.create_task(_Request(plan, session, start, due, number).send()))
        return LoadResult(tuple(await asyncio.gather(*tasks)))


def load_in_process(plan: LoadPlan) -> LoadResult:
    """Run :func:`run_load` in a process of its own, so that it shares no core with the caller."""
    return finish_load(start_load(plan))


def start_load(plan: LoadPlan) -> subprocess.Popen[bytes]:
    """Start a process that sends; :func:`finish_load` waits for it."""
    return subprocess.Popen(
        [sys.executable, "-m", "icl_optimizer.studies.load", plan.model_dump_json()],
        stdout=subprocess.PIPE,
    )


def finish_load(process: subprocess.Popen[bytes]) -> LoadResult:
    """Return what the process measured.

    Raises:
        RuntimeError: It failed.
    """
    told, _ = process.communicate()
    if process.returncode != 0:
        raise RuntimeError(f"the load generator ended with {process.returncode}")
    return LoadResult(tuple(Sample(**fields) for fields in json.loads(told)))


class _Request:
    """One request on its way."""

    def __init__(
        self,
        plan: LoadPlan,
        session: aiohttp.ClientSession,
        start: float,
        due: float,
        number: int,
    ) -> None:
        self._plan, self._session, self._due = plan, session, due
        self._zero = start + due
        self._streamed = plan.streams(number)
        self._sent = self._end = 0.0
        self._headers: float | None = None
        self._first: float | None = None
        self._status: int | None = None
        self._attempts = 1

    async def send(self) -> Sample:
        import aiohttp

        self._sent = self._now()
        try:
            became, detail = await self._exchange()
        except TimeoutError:
            became, detail = self._cut_short(), "no end in time"
        except (aiohttp.ClientError, OSError) as error:
            became, detail = self._cut_short(), type(error).__name__
        return Sample(
            self._due,
            self._sent,
            self._headers,
            self._first,
            self._now(),
            self._status,
            self._streamed,
            became,
            detail,
            self._attempts,
        )

    def _now(self) -> float:
        return time.perf_counter() - self._zero

    def _cut_short(self) -> Became:
        return "unanswered" if self._status is None else "broken"

    async def _exchange(self) -> tuple[Became, str]:
        plan = self._plan
        body: dict[str, Any] = {
            "model": plan.model,
            "messages": [{"role": "user", "content": plan.prompt}],
            "max_tokens": plan.max_tokens,
        }
        if self._streamed:
            body["stream"] = True
        async with self._session.post(f"{plan.url}/chat/completions", json=body) as response:
            self._headers, self._status = self._now(), response.status
            self._attempts = int(response.headers.get("x-attempts", "1"))
            pieces = []
            async for piece in response.content.iter_any():
                if self._first is None:
                    self._first = self._now()
                pieces.append(piece)
                if plan.read_pause_s:
                    await asyncio.sleep(plan.read_pause_s)
            return _judged(response.status, b"".join(pieces), streamed=self._streamed)


def _small_socket(address: AddrInfoType) -> socket.socket:
    """Return a socket in which little waits to be read, so that a pause is felt by the sender."""
    family, kind, protocol, _, _ = address
    made = socket.socket(family, kind, protocol)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _SMALL)
    return made


def _judged(status: int, content: bytes, *, streamed: bool) -> tuple[Became, str]:
    """Return what became of a request whose answer ended in good order."""
    if status >= 400:
        error = _json(content).get("error")
        return ("error", f"status {status}") if error else ("broken", f"bare status {status}")
    if not streamed:
        return ("answered", "") if _json(content).get("choices") else ("broken", "no JSON")
    events = [part for part in content.split(b"\n\n") if part.startswith(b"data:")]
    told = [_json(part[5:]) for part in events if b'"error"' in part]
    if any("error" in event for event in told):
        return "error", "event in the stream"
    if events and events[-1].strip() == _DONE:
        return "answered", ""
    return "broken", "stream without its end"


def _json(content: bytes) -> dict[str, Any]:
    try:
        told = json.loads(content)
    except ValueError:
        return {}
    return told if isinstance(told, dict) else {}


def main(arguments: Sequence[str]) -> None:
    """Run the plan that is given as JSON and print the samples as JSON."""
    result = asyncio.run(run_load(LoadPlan.model_validate_json(arguments[0])))
    print(json.dumps([asdict(sample) for sample in result.samples]))


if __name__ == "__main__":
    main(sys.argv[1:])
