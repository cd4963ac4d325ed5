"""Load balancing on a trace: worked by hand, its parts, its words, its load."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from icl_optimizer.comparison.evaluation import Held
from icl_optimizer.environments.base import Outcomes
from icl_optimizer.environments.load_balancing import LoadBalancingVectorEnv, sweep_points
from icl_optimizer.environments.load_balancing_calibration import (
    calibrate,
    least_loaded_violations,
)
from icl_optimizer.environments.load_balancing_config import CALIBRATED
from icl_optimizer.environments.load_balancing_problem import ROLES
from icl_optimizer.environments.load_balancing_reward import COMPONENTS
from icl_optimizer.environments.registry import get_spec, make
from icl_optimizer.environments.traces import FEATURES
from icl_optimizer.errors import ConfigurationError

SLOW = {"tokens_per_s": 1000, "slots": 1}
FAST = {"tokens_per_s": 2000, "slots": 2}
ARRIVALS = (0.0, 0.5, 1.0, 1.5, 3.0)
TOKENS = (2000, 4000, 1500, 3000, 1000)


def write_trace(path: Path, arrivals: Any, tokens: Any) -> str:
    lines = ["TIMESTAMP,ContextTokens,GeneratedTokens"]
    for time, count in zip(arrivals, tokens, strict=True):
        minutes, seconds = divmod(float(time), 60)
        lines.append(f"2023-11-16 18:{int(minutes):02d}:{seconds:010.7f},{count - 100},100")
    path.write_text("\n".join(lines) + "\n")
    return str(path)


@pytest.fixture
def five(tmp_path: Path) -> dict[str, Any]:
    """Five requests to two servers, as recorded, the whole of them an episode."""
    trace = write_trace(tmp_path / "five.csv", ARRIVALS, TOKENS)
    weights = {"slo": -5}
    return {
        "trace": trace,
        "scenario": "nominal",
        "part": "all",
        "servers": [SLOW, FAST],
        "weights": weights,
    }


@pytest.fixture(scope="module")
def hundred(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Some load over one hundred requests, 30 of them held out."""
    rng = np.random.default_rng(0)
    arrivals, tokens = np.cumsum(rng.exponential(0.2, 100)), rng.integers(200, 6000, 100)
    path = tmp_path_factory.mktemp("trace") / "hundred.csv"
    trace = write_trace(path, arrivals, tokens)
    return {"trace": trace, "scenario": "high-load", "span_s": 20.0, "servers": [SLOW, FAST]}


def play(env: LoadBalancingVectorEnv, actions: Any) -> tuple[Any, Any, dict[int, dict[str, Any]]]:
    """Return observations, rewards and, by decision, reward, feasibility and metrics."""
    observation, _ = env.reset(seed=0)
    seen, paid, outcomes = [observation], [], {}
    for row in np.atleast_2d(np.asarray(actions).T).T:
        observation, reward, *_, info = env.step(row)
        seen.append(observation)
        paid.append(reward)
        outcomes.update(by_decision(info["outcomes"]))
    return np.array(seen), np.array(paid), outcomes


def by_decision(batch: Outcomes) -> dict[int, dict[str, Any]]:
    return {
        int(number): {
            "reward": batch.reward[i],
            "feasible": bool(batch.feasible[i]),
            **{name: values[i] for name, values in batch.metrics.items()},
        }
        for i, number in enumerate(batch.decision_id)
    }


def built(num_envs: int = 1, **settings: Any) -> LoadBalancingVectorEnv:
    env = make("load-balancing", num_envs, **settings)
    assert isinstance(env, LoadBalancingVectorEnv)
    return env


def servers_of(observation: NDArray[Any]) -> NDArray[Any]:
    """Return ``(servers, roles)``."""
    return observation[len(FEATURES) :].reshape(-1, len(ROLES))


def expected_parts(outcome: dict[str, Any]) -> list[float]:
    return [outcome[f"reward_{name}"] for name in COMPONENTS]


def test_every_component_as_worked_by_hand(five: dict[str, Any]) -> None:
    seen, paid, outcomes = play(built(autoreset=False, **five), [0, 1, 0, 0, 1])
    # slow: 0 to 2, 2 to 3.5, 3.5 to 6.5; fast: 0.5 to 2.5, 3 to 3.5
    assert [outcomes[k]["response_time_s"] for k in range(5)] == [2.0, 2.0, 2.5, 5.0, 0.5]
    # 2 s are still in time
    assert [outcomes[k]["feasible"] for k in range(5)] == [True, True, False, False, True]
    assert [outcomes[k]["queue_length"] for k in range(5)] == [0, 0, 0, 1, 0]
    # loads over capacity (1000 and 4000 tokens/s), the request included, and 1 - std / mean:
    # (2, 0) -> 0, (2, 1) -> 2/3, (3.5, 1) -> 4/9, (6.5, 1) -> 4/15, (4.5, 0.25) -> 2/19
    parts = [
        [-0.02, 0.0, 0.0, 0.1 * 0, 1.0, 0.0],
        [-0.02, 0.0, 0.0, 0.1 * 2 / 3, 1.0, 0.0],
        [-0.015, 0.0, -10.0, 0.1 * 4 / 9, 1.0, -5.0],
        [-0.03, -0.1, -10.0, 0.1 * 4 / 15, 1.0, -5.0],
        [-0.005, 0.0, 0.0, 0.1 * 2 / 19, 1.0, 0.0],
    ]
    for k, row in enumerate(parts):
        np.testing.assert_allclose(expected_parts(outcomes[k]), row, atol=1e-6)
        assert outcomes[k]["reward"] == pytest.approx(sum(row), abs=1e-6)
    at_once = [sum(row[:5]) for row in parts]
    # both late responses come at the end, when the servers finish what they have
    np.testing.assert_allclose(paid[:, 0], [*at_once[:4], at_once[4] - 10], atol=1e-6)
    # before the last request: one waits and one is served at slow, fast is idle
    slow, fast = servers_of(seen[4][0])
    np.testing.assert_allclose(slow, [1, 4500, 2.0, 1, 1000, 1])
    np.testing.assert_allclose(fast, [0, 0, 2.0, 0, 2000, 2])


def test_the_printed_start_rule_serves_one_by_one(five: dict[str, Any]) -> None:
    actions = [0, 1, 0, 1, 1]
    _, _, slots = play(built(**five), actions)
    seen, _, printed = play(built(start_rule="last-finish", **five), actions)
    # fast: 4000 tokens from 0.5 to 2.5, then 3000 at once or from 2.5 to 4, then 1000
    assert [slots[k]["response_time_s"] for k in (1, 3, 4)] == [2.0, 1.5, 0.5]
    assert [printed[k]["response_time_s"] for k in (1, 3, 4)] == [2.0, 2.5, 1.5]
    # concurrency counts for what is at capacity all the same
    assert printed[3]["reward_overload"] == 0.0
    np.testing.assert_allclose(servers_of(seen[4][0])[1], [0, 3000, 2.0, 1, 2000, 2])


def test_a_server_without_a_free_slot_may_drop(five: dict[str, Any]) -> None:
    seen, paid, outcomes = play(built(when_full="drop", **five), [0, 1, 0, 1, 0])
    assert [outcomes[k]["dropped"] for k in range(5)] == [0, 0, 1, 0, 0]
    # not accepted, too late for good, and known at once; loads stay 2 and 1
    expected = [-0.015, 0.0, -10.0, 0.1 * 2 / 3, 0.0, -5.0]
    np.testing.assert_allclose(expected_parts(outcomes[2]), expected, atol=1e-6)
    assert paid[2, 0] == pytest.approx(sum(expected), abs=1e-6)
    assert not outcomes[2]["feasible"]
    assert servers_of(seen[3][0])[0, 1] == 2000


def test_the_queue_holds_so_many(five: dict[str, Any]) -> None:
    _, _, outcomes = play(built(queue_size=1, **five), [0, 0, 0, 0, 1])
    # one in service, one waiting, no room for two more
    assert [outcomes[k]["dropped"] for k in range(5)] == [0, 0, 1, 1, 0]
    assert [outcomes[k]["queue_length"] for k in range(4)] == [0, 0, 1, 1]


def test_a_component_can_be_left_out(five: dict[str, Any]) -> None:
    actions = [0, 0, 0, 0, 1]
    _, _, whole = play(built(**five), actions)
    for name in COMPONENTS:
        settings = {**five, "weights": {"slo": -5, name: 0}}
        _, _, outcomes = play(built(**settings), actions)
        for k in range(5):
            rest = whole[k]["reward"] - whole[k][f"reward_{name}"]
            assert outcomes[k]["reward"] == pytest.approx(rest)
            assert outcomes[k]["response_time_s"] == whole[k]["response_time_s"]


@pytest.mark.parametrize("start_rule", ["slots", "last-finish"])
@pytest.mark.parametrize("when_full", ["queue", "drop"])
def test_rewards_add_up_and_are_known_to_the_oracle(
    hundred: dict[str, Any], start_rule: str, when_full: str
) -> None:
    env = built(4, start_rule=start_rule, when_full=when_full, horizon=40, **hundred)
    rng, foreseen, outcomes, total = np.random.default_rng(1), {}, {}, 0.0
    _, info = env.reset(seed=1)
    for _ in range(120):
        actions = rng.integers(2, size=4)
        values = env.action_values()[np.arange(4), actions]
        foreseen.update(zip(info["decision_id"].tolist(), values.tolist(), strict=True))
        observation, rewards, *_, info = env.step(actions)
        assert env.observation_space.contains(observation)
        total += rewards.sum()
        outcomes.update(by_decision(info["outcomes"]))
    assert len(outcomes) == 480
    assert total == pytest.approx(sum(o["reward"] for o in outcomes.values()))
    assert any(not o["feasible"] for o in outcomes.values())
    for number, outcome in outcomes.items():
        assert outcome["reward"] == pytest.approx(foreseen[number], abs=1e-9)
        assert outcome["reward"] == pytest.approx(sum(expected_parts(outcome)), abs=1e-9)


def test_thirty_seven_numbers_and_four_words() -> None:
    env = built()
    problem = env.problem
    assert len(problem.columns) == 37
    assert problem.keywords == ("Request", "server 0 load", "server 1 load", "server 2 load")
    observation, _ = env.reset(seed=0)
    words = problem.describe(observation[0])
    assert words["server 1 load"] == "light"
    # half a second of 3000 tokens/s x 3 slots, and of 7000 x 7
    for action, busy in ((0, 4500.0), (2, 24500.0)):
        observation[0, problem.role("Load")[action]] = busy
        assert problem.describe(observation[0])[f"server {action} load"] == "moderate"


def test_words_of_a_request_follow_its_tokens(hundred: dict[str, Any]) -> None:
    env = built(part="all", **hundred)
    column = FEATURES.index("total_tokens")
    for tokens, row in zip(env.requests.tokens, env.requests.features, strict=True):
        size = "small" if tokens < 1500 else "medium" if tokens < 4000 else "large"
        assert env.problem.columns[column].word(float(row[column])) == size
    back = env.requests.unscaled("total_tokens", env.requests.features[:, column].astype(float))
    np.testing.assert_allclose(back, env.requests.tokens, rtol=1e-5)


def test_learning_never_sees_what_is_held_out(hundred: dict[str, Any]) -> None:
    train, held = built(200, horizon=20, **hundred), built(part="held-out", **hundred)
    train.reset(seed=0)
    assert set(train._first) == set(range(51))
    assert (held.requests.begin, held.requests.end, held.problem.horizon) == (70, 100, 30)
    # every pass over the whole part is the same
    first, _ = held.reset(seed=1)
    np.testing.assert_array_equal(held.reset(seed=2)[0], first)


def test_features_are_scaled_by_the_training_part(tmp_path: Path) -> None:
    arrivals, tokens = np.arange(100.0), np.random.default_rng(0).integers(200, 6000, 100)
    settings = {"scenario": "nominal", "servers": [SLOW, FAST]}
    changed = tokens.copy()
    changed[70:] *= 7
    one, other = (
        built(trace=write_trace(tmp_path / name, arrivals, values), **settings).requests
        for name, values in (("one.csv", tokens), ("other.csv", changed))
    )
    np.testing.assert_array_equal(one.features[:70], other.features[:70])
    total = one.features[:70, FEATURES.index("total_tokens")]
    low, median, high = np.percentile(total, [25, 50, 75])
    np.testing.assert_allclose([median, high - low], [0, 1], atol=1e-6)
    # what never changes while learning says nothing later
    assert (one.features[:, FEATURES.index("iso_week")] == 0).all()


def test_scenarios_squeeze_and_speed_up() -> None:
    ends = {}
    for scenario in ("nominal", "high-load", "calibrated"):
        env = built(scenario=scenario, part="all")
        ends[scenario] = len(env.requests.tokens), env.requests.arrival_s[-1]
    assert ends["nominal"] == (8819, pytest.approx(3435.948056))
    assert ends["high-load"] == (5000, pytest.approx(1000))
    assert ends["calibrated"] == (5000, pytest.approx(1000 / CALIBRATED["azure-code"]))
    nominal, own = built(scenario="nominal"), built(scenario="high-load", servers=[SLOW, FAST])
    assert [s.slots for s in nominal.config.setup.servers] == [5, 5, 5]
    assert (nominal.config.setup.slo_weight, own.config.setup.slo_weight) == (0, -5)
    assert own.problem.labels == ("server 0", "server 1")


def test_every_tenth_request(hundred: dict[str, Any]) -> None:
    whole, tenth = built(part="all", **hundred), built(part="all", every=10, **hundred)
    np.testing.assert_array_equal(tenth.requests.tokens, whole.requests.tokens[::10])
    np.testing.assert_array_equal(tenth.requests.arrival_s, whole.requests.arrival_s[::10])


def test_the_gaps_shrink_with_the_load(hundred: dict[str, Any]) -> None:
    slow, fast = built(**hundred), built(load_factor=4.0, **hundred)
    np.testing.assert_allclose(fast.requests.arrival_s, slow.requests.arrival_s / 4)
    gap = FEATURES.index("mean_gap_5")
    ratio = slow.requests.scaling.median[gap] / fast.requests.scaling.median[gap]
    assert ratio == pytest.approx(4)


@pytest.mark.parametrize("name", CALIBRATED)
def test_the_calibrated_load_makes_least_loaded_late(name: str) -> None:
    assert 0.3 <= least_loaded_violations(trace=name, scenario="calibrated") <= 0.5


def test_the_load_is_found_anew(hundred: dict[str, Any]) -> None:
    servers = [{"tokens_per_s": 3000, "slots": 2}, {"tokens_per_s": 5000, "slots": 2}]
    calm = {**hundred, "span_s": 200.0, "servers": servers}
    settings = {k: v for k, v in calm.items() if k not in ("trace", "scenario")}
    factor = calibrate(hundred["trace"], 0.3, digits=1, **settings)
    assert factor > 1
    late = least_loaded_violations(**calm, load_factor=factor + 0.1)
    less = least_loaded_violations(**calm, load_factor=factor - 0.2)
    assert late >= 0.3 > less
    # more than all, or as many as are too long for an idle server
    for target, cluster in ((2.0, servers), (0.3, [SLOW, SLOW])):
        with pytest.raises(ConfigurationError, match=f"target is {target} for"):
            calibrate(hundred["trace"], target, **settings | {"servers": cluster})


def test_the_expert_is_right_where_nothing_is_uncertain(hundred: dict[str, Any]) -> None:
    env = built(**hundred)
    expert = env.problem.expert
    assert expert is not None
    observation, _ = env.reset(seed=3)
    forecast = expert(observation)
    tokens = env._tokens()[0]
    np.testing.assert_allclose(forecast.seconds, [[tokens / 1000, tokens / 2000]], rtol=1e-5)
    np.testing.assert_array_equal(forecast.chance, [[tokens <= 2000, tokens <= 4000]])
    np.testing.assert_allclose(forecast.value, env.action_values(), rtol=1e-5)


def test_the_expert_foresees_most_responses() -> None:
    env = built(8, horizon=150)
    expert = env.problem.expert
    assert expert is not None
    rng, chances, outcomes = np.random.default_rng(0), {}, {}
    observation, info = env.reset(seed=0)
    for _ in range(150):
        actions = rng.integers(3, size=8)
        chance = expert(observation).chance[np.arange(8), actions]
        chances.update(zip(info["decision_id"].tolist(), chance.tolist(), strict=True))
        observation, *_, info = env.step(actions)
        outcomes.update(by_decision(info["outcomes"]))
    right = np.array([(chances[k] > 0.5) == o["feasible"] for k, o in outcomes.items()])
    in_time = np.mean([o["feasible"] for o in outcomes.values()])
    assert 0.2 < in_time < 0.8
    assert right.mean() > 0.95


def test_tables_name_what_the_paper_reports(five: dict[str, Any]) -> None:
    env = built(**five)
    _, _, outcomes = play(env, [0, 1, 0, 0, 1])
    rows = [outcomes[k] for k in range(5)]
    names = [name for name in rows[0] if name not in ("reward", "feasible")]
    table = env.summarise(
        np.array([o["reward"] for o in rows]),
        np.array([o["feasible"] for o in rows]),
        {name: np.array([o[name] for o in rows]) for name in names},
    )
    assert table["episode_reward"] == pytest.approx(5 * table["reward"])
    assert table["slo_violation_rate"] == pytest.approx(0.4) == 1 - table["success_rate"]
    assert table["response_time_s"] == pytest.approx(2.4)
    assert table["queue_length"] == pytest.approx(0.2)
    assert table["reward_overload"] == pytest.approx(-4.0)
    assert (table["share_server_0"], table["drop_rate"]) == (pytest.approx(0.6), 0.0)


def test_evaluation_is_one_pass_over_what_is_held_out(hundred: dict[str, Any]) -> None:
    env = Held("load-balancing", {**hundred, "horizon": 10}, seed=0, tasks=1).env
    assert isinstance(env, LoadBalancingVectorEnv)
    assert (env.num_envs, env.problem.horizon, env.config.part) == (1, 30, "held-out")
    assert Held("load-balancing", hundred, seed=0, tasks=31).env.num_envs == 2
    # other systems ask for so many episodes
    assert Held("slo-scheduling", {}, seed=0, tasks=1).env.num_envs == 30


def test_another_trace_is_described_as_the_one_learned_from() -> None:
    config = built().config
    (point,) = sweep_points(config)
    assert point.name == "trace=azure-conversation"
    learned, met = built(part="all"), built(part="all", **point.settings)
    assert met.problem.columns == learned.problem.columns
    np.testing.assert_array_equal(met.requests.scaling.median, learned.requests.scaling.median)
    # the load is the other trace's own
    assert met.config.setup.load_factor == CALIBRATED["azure-conversation"]
    assert get_spec("load-balancing").sweep_points({})[0].name == point.name


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"trace": "azure-chat"}, "load-balancing: trace is 'azure-chat'.*Did you mean"),
        ({"trace": "/nowhere/a.csv"}, "trace is '/nowhere/a.csv'.*is not there; allowed"),
        ({"scaling_trace": "azure-cod"}, "scaling_trace is 'azure-cod'"),
        ({"scenario": "heavy"}, "scenario is 'heavy'.*'nominal', 'high-load' or 'calibrated'"),
        ({"horizon": 10_000}, "horizon is 10000; allowed: 1 to 3500.*part 'train'"),
        ({"servers": [SLOW]}, "servers is .* at least 2"),
        ({"servers": [SLOW, {"tokens_per_s": 0}]}, "servers.1.tokens_per_s is 0: .*greater than 0"),
        ({"train_share": 1.0}, "train_share is 1.0: .*less than 1"),
        ({"weights.time": "much"}, "weights.time is 'much'"),
        ({"weights.speed": 1}, "weights.speed is 1: Extra"),
        ({"every": 5000}, "every is 5000, which leaves 1 request"),
        ({"servres": []}, "unknown setting of 'load-balancing' 'servres'.*'servers'"),
    ],
)
def test_bad_settings_name_the_field(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        make("load-balancing", 1, **settings)


def test_a_file_has_no_calibrated_load(five: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"load_factor is None: .*allowed: a number"):
        make("load-balancing", 1, trace=five["trace"])
    with pytest.raises(ConfigurationError, match=r"load_factor is None: .*'.*five\.csv' is not"):
        make("load-balancing", 1, scaling_trace=five["trace"])
    at_once = write_trace(tmp_path / "once.csv", [1.0] * 4, [200] * 4)
    with pytest.raises(ConfigurationError, match=r"span_s is 1000 .* nothing to squeeze"):
        make("load-balancing", 1, trace=at_once, scenario="high-load")


def test_a_file_that_changed_is_read_again(tmp_path: Path) -> None:
    for tokens in (TOKENS, tuple(2 * t for t in TOKENS)):
        trace = write_trace(tmp_path / "trace.csv", ARRIVALS, tokens)
        env = built(trace=trace, scenario="nominal", part="all")
        assert env.requests.tokens.tolist() == list(tokens)
