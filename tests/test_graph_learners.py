"""PPO and SAC on the graph: they learn, are saved, and serve other numbers of experts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gymnasium import spaces
from numpy.typing import NDArray
from tiny_routing import DROPPED, TinyRouting, routing_problem

from icl_optimizer.baselines.drl import DrlPolicy
from icl_optimizer.baselines.graph.layout import EXPERT
from icl_optimizer.baselines.graph.learners import GraphSac
from icl_optimizer.baselines.graph.spaces import ArgmaxActions
from icl_optimizer.comparison.config import ComparisonConfig
from icl_optimizer.comparison.unit import Unit
from icl_optimizer.environments.adapters import as_sb3
from icl_optimizer.environments.base import BatchedEnv
from icl_optimizer.environments.registry import make
from icl_optimizer.errors import ConfigurationError
from icl_optimizer.policies import get_policy_spec, make_policy

NAMES = ("han-ppo", "mlp-ppo", "han-sac", "mlp-sac")
SMALL: dict[str, dict[str, Any]] = {
    "ppo": {"rollout": 512, "batch_size": 128, "learning_rate": 5e-3, "gamma": 0.0},
    "sac": {"learning_starts": 100, "batch_size": 64, "learning_rate": 2e-3, "gamma": 0.0},
}


def new(name: str, env: TinyRouting | None = None, seed: int = 0, **settings: Any) -> DrlPolicy:
    """Return a policy that learns in small steps."""
    problem = routing_problem() if env is None else env.problem
    usual = SMALL["sac" if "sac" in name else "ppo"]
    policy = make_policy(name, problem, env=env, seed=seed, **usual | settings)
    assert isinstance(policy, DrlPolicy)
    return policy


def observations(experts: int = 3, **options: Any) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return 300 observations and what each decision is worth in them."""
    env = TinyRouting(300, experts=experts, **options)
    rows, _ = env.reset(seed=1)
    return rows, env.action_values()


def score(policy: DrlPolicy, rows: NDArray[Any], values: NDArray[Any]) -> float:
    actions = policy.predict(rows, deterministic=True)[0]
    return float(values[np.arange(len(values)), actions].mean())


@pytest.mark.parametrize("name", ["han-ppo", "mlp-ppo"])
def test_ppo_learns_what_only_requests_tell(name: str) -> None:
    rows, values = observations(experts=2)
    policy = new(name, TinyRouting(16, experts=2)).learn(3072)
    # an expert pays less than dropping on average, so that without requests nothing pays more
    assert score(policy, rows, values) > DROPPED + 0.04


@pytest.mark.parametrize("name", ["han-sac", "mlp-sac"])
def test_sac_learns_which_quality_is_best(name: str) -> None:
    rows, values = observations(experts=2, calm=True)
    policy = new(name, TinyRouting(16, experts=2, calm=True), train_every=4).learn(1600)
    # one expert always: 0.5
    assert score(policy, rows, values) > 0.58


@pytest.mark.parametrize("name", NAMES)
def test_the_same_seed_learns_the_same(name: str) -> None:
    rows, _ = observations()
    first, second, third = (
        [d.probabilities for d in new(name, TinyRouting(4), seed=seed).learn(160).decide(rows[:5])]
        for seed in (3, 3, 4)
    )
    assert first == second
    assert first != third


@pytest.mark.parametrize("name", NAMES)
def test_saved_weights_decide_alike(name: str, tmp_path: Path) -> None:
    rows, _ = observations()
    policy = new(name, TinyRouting(4), seed=2, extra=False).learn(160)
    wanted = [(d.action, d.probabilities) for d in policy.decide(rows)]
    for part in (False, True):
        policy.save(tmp_path / "file", actor_only=part)
        loaded = new(name, TinyRouting(4), seed=5).load(tmp_path / "file")
        assert (loaded.seed, loaded.num_timesteps, loaded.config) == (2, 160, policy.config)
        assert [(d.action, d.probabilities) for d in loaded.decide(rows)] == wanted
        assert loaded.has_critic is not part
    with pytest.raises(ConfigurationError, match="without critic and cannot learn on; allowed"):
        loaded.learn(8)
    policy.save(tmp_path / "whole")
    assert (tmp_path / "file").stat().st_size < (tmp_path / "whole").stat().st_size
    again = new(name, TinyRouting(4)).load(tmp_path / "whole").learn(8)
    assert again.num_timesteps == 168


def test_weights_of_three_experts_serve_five(tmp_path: Path) -> None:
    policy = new("han-ppo", TinyRouting(16, calm=True), seed=1).learn(1536)
    policy.save(tmp_path / "three", actor_only=True)
    wide = new("han-ppo", TinyRouting(2, experts=5)).load(tmp_path / "three")
    rows, values = observations(experts=5, calm=True)
    decisions = wide.decide(rows)
    assert {len(d.probabilities or {}) for d in decisions} == {6}
    # three of them alone: 0.75
    assert score(wide, rows, values) > 0.78


@pytest.mark.parametrize("name", ["mlp-ppo", "han-sac", "mlp-sac"])
def test_others_refuse_another_number_of_experts(name: str, tmp_path: Path) -> None:
    new(name).save(tmp_path / "three")
    with pytest.raises(
        ConfigurationError, match=r"has labels \['expert 0', .* allowed: .*'expert 4'"
    ):
        new(name, TinyRouting(1, experts=5)).load(tmp_path / "three")


def test_other_features_are_refused(tmp_path: Path) -> None:
    problem = routing_problem(4)
    policy = DrlPolicy(problem, name="han-ppo")
    policy.model.nodes = {"arrived": ["Weight"], "expert": ["Quality"]}
    policy.save(tmp_path / "other")
    with pytest.raises(ConfigurationError, match=r"has nodes .*'Weight'.* allowed: .*'Prompt'"):
        new("han-ppo").load(tmp_path / "other")


def test_the_largest_output_is_carried_out() -> None:
    plain, outputs = as_sb3(TinyRouting(3)), ArgmaxActions(as_sb3(TinyRouting(3)))
    assert isinstance(outputs.action_space, spaces.Box)
    assert outputs.action_space.shape == (4,)
    for env in (plain, outputs):
        env.seed(5)
    np.testing.assert_array_equal(plain.reset(), outputs.reset())
    numbers = np.array([[0.1, 0.9, -1, 0], [-0.3, -0.2, -0.1, -0.4], [0, 0, 0, 1]], np.float32)
    for mine, theirs in zip(plain.step(np.array([1, 2, 3])), outputs.step(numbers), strict=True):
        np.testing.assert_array_equal(mine, theirs)


def test_sac_knows_the_chances_of_its_draws() -> None:
    policy = new("han-sac", TinyRouting(8))
    assert isinstance(policy.model, GraphSac)
    rows, _ = observations()
    chances = policy.model.behaviour(policy.problem.encode(rows))
    np.testing.assert_allclose(chances.sum(axis=1), 1.0)
    features = policy.problem.encode(rows[:1]).repeat(4000, axis=0)
    drawn, _ = policy.model.predict(features, deterministic=False)
    seen = np.bincount(drawn.argmax(axis=1), minlength=4) / 4000
    np.testing.assert_allclose(chances[0], seen, atol=0.15)
    explored = policy.decide(rows, explore=True)
    assert all(0 < d.propensity <= 1 for d in explored)


def test_the_critics_alone_train_the_encoder() -> None:
    policy = new("han-sac", TinyRouting(8))
    actor, critic = policy.model.policy.actor, policy.model.policy.critic
    assert actor.features_extractor is critic.features_extractor
    encoder = {id(weight) for weight in critic.features_extractor.parameters()}
    trained = [
        {id(weight) for group in part.optimizer.param_groups for weight in group["params"]}
        for part in (actor, critic)
    ]
    assert encoder
    assert not encoder & trained[0]
    assert encoder <= trained[1]


def test_the_policies_are_for_routing() -> None:
    for name in NAMES:
        spec = get_policy_spec(name)
        assert (spec.is_drl, spec.environments) == (True, ("qos-routing",))
        assert 30_000 <= spec.budget_in("qos-routing", {}) <= 200_000


def test_without_estimator_the_reward_is_another_while_learning() -> None:
    assert get_policy_spec("ppo").training_settings({"horizon": 9}) == {"horizon": 9}
    usual, without = (get_policy_spec(f"han-ppo{suffix}") for suffix in ("", "-no-impact"))
    given = without.training_settings({"horizon": 9, "impact_penalty": True})
    assert given == {"horizon": 9, "impact_penalty": False}
    assert usual.training_settings({}) == {"impact_penalty": False, "reward": "difference"}
    assert usual.budget == without.budget
    assert get_policy_spec("han-sac-paper").training_settings({}) == {}
    policy = DrlPolicy(routing_problem(), name="han-ppo-no-impact")
    assert policy.model.nodes == {"arrived": ["Prompt", "Expected"], "expert": [*EXPERT]}


def test_the_comparison_trains_in_the_training_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[dict[str, Any]] = []

    def noted(name: str, num_envs: int = 1, **settings: Any) -> BatchedEnv:
        made.append(settings)
        return make(name, num_envs, **settings)

    monkeypatch.setattr("icl_optimizer.policy_spec.make", noted)
    config = ComparisonConfig(
        environment="qos-routing", policies=("han-ppo-no-impact",), settings={"horizon": 20}
    )
    unit = Unit(config, "han-ppo-no-impact", 0, None)
    assert made == [{"horizon": 20, "impact_penalty": False}]
    assert isinstance(unit.policy, DrlPolicy)
