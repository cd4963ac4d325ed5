"""Perplexity of a split model behind a channel, eq. (6), as a ratio to that of the clean model.

The clean states after every layer are computed once per group of texts; every record resumes from
those of its split, so it pays for the edge's layers alone.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Generator, Tensor

from icl_optimizer.environments.splitting.channel import Channel
from icl_optimizer.environments.splitting.excerpt import excerpt_paragraphs, windows
from icl_optimizer.environments.splitting.model import SplitModel, load_split_model

TOKENS, TEXTS = 32, 8
"""Tokens of a text, and texts of a record: sentences, as in the paper (20 words on average)."""


class PerplexityMeter:
    """Measures what a channel costs in nats per token, on the same texts as without it.

    Args:
        model: The model that is split.
        groups: Tokens ``(texts, 1 + tokens)`` of every group, the start token first.

    Attributes:
        clean_nats: Mean negative log-likelihood per token of each group without a channel.
    """

    def __init__(self, model: SplitModel, groups: Sequence[Tensor]) -> None:
        """Compute every group's clean states, once."""
        self.model = model
        self.groups = list(groups)
        self._states = [model.states(ids) for ids in self.groups]
        clean = [
            nats(model.edge(states[-1], model.layers), ids)
            for states, ids in zip(self._states, self.groups, strict=True)
        ]
        self.clean_nats = [float(c.mean()) for c in clean]

    def extra_nats(self, split: int, channel: Channel, group: int, seed: int) -> float:
        """Return ``ln(PPL / PPL_clean)`` of one group of texts: one record.

        Args:
            split: Layers on the device.
            channel: What the hidden states go through.
            group: Which texts.
            seed: Of fading, noise and losses; the same seed gives the same record.
        """
        if channel.changes_nothing:
            return 0.0
        generator = Generator().manual_seed(seed)
        received = channel.send(self._states[group][split], generator)
        noisy = nats(self.model.edge(received, split), self.groups[group])
        return float(noisy.mean()) - self.clean_nats[group]

    def full_pass(self, split: int, channel: Channel, group: int, seed: int) -> float:
        """Return the same record the plain way: every layer computed again."""
        generator = Generator().manual_seed(seed)
        received = channel.send(self.model.ue(self.groups[group], split), generator)
        noisy = nats(self.model.edge(received, split), self.groups[group])
        return float(noisy.mean()) - self.clean_nats[group]


class LivePerplexity:
    """Asks the model itself: every question is a record of its own, as the table's are.

    Args:
        model: A GGUF file or a model's folder; None for the weights of the embedded model.
        seed: Of noise and losses, a new draw for every question.
    """

    def __init__(self, model: str | None = None, seed: int = 0) -> None:
        """Load the model."""
        loaded = load_split_model(model)
        groups = windows(excerpt_paragraphs(), loaded.tokenizer, tokens=TOKENS, texts=TEXTS)
        self.meter = PerplexityMeter(loaded, groups)
        self._rng = np.random.default_rng(seed)

    def extra_nats(
        self, split: ArrayLike, sigma: ArrayLike, loss: ArrayLike
    ) -> NDArray[np.float64]:
        """Return ``ln(PPL / PPL_clean)``, one forward pass of the edge's layers for each entry.

        Args:
            split: Layers on the device, any shape.
            sigma: Noise, of a shape that fits.
            loss: Loss probability, of a shape that fits.
        """
        asked = np.broadcast_arrays(split, sigma, loss)
        result = np.empty(asked[0].shape)
        for place in np.ndindex(result.shape):
            p, s, x = (float(values[place]) for values in asked)
            group = int(self._rng.integers(len(self.meter.groups)))
            drawn = int(self._rng.integers(2**63))
            result[place] = self.meter.extra_nats(int(p), Channel(sigma=s, loss=x), group, drawn)
        return result


@torch.inference_mode()
def nats(logits: Tensor, ids: Tensor) -> Tensor:
    """Return the negative log-likelihood of every token after the start token.

    Args:
        logits: ``(texts, 1 + tokens, vocabulary)``.
        ids: ``(texts, 1 + tokens)``.

    Returns:
        ``(texts, tokens)``, nats.
    """
    predicted, following = logits[:, :-1], ids[:, 1:, None]
    chosen = predicted.gather(-1, following)[..., 0]
    return torch.logsumexp(predicted, -1) - chosen
