"""What one iteration of a continuously batching expert costs."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

from icl_optimizer.errors import ConfigurationError


@dataclass(frozen=True)
class StepCosts:
    """The time of one iteration, linear in what it does.

    An iteration in which ``D`` sequences decode one token each, with ``C`` tokens in the KV cache
    of these at its start (prompts and what was generated), and in which ``P`` prompt tokens are
    prefilled, lasts

    ``base_s + per_sequence_s D + per_cached_token_s C + per_prompt_token_s P + prefill_s [P > 0]``

    seconds. The base time, reading the weights, is shared by the whole batch; that is what makes
    batching pay.

    Attributes:
        base_s: Time of any iteration, above 0.
        per_prompt_token_s: Time for each prompt token prefilled.
        per_cached_token_s: Time for each cached token that decoding reads.
        per_sequence_s: Time for each sequence that decodes.
        prefill_s: Time for prefilling at all.

    Raises:
        ConfigurationError: A cost is negative or not finite, or the base time is 0.
    """

    base_s: float
    per_prompt_token_s: float
    per_cached_token_s: float
    per_sequence_s: float = 0.0
    prefill_s: float = 0.0

    def __post_init__(self) -> None:
        """Refuse what is no time."""
        for field in fields(self):
            value = getattr(self, field.name)
            if not (value >= 0 and math.isfinite(value)):
                raise ConfigurationError(
                    f"{field.name} is {value}; allowed: seconds, at least 0 and finite."
                )
        if self.base_s == 0:
            raise ConfigurationError("base_s is 0; allowed: above 0, every iteration takes time.")

    def seconds(self, sequences: int, cached: int, prompt: int) -> float:
        """Return how long an iteration lasts.

        Args:
            sequences: Sequences that decode, ``D``.
            cached: Tokens in their KV caches at its start, ``C``.
            prompt: Prompt tokens prefilled, ``P``.
        """
        decode = self.per_sequence_s * sequences + self.per_cached_token_s * cached
        prefill = self.per_prompt_token_s * prompt + (self.prefill_s if prompt > 0 else 0.0)
        return self.base_s + decode + prefill
