"""The edge's half of one text: layers after the split, with their own keys and values."""

from __future__ import annotations

import hashlib
from typing import Protocol

import torch
from torch import Tensor

from .model import SplitModel
from .packing import Packed, unpack
from .wire import EdgeError


class Edge(Protocol):
    """What a device asks of the edge, in the same process or another."""

    def logits(self, packed: Packed) -> Tensor:
        """Return the logits ``(tokens, vocabulary)`` of the tokens whose states arrived."""
        ...

    def token(self, packed: Packed) -> int:
        """Return the likeliest token after those whose states arrived."""
        ...


class EdgeSession:
    """Layers ``split + 1..L``, the last norm and the head, for one text.

    Args:
        model: The model; its device's layers are used for the first token alone, if at all.
        split: Layers ``p`` on the device.

    Attributes:
        position: Tokens so far, whose keys and values are kept.
    """

    def __init__(self, model: SplitModel, split: int) -> None:
        """Begin a text."""
        from transformers import DynamicCache

        self.model = model
        self.split = model.check_split(split)
        self.position = 0
        self._cache = DynamicCache()

    def logits(self, packed: Packed) -> Tensor:
        """Return the logits ``(tokens, vocabulary)``, the first token's among them.

        Raises:
            EdgeError: The states are not what was announced, or too many for the model.
        """
        return self._advance(packed, last=False)

    def token(self, packed: Packed) -> int:
        """Return the likeliest token; raises as :meth:`logits`."""
        return int(self._advance(packed, last=True)[-1].argmax())

    def _advance(self, packed: Packed, *, last: bool) -> Tensor:
        states = unpack(packed, self.model.hidden)
        if packed.start is not None:
            states = torch.cat([self._first(packed.start), states], dim=1)
        tokens, limit = states.shape[1], context_size(self.model)
        if not 1 <= tokens <= limit - self.position:
            raise EdgeError(
                f"{tokens} tokens come after {self.position}; allowed: 1 to "
                f"{limit - self.position}, the model's context has {limit}."
            )
        found = self.model.edge(states, self.split, self._cache, last=last)[0]
        self.position += tokens
        return found

    def _first(self, start: int) -> Tensor:
        if self.position:
            raise EdgeError(f"start is {start} at token {self.position}; allowed: at token 0.")
        return self.model.ue(torch.tensor([[start]]), self.split)


def context_size(model: SplitModel) -> int:
    """Return the most tokens of a text."""
    return int(model.module.config.max_position_embeddings)


def vocabulary(model: SplitModel) -> int:
    """Return the number of tokens that the model knows."""
    return int(model.module.config.vocab_size)


def fingerprint(model: SplitModel) -> str:
    """Return a digest of names, shapes and first numbers of all weights.

    Two halves with different fingerprints do not belong to one model.
    """
    digest = hashlib.sha256()
    for name, weight in model.module.state_dict().items():
        digest.update(f"{name} {tuple(weight.shape)} ".encode())
        digest.update(weight.flatten()[:16].float().numpy().tobytes())
    return digest.hexdigest()[:16]
