"""Decisions per second of the in-context agent against the loop that papers use.

The plain loop sends the whole prompt (task description, every example of the pool, query) as a
chat message through LangChain to an OpenAI-compatible server, lets the model write, and reads the
label from the text. Both sides have the same model in the same process, the same settings of the
server, prefix reuse included, the same frozen pool and the same queries.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from statistics import median
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from icl_optimizer.agent import ICLAgent, ICLConfig
from icl_optimizer.baselines.heuristics import RandomPolicy
from icl_optimizer.bench.result import BenchmarkResult, alternate, summarise
from icl_optimizer.deciders import GenerateDecider
from icl_optimizer.decision import Outcome
from icl_optimizer.environments.registry import make
from icl_optimizer.llm.llamacpp import LlamaCpp
from icl_optimizer.prompting import PromptBuilder
from icl_optimizer.rollout import Rollout
from icl_optimizer.selection import alternate as alternating

if TYPE_CHECKING:
    from langchain_openai import ChatOpenAI

POOL_TASKS = 150
QUERIES = 60
ROUNDS = 3
CACHED_REPEATS = 20
MAX_TOKENS = 8

Message = tuple[str, str]


@dataclass(frozen=True)
class Workload:
    """A frozen pool and what is asked.

    Attributes:
        agent: The agent that learned the pool; it asks nothing itself.
        queries: Observations, ``(QUERIES, columns)``.
        best: The oracle's decision for each.
    """

    agent: ICLAgent
    queries: NDArray[Any]
    best: NDArray[np.int64]

    def icl(self, *, cache: bool) -> ICLAgent:
        """Return a new agent with this pool, nothing calibrated, nothing cached."""
        agent = ICLAgent(self.agent.problem, self.agent.model, ICLConfig(cache=cache))
        agent.pool = self.agent.pool
        return agent


@dataclass
class Tally:
    """The answers of one side over all rounds."""

    answers: list[int | None] = field(default_factory=list)
    best: list[int] = field(default_factory=list)

    def add(self, answer: int | None, best: int) -> None:
        """Take one answer in, None for one that names no label."""
        self.answers.append(answer)
        self.best.append(best)

    def shares(self, side: str) -> dict[str, float]:
        """Return the shares of valid and of right answers."""
        valid = [a is not None for a in self.answers]
        right = [a == b for a, b in zip(self.answers, self.best, strict=True)]
        return {f"{side}_valid": float(np.mean(valid)), f"{side}_right": float(np.mean(right))}


def vs_plain_loop() -> BenchmarkResult:
    """Compare with every decision asked; calibration is part of our time."""
    return _contest(
        "icl_vs_plain_loop",
        f"ICL with its defaults, decision cache off, each of {QUERIES} queries asked on its own, "
        "the calibration of the pool included",
        lambda work: lambda tally: _rate_of(work, work.icl(cache=False), tally),
    )


def cached_vs_plain_loop() -> BenchmarkResult:
    """Compare with the decision cache on and warm."""

    def prepare(work: Workload) -> Callable[[Tally], float]:
        agent = work.icl(cache=True)
        agent.decide(work.queries)
        return lambda tally: _rate_of(work, agent, tally, CACHED_REPEATS)

    return _contest(
        "icl_cached_vs_plain_loop",
        f"ICL with its defaults and a warm decision cache, so that no model is asked, each of "
        f"{QUERIES} queries on its own",
        prepare,
    )


def _contest(
    name: str, what: str, prepare: Callable[[Workload], Callable[[Tally], float]]
) -> BenchmarkResult:
    """Measure our side, as ``prepare`` makes it, against both forms of the plain loop."""
    with LlamaCpp() as model, _chat(model) as chat:
        work = make_workload(model)
        message, turns = (PlainLoop(chat, work, turns=each) for each in (False, True))
        ours, tallies = prepare(work), [Tally(), Tally(), Tally()]
        # both servers have read their examples once before anything is measured
        work.icl(cache=False).decide(work.queries[:1])
        message.decide(work.queries[0])
        turns.decide(work.queries[0])
        rates = alternate(
            name,
            ROUNDS,
            lambda _: ours(tallies[0]),
            lambda _: message.rate(tallies[1]),
            lambda _: turns.rate(tallies[2]),
        )
    shares = [t.shares(n) for t, n in zip(tallies, ("ours", "message", "turns"), strict=True)]
    return summarise(
        name,
        "decisions/s",
        f"{what}, against a plain loop over LangChain's ChatOpenAI and the loopback server of the "
        "same embedded model: the whole prompt with all examples of the pool in a stable order, up "
        f"to {MAX_TOKENS} tokens written at temperature 0, label read from the text; the peer is "
        "the faster of examples in one message and examples as turns; prefix reuse on all sides",
        rates[0],
        max(rates[1:], key=median),
        details={
            "pool_examples": float(len(work.agent.pool)),
            "message_rate": median(rates[1]),
            "turns_rate": median(rates[2]),
            **shares[0],
            **shares[1],
            **shares[2],
        },
    )


class PlainLoop:
    """Prompt, chat, parse: what one writes without this library.

    The description is the system message. Examples and query are one user message, or a turn of
    user and assistant each.

    Args:
        chat: A LangChain chat model.
        work: Pool and queries.
        turns: Whether each example is a turn of its own.
    """

    def __init__(self, chat: ChatOpenAI, work: Workload, *, turns: bool) -> None:
        """Fix the order of the examples, so that the server can reuse the prompt's beginning."""
        self.chat = chat
        self.work = work
        problem = work.agent.problem
        self.builder = PromptBuilder(problem)
        self._parse = GenerateDecider(work.agent.model, self.builder).parse
        examples = alternating(work.agent.pool.examples(), 0)
        shown = [(self.builder.describe(e.context), problem.labels[e.action]) for e in examples]
        self._start: list[Message] = [("system", "\n".join(self.builder.parts.values()))]
        self._examples = "" if turns else "".join(f"{x}\nDecision: {y}\n\n" for x, y in shown)
        self._cue = "" if turns else "\nDecision:"
        if turns:
            self._start += [part for x, y in shown for part in (("human", x), ("ai", y))]

    def decide(self, observation: NDArray[Any]) -> int | None:
        """Return the index of the label that the model writes, None if it writes none."""
        query = self.builder.describe(self.work.agent.problem.describe(observation))
        question = f"{self._examples}{query}{self._cue}"
        answer = self.chat.invoke([*self._start, ("human", question)])
        return self._parse(str(answer.content).strip().removeprefix("Decision:"))

    def rate(self, tally: Tally) -> float:
        """Return decisions per second over the queries."""
        started = time.perf_counter()
        for observation, best in zip(self.work.queries, self.work.best, strict=True):
            tally.add(self.decide(observation), int(best))
        return len(self.work.queries) / (time.perf_counter() - started)


def _rate_of(work: Workload, agent: ICLAgent, tally: Tally, repeats: int = 1) -> float:
    """Return decisions per second of ``agent`` over the queries, one at a time."""
    started = time.perf_counter()
    for _ in range(repeats):
        for observation, best in zip(work.queries, work.best, strict=True):
            tally.add(agent.decide(observation[None])[0].action, int(best))
    return repeats * len(work.queries) / (time.perf_counter() - started)


def make_workload(model: LlamaCpp) -> Workload:
    """Return a pool from random decisions on the offloading system, and held-out queries."""
    env = make("offloading", 1)
    rollout = Rollout(RandomPolicy(env.problem), env, explore=True)
    rollout.reset(seed=0)
    outcomes: list[Outcome] = []
    while len(outcomes) < POOL_TASKS:
        outcomes += rollout.step()[1]
    agent = ICLAgent(env.problem, model).learn_from(outcomes)
    held_out = make("offloading", QUERIES)
    queries, _ = held_out.reset(seed=1_000_003)
    return Workload(agent, queries, held_out.action_values().argmax(axis=1))


@contextmanager
def _chat(model: LlamaCpp) -> Iterator[ChatOpenAI]:
    """Serve ``model`` on loopback and yield LangChain's client for it."""
    from langchain_openai import ChatOpenAI
    from pydantic import SecretStr

    with model.serve() as url:
        yield ChatOpenAI(
            model="embedded",
            base_url=url,
            api_key=SecretStr("none"),
            temperature=0.0,
            max_completion_tokens=MAX_TOKENS,
            max_retries=0,
            extra_body={"cache_prompt": True},
        )
