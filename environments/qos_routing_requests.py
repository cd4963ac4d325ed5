"""The requests of an episode: questions with true and predicted scores, lengths, arrivals."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from icl_optimizer.environments.base import Floats, Ints
from icl_optimizer.environments.qos_routing_config import QoSRoutingConfig
from icl_optimizer.environments.queues.arrivals import draw_arrivals
from icl_optimizer.environments.routing_data.lengths import predict_answer_tokens
from icl_optimizer.environments.routing_data.questions import questions
from icl_optimizer.environments.traces import Trace, read_trace
from icl_optimizer.environments.traces.reading import stamp
from icl_optimizer.environments.traces.rows import Malformed
from icl_optimizer.errors import ConfigurationError


@dataclass(frozen=True, eq=False)
class Source:
    """What requests are drawn from; the arrays are shared and must not be written to.

    Attributes:
        score: True score of each question by each expert, ``(questions, N)``.
        predicted: The predicted one.
        prompt: Prompt tokens of each row of the trace's part, ``(rows,)``; all lengths are scaled.
        answer: Answer tokens.
        expected: Predicted answer tokens.
        arrival_s: Arrivals at the rate of the configuration, ``(rows,)``.
    """

    score: Floats
    predicted: Floats
    prompt: Ints
    answer: Ints
    expected: Floats
    arrival_s: Floats


def load_source(config: QoSRoutingConfig) -> Source:
    """Return what the requests of ``config`` are drawn from.

    Raises:
        ConfigurationError: The trace cannot be read, or its part is too short.
    """
    asked = questions(config.part)
    columns = [asked.names.index(expert.model) for expert in config.served]
    part = _part(config)
    scale = config.length_scale
    prompt, answer = (
        np.maximum(np.rint(tokens * scale), 1).astype(np.int64)
        for tokens in (part.context_tokens, part.generated_tokens)
    )
    expected = predict_answer_tokens(part.context_tokens) * scale
    times = part.arrival_s - part.arrival_s[0]
    pace = (len(times) - 1) / max(float(times[-1]), 1e-9) / config.arrival_rate
    return Source(
        np.ascontiguousarray(asked.scores[:, columns]),
        np.ascontiguousarray(asked.predicted[:, columns]),
        prompt,
        answer,
        np.maximum(expected, 1.0),
        times * pace,
    )


def _part(config: QoSRoutingConfig) -> Trace:
    whole = _trace(config.trace, config.malformed, stamp(config.trace))
    cut = int(len(whole) * config.train_share)
    part = whole.slice(0, cut) if config.part == "train" else whole.slice(cut)
    needed = config.horizon if config.arrivals == "trace" else 2
    if len(part) < needed:
        raise ConfigurationError(
            f"qos-routing: part '{config.part}' of '{config.trace}' has {len(part)} requests; "
            f"allowed: at least {needed}."
        )
    return part


@lru_cache(maxsize=4)
def _trace(source: str, malformed: Malformed, version: tuple[int, int]) -> Trace:
    """Return the whole trace; ``version`` tells those of a file apart."""
    return read_trace(source, malformed=malformed)


@dataclass(frozen=True, eq=False)
class RequestDraws:
    """Requests of each sub-environment's episode (``K`` requests, ``N`` experts).

    Attributes:
        arrival_s: Arrivals, seconds, ``(E, K)``.
        prompt: Prompt tokens, ``(E, K)``.
        answer: Answer tokens, ``(E, K)``.
        expected: Predicted answer tokens, ``(E, K)``.
        score: True scores, ``(E, K, N)``.
        predicted: Predicted scores, ``(E, K, N)``.
    """

    arrival_s: Floats
    prompt: Ints
    answer: Ints
    expected: Floats
    score: Floats
    predicted: Floats

    @classmethod
    def empty(cls, count: int, config: QoSRoutingConfig) -> RequestDraws:
        """Return zeros for ``count`` sub-environments."""
        shape = count, config.horizon
        times, expected = np.zeros((2, *shape))
        prompt, answer = np.ones((2, *shape), dtype=np.int64)
        score, predicted = np.zeros((2, *shape, config.experts))
        return cls(times, prompt, answer, expected, score, predicted)

    def fill(
        self,
        indices: Ints,
        rngs: Sequence[np.random.Generator],
        source: Source,
        config: QoSRoutingConfig,
    ) -> None:
        """Draw an episode for the sub-environments ``indices``, each from its own generator.

        Questions and lengths are drawn independently of each other, since no data has both. With
        arrivals of a trace its rows come one after the other, from a random place.
        """
        count, rows = config.horizon, len(source.prompt)
        for i in indices:
            rng = rngs[i]
            question = rng.integers(len(source.score), size=count)
            if config.arrivals == "trace":
                first = int(rng.integers(rows - count + 1))
                row = np.arange(first, first + count)
                self.arrival_s[i] = source.arrival_s[row] - source.arrival_s[first]
            else:
                row = rng.integers(rows, size=count)
                self.arrival_s[i] = draw_arrivals([rng], count, config.arrival_rate)[0]
            self.prompt[i], self.answer[i] = source.prompt[row], source.answer[row]
            self.expected[i] = source.expected[row]
            self.score[i], self.predicted[i] = source.score[question], source.predicted[question]
