"""The batched scheduling dynamics against the same system in plain Python, task by task."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from hypothesis import given, settings
from hypothesis import strategies as st

from icl_optimizer.environments.slo_scheduling import SLOSchedulingVectorEnv
from icl_optimizer.environments.slo_scheduling_config import TASK_TYPES
from icl_optimizer.environments.slo_scheduling_scalar import ARRIVAL, ScalarSLOSchedulingEnv

SEEDS = (3, 4, 5, 6)
EPISODES = 2
VARIANTS: dict[str, dict[str, Any]] = {
    "default": {},
    "idle": {"arrival_rate": 0.05},
    "flooded": {"arrival_rate": 8.0, "horizon": 100},
    "small-queues": {"arrival_rate": 4.0, "queue_size": 2},
    "slots": {"arrival_rate": 4.0, "slots": 3, "queue_size": 5, "horizon": 80},
    "bursts": {"bursts": {"factor": 10.0, "share": 0.3, "mean_s": 3.0}, "horizon": 60},
    "type-deadlines": {"type_deadlines_s": {"coding": 2.0, "math": 30.0}},
    "mixed-deadlines": {"mixed_deadlines_s": (2.0, 5.0, 20.0), "score_noise": 0.05},
    "dump": {"dump_action": True, "arrival_rate": 3.0},
    "one-task": {"horizon": 1},
    "cancel-late": {"cancel_late": True, "arrival_rate": 3.0, "horizon": 60, "slots": 2},
    "impatient": {
        "cancel_late": True,
        "arrival_rate": 6.0,
        "horizon": 80,
        "mixed_deadlines_s": (1.0, 3.0, 40.0),
        "dump_action": True,
    },
    "servers": {
        "servers": (
            {"name": "quick", "tokens_per_s": 90.0, "overhead_s": 0.3, "slots": 2},
            {
                "name": "slow",
                "tokens_per_s": 20.0,
                "mean_tokens": {"math": 80.0},
                "scores": {"math": 0.9, "coding": 0.0},
                "queue_size": 3,
            },
        ),
        "arrival_rate": 2.0,
        "cancel_late": True,
    },
    "two-models": {"models": ("qwen2-7b", "phi3-3.8b"), "mean_tokens": {"math": 50.0}},
}


class Pair:
    """The batch beside one plain environment per seed."""

    def __init__(self, seeds: tuple[int, ...], fields: dict[str, Any]) -> None:
        self.batch = SLOSchedulingVectorEnv(len(seeds), **fields)
        self.plain = [ScalarSLOSchedulingEnv(**fields) for _ in seeds]
        observations, info = self.batch.reset(seed=list(seeds))
        first = [env.reset(seed=seed)[0] for env, seed in zip(self.plain, seeds, strict=True)]
        np.testing.assert_array_equal(observations, first)
        self.ids = info["decision_id"]
        self.decided: dict[int, tuple[int, int]] = {}

    def step(self, actions: np.ndarray) -> list[Any]:
        """Step both sides, compare all that they return, and return the plain infos."""
        numbers = [env.present for env in self.plain]
        for i, (decision, number) in enumerate(zip(self.ids, numbers, strict=True)):
            self.decided[int(decision)] = (i, number)
        observations, rewards, ended, truncated, info = self.batch.step(actions)
        steps = [env.step(action) for env, action in zip(self.plain, actions, strict=True)]
        following, paid, _, cut, infos = (list(part) for part in zip(*steps, strict=True))
        np.testing.assert_allclose(rewards, paid, rtol=1e-12)
        np.testing.assert_array_equal(truncated, cut)
        assert not ended.any()
        self._compare_outcomes(info["outcomes"], numbers, infos)
        if truncated.any():
            self._compare_episode()
            np.testing.assert_array_equal(info["final_obs"], following)
            following = [env.reset()[0] for env in self.plain]
        np.testing.assert_array_equal(observations, following)
        self.ids = info["decision_id"]
        return infos

    def _compare_episode(self) -> None:
        """Compare when every task of the episode began and ended."""
        for number in range(self.batch.problem.horizon):
            start, finish = self.batch.queues.times(np.full(len(self.plain), number))
            tasks = [env.tasks[number] for env in self.plain]
            times = [np.inf if task.start_s is None else task.start_s for task in tasks]
            np.testing.assert_array_equal(start, times)
            times = [np.inf if task.finish_s is None else task.finish_s for task in tasks]
            np.testing.assert_array_equal(finish, times)

    def _compare_outcomes(self, outcomes: Any, numbers: list[int], infos: list[Any]) -> None:
        expected = {(i, number) for i, info in enumerate(infos) for number in info["finished"]} | {
            (i, numbers[i]) for i, info in enumerate(infos) if info["dropped"]
        }
        keys = [self.decided[int(decision)] for decision in outcomes.decision_id]
        assert sorted(keys) == sorted(expected)
        assert not outcomes.censored.any()
        for place, (i, number) in enumerate(keys):
            task = self.plain[i].tasks[number]
            measured = {name: values[place] for name, values in outcomes.metrics.items()}
            response = 0.0 if task.finish_s is None else task.finish_s - task.arrival_s
            assert outcomes.reward[place] == task.earned
            assert outcomes.feasible[place] == task.in_time
            assert measured == {
                "deadline_met": task.in_time,
                "score": task.earned,
                "response_time_s": response,
                "dropped": task.finish_s is None,
                "server": task.server,
            }


def play(pair: Pair, seed: int, episodes: int) -> list[Any]:
    """Play random decisions and return all plain infos."""
    rng = np.random.default_rng(seed)
    labels, horizon = len(pair.batch.problem.labels), pair.batch.problem.horizon
    infos: list[Any] = []
    for _ in range(episodes * horizon):
        infos += pair.step(rng.integers(labels, size=pair.batch.num_envs))
    return infos


@pytest.mark.parametrize("variant", VARIANTS)
def test_batched_equals_plain_python(variant: str) -> None:
    pair = Pair(SEEDS, VARIANTS[variant])
    play(pair, 0, EPISODES)
    horizon = pair.batch.problem.horizon
    assert len(pair.decided) == len(SEEDS) * EPISODES * horizon


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    rate=st.sampled_from([0.1, 0.5, 1.0, 2.0, 8.0, 50.0]),
    slots=st.integers(1, 4),
    room=st.integers(0, 6),
    horizon=st.integers(1, 25),
    models=st.integers(2, 4),
    bursts=st.sampled_from([None, {"factor": 20.0, "share": 0.1, "mean_s": 1.0}]),
    mixed=st.sampled_from([(), (1.0, 4.0)]),
    spread=st.sampled_from([0.0, 0.4, 1.5]),
    dump=st.booleans(),
    cancel=st.booleans(),
)
def test_batched_equals_plain_python_anywhere(
    seed: int,
    rate: float,
    slots: int,
    room: int,
    horizon: int,
    models: int,
    bursts: Any,
    mixed: tuple[float, ...],
    spread: float,
    dump: bool,
    cancel: bool,
) -> None:
    fields = {
        "models": ("phi3-3.8b", "gemma2-9b", "qwen2-7b", "llama3-8b")[:models],
        "arrival_rate": rate,
        "slots": slots,
        "queue_size": slots + room,
        "horizon": horizon,
        "bursts": bursts,
        "mixed_deadlines_s": mixed,
        "length_spread": spread,
        "model_spread": spread,
        "score_noise": spread / 10,
        "dump_action": dump,
        "cancel_late": cancel,
    }
    play(Pair((seed, seed + 1), fields), seed, 1)


def test_variants_exercise_what_they_are_for() -> None:
    pairs = {name: Pair(SEEDS, VARIANTS[name]) for name in VARIANTS}
    infos = {name: play(pair, 0, 1) for name, pair in pairs.items() if name != "one-task"}
    dropped = {name: sum(info["dropped"] for info in seen) for name, seen in infos.items()}
    assert dropped["idle"] == 0
    assert min(dropped[name] for name in ("flooded", "small-queues", "slots")) > 10
    # departures come in any number between two arrivals, and out of the order of arrival
    assert {0, 1, 2} <= {len(info["finished"]) for info in infos["default"]}
    assert any(info["finished"] != sorted(info["finished"]) for info in infos["default"])


def test_by_hand() -> None:
    """Three tasks for one server: the first in time, the second late, the third dropped."""
    env = ScalarSLOSchedulingEnv(horizon=3, queue_size=2, deadline_s=2.0)
    env.reset(seed=0)
    speed = env.config.served[0].tokens_per_s
    for task, arrival in zip(env.tasks, (1.0, 1.25, 1.5), strict=True):
        task.arrival_s, task.tokens[0], task.score[0] = arrival, 1.5 * speed, 0.25
    env.present, env._events = 0, [(1.25, ARRIVAL, 1), (1.5, ARRIVAL, 2)]
    assert env.step(np.int64(0))[1] == 0.0
    observation, reward, *_ = env.step(np.int64(0))
    assert (observation[0], reward) == (2.0, 0.0)
    _, reward, _, truncated, info = env.step(np.int64(0))
    assert (reward, truncated) == (0.25, True)
    assert info == {"finished": [0, 1], "dropped": True}
    first, second, third = env.tasks
    assert (first.start_s, first.finish_s, first.in_time) == (1.0, 2.5, True)
    assert (second.start_s, second.finish_s, second.in_time) == (2.5, 4.0, False)
    assert (third.start_s, third.finish_s, third.earned) == (None, None, 0.0)


def test_it_is_a_gymnasium_environment() -> None:
    check_env(ScalarSLOSchedulingEnv(dump_action=True), skip_render_check=True)


def test_every_task_type_comes() -> None:
    env = ScalarSLOSchedulingEnv(horizon=200)
    env.reset(seed=0)
    assert {task.kind for task in env.tasks} == set(range(len(TASK_TYPES)))
