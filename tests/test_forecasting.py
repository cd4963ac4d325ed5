"""Policies that foresee: the rule, exploration, delayed outcomes, and the numbers behind."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_env import TinyEnv, tiny_problem
from tiny_queues import (
    LONGEST,
    QUICK,
    REWARD,
    SLOW,
    TASKS,
    TinyQueues,
    mean_reward,
    situation,
    tiny_queues_problem,
)

from icl_optimizer.baselines.forecasters import NumericForecaster, TablePolicy
from icl_optimizer.baselines.heuristics import RandomPolicy
from icl_optimizer.baselines.knn_forecaster import OWN_SCALE, KnnForecaster
from icl_optimizer.baselines.linear_forecaster import LinearForecaster
from icl_optimizer.decision import Decision, Outcome
from icl_optimizer.environments.registry import make
from icl_optimizer.errors import ConfigurationError
from icl_optimizer.exploration import NO_EXPLORATION, Exploration
from icl_optimizer.forecast import Forecast, ForecastRule
from icl_optimizer.forecasting import ForecastingPolicy, shares
from icl_optimizer.policies import make_policy
from icl_optimizer.policy import Policy
from icl_optimizer.rollout import Rollout

PROBLEM = tiny_queues_problem()
LEARNERS: list[type[ForecastingPolicy]] = [TablePolicy, KnnForecaster, LinearForecaster]
NUMERIC: list[type[NumericForecaster]] = [KnnForecaster, LinearForecaster]
NEVER = Exploration(schedule="constant", start=0.0, end=0.0, try_all_first=False)
EVERY = np.array([[q, s, t] for q in (0, 1, 3) for s in (0, 1, 3) for t in (0, 1)], np.float32)


def forecast(chance: Any, reward: Any, otherwise: Any = 0.0) -> Forecast:
    chances = np.atleast_2d(np.array(chance, dtype=np.float64))
    rewards, failing = (
        np.broadcast_to(np.array(values, dtype=np.float64), chances.shape)
        for values in (reward, otherwise)
    )
    return Forecast(chances, rewards, failing, np.full(chances.shape, np.nan))


def random_outcomes(count: int, seed: int = 0) -> list[Outcome]:
    """Return outcomes of random decisions that depend on queue, task and server."""
    rng = np.random.default_rng(seed)
    log = []
    for i in range(count):
        row = np.array([rng.integers(6), rng.integers(6), rng.integers(2)], dtype=np.float64)
        action = int(rng.integers(2))
        feasible = bool(rng.random() < 1 / (1 + row[action]))
        reward = float(REWARD[int(row[2]), action] + rng.normal()) if feasible else -1.0
        log.append(
            Outcome(i, PROBLEM.describe(row), action, reward, feasible, observation=tuple(row))
        )
    return log


# --- the rule


def test_the_value_weighs_reward_by_chance() -> None:
    told = forecast([0.25, 1.0], [4.0, 0.5], [-2.0, 9.0])
    # 0.25 * 4 + 0.75 * -2 and 1 * 0.5
    np.testing.assert_allclose(told.value, [[-0.5, 0.5]])


def test_the_best_expected_reward_is_taken() -> None:
    told = forecast([[0.6, 0.9], [0.6, 0.9]], [[1.0, 0.5], [1.0, 0.8]])
    # 0.60 against 0.45, 0.60 against 0.72
    assert ForecastRule().choose(told).tolist() == [0, 1]


@pytest.mark.parametrize(
    ("below", "dump", "expected"),
    [
        # hopeless where the best chance is below one half: to the least likely
        (0.5, None, [2, 0, 1]),
        # or where the problem says
        (0.5, 3, [3, 3, 1]),
        (0.0, None, [1, 1, 1]),
        (0.4, None, [1, 0, 1]),
        (1.0, 3, [3, 3, 3]),
    ],
)
def test_a_hopeless_request_goes_where_it_hurts_least(
    below: float, dump: int | None, expected: list[int]
) -> None:
    told = forecast([[0.3, 0.4, 0.1, 0.2], [0.1, 0.2, 0.15, 0.12], [0.3, 0.5, 0.1, 0.2]], 1.0)
    assert ForecastRule(dump_below=below).choose(told, dump).tolist() == expected


def test_shares_are_above_the_worst() -> None:
    # 1, 3 and 2 above the worst by 0, 2, 1
    np.testing.assert_allclose(shares(np.array([[1.0, 3.0, 2.0]])), [[0, 2 / 3, 1 / 3]], atol=1e-8)
    np.testing.assert_allclose(shares(np.full((2, 4), -7.0)), 0.25)


# --- learning


@pytest.mark.parametrize("learner", LEARNERS)
def test_they_learn_tiny_queues(learner: type[ForecastingPolicy]) -> None:
    policy = learner(PROBLEM, env=TinyQueues(), seed=2).learn(300)
    chance = np.mean([mean_reward(RandomPolicy(PROBLEM, seed=s), TinyQueues(8)) for s in range(2)])
    # half of the tasks are plain and worth 1 at quick; slow gets every third picky one
    assert mean_reward(policy, TinyQueues(8)) > 0.68 > 0.2 + chance


def slo_score(policy: Policy) -> float:
    return mean_reward(policy, make("slo-scheduling", 25), steps=30)


@pytest.fixture(scope="module")
def ignorant() -> dict[str, float]:
    problem = make("slo-scheduling").problem
    return {n: slo_score(make_policy(n, problem, seed=1)) for n in ("random", "round-robin")}


@pytest.mark.parametrize(
    # round robin meets three of four deadlines here; neighbours need more than 300 tasks
    ("name", "margin"),
    [("table", 1.1), ("knn-predict", 1.02), ("linear-predict", 1.08)],
)
def test_they_learn_slo_scheduling(name: str, margin: float, ignorant: dict[str, float]) -> None:
    env = make("slo-scheduling", 1)
    policies = (make_policy(name, env.problem, env=env, seed=seed) for seed in (1, 2))
    score = float(np.mean([slo_score(policy.learn(300)) for policy in policies]))
    assert score > 1.2 * ignorant["random"]
    assert score > margin * ignorant["round-robin"]


def test_exploration_goes_on() -> None:
    policy = TablePolicy(PROBLEM, env=TinyQueues(), seed=1)
    assert policy.log_values() == {"forecast/epsilon": 0.3, "forecast/situations": 0.0}
    policy.learn(200)
    assert policy.log_values()["forecast/epsilon"] == pytest.approx(0.1)
    assert policy.log_values()["forecast/situations"] == len(policy.table) > 6


@pytest.mark.parametrize("learner", LEARNERS)
def test_same_seed_same_decisions(learner: type[ForecastingPolicy]) -> None:
    def run(seed: int) -> list[tuple[int, str, float, tuple[float, ...]]]:
        policy, made = learner(PROBLEM, env=TinyQueues(2), seed=seed), []
        rollout = Rollout(policy, policy.require_env(), explore=True)
        rollout.reset(seed=5)
        for _ in range(60):
            decisions, outcomes, _ = rollout.step()
            policy.update(outcomes)
            made += [(d.action, d.made_by, d.propensity, d.probabilities) for d in decisions]
        return made

    assert run(1) == run(1)
    assert run(1) != run(2)


# --- outcomes that come late


def test_outcomes_reach_the_decision_they_belong_to() -> None:
    class Watching(TablePolicy):
        def update(self, outcomes: Any) -> None:
            finished.extend(outcomes)
            super().update(outcomes)

        def decide(self, situations: Any, *, explore: bool = False) -> list[Decision]:
            decisions = super().decide(situations, explore=explore)
            made.update({d.id: d for d in decisions})
            return decisions

    finished: list[Outcome] = []
    made: dict[int, Decision] = {}
    env = TinyQueues(2, horizon=7)
    Watching(PROBLEM, env=env, seed=3).learn(200)
    order = [o.decision_id for o in finished]
    assert len(order) == len(set(order))
    # a task at the slow server finishes after later ones at the quick server
    assert order != sorted(order)
    for outcome in finished:
        decision = made[outcome.decision_id]
        assert (outcome.context, outcome.action) == (decision.context, decision.action)
        assert outcome.observation == decision.observation
        # policy and environment count alike from 0, so the number is the same
        task, action = env.sent[outcome.decision_id]
        assert (TASKS[task], action) == (outcome.context["Task"], outcome.action)
        assert outcome.reward == (REWARD[task, action] if outcome.feasible else 0.0)
    # every seventh decision is the last of an episode; those of the slow server come after it
    late = [o for o in finished if o.decision_id // 2 % 7 == 6 and o.metrics["steps"] > 1]
    assert late
    assert len(finished) == len(made) - len(env._under_way)


def test_experience_belongs_to_the_situation_of_the_decision() -> None:
    policy = TablePolicy(PROBLEM, exploration=NEVER)
    (first,) = policy.decide([situation("empty", "empty", "picky")])
    (second,) = policy.decide([situation("one", "many", "plain")])
    for decision, reward in ((second, 2.0), (first, 5.0)):
        policy.update([Outcome(decision.id, decision.context, QUICK, reward)])
    tally = policy.table.tally(QUICK, ("picky",), ("empty",))
    assert (tally.count, tally.reward) == (1, 5.0)
    assert policy.table.tally(QUICK, ("plain",), ("one",)).reward == 2.0
    assert policy.table.tally(QUICK, ("plain",), ("empty",)).count == 0


# --- propensities


@pytest.mark.parametrize("learner", LEARNERS)
def test_propensities_sum_to_one(learner: type[ForecastingPolicy]) -> None:
    epsilon = Exploration(schedule="constant", start=0.4, try_all_first=False)
    policy = learner(PROBLEM, exploration=epsilon, seed=1).learn_from(random_outcomes(60))
    row = np.array([[0.0, 3.0, 0.0]])
    decisions = [policy.decide(row, explore=True)[0] for _ in range(600)]
    by_action = {d.action: d.propensity for d in decisions}
    # 0.6 + 0.4 / 2 for the better one, 0.4 / 2 for the other, however it came about
    assert sorted(by_action.values()) == pytest.approx([0.2, 0.8])
    assert len({(d.action, d.propensity) for d in decisions}) == 2
    rare = min(by_action, key=lambda a: by_action[a])
    # 120 expected with a standard deviation of 10
    assert abs(sum(d.action == rare for d in decisions) - 120) < 40
    assert Counter(d.made_by for d in decisions).keys() == {"rule", "explore"}
    assert all(d.propensity == 1.0 for d in policy.decide(EVERY))


def test_a_forced_trial_has_its_own_propensity() -> None:
    policy = TablePolicy(PROBLEM, seed=0)
    (first,) = policy.decide([situation("one", "one", "plain")], explore=True)
    assert (first.made_by, first.propensity, first.probabilities) == ("explore", 0.5, (0.5, 0.5))
    policy.update([Outcome(first.id, first.context, first.action, 1.0)])
    (other,) = policy.decide([situation("one", "one", "plain")], explore=True)
    assert (other.action, other.propensity) == (1 - first.action, 1.0)


# --- contexts and observations


def test_a_table_reads_words_and_numbers_alike() -> None:
    policy = TablePolicy(PROBLEM).learn_from(random_outcomes(80))
    words = policy.decide(PROBLEM.describe_all(EVERY))
    numbers = policy.decide(EVERY)
    assert [d.action for d in words] == [d.action for d in numbers]
    assert {d.observation for d in words} == {None}
    assert numbers[3].observation == tuple(EVERY[3].tolist())
    chance = policy.forecast(EVERY[:1]).chance
    np.testing.assert_array_equal(
        chance, policy.forecast([situation("empty", "empty", "plain")]).chance
    )


@pytest.mark.parametrize("learner", NUMERIC)
def test_numeric_ones_need_observations(learner: type[NumericForecaster]) -> None:
    policy = learner(PROBLEM)
    with pytest.raises(ConfigurationError, match=f"'{learner.name}'; allowed: observations"):
        policy.decide([situation("one", "one", "plain")])
    good, *_ = random_outcomes(1)
    with pytest.raises(ConfigurationError, match="without observation"):
        policy.update([good, Outcome(1, good.context, 0, 1.0)])
    # what is refused leaves nothing behind
    assert policy.table.received == 0
    with pytest.raises(ConfigurationError, match="has nan for 'slow queue'"):
        policy.decide(np.array([[0.0, np.nan, 0.0]]))


@pytest.mark.parametrize("learner", LEARNERS)
def test_what_does_not_count_is_left_out(learner: type[ForecastingPolicy]) -> None:
    policy = learner(PROBLEM)
    cut = [
        Outcome(i, o.context, o.action, 9.0, True, True, observation=o.observation)
        for i, o in enumerate(random_outcomes(20))
    ]
    before = policy.forecast(EVERY)
    policy.update(cut)
    np.testing.assert_array_equal(policy.forecast(EVERY).value, before.value)
    with pytest.raises(ConfigurationError, match="allowed: quick queue, slow queue, Task"):
        policy.update(
            [Outcome(0, tiny_problem().context(["pear", "light"]), 0, 1.0, observation=(0,))]
        )


# --- neighbours


def test_neighbours_are_those_of_brute_force() -> None:
    policy, rng = KnnForecaster(PROBLEM, k=3), np.random.default_rng(3)
    # no two queues are alike, so that there are no ties
    log = []
    for i in range(60):
        row = np.array([*rng.uniform(0, LONGEST, 2), rng.integers(2)])
        context, feasible = PROBLEM.describe(row), bool(rng.random() < 0.5)
        reward = float(rng.normal())
        log.append(Outcome(i, context, i % 2, reward, feasible, observation=tuple(row)))
    policy.learn_from(log)
    told = policy.forecast(EVERY)

    def nearest(row: Any, action: int, known: list[Outcome]) -> list[Outcome]:
        def distance(o: Outcome) -> float:
            assert o.observation is not None
            # the queue of this server from 0 to OWN_SCALE, and the task, one-hot
            queues = OWN_SCALE * (row[action] - o.observation[action]) / LONGEST
            return float(queues**2 + 2 * (row[2] != o.observation[2]))

        return sorted(known, key=distance)[:3]

    for i, row in enumerate(EVERY):
        for action in (QUICK, SLOW):
            mine = [o for o in log if o.action == action]
            good, bad = ([o for o in mine if o.feasible == f] for f in (True, False))
            for values, expected in (
                (told.chance, [float(o.feasible) for o in nearest(row, action, mine)]),
                (told.reward, [o.reward for o in nearest(row, action, good)]),
                (told.otherwise, [o.reward for o in nearest(row, action, bad)]),
            ):
                assert values[i, action] == pytest.approx(np.mean(expected))


def test_neighbours_worked_by_hand() -> None:
    policy = KnnForecaster(PROBLEM, k=2)
    for queue, reward, feasible in ((0, 1.0, True), (1, 2.0, True), (4, -3.0, False)):
        row = (float(queue), 0.0, 0.0)
        context = PROBLEM.describe(np.array(row))
        policy.update([Outcome(0, context, QUICK, reward, feasible, observation=row)])
    told = policy.forecast(np.array([[1.0, 5.0, 0.0], [3.0, 0.0, 0.0], [0.0, 0.0, 1.0]]))
    # nearest to a queue of 1 are 1 and 0, to 3 are 4 and 1; another task is as far from all three
    np.testing.assert_allclose(told.chance[:, QUICK], [1.0, 0.5, 1.0])
    np.testing.assert_allclose(told.reward[:, QUICK], 1.5)
    np.testing.assert_allclose(told.otherwise[:, QUICK], -3.0)
    # nobody sent anything to slow
    np.testing.assert_allclose(told.chance[:, SLOW], 0.5)
    np.testing.assert_allclose(told.value[:, SLOW], 0.0)


def test_the_oldest_neighbour_is_overwritten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(KnnForecaster, "capacity", 2)
    policy = KnnForecaster(PROBLEM, k=5)
    for feasible in (True, True, False, False, True):
        row = (0.0, 0.0, 0.0)
        context = PROBLEM.describe(np.array(row))
        policy.update([Outcome(0, context, QUICK, 1.0, feasible, observation=row)])
    assert policy.forecast(np.zeros((1, 3))).chance[0, QUICK] == 0.5


# --- regression


def crossed(rows: Any, action: int) -> np.ndarray[Any, Any]:
    """Return constant, queue, task (with a slot for unknown ones), and queue times task."""
    rows = np.atleast_2d(np.array(rows, dtype=np.float64))
    queue = rows[:, action] / LONGEST
    task = np.column_stack([rows[:, 2] == 0, rows[:, 2] == 1, np.zeros(len(rows))])
    return np.column_stack([np.ones(len(rows)), queue, task, queue[:, None] * task])


def test_regression_is_the_closed_form() -> None:
    policy = LinearForecaster(PROBLEM, ridge=2.0)
    log = random_outcomes(70, seed=5)
    policy.learn_from(log)
    told = policy.forecast(EVERY)
    for action in (QUICK, SLOW):
        mine = [o for o in log if o.action == action]

        def expected(known: list[Outcome], targets: list[float], a: int = action) -> Any:
            x = crossed([o.observation for o in known], a)
            weights = np.linalg.solve(x.T @ x + 2.0 * np.eye(x.shape[1]), x.T @ np.array(targets))
            return crossed(EVERY, a) @ weights

        chance = np.clip(expected(mine, [float(o.feasible) for o in mine]), 0, 1)
        np.testing.assert_allclose(told.chance[:, action], chance, atol=1e-6)
        for feasible, rewards in ((True, told.reward), (False, told.otherwise)):
            known = [o for o in mine if o.feasible == feasible]
            values = expected(known, [o.reward for o in known])
            np.testing.assert_allclose(rewards[:, action], values, atol=1e-6)


def test_the_bonus_shrinks_with_experience() -> None:
    policy = LinearForecaster(PROBLEM, alpha=0.3, ridge=1.0)
    doubt = policy._models[QUICK]["chance"].doubt
    x = crossed([[0.0, 0.0, 0.0]], QUICK)
    # constant and task are 1: sqrt(2) with A = I; after n equal rows x' A^-1 x = 2 / (1 + 2 n)
    seen = [float(doubt(x)[0])]
    for _ in range(4):
        row = (0.0, 0.0, 0.0)
        policy.update(
            [Outcome(0, PROBLEM.describe(np.array(row)), QUICK, 1.0, False, observation=row)]
        )
        seen.append(float(doubt(x)[0]))
    np.testing.assert_allclose(seen, [np.sqrt(2 / (1 + 2 * n)) for n in range(5)])


def test_the_bonus_is_for_learning_alone() -> None:
    # both fail where they were tried, slow less often tried
    policy = LinearForecaster(
        PROBLEM, alpha=2.0, exploration=NEVER, rule=ForecastRule(dump_below=0)
    )
    row = (0.0, 0.0, 0.0)
    context = PROBLEM.describe(np.array(row))
    for action, feasible in (
        (QUICK, True),
        (QUICK, True),
        (QUICK, False),
        (SLOW, True),
        (SLOW, False),
    ):
        policy.update([Outcome(0, context, action, 1.0, feasible, observation=row)])
    here = np.zeros((1, 3))
    assert policy.decide(here)[0].action == QUICK
    value = policy.forecast(here).value
    assert policy.decide(here, explore=True)[0].made_by == "rule"
    np.testing.assert_array_equal(policy.forecast(here).value, value)
    policy._optimistic = True
    assert (policy.forecast(here).chance > 0.9).all()


# --- files and settings


@pytest.mark.parametrize("learner", LEARNERS)
def test_a_saved_policy_decides_alike(learner: type[ForecastingPolicy], tmp_path: Path) -> None:
    options: dict[str, Any] = {"rule": ForecastRule(dump_below=0.3), "seed": 7}
    policy = learner(PROBLEM, env=TinyQueues(), **options).learn(120)
    policy.save(tmp_path / "policy.json")
    again = learner(PROBLEM, env=TinyQueues()).load(tmp_path / "policy.json")
    for name in ("chance", "reward", "otherwise"):
        np.testing.assert_allclose(
            getattr(again.forecast(EVERY), name), getattr(policy.forecast(EVERY), name)
        )
    assert [d.action for d in again.decide(EVERY)] == [d.action for d in policy.decide(EVERY)]
    assert (again.seed, again.num_timesteps, again.explored) == (7, 120, 120)
    assert (again.rule, again.exploration) == (policy.rule, policy.exploration)
    again.save(tmp_path / "copy.json")
    assert json.loads((tmp_path / "copy.json").read_text())["explored"] == 120
    for each in (policy, again):
        each.learn_from(random_outcomes(30, seed=1))
    np.testing.assert_allclose(again.forecast(EVERY).value, policy.forecast(EVERY).value)
    assert again.learn(10).num_timesteps == 130


def test_own_options_are_saved(tmp_path: Path) -> None:
    KnnForecaster(PROBLEM, k=2).save(tmp_path / "knn")
    assert KnnForecaster(PROBLEM).load(tmp_path / "knn").k == 2
    LinearForecaster(PROBLEM, alpha=0.7, ridge=3.0).save(tmp_path / "linear")
    loaded = LinearForecaster(PROBLEM).load(tmp_path / "linear")
    assert loaded.alpha == 0.7
    fresh = LinearForecaster(PROBLEM, ridge=3.0).learn_from(random_outcomes(9))
    np.testing.assert_allclose(
        loaded.learn_from(random_outcomes(9)).forecast(EVERY).value, fresh.forecast(EVERY).value
    )


def test_files_of_others_are_refused(tmp_path: Path) -> None:
    TablePolicy(PROBLEM).save(tmp_path / "table")
    with pytest.raises(ConfigurationError, match="kind table; allowed: knn-predict"):
        KnnForecaster(PROBLEM).load(tmp_path / "table")
    other = make("slo-scheduling").problem
    with pytest.raises(ConfigurationError, match="problem tiny-queues; allowed: slo-scheduling"):
        TablePolicy(other).load(tmp_path / "table")
    with pytest.raises(ConfigurationError, match="cannot be read"):
        TablePolicy(PROBLEM).load(tmp_path / "missing")


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("knn-predict", {"k": 0}, "k is 0; allowed: at least 1"),
        ("knn-predict", {"alpha": 1}, "setting of 'knn-predict' 'alpha'"),
        ("linear-predict", {"alpha": -1.0}, "alpha is -1.0; allowed: at least 0"),
        ("linear-predict", {"alpha": float("nan")}, "alpha is nan"),
        ("linear-predict", {"ridge": 0.0}, "ridge is 0.0; allowed: more than 0"),
        ("table", {"explore": 1}, "'explore'.*Did you mean 'exploration'"),
    ],
)
def test_bad_settings_name_the_field(name: str, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        make_policy(name, make("slo-scheduling").problem, **settings)


@pytest.mark.parametrize("below", [-0.1, 1.5])
def test_the_rules_bound_is_a_probability(below: float) -> None:
    with pytest.raises(ValueError, match="dump_below"):
        ForecastRule(dump_below=below)


def test_they_are_for_queues() -> None:
    with pytest.raises(ConfigurationError, match="allowed: slo-scheduling, load-balancing"):
        make_policy("table", make("offloading").problem)
    # one without columns of single decisions is learned all the same
    env = TinyEnv()
    policy = TablePolicy(
        env.problem, env=env, exploration=NO_EXPLORATION.model_copy(update={"start": 0.5})
    )
    assert mean_reward(policy.learn(80), TinyEnv(), steps=30) > 6
