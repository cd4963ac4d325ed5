"""The reward model of the doubly robust estimator: cross-fitted ridge regression per action."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from icl_optimizer.off_policy.records import DecisionRecord
from icl_optimizer.off_policy.targets import situations_of
from icl_optimizer.problem import Problem

FOLDS = 5
RIDGE = 1.0


def features_of(records: Sequence[DecisionRecord], problem: Problem) -> NDArray[np.float64]:
    """Return what the model sees of each situation, ``(n, features)``.

    The encoded observation; where the log has words alone, one feature per keyword and word.
    """
    situations = situations_of(records, problem)
    if isinstance(situations, np.ndarray):
        return problem.encode(situations).astype(np.float64)
    from sklearn.feature_extraction import DictVectorizer

    words = [dict(context) for context in situations]
    return np.asarray(DictVectorizer(sparse=False).fit_transform(words), dtype=np.float64)


def expected_rewards(
    features: NDArray[np.float64],
    actions: NDArray[np.int64],
    rewards: NDArray[np.float64],
    clusters: NDArray[np.int64],
    count: int,
) -> NDArray[np.float64]:
    """Return what every action is expected to earn in every situation, ``(n, count)``.

    No record is judged by a model that saw its cluster. An action that a fold's training part does
    not hold is expected to earn the mean of that part: the doubly robust estimator is unbiased
    whatever the model says.

    Args:
        features: ``(n, features)``.
        actions: Logged actions ``(n,)``.
        rewards: ``(n,)``.
        clusters: Number of each record's cluster ``(n,)``; at least two are different.
        count: Number of actions.
    """
    from sklearn.linear_model import Ridge
    from sklearn.model_selection import GroupKFold

    expected = np.empty((len(rewards), count))
    folds = GroupKFold(min(FOLDS, len(np.unique(clusters))))
    for train, held in folds.split(features, groups=clusters):
        expected[held] = rewards[train].mean()
        for action in range(count):
            mine = train[actions[train] == action]
            if len(mine):
                model = Ridge(alpha=RIDGE).fit(features[mine], rewards[mine])
                expected[held, action] = model.predict(features[held])
    return expected
