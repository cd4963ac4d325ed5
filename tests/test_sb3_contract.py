"""Environments and policies keep the contract of Stable-Baselines3."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from stable_baselines3.common.callbacks import (
    BaseCallback,
    CheckpointCallback,
    EvalCallback,
    EveryNTimesteps,
    StopTrainingOnRewardThreshold,
)
from stable_baselines3.common.env_checker import check_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import VecEnv
from tiny_env import RIGHT, WRONG, SingleTinyEnv, TinyEnv, tiny_problem

from icl_optimizer.environments.adapters import SingleEnv, as_sb3
from icl_optimizer.environments.base import BatchedEnv
from icl_optimizer.environments.registry import environment_names, get_spec, make
from icl_optimizer.errors import ConfigurationError
from icl_optimizer.policies import get_policy_spec, make_policy, policy_names

ENVIRONMENTS = ["tiny", *(n for n in environment_names() if not get_spec(n).live)]
WITHOUT_LLM = [
    name
    for name in policy_names("offloading")
    if not get_policy_spec(name).needs_llm and name != "embedding-minilm"
]
LEARNERS = [name for name in WITHOUT_LLM if get_policy_spec(name).learns]


def environment(name: str, num_envs: int, *, autoreset: bool = True) -> BatchedEnv:
    if name == "tiny":
        return TinyEnv(num_envs, autoreset=autoreset)
    short = {"horizon": 60} if name == "qos-routing" else {}
    return make(name, num_envs, autoreset=autoreset, **short)


class Recorder(BaseCallback):
    """Keeps what a callback may look at, and stops after ``limit`` steps."""

    def __init__(self, limit: int) -> None:
        super().__init__()
        self.limit = limit
        self.steps: list[int] = []
        self.scores: list[float] = []
        self.rewards: list[float] = []
        self.started = self.ended = False

    def _on_training_start(self) -> None:
        self.started = True

    def _on_training_end(self) -> None:
        self.ended = True

    def _on_step(self) -> bool:
        assert isinstance(self.training_env, VecEnv)
        self.logger.record("test/steps", self.n_calls)
        self.steps.append(self.num_timesteps)
        self.rewards += np.asarray(self.locals["rewards"]).tolist()
        actions, _ = self.model.predict(np.array([[0.0, 1.0], [1.0, 1.0]]), deterministic=True)
        self.scores.append(float((actions == [0, 1]).mean()))
        return self.n_calls < self.limit


@pytest.mark.parametrize("name", ENVIRONMENTS)
def test_single_environments_pass_the_checker(name: str) -> None:
    check_env(SingleEnv(environment(name, 1, autoreset=False)))


@pytest.mark.parametrize("name", ENVIRONMENTS)
@pytest.mark.parametrize("encoded", [False, True])
def test_the_adapter_yields_what_the_batch_yields(name: str, encoded: bool) -> None:
    batch, adapter = environment(name, 3), as_sb3(environment(name, 3), encoded=encoded)
    adapter.seed(5)
    observation, _ = batch.reset(seed=5)
    view = batch.problem.encode if encoded else np.asarray
    np.testing.assert_array_equal(adapter.reset(), view(observation))
    rng = np.random.default_rng(0)
    for _ in range(batch.problem.horizon + 3):
        actions = rng.integers(len(batch.problem.labels), size=3)
        observation, rewards, terminated, truncated, _ = batch.step(actions)
        seen, given, done, _ = adapter.step(actions)
        np.testing.assert_array_equal(seen, view(observation))
        np.testing.assert_allclose(given, rewards, rtol=1e-6)
        np.testing.assert_array_equal(done, terminated | truncated)


def test_the_adapter_reports_episodes() -> None:
    adapter = as_sb3(TinyEnv(2, horizon=4))
    adapter.seed(0)
    adapter.reset()
    infos = [adapter.step(np.array([0, 1]))[3] for _ in range(4)][-1]
    for info in infos:
        assert info["episode"]["l"] == 4
        assert info["TimeLimit.truncated"]
        assert info["terminal_observation"].shape == adapter.observation_space.shape


@pytest.mark.parametrize("name", WITHOUT_LLM)
def test_evaluate_policy_runs_on_every_policy(name: str) -> None:
    env = make("offloading", 2, horizon=5)
    policy = make_policy(name, env.problem, env=env)
    mean, _ = evaluate_policy(policy, as_sb3(env, encoded=False), n_eval_episodes=2)
    assert np.isfinite(mean)


def test_evaluate_policy_tells_good_from_bad() -> None:
    env = TinyEnv(2)
    oracle = make_policy("oracle", env.problem, env=env)
    best, _ = evaluate_policy(oracle, as_sb3(env, encoded=False), n_eval_episodes=4)
    assert best == RIGHT * env.problem.horizon


@pytest.mark.parametrize("name", ["random", *LEARNERS])
def test_a_callback_runs_on_every_policy(name: str) -> None:
    policy = make_policy(name, tiny_problem(), env=TinyEnv(4))
    recorder = Recorder(limit=30)
    policy.learn(400, callback=[recorder])
    assert recorder.started
    assert recorder.ended
    assert recorder.steps == [4 * (i + 1) for i in range(30)]
    assert policy.num_timesteps == 120
    assert set(recorder.rewards) == {RIGHT, WRONG}
    assert len(set(recorder.scores)) > 1 or name in ("ppo", "a2c")


@pytest.mark.parametrize("name", ["bandit", "dqn", "ppo"])
def test_a_function_stops_learning_by_false_alone(name: str) -> None:
    for answer, steps in ((None, 40), (True, 40), (False, 4)):
        policy = make_policy(name, tiny_problem(), env=TinyEnv(4))
        assert policy.learn(40, callback=lambda scope, _, a=answer: a) is policy
        assert policy.num_timesteps == steps


@pytest.mark.parametrize("name", ["bandit", "dqn-tuned"])
def test_the_callbacks_of_stable_baselines_run(name: str, tmp_path: Path) -> None:
    policy = make_policy(name, tiny_problem(), env=TinyEnv(4), seed=1)
    best = RIGHT * tiny_problem().horizon
    evaluation = EvalCallback(
        as_sb3(TinyEnv(2), encoded=False),
        eval_freq=10,
        n_eval_episodes=4,
        callback_on_new_best=StopTrainingOnRewardThreshold(best),
        verbose=0,
    )
    checkpoints = EveryNTimesteps(20, CheckpointCallback(1, str(tmp_path), name_prefix="at"))
    policy.learn(400, callback=[evaluation, checkpoints])
    assert evaluation.best_mean_reward == best
    assert policy.num_timesteps < 400
    saved = sorted(tmp_path.iterdir())
    assert saved
    make_policy(name, tiny_problem()).load(saved[0])


def test_predict_has_the_signature_of_stable_baselines() -> None:
    policy = make_policy("dqn", tiny_problem())
    one, state = policy.predict(np.array([0.0, 1.0]), deterministic=True)
    many, _ = policy.predict(np.array([[0.0, 1.0]] * 3), None, np.ones(3, bool), True)
    assert np.shape(one) == ()
    assert state is None
    assert many.tolist() == [int(one)] * 3


def test_a_policy_without_environment_cannot_learn_in_one() -> None:
    for name in ("dqn", "bandit"):
        with pytest.raises(ConfigurationError, match="has no environment"):
            make_policy(name, tiny_problem()).learn(10)


def test_stable_baselines_itself_learns_on_the_adapter() -> None:
    from stable_baselines3 import PPO

    model = PPO("MlpPolicy", as_sb3(TinyEnv(4)), n_steps=8, batch_size=32, device="cpu", seed=0)
    assert model.learn(64).num_timesteps == 64
    assert SingleTinyEnv().reset(seed=0)[0].shape == (2,)
