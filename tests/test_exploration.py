"""When to try a decision, and with which chance."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from pydantic import ValidationError

from icl_optimizer.decision import Outcome
from icl_optimizer.experience import ExperiencePool
from icl_optimizer.exploration import NO_EXPLORATION, NO_TRIAL, Exploration
from icl_optimizer.problem import Category, Problem

PROBLEM = Problem("p", ("a", "b", "c"), (Category("Word", ("x", "y"), 2),), 10)
X, Y = PROBLEM.context(["x"]), PROBLEM.context(["y"])


def pool_with(*actions: int) -> ExperiencePool:
    """Return a pool in which these actions were tried in context x."""
    pool = ExperiencePool(PROBLEM)
    for action in actions:
        pool.add(Outcome(0, X, action, 1.0))
    return pool


def test_linear_schedule() -> None:
    # 0.5 - 0.4 * t / 10, then it stays
    exploration = Exploration(schedule="linear", start=0.5, end=0.1, steps=10)
    values = [exploration.epsilon(t) for t in (0, 5, 10, 1000)]
    assert values == pytest.approx([0.5, 0.3, 0.1, 0.1])


def test_exponential_schedule() -> None:
    # 0.1 + 0.4 exp(-t / 10): at t = 10 0.1 + 0.4 / 2.718282 = 0.247152
    exploration = Exploration(schedule="exponential", start=0.5, end=0.1, steps=10)
    values = [exploration.epsilon(t) for t in (0, 10, 1000)]
    assert values == pytest.approx([0.5, 0.247152, 0.1], abs=1e-6)


def test_constant_schedule() -> None:
    exploration = Exploration(schedule="constant", start=0.25, end=0.0)
    assert [exploration.epsilon(t) for t in (0, 7, 1000)] == [0.25] * 3


def test_everything_is_tried_first() -> None:
    exploration, rng = Exploration(start=0.0, end=0.0), np.random.default_rng(0)
    trial = exploration.trial(pool_with(), X, 0, rng)
    assert trial.forced
    assert trial.proposed is not None
    assert trial.proposed[1] == pytest.approx([1 / 3] * 3)
    # a was tried: b or c, with equal chances
    proposals = [exploration.trial(pool_with(0), X, 0, rng).proposed for _ in range(400)]
    counts = Counter(proposed[0] for proposed in proposals if proposed is not None)
    assert set(counts) == {1, 2}
    # 200 expected; 4 standard deviations are 40
    assert abs(counts[1] - 200) < 40
    trial = exploration.trial(pool_with(0, 2), X, 0, rng)
    assert (trial.forced, trial.proposed) == (True, (1, [0.0, 1.0, 0.0]))
    # all were tried in x, none in y
    assert not exploration.trial(pool_with(0, 1, 2), X, 0, rng).forced
    assert exploration.trial(pool_with(0, 1, 2), Y, 0, rng).forced


def test_without_trying_all_first_only_epsilon_explores() -> None:
    rng = np.random.default_rng(0)
    assert NO_EXPLORATION.trial(pool_with(), X, 0, rng) == NO_TRIAL
    always = Exploration(schedule="constant", start=1.0, try_all_first=False)
    trial = always.trial(pool_with(), X, 0, rng)
    assert trial.proposed is not None
    assert not trial.forced


def test_exploring_is_as_frequent_as_epsilon_says() -> None:
    exploration, rng = Exploration(schedule="constant", start=0.3), np.random.default_rng(1)
    pool = pool_with(0, 1, 2)
    trials = [exploration.trial(pool, X, 0, rng).proposed for _ in range(4000)]
    explored = [proposed[0] for proposed in trials if proposed is not None]
    # 1,200 of 4,000 with a standard deviation of 29; each action a third of them, of 400 with 18
    assert abs(len(explored) - 1200) < 116
    assert all(abs(explored.count(action) - 400) < 75 for action in range(3))


def test_epsilon_follows_the_decisions_of_the_run() -> None:
    exploration = Exploration(schedule="linear", start=1.0, end=0.0, steps=10)
    pool, rng = pool_with(0, 1, 2), np.random.default_rng(0)
    assert exploration.trial(pool, X, 0, rng).proposed is not None
    assert exploration.trial(pool, X, 5, rng).epsilon == 0.5
    assert exploration.trial(pool, X, 10, rng).proposed is None


@pytest.mark.parametrize("tried", [(), (0,), (0, 1), (0, 1, 2)])
def test_propensities_are_the_frequencies(tried: tuple[int, ...]) -> None:
    exploration, rng = Exploration(schedule="constant", start=0.3), np.random.default_rng(2)
    pool, greedy, draws = pool_with(*tried), [0.0, 1.0, 0.0], 6000
    counts: Counter[int] = Counter()
    said: dict[int, float] = {}
    for _ in range(draws):
        trial = exploration.trial(pool, X, 0, rng)
        action = 1 if trial.proposed is None else trial.proposed[0]
        counts[action] += 1
        # however the action came about, it has one propensity
        assert trial.propensity(action, greedy) == said.setdefault(
            action, trial.propensity(action, greedy)
        )
    assert sum(said.values()) == pytest.approx(1.0)
    for action, propensity in said.items():
        deviation = (propensity * (1 - propensity) / draws) ** 0.5
        assert counts[action] / draws == pytest.approx(propensity, abs=4 * deviation + 1e-12)


def test_propensities_by_hand() -> None:
    exploration = Exploration(schedule="constant", start=0.3)
    trial = exploration.trial(pool_with(0, 1, 2), X, 0, np.random.default_rng(0))
    # 0.7 + 0.3 / 3 for what the model says, 0.3 / 3 for the others
    assert [trial.propensity(a, [0.0, 1.0, 0.0]) for a in range(3)] == pytest.approx(
        [0.1, 0.8, 0.1]
    )


@pytest.mark.parametrize(
    "fields", [{"start": 1.5}, {"end": -0.1}, {"steps": 0}, {"schedule": "cosine"}, {"begin": 1}]
)
def test_bad_values_are_refused(fields: dict[str, object]) -> None:
    with pytest.raises(ValidationError, match=next(iter(fields))):
        Exploration(**fields)  # type: ignore[arg-type]
