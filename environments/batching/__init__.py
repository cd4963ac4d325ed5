"""Experts that batch continuously: iterations, KV memory, admission; exact and batched."""

from icl_optimizer.environments.batching.bank import ExpertBank, Finished
from icl_optimizer.environments.batching.costs import StepCosts

__all__ = ["ExpertBank", "Finished", "StepCosts"]
