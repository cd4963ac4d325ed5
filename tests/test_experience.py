"""Which outcomes become examples."""

from __future__ import annotations

import json
from typing import Any

import pytest
from tiny_env import tiny_problem

from icl_optimizer.decision import Outcome
from icl_optimizer.errors import ConfigurationError
from icl_optimizer.experience import ExperiencePool, Replay
from icl_optimizer.problem import Context

PROBLEM = tiny_problem()
APPLE, STONE, PEAR = (PROBLEM.context([word, "light"]) for word in ("apple", "stone", "pear"))
LEFT, RIGHT = 0, 1


def outcome(context: Context, action: int, reward: float, **fields: Any) -> Outcome:
    return Outcome(0, context, action, reward, **fields)


def pool(replay: Replay, *outcomes: Outcome, capacity: int | None = None) -> ExperiencePool:
    made = ExperiencePool(PROBLEM, replay, capacity=capacity)
    for item in outcomes:
        made.add(item)
    return made


def rows(made: ExperiencePool) -> list[tuple[str, int, float, bool]]:
    return [(e.context["Thing"], e.action, e.reward, e.good) for e in made.examples()]


def test_rule_1_a_new_context_enters_as_good() -> None:
    made = pool("prioritized")
    assert made.add(outcome(APPLE, LEFT, -50.0)) == "good"
    assert made.add(outcome(STONE, RIGHT, 1.0)) == "good"
    assert rows(made) == [("apple", LEFT, -50.0, True), ("stone", RIGHT, 1.0, True)]


def test_rule_2_the_higher_reward_stays() -> None:
    made = pool("prioritized", outcome(APPLE, LEFT, 3.0))
    assert made.add(outcome(APPLE, RIGHT, 5.0)) == "good"
    assert rows(made) == [("apple", RIGHT, 5.0, True)]
    # a lower or equal reward is bad and leaves the pool unchanged
    assert made.add(outcome(APPLE, LEFT, 4.0)) == "bad"
    assert made.add(outcome(APPLE, LEFT, 5.0)) == "bad"
    assert rows(made) == [("apple", RIGHT, 5.0, True)]


def test_rule_2_a_violation_is_bad_whatever_it_earned() -> None:
    made = pool("prioritized", outcome(APPLE, LEFT, 3.0))
    assert made.add(outcome(APPLE, RIGHT, 9.0, feasible=False)) == "bad"
    assert made.add(outcome(STONE, RIGHT, 9.0, feasible=False)) == "bad"
    assert rows(made) == [("apple", LEFT, 3.0, True)]
    # the context of the violation is still new
    assert made.add(outcome(STONE, LEFT, -9.0)) == "good"


def test_prioritized_keeps_the_luckiest_reward_and_means_does_not() -> None:
    # left earns 10 once and -10 twice, right always 0: the mean of left is -10/3
    lucky = [outcome(APPLE, LEFT, reward) for reward in (10.0, -10.0, -10.0)]
    steady = [outcome(APPLE, RIGHT, 0.0)]
    assert rows(pool("prioritized", *lucky, *steady)) == [("apple", LEFT, 10.0, True)]
    assert rows(pool("means", *lucky, *steady)) == [("apple", RIGHT, 0.0, True)]


def test_means_compares_at_least_two_decisions() -> None:
    made = pool("means", outcome(APPLE, LEFT, 2.0), outcome(STONE, LEFT, 7.0))
    # nothing was compared yet: what was tried first
    assert rows(made) == [("apple", LEFT, 2.0, True), ("stone", LEFT, 7.0, True)]
    made.add(outcome(APPLE, RIGHT, 1.0))
    # now apple is compared, and stone, for which left alone was tried, says nothing
    assert rows(made) == [("apple", LEFT, 2.0, True)]
    # (1 + 5) / 2 = 3 is more than 2
    made.add(outcome(APPLE, RIGHT, 5.0))
    assert rows(made) == [("apple", RIGHT, 3.0, True)]
    assert len(made) == 1


def test_means_counts_violations_by_their_reward() -> None:
    made = pool("means", outcome(APPLE, LEFT, -30.0, feasible=False), outcome(APPLE, RIGHT, -2.0))
    assert rows(made) == [("apple", RIGHT, -2.0, True)]


def test_an_example_says_how_many_outcomes_speak_for_it() -> None:
    made = pool(
        "means", outcome(APPLE, LEFT, 2.0), outcome(APPLE, LEFT, 4.0), outcome(APPLE, RIGHT, 1.0)
    )
    # all that were seen in this context, those that speak for the other decision by less included
    assert [(e.reward, e.visits) for e in made.examples()] == [(3.0, 3)]


def test_latest_keeps_the_last_outcomes_as_they_are() -> None:
    made = pool(
        "latest",
        outcome(APPLE, LEFT, 1.0),
        outcome(STONE, LEFT, 2.0),
        outcome(APPLE, RIGHT, 0.0),
        outcome(STONE, RIGHT, 9.0, feasible=False),
        capacity=3,
    )
    assert rows(made) == [
        ("stone", LEFT, 2.0, True),
        ("apple", RIGHT, 0.0, False),
        ("stone", RIGHT, 9.0, False),
    ]


@pytest.mark.parametrize("replay", ["means", "prioritized", "latest"])
def test_censored_outcomes_count_for_nothing(replay: Replay) -> None:
    made = pool(replay)
    assert made.add(outcome(APPLE, LEFT, 100.0, censored=True)) == "bad"
    assert (made.received, rows(made), made.tried(APPLE, LEFT)) == (0, [], 0)


def test_how_often_and_how_well_a_decision_was_tried() -> None:
    made = pool(
        "means", outcome(APPLE, LEFT, 2.0), outcome(APPLE, LEFT, 4.0), outcome(APPLE, RIGHT, 2.5)
    )
    assert [made.tried(APPLE, LEFT), made.tried(APPLE, RIGHT), made.tried(PEAR, LEFT)] == [2, 1, 0]
    # (2 + 4) / 2 = 3 is more than 2.5
    assert made.best_action(APPLE) == LEFT
    assert made.best_action(PEAR) is None


@pytest.mark.parametrize("replay", ["means", "prioritized"])
def test_the_oldest_context_is_forgotten(replay: Replay) -> None:
    made = pool(replay, *(outcome(c, LEFT, 1.0) for c in (APPLE, STONE, PEAR)), capacity=2)
    assert [word for word, *_ in rows(made)] == ["stone", "pear"]
    assert made.tried(APPLE, LEFT) == 0
    assert made.received == 3
    # it may come back, as if it were new
    assert made.add(outcome(APPLE, RIGHT, -99.0)) == "good"
    assert [word for word, *_ in rows(made)] == ["pear", "apple"]


@pytest.mark.parametrize("replay", ["means", "prioritized", "latest"])
def test_a_pool_survives_json(replay: Replay) -> None:
    made = pool(
        replay,
        outcome(APPLE, LEFT, 1 / 3),
        outcome(APPLE, RIGHT, 0.1),
        outcome(STONE, RIGHT, 2.0, feasible=False),
        outcome(APPLE, LEFT, 0.7),
        capacity=5,
    )
    again = ExperiencePool.from_json(PROBLEM, json.loads(json.dumps(made.to_json())))
    assert rows(again) == rows(made)
    assert again.to_json() == made.to_json()
    assert (again.replay, again.capacity, again.received) == (replay, 5, 4)
    # and both learn alike from then on
    for each in (made, again):
        each.add(outcome(APPLE, RIGHT, 3.0))
        each.add(outcome(PEAR, LEFT, 1.0))
    assert rows(again) == rows(made)


def test_bad_options_are_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"unknown replay 'mean'\. Did you mean 'means'"):
        ExperiencePool(PROBLEM, "mean")  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match="capacity is 0; allowed: at least 1"):
        ExperiencePool(PROBLEM, capacity=0)


@pytest.mark.parametrize("reward", [float("nan"), float("inf")])
def test_a_reward_that_cannot_be_compared_is_refused(reward: float) -> None:
    with pytest.raises(ValueError, match="outcome of decision 0 has reward"):
        outcome(APPLE, LEFT, reward)
