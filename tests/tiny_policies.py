"""Policies on the tiny environment, by name."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tiny_env import BEST, RIGHT, WORDS, WRONG, TinyEnv, every_situation, tiny_problem

from icl_optimizer.baselines.embedding import EmbeddingPolicy
from icl_optimizer.decision import Outcome
from icl_optimizer.policies import make_policy
from icl_optimizer.policy import Policy

DRL = {"dqn": 600, "dqn-tuned": 200, "ppo": 1536, "ppo-tuned": 512, "a2c": 1600}
"""Decisions after which each knows the tiny environment."""

ON_EXPERIENCE = ("bandit", "knn", "embedding")
SITUATIONS = every_situation()
ANSWERS = BEST[SITUATIONS[:, 0].astype(int)]


class LetterEncoder:
    """Embeds a word as one of two directions: is it a fruit?"""

    name = "letters"

    def embed(self, texts: Sequence[str]) -> NDArray[np.float64]:
        return np.array([[0.0, 1.0] if text == "stone" else [1.0, 0.0] for text in texts])


def new(name: str, env: TinyEnv | None = None, seed: int = 0, **settings: Any) -> Policy:
    if name == "embedding":
        return EmbeddingPolicy(tiny_problem(), LetterEncoder(), env=env, seed=seed, **settings)
    return make_policy(name, tiny_problem(), env=env, seed=seed, **settings)


def answers(policy: Policy) -> list[int]:
    return [d.action for d in policy.decide(SITUATIONS)]


def random_log(count: int = 200, seed: int = 0) -> list[Outcome]:
    rng, problem = np.random.default_rng(seed), tiny_problem()
    log = []
    for i in range(count):
        row = np.array([rng.integers(len(WORDS)), rng.uniform(0, 2)])
        action = int(rng.integers(2))
        reward = RIGHT if action == BEST[int(row[0])] else WRONG
        context = problem.describe(row)
        log.append(Outcome(i, context, action, reward, observation=tuple(row.tolist())))
    return log
