"""Off-policy evaluation: estimates beside the truth, and what a log must hold to tell."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy.stats import binom
from tiny_env import BEST, RIGHT, WORDS, WRONG, TinyEnv, tiny_problem
from tiny_policies import SITUATIONS, new, random_log
from tiny_upstream import Fault, ScriptedUpstream
from typer.testing import CliRunner

from icl_optimizer.baselines.heuristics import ConstantPolicy, RandomPolicy
from icl_optimizer.cli import app
from icl_optimizer.decision import Decision, Situations
from icl_optimizer.environments.base import Ints, StepResult
from icl_optimizer.environments.fleet.config import dump_fleet, load_fleet
from icl_optimizer.environments.registry import make
from icl_optimizer.errors import ConfigurationError
from icl_optimizer.exploration import Trial
from icl_optimizer.off_policy import (
    DecisionRecord,
    EpsilonGreedy,
    Evaluation,
    Logged,
    PolicyValue,
    Support,
    Target,
    Value,
    chances_of,
    estimate,
    evaluate,
    read_records,
    record,
    verdicts,
    write_records,
)
from icl_optimizer.off_policy.evaluation import usable
from icl_optimizer.off_policy.reward_model import expected_rewards
from icl_optimizer.policies import make_policy
from icl_optimizer.policy import Policy, one_hot, rows_of
from icl_optimizer.router.building import fleet_problem
from icl_optimizer.router.requests import RoutedRequest
from icl_optimizer.router.router import Router
from icl_optimizer.router.settings import RouterSettings
from icl_optimizer.studies.off_policy import run_off_policy, table

PROBLEM = tiny_problem()
EPSILON = 0.5
LOGS = 60
TRUE = {"left": 4 / 3, "right": -16 / 3, "random": -2.0, "wise": 8.0}
"""Fruit, two of three things, goes left for 8 and right for -12; for stone it is the other way."""
ESTIMATORS = ("ips", "snips", "dr")


class Wise(Policy):
    """Knows where things go."""

    name = "wise"

    def decide(self, situations: Situations, *, explore: bool = False) -> list[Decision]:
        made = []
        for context, row in zip(self.contexts(situations), rows_of(situations), strict=True):
            action = int(BEST[WORDS.index(context["Thing"])])
            made.append(self.rule_decision(context, action, one_hot(action, 2), row))
        return made


def targets() -> dict[str, Policy]:
    return {
        "left": ConstantPolicy(PROBLEM, "left"),
        "right": ConstantPolicy(PROBLEM, "right"),
        "random": RandomPolicy(PROBLEM, seed=99),
        "wise": Wise(PROBLEM),
    }


def synthetic(seed: int, episodes: int = 25, length: int = 8) -> list[DecisionRecord]:
    """Return a log of a policy that goes left, or anywhere; episodes differ in their rewards."""
    rng = np.random.default_rng(seed)
    found = []
    for episode in range(episodes):
        mood = rng.normal(0, 2)
        for _ in range(length):
            row = (float(rng.integers(len(WORDS))), float(rng.uniform(0, 2)))
            explored = rng.random() < EPSILON
            action = int(rng.integers(2)) if explored else 0
            reward = RIGHT if action == BEST[int(row[0])] else WRONG
            found.append(
                DecisionRecord(
                    observation=row,
                    action=PROBLEM.labels[action],
                    propensity=EPSILON / 2 + (1 - EPSILON) * (action == 0),
                    support=EPSILON / 2,
                    reward=reward + mood + rng.normal(0, 3),
                    episode=episode,
                )
            )
    return found


@cache
def evaluations() -> tuple[Evaluation, ...]:
    return tuple(
        evaluate(synthetic(seed), PROBLEM, targets(), carries_over=False) for seed in range(LOGS)
    )


def estimates(policy: str, estimator: str) -> list[Value]:
    place = list(TRUE).index(policy)
    return [found.policies[place].values[estimator] for found in evaluations()]


# -- beside the truth -------------------------------------------------------------------------


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("policy", TRUE)
def test_intervals_hold_the_truth_as_often_as_they_say(policy: str, estimator: str) -> None:
    found = estimates(policy, estimator)
    held = sum(value.holds(TRUE[policy]) for value in found)
    assert held >= binom.ppf(0.005, LOGS, 0.95)
    # and not because they are too wide
    spread = np.std([value.mean for value in found])
    assert np.mean([value.high - value.low for value in found]) < 1.25 * 2 * 1.96 * spread


@pytest.mark.parametrize("policy", TRUE)
def test_inverse_propensity_is_unbiased(policy: str) -> None:
    means = [value.mean for value in estimates(policy, "ips")]
    assert abs(np.mean(means) - TRUE[policy]) < 3.5 * np.std(means) / np.sqrt(LOGS)


@pytest.mark.parametrize("policy", ["right", "random", "wise"])
def test_a_reward_model_takes_variance_away(policy: str) -> None:
    spread = {e: np.std([value.mean for value in estimates(policy, e)]) for e in ESTIMATORS}
    assert spread["dr"] < 0.8 * spread["ips"]


def test_wrong_propensities_are_off() -> None:
    wrong = [
        one.model_copy(update={"propensity": 0.5, "support": 0.5})
        for one in synthetic(0, episodes=60)
    ]
    found = evaluate(wrong, PROBLEM, {"right": targets()["right"]})
    assert not found.policies[0].values["ips"].holds(TRUE["right"])


def test_the_log_tells_who_is_better() -> None:
    for found in evaluations()[:10]:
        assert found.best_two is not None
        assert found.best_two[:2] == ("wise", "left")
        assert found.best_two[2].low > 0
        signs = [np.sign(one.values["gain"].mean) for one in found.policies]
        # the log itself earns what three lefts and one right do
        assert signs == [1, -1, -1, 1]


# -- by hand ----------------------------------------------------------------------------------


def by_hand() -> tuple[Logged, Target]:
    logged = Logged(
        actions=np.array([0, 1, 0, 1]),
        rewards=np.array([1.0, 4.0, 3.0, 0.0]),
        propensities=np.array([0.5, 0.25, 0.8, 0.2]),
        clusters=np.array([0, 0, 1, 1]),
        expected=np.array([[1.0, 2.0], [0.0, 3.0], [2.0, 2.0], [1.0, 1.0]]),
    )
    return logged, Target.of(logged, np.eye(2)[[0, 1, 1, 1]])


def test_estimates_by_hand() -> None:
    logged, target = by_hand()
    assert target.weights.tolist() == [2.0, 4.0, 0.0, 5.0]
    found = {name: value.mean for name, value in estimate(logged, target, np.eye(2)).items()}
    assert found["ips"] == pytest.approx((2 * 1 + 4 * 4 + 0 + 0) / 4)
    assert found["snips"] == pytest.approx(18 / 11)
    # 1 + 2 (1 - 1), 3 + 4 (4 - 3), 2, 1 + 5 (0 - 1)
    assert found["dr"] == pytest.approx((1 + 7 + 2 - 4) / 4)
    assert found["gain"] == pytest.approx(6 / 4 - 2)
    assert target.effective == pytest.approx(11**2 / (4 + 16 + 25))


def test_episodes_are_drawn_whole() -> None:
    logged, _ = by_hand()
    draws = logged.resamples()
    assert draws.shape == (2000, 2)
    assert set(draws.sum(axis=1)) == {2}
    assert draws.mean(axis=0) == pytest.approx([1, 1], abs=0.1)


def test_nothing_is_judged_by_a_model_that_saw_it() -> None:
    rng = np.random.default_rng(0)
    clusters = np.repeat(np.arange(10), 5)
    rewards = rng.normal(size=50)
    features, actions = rng.normal(size=(50, 3)), rng.integers(2, size=50)
    before = expected_rewards(features, actions, rewards, clusters, 3)
    rewards[clusters == 4] += 100
    after = expected_rewards(features, actions, rewards, clusters, 3)
    assert np.array_equal(before[clusters == 4], after[clusters == 4])
    assert not np.isclose(before[clusters != 4], after[clusters != 4]).all()
    # nobody took the third action: the mean of what else was earned
    assert before[clusters == 4, 2] == pytest.approx(before[clusters == 4, 2][0])


# -- propensities and support -----------------------------------------------------------------


def test_support_of_trials() -> None:
    assert Trial(epsilon=0.3).support([0.0, 1.0, 0.0]) == pytest.approx(0.1)
    assert Trial().support([0.0, 1.0]) == 0.0
    assert Trial((0, [0.5, 0.0, 0.5]), forced=True).support([0.0] * 3) == 0.0
    assert Trial((0, [1 / 3] * 3), forced=True).support([0.0] * 3) == pytest.approx(1 / 3)


def test_support_of_policies() -> None:
    exploring = {"schedule": "constant", "start": 0.4, "try_all_first": False}
    bandit = new("bandit")
    assert {d.support for d in bandit.decide(SITUATIONS[:1], explore=True)} == {0.5}
    bandit.learn_from(random_log(4))
    assert 0.0 in {d.support for d in bandit.decide(SITUATIONS, explore=True)}
    bandit.exploration = bandit.exploration.model_validate(exploring)  # type: ignore[attr-defined]
    assert {d.support for d in bandit.decide(SITUATIONS, explore=True)} == {0.2}
    assert {d.support for d in bandit.decide(SITUATIONS)} == {0.0}
    assert {d.support for d in new("random").decide(SITUATIONS)} == {0.5}


def test_support_of_a_network_is_its_least_chance() -> None:
    for decision in new("ppo").decide(SITUATIONS, explore=True):
        assert decision.support == pytest.approx(min(decision.propensity, 1 - decision.propensity))


def test_support_of_what_foresees() -> None:
    problem = make("slo-scheduling", 1).problem
    policy = make_policy("table", problem)
    rows = np.array([[0, 0, 0, 0, 1, 5.0]])
    assert policy.decide(rows, explore=True)[0].support == pytest.approx(1 / 4)
    assert policy.decide(rows)[0].support == 0.0


def test_epsilon_greedy_is_as_random_as_it_says() -> None:
    policy = EpsilonGreedy(ConstantPolicy(PROBLEM, "right"), 0.4, seed=3)
    made = [d for _ in range(500) for d in policy.decide(SITUATIONS)]
    said = {(d.label, round(d.propensity, 9)) for d in made}
    assert said == {("left", 0.2), ("right", 0.8)}
    assert {d.support for d in made} == {0.2}
    assert Counter(d.label for d in made)["left"] / len(made) == pytest.approx(0.2, abs=0.025)
    with pytest.raises(ConfigurationError, match="above 0"):
        EpsilonGreedy(policy, 0.0)


def test_a_policy_that_hides_its_chances_is_refused() -> None:
    class Secretive(ConstantPolicy):
        def decide(self, situations: Situations, *, explore: bool = False) -> list[Decision]:
            context = self.contexts(situations)[0]
            return [self.rule_decision(context, 0, [0.9, 0.1], propensity=0.5)]

    with pytest.raises(ConfigurationError, match=r"chance 0\.5 and calls its probability 0\.9"):
        chances_of(Secretive(PROBLEM, 0), synthetic(0)[:1], PROBLEM)


def test_round_robin_takes_turns_in_the_order_of_the_log() -> None:
    problem = make("slo-scheduling", 1).problem
    rows = [(0, 0, 0, 0, 1, 5.0)] * 6
    log = [
        DecisionRecord(observation=row, action=0, propensity=1, support=0, reward=0) for row in rows
    ]
    chances = chances_of(make_policy("round-robin", problem), log, problem)
    assert chances.argmax(axis=1).tolist() == [0, 1, 2, 3, 0, 1]


# -- what a log must hold ---------------------------------------------------------------------


def test_records_survive_the_file(tmp_path: Path) -> None:
    log = record(EpsilonGreedy(Wise(PROBLEM), 0.3), TinyEnv(), 45)
    write_records(tmp_path / "log.jsonl", log)
    assert read_records(tmp_path / "log.jsonl", PROBLEM) == log
    # whole episodes of ten
    assert Counter(one.episode for one in log) == dict.fromkeys(range(5), 10)
    for one in log:
        assert one.observation is not None
        right = one.action_index(PROBLEM) == BEST[int(one.observation[0])]
        assert (one.reward, one.feasible) == ((RIGHT, True) if right else (WRONG, False))
        assert one.propensity == pytest.approx(0.85 if right else 0.15)


def test_rewards_that_come_late_are_those_of_their_decision() -> None:
    env = make("slo-scheduling", 1)
    log = record(RandomPolicy(env.problem, seed=1), env, 90, seed=4)
    assert len(log) == 90
    again = make("slo-scheduling", 1)
    again.reset(seed=4)
    total = sum(again.step([one.action_index(env.problem)])[1][0] for one in log)
    assert sum(one.reward or 0.0 for one in log) == pytest.approx(total)
    with pytest.raises(ConfigurationError, match="num_envs is 2"):
        record(RandomPolicy(env.problem), make("slo-scheduling", 2), 10)


class CutShort(TinyEnv):
    """Ends before the last outcome of an episode is known."""

    def _advance(self, actions: Ints, decision_ids: Ints) -> StepResult:
        result = super()._advance(actions, decision_ids)
        last = self.elapsed == self.problem.horizon - 1
        return replace(result, outcomes=replace(result.outcomes, censored=last))


def test_an_outcome_that_was_cut_short_is_not_known() -> None:
    log = record(RandomPolicy(PROBLEM), CutShort(), 30)
    assert [i for i, one in enumerate(log) if one.reward is None] == [9, 19, 29]
    assert [i for i, one in enumerate(log) if one.feasible is None] == [9, 19, 29]


LINE = {"observation": [0, 1.0], "action": "left", "propensity": 0.5, "support": 0.5, "reward": 1}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"action": "up"}, "action is 'up'; allowed on 'tiny': left, right"),
        ({"action": 2}, "action is 2"),
        ({"propensity": 0}, "propensity: Input should be greater than 0"),
        ({"support": 0.9}, "support is 0.9; allowed: at most the propensity"),
        ({"reward": "NaN"}, "reward"),
        ({"observation": [1.0]}, "observation has 1 entries; allowed: 2"),
        ({"observation": None}, "neither observation nor context"),
        ({"support": ...}, "support: Field required"),
        ({"reward": ...}, "reward: Field required"),
    ],
)
def test_bad_lines_are_named(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    bad = {k: v for k, v in {**LINE, **change}.items() if v is not ...}
    path = tmp_path / "log.jsonl"
    path.write_text(f"{json.dumps(LINE)}\n{json.dumps(bad)}\n")
    with pytest.raises(ConfigurationError, match=f"line 2: .*{message}"):
        read_records(path, PROBLEM)
    with pytest.raises(ConfigurationError, match="a file that exists"):
        read_records(tmp_path / "none", PROBLEM)


def test_words_are_enough() -> None:
    log = [
        one.model_copy(
            update={
                "observation": None,
                "context": dict(PROBLEM.describe(np.array(one.observation))),
            }
        )
        for one in synthetic(5)
    ]
    found = evaluate(log, PROBLEM, {"wise": Wise(PROBLEM)})
    assert found.policies[0].values["dr"].holds(TRUE["wise"])


def test_what_cannot_tell_does_not_count() -> None:
    log = synthetic(0)
    log[0] = log[0].model_copy(update={"support": 0.0})
    log[1] = log[1].model_copy(update={"reward": None})
    used, support = usable(log)
    assert used == log[2:]
    assert support == Support(200, 1, 1, 25)
    assert support.used == 198
    # a log that names no episodes is cut into blocks
    assert usable([one.model_copy(update={"episode": None}) for one in log])[1].clusters == 10


def test_a_log_that_cannot_tell_is_refused() -> None:
    certain = [one.model_copy(update={"support": 0.0}) for one in synthetic(0)]
    with pytest.raises(ConfigurationError, match="they say nothing about other policies"):
        evaluate(certain, PROBLEM, targets())
    with pytest.raises(ConfigurationError, match="40 usable decisions in 2 episodes"):
        evaluate(synthetic(0, episodes=2, length=20), PROBLEM, targets())
    with pytest.raises(ConfigurationError, match=r"sample sizes: right \d+\.\d\); allowed"):
        evaluate(synthetic(0, episodes=6, length=3), PROBLEM, {"right": targets()["right"]})


def test_where_one_of_two_is_known_the_other_is_not_guessed() -> None:
    policies = {name: targets()[name] for name in ("left", "right")}
    found = evaluate(synthetic(0, episodes=10, length=6), PROBLEM, policies, carries_over=False)
    assert [one.known for one in found.policies] == [True, False]
    assert found.best_two is None
    assert verdicts(found)[1].startswith("The log cannot tell what right would earn")


# -- in words ---------------------------------------------------------------------------------


def said(gain: Value, *, carries_over: bool) -> str:
    values = dict.fromkeys(ESTIMATORS, gain) | {"gain": gain}
    one = PolicyValue("other", values, 50.0, 0.5, 4.0)
    return " ".join(verdicts(Evaluation(Support(9, 2, 1, 5), gain, (one,), None, carries_over)))


def test_verdicts() -> None:
    better = said(Value(1.0, 0.5, 1.5), carries_over=False)
    assert "other would earn 1 more per decision" in better
    assert "6 of 9 logged decisions count" in better
    assert "0.5 less per decision" in said(Value(-0.5, -0.9, -0.1), carries_over=False)
    assert "cannot tell other from" in said(Value(0.1, -0.5, 0.9), carries_over=False)
    assert "changes what later ones meet" not in better
    assert "changes what later ones meet" in said(Value(1.0, 0.5, 1.5), carries_over=True)


def test_which_systems_carry_over() -> None:
    assert not make("offloading", 1).carries_over
    assert make("offloading", 1, congested=True).carries_over
    assert make("slo-scheduling", 1).carries_over


# -- a router's log ---------------------------------------------------------------------------

FIELDS = {
    "deadline_s": 5.0,
    "servers": [
        {"name": "fast", "llm": "openai:m@http://fast/v1", "scores": {"math": 0.8}},
        {"name": "slow", "llm": "openai:m@http://slow/v1", "scores": {"math": 0.2}},
    ],
}


@pytest.mark.anyio
async def test_a_routers_log_is_one(tmp_path: Path) -> None:
    config, log = load_fleet(FIELDS), tmp_path / "log.jsonl"
    fine: list[Fault] = [""]
    faults: list[Fault] = [*fine * 60, "refused"]
    servers = {"fast": ScriptedUpstream(faults=faults), "slow": ScriptedUpstream()}
    policy = EpsilonGreedy(make_policy("shortest-queue", fleet_problem(config)), 1.0)
    settings = RouterSettings(decision_log=log, learn=False)
    async with Router(config, policy, settings, upstreams=servers) as router:
        for _ in range(160):
            body = {"messages": [{"role": "user", "content": "2 + 2"}]}
            routed = await router.route(RoutedRequest(body, task="math"))
            assert [chunk async for chunk in routed.chunks]
    records = read_records(log, fleet_problem(config))
    # the request that failed, and went to the only server left
    failed = next(i for i, one in enumerate(records) if one.feasible is False)
    assert (records[failed].reward, records[failed].support) == (0.0, 0.5)
    # nor does anything tell about a server that is left alone for a while
    assert {one.support for one in records[failed + 1 :]} == {0.0}
    assert {one.reward for one in records} == {0.0, 0.8, 0.2}
    (tmp_path / "fleet.yaml").write_text(dump_fleet(config))
    told = run(
        *("evaluate", str(log), "--fleet", str(tmp_path / "fleet.yaml")),
        *("--policy", "score-in-time", "--policy", "random"),
    )
    assert "score-in-time" in told
    assert "changes what later ones meet" in told


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


# -- the commands -----------------------------------------------------------------------------


def run(*words: str) -> str:
    result = CliRunner().invoke(app, list(words), env={"COLUMNS": "100"})
    if result.exception is not None:
        raise result.exception
    return " ".join(result.output.split())


def test_record_and_evaluate(tmp_path: Path) -> None:
    log, out = str(tmp_path / "log.jsonl"), tmp_path / "table"
    how = ("--interactions", "300", "--epsilon", "0.6", "--quiet")
    run("record", "always-local", "offloading", *how, "--out", log)
    ask = ("evaluate", log, "--env", "offloading", "--policy", "always-offload")
    told = run(*ask, "--policy", "random", "--out", f"{out}.json")
    assert "300 of 300 decisions tell" in told
    assert "looks best" in told or "is best" in told
    assert "changes what later ones meet" not in told
    data = json.loads((tmp_path / "table.json").read_text())
    assert [one["policy"] for one in data["policies"]] == ["always-offload", "random"]
    run(*ask, "--out", f"{out}.csv")
    rows = pd.read_csv(f"{out}.csv", keep_default_na=False)
    assert list(rows["estimator"]) == ["logged", "ips", "snips", "dr", "gain"]


def test_a_learner_is_judged_by_what_it_learned(tmp_path: Path) -> None:
    env = make("offloading", 1)
    make_policy("bandit", env.problem, env=env).learn(60).save(tmp_path / "agent.json")
    log = str(tmp_path / "log.jsonl")
    run("record", "random", "offloading", "--interactions", "300", "--quiet", "--out", log)
    ask = ("evaluate", log, "--env", "offloading", "--policy", "bandit", "--policy", "knn")
    with pytest.raises(ConfigurationError, match="'bandit' has not learned"):
        run(*ask)
    with pytest.raises(ConfigurationError, match="POLICY=PATH"):
        run(*ask, "--agent", str(tmp_path / "agent.json"))
    told = run(*ask[:-2], "--agent", f"bandit={tmp_path / 'agent.json'}")
    assert "bandit would earn" in told


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("evaluate", "x", "--policy", "random"), "exactly one"),
        (("evaluate", "x", "--policy", "random", "--env", "offloading"), "a file that exists"),
        (("evaluate", "x", "--policy", "random", "--out", "x.xml"), ".csv or .json"),
        (
            ("evaluate", "x", "--policy", "random", "--fleet", "demo", "--set", "a=1"),
            "allowed: with --env",
        ),
        (
            ("record", "random", "live", "--interactions", "9", "--out", "x"),
            "allowed: a simulated one",
        ),
    ],
)
def test_commands_refuse(words: tuple[str, ...], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        run(*words)


def test_a_policy_explores_in_one_way(tmp_path: Path) -> None:
    ask = ("record", "bandit", "offloading", "--interactions", "60", "--quiet")
    where = ("--out", str(tmp_path / "log.jsonl"))
    with pytest.raises(ConfigurationError, match="both given"):
        run(*ask, "--explore", "--epsilon", "0.1", *where)
    run(*ask, "--explore", "--learn", *where)
    log = read_records(tmp_path / "log.jsonl", make("offloading", 1).problem)
    # it tries everything first, which is no support for what it had tried already
    assert 0 < sum(one.support == 0 for one in log) < len(log)


# -- the study --------------------------------------------------------------------------------


def test_the_study(tmp_path: Path) -> None:
    path = run_off_policy(tmp_path, 2, decisions=300, episodes=30, progress_bar=False)
    values = pd.read_csv(tmp_path / "off-policy.csv")
    rows = table(values)
    assert len(rows) == 1 + 5 + 7
    assert {len(row) for row in rows} == {11}
    assert len(path.read_text().splitlines()) == 2 + 5 + 7


def test_a_learner_goes_on_learning_behind_random_decisions() -> None:
    env = make("offloading")
    policy = make_policy("bandit", env.problem)
    record(EpsilonGreedy(policy, 0.5), env, 60, learn=True)
    assert policy.log_values()["bandit/contexts"] > 0
