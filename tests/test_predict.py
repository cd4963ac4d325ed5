"""Summaries of outcomes, and decisions by predicting them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_env import RIGHT, WRONG, TinyEnv, tiny_problem
from tiny_policies import ANSWERS, SITUATIONS, answers, random_log
from tiny_prompts import write_templates

from icl_optimizer.agent import ICLAgent, ICLConfig
from icl_optimizer.deciders import PredictDecider
from icl_optimizer.decision import Outcome
from icl_optimizer.errors import ConfigurationError
from icl_optimizer.experience import Tally
from icl_optimizer.llm import LlamaCpp, ScriptedLLM
from icl_optimizer.llm.scripted import FunctionLLM
from icl_optimizer.policies import make_policy
from icl_optimizer.problem import Context, Problem
from icl_optimizer.prompting import PromptBuilder
from icl_optimizer.summaries import Summary, level_values, natural_breaks, summaries

PROBLEM = tiny_problem()
LEFT, RIGHTWARDS = 0, 1
THING = ("Thing",)


def thing(word: str, weight: str = "light") -> Context:
    return PROBLEM.context([word, weight])


def single(word: str) -> Context:
    return Context({"Thing": word})


TALLIES = {
    thing("apple"): {LEFT: Tally(3, 8.0), RIGHTWARDS: Tally(1, -12.0)},
    thing("apple", "heavy"): {LEFT: Tally(1, 4.0)},
    thing("stone"): {LEFT: Tally(2, -11.0), RIGHTWARDS: Tally(2, 7.0)},
    thing("pear"): {LEFT: Tally(5, 8.0)},
}


@pytest.fixture
def builder(tmp_path: Path) -> PromptBuilder:
    return PromptBuilder(PROBLEM, folder=write_templates(tmp_path))


def cells(summary: Summary) -> list[tuple[int, float, float, str]]:
    return [(c.action, c.count, c.mean, c.level) for c in summary.cells]


def test_tallies_that_read_the_same_are_merged() -> None:
    apple, stone = summaries(TALLIES, THING)
    assert (apple.context, apple.action, apple.visits) == (single("apple"), LEFT, 5)
    # three at 8 and one at 4
    assert cells(apple) == [(LEFT, 4, 7.0, "good"), (RIGHTWARDS, 1, -12.0, "poor")]
    assert (stone.context, stone.action, stone.reward) == (single("stone"), RIGHTWARDS, 7.0)
    assert [c.advantage for c in stone.cells] == [-9.0, 9.0]


def test_what_was_not_compared_waits_until_nothing_else_is_there() -> None:
    alone = {thing("pear"): TALLIES[thing("pear")]}
    assert [s.context["Thing"] for s in summaries(TALLIES, THING)] == ["apple", "stone"]
    (pear,) = summaries(alone, THING)
    assert cells(pear) == [(LEFT, 5, 8.0, "fair")]


def test_the_bonus_is_that_of_ucb1() -> None:
    _, stone = summaries(TALLIES, THING)
    # the means are 7, -12, -11 and 7; each decision was tried 2 times of 4
    spread = np.std([7.0, -12.0, -11.0, 7.0])
    assert stone.cells[0].bonus == pytest.approx(spread * np.sqrt(2 * np.log(4) / 2))


def test_levels_are_told_apart_by_their_words() -> None:
    three = {
        single(w): {0: Tally(1, m), 1: Tally(1, -m)} for w, m in [("a", 10.0), ("b", 9.0), ("c", 1)]
    }
    levels = [[c.level for c in s.cells] for s in summaries(three, THING, levels=3)]
    # advantages 10, 9, 1, -1, -9, -10
    assert levels == [["good", "poor"], ["good", "poor"], ["fair", "fair"]]
    assert level_values(summaries(three, THING, levels=3)) == {
        "poor": 0.0,
        "fair": 0.5,
        "good": 1.0,
    }
    assert level_values(summaries(three, THING)) == {"poor": 0.0, "good": 1.0}


def test_natural_breaks_by_hand() -> None:
    assert natural_breaks(np.array([1.0, 2.0, 9.0, 10.0, 10.0]), 2) == [5.5]
    assert natural_breaks(np.array([1.0, 2.0, 9.0, 10.0, 30.0]), 3) == [5.5, 20.0]
    assert natural_breaks(np.array([4.0, 4.0]), 3) == []
    assert natural_breaks(np.array([]), 2) == []


@settings(deadline=None, max_examples=50)
@given(st.lists(st.integers(-50, 50), min_size=1, max_size=9), st.integers(2, 3))
def test_no_other_thresholds_leave_less_spread(numbers: list[int], groups: int) -> None:
    values = np.array(sorted(numbers), dtype=float)
    points = np.unique(values)
    candidates = (points[:-1] + points[1:]) / 2

    def spread(edges: Any) -> float:
        groups_of = np.searchsorted(edges, values, side="right")
        return sum(values[groups_of == g].var() * (groups_of == g).sum() for g in set(groups_of))

    edges = natural_breaks(values, groups)
    assert len(edges) == min(groups, len(points)) - 1
    if len(edges) == 1:
        others = [[c] for c in candidates]
    else:
        others = [[a, b] for a in candidates for b in candidates if a < b]
    assert all(spread(edges) <= spread(other) + 1e-6 for other in others if len(edges))


ROWS = {
    "left": "left: apple -> good; stone -> poor",
    "right": "right: apple -> poor; stone -> good",
}


def row_and_cut(prompt: str) -> tuple[str, str]:
    """Return the decision's whole row and the row cut before the cell in question."""
    _, row, cut = prompt.splitlines()
    return row, cut


def fortune(prompt: str) -> dict[str, float]:
    """Read the word of the cell in question from the whole row; else say that all is well."""
    row, cut = row_and_cut(prompt)
    word = re.search(r"([\w ]+) ->$", cut)[1].strip()  # type: ignore[index]
    found = re.search(rf"{word} -> (\w+)", row)
    good = 0.9 if found is None or found[1] == "good" else 0.2
    return {"good": good, "poor": 1 - good}


def test_the_row_is_repeated_and_cut_before_the_cell(builder: PromptBuilder) -> None:
    model = FunctionLLM(fortune)
    decider = PredictDecider(model, builder)
    pool = summaries(TALLIES, THING)
    (answer,) = decider.answer([pool], [single("stone")])
    assert model.prompts == [
        f"Outcome of left by thing.\n{ROWS['left']}\nleft: apple -> good; stone ->",
        f"Outcome of right by thing.\n{ROWS['right']}\nright: apple -> poor; stone ->",
    ]
    # left is good with 0.2, right with 0.9
    assert answer.probabilities == pytest.approx((2 / 11, 9 / 11), abs=1e-4)
    assert decider.prompt(pool, single("stone")) == "\n\n".join(model.prompts)


def test_a_new_word_is_asked_about_at_the_end(builder: PromptBuilder) -> None:
    model = FunctionLLM(fortune)
    decider = PredictDecider(model, builder)
    decider.answer([summaries(TALLIES, THING)], [single("grape")])
    assert [row_and_cut(p)[1] for p in model.prompts] == [
        f"{ROWS['left']}; grape ->",
        f"{ROWS['right']}; grape ->",
    ]


def test_expected_values_weigh_the_levels(builder: PromptBuilder) -> None:
    tallies = {
        single(w): {0: Tally(1, m), 1: Tally(1, -m)} for w, m in [("a", 10.0), ("b", 9.0), ("c", 1)]
    }
    shares = {"left": (0.1, 0.2, 0.7), "right": (0.3, 0.6, 0.1)}

    def answer(prompt: str) -> dict[str, float]:
        decision = prompt.split()[2]
        return dict(zip(("poor", "fair", "good"), shares[decision], strict=True))

    decider = PredictDecider(FunctionLLM(answer), builder)
    values = decider.values(summaries(tallies, THING, levels=3), [single("d")])
    # poor is worth 0, fair 0.5 and good 1
    assert values == pytest.approx(np.array([[0.8, 0.4]]))


def test_without_different_outcomes_every_decision_is_as_good(builder: PromptBuilder) -> None:
    model = FunctionLLM(fortune)
    decider = PredictDecider(model, builder)
    for pool in ([], summaries({thing("pear"): {LEFT: Tally(2, 8.0)}}, THING)):
        (answer,) = decider.answer([pool], [single("apple")])
        assert answer.probabilities == pytest.approx((0.5, 0.5))
    assert model.prompts == []


def test_three_decisions_are_predicted_one_by_one(tmp_path: Path) -> None:
    labels = ("left", "right", "keep")
    problem = Problem("tiny", labels, PROBLEM.columns, 10)
    builder = PromptBuilder(problem, folder=write_templates(tmp_path, goal="left, right, keep"))
    best = {"apple": 0, "stone": 1, "pear": 2}
    tallies = {
        single(w): {a: Tally(1, 5.0 if a == best[w] else -5.0) for a in range(3)} for w in best
    }
    decider = PredictDecider(FunctionLLM(fortune), builder)
    found = decider.answer([summaries(tallies, THING)], [single(w) for w in best])
    assert [int(np.argmax(a.probabilities)) for a in found] == [0, 1, 2]


def agent(tmp_path: Path, model: Any, env: TinyEnv | None = None, **options: Any) -> ICLAgent:
    prompts = write_templates(tmp_path / "prompts")
    return ICLAgent(PROBLEM, model, ICLConfig(**options), env=env, prompts=prompts)


def test_an_agent_learns_by_predicting(tmp_path: Path) -> None:
    learner = agent(tmp_path, FunctionLLM(fortune), TinyEnv(), decider="predict").learn(60)
    assert answers(learner) == ANSWERS.tolist()
    assert all(row_and_cut(p)[0].startswith(("left: ", "right: ")) for p in learner.model.prompts)  # type: ignore[attr-defined]


def test_auto_may_predict_where_every_word_is_known(tmp_path: Path) -> None:
    asked: list[str] = []

    class Listening(FunctionLLM):
        def _likelihood(self, prompts: list[str], texts: list[str]) -> list[float]:
            asked.extend(texts)
            return [-1.0 if "decision left" in prompt else -2.0 for prompt in prompts]

    model = Listening(fortune, likelihoods=True)
    learner = agent(tmp_path, model, known="predict", calibration="none").learn_from(random_log())
    assert answers(learner) == ANSWERS.tolist()
    assert (len(model.prompts), asked) == (6, [])
    # the channel answers new words
    (decision,) = learner.decide([thing("grape")])
    assert (decision.label, asked) == ("left", [" grape"] * 2)
    assert len(model.prompts) == 6


def test_more_of_the_same_experience_is_answered_from_the_cache(tmp_path: Path) -> None:
    learner = agent(tmp_path, FunctionLLM(fortune), decider="predict").learn_from(random_log())
    learner.decide(SITUATIONS)
    learner.update([Outcome(0, thing("apple"), LEFT, RIGHT)])
    assert {d.made_by for d in learner.decide(SITUATIONS)} == {"cache"}
    # an outcome that makes another decision the best one does count
    learner.update([Outcome(0, thing("apple"), LEFT, -100_000.0)])
    assert "llm" in {d.made_by for d in learner.decide(SITUATIONS)}


@pytest.mark.parametrize(
    "options", [{"decider": "predict"}, {"known": "predict"}, {"layout": "guided"}]
)
def test_summaries_need_means(options: dict[str, str], tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"replay is 'latest'.*allowed: 'means'"):
        agent(tmp_path, FunctionLLM(fortune), replay="latest", **options)


def test_predicting_needs_log_probabilities(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="no log-probabilities for decider='predict'"):
        agent(tmp_path, ScriptedLLM([]), decider="predict")


@pytest.fixture(scope="module")
def model() -> Iterator[LlamaCpp]:
    with LlamaCpp(context_size=1024) as model:
        yield model


@pytest.mark.llm
@pytest.mark.parametrize("name", ["icl-predict", "icl-guided"])
def test_the_embedded_model_learns(name: str, model: LlamaCpp, tmp_path: Path) -> None:
    prompts = write_templates(tmp_path)
    policy = make_policy(name, PROBLEM, model=model, seed=0, prompts=prompts)
    policy.learn_from(random_log(40))
    paid = np.where(np.array(answers(policy)) == ANSWERS, RIGHT, WRONG).mean()
    # random choice earns (8 - 12) / 2 = -2 on average, the oracle 8
    assert (paid + 2) / 10 > 0.9
