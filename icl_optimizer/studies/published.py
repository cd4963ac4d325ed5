"""What the papers of the queueing systems report, as numbers."""

from __future__ import annotations

from typing import NamedTuple

SCHEDULING: dict[tuple[str, float], float] = {
    ("dqn-paper", 1.0): 0.89,
    ("round-robin", 1.0): 0.76,
    ("random", 1.0): 0.41,
    ("dqn-paper", 2.0): 0.61,
    ("round-robin", 2.0): 0.43,
    ("random", 2.0): 0.36,
}
"""Share of deadlines met by policy and arrival rate (Mekrache et al. 2025, Section V-B)."""


class Balanced(NamedTuple):
    """What load balancing reports of a policy.

    Attributes:
        reward: Cumulative, of an episode of about 5,000 requests.
        response_s: Mean response in seconds.
        queue_length: Mean.
        late: Share of requests after the service-level objective.
    """

    reward: float
    response_s: float
    queue_length: float
    late: float


BALANCING: dict[str, dict[str, Balanced]] = {
    "nominal": {
        "ppo-paper": Balanced(8450, 0.85, 2.1, 0.032),
        "a2c-paper": Balanced(8100, 0.95, 2.8, 0.057),
        "dqn-paper": Balanced(7950, 1.02, 3.0, 0.074),
        "round-robin": Balanced(6500, 1.50, 4.5, 0.221),
        "least-connections": Balanced(7100, 1.20, 3.8, 0.128),
        "least-loaded": Balanced(7350, 1.10, 3.3, 0.095),
    },
    "high-load": {
        "ppo-paper": Balanced(8150, 1.15, 3.2, 0.124),
        "a2c-paper": Balanced(7750, 1.30, 4.0, 0.187),
        "dqn-paper": Balanced(7600, 1.38, 4.3, 0.223),
        "round-robin": Balanced(6200, 2.10, 7.5, 0.618),
        "least-connections": Balanced(6800, 1.85, 6.2, 0.485),
        "least-loaded": Balanced(7000, 1.70, 5.8, 0.422),
    },
}
"""By scenario and policy (Abbaraju 2025, tables I and II)."""
