"""Layer splitting: rewards by hand, backward induction by brute force, links, rules."""

from __future__ import annotations

import subprocess
import sys
from itertools import product
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from tiny_env import tiny_problem
from tiny_splitting import hilly_table, steady_table, tiny_splitting

from icl_optimizer.agent import ICLAgent
from icl_optimizer.baselines.splitting import FixedSplitPolicy, NearestRecordPolicy
from icl_optimizer.environments.layer_splitting import LayerSplittingVectorEnv, sweep_points
from icl_optimizer.environments.layer_splitting_config import LayerSplittingConfig
from icl_optimizer.environments.layer_splitting_expert import SplittingExpert
from icl_optimizer.environments.layer_splitting_link import draw_links
from icl_optimizer.environments.layer_splitting_problem import build_problem
from icl_optimizer.environments.layer_splitting_reward import make_source, ue_load
from icl_optimizer.environments.registry import get_spec
from icl_optimizer.environments.splitting.records import MeasuredTable
from icl_optimizer.errors import ConfigurationError
from icl_optimizer.llm.scripted import FunctionLLM
from icl_optimizer.policies import get_policy_spec, make_policy

SHALLOWER, STAY, DEEPER = 0, 1, 2


def begun_at(layer: int, **settings: Any) -> LayerSplittingVectorEnv:
    """Return one environment on the steady table whose episodes begin at ``layer``."""
    env = LayerSplittingVectorEnv(
        1, table=steady_table(), start_low=layer, start_high=layer, **settings
    )
    env.reset(seed=0)
    return env


def step(env: LayerSplittingVectorEnv, action: int) -> tuple[float, Any]:
    """Return the reward of one decision and its outcome."""
    _, rewards, *_, info = env.step(np.full(env.num_envs, action))
    return float(rewards[0]), info["outcomes"]


# --- rewards


def test_the_code_pays_quality_and_a_light_device() -> None:
    reward, outcomes = step(begun_at(3, reward="code"), DEEPER)
    # layer 4 costs 0.4 nats: f = exp(-0.4)
    assert reward == pytest.approx(10 * 0.670320046 + 0.6)
    assert outcomes.metrics["perplexity_ratio"][0] == pytest.approx(1.491824698)
    assert outcomes.metrics["split_layer"][0] == 4
    reward, _ = step(begun_at(3, reward="code", quality_weight=2, load_weight=0.5), DEEPER)
    assert reward == pytest.approx(2 * 0.670320046 + 0.3)


def test_the_equation_pays_less_perplexity_and_less_load() -> None:
    reward, outcomes = step(begun_at(3, reward="equation", load_weight=2), DEEPER)
    # (2) with d_in = 20, d = 576: C(4) / C(10) = (20 + 3 * 576) / (20 + 9 * 576)
    load = 1748 / 5204
    assert outcomes.metrics["ue_load"][0] == pytest.approx(load)
    assert reward == pytest.approx(-(1.491824698 + 2 * load))


def test_the_code_with_a_model_compares_with_the_first_state() -> None:
    env = begun_at(3, reward="code-initial")
    assert step(env, DEEPER)[0] == pytest.approx(10.5 * (1 - np.exp(0.1)) + 0.6)
    # still with layer 3, where the episode began
    assert step(env, DEEPER)[0] == pytest.approx(10.5 * (1 - np.exp(0.2)) + 0.5)


def test_a_difference_is_what_the_move_changed() -> None:
    env = begun_at(3, reward="code", difference=True)
    change = 10 * (np.exp(-0.4) - np.exp(-0.3)) - 0.1
    assert step(env, DEEPER)[0] == pytest.approx(change)
    assert step(env, STAY)[0] == 0.0
    assert step(env, SHALLOWER)[0] == pytest.approx(-change)


def test_paid_against_the_start_an_episode_lacks_a_constant() -> None:
    plain, less = begun_at(3), begun_at(3, from_start=True)
    moves = (DEEPER, DEEPER, SHALLOWER, STAY)
    gaps = [step(plain, move)[0] - step(less, move)[0] for move in moves]
    assert gaps == pytest.approx([gaps[0]] * len(moves))
    assert step(begun_at(3, from_start=True), STAY)[0] == 0
    # so the oracle's values differ by the same in every state
    ahead = begun_at(3).action_values() - begun_at(3, from_start=True).action_values()
    assert ahead[0] == pytest.approx([ahead[0, 0]] * 3)


def test_the_state_that_a_decision_leads_to_is_paid_under_the_next_link() -> None:
    env = tiny_splitting(4, link="independent", reward="code")
    env.reset(seed=1)
    seen, rewards, *_ = env.step(np.full(4, STAY))
    sigma, loss, split, _ = seen.astype(np.float64).T
    f = np.exp(-hilly_table().extra_nats(split.astype(int), sigma, loss))
    np.testing.assert_allclose(rewards, 10 * f + (10 - split) / 10, rtol=1e-5)


def test_a_move_is_feasible_if_staying_would_not_have_been_better() -> None:
    # here every layer more costs
    env = begun_at(5)
    feasible = [bool(step(env, action)[1].feasible[0]) for action in (DEEPER, STAY, SHALLOWER)]
    assert feasible == [False, True, True]


def test_the_load_follows_the_paper() -> None:
    config = LayerSplittingConfig(input_tokens=100, hidden=100)
    # with d_in = d every layer counts the same
    np.testing.assert_allclose(ue_load(np.array([1, 5, 10]), config), [0.1, 0.5, 1.0])


# --- moves


def test_moves_end_at_both_ends() -> None:
    env = begun_at(1)
    assert step(env, SHALLOWER)[1].metrics["split_layer"][0] == 1
    env = begun_at(10)
    assert step(env, DEEPER)[1].metrics["split_layer"][0] == 10
    # the move that leads nowhere is worth what staying is, a little behind it
    values = begun_at(10).action_values()[0]
    assert 0 < values[STAY] - values[DEEPER] < 1e-8


def test_four_layers_at_once() -> None:
    env = begun_at(6, moves="four")
    labels = env.problem.labels
    assert labels[0] == "4 shallower"
    assert labels[4:6] == ("stay", "1 deeper")
    layers = [
        step(env, labels.index(move))[1].metrics["split_layer"][0]
        for move in ("4 shallower", "4 shallower", "3 deeper", "4 deeper", "4 deeper")
    ]
    assert layers == [2, 1, 4, 8, 10]


# --- looking ahead


VARIANTS = [
    {},
    {"link": "correlated", "reward": "equation"},
    {"link": "independent", "reward": "code-initial", "difference": True},
    {"moves": "four", "horizon": 3},
    {"difference": True, "case": "L"},
]


@pytest.mark.parametrize("settings", VARIANTS, ids=str)
def test_backward_induction_equals_trying_every_sequence(settings: dict[str, Any]) -> None:
    horizon = settings.get("horizon", 5)
    actions = len(build_problem(LayerSplittingConfig(**settings)).labels)
    sequences = np.array(list(product(range(actions), repeat=horizon)))
    env = tiny_splitting(len(sequences), **settings)
    for seed in (1, 2, 3):
        env.reset(seed=[seed] * len(sequences))
        told = env.action_values()[0]
        returns = sum(env.step(sequences[:, t])[1] for t in range(horizon))
        best = [returns[sequences[:, 0] == a].max() for a in range(actions)]
        np.testing.assert_allclose(told, best, atol=1e-8)


def test_the_oracle_looks_past_a_hill() -> None:
    # layer 1 is best by far, but the way there leads over layer 3
    nats = np.array([0.1, 0.6, 1.0, 0.9, 0.8, 0.8, 0.8, 0.8, 0.8, 0.8])
    table = MeasuredTable(range(1, 11), (0.0, 2.0), (0.0, 0.3), np.tile(nats, (2, 2, 1)).T)
    env = LayerSplittingVectorEnv(1, table=table, start_low=4, start_high=4)
    observations, _ = env.reset(seed=0)
    oracle, myopic = (make_policy(n, env.problem, env=env) for n in ("oracle", "myopic-split"))
    assert oracle.decide(observations)[0].label == "shallower"
    assert myopic.decide(observations)[0].label == "deeper"


# --- links


def drawn(count: int = 4000, **settings: Any) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    rngs = [np.random.default_rng(i) for i in range(count)]
    links = draw_links(rngs, LayerSplittingConfig(**settings))
    return links.sigma, links.loss, links.start


@pytest.mark.parametrize(
    ("case", "losses", "starts"),
    [("L", (0.0, 0.1), (1, 5)), ("H", (0.1, 0.3), (6, 10)), ("A", (0.0, 0.3), (1, 10))],
)
@pytest.mark.parametrize("link", ["block", "correlated", "independent"])
def test_every_link_is_uniform_over_the_case(
    case: Any, losses: Any, starts: Any, link: Any
) -> None:
    sigma, loss, start = drawn(case=case, link=link)
    for values, (low, high) in ((sigma, (0.0, 2.0)), (loss, losses)):
        for time in (0, -1):
            shares = np.histogram(values[:, time], bins=4, range=(low, high))[0] / len(values)
            np.testing.assert_allclose(shares, 0.25, atol=0.03)
    assert np.unique(start).tolist() == list(range(starts[0], starts[1] + 1))


def test_a_block_keeps_its_link() -> None:
    env = tiny_splitting(3)
    first = env.reset(seed=0)[0][:, :2]
    for _ in range(4):
        np.testing.assert_array_equal(env.step(np.zeros(3, dtype=int))[0][:, :2], first)
    # a new episode, another link
    assert (env.step(np.zeros(3, dtype=int))[0][:, :2] != first).all()


@pytest.mark.parametrize(
    ("link", "expected"), [("correlated", (0.6, 0.36)), ("independent", (0.0, 0.0))]
)
def test_links_are_as_much_alike_as_they_should(link: Any, expected: tuple[float, float]) -> None:
    sigma, loss, _ = drawn(link=link, correlation=0.6)
    assert sigma.shape == (4000, 6)
    for values in (sigma, loss):
        found = [np.corrcoef(values[:, 2], values[:, 2 + lag])[0, 1] for lag in (1, 2)]
        # ranks of Gaussians correlate by 6 / pi asin(rho / 2)
        ranks = 6 / np.pi * np.arcsin(np.array(expected) / 2)
        np.testing.assert_allclose(found, ranks, atol=0.05)
    assert abs(np.corrcoef(sigma[:, 0], loss[:, 0])[0, 1]) < 0.05


# --- where perplexities come from


class Counting:
    """A model that is asked, and says how often."""

    def __init__(self) -> None:
        self.asked: list[tuple[int, float, float]] = []

    def extra_nats(self, split: Any, sigma: Any, loss: Any) -> Any:
        self.asked += zip(split.tolist(), sigma.tolist(), loss.tolist(), strict=True)
        return hilly_table().extra_nats(split, sigma, loss)


def test_the_live_model_is_asked_for_nothing_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    source = Counting()
    monkeypatch.setattr(
        "icl_optimizer.environments.layer_splitting.make_source", lambda config: source
    )
    env = LayerSplittingVectorEnv(1, rewards_from="live", start_low=4, start_high=4)
    env.reset(seed=0)
    assert source.asked == []
    for action in (DEEPER, STAY, DEEPER, SHALLOWER):
        env.step(np.array([action]))
    assert [split for split, *_ in source.asked] == [5, 4, 6]
    env.action_values()
    assert len(set(source.asked)) == len(source.asked) == 10


def test_the_live_model_pays_what_the_table_pays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "icl_optimizer.environments.layer_splitting.make_source", lambda config: Counting()
    )
    settings: dict[str, Any] = {"link": "correlated", "reward": "code-initial"}
    live = LayerSplittingVectorEnv(3, rewards_from="live", **settings)
    table = tiny_splitting(3, **settings)
    live.reset(seed=2)
    table.reset(seed=2)
    for actions in np.random.default_rng(0).integers(3, size=(7, 3)):
        np.testing.assert_array_equal(live.step(actions)[1], table.step(actions)[1])
        np.testing.assert_array_equal(live.action_values(), table.action_values())


def test_the_surrogate_is_asked_instead(monkeypatch: pytest.MonkeyPatch) -> None:
    source = Counting()
    monkeypatch.setattr(
        "icl_optimizer.environments.splitting.surrogate.shipped_surrogate", lambda: source
    )
    env = LayerSplittingVectorEnv(2, rewards_from="surrogate")
    env.reset(seed=0)
    assert len(source.asked) == 2 * 10
    assert env.source is source


def test_without_a_model_nothing_loads_torch() -> None:
    code = (
        "import sys; from tiny_splitting import tiny_splitting; env = tiny_splitting(2); "
        "env.reset(seed=0); env.step([0, 2]); env.action_values(); "
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=__file__.rpartition("/")[0])


# --- configuration


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"case": "B"}, "case is 'B'.*'L', 'H' or 'A'"),
        ({"sigma_high": -1}, "sigma_high is -1"),
        ({"sigma_low": 3}, "sigma_low is 3.0 and sigma_high 2.0; allowed: low first"),
        ({"case": "L", "loss_low": 0.2}, "loss_low is 0.2 and loss_high 0.1"),
        ({"start_low": 8, "start_high": 4}, "start_low is 8 and start_high 4"),
        ({"deepest": 6}, "start_high is 10; allowed: up to 6"),
        ({"moves": "two"}, "moves is 'two'.*'one' or 'four'"),
        ({"correlation": 1}, "correlation is 1"),
        ({"rewards_from": "memory"}, "rewards_from is 'memory'"),
        ({"model": "x.gguf"}, "model is 'x.gguf' with rewards_from=table"),
        ({"horizon": 0}, "horizon is 0"),
    ],
)
def test_wrong_fields_are_named(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        get_spec("layer-splitting").config(fields)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"sigma_high": 2.5}, "sigma_high is 2.5; allowed: up to 2, as far as"),
        ({"loss_high": 0.5}, "loss_high is 0.5; allowed: up to 0.3"),
        ({"deepest": 12}, "deepest is 12; allowed: up to 10"),
    ],
)
def test_a_table_is_not_stretched(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        tiny_splitting(**fields)


def test_every_sweep_point_leaves_the_columns_as_they_are() -> None:
    config = LayerSplittingConfig()
    points = sweep_points(config)
    names = [p.name for p in points]
    assert names[:3] == ["case=L", "case=H", "loss=0.05;sigma=0"]
    assert len(set(names)) == len(names) == 2 + 15
    spec = get_spec("layer-splitting")
    for point in points:
        changed = spec.config(dict(point.settings))
        assert isinstance(changed, LayerSplittingConfig)
        assert build_problem(changed) == build_problem(config)


def test_who_judges_decisions_one_by_one_learns_from_differences() -> None:
    spec = get_spec("layer-splitting")
    settings = {name: get_policy_spec(name).training_settings({}, spec) for name in ("icl", "ppo")}
    assert settings == {"icl": {"difference": True}, "ppo": {}}
    given = {"difference": False}
    assert get_policy_spec("bandit").training_settings(given, spec) == given
    assert spec.evaluation == {"difference": False, "from_start": False}


# --- words


def test_a_situation_in_words() -> None:
    problem = build_problem(LayerSplittingConfig())
    assert problem.labels == ("shallower", "stay", "deeper")
    context = problem.describe(np.array([1.2, 0.04, 7.0, 0.67]))
    assert dict(context) == {"Noise": "high", "Loss": "low", "Split": "late", "UE load": "heavy"}


def test_split_and_load_part_the_same_layers() -> None:
    config = LayerSplittingConfig()
    layers = np.arange(1, 11)
    rows = np.stack([0 * layers, 0 * layers, layers, ue_load(layers, config)], axis=1)
    told = [(c["Split"], c["UE load"]) for c in build_problem(config).describe_all(rows)]
    expected = [("early", "light")] * 5 + [("late", "heavy")] * 5
    assert told == expected


def test_the_prompt_says_what_is_asked() -> None:
    problem = build_problem(LayerSplittingConfig())
    agent = ICLAgent(problem, FunctionLLM(lambda _: {"stay": 1.0}))
    prompt = agent.prompt(np.array([0.1, 0.2, 3.0, 0.2]))
    assert "Choose shallower, stay or deeper for the split" in prompt
    assert "described by its noise, loss, split" in prompt


# --- rules


@pytest.mark.parametrize(
    ("name", "layer"), [("split-first", 1), ("split-middle", 5), ("split-last", 10)]
)
@pytest.mark.parametrize("moves", ["one", "four"])
def test_fixed_splits_walk_to_their_layer_and_stay(name: str, layer: int, moves: Any) -> None:
    env = tiny_splitting(20, moves=moves, horizon=12)
    observations, _ = env.reset(seed=0)
    policy = make_policy(name, env.problem)
    begun, walked = observations[:, 2], []
    for _ in range(11):
        observations = env.step(policy.predict(observations)[0])[0]
        walked.append(observations[:, 2])
    reach = 1 if moves == "one" else 4
    needed = np.ceil(np.abs(begun - layer) / reach).astype(int)
    for i, steps in enumerate(needed):
        assert [w[i] == layer for w in walked] == [k + 1 >= steps for k in range(11)]


def test_the_myopic_rule_takes_the_best_next_reward() -> None:
    env = tiny_splitting(50, horizon=1)
    observations, _ = env.reset(seed=3)
    chosen = make_policy("myopic-split", env.problem).predict(observations)[0]
    np.testing.assert_array_equal(chosen, env.action_values().argmax(axis=1))
    assert len(set(chosen.tolist())) == 3


def test_the_nearest_record_decides_where_to_walk() -> None:
    env = tiny_splitting(1)
    policy = make_policy("nearest-record", env.problem)
    expert = env.problem.expert
    assert isinstance(expert, SplittingExpert)
    row = np.array([[1.4, 0.2, 6.0, 0.6]])
    # between 1 and 2 the former is nearer, of the losses 0.15
    np.testing.assert_allclose(expert.nearest_measured(row)[0], [1.0, 0.15, 6.0, 0.6])
    best = int(expert.layer_rewards(np.array([[1.0, 0.15, 6.0, 0.6]]))[0].argmax()) + 1
    labels = {np.sign(best - layer): layer for layer in (1, best, 10)}
    for way, layer in labels.items():
        there = row.copy()
        there[0, 2] = layer
        assert policy.decide(there)[0].action == 1 + way


def test_rules_are_for_splitting_alone() -> None:
    with pytest.raises(ConfigurationError, match="given 'tiny'; allowed: layer-splitting"):
        NearestRecordPolicy(tiny_problem())
    with pytest.raises(ConfigurationError, match="Did you mean 'split-last'"):
        FixedSplitPolicy(tiny_splitting().problem, name="split-lats")


def test_rules_know_no_table_of_a_model_of_yours() -> None:
    config = LayerSplittingConfig(rewards_from="live", model="mine.gguf")
    policy = make_policy("myopic-split", build_problem(config, SplittingExpert(config)))
    with pytest.raises(
        ConfigurationError, match=r"model is 'mine.gguf', of which there is no table"
    ):
        policy.decide(np.array([[0.0, 0.0, 1.0, 0.1]]))


def test_nobody_beats_the_oracle() -> None:
    env = tiny_splitting(200)
    returns = {}
    for name in ("oracle", "nearest-record", "myopic-split", "split-first", "split-last", "random"):
        policy = make_policy(name, env.problem, env=env)
        observations, _ = env.reset(seed=5)
        total = np.zeros(200)
        for _ in range(5):
            observations, rewards, *_ = env.step(policy.predict(observations)[0])
            total += rewards
        returns[name] = total
    oracle = returns.pop("oracle")
    for total in returns.values():
        assert (oracle >= total - 1e-7).all()
        assert oracle.mean() > total.mean() + 0.01
    assert returns["nearest-record"].mean() > returns["random"].mean()


def test_the_source_of_another_table_is_the_shipped_one() -> None:
    config = LayerSplittingConfig()
    assert make_source(config) is make_source(config)
