"""Every baseline decides, learns, repeats itself, and survives saving."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from tiny_env import RIGHT, WORDS, WRONG, TinyEnv, tiny_problem
from tiny_policies import ANSWERS, DRL, ON_EXPERIENCE, SITUATIONS, answers, new, random_log

from icl_optimizer.baselines import ConstantPolicy, DqnConfig, DrlPolicy, OraclePolicy
from icl_optimizer.baselines.drl_config import PRESETS
from icl_optimizer.baselines.embedding import fit_classifier
from icl_optimizer.decision import Outcome
from icl_optimizer.errors import ConfigurationError, MissingDependencyError
from icl_optimizer.exploration import NO_EXPLORATION, Exploration
from icl_optimizer.policies import make_policy


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "num_envs"),
    [("dqn", 1), ("dqn", 4), ("dqn-tuned", 1), ("ppo", 4), ("ppo-tuned", 4), ("a2c", 4)],
)
def test_networks_learn(name: str, num_envs: int) -> None:
    policy = new(name, TinyEnv(num_envs)).learn(DRL[name])
    assert answers(policy) == ANSWERS.tolist()
    assert policy.num_timesteps == DRL[name]


@pytest.mark.parametrize("name", ON_EXPERIENCE)
@pytest.mark.parametrize("num_envs", [1, 4])
def test_experience_teaches(name: str, num_envs: int) -> None:
    policy = new(name, TinyEnv(num_envs)).learn(60)
    assert answers(policy) == ANSWERS.tolist()


@pytest.mark.parametrize("name", [*ON_EXPERIENCE, "dqn-tuned"])
def test_a_log_teaches_without_environment(name: str) -> None:
    assert answers(new(name).learn_from(random_log())) == ANSWERS.tolist()


@pytest.mark.parametrize("name", ["ppo", "a2c"])
def test_on_policy_learners_refuse_a_log(name: str) -> None:
    with pytest.raises(ConfigurationError, match="on-policy"):
        new(name).learn_from(random_log(5))


@pytest.mark.parametrize("name", ["random", *ON_EXPERIENCE, "dqn-tuned", "ppo-tuned", "a2c"])
def test_same_seed_same_actions(name: str) -> None:
    def trail(seed: int, between: bool = False) -> list[float]:
        rewards: list[float] = []
        policy = new(name, TinyEnv(2), seed)
        if between:
            new("dqn", seed=99).decide(SITUATIONS)
        policy.learn(64, callback=lambda scope, _: rewards.extend(scope["rewards"]))
        return rewards + [d.action for d in policy.decide(SITUATIONS, explore=True)]

    assert trail(3) == trail(3, between=True)
    assert trail(3) != trail(4)


def test_propensity_of_epsilon_greedy_is_its_frequency() -> None:
    exploration = Exploration(schedule="constant", start=0.4)
    policy = new("bandit", exploration=exploration).learn_from(random_log())
    row = SITUATIONS[:1].repeat(4000, axis=0)
    decisions = policy.decide(row, explore=True)
    for action in range(2):
        taken = [d for d in decisions if d.action == action]
        assert {round(d.propensity, 9) for d in taken} == {0.8 if action == ANSWERS[0] else 0.2}
        assert len(taken) / 4000 == pytest.approx(taken[0].propensity, abs=0.03)


def test_propensity_of_trying_all_first() -> None:
    decisions = new("bandit").decide(SITUATIONS, explore=True)
    assert {d.propensity for d in decisions} == {0.5}
    assert {d.made_by for d in decisions} == {"explore"}


@pytest.mark.parametrize("name", ["dqn", "ppo"])
def test_propensity_of_networks_is_their_frequency(name: str) -> None:
    settings = {"learning_starts": 0, "epsilon_start": 0.3} if name == "dqn" else {}
    policy = new(name, **settings)
    assert {d.propensity for d in policy.decide(SITUATIONS)} == {1.0}
    decisions = policy.decide(SITUATIONS[:1].repeat(4000, axis=0), explore=True)
    for action in range(2):
        taken = [d.propensity for d in decisions if d.action == action]
        assert len(set(taken)) == 1
        assert len(taken) / 4000 == pytest.approx(taken[0], abs=0.03)


def test_probabilities_add_up() -> None:
    for name in (*DRL, *ON_EXPERIENCE, "random"):
        for decision in new(name).decide(SITUATIONS):
            assert sum(decision.probabilities) == pytest.approx(1.0)


def test_random_before_any_experience() -> None:
    policy = new("bandit", exploration=NO_EXPLORATION)
    decisions = policy.decide(SITUATIONS.repeat(20, axis=0), explore=True)
    assert {d.action for d in decisions} == {0, 1}
    assert {d.propensity for d in decisions} == {0.5}


def test_a_bandit_does_not_generalise() -> None:
    problem = tiny_problem()
    policy = new("bandit")
    for word, action, reward in (("apple", 0, 5.0), ("apple", 1, 1.0), ("stone", 1, 9.0)):
        policy.update([Outcome(0, problem.context([word, "light"]), action, reward)])
    contexts = [problem.context([word, "light"]) for word in WORDS]
    # pear was never seen: both means over everything are 5, the first wins
    assert [d.action for d in policy.decide(contexts)] == [0, 1, 0]


def test_knn_uses_its_k_nearest() -> None:
    policy = new("knn", k=1)
    problem = tiny_problem()
    for weight, action, reward in ((0.2, 0, 1.0), (0.2, 1, 0.0), (1.8, 0, 0.0), (1.8, 1, 1.0)):
        row = np.array([0.0, weight])
        context = problem.describe(row)
        policy.update([Outcome(0, context, action, reward, observation=tuple(row.tolist()))])
    assert [d.action for d in policy.decide(np.array([[0.0, 0.4], [0.0, 1.5]]))] == [0, 1]


def test_numeric_policies_say_that_they_need_observations() -> None:
    contexts = tiny_problem().describe_all(SITUATIONS)
    outcome = Outcome(0, contexts[0], 0, 1.0)
    for name in ("knn", "dqn"):
        with pytest.raises(ConfigurationError, match="without observation"):
            new(name).learn_from([outcome])
        with pytest.raises(ConfigurationError, match="contexts were given"):
            new(name).learn_from(random_log(40)).decide(contexts)


def test_embedding_generalises_to_new_words() -> None:
    problem = tiny_problem()
    policy = new("embedding")
    for word, action in (("apple", 0), ("stone", 1)):
        for other in range(2):
            context = problem.context([word, "light"])
            policy.update([Outcome(0, context, other, RIGHT if other == action else WRONG)])
    assert policy.decide([problem.context(["pear", "heavy"])])[0].action == 0


@pytest.mark.parametrize("seed", range(5))
def test_the_classifier_fits_whatever_experience_there_is(seed: int) -> None:
    rng = np.random.default_rng(seed)
    count = int(rng.integers(2, 40))
    actions = rng.integers(3, size=count)
    actions[:2] = 0, 1
    features, groups = rng.normal(size=(count, 5)), rng.integers(max(count // 2, 1), size=count)
    model = fit_classifier(features, actions, groups)
    assert set(model.classes_) == set(actions.tolist())


def test_minilm_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("icl_optimizer.baselines.minilm.find_spec", lambda name: None)
    with pytest.raises(MissingDependencyError, match="pip install"):
        make_policy("embedding-minilm", tiny_problem())


def test_missing_torch_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "icl_optimizer.baselines.sb3_models", None)
    monkeypatch.delattr("icl_optimizer.baselines.sb3_models", raising=False)
    with pytest.raises(MissingDependencyError, match="pip install"):
        new("dqn")


def test_constant_and_random_policies() -> None:
    assert {d.label for d in ConstantPolicy(tiny_problem(), "right").decide(SITUATIONS)} == {
        "right"
    }
    assert ConstantPolicy(tiny_problem(), 0).name == "always-left"
    with pytest.raises(ConfigurationError, match="Did you mean 'right'"):
        ConstantPolicy(tiny_problem(), "rigth")
    with pytest.raises(ConfigurationError, match="action is 2; allowed: 0 to 1"):
        ConstantPolicy(tiny_problem(), 2)
    assert {d.propensity for d in new("random").decide(SITUATIONS)} == {0.5}


def test_the_oracle_is_right_on_its_own_environment_alone() -> None:
    env, other = TinyEnv(8), TinyEnv(8)
    oracle = OraclePolicy(env.problem)
    observation, _ = env.reset(seed=0)
    with pytest.raises(ConfigurationError, match="has no environment"):
        oracle.decide(observation)
    oracle.bind(env)
    for _ in range(12):
        actions = [d.action for d in oracle.decide(observation)]
        observation, rewards, *_ = env.step(actions)
        assert (rewards == RIGHT).all()
    other.reset(seed=1)
    with pytest.raises(ConfigurationError, match="not the present"):
        oracle.bind(other).decide(observation)


def test_settings_reach_the_learner() -> None:
    policy = new("dqn", gamma=0.5, hidden=(16,))
    assert isinstance(policy, DrlPolicy)
    assert policy.config == PRESETS["dqn"].model_copy(update={"gamma": 0.5, "hidden": (16,)})
    assert DrlPolicy(tiny_problem(), DqnConfig(gamma=0.5), name="mine").name == "mine"
    with pytest.raises(ConfigurationError, match="Did you mean 'gamma'"):
        new("dqn", gama=0.5)
    with pytest.raises(ConfigurationError, match="gamma is 2"):
        new("dqn", gamma=2)
    with pytest.raises(ConfigurationError, match="Did you mean 'ppo'"):
        DrlPolicy(tiny_problem(), name="ppoo")


def test_budgets_shorter_than_a_rollout_are_kept() -> None:
    policy = new("ppo", TinyEnv(4))
    policy.learn(20)
    policy.learn(40)
    assert policy.num_timesteps == 60


def test_importing_the_package_does_not_import_torch() -> None:
    code = (
        "import sys, icl_optimizer.baselines, icl_optimizer.policies; print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
