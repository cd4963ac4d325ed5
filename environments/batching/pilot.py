"""Measurements of LLM-Pilot: LLaMA models served to so many users in a closed loop."""

from __future__ import annotations

import csv
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from icl_optimizer.environments.base import Ints
from icl_optimizer.environments.batching.serving import GPUS, kv_bytes_per_token, kv_capacity_tokens

MEASURED_S = 120.0
"""Seconds for which the users of a measurement sent requests."""
Lengths = Literal["measured", "geometric", "fixed"]
"""How answers are distributed: as those of the measurement, or around their mean alone."""
_BILLIONS = {"llama-7b": 7.0, "llama-13b": 13.0}


@dataclass(frozen=True)
class Row:
    """One measurement: a number of users, each of whom always has one request under way.

    Attributes:
        users: How many.
        mean_answer: Tokens of an answer, mean.
        opening_s: From sending a request until its stream was open, median, seconds.
        itl_s: Time between tokens, mean over all pairs of them, seconds.
        ttft_s: From sending a request to its first token, mean, seconds.
        tokens_per_s: Throughput in tokens of answers.
    """

    users: int
    mean_answer: float
    opening_s: float
    itl_s: float
    ttft_s: float
    tokens_per_s: float


@dataclass(frozen=True)
class Setup:
    """A model on one or more GPUs, and its measurements without a failed request.

    Attributes:
        billions: Parameters of the model.
        gpu: ``a100`` or ``h100``.
        n_gpus: GPUs that share the model.
        rows: By number of users, ascending.
    """

    billions: float
    gpu: str
    n_gpus: int
    rows: tuple[Row, ...]

    @property
    def name(self) -> str:
        """For example ``llama-7b, 2 x A100``."""
        return f"llama-{self.billions:g}b, {self.n_gpus} x {self.gpu.upper()}"

    @property
    def fitting(self) -> tuple[Row, ...]:
        """Every other measurement, the lone user's first: those that costs are fitted to."""
        return self.rows[::2]

    @property
    def held_out(self) -> tuple[Row, ...]:
        """The measurements between; no cost is fitted to them."""
        return self.rows[1::2]

    @property
    def per_cached_token_s(self) -> float:
        """Seconds to read the keys and values of a token from the memory of the GPUs."""
        return kv_bytes_per_token(self.billions) / (GPUS[self.gpu].bandwidth * self.n_gpus)

    @property
    def kv_tokens(self) -> int:
        """Tokens that the KV cache holds."""
        return kv_capacity_tokens(self.billions, self.gpu, self.n_gpus)

    @property
    def opening_s(self) -> float:
        """Seconds that opening a stream takes a lone user: network and web server, no engine."""
        return self.rows[0].opening_s


def setups() -> list[Setup]:
    """Return the measured setups: by model, GPU and number of GPUs."""
    rows: dict[tuple[float, str, int], list[Row]] = defaultdict(list)
    for line in _table("llm_pilot"):
        if line["failed"] == "0":
            key = _BILLIONS[line["llm"]], line["gpu"], int(line["n_gpus"])
            rows[key].append(_row(line))
    by_users = {key: sorted(rows[key], key=lambda row: row.users) for key in sorted(rows)}
    return [Setup(*key, tuple(ordered)) for key, ordered in by_users.items()]


def _row(line: Mapping[str, str]) -> Row:
    return Row(
        users=int(line["users"]),
        mean_answer=float(line["mean_out"]),
        opening_s=float(line["stream_open_ms_p50"]) / 1e3,
        itl_s=float(line["itl_ms_mean"]) / 1e3,
        ttft_s=float(line["ttft_ms_mean"]) / 1e3,
        tokens_per_s=float(line["out_tok_per_s"]),
    )


def draw_requests(
    row: Row, count: int, rng: np.random.Generator, lengths: Lengths = "measured"
) -> tuple[Ints, Ints]:
    """Draw requests like those of a measurement.

    Every measurement drew from the same 929 requests, with fixed lengths of prompt and answer: a
    third of the answers has one token, a third 20, one in 80 has 381. The chance draws of a row
    had another mean answer than all 929; so requests are drawn with weights
    ``exp(t · answer)``, with the ``t`` that gives the row's mean.

    Args:
        row: The measurement.
        count: Requests to draw, ``n``.
        rng: Randomness.
        lengths: ``measured`` for those, or with the same prompts ``geometric`` for answers with
            that distribution and ``fixed`` for answers of the mean length, rounded up or down by
            chance; both with the row's mean.

    Returns:
        Prompt and answer tokens, ``(n,)`` each.
    """
    prompts, answers, times = _requests()
    if lengths == "measured":
        weights = _tilted(answers, times, row.mean_answer)
        drawn = rng.choice(len(answers), count, p=weights)
        return prompts[drawn], answers[drawn]
    drawn = rng.choice(len(answers), count, p=times / times.sum())
    if lengths == "geometric":
        return prompts[drawn], rng.geometric(1 / row.mean_answer, count)
    return prompts[drawn], np.floor(row.mean_answer + rng.random(count)).astype(np.int64)


def _tilted(answers: Ints, times: Ints, mean: float) -> NDArray[np.float64]:
    """Return the chances of the requests at which an answer has ``mean`` tokens."""
    from scipy.optimize import brentq

    def chances(slope: float) -> NDArray[np.float64]:
        weights = times * np.exp(slope * answers)
        return np.asarray(weights / weights.sum())

    return chances(brentq(lambda slope: chances(slope) @ answers - mean, -0.5, 0.05))


@cache
def _requests() -> tuple[Ints, Ints, Ints]:
    """Return prompt and answer tokens of the requests, and how many have these, ``(n,)`` each."""
    table = _table("llm_pilot_requests")
    columns = ("prompt_tokens", "answer_tokens", "requests")
    prompts, answers, times = (np.array([int(row[name]) for row in table]) for name in columns)
    return prompts, answers, times


def _table(name: str) -> list[dict[str, str]]:
    with files("icl_optimizer.environments.data").joinpath(f"{name}.csv").open() as file:
        return list(csv.DictReader(file))
