"""The in-context agent: it learns, repeats itself with a seed, caches, saves, and shortens."""

from __future__ import annotations

import json
import sys
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray
from tiny_env import BEST, RIGHT, WRONG, TinyEnv, every_situation, tiny_problem
from tiny_policies import ANSWERS, SITUATIONS, answers, random_log
from tiny_prompts import CopyNearest, examples_of, query_of, write_templates

from icl_optimizer.agent import ICLAgent, ICLConfig
from icl_optimizer.comparison.evaluation import Held
from icl_optimizer.decision import Outcome
from icl_optimizer.environments.registry import make
from icl_optimizer.errors import (
    ConfigurationError,
    MissingDependencyError,
    PromptShortenedWarning,
)
from icl_optimizer.exploration import NO_EXPLORATION, Exploration
from icl_optimizer.llm.errors import PromptTooLongError
from icl_optimizer.llm.loading import load_llm
from icl_optimizer.llm.scripted import FunctionLLM, ScriptedLLM
from icl_optimizer.logs import log_to, read_outcomes, write_outcomes
from icl_optimizer.problem import Category, Problem, Quantity
from icl_optimizer.selection import relevant_keywords

PROBLEM = tiny_problem()
SCORE = {"decider": "score", "calibration": "none"}


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    return write_templates(tmp_path / "prompts")


def agent(
    prompts: Path,
    model: FunctionLLM | None = None,
    *,
    env: TinyEnv | None = None,
    seed: int = 0,
    problem: Problem = PROBLEM,
    **options: Any,
) -> ICLAgent:
    config = ICLConfig(**(SCORE | options))
    model = model or CopyNearest()
    return ICLAgent(problem, model, config, env=env, seed=seed, prompts=prompts)


def taught(prompts: Path, **options: Any) -> ICLAgent:
    made = agent(prompts, **options)
    return made.learn_from(random_log())


@pytest.mark.parametrize("options", [{}, {"decider": "auto", "calibration": "pool"}])
def test_it_learns(options: dict[str, Any], prompts: Path) -> None:
    learner = agent(prompts, env=TinyEnv(), **options)
    before = np.mean(np.array(answers(learner)) == ANSWERS)
    learner.learn(60)
    assert learner.num_timesteps == 60
    paid = np.where(np.array(answers(learner)) == ANSWERS, RIGHT, WRONG).mean()
    # random choice earns (8 - 12) / 2 = -2 on average, the oracle 8
    assert (paid + 2) / 10 > 0.95
    assert before < 1


def test_the_weight_leaves_the_prompt(prompts: Path) -> None:
    learner = taught(prompts)
    text = learner.prompt(np.array([1.0, 0.2]))
    assert query_of(text) == ("stone",)
    assert sorted(set(examples_of(text))) == [
        (("apple",), "left"),
        (("pear",), "left"),
        (("stone",), "right"),
    ]
    everything = taught(prompts, select_keywords=False).prompt(np.array([1.0, 0.2]))
    assert query_of(everything) == ("stone", "light")
    assert len(set(examples_of(everything))) == 6


EACH = list(range(1, 51))
BY_A_TENTH = [*range(1, 12), 13, 15, 17, 19, 21, 24, 27, 30, 33, 37, 41, 46]


@pytest.mark.parametrize(("count", "looks"), [(4, EACH), (5, BY_A_TENTH)])
def test_many_keywords_are_chosen_anew_as_outcomes_grow_by_a_tenth(
    count: int, looks: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    columns = tuple(Category(f"k{i}", ("no", "yes"), 2) for i in range(count))
    problem = Problem("tiny", ("left", "right"), columns, 5)
    learner = agent(write_templates(tmp_path / "more"), problem=problem)
    chosen: list[int] = []

    def counted(examples: Any, actions: int) -> Any:
        chosen.append(learner.pool.received)
        return relevant_keywords(examples, actions)

    monkeypatch.setattr("icl_optimizer.agent.relevant_keywords", counted)
    rng = np.random.default_rng(0)
    for i in range(50):
        bits = rng.integers(2, size=count)
        context = problem.describe(bits.astype(float))
        learner.update([Outcome(i, context, i % 2, float(bits[0] == i % 2))])
        learner.prompt(context)
    assert chosen == looks
    assert query_of(learner.prompt(context)) == (context["k0"],)


def test_same_seed_same_decisions(prompts: Path) -> None:
    def run(seed: int) -> list[tuple[int, str, float]]:
        made: list[tuple[int, str, float]] = []
        learner = agent(prompts, env=TinyEnv(2), seed=seed)
        decide = learner.decide

        def watched(situations: Any, *, explore: bool = False) -> Any:
            decisions = decide(situations, explore=explore)
            made.extend((d.action, d.made_by, d.propensity) for d in decisions)
            return decisions

        learner.decide = watched  # type: ignore[method-assign]
        learner.learn(40)
        return made

    assert run(1) == run(1)
    assert run(1) != run(2)


def test_the_first_decisions_try_everything(prompts: Path) -> None:
    model = CopyNearest()
    learner = agent(prompts, model, env=TinyEnv(), exploration=Exploration(start=0.0, end=0.0))
    learner.learn(100)
    tried = Counter(len(actions) for actions in learner.pool.tallies.values())
    # six contexts with two decisions each; what was to be tried was not asked about
    assert tried == {2: 6}
    assert learner.made_by["explore"] == 12
    assert learner.made_by["llm"] + learner.made_by["cache"] == 88


def test_a_question_is_asked_once(prompts: Path) -> None:
    model = CopyNearest()
    learner = taught(prompts, model=model)
    apple = PROBLEM.context(["apple", "light"])
    (first,) = learner.decide([apple])
    calls = model.usage.calls
    (again,) = learner.decide([apple])
    assert model.usage.calls == calls
    assert (first.made_by, again.made_by) == ("llm", "cache")
    assert (again.action, again.probabilities) == (first.action, first.probabilities)
    assert first.prompt_tokens > 0
    assert again.prompt_tokens == 0
    assert again.id == first.id + 1
    # the weight is not in the prompt, so this is the same question
    assert learner.decide([PROBLEM.context(["apple", "heavy"])])[0].made_by == "cache"
    assert model.usage.calls == calls
    # a pear is another one, and new experience makes new prompts
    assert learner.decide([PROBLEM.context(["pear", "light"])])[0].made_by == "llm"
    learner.update([Outcome(0, PROBLEM.context(["stone", "light"]), 0, 99999.0)])
    assert learner.decide([apple])[0].made_by == "llm"


def test_a_batch_asks_equal_questions_once(prompts: Path) -> None:
    model = CopyNearest()
    learner = taught(prompts, model=model)
    decisions = learner.decide(np.repeat(SITUATIONS, 3, axis=0))
    # three things, since the weight is left out
    assert model.usage.calls == 3
    assert Counter(d.made_by for d in decisions) == {"llm": 3, "cache": 15}
    assert [d.action for d in decisions] == np.repeat(ANSWERS, 3).tolist()


def test_the_cache_can_be_switched_off(prompts: Path) -> None:
    model = CopyNearest()
    learner = taught(prompts, model=model, cache=False)
    apple = [PROBLEM.context(["apple", "light"])]
    assert [learner.decide(apple)[0].made_by for _ in range(3)] == ["llm"] * 3
    assert model.usage.calls == 3


def test_decisions_say_how_they_were_made(prompts: Path) -> None:
    learner = taught(prompts)
    (decision,) = learner.decide(np.array([[1.0, 0.25]]))
    assert (decision.action, decision.label, decision.made_by) == (1, "right", "llm")
    assert decision.probabilities == pytest.approx((0.1, 0.9))
    assert decision.propensity == 1.0
    assert decision.observation == (1.0, 0.25)
    assert decision.context.words == ("stone", "light")
    assert learner.decide([decision.context])[0].observation is None


def test_propensities_are_the_frequencies(prompts: Path) -> None:
    learner = taught(prompts, exploration=Exploration(schedule="constant", start=0.4))
    stone = [PROBLEM.context(["stone", "light"])]
    decisions = [learner.decide(stone, explore=True)[0] for _ in range(3000)]
    # 0.6 + 0.4 / 2 for what the model says and 0.2 for the other, however it came about
    assert {(d.action, round(d.propensity, 9)) for d in decisions} == {(1, 0.8), (0, 0.2)}
    taken = sum(d.action == 0 for d in decisions)
    # 600 expected with a standard deviation of 22
    assert abs(taken - 600) < 88
    explored = sum(d.made_by == "explore" for d in decisions)
    # 1,200 expected with a standard deviation of 27
    assert abs(explored - 1200) < 108


def test_a_forced_trial_has_its_own_propensity(prompts: Path) -> None:
    learner = agent(prompts)
    context = PROBLEM.context(["apple", "light"])
    (decision,) = learner.decide([context], explore=True)
    assert (decision.made_by, decision.propensity) == ("explore", 0.5)
    learner.update([Outcome(0, context, decision.action, 1.0)])
    (other,) = learner.decide([context], explore=True)
    assert (other.action, other.propensity) == (1 - decision.action, 1.0)


def test_it_learns_from_a_log_without_an_environment(tmp_path: Path, prompts: Path) -> None:
    write_outcomes(tmp_path / "log.jsonl", PROBLEM, random_log())
    learner = agent(prompts).learn_from(read_outcomes(tmp_path / "log.jsonl", PROBLEM))
    assert answers(learner) == ANSWERS.tolist()
    assert learner.env is None
    with pytest.raises(ConfigurationError, match="'icl' has no environment"):
        learner.learn(10)


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ('{"context": {"Thing": "apple"}, "decision": "left", "reward": 1}', "Weight"),
        ('{"context": {"Thing": "a", "Weight": "b"}, "decision": "up", "reward": 1}', "up|tuple"),
        ("not json", "JSON"),
        ("3", "TypeError"),
    ],
)
def test_a_bad_line_of_a_log_is_named(line: str, problem: str, tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    write_outcomes(log, PROBLEM, random_log(1))
    log.write_text(log.read_text() + "\n" + line)
    with pytest.raises(ConfigurationError, match=rf"log\.jsonl, line 3: .*({problem})"):
        read_outcomes(log, PROBLEM)


def test_words_never_seen_are_decided_too(prompts: Path) -> None:
    (decision,) = taught(prompts).decide([PROBLEM.context(["a grey stone", "light"])])
    assert decision.label in PROBLEM.labels


def test_it_decides_before_any_experience(prompts: Path) -> None:
    decisions = agent(prompts).decide(every_situation())
    assert {d.made_by for d in decisions} == {"llm"}
    assert all(d.probabilities == pytest.approx((0.5, 0.5)) for d in decisions)


def test_a_saved_agent_decides_alike(tmp_path: Path, prompts: Path) -> None:
    learner = agent(prompts, env=TinyEnv(), seed=3).learn(50)
    learner.save(tmp_path / "agent.json")
    again = agent(prompts, env=TinyEnv()).load(tmp_path / "agent.json")
    for situation in SITUATIONS:
        assert again.prompt(situation) == learner.prompt(situation)
        (one,), (other,) = learner.decide(situation[None]), again.decide(situation[None])
        assert (one.action, one.probabilities) == (other.action, other.probabilities)
    assert (again.seed, again.num_timesteps) == (3, 50)
    assert again.log_values()["icl/epsilon"] == learner.log_values()["icl/epsilon"] < 0.3
    again.save(tmp_path / "copy.json")
    assert (tmp_path / "copy.json").read_text() == (tmp_path / "agent.json").read_text()
    again.learn(10)
    assert again.num_timesteps == 60


def test_a_saved_agent_brings_its_options(tmp_path: Path, prompts: Path) -> None:
    learner = taught(prompts, layout="blocks", max_examples=2, passes=1, orders=2)
    learner.save(tmp_path / "agent.json")
    present = taught(prompts)
    present.decide(SITUATIONS)
    again = present.load(tmp_path / "agent.json")
    assert again.config == learner.config
    prompt = again.prompt(SITUATIONS[0])
    assert prompt == learner.prompt(SITUATIONS[0])
    assert prompt.count("Decision:") == 3
    # answers to the prompts of other options do not count
    assert again.decide(SITUATIONS[:1])[0].made_by == "llm"


def test_the_file_is_plain_json_without_secrets(tmp_path: Path, prompts: Path) -> None:
    taught(prompts).save(tmp_path / "agent.json")
    data = json.loads((tmp_path / "agent.json").read_text())
    assert (data["format"], data["format_version"]) == ("icl-optimizer agent", 1)
    assert (data["labels"], data["keywords"]) == (["left", "right"], ["Thing", "Weight"])
    assert data["model"] == "function"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format_version": 2}, "has format version 2; allowed: 1. Train it again"),
        ({"format_version": None}, "has format version None; allowed: 1"),
        ({"format": "other"}, "is not a saved agent of this library"),
        ({"labels": ["up", "down"]}, r"has labels \['up', 'down'\]; allowed: \['left', 'right'\]"),
        ({"keywords": ["Thing"]}, r"has keywords \['Thing'\]"),
        ({"problem": "other"}, "has problem other; allowed: tiny"),
    ],
)
def test_other_files_are_refused(
    change: dict[str, Any], message: str, tmp_path: Path, prompts: Path
) -> None:
    path = tmp_path / "agent.json"
    taught(prompts).save(path)
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ConfigurationError, match=message):
        agent(prompts).load(path)


@pytest.mark.parametrize("text", [None, "not json", "[1]", "{}", "\udcff"])
def test_files_that_are_no_agent_are_refused(
    text: str | None, tmp_path: Path, prompts: Path
) -> None:
    if text is not None:
        (tmp_path / "x.json").write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(ConfigurationError, match=r"x\.json' (cannot be read|is not a saved agent)"):
        agent(prompts).load(tmp_path / "x.json")


class ShortMemory(CopyNearest):
    """Has room for so many words."""

    def __init__(self, limit: int) -> None:
        super().__init__()
        self.limit = limit

    def _score(self, prompts: list[str], labels: list[str]) -> NDArray[np.float64]:
        for prompt in prompts:
            if self.count_tokens(prompt) > self.limit:
                raise PromptTooLongError(self.count_tokens(prompt), self.limit)
        return super()._score(prompts, labels)


MANY = Problem(
    "tiny",
    ("left", "right"),
    (
        Category("Thing", tuple(f"w{i}" for i in range(16)), 16),
        Quantity("Weight", "kg", 0.0, 2.0, (1.0,), ("light", "heavy")),
    ),
    10,
)


def test_a_prompt_that_is_too_long_loses_examples_and_warns_once(prompts: Path) -> None:
    # ten words of description, four per example of two keywords, three for the query: there is
    # room for seven of sixteen examples, and 16, 8, 4 are tried
    model = ShortMemory(10 + 7 * 4 + 3)
    learner = agent(prompts, model, problem=MANY, passes=1, select_keywords=False)
    contexts = [MANY.context([f"w{i}", "light" if i % 3 else "heavy"]) for i in range(16)]
    learner.learn_from([Outcome(i, c, i % 2, 1.0) for i, c in enumerate(contexts)])
    with pytest.warns(PromptShortenedWarning, match="the model's context holds 41") as caught:
        (decision,) = learner.decide([contexts[5]])
    assert len(caught) == 1
    shown = examples_of(model.prompts[-1])
    assert len(shown) == 4
    # the nearest example is among them, and it is the one that is copied
    assert (("w5", "light"), "right") in shown
    assert decision.label == "right"
    # the others go on without another warning
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        decisions = learner.decide(contexts)
    assert [d.action for d in decisions] == [i % 2 for i in range(16)]


def test_a_prompt_that_is_too_long_without_examples_is_an_error(prompts: Path) -> None:
    learner = agent(prompts, ShortMemory(5))
    with (
        pytest.warns(PromptShortenedWarning),
        pytest.raises(PromptTooLongError, match="context holds 5"),
    ):
        learner.decide(SITUATIONS[:1])


def test_the_most_examples_are_the_nearest(prompts: Path) -> None:
    learner = agent(prompts, problem=MANY, passes=1, select_keywords=False, max_examples=3)
    contexts = [MANY.context([f"w{i}", "light"]) for i in range(16)]
    learner.learn_from([Outcome(i, c, i % 2, 1.0) for i, c in enumerate(contexts)])
    assert [d.action for d in learner.decide(contexts)] == [i % 2 for i in range(16)]
    assert len(examples_of(learner.prompt(contexts[0]))) == 3


def test_latest_shows_what_came_last(prompts: Path) -> None:
    learner = agent(prompts, replay="latest", capacity=3, passes=1)
    for i, word in enumerate(["apple", "stone", "pear", "stone"]):
        learner.update([Outcome(i, PROBLEM.context([word, "light"]), i % 2, 1.0)])
    assert examples_of(learner.prompt(np.array([0.0, 1.5]))) == [
        (("stone", "light"), "right"),
        (("pear", "light"), "left"),
        (("stone", "light"), "right"),
    ]


def test_an_observation_that_is_not_finite_is_refused(prompts: Path) -> None:
    with pytest.raises(ConfigurationError, match="nan for 'Weight'"):
        agent(prompts).decide(np.array([[0.0, np.nan]]))
    with pytest.raises(ConfigurationError, match="observation has 3 entries"):
        agent(prompts).decide(np.zeros((1, 3)))


def test_models_without_log_probabilities_write(prompts: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"no log-probabilities.*decider='generate'"):
        ICLAgent(PROBLEM, ScriptedLLM([]), ICLConfig(decider="score"), prompts=prompts)
    model = ScriptedLLM(["right", "well", "left"])
    learner = ICLAgent(PROBLEM, model, ICLConfig(constrain="retry"), prompts=prompts)
    decisions = [learner.decide(s[None])[0] for s in SITUATIONS[[0, 2]]]
    assert [(d.label, d.made_by) for d in decisions] == [("right", "llm"), ("left", "llm")]
    assert learner.decider.counts.invalid == 1


def test_what_it_logs(prompts: Path) -> None:
    learner = agent(prompts, env=TinyEnv()).learn(30)
    values = learner.log_values()
    # 0.3 falls to 0.02 over 60 decisions: halfway after 30
    assert values["icl/epsilon"] == pytest.approx(0.16)
    assert values["icl/pool_size"] == len(learner.pool) > 0
    assert values["icl/llm_calls"] == learner.model.usage.calls > 0


def test_learning_is_logged_as_stable_baselines_does(tmp_path: Path, prompts: Path) -> None:
    learner = agent(prompts, env=TinyEnv())
    log_to(learner, tmp_path / "log")
    learner.learn(12)
    learner.logger.close()
    table = pd.read_csv(tmp_path / "log" / "progress.csv")
    assert len(table) == 12
    assert set(table["rollout/reward"]) <= {RIGHT, WRONG}
    # 0.3 falls by 0.28 / 60 with every decision
    assert table["icl/epsilon"].iloc[11] == pytest.approx(0.3 - 12 * 0.28 / 60)
    assert list((tmp_path / "log").glob("events.out.tfevents.*"))


def test_logging_says_what_it_needs(
    tmp_path: Path, prompts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "stable_baselines3.common.logger", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'icl-optimizer\[rl\]'"):
        log_to(agent(prompts), tmp_path)


def test_greedy_never_explores(prompts: Path) -> None:
    learner = agent(prompts, env=TinyEnv(), exploration=NO_EXPLORATION).learn(30)
    assert learner.made_by["explore"] == 0
    # it never looks left of what it does first: one decision at most in every context
    assert {len(actions) for actions in learner.pool.tallies.values()} == {1}


def test_the_scripted_model_is_not_simply_right(prompts: Path) -> None:
    # with examples that mislead, the agent is as wrong as they are
    learner = agent(prompts)
    contexts = PROBLEM.describe_all(SITUATIONS)
    learner.learn_from([Outcome(i, c, 1 - BEST[i // 2], 1.0) for i, c in enumerate(contexts)])
    assert answers(learner) == (1 - ANSWERS).tolist()


@pytest.mark.llm
@pytest.mark.parametrize(("inverted", "seed"), [(False, 0), (True, 0)])
def test_the_embedded_model_learns_to_offload(inverted: bool, seed: int) -> None:
    # inverted, the names of the decisions mislead, so nothing but experience helps
    env = make("offloading", 1, inverted=inverted)
    held = Held("offloading", {"inverted": inverted}, seed, 100)
    with load_llm("llamacpp") as model:
        learner = ICLAgent(env.problem, model, env=env, seed=seed)
        untaught = held.evaluate(learner)["optimality"]
        learner.learn(40)
        taught = held.evaluate(learner)
        assert taught["optimality"] >= 0.9
        assert taught["optimality"] > untaught
        assert model.usage.calls > 0
    assert learner.made_by["fallback"] == 0
