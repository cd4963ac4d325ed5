"""Which columns of a routing problem are features of which node of its graph."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from icl_optimizer.errors import ConfigurationError
from icl_optimizer.problem import Problem, Quantity

Ints = NDArray[np.int64]

EXPERT = ("Quality", "KV", "Running", "Waiting")
"""Roles that an expert's node carries. The predicted quality of the arrived request there is one
of them: on the arrived request's own node it would be as many features as there are experts."""
EXTRA = ("Backlog", "Slack", "Impact")
"""Roles that it carries besides, beyond the paper: tokens to come, margin, estimated penalty."""
REQUEST = ("prompt", "quality", "expected", "kv", "generated", "latency")
"""Roles of a request at an expert; the first is 0 where there is none, and only there."""
KINDS = ("running", "waiting")
"""Node types of the requests at an expert."""


@dataclass(frozen=True, eq=False)
class GraphLayout:
    """Columns by node, for ``N`` experts with up to ``K`` requests of each kind.

    Attributes:
        arrived: Columns of the arrived request, what all experts share, shape ``(A,)``.
        experts: Columns of the experts, shape ``(N, F)``.
        requests: Columns of the requests by kind, shape ``(N, K, 6)``.
        nodes: Names of the features of the arrived request and of an expert: what a network must
            have been trained on, whatever ``N`` is.
    """

    arrived: Ints
    experts: Ints
    requests: dict[str, Ints]
    nodes: dict[str, list[str]]

    @classmethod
    def of(cls, problem: Problem, *, extra: bool) -> GraphLayout:
        """Return the layout of ``problem``, found by the roles of its columns.

        Args:
            problem: Its labels are the experts, and then one for dropping the request.
            extra: Whether experts carry :data:`EXTRA`.

        Raises:
            ConfigurationError: A role is missing, or the columns are no graph of requests.
        """
        _check(problem)
        roles = EXPERT + (EXTRA if extra else ())
        shared = [i for i, column in enumerate(problem.columns) if column.action is None]
        nodes = {"arrived": [problem.columns[i].name for i in shared], "expert": list(roles)}
        return cls(
            np.array(shared, dtype=np.int64),
            np.stack([problem.role(role) for role in roles], axis=1),
            {kind: _requests(problem, kind) for kind in KINDS},
            nodes,
        )

    @property
    def count(self) -> int:
        """Number of experts."""
        return len(self.experts)

    @property
    def columns(self) -> Ints:
        """Every column of the graph once, in the order of the observation."""
        parts: list[NDArray[Any]] = [self.arrived, self.experts, *self.requests.values()]
        return np.unique(np.concatenate([part.ravel() for part in parts]))


def _check(problem: Problem) -> None:
    """Raise where a column is not its own feature, or the last label is not one beyond all."""
    for column in problem.columns:
        if not isinstance(column, Quantity):
            raise ConfigurationError(
                f"column '{column.name}' of '{problem.name}' holds words; allowed: numbers, as "
                "features of the graph's nodes."
            )
    count = len(problem.role(EXPERT[0]))
    if problem.count != count + 1:
        raise ConfigurationError(
            f"'{problem.name}' has {problem.count} labels for {count} experts; allowed: "
            f"{count + 1}, the experts and then one to drop the request."
        )


def _requests(problem: Problem, kind: str) -> Ints:
    """Return the columns ``(N, K, 6)`` of the requests of one kind."""
    places = 1
    while f"{kind} {places + 1} {REQUEST[0]}" in problem.roles:
        places += 1
    found = [
        [problem.role(f"{kind} {place} {feature}") for feature in REQUEST]
        for place in range(1, places + 1)
    ]
    columns = np.transpose(np.array(found), (2, 0, 1))
    for column in columns[..., 0].ravel():
        if problem.columns[column].low != 0.0:
            raise ConfigurationError(
                f"column '{problem.columns[column].name}' begins at {problem.columns[column].low}; "
                "allowed: 0, which stands for a request that is not there."
            )
    return columns
