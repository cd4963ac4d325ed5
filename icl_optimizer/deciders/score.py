"""Decisions by the probability that the model gives each label."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import Literal

import numpy as np

from icl_optimizer.deciders.base import Answer, Decider, Floats, as_answers, normalised
from icl_optimizer.deciders.style import Style, spelled, styled
from icl_optimizer.errors import unknown_name
from icl_optimizer.experience import Example
from icl_optimizer.problem import Context
from icl_optimizer.selection import Order, fit_to

Calibration = Literal["none", "content-free", "pool", "leave-one-out", "batch"]
CALIBRATIONS: tuple[Calibration, ...] = ("none", "content-free", "pool", "leave-one-out", "batch")


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
    - ``leave-one-out``: the same, with an example of each decision left out of the prompt that
      scores them, so that they are judged as contexts never met.
    - ``batch``: the mean score over earlier queries (Zhou et al. 2023, batch calibration).

    With several orders the calibrated scores are averaged. The examples are shown ``passes``
    times over: a small model that has seen each of them come back copies the right one. The last
    time they may be in an order that suits the query.
    """

    calibration: Calibration = "pool"
    passes: int = 2
    order: Order = "alternating"
    style: Style = "completion"
    _biases: dict[Hashable, Floats] = field(default_factory=dict)
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
        return spelled(self.builder.problem.labels, self.style)

    def prompt(self, examples: Sequence[Example], query: Context) -> str:
        """Return the text that the model continues with a label."""
        shown = list(examples) * (self.passes - 1)
        shown += fit_to(examples, query, self.order)
        return styled(self.model, self.builder, self.style, shown, query)

    def scores(self, examples: Sequence[Example], queries: Sequence[Context]) -> Floats:
        """Return log-probabilities over the labels, shape ``(n, labels)``, not calibrated."""
        prompts = [self.prompt(examples, q) for q in queries]
        return normalised(self.model.score(prompts, self.labels))

    def calibrated(self, orders: Sequence[Sequence[Example]], queries: Sequence[Context]) -> Floats:
        """Return calibrated scores ``(n, labels)``, the mean over ``orders``."""
        total = np.zeros((len(queries), len(self.labels)))
        for examples in orders:
            shown = tuple(examples)
            known = {e.context for e in shown}
            scores = self.scores(shown, queries)
            biases = [self.bias(shown, known=q in known) for q in queries]
            total += (scores - np.array(biases)) / len(orders)
            self._recent.extend(scores)
        return total

    def _answer(
        self, orders: Sequence[Sequence[Example]], queries: Sequence[Context]
    ) -> list[Answer]:
        return as_answers(self.calibrated(orders, queries))

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
        key = (self.builder.signature(examples), self._leaves_out(known))
        if key not in self._biases:
            if len(self._biases) > 64:
                self._biases.clear()
            self._biases[key] = self._measure_bias(examples, known)
        return self._biases[key]

    def _leaves_out(self, known: bool) -> bool:
        """Return whether pool examples are scored by prompts that do not show them."""
        return self.calibration == "leave-one-out"

    def _measure_bias(self, examples: tuple[Example, ...], known: bool) -> Floats:
        classes = {e.action for e in examples}
        if self.calibration != "content-free" and len(classes) == len(self.labels):
            scores = self._pool_scores(examples, known)
            by_class: dict[int, list[Floats]] = defaultdict(list)
            for example, row in zip(examples, scores, strict=True):
                by_class[example.action].append(row)
            means = [np.mean(rows, axis=0) for rows in by_class.values()]
            return np.asarray(np.mean(means, axis=0))
        # a pool that does not hold every decision says nothing about the others
        names = examples[0].context if examples else self.builder.problem.keywords
        nothing = Context(dict.fromkeys(names, "N/A"))
        return np.asarray(self.scores(examples, [nothing])[0])

    def _pool_scores(self, examples: tuple[Example, ...], known: bool) -> Floats:
        """Return the scores of the examples as queries, ``(n, labels)``."""
        if not self._leaves_out(known):
            return self.scores(examples, [e.context for e in examples])
        scores: dict[Example, Floats] = {}
        for group in _one_of_each(examples):
            rest = [e for e in examples if e not in group]
            rows = self.scores(rest, [e.context for e in group])
            scores |= dict(zip(group, rows, strict=True))
        return np.array([scores[e] for e in examples])


def _one_of_each(examples: Sequence[Example]) -> list[list[Example]]:
    """Return groups with at most one example of each decision, so that lists shrink evenly."""
    by_action: dict[int, list[Example]] = defaultdict(list)
    for example in examples:
        by_action[example.action].append(example)
    groups = zip_longest(*by_action.values())
    return [[e for e in group if e is not None] for group in groups]
