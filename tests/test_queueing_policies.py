"""Classic rules for servers with queues: turns, ties, roles, and what an expert knows."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from tiny_env import tiny_problem
from tiny_queues import TinyQueues, mean_reward, situation, tiny_queues_problem

from icl_optimizer.baselines.queueing import (
    ExpertPolicy,
    LeastConnectionsPolicy,
    LeastLoadedPolicy,
    RoundRobinPolicy,
    RulePolicy,
    ShortestQueuePolicy,
)
from icl_optimizer.environments.registry import make
from icl_optimizer.errors import ConfigurationError
from icl_optimizer.forecast import Forecast, ForecastRule
from icl_optimizer.policies import make_policy
from icl_optimizer.policy import Policy
from icl_optimizer.problem import Problem, Quantity

PROBLEM = tiny_queues_problem()
ROLES = ("Waiting", "Active", "Load")


def three_servers(*roles: str, dump: bool = False) -> Problem:
    """Return a problem with these roles for each of three servers, server after server."""
    labels = ("a", "b", "c", "dump") if dump else ("a", "b", "c")
    columns = [Quantity("Size", "tokens", 0.0, 9.0)]
    for action, name in enumerate("abc"):
        columns += [
            Quantity(f"{name} {role}", "requests", 0.0, 99.0, (1.0,), ("no", "yes"), action, role)
            for role in roles
        ]
    return Problem("three", labels, tuple(columns), 10)


def actions(policy: Policy, *rows: Any) -> list[int]:
    return [d.action for d in policy.decide(np.array(rows, dtype=np.float32))]


# --- round robin


def test_the_servers_take_turns() -> None:
    policy = RoundRobinPolicy(three_servers("Queue"))
    row = np.zeros((1, 4))
    assert [policy.decide(row)[0].action for _ in range(7)] == [0, 1, 2, 0, 1, 2, 0]
    assert policy.decide(row)[0].probabilities == (0.0, 1.0, 0.0)


def test_each_sub_environment_has_its_own_turn() -> None:
    policy = RoundRobinPolicy(PROBLEM)
    rows = np.zeros((3, 3))
    assert [actions(policy, *rows) for _ in range(3)] == [[0] * 3, [1] * 3, [0] * 3]
    # another batch size: the turns begin anew, and again when it comes back
    assert actions(policy, rows[0]) == [0]
    assert actions(policy, rows[0]) == [1]
    assert [actions(policy, *rows) for _ in range(2)] == [[0] * 3, [1] * 3]


def test_turns_need_no_observation_and_leave_the_dump_out() -> None:
    policy = RoundRobinPolicy(PROBLEM)
    first, second = policy.decide([situation("one", "one", "plain")] * 2)
    assert (first.action, second.action, first.observation) == (0, 0, None)
    assert policy.predict(np.zeros((2, 3)))[0].tolist() == [1, 1]
    dumping = RoundRobinPolicy(three_servers("Queue", dump=True))
    assert [actions(dumping, np.zeros(4))[0] for _ in range(4)] == [0, 1, 2, 0]


# --- queues


def test_the_shortest_queue_is_taken() -> None:
    policy = ShortestQueuePolicy(three_servers("Queue"))
    assert actions(policy, [0, 5, 3, 4], [0, 1, 2, 3], [0, 9, 9, 8]) == [1, 0, 2]
    decision = policy.decide(np.array([[7.0, 5, 3, 4]]))[0]
    assert decision.observation == (7.0, 5.0, 3.0, 4.0)
    assert decision.context.words == ("yes", "yes", "yes")
    assert (decision.made_by, decision.propensity) == ("rule", 1.0)


def test_roles_may_stand_in_any_order() -> None:
    problem = three_servers(*ROLES)
    # waiting, active, load of a; of b; of c
    row = [0, 2, 5, 10, 3, 1, 30, 4, 2, 5]
    assert actions(ShortestQueuePolicy(problem), row) == [0]
    # 2 + 5, 3 + 1, 4 + 2
    assert actions(LeastConnectionsPolicy(problem), row) == [1]
    assert actions(LeastLoadedPolicy(problem), row) == [2]
    turned = replace(problem, columns=problem.columns[::-1])
    for policy in (ShortestQueuePolicy, LeastConnectionsPolicy, LeastLoadedPolicy):
        assert actions(policy(turned), row[::-1]) == actions(policy(problem), row)


def test_where_queues_count_what_is_served_connections_are_queues() -> None:
    policy = LeastConnectionsPolicy(three_servers("Queue"))
    assert actions(policy, [0, 5, 3, 4]) == [1]


def test_a_dump_is_never_the_shortest_queue() -> None:
    policy = ShortestQueuePolicy(three_servers("Queue", dump=True), seed=3)
    assert set(actions(policy, *[[0, 1, 1, 1]] * 60)) == {0, 1, 2}


def test_ties_are_broken_at_random_but_by_seed() -> None:
    def run(seed: int) -> list[int]:
        return actions(
            ShortestQueuePolicy(three_servers("Queue"), seed=seed), *[[0, 2, 1, 1]] * 400
        )

    counts = Counter(run(1))
    # 200 each expected with a standard deviation of 10
    assert counts.keys() == {1, 2}
    assert abs(counts[1] - 200) < 45
    assert run(1) == run(1) != run(2)


@pytest.mark.parametrize(
    ("policy", "role"),
    [
        (ShortestQueuePolicy, "Queue"),
        (LeastConnectionsPolicy, "Queue"),
        (LeastLoadedPolicy, "Load"),
    ],
)
def test_a_problem_without_the_role_is_refused(policy: type[RulePolicy], role: str) -> None:
    with pytest.raises(ConfigurationError, match=f"'tiny' has no column '{role}'.*allowed: none"):
        policy(tiny_problem()).decide(np.zeros((1, 2)))
    with pytest.raises(ConfigurationError, match="no column 'Load' for a, b, c; allowed: Queue"):
        LeastLoadedPolicy(three_servers("Queue")).decide(np.zeros((1, 4)))


def test_rules_need_numbers() -> None:
    with pytest.raises(ConfigurationError, match="contexts were given"):
        ShortestQueuePolicy(PROBLEM).decide([situation("one", "one", "plain")])
    with pytest.raises(ConfigurationError, match="observation has 2 entries"):
        ShortestQueuePolicy(PROBLEM).decide(np.zeros((1, 2)))


def test_a_short_queue_of_a_slow_server_is_a_trap() -> None:
    # the quick server is always empty when all tasks go there, so half of the ties are lost
    assert mean_reward(ShortestQueuePolicy(PROBLEM, seed=1), TinyQueues(8)) < 0.75


# --- experts


def told(values: dict[str, Any]) -> Any:
    """Return an expert that always foresees the same of three decisions."""

    def expert(observations: NDArray[Any]) -> Forecast:
        shape = (len(observations), 3)
        named = {"otherwise": 0.0, "seconds": 1.0} | values
        arrays = (
            np.broadcast_to(np.array(named[name], dtype=np.float64), shape)
            for name in ("chance", "reward", "otherwise", "seconds")
        )
        return Forecast(*arrays)

    return expert


def by(name: str, rule: ForecastRule | None = None, **values: Any) -> int:
    problem = replace(three_servers("Queue"), expert=told(values))
    return actions(ExpertPolicy(problem, name=name, rule=rule), np.zeros(4))[0]


KNOWN = {"chance": [0.6, 0.9, 0.7], "reward": [1.0, 0.5, 0.8], "seconds": [3.0, 2.0, 1.0]}


def test_experts_go_by_what_their_name_says() -> None:
    assert by("shortest-expected-completion", **KNOWN) == 2
    assert by("score-greedy", **KNOWN) == 0
    # 0.60, 0.45, 0.56
    assert by("score-in-time", **KNOWN) == 0
    assert by("sacrifice", **KNOWN) == 1


def test_experts_give_up_the_hopeless() -> None:
    poor = KNOWN | {"chance": [0.3, 0.4, 0.1]}
    for name in ("score-in-time", "sacrifice"):
        assert by(name, **poor) == 2
        assert by(name, ForecastRule(dump_below=0), **poor) == (0 if name == "score-in-time" else 1)
    assert by("score-greedy", **poor) == 0


def test_of_the_equally_sure_the_soonest_is_taken() -> None:
    sure = KNOWN | {"chance": [1.0, 1.0, 0.2]}
    assert by("sacrifice", **sure) == 1
    assert by("sacrifice", **sure | {"seconds": [1.0, 2.0, np.inf]}) == 0


def test_full_servers_are_never_soonest() -> None:
    full = KNOWN | {"seconds": [np.inf, 9.0, np.inf]}
    assert by("shortest-expected-completion", **full) == 1
    assert by("shortest-expected-completion", **full | {"seconds": np.inf}) in (0, 1, 2)


def test_a_problem_without_expert_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="'tiny-queues', which has no expert"):
        ExpertPolicy(PROBLEM, name="sacrifice")


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("round-robin", {"k": 1}, "unknown setting of 'round-robin' 'k'"),
        ("sacrifice", {"rules": 1}, "'rules'. Did you mean 'rule'"),
    ],
)
def test_unknown_settings_are_named(name: str, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        make_policy(name, make("slo-scheduling").problem, **settings)


def test_rules_suit_their_systems() -> None:
    problem = make("slo-scheduling").problem
    with pytest.raises(ConfigurationError, match="allowed: load-balancing"):
        make_policy("least-loaded", problem)
    env = make("slo-scheduling", 20)
    scores = {
        name: mean_reward(make_policy(name, problem, seed=1), env, steps=30)
        for name in ("random", "shortest-queue", "shortest-expected-completion", "score-in-time")
    }
    assert scores["score-in-time"] > scores["shortest-expected-completion"] > scores["random"]
    assert scores["score-in-time"] > scores["shortest-queue"] > scores["random"]
