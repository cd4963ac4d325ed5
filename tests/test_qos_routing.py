"""QoS-aware routing: what is seen, what is paid, what the estimator and the rules make of it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from icl_optimizer.baselines.hindsight import RoutingInstance, routing_bound
from icl_optimizer.comparison.bounds import hindsight_bounds
from icl_optimizer.comparison.evaluation import Held
from icl_optimizer.environments.batching.bank import ExpertBank
from icl_optimizer.environments.batching.costs import StepCosts
from icl_optimizer.environments.qos_routing import QoSRoutingVectorEnv, sweep_points
from icl_optimizer.environments.qos_routing_config import QoSRoutingConfig
from icl_optimizer.environments.qos_routing_impact import Costs, Running, impact
from icl_optimizer.environments.qos_routing_requests import load_source
from icl_optimizer.environments.registry import get_spec, make
from icl_optimizer.errors import ConfigurationError
from icl_optimizer.policies import make_policy


def played(env: QoSRoutingVectorEnv, actions: Any, seed: int = 0) -> dict[str, Any]:
    """Return what an episode yields under ``actions(step, observations)``."""
    obs, info = env.reset(seed=seed)
    total, outcomes, ids = np.zeros(env.num_envs), [], []
    for step in range(env.problem.horizon):
        ids.append(info["decision_id"])
        obs, reward, _, truncated, info = env.step(actions(step, obs))
        total += reward
        outcomes.append(info["outcomes"])
    assert truncated.all()
    joined: dict[str, Any] = {
        name: np.concatenate([o.metrics[name] for o in outcomes]) for name in outcomes[0].metrics
    }
    joined |= {
        "id": np.concatenate([o.decision_id for o in outcomes]),
        "reward": np.concatenate([o.reward for o in outcomes]),
        "feasible": np.concatenate([o.feasible for o in outcomes]),
        "total": total,
        "ids": np.concatenate(ids),
    }
    return joined


def in_turn(env: QoSRoutingVectorEnv) -> Any:
    return lambda step, _: np.full(env.num_envs, step % env.config.experts)


# --- the estimator, by hand


def one_running(**fields: float) -> Running:
    """Return one expert at which one request runs, and room for another."""
    values = {"prompt": 100.0, "answer": 50.0, "generated": 10.0, "elapsed_s": 0.5, "score": 0.8}
    values |= fields
    arrays = {name: np.array([[[value, 0.0]]]) for name, value in values.items()}
    arrays["answer"][..., 1] = 1.0
    return Running(present=np.array([[[True, False]]]), **arrays)


def one_expert(**fields: float) -> Costs:
    return Costs.of([StepCosts(**({"base_s": 0.01, "per_prompt_token_s": 1e-3} | fields))])


def test_impact_is_the_added_latency_of_those_that_run() -> None:
    # as printed: 0.5 s for 10 tokens are 0.05 s each; [1e-3 * 200 + 1e-5 * sum_{k=1}^{29}(200 + k)]
    # / 50 = (0.2 + 1e-5 * (29 * 200 + 435)) / 50 = 0.005247 more, since it stays for 30 tokens
    costs = one_expert(per_cached_token_s=1e-5)
    running, prompt, answer = one_running(), np.array([200.0]), np.array([30.0])
    for bound, at_risk in ((0.0552, 0.8), (0.0553, 0.0)):
        found = impact(costs, running, prompt, answer, bound, printed=True)
        np.testing.assert_allclose(found, [[at_risk]])


def test_impact_is_projected_to_the_end_by_default() -> None:
    # 40 tokens to come at 0.01 s: (0.5 + 0.4) / 50 = 0.018 s a token; one that stays for 30 tokens
    # adds (0.1 + 0.2 + 30 * 1e-3) / 50 = 0.0066
    costs = one_expert(per_cached_token_s=0.0, prefill_s=0.1, per_sequence_s=1e-3)
    running = one_running(elapsed_s=0.5 - 0.04)  # its own sequence costs 40 * 1e-3 s
    args = costs, running, np.array([200.0]), np.array([30.0])
    np.testing.assert_allclose(running.projected(costs)[0, 0, 0], 0.018)
    np.testing.assert_allclose(impact(*args, 0.0245), [[0.8]])
    np.testing.assert_allclose(impact(*args, 0.0247), [[0.0]])
    # who is late already cannot be harmed, but is counted as printed
    np.testing.assert_allclose(impact(*args, 0.0179), [[0.0]])
    np.testing.assert_allclose(impact(*args, 0.0179, printed=True), [[0.8]])


# --- the environment


def test_every_request_has_one_outcome_and_rewards_add_up() -> None:
    env = QoSRoutingVectorEnv(3, horizon=200, arrival_rate=5.0, autoreset=False)
    seen = played(env, in_turn(env))
    assert sorted(seen["id"]) == sorted(seen["ids"])
    assert seen["reward"].sum() == pytest.approx(seen["total"].sum())
    np.testing.assert_allclose(seen["reward"], seen["qos"] - seen["penalty"])
    assert (seen["penalty"] > 0).any()
    served = seen["dropped"] == 0
    late = seen["latency_per_token_s"] >= env.config.latency_bound_s
    np.testing.assert_array_equal(seen["feasible"], served & ~late)
    np.testing.assert_array_equal(seen["qos"], seen["score"] * seen["feasible"])
    assert seen["gpu_s"].sum() == pytest.approx(env.bank.busy_s.sum())


def test_without_penalty_the_reward_is_the_quality_of_service() -> None:
    env = QoSRoutingVectorEnv(2, horizon=100, arrival_rate=5.0, impact_penalty=False)
    seen = played(env, in_turn(env))
    np.testing.assert_array_equal(seen["reward"], seen["qos"])


def test_difference_rewards_add_up_to_the_same() -> None:
    fields: dict[str, Any] = {"horizon": 300, "arrival_rate": 5.0, "impact_penalty": False}
    paid = [
        played(env, in_turn(env), seed=2)
        for reward in ("finished", "difference")
        for env in [QoSRoutingVectorEnv(2, reward=reward, **fields)]
    ]
    np.testing.assert_allclose(paid[1]["total"], paid[0]["total"])
    np.testing.assert_array_equal(paid[1]["reward"], paid[0]["reward"])


def test_a_dropped_request_counts_for_nothing_and_harms_nobody() -> None:
    env = QoSRoutingVectorEnv(1, horizon=30, autoreset=False)
    seen = played(env, lambda *_: np.array([env.config.experts]))
    assert seen["dropped"].all()
    assert not seen["reward"].any()
    assert not env.bank.busy_s.any()


@pytest.mark.parametrize("arrivals", ["poisson", "trace"])
def test_the_rate_of_arrivals_is_the_one_asked_for(arrivals: str) -> None:
    env = make("qos-routing", 4, arrivals=arrivals, arrival_rate=4.0, horizon=5000)
    env.reset(seed=1)
    assert isinstance(env, QoSRoutingVectorEnv)
    rates = 5000 / env._draws.arrival_s[:, -1]
    # an hour of a service is no Poisson process: windows of it are faster or slower
    np.testing.assert_allclose(rates, 4.0, rtol=0.08 if arrivals == "poisson" else 0.35)


def test_predictions_are_seen_and_truth_is_paid() -> None:
    env = QoSRoutingVectorEnv(1, horizon=50, arrival_rate=0.2, autoreset=False)
    obs, _ = env.reset(seed=3)
    quality = env.problem.role("Quality")
    draws = env._draws
    np.testing.assert_allclose(obs[0, quality], draws.predicted[0, 0], rtol=1e-6)
    assert (np.abs(draws.predicted - draws.score) > 0.1).mean() > 0.3
    seen = played(env, lambda *_: np.array([1]), seed=3)
    served = seen["feasible"]
    np.testing.assert_allclose(seen["qos"][served], draws.score[0, seen["id"][served], 1])


def test_the_state_shows_who_runs_where() -> None:
    env = QoSRoutingVectorEnv(1, horizon=50, arrival_rate=50.0)
    env.reset(seed=0)
    for _ in range(5):
        obs, *_ = env.step([1])
    p = env.problem
    at = {role: obs[0, p.role(role)] for role in ("Queue", "Running", "Waiting", "KV", "Backlog")}
    np.testing.assert_array_equal(at["Queue"], [0, 5, 0])
    np.testing.assert_array_equal(at["Running"] + at["Waiting"], at["Queue"])
    assert at["Backlog"][1] > 0 == at["Backlog"][0]
    prompts = [
        obs[0, p.role(f"{kind} {k} prompt")]
        for kind in ("running", "waiting")
        for k in range(1, 11)
    ]
    shown = np.array(prompts)
    assert (shown > 0).sum(axis=0).tolist() == [0, 5, 0]
    sent = np.minimum(env._draws.prompt[0, :5], 4096)
    assert sorted(shown[shown > 0]) == sorted(sent)
    context = p.describe(obs[0])
    assert context["gemma2-9b Queue"] == "moderate"
    assert context["qwen2.5-7b Queue"] == "idle"


def test_predicted_lengths_stand_for_true_ones_in_what_is_seen() -> None:
    env = QoSRoutingVectorEnv(1, horizon=50, arrival_rate=50.0)
    env.reset(seed=0)
    for _ in range(3):
        obs, *_ = env.step([0])
    generated = obs[0, env.problem.role("running 1 generated")][0]
    backlog = obs[0, env.problem.role("Backlog")][0]
    expected = env._draws.expected[0, :3].sum()
    assert backlog == pytest.approx(expected - generated, abs=2.0)


def test_the_oracle_adds_up_what_a_decision_changes() -> None:
    env = QoSRoutingVectorEnv(1, horizon=1, impact_penalty=False)
    env.reset(seed=0)
    values = env.action_values()[0]
    for action, value in enumerate(values):
        env.reset(seed=0)
        _, reward, *_ = env.step([action])
        assert reward[0] == pytest.approx(value)


# --- policies


def qos(name: str, **settings: Any) -> float:
    held = Held("qos-routing", settings, seed=0, tasks=1)
    # fewer requests of the same held-out part
    spec = get_spec("qos-routing")
    held.env = make("qos-routing", 6, **settings, **spec.evaluation | {"horizon": 300})
    policy = make_policy(name, held.env.problem, env=held.env, seed=0)
    return held.evaluate(policy, bounds=False)["qos"]


def test_knowing_more_is_worth_more() -> None:
    found = {
        name: qos(name)
        for name in ("random", "shortest-queue", "qos-greedy", "impact-greedy", "oracle")
    }
    assert found["random"] < found["shortest-queue"] < found["impact-greedy"] < found["oracle"]
    assert found["qos-greedy"] < found["impact-greedy"]


@pytest.mark.parametrize(
    ("name", "role", "best"), [("least-kv", "KV", min), ("quality-greedy", "Quality", max)]
)
def test_rules_look_at_their_column(name: str, role: str, best: Any) -> None:
    env = make("qos-routing", 4, horizon=60, arrival_rate=10.0)
    obs, _ = env.reset(seed=0)
    for step in range(40):
        obs, *_ = env.step(np.full(4, step % 3))
    policy = make_policy(name, env.problem, seed=0)
    places = env.problem.role(role)
    for row, decision in zip(obs, policy.decide(obs), strict=True):
        assert row[places[decision.action]] == best(row[places])


def test_the_table_learns_what_quality_is_worth() -> None:
    env = make("qos-routing", 1, horizon=300)
    policy = make_policy("table", env.problem, env=env, seed=0)
    policy.learn(600)
    from icl_optimizer.baselines.forecasters import TablePolicy

    assert isinstance(policy, TablePolicy)
    worth = [
        policy.table.rewards(0, ("short",), (q, "ample", "harmless"))[0]
        for q in ("poor", "excellent")
    ]
    assert worth[0] + 0.3 < worth[1]
    assert (
        policy.table.from_json(env.problem, policy.table.to_json()).to_json()
        == policy.table.to_json()
    )


# --- the bound


def test_the_bound_of_two_requests_by_hand() -> None:
    # one expert; work of 1 s and 2 s in at most 2.5 s: all of the first, 3/4 of the other
    instance = RoutingInstance(
        np.zeros(2),
        np.array([100.0, 100.0]),
        np.array([[1.0], [0.4]]),
        np.array([[1.0], [2.0]]),
        np.array([[1.0], [2.0]]),
        0.025,
    )
    assert routing_bound(instance) == pytest.approx(1.0 + 0.4 * 0.75)
    # who is late even alone counts for nothing
    late = RoutingInstance(
        *(vars(instance)[k] for k in ("arrival_s", "tokens", "score", "work_s")),
        np.array([[1.0], [3.0]]),
        0.025,
    )
    assert routing_bound(late) == pytest.approx(1.0)


@pytest.mark.parametrize("rate", [1.0, 6.0])
def test_nobody_beats_the_bound(rate: float) -> None:
    env = make("qos-routing", 2, horizon=300, arrival_rate=rate, impact_penalty=False)
    bounds = hindsight_bounds(env, 7)
    assert bounds is not None
    env.reset(seed=7)
    total = np.zeros(2)
    for _ in range(300):
        _, reward, *_ = env.step(env.action_values().argmax(axis=1))
        total += reward
    assert total[0] < bounds[0] < 300


# --- parameters


def test_wrong_parameters_are_named() -> None:
    for fields, words in (
        ({"experts": 7}, "experts"),
        ({"gpu": "t4"}, "gpu"),
        ({"trace": "nowhere.csv"}, "trace"),
        ({"arrival_rate": 0}, "arrival_rate"),
    ):
        with pytest.raises(ConfigurationError, match=words):
            make("qos-routing", 1, **fields)
    with pytest.raises(ConfigurationError, match="at least 9000"):
        make("qos-routing", 1, arrivals="trace", horizon=9000, part="held-out")


def test_parts_share_no_request() -> None:
    train, held = (
        load_source(QoSRoutingConfig(part=part, horizon=10)) for part in ("train", "held-out")
    )
    assert len(train.prompt) > 2 * len(held.prompt)
    assert len(train.score) > 2 * len(held.score)


def test_sweeps_are_the_rates_and_the_trace() -> None:
    names = [point.name for point in sweep_points(QoSRoutingConfig())]
    assert names == [f"arrival_rate={rate}" for rate in (1, 2, 3, 4, 6)] + ["arrivals=trace"]


def test_most_requests_are_in_time_alone_and_the_load_spans_the_capacity() -> None:
    env = QoSRoutingVectorEnv(1, horizon=5000)
    env.reset(seed=0)
    _, tokens, _, work, alone, bound = env.instance(0)
    assert (alone < bound * tokens[:, None]).mean() > 0.8
    # seconds of full batches that a request costs, over what three experts have
    load = {rate: rate * work.mean() / env.config.experts for rate in (1, 2.5, 6)}
    assert 0.4 < load[2.5] < 0.6
    assert 1.0 < load[6] < 1.4


def test_the_bank_is_reset_with_the_episode() -> None:
    env = QoSRoutingVectorEnv(1, horizon=20)
    assert isinstance(env.bank, ExpertBank)
    first = played(env, in_turn(env), seed=5)["latency_per_token_s"]
    second = played(env, in_turn(env), seed=5)["latency_per_token_s"]
    np.testing.assert_array_equal(first, second)
