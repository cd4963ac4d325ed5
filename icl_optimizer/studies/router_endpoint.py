"""Whether the router's endpoint loses requests of common clients, and how long decisions take."""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections.abc import Awaitable, Callable
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from icl_optimizer.environments.fleet.config import FleetConfig
from icl_optimizer.environments.fleet.twin import scheduling_config
from icl_optimizer.environments.slo_scheduling import SLOSchedulingVectorEnv
from icl_optimizer.llm import LlamaCpp
from icl_optimizer.policies import make_policy
from icl_optimizer.rollout import progress
from icl_optimizer.studies.router_process import KEY, RouterProcess, fleet_at
from icl_optimizer.studies.stub_process import StubProcess
from icl_optimizer.studies.stub_server import StubSettings
from icl_optimizer.studies.tables import write_study

if TYPE_CHECKING:
    from icl_optimizer.llm.base import LanguageModel

REQUESTS = 1000
IN_FLIGHT = 32
TOKENS = 16
EXPERIENCE = 150
"""Outcomes that the in-context policy has learned from."""
DECISIONS = 100
_ANSWER = " ".join(f"w{i}" for i in range(TOKENS))
_QUESTION = "Request {number}: what is 2 + 3?"

Ask = Callable[[int], Awaitable[str]]


@dataclass(frozen=True)
class Result:
    """One row of the table.

    Attributes:
        what: Client, or kind of decision.
        sent: Requests or decisions.
        answered: Requests with the whole answer.
        lost: The others.
        median_ms: Of a request or a decision.
        p99_ms: Of the same.
    """

    what: str
    sent: int
    answered: int
    lost: int
    median_ms: float
    p99_ms: float


def run_router_endpoint(
    out: Path,
    seeds: int = 1,
    *,
    requests: int = REQUESTS,
    decisions: int = DECISIONS,
    model: LanguageModel | None = None,
    progress_bar: bool = True,
) -> Path:
    """Write ``router-endpoint.csv`` and ``router-endpoint.md``; return the latter's path.

    Args:
        out: Folder for both.
        seeds: Repetitions with each client.
        requests: Of each client, half of them streamed.
        decisions: That the in-context policy makes.
        model: Its language model; None for the embedded one.
        progress_bar: Whether to draw one.
    """
    results: list[Result] = []
    with ExitStack() as held, progress("router-endpoint", 2 * seeds, shown=progress_bar) as done:
        folder = Path(held.enter_context(tempfile.TemporaryDirectory()))
        names = ("a", "b", "c")
        settings = [StubSettings(name=n, tokens=TOKENS, ttft_s=0.02, token_s=0.002) for n in names]
        stubs = [held.enter_context(StubProcess(each)) for each in settings]
        urls = {n: stub.url for n, stub in zip(names, stubs, strict=True)}
        fleet = fleet_at(urls, slots=8, queue_size=64)
        router = held.enter_context(RouterProcess(fleet, folder))
        for _ in range(seeds):
            for client in (_through_openai, _through_langchain):
                results.append(asyncio.run(client(router.url, requests)))
                done(1)
    results += _decision_times(fleet, decisions, model)
    frame = pd.DataFrame([asdict(result) for result in results])
    return write_study(out, "router-endpoint", frame, _table(results))


async def _through_openai(url: str, count: int) -> Result:
    from openai import AsyncOpenAI

    async with AsyncOpenAI(base_url=url, api_key=KEY, max_retries=0) as client:

        async def ask(number: int) -> str:
            content = _QUESTION.format(number=number)
            fields: dict[str, Any] = {
                "model": "auto",
                "messages": [{"role": "user", "content": content}],
            }
            if number % 2:
                stream = await client.chat.completions.create(**fields, stream=True)
                parts = [part.choices[0].delta.content or "" async for part in stream]
                return "".join(parts)
            answer = await client.chat.completions.create(**fields)
            return answer.choices[0].message.content or ""

        return await _measured("openai client", ask, count)


async def _through_langchain(url: str, count: int) -> Result:
    from langchain_openai import ChatOpenAI
    from openai import DefaultAsyncHttpxClient
    from pydantic import SecretStr

    # of its own, since LangChain leaves those that it makes open
    async with DefaultAsyncHttpxClient() as connections:
        chat = ChatOpenAI(
            model="auto",
            base_url=url,
            api_key=SecretStr(KEY),
            max_retries=0,
            http_async_client=connections,
        )

        async def ask(number: int) -> str:
            content = _QUESTION.format(number=number)
            if number % 2:
                return "".join([str(part.content) async for part in chat.astream(content)])
            return str((await chat.ainvoke(content)).content)

        return await _measured("LangChain's ChatOpenAI", ask, count)


async def _measured(what: str, ask: Ask, count: int) -> Result:
    """Ask ``count`` times, so many at once as :data:`IN_FLIGHT` says."""
    gate = asyncio.Semaphore(IN_FLIGHT)

    async def one(number: int) -> tuple[bool, float]:
        async with gate:
            began = time.perf_counter()
            try:
                text = await ask(number)
            except Exception:
                # whatever a client raises, the request is lost
                return False, time.perf_counter() - began
            return text.strip() == _ANSWER, time.perf_counter() - began

    told = await asyncio.gather(*(one(i) for i in range(count)))
    answered = sum(whole for whole, _ in told)
    return _row(what, [seconds for _, seconds in told], answered)


def _decision_times(
    fleet: FleetConfig, decisions: int, model: LanguageModel | None
) -> list[Result]:
    """Return how long the in-context policy takes, by who decided: model or cache."""
    env = SLOSchedulingVectorEnv(1, scheduling_config(fleet))
    with ExitStack() as held:
        asked = model or held.enter_context(LlamaCpp())
        policy = make_policy("icl-predict", env.problem, env=env, model=asked)
        policy.learn(EXPERIENCE)
        rng = np.random.default_rng(1)
        seconds: dict[str, list[float]] = {}
        for _ in range(decisions):
            row = _situation(rng, fleet)
            for _ in range(2):
                began = time.perf_counter()
                decision = policy.decide(row[None])[0]
                seconds.setdefault(decision.made_by, []).append(time.perf_counter() - began)
    words = {"llm": "decision of icl-predict, asked", "cache": "decision of icl-predict, cached"}
    return [
        _row(words.get(made_by, f"decision of icl-predict, by {made_by}"), found, len(found))
        for made_by, found in sorted(seconds.items(), reverse=True)
    ]


def _situation(rng: np.random.Generator, fleet: FleetConfig) -> NDArray[np.float64]:
    queues = [rng.integers(0, 8) for _ in fleet.servers]
    return np.array([*queues, rng.integers(0, 5), fleet.deadline_s], dtype=np.float64)


def _row(what: str, seconds: list[float], answered: int) -> Result:
    return Result(
        what,
        len(seconds),
        answered,
        len(seconds) - answered,
        1e3 * median(seconds),
        1e3 * float(np.percentile(seconds, 99)),
    )


def _table(results: list[Result]) -> list[list[str]]:
    header = ["", "sent", "answered", "lost", "median, ms", "p99, ms"]
    return [header] + [
        [
            r.what,
            *(str(n) for n in (r.sent, r.answered, r.lost)),
            *(f"{t:,.3g}" for t in (r.median_ms, r.p99_ms)),
        ]
        for r in results
    ]
