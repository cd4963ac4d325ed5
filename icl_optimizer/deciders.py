"""Deciders turn examples and a query into a probability per label, by asking a language model."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections import defaultdict, deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from icl_optimizer.decision import MadeBy
from icl_optimizer.errors import unknown_name
from icl_optimizer.experience import Example
from icl_optimizer.llm.base import LanguageModel
from icl_optimizer.llm.errors import ModelError
from icl_optimizer.problem import Context
from icl_optimizer.prompting import PromptBuilder
from icl_optimizer.selection import nearest_last

Calibration = Literal["none", "content-free", "pool", "batch"]
CALIBRATIONS: tuple[Calibration, ...] = ("none", "content-free", "pool", "batch")
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Answer:
    """A decider's answer to one query.

    Attributes:
        probabilities: Probability of each label.
        made_by: ``llm``, or ``fallback`` when the model gave no usable answer.
    """

    probabilities: tuple[float, ...]
    made_by: MadeBy = "llm"


@dataclass
class DeciderCounts:
    """What happened so far; for the cost columns of a comparison."""

    asked: int = 0
    invalid: int = 0
    fallback: int = 0


@dataclass
class Decider(ABC):
    """Asks ``model`` with prompts of ``builder``."""

    model: LanguageModel
    builder: PromptBuilder
    counts: DeciderCounts = field(default_factory=DeciderCounts)

    def answer(
        self, orders: Sequence[Sequence[Example]], queries: Sequence[Context]
    ) -> list[Answer]:
        """Answer ``queries``, one answer each.

        Args:
            orders: The examples, once per order in which they are to be shown.
            queries: Situations in words.
        """
        self.counts.asked += len(queries)
        return self._answer(orders, queries)

    def prompt(self, examples: Sequence[Example], query: Context) -> str:
        """Return the text that the model is sent for ``query``."""
        return self.builder.render(examples, query)

    @abstractmethod
    def _answer(
        self, orders: Sequence[Sequence[Example]], queries: Sequence[Context]
    ) -> list[Answer]:
        """Answer the queries."""


@dataclass
class ScoreDecider(Decider):
    """Eq. (6) of Zhou et al.: the candidate label with the highest probability; always valid.

    A small model prefers some label whatever the question, so its log-probabilities are
    calibrated by subtracting a bias per label:

    - ``none``: no bias.
    - ``content-free``: the scores of the same prompt for a query of "N/A" (Zhao et al. 2021).
    - ``pool``: the scores of the pool's own examples as queries, averaged within each decision
      and then over the decisions, so that the mix of the queries does not matter. For two labels
      this is the threshold midway between the class means.
    - ``batch``: the mean score over earlier queries (Zhou et al. 2023, batch calibration).

    With several orders the calibrated scores are averaged. The examples are shown ``passes``
    times over: a small model that has seen each of them come back copies the right one.
    """

    leaves_out: ClassVar[bool] = False

    calibration: Calibration = "pool"
    passes: int = 2
    _biases: dict[tuple[tuple[tuple[Context, int], ...], bool], Floats] = field(
        default_factory=dict
    )
    _recent: deque[Floats] = field(default_factory=lambda: deque(maxlen=256))

    def __post_init__(self) -> None:
        """Check the calibration's name and that the labels can be told apart."""
        if self.calibration not in CALIBRATIONS:
            raise unknown_name("calibration", self.calibration, CALIBRATIONS)
        self._check_labels()

    def _check_labels(self) -> None:
        self.model.check_labels(self.labels)

    @property
    def labels(self) -> list[str]:
        """The labels as they continue a prompt."""
        return [f" {label}" for label in self.builder.problem.labels]

    def prompt(self, examples: Sequence[Example], query: Context) -> str:
        """Return the text that the model continues with a label."""
        return self.builder.render(list(examples) * self.passes, query)

    def scores(self, examples: Sequence[Example], queries: Sequence[Context]) -> Floats:
        """Return log-probabilities over the labels, shape ``(n, labels)``, not calibrated."""
        raw = self.model.score([self.prompt(examples, q) for q in queries], self.labels)
        return np.asarray(raw - np.logaddexp.reduce(raw, axis=1, keepdims=True))

    def _answer(
        self, orders: Sequence[Sequence[Example]], queries: Sequence[Context]
    ) -> list[Answer]:
        total = np.zeros((len(queries), len(self.labels)))
        for examples in orders:
            shown = tuple(examples)
            known = {e.context for e in shown}
            scores = self.scores(shown, queries)
            biases = [self.bias(shown, known=q in known) for q in queries]
            total += (scores - np.array(biases)) / len(orders)
            self._recent.extend(scores)
        probabilities = np.exp(total - np.logaddexp.reduce(total, axis=1, keepdims=True))
        return [Answer(tuple(float(p) for p in row)) for row in probabilities]

    def bias(self, examples: tuple[Example, ...], *, known: bool) -> Floats:
        """Return what is subtracted from each label's score, shape ``(labels,)``.

        Args:
            examples: What the prompt shows.
            known: Whether the query's context is among them; the model is surer of those.
        """
        nothing = np.zeros(len(self.labels))
        if self.calibration == "batch":
            return np.asarray(np.mean(self._recent, axis=0)) if self._recent else nothing
        if self.calibration == "none":
            return nothing
        # only a decider that leaves examples out tells known contexts from new ones
        shown = tuple((e.context, e.action) for e in examples)
        key = (shown, known or not self.leaves_out)
        if key not in self._biases:
            if len(self._biases) > 64:
                self._biases.clear()
            self._biases[key] = self._measure_bias(examples, known)
        return self._biases[key]

    def _measure_bias(self, examples: tuple[Example, ...], known: bool) -> Floats:
        classes = {e.action for e in examples}
        if self.calibration == "pool" and len(classes) == len(self.labels):
            scores = self._pool_scores(examples, known)
            by_class: dict[int, list[Floats]] = defaultdict(list)
            for example, row in zip(examples, scores, strict=True):
                by_class[example.action].append(row)
            means = [np.mean(rows, axis=0) for rows in by_class.values()]
            return np.asarray(np.mean(means, axis=0))
        # a pool that does not hold every decision says nothing about the others
        names = examples[0].context if examples else [c.name for c in self.builder.problem.columns]
        nothing = Context(dict.fromkeys(names, "N/A"))
        return np.asarray(self.scores(examples, [nothing])[0])

    def _pool_scores(self, examples: tuple[Example, ...], known: bool) -> Floats:
        """Return the scores of the examples as queries, ``(n, labels)``."""
        return self.scores(examples, [e.context for e in examples])


@dataclass
class ChannelDecider(ScoreDecider):
    """Eq. (6) by Bayes' rule: the label whose own examples make the query most likely.

    Pr(y | x) is proportional to Pr(x | y): for each label the model reads a list of the examples
    with that decision and tells how likely the query is as its next entry (noisy channel, Min et
    al. 2022). A small model is far better at continuing a list of like things than at naming the
    label of one. Calibration ``pool`` leaves out an example of each decision and scores those.
    """

    leaves_out: ClassVar[bool] = True

    def prompt(self, examples: Sequence[Example], query: Context) -> str:
        """Return the lists, one per label, each with the query as its next entry."""
        lists = [self._list(examples, action) for action in range(len(self.labels))]
        return "\n\n".join(f"{text} {self.builder.words(query)}" for text in lists)

    def _list(self, examples: Sequence[Example], action: int) -> str:
        return self.builder.render_list(list(examples) * self.passes, action)

    def _check_labels(self) -> None:
        """Accept any labels: their names are not scored."""

    def scores(self, examples: Sequence[Example], queries: Sequence[Context]) -> Floats:
        """Return the log-likelihood of each query among each label's examples, ``(n, labels)``."""
        texts = [f" {self.builder.words(q)}" for q in queries]
        columns = [
            self.model.likelihood([self._list(examples, action)] * len(texts), texts)
            for action in range(len(self.labels))
        ]
        return np.stack(columns, axis=1)

    def _pool_scores(self, examples: tuple[Example, ...], known: bool) -> Floats:
        if known:
            return super()._pool_scores(examples, known)
        scores = {}
        for group in _one_of_each(examples):
            rest = [e for e in examples if e not in group]
            for example, row in zip(
                group, self.scores(rest, [e.context for e in group]), strict=True
            ):
                scores[example] = row
        return np.array([scores[e] for e in examples])


def _one_of_each(examples: Sequence[Example]) -> list[list[Example]]:
    """Return groups with at most one example of each decision, so that lists shrink evenly."""
    by_action: dict[int, list[Example]] = defaultdict(list)
    for example in examples:
        by_action[example.action].append(example)
    groups = zip_longest(*by_action.values())
    return [[e for e in group if e is not None] for group in groups]


@dataclass
class AutoDecider(Decider):
    """Scores labels for queries whose words the examples know, and asks the channel for new words.

    Measured on the embedded model: label scores with the examples shown twice are right for every
    known context in every order, the channel generalises far better to words never seen.
    """

    calibration: Calibration = "pool"
    passes: int = 2

    def __post_init__(self) -> None:
        """Build both."""
        self.score = ScoreDecider(
            self.model, self.builder, calibration=self.calibration, passes=self.passes
        )
        self.channel = ChannelDecider(
            self.model, self.builder, calibration=self.calibration, passes=1
        )

    def prompt(self, examples: Sequence[Example], query: Context) -> str:
        """Return what the decider in charge of ``query`` sends."""
        decider = self.channel if _has_new_word(examples, query) else self.score
        return decider.prompt(examples, query)

    def _answer(
        self, orders: Sequence[Sequence[Example]], queries: Sequence[Context]
    ) -> list[Answer]:
        new = [q for q in queries if _has_new_word(orders[0], q)]
        known = [q for q in queries if q not in new]
        parts = ((self.channel, new), (self.score, known))
        answers = {
            query: answer
            for decider, part in parts
            if part
            for query, answer in zip(part, decider.answer(orders, part), strict=True)
        }
        return [answers[q] for q in queries]


def _has_new_word(examples: Sequence[Example], query: Context) -> bool:
    """Return whether ``query`` holds a word that no example has under the same keyword."""
    return bool(examples) and any(
        all(e.context[keyword] != word for e in examples) for keyword, word in query.items()
    )


@dataclass
class GenerateDecider(Decider):
    """Lets the model write, and reads the label from the text.

    An answer that names no label is counted as invalid and asked again, constrained to the labels
    where the model can be. What stays invalid falls back to the decision of the best matching
    example (the first label without any), and is counted too.
    """

    max_tokens: int = 8

    def _answer(
        self, orders: Sequence[Sequence[Example]], queries: Sequence[Context]
    ) -> list[Answer]:
        prompts = [self.prompt(orders[0], q) for q in queries]
        actions = [self.parse(t) for t in self.model.generate(prompts, max_tokens=self.max_tokens)]
        missing = [i for i, action in enumerate(actions) if action is None]
        self.counts.invalid += len(missing)
        if self.model.capabilities.constrained:
            for i in missing:
                actions[i] = self._ask_again(prompts[i])
        return [self._result(a, orders[0], q) for a, q in zip(actions, queries, strict=True)]

    def _ask_again(self, prompt: str) -> int | None:
        """Return the answer held to the labels, None where even that gives none of them."""
        try:
            (text,) = self.model.generate([prompt], choices=self.builder.problem.labels)
        except ModelError:
            return None
        return self.parse(text)

    def parse(self, text: str) -> int | None:
        """Return the label that ``text`` begins with, else the only one it names, else None."""
        plain = text.strip().lower()
        labels = [label.lower() for label in self.builder.problem.labels]
        words = [rf"(?<!\w){re.escape(label)}(?!\w)" for label in labels]
        first = [i for i, word in enumerate(words) if re.match(word, plain)]
        if first:
            return max(first, key=lambda i: len(labels[i]))
        named = [i for i, word in enumerate(words) if re.search(word, plain)]
        return named[0] if len(named) == 1 else None

    def _result(self, action: int | None, examples: Sequence[Example], query: Context) -> Answer:
        made_by: MadeBy = "llm"
        if action is None:
            self.counts.fallback += 1
            made_by = "fallback"
            near = nearest_last(examples, query, 1)
            action = near[0].action if near else 0
        count = len(self.builder.problem.labels)
        return Answer(tuple(float(i == action) for i in range(count)), made_by)
