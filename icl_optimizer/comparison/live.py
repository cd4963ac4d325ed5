"""Evaluation on something real: one episode after the other, at real times."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import Any

from icl_optimizer.comparison.evaluation import HELD_OUT, Held, summarise
from icl_optimizer.decision import Outcome
from icl_optimizer.environments.base import BatchedEnv
from icl_optimizer.environments.registry import get_spec, make
from icl_optimizer.policy import Policy
from icl_optimizer.rollout import Rollout


class LiveHeld:
    """Held-out tasks of one parameter point and seed in a live environment.

    Every policy meets the same tasks, which are those of :class:`Held` in the twin: its episodes
    run at the same time there, and one after the other here. There is no oracle.

    Args:
        environment: Name of the environment.
        settings: Its parameters.
        seed: Seed of the repetition.
        tasks: At least so many decisions; whole episodes.

    Attributes:
        on_task: Called with 1 after every decision, for a progress bar.
    """

    def __init__(self, environment: str, settings: dict[str, Any], seed: int, tasks: int) -> None:
        """Build the environment; nothing real happens yet."""
        self.env = make(environment, 1, autoreset=False, **settings)
        self.seed = HELD_OUT + 1000 * seed
        self.episodes = -(-tasks // self.env.problem.horizon)
        self.on_task: Callable[[int], None] = lambda _: None
        self._given = environment, settings, seed, tasks

    @cached_property
    def rehearsal(self) -> Held:
        """Tasks of the twin, on which nothing real happens."""
        environment, settings, seed, tasks = self._given
        where, learned = get_spec(environment).learned_in(settings)
        return Held(where.name, learned, seed, tasks)

    def outcomes(self, policy: Policy) -> list[list[Outcome]]:
        """Return what came of each episode's decisions; the policy decides greedily."""
        try:
            return play_episodes(self.env, policy, self.seed, self.episodes, self.on_task)
        finally:
            self.env.close()

    def evaluate(self, policy: Policy) -> dict[str, float]:
        """Return the metrics of ``policy``."""
        return summarise(self.env, [outcome for part in self.outcomes(policy) for outcome in part])


def play_episodes(
    env: BatchedEnv,
    policy: Policy,
    seed: int,
    episodes: int,
    on_task: Callable[[int], None] = lambda _: None,
) -> list[list[Outcome]]:
    """Return what came of each episode's decisions, one episode after the other, greedily.

    Args:
        env: A batch of one without autoreset.
        policy: Decides.
        seed: Of the first episode; the others follow.
        episodes: How many.
        on_task: Called with 1 after every decision.
    """
    rollout = Rollout(policy, env, explore=False)
    found: list[list[Outcome]] = []
    for episode in range(episodes):
        rollout.reset(seed=seed + episode)
        found.append([])
        for _ in range(env.problem.horizon):
            found[-1] += rollout.step()[1]
            on_task(1)
    return found


def held_out(environment: str, settings: dict[str, Any], seed: int, tasks: int) -> Held | LiveHeld:
    """Return the held-out tasks of one parameter point and seed."""
    made = LiveHeld if get_spec(environment).live else Held
    return made(environment, settings, seed, tasks)


def live_tasks(environment: str, settings: dict[str, Any], tasks: int) -> int:
    """Return how many decisions an evaluation makes at real times: none, unless it is live."""
    if not get_spec(environment).live:
        return 0
    horizon = make(environment, 1, **settings).problem.horizon
    return horizon * -(-tasks // horizon)
