"""What came of decisions, summed up: chances and rewards by groups, and how they fall back."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_queues import QUICK, SLOW, TASKS, situation, tiny_queues_problem

from icl_optimizer.decision import Outcome
from icl_optimizer.environments.registry import make
from icl_optimizer.outcomes import OutcomeTable
from icl_optimizer.problem import Context

PROBLEM = tiny_queues_problem()
QUEUES = ("empty", "one", "many")
PLAIN, PICKY = ("plain",), ("picky",)
EMPTY, ONE, MANY = ("empty",), ("one",), ("many",)
Seen = tuple[int, str, str, str, float, bool]


def outcome(
    action: int, quick: str, slow: str, task: str, reward: float, feasible: bool, **fields: Any
) -> Outcome:
    return Outcome(0, situation(quick, slow, task), action, reward, feasible, **fields)


def table(*outcomes: Outcome) -> OutcomeTable:
    made = OutcomeTable(PROBLEM)
    for one in outcomes:
        made.add(one)
    return made


def test_nothing_is_known_at_first() -> None:
    empty = table()
    assert empty.chance(QUICK, PLAIN, EMPTY) == 0.5
    assert empty.rewards(QUICK, PLAIN) == (0.0, 0.0)
    assert (len(empty), empty.received, list(empty.cells())) == (0, 0, [])
    assert empty.row(QUICK, PLAIN) == []
    forecast = empty.forecast([situation("empty", "one", "plain")])
    np.testing.assert_array_equal(forecast.chance, [[0.5, 0.5]])
    assert np.isnan(forecast.seconds).all()


def test_chances_fall_back_from_fine_to_coarse() -> None:
    once = table(outcome(QUICK, "empty", "many", "plain", 1.0, True))
    # all (1 + 0.5) / 2 = 0.75; quick (1 + 0.75) / 2; empty (1 + 0.875) / 2; quick and empty
    # (1 + 0.9375) / 2; with plain (1 + 0.96875) / 2
    assert once.chance(QUICK, PLAIN, EMPTY) == pytest.approx(0.984375)
    # another task: as before, without the last
    assert once.chance(QUICK, PICKY, EMPTY) == pytest.approx(0.96875)
    # another queue of the same server; the same queue of another server; neither
    assert once.chance(QUICK, PLAIN, MANY) == pytest.approx(0.875)
    assert once.chance(SLOW, PLAIN, EMPTY) == pytest.approx(0.875)
    assert once.chance(SLOW, PLAIN, MANY) == pytest.approx(0.75)


def test_many_outcomes_outweigh_what_is_coarser() -> None:
    late = [outcome(SLOW, "empty", "many", "plain", 0.0, False)] * 9
    in_time = [outcome(QUICK, "empty", "many", "plain", 1.0, True)] * 9
    seen = table(*late, *in_time)
    # all 9.5 / 19 = 0.5; slow, many, slow and many: each estimate a tenth of the one before
    assert seen.chance(SLOW, PLAIN, MANY) == pytest.approx(0.5 / 10**4)
    assert seen.chance(QUICK, PLAIN, EMPTY) == pytest.approx(1 - 0.5 / 10**4)


def test_rewards_do_not_depend_on_the_queue() -> None:
    seen = table(
        outcome(QUICK, "empty", "many", "plain", 1.0, True),
        outcome(SLOW, "empty", "one", "plain", 0.5, True),
        outcome(SLOW, "empty", "many", "plain", -2.0, False),
    )
    # successes: all 0.75; slow (0.5 + 0.75) / 2 = 0.625; slow and plain (0.5 + 0.625) / 2; failures
    # have no other mean to be drawn to
    assert seen.rewards(SLOW, PLAIN) == pytest.approx((0.5625, -2.0))
    assert seen.rewards(SLOW, PICKY) == pytest.approx((0.625, -2.0))
    # quick never failed: as all did
    assert seen.rewards(QUICK, PLAIN) == pytest.approx((0.9375, -2.0))
    forecast = seen.forecast([situation("empty", "one", "plain")])
    np.testing.assert_allclose(forecast.reward, [[0.9375, 0.5625]])
    np.testing.assert_allclose(forecast.otherwise, -2.0)
    assert forecast.chance[0, SLOW] == seen.chance(SLOW, PLAIN, ONE)


def test_censored_outcomes_count_for_nothing() -> None:
    seen = table(outcome(QUICK, "empty", "one", "plain", 1.0, True, censored=True))
    assert (seen.received, len(seen)) == (0, 0)
    assert seen.chance(QUICK, PLAIN, EMPTY) == 0.5


def test_only_own_words_tell_of_a_decision() -> None:
    seen = table(outcome(QUICK, "one", "many", "plain", 1.0, True))
    assert seen.tried(situation("one", "empty", "plain"), QUICK) == 1
    assert seen.tried(situation("one", "many", "plain"), SLOW) == 0
    assert seen.tried(situation("empty", "many", "plain"), QUICK) == 0
    assert seen.tried(situation("one", "many", "picky"), QUICK) == 0
    # a row shows every queue that was seen of any server, in the queue's order
    seen.add(outcome(SLOW, "many", "empty", "plain", 1.0, True))
    assert [own for own, _ in seen.row(SLOW, PICKY)] == [EMPTY, ONE]
    assert dict(seen.row(QUICK, PLAIN))[ONE] == seen.chance(QUICK, PLAIN, ONE)


seen_lists = st.lists(
    st.tuples(
        st.integers(0, 1),
        st.sampled_from(QUEUES),
        st.sampled_from(QUEUES),
        st.sampled_from(TASKS),
        st.floats(-5, 5),
        st.booleans(),
    ),
    max_size=30,
)


@settings(deadline=None, max_examples=30)
@given(seen_lists)
def test_chances_are_those_of_the_definition(seen: list[Seen]) -> None:
    made = table(*(outcome(*one) for one in seen))

    def share(estimate: float, *tests: Any) -> float:
        group = [one for one in seen if all(test(one) for test in tests)]
        return (sum(one[5] for one in group) + estimate) / (len(group) + 1)

    for action in (QUICK, SLOW):
        for own in QUEUES:
            for task in TASKS:
                same = {
                    "server": lambda one, a=action: one[0] == a,
                    "level": lambda one, o=own: one[1 + one[0]] == o,
                    "task": lambda one, t=task: one[3] == t,
                }
                estimate = share(0.5)
                estimate = share(estimate, same["server"])
                estimate = share(estimate, same["level"])
                estimate = share(estimate, same["server"], same["level"])
                estimate = share(estimate, *same.values())
                assert made.chance(action, (task,), (own,)) == pytest.approx(estimate)
                assert 0 < estimate < 1


@settings(deadline=None, max_examples=15)
@given(seen_lists)
def test_a_table_survives_json(seen: list[Seen]) -> None:
    made = table(*(outcome(*one) for one in seen))
    again = OutcomeTable.from_json(PROBLEM, json.loads(json.dumps(made.to_json())))
    assert (again.received, len(again), list(again.cells())) == (
        made.received,
        len(made),
        list(made.cells()),
    )
    situations = [situation(q, s, t) for q in QUEUES for s in QUEUES for t in TASKS]
    for name in ("chance", "reward", "otherwise"):
        np.testing.assert_allclose(
            getattr(again.forecast(situations), name), getattr(made.forecast(situations), name)
        )
    again.add(outcome(QUICK, "one", "one", "picky", 1.0, True))
    assert again.received == made.received + 1


def test_words_nobody_knows_have_the_coarse_estimate() -> None:
    seen = table(outcome(QUICK, "one", "many", "plain", 1.0, True))
    strange = situation("a dozen", "one", "dancing")
    forecast = seen.forecast([strange])
    # all 0.75; quick 0.875; slow has seen nothing, but one in the queue went well elsewhere
    np.testing.assert_allclose(forecast.chance, [[0.875, 0.875]])
    assert seen.tried(strange, QUICK) == 0


def test_cells_are_as_many_as_situations_of_a_decision() -> None:
    rng = np.random.default_rng(0)
    made = OutcomeTable(PROBLEM)
    situations = [situation(q, s, t) for q in QUEUES for s in QUEUES for t in TASKS]
    for n, i in enumerate(rng.integers(len(situations), size=3000)):
        made.add(Outcome(n, situations[i], n % 2, 1.0, bool(i % 3)))
    # two servers, three queues, two tasks
    assert len(made) == len(list(made.cells())) == 12
    assert made.received == 3000
    assert len(made.row(QUICK, PLAIN)) == 3


def test_a_decision_without_columns_of_its_own() -> None:
    problem = make("slo-scheduling", dump_action=True).problem
    made = OutcomeTable(problem)
    context: Context = problem.describe(np.array([0.0, 1, 2, 3, 2, 10.0]))
    dump = problem.labels.index("dump")
    made.add(Outcome(0, context, dump, 0.0, False))
    assert made.tried(context, dump) == 1
    assert made.row(dump, ("math",)) == [((), made.chance(dump, ("math",), ()))]
    # all (0 + 0.5) / 2, halved for dump, for what has no words, for both, and with the task
    assert made.chance(dump, ("math",), ()) == pytest.approx(0.25 / 16)
