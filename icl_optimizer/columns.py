"""Columns of an observation, as numbers for networks and as words for prompts."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from icl_optimizer.errors import ConfigurationError


@dataclass(frozen=True)
class Category:
    """An observation column that holds the index of a word.

    Attributes:
        name: The keyword.
        words: Every word that an index may stand for.
        learned: How many of them, from the front, may occur while learning; the others are new
            at evaluation, and a one-hot encoding sends them all to one *unknown* slot.
    """

    name: str
    words: tuple[str, ...]
    learned: int

    spoken = True
    action: None = None
    stake = False
    detail = False

    @property
    def low(self) -> float:
        """Smallest index."""
        return 0.0

    @property
    def high(self) -> float:
        """Largest index."""
        return float(len(self.words) - 1)

    def word(self, value: float) -> str:
        """Return the word at index ``value``."""
        index = int(value)
        if not 0 <= index < len(self.words):
            raise ConfigurationError(
                f"'{self.name}' is {index}; allowed: 0 to {len(self.words) - 1}."
            )
        return self.words[index]

    @property
    def encoded_size(self) -> int:
        """Length of the one-hot code: the learned words and one slot for unknown ones."""
        return self.learned + 1

    def encode(self, values: NDArray[Any]) -> NDArray[np.float32]:
        """Return the one-hot codes, shape ``(n, learned + 1)``."""
        index = np.minimum(values.astype(np.int64), self.learned)
        return np.eye(self.encoded_size, dtype=np.float32)[index]


@dataclass(frozen=True)
class Quantity:
    """A numeric observation column, put into words by thresholds.

    A column that describes one of the decisions (the queue of a server) says which, and in which
    role; the columns of one role belong together, one per decision.

    Attributes:
        name: The keyword.
        unit: Unit of the values, for axes and docs.
        low: Smallest value; smaller ones are clipped when encoding.
        high: Largest value; larger ones are clipped when encoding.
        edges: Increasing thresholds; ``words[i]`` holds below ``edges[i]``.
        words: One word more than there are thresholds; none for a column that only numeric
            policies see.
        action: Index of the decision that the column describes; None for what all share.
        role: What it says about that decision, as in ``queue``; needed with ``action``.
        stake: Whether it tells what the decision is worth (the quality of a server's answers),
            not whether it succeeds; only for columns of single decisions.
        detail: Whether only a policy that knows the structure of the observation (a graph) can
            use it: one of many numbers about single requests.
    """

    name: str
    unit: str
    low: float
    high: float
    edges: tuple[float, ...] = ()
    words: tuple[str, ...] = ()
    action: int | None = None
    role: str = ""
    stake: bool = False
    detail: bool = False

    def __post_init__(self) -> None:
        """Check that the words fit the thresholds, and the role the decision."""
        if (self.action is None) != (not self.role):
            raise ConfigurationError(
                f"quantity '{self.name}' has action {self.action} and role '{self.role}'; "
                "allowed: both or neither."
            )
        if self.stake and self.action is None:
            raise ConfigurationError(
                f"quantity '{self.name}' is a stake of no decision; allowed: with an action."
            )
        if not self.words and not self.edges:
            return
        if len(self.words) != len(self.edges) + 1:
            raise ConfigurationError(
                f"quantity '{self.name}' has {len(self.words)} words for "
                f"{len(self.edges)} thresholds; allowed: {len(self.edges) + 1} words."
            )

    @property
    def spoken(self) -> bool:
        """Whether the column has words, so that a context shows it."""
        return bool(self.words)

    def word(self, value: float) -> str:
        """Return the word for ``value`` (in ``unit``)."""
        return self.words[bisect_right(self.edges, value)]

    @property
    def encoded_size(self) -> int:
        """Length of the code: one number."""
        return 1

    def encode(self, values: NDArray[Any]) -> NDArray[np.float32]:
        """Return the values scaled to 0..1, shape ``(n, 1)``."""
        scaled = (values - self.low) / (self.high - self.low)
        return np.clip(scaled, 0.0, 1.0).astype(np.float32)[:, None]


Column = Category | Quantity
