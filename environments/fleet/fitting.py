"""What the servers of a fleet are like, found by asking them: speeds, lengths, scores."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from icl_optimizer.environments.fleet.answers import read_answer
from icl_optimizer.environments.fleet.config import FleetConfig
from icl_optimizer.environments.fleet.servers import Fleet
from icl_optimizer.environments.fleet.tasks import CheckableTask, draw_checkable
from icl_optimizer.environments.fleet.twin import twin_settings
from icl_optimizer.environments.fleet.upstream import UpstreamError
from icl_optimizer.environments.slo_scheduling_config import TASK_TYPES
from icl_optimizer.errors import ConfigurationError

Floats = NDArray[np.float64]
FEWEST = 5
"""Answers of a server that a line is put through."""
_ENOUGH = 0.8
"""Share of the tasks that must have been answered."""
_RESTS = 3
"""Times that a server that rests is waited for."""


@dataclass(frozen=True)
class Sample:
    """One answer of one server.

    Attributes:
        server: Its place among the labels.
        task: Number of the task; every server is asked the same ones.
        kind: Index of the task type.
        tokens: Tokens of the answer.
        service_s: Seconds from sending to the end of the answer.
        score: What the answer earned, 0 to 1.
    """

    server: int
    task: int
    kind: int
    tokens: int
    service_s: float
    score: float


@dataclass(frozen=True)
class ServerFit:
    """What was found about one server.

    Attributes:
        name: Label.
        answers: How many answers it is from.
        tokens_per_s: Answer tokens per second.
        overhead_s: Seconds of service besides.
        r2: Share of the variance of service times that tokens explain.
        residual_s: Median distance of a service time from the line, seconds.
        worst_s: Largest one.
        mean_tokens: Mean length of answers by task type.
        scores: Mean score by task type.
    """

    name: str
    answers: int
    tokens_per_s: float
    overhead_s: float
    r2: float
    residual_s: float
    worst_s: float
    mean_tokens: dict[str, float]
    scores: dict[str, float]

    @property
    def hints(self) -> dict[str, Any]:
        """The fields of the server's description that were measured."""
        return {
            "tokens_per_s": round(self.tokens_per_s, 3),
            "overhead_s": round(self.overhead_s, 4),
            "mean_tokens": {name: round(value, 2) for name, value in self.mean_tokens.items()},
            "scores": {name: round(value, 3) for name, value in self.scores.items()},
        }


@dataclass(frozen=True)
class FleetFit:
    """What was found about a fleet.

    Attributes:
        servers: In the order of the labels.
        length_spread: Log-standard deviation of lengths that all servers share.
        model_spread: Log-standard deviation of lengths between servers on a task.
        relative_lengths: By task type, each task's length relative to the mean, over all servers.
    """

    servers: tuple[ServerFit, ...]
    length_spread: float
    model_spread: float
    relative_lengths: dict[str, tuple[float, ...]]

    def described(self, fleet: FleetConfig) -> FleetConfig:
        """Return the fleet with what was measured in the place of what it said."""
        fields = fleet.model_dump()
        for server, fit in zip(fields["servers"], self.servers, strict=True):
            server.update(fit.hints)
        spreads = {"length_spread": self.length_spread, "model_spread": self.model_spread}
        fields |= {name: round(value, 4) for name, value in spreads.items()}
        fields["relative_lengths"] = self.relative_lengths
        return FleetConfig.model_validate(fields)

    def settings(self, fleet: FleetConfig) -> dict[str, Any]:
        """Return the settings of ``slo-scheduling`` that simulate the fleet, as plain values."""
        settings = twin_settings(self.described(fleet))
        servers = [server.model_dump(mode="json") for server in settings["servers"]]
        lengths = {name: list(values) for name, values in settings["relative_lengths"].items()}
        return settings | {"servers": servers, "relative_lengths": lengths}


async def sample_fleet(
    fleet: Fleet, tasks: int, seed: int = 0, advance: Callable[[int], None] = lambda _: None
) -> list[Sample]:
    """Ask every server the same tasks, all servers at the same time, each one in all its slots.

    Args:
        fleet: The servers.
        tasks: Tasks, of all types in turn.
        seed: Draws them.
        advance: Called with 1 after each answer.

    Returns:
        The answers; those that failed are left out.

    Raises:
        UpstreamError: A server gave too few answers to be described; why the last one failed.
    """
    rng = np.random.default_rng(seed)
    drawn = [draw_checkable(k % len(TASK_TYPES), rng) for k in range(tasks)]
    parts = await asyncio.gather(
        *(_sample_server(fleet, place, drawn, advance) for place in range(len(fleet.servers)))
    )
    return [sample for part in parts for sample in part]


async def _sample_server(
    fleet: Fleet, place: int, tasks: Sequence[CheckableTask], advance: Callable[[int], None]
) -> list[Sample]:
    left = list(enumerate(tasks))[::-1]
    found: list[Sample] = []
    failed: list[UpstreamError] = []
    rests = _RESTS

    async def work() -> None:
        nonlocal rests
        while left:
            number, task = left.pop()
            try:
                answer = await read_answer(fleet, place, task.body)
            except UpstreamError as error:
                if error.kind == "open" and rests and found:
                    # it rests after a failure; the task waits with it
                    rests -= 1
                    left.append((number, task))
                    await asyncio.sleep(error.retry_after or 1.0)
                    continue
                failed.append(error)
            else:
                score = task.check(answer.text)
                found.append(
                    Sample(place, number, task.kind, answer.tokens, answer.service_s, score)
                )
            advance(1)

    await asyncio.gather(*(work() for _ in range(fleet.servers[place].config.slots)))
    if failed and len(found) < max(FEWEST, _ENOUGH * len(tasks)):
        raise failed[-1]
    return found


def fit_fleet(names: Sequence[str], samples: Sequence[Sample]) -> FleetFit:
    """Return what ``samples`` say about the servers ``names``.

    Raises:
        ConfigurationError: There are too few answers, or all are equally long.
    """
    by_server = [[s for s in samples if s.server == place] for place in range(len(names))]
    fits = tuple(_fit_server(name, mine) for name, mine in zip(names, by_server, strict=True))
    return FleetFit(fits, *spreads(len(names), samples), relative_lengths(samples))


def relative_lengths(samples: Sequence[Sample]) -> dict[str, tuple[float, ...]]:
    """Return how long each task's answers were, relative to the mean of its type, ascending.

    A server's own length counts relative to the server's own mean, so that one that is wordy does
    not make tasks look longer.
    """
    found = {}
    for kind, name in enumerate(TASK_TYPES):
        mine = [s for s in samples if s.kind == kind]
        means: dict[int, list[float]] = {}
        for s in mine:
            means.setdefault(s.server, []).append(s.tokens)
        usual = {server: max(float(np.mean(each)), 1.0) for server, each in means.items()}
        by_task: dict[int, list[float]] = {}
        for s in mine:
            by_task.setdefault(s.task, []).append(max(s.tokens, 1) / usual[s.server])
        if by_task:
            found[name] = tuple(sorted(round(float(np.mean(r)), 3) for r in by_task.values()))
    return found


def _fit_server(name: str, samples: Sequence[Sample]) -> ServerFit:
    tokens = np.array([s.tokens for s in samples], dtype=np.float64)
    service = np.array([s.service_s for s in samples])
    if len(samples) < FEWEST or np.unique(tokens).size < 2:
        raise ConfigurationError(
            f"server '{name}' gave {len(samples)} answers of {np.unique(tokens).size} lengths; "
            f"allowed: at least {FEWEST} answers of 2 lengths. Ask more --tasks."
        )
    overhead, per_token = fit_line(tokens, service)
    residual = np.abs(service - overhead - per_token * tokens)
    kinds = {text: [s for s in samples if s.kind == kind] for kind, text in enumerate(TASK_TYPES)}
    asked = {text: mine for text, mine in kinds.items() if mine}
    return ServerFit(
        name,
        len(samples),
        1 / per_token,
        overhead,
        float(1 - (residual**2).sum() / ((service - service.mean()) ** 2).sum()),
        float(np.median(residual)),
        float(residual.max()),
        {t: max(1.0, float(np.mean([s.tokens for s in mine]))) for t, mine in asked.items()},
        {t: float(np.mean([s.score for s in mine])) for t, mine in asked.items()},
    )


def fit_line(tokens: Floats, service_s: Floats) -> tuple[float, float]:
    """Return overhead and seconds per token, neither negative, by robust least squares.

    Residuals far beyond the usual count with their size and not its square (soft L1), so that a
    few answers that had to wait for something else do not move the line.

    Args:
        tokens: Lengths of the answers, ``(n,)``, not all the same.
        service_s: Seconds that they took, ``(n,)``.
    """
    from scipy.optimize import least_squares
    from scipy.stats import theilslopes

    def errors(line: Floats) -> Floats:
        return np.asarray(line[0] + line[1] * tokens - service_s)

    slope, level, *_ = theilslopes(service_s, tokens)
    start = np.array([max(level, 0.0), max(slope, 1e-6)])
    usual = float(np.median(np.abs(errors(start))))
    found = least_squares(
        errors, start, bounds=([0.0, 1e-6], np.inf), loss="soft_l1", f_scale=max(usual, 1e-3)
    )
    return float(found.x[0]), float(found.x[1])


def spreads(servers: int, samples: Sequence[Sample]) -> tuple[float, float]:
    """Return the log-standard deviations of lengths: shared by all servers, and each one's own.

    What two servers have in common on the same task is the covariance of their logarithms around
    the mean of the task's type.
    """
    count = 1 + max(s.task for s in samples)
    logs = np.full((count, servers), np.nan)
    kind = np.zeros(count, dtype=np.int64)
    for s in samples:
        logs[s.task, s.server], kind[s.task] = np.log(max(s.tokens, 1)), s.kind
    groups = 0
    for each in np.unique(kind):
        rows = logs[kind == each]
        known = ~np.isnan(rows)
        groups += int(known.any(axis=0).sum())
        logs[kind == each] = rows - np.where(known, rows, 0).sum(0) / np.maximum(known.sum(0), 1)
    known = ~np.isnan(logs)
    filled = np.where(known, logs, 0.0)
    free = max(int(known.sum()) - groups, 1)
    total = float((filled**2).sum()) / free
    both = known.astype(np.float64).T @ known
    pairs = float(both.sum() - np.trace(both))
    if not pairs:
        return min(float(np.sqrt(total)), 2.0), 0.0
    products = filled.T @ filled
    # as many degrees of freedom are lost to the means as above
    shared = float(products.sum() - np.trace(products)) / pairs * int(known.sum()) / free
    shared = float(np.clip(shared, 0.0, total))
    return min(float(np.sqrt(shared)), 2.0), min(float(np.sqrt(total - shared)), 2.0)
