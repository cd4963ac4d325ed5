"""What an environment says about itself in words: columns of the observation, labels, contexts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray

from icl_optimizer.columns import Category, Column, Quantity
from icl_optimizer.errors import ConfigurationError
from icl_optimizer.forecast import Expert
from icl_optimizer.words import clean_word

DUMPS = ("dump", "drop")
"""Labels of a decision that is made for hopeless requests."""


def is_line(text: object) -> bool:
    """Return whether ``text`` is a non-empty text that cannot add lines to a prompt."""
    return isinstance(text, str) and bool(text.strip()) and text.splitlines() == [text]


class Context(Mapping[str, str]):
    """One situation in words: an ordered, immutable and hashable mapping of keyword to words.

    The keywords are the ``x`` of eq. (8) in Zhou et al.; two contexts are the same example
    when all their words are equal. Words are data: whatever could change the structure of a
    prompt is taken out of them.
    """

    __slots__ = ("_items",)

    def __init__(self, items: Mapping[str, str]) -> None:
        """Store ``items`` in their order, each word as :func:`~.words.clean_word` leaves it.

        Raises:
            ConfigurationError: A value is no text.
        """
        for keyword, word in items.items():
            if not isinstance(word, str):
                raise ConfigurationError(
                    f"context keyword '{keyword}' has the value {word!r}; allowed: a text."
                )
        self._items = tuple((keyword, clean_word(word)) for keyword, word in items.items())

    def __getitem__(self, keyword: str) -> str:
        """Return the words of ``keyword``."""
        for name, word in self._items:
            if name == keyword:
                return word
        raise KeyError(keyword)

    def __iter__(self) -> Iterator[str]:
        """Iterate over the keywords in order."""
        return (name for name, _ in self._items)

    def __len__(self) -> int:
        """Return the number of keywords."""
        return len(self._items)

    def __hash__(self) -> int:
        """Return a hash of keywords and words."""
        return hash(self._items)

    def __eq__(self, other: object) -> bool:
        """Return whether all keywords and words are equal, in order."""
        return isinstance(other, Context) and self._items == other._items

    def __repr__(self) -> str:
        """Return ``Context(keyword=words, ...)``."""
        return f"Context({', '.join(f'{name}={word!r}' for name, word in self._items)})"

    @property
    def words(self) -> tuple[str, ...]:
        """The words alone, in the order of the keywords."""
        return tuple(word for _, word in self._items)

    def matches(self, other: Context) -> int:
        """Return how many keywords have the same words in ``other``."""
        return sum(a == b for a, b in zip(self.words, other.words, strict=True))


@dataclass(frozen=True)
class Problem:
    """A decision problem as every policy sees it.

    ``describe`` is a pure function of the observation, so a language model knows nothing that
    a numeric policy is not given.

    Attributes:
        name: Folder of the prompt templates (goal, definition, rules).
        labels: Name of each action, in the order of the action indices.
        columns: Meaning of each observation entry, in order.
        horizon: Decisions in an episode.
        profiles: What is known of each decision beforehand, in words (a server's model and size);
            empty where nothing is.
        expert: What an engineer who knows the system's parameters expects of each decision, if
            anyone does; heuristics may use it, learners must not.
    """

    name: str
    labels: tuple[str, ...]
    columns: tuple[Column, ...]
    horizon: int
    profiles: tuple[Context, ...] = ()
    expert: Expert | None = None

    def __post_init__(self) -> None:
        """Check the labels, and that a prompt can show every name and word as it is."""
        different = len(set(self.labels)) == len(self.labels) >= 2
        if not different or not all(is_line(label) for label in self.labels):
            raise ConfigurationError(
                f"labels are {self.labels}; allowed: at least two different names of one line."
            )
        if self.profiles and len(self.profiles) != len(self.labels):
            raise ConfigurationError(
                f"there are {len(self.profiles)} profiles; allowed: none, or one per label "
                f"({len(self.labels)})."
            )
        _check_shown("labels have", self.labels)
        for column in self.columns:
            if column.action is not None and not 0 <= column.action < len(self.labels):
                raise ConfigurationError(
                    f"column '{column.name}' describes action {column.action}; "
                    f"allowed: 0 to {len(self.labels) - 1}."
                )
            _check_shown("columns have the name", (column.name,))
            _check_shown(f"column '{column.name}' has the word", column.words)

    def describe(self, observation: NDArray[Any]) -> Context:
        """Return one observation, shape ``(len(columns),)``, in words."""
        row = self.check(np.atleast_2d(observation))[0]
        return Context({c.name: c.word(row[i]) for i, c in self._spoken})

    def describe_all(self, observations: NDArray[Any]) -> list[Context]:
        """Return a batch of observations, shape ``(n, len(columns))``, in words."""
        return [self.describe(row) for row in np.atleast_2d(observations)]

    def encode(self, observations: NDArray[Any]) -> NDArray[np.float32]:
        """Return observations ``(n, len(columns))`` as features ``(n, encoded_size)`` in 0..1."""
        rows = np.atleast_2d(observations)
        if not np.issubdtype(rows.dtype, np.floating):
            rows = rows.astype(np.float64)
        result = np.empty((len(rows), self.encoded_size), dtype=np.float32)
        columns, places, low, span = self._quantities
        # in the precision of the observations, as one column after the other would be
        scaled = (rows[:, columns] - low.astype(rows.dtype)) / span.astype(rows.dtype)
        result[:, places] = np.clip(scaled, 0.0, 1.0)
        place = 0
        for i, column in enumerate(self.columns):
            if isinstance(column, Category):
                result[:, place : place + column.encoded_size] = column.encode(rows[:, i])
            place += column.encoded_size
        return result

    @cached_property
    def _quantities(self) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any], NDArray[Any]]:
        """Return the numeric columns, their places in the code, and their lows and spans."""
        ends = np.cumsum([c.encoded_size for c in self.columns])
        found = [(i, c) for i, c in enumerate(self.columns) if isinstance(c, Quantity)]
        columns = np.array([i for i, _ in found], dtype=np.int64)
        low = np.array([c.low for _, c in found])
        return columns, ends[columns] - 1, low, np.array([c.high for _, c in found]) - low

    @cached_property
    def encoded_size(self) -> int:
        """Number of features that :meth:`encode` returns."""
        return sum(c.encoded_size for c in self.columns)

    def check(self, observations: NDArray[Any]) -> NDArray[Any]:
        """Return the observations, or raise when one is not finite or has the wrong length."""
        if observations.shape[1] != len(self.columns):
            raise ConfigurationError(
                f"observation has {observations.shape[1]} entries; allowed: "
                f"{len(self.columns)} ({', '.join(c.name for c in self.columns)})."
            )
        if not np.isfinite(observations).all():
            row, column = np.argwhere(~np.isfinite(observations))[0]
            raise ConfigurationError(
                f"observation {row} has {observations[row, column]} for "
                f"'{self.columns[column].name}'; allowed: finite numbers."
            )
        return observations

    def action(self, label: str) -> int:
        """Return the index of ``label``."""
        return self.labels.index(label)

    def check_context(self, context: Context) -> Context:
        """Return ``context``, or raise when its keywords are not the problem's, in order."""
        names = self.keywords
        if tuple(context) != names:
            raise ConfigurationError(
                f"a context has the keywords {', '.join(context) or 'none'}; allowed: "
                f"{', '.join(names)}, in this order."
            )
        return context

    def context(self, words: Sequence[str]) -> Context:
        """Return the context with these words, one per keyword."""
        return Context(dict(zip(self.keywords, words, strict=True)))

    @cached_property
    def keywords(self) -> tuple[str, ...]:
        """Names of the columns that have words, in order: the keywords of every context."""
        return tuple(c.name for _, c in self._spoken)

    @cached_property
    def _spoken(self) -> tuple[tuple[int, Column], ...]:
        """The columns that have words, and their places."""
        return tuple((i, c) for i, c in enumerate(self.columns) if c.spoken)

    def split(self, context: Context) -> tuple[Context, tuple[Context, ...]]:
        """Return what ``context`` says about all decisions alike, and about each on its own.

        Own columns appear under their role, so that those of all decisions bear the same keywords;
        a decision without columns of its own has an empty context. Stakes are left to
        :meth:`stakes`.
        """
        shared, own, _ = self._parts
        parts = [Context({name: context[k] for name, k in part.items()}) for part in (shared, *own)]
        return parts[0], tuple(parts[1:])

    def stakes(self, context: Context) -> tuple[tuple[str, ...], ...]:
        """Return the words that tell what each decision is worth, one tuple per decision."""
        return tuple(tuple(context[k] for k in names.values()) for names in self._parts[2])

    @cached_property
    def _parts(self) -> tuple[dict[str, str], list[dict[str, str]], list[dict[str, str]]]:
        """Keyword by name in the part: what all share, what is each one's own, its stakes."""
        shared = {c.name: c.name for c in self.columns if c.spoken and c.action is None}
        own: list[dict[str, str]] = [{} for _ in self.labels]
        stakes: list[dict[str, str]] = [{} for _ in self.labels]
        for column in self.columns:
            if isinstance(column, Quantity) and column.spoken and column.action is not None:
                part = stakes if column.stake else own
                part[column.action][column.role] = column.name
        return shared, own, stakes

    def own_words(self, action: int) -> list[tuple[str, ...]]:
        """Return every combination of words of a decision's own columns, in their order."""
        return self._own_words[action]

    def own_places(self, action: int) -> dict[tuple[str, ...], int]:
        """Return the place of each combination among :meth:`own_words`."""
        return self._own_places[action]

    @cached_property
    def _own_places(self) -> list[dict[tuple[str, ...], int]]:
        return [{words: i for i, words in enumerate(row)} for row in self._own_words]

    @cached_property
    def _own_words(self) -> list[list[tuple[str, ...]]]:
        told = [c for c in self.columns if c.spoken and not c.stake]
        own = [[c for c in told if c.action == a] for a in range(self.count)]
        return [list(product(*(c.words for c in columns))) for columns in own]

    @cached_property
    def dump(self) -> int | None:
        """The decision that is made for hopeless requests, if there is one: to refuse them."""
        found = [action for action, label in enumerate(self.labels) if label in DUMPS]
        return found[0] if found else None

    @property
    def count(self) -> int:
        """Number of decisions."""
        return len(self.labels)

    @cached_property
    def by_action(self) -> bool:
        """Whether there are columns that describe single decisions."""
        return any(c.action is not None for c in self.columns)

    @cached_property
    def roles(self) -> frozenset[str]:
        """The roles that columns of single decisions have."""
        return frozenset(c.role for c in self.columns if isinstance(c, Quantity) and c.role)

    def role(self, role: str) -> NDArray[np.int64]:
        """Return the columns of ``role``, one per decision that has one, shape ``(k,)``.

        These decisions are the first ``k`` labels; others (to refuse a request) come after them.

        Raises:
            ConfigurationError: No decision has a column in that role.
        """
        places = {
            c.action: i
            for i, c in enumerate(self.columns)
            if isinstance(c, Quantity) and c.action is not None and c.role == role
        }
        if not places or set(places) != set(range(len(places))):
            raise ConfigurationError(
                f"'{self.name}' has no column '{role}' for {', '.join(self.labels)}; "
                f"allowed: {', '.join(sorted(self.roles)) or 'none'}."
            )
        return np.array([places[action] for action in range(len(places))])


def _check_shown(what: str, texts: Sequence[str]) -> None:
    """Raise for a text that would be changed before it is shown in a prompt."""
    for text in texts:
        if isinstance(text, str) and text and clean_word(text) != text:
            raise ConfigurationError(
                f"{what} {text!r}; allowed: what a prompt can show as it is, such as "
                f"{clean_word(text)!r}."
            )


__all__ = ["Category", "Column", "Context", "Problem", "Quantity", "is_line"]
