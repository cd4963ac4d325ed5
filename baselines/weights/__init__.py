"""Weights of trained deep-RL policies that come with the package, and how they are found."""

from icl_optimizer.baselines.weights.index import (
    SHIPPED,
    Case,
    Entry,
    find,
    read_index,
    write_index,
)
from icl_optimizer.baselines.weights.staleness import (
    learner_settings,
    misfit,
    parameters_of,
    probe,
    problem_identity,
)

__all__ = [
    "SHIPPED",
    "Case",
    "Entry",
    "find",
    "learner_settings",
    "misfit",
    "parameters_of",
    "probe",
    "problem_identity",
    "read_index",
    "write_index",
]
