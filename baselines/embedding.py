"""Logistic regression on text embeddings of the words."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from icl_optimizer.baselines.explorer import ExploringPolicy
from icl_optimizer.environments.base import BatchedEnv
from icl_optimizer.exploration import Exploration
from icl_optimizer.problem import Category, Context, Problem, Quantity

if TYPE_CHECKING:
    from sklearn.linear_model import LogisticRegression

STRENGTHS = (0.1, 1.0, 10.0, 100.0)
"""Inverse regularisation strengths that cross-validation chooses from."""

FOLDS = 5
Floats = NDArray[np.float64]


class TextEncoder(Protocol):
    """Anything that embeds texts, such as a language model."""

    name: str

    def embed(self, texts: Sequence[str]) -> Floats:
        """Return one vector of length 1 per text, shape ``(n, d)``."""


class EmbeddingPolicy(ExploringPolicy):
    """Learns the best decision per experienced context from what its words mean.

    Each open word is embedded; each number enters as the rank of its word (short, medium, long
    are 0, 0.5, 1), so the policy decides from contexts alone. A multinomial logistic regression
    with balanced classes predicts the decision that is best by the means of the experience pool.
    Its strength is chosen by cross-validation over words, so that the chosen one is good for
    words never seen. It says what an embedding alone can do without a language model's prompt.

    Args:
        problem: Labels and columns.
        encoder: Embeds the words; each word once.
        template: Text that a word is embedded in; ``{}`` stands for the word. A causal model's
            embedding says more of a word when the text ends in what is asked of it.
        exploration: When to try decisions; the in-context agent's default when None.
        env: Environment to learn in, if any.
        seed: Seeds exploration.
    """

    name = "embedding"
    kind = "embedding"

    def __init__(
        self,
        problem: Problem,
        encoder: TextEncoder,
        *,
        template: str = "{}",
        exploration: Exploration | None = None,
        env: BatchedEnv | None = None,
        seed: int = 0,
    ) -> None:
        """Start without experience."""
        super().__init__(problem, exploration=exploration, env=env, seed=seed)
        self.encoder = encoder
        self.template = template
        self._vectors: dict[str, Floats] = {}
        self._centre: Floats = np.zeros(1)
        self._fitted: tuple[dict[Context, int], LogisticRegression | None] | None = None

    def _values(
        self, contexts: Sequence[Context], rows: Sequence[NDArray[Any] | None]
    ) -> NDArray[np.float64]:
        """Return the predicted chance of each action to be the best, ``(n, actions)``."""
        best = {e.context: e.action for e in self.pool.examples()}
        if self._fitted is None or self._fitted[0] != best:
            self._fitted = best, self._fit(best)
        model = self._fitted[1]
        values = np.zeros((len(contexts), len(self.problem.labels)))
        if model is None:
            values[:, next(iter(best.values()))] = 1.0
        else:
            values[:, model.classes_] = model.predict_proba(self._features(contexts))
        return values

    def _fit(self, best: dict[Context, int]) -> LogisticRegression | None:
        """Return the regression, or None while one decision is best everywhere."""
        actions = np.array(list(best.values()))
        if len(np.unique(actions)) < 2:
            return None
        contexts = list(best)
        known = {w for c in contexts for w in self._open_words(c)}
        self._embed(known)
        # embeddings of one model share a large common part that says nothing
        self._centre = np.mean([self._vectors[w] for w in sorted(known)], axis=0)
        groups = np.unique([self._group(c) for c in contexts], return_inverse=True)[1]
        return fit_classifier(self._features(contexts), actions, groups)

    def _group(self, context: Context) -> str:
        """Return the open words of a context: what cross-validation keeps together."""
        columns = self.problem.columns
        words = [context[c.name] for c in columns if isinstance(c, Category)]
        return "|".join(words or context.words)

    def _features(self, contexts: Sequence[Context]) -> Floats:
        """Return embeddings and ranks, shape ``(n, features)``."""
        self._embed({w for c in contexts for w in self._open_words(c)})
        return np.array(
            [
                np.concatenate(
                    [
                        self._code(column, c[column.name])
                        for column in self.problem.columns
                        if column.spoken
                    ]
                )
                for c in contexts
            ]
        )

    def _open_words(self, context: Context) -> list[str]:
        return [context[c.name] for c in self.problem.columns if isinstance(c, Category)]

    def _embed(self, words: set[str]) -> None:
        new = sorted(words - set(self._vectors))
        if new:
            texts = [self.template.format(word) for word in new]
            self._vectors |= dict(zip(new, self.encoder.embed(texts), strict=True))

    def _code(self, column: Category | Quantity, word: str) -> Floats:
        if isinstance(column, Category):
            own = self._vectors[word] - self._centre
            length = float(np.linalg.norm(own))
            return own / length if length > 0 else own
        return np.array([column.words.index(word) / max(len(column.words) - 1, 1)])

    def _state(self) -> dict[str, Any]:
        return super()._state() | {"encoder": self.encoder.name}

    def _restore(self, data: dict[str, Any]) -> None:
        super()._restore(data)
        self._fitted = None


def fit_classifier(
    features: Floats, actions: NDArray[np.int64], groups: NDArray[np.int64]
) -> LogisticRegression:
    """Return a logistic regression whose strength cross-validation over groups chose.

    Args:
        features: Shape ``(n, features)``.
        actions: The class of each row, at least two different ones.
        groups: Rows of one group are never in both training and validation.
    """
    scores = [_validated(c, features, actions, groups) for c in STRENGTHS]
    # the strongest regularisation among equals
    best = STRENGTHS[int(np.argmax(scores))]
    return _regression(best).fit(features, actions)


def _regression(strength: float) -> LogisticRegression:
    from sklearn.linear_model import LogisticRegression

    return LogisticRegression(C=strength, class_weight="balanced", max_iter=2000)


def _validated(
    strength: float, features: Floats, actions: NDArray[np.int64], groups: NDArray[np.int64]
) -> float:
    """Return the balanced accuracy on left-out groups, 0 where there are too few to leave out."""
    from sklearn.metrics import balanced_accuracy_score
    from sklearn.model_selection import StratifiedGroupKFold

    per_class = Counter(actions[np.unique(groups, return_index=True)[1]].tolist())
    folds = min(FOLDS, *per_class.values())
    if folds < 2 or len(per_class) < len(np.unique(actions)):
        return 0.0
    predicted = np.full(len(actions), -1)
    for train, test in StratifiedGroupKFold(folds).split(features, actions, groups):
        if len(np.unique(actions[train])) < 2:
            return 0.0
        predicted[test] = (
            _regression(strength).fit(features[train], actions[train]).predict(features[test])
        )
    return float(balanced_accuracy_score(actions, predicted))
