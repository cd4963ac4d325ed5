"""Policies to compare with: heuristics, an oracle, bandits, deep RL (torch loads when used)."""

from icl_optimizer.baselines.bandit import BanditPolicy
from icl_optimizer.baselines.drl import DrlPolicy
from icl_optimizer.baselines.drl_config import A2cConfig, DqnConfig, DrlConfig, PpoConfig
from icl_optimizer.baselines.embedding import EmbeddingPolicy
from icl_optimizer.baselines.heuristics import ConstantPolicy, RandomPolicy
from icl_optimizer.baselines.knn import KnnPolicy
from icl_optimizer.baselines.oracle import OraclePolicy

__all__ = [
    "A2cConfig",
    "BanditPolicy",
    "ConstantPolicy",
    "DqnConfig",
    "DrlConfig",
    "DrlPolicy",
    "EmbeddingPolicy",
    "KnnPolicy",
    "OraclePolicy",
    "PpoConfig",
    "RandomPolicy",
]
