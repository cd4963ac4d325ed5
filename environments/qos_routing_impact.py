"""What one more request does to those that run beside it: the action impact estimator."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from icl_optimizer.environments.base import Bools, Floats
from icl_optimizer.environments.batching.costs import StepCosts


@dataclass(frozen=True, eq=False)
class Costs:
    """The costs of an iteration of each expert, ``(N,)`` each; see :class:`.StepCosts`."""

    base_s: Floats
    per_prompt_token_s: Floats
    per_cached_token_s: Floats
    per_sequence_s: Floats
    prefill_s: Floats

    @classmethod
    def of(cls, costs: Sequence[StepCosts]) -> Costs:
        """Return the costs of several experts as arrays."""
        names = cls.__dataclass_fields__
        return cls(**{name: np.array([getattr(c, name) for c in costs]) for name in names})

    def iteration(self, sequences: Floats, cached: Floats) -> Floats:
        """Return the seconds of an iteration that only decodes, ``(..., N)``."""
        return np.asarray(
            self.base_s + self.per_sequence_s * sequences + self.per_cached_token_s * cached
        )

    def prefill(self, prompt: Floats) -> Floats:
        """Return the seconds that prefilling one prompt adds, ``(..., N)``."""
        return np.asarray(self.prefill_s + self.per_prompt_token_s * prompt)


@dataclass(frozen=True, eq=False)
class Running:
    """Requests that run at each expert, as far as somebody knows them, ``(E, N, R)`` each.

    Attributes:
        present: Where there is one.
        prompt: Prompt tokens.
        answer: Answer tokens, true or predicted; at least 1.
        generated: Tokens generated so far.
        elapsed_s: Seconds since arrival.
        score: Score, true or predicted.
    """

    present: Bools
    prompt: Floats
    answer: Floats
    generated: Floats
    elapsed_s: Floats
    score: Floats

    @property
    def sequences(self) -> Floats:
        """Requests that run at each expert, ``(E, N)``."""
        return np.asarray(self.present.sum(axis=2, dtype=np.float64))

    @property
    def cached(self) -> Floats:
        """Tokens in the KV cache of each expert, ``(E, N)``."""
        return np.asarray(((self.prompt + self.generated) * self.present).sum(axis=2))

    @property
    def left(self) -> Floats:
        """Tokens still to come of each, ``(E, N, R)``; at least one while it runs."""
        return np.asarray(np.maximum(self.answer - self.generated, 1.0) * self.present)

    def projected(self, costs: Costs) -> Floats:
        """Return the latency per token of each if nobody came or left, ``(E, N, R)``, seconds."""
        pace = costs.iteration(self.sequences, self.cached)[:, :, None]
        tokens = np.maximum(self.answer, self.generated + 1.0)
        return np.asarray((self.elapsed_s + self.left * pace) / tokens)

    def so_far(self) -> Floats:
        """Return the seconds since arrival per token generated, ``(E, N, R)``."""
        return np.asarray(self.elapsed_s / np.maximum(self.generated, 1.0))


def impact(
    costs: Costs,
    running: Running,
    prompt: Floats,
    answer: Floats,
    bound_s: float,
    *,
    printed: bool = False,
) -> Floats:
    """Return the scores at risk if the arrived request joined each expert, ``(E, N)``.

    A running request ``r`` shares ``m = min(d_r - g_r, d_i)`` iterations with the arrived one
    ``i``, which adds ``[k1 p_i + k2 sum_{k=1}^{m-1} (p_i + k)] / d_r`` to its latency per token
    (Yang et al.), here with the other costs of an iteration too. Where that takes it over the
    bound, its score is at risk.

    Args:
        costs: Of the experts.
        running: Who runs there.
        prompt: Prompt tokens of the arrived request, ``(E,)``.
        answer: Its answer tokens, true or predicted, ``(E,)``.
        bound_s: Latency per token allowed.
        printed: Whether the latency so far is what is added to, and those already late count
            too; else the one projected to the end, of those that would be in time.
    """
    shared = np.minimum(running.left, answer[:, None, None])
    before = np.maximum(shared - 1.0, 0.0)
    cached = before * prompt[:, None, None] + before * (before + 1.0) / 2
    sequence = costs.per_sequence_s[None, :, None] * shared
    memory = costs.per_cached_token_s[None, :, None] * cached
    added = costs.prefill(prompt[:, None])[:, :, None] + sequence + memory
    per_token = added / np.maximum(running.answer, running.generated + 1.0)
    latency = running.so_far() if printed else running.projected(costs)
    at_risk = running.present & (latency + per_token > bound_s)
    if not printed:
        at_risk &= latency <= bound_s
    return np.asarray((running.score * at_risk).sum(axis=2))
