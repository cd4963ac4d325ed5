"""What the papers of the queueing systems report, as numbers."""

from __future__ import annotations

SCHEDULING: dict[tuple[str, float], float] = {
    ("dqn-paper", 1.0): 0.89,
    ("round-robin", 1.0): 0.76,
    ("random", 1.0): 0.41,
    ("dqn-paper", 2.0): 0.61,
    ("round-robin", 2.0): 0.43,
    ("random", 2.0): 0.36,
}
"""Share of deadlines met by policy and arrival rate (Mekrache et al. 2025, Section V-B)."""

BALANCING: dict[str, dict[str, tuple[float, float, float]]] = {
    "nominal": {
        "ppo-paper": (8450, 0.85, 0.032),
        "a2c-paper": (8100, 0.95, 0.057),
        "dqn-paper": (7950, 1.02, 0.074),
        "round-robin": (6500, 1.50, 0.221),
        "least-connections": (7100, 1.20, 0.128),
        "least-loaded": (7350, 1.10, 0.095),
    },
    "high-load": {
        "ppo-paper": (8150, 1.15, 0.124),
        "a2c-paper": (7750, 1.30, 0.187),
        "dqn-paper": (7600, 1.38, 0.223),
        "round-robin": (6200, 2.10, 0.618),
        "least-connections": (6800, 1.85, 0.485),
        "least-loaded": (7000, 1.70, 0.422),
    },
}
"""Cumulative reward, mean response in seconds and share of SLO violations, by scenario and policy
(Abbaraju 2025, tables I and II)."""
