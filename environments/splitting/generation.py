"""Generating text across the split, with keys and values kept on each side."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from icl_optimizer.errors import ConfigurationError

from .channel import Channel
from .cost import Architecture
from .edge import Edge, EdgeSession, context_size
from .model import SplitModel
from .packing import Packed, pack


class SplitSession:
    """One text: the device's layers here, the edge's layers behind a channel.

    Args:
        model: The model; layers ``1..split`` are used.
        split: Layers ``p`` on the device.
        edge: The other half; None for one in this process.
        channel: What happens to the hidden states on their way.
        seed: Seed of noise and losses.

    Attributes:
        position: Tokens so far, whose keys and values are kept.
        sent: Bytes of hidden states sent with each call, without frames.
        flops: Floating-point operations of the device so far.
    """

    def __init__(
        self,
        model: SplitModel,
        split: int,
        edge: Edge | None = None,
        channel: Channel | None = None,
        seed: int = 0,
    ) -> None:
        """Begin a text."""
        from transformers import DynamicCache

        self.model = model
        self.split = model.check_split(split)
        self.edge = edge or EdgeSession(model, split)
        self.channel = channel or Channel()
        self.position = 0
        self.sent: list[int] = []
        self.flops = 0
        self._architecture = Architecture.of(model.module.config)
        self._cache = DynamicCache()
        self._generator = torch.Generator().manual_seed(seed)

    def logits(self, tokens: Sequence[int]) -> Tensor:
        """Return the logits ``(tokens, vocabulary)`` of the text's next tokens."""
        return self.edge.logits(self._send(tokens))

    def token(self, tokens: Sequence[int]) -> int:
        """Return the likeliest token after the text's next tokens."""
        return self.edge.token(self._send(tokens))

    def _send(self, tokens: Sequence[int]) -> Packed:
        limit = context_size(self.model) - self.position
        if not 1 <= len(tokens) <= limit:
            raise ConfigurationError(
                f"{len(tokens)} tokens come after {self.position}; allowed: 1 to {limit}."
            )
        states = self.model.ue(torch.tensor([list(tokens)]), self.split, self._cache)
        self.flops += self._architecture.ue_flops(self.split, len(tokens), self.position)
        start = tokens[0] if self.position == 0 else None
        packed = pack(states, self.channel, self._generator, start)
        self.position += len(tokens)
        self.sent.append(len(packed.payload))
        return packed


@dataclass(frozen=True)
class Generated:
    """A text that was continued across the split.

    Attributes:
        tokens: The new tokens, with the one that ends a text if it came.
        text: What they say.
        seconds: Time from the prompt to the last token, in s.
        sent: Bytes of hidden states, first the prompt's, then each token's.
        flops: Floating-point operations of the device.
    """

    tokens: tuple[int, ...]
    text: str
    seconds: float
    sent: tuple[int, ...]
    flops: int

    @property
    def tokens_per_s(self) -> float:
        """New tokens per second, the prompt's time included."""
        return len(self.tokens) / self.seconds


def generate(session: SplitSession, prompt: Sequence[int], max_tokens: int = 40) -> Generated:
    """Continue a prompt greedily, as transformers' ``generate(do_sample=False)`` does.

    Args:
        session: A text that has just begun.
        prompt: Its tokens, at least one.
        max_tokens: Most new tokens.
    """
    if max_tokens < 1:
        raise ConfigurationError(f"max_tokens is {max_tokens}; allowed: at least 1.")
    ends = _ends(session.model)
    begun = time.perf_counter()
    new = [session.token(prompt)]
    while len(new) < max_tokens and new[-1] not in ends:
        new.append(session.token(new[-1:]))
    seconds = time.perf_counter() - begun
    text = str(session.model.tokenizer.decode(new, skip_special_tokens=True))
    return Generated(tuple(new), text, seconds, tuple(session.sent), session.flops)


def continuation_nats(session: SplitSession, prompt: Sequence[int], new: Sequence[int]) -> float:
    """Return the mean negative log-likelihood of ``new`` after ``prompt``, in nats per token.

    Args:
        session: A text that has just begun.
        prompt: Its first tokens.
        new: The tokens whose likelihood is asked for.
    """
    logits = session.logits([*prompt, *new[:-1]])[len(prompt) - 1 :]
    nats = torch.nn.functional.cross_entropy(logits, torch.tensor(list(new)))
    return float(nats)


def _ends(model: SplitModel) -> frozenset[int]:
    """Return the tokens that end a text."""
    ends = model.module.generation_config.eos_token_id
    if ends is None:
        return frozenset()
    return frozenset([ends] if isinstance(ends, int) else ends)
