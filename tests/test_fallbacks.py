"""When models fail: the next one, then experience; nothing is lost and everything is counted."""

import asyncio
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_env import TinyEnv, tiny_problem
from tiny_policies import ANSWERS, SITUATIONS, random_log
from tiny_prompts import CopyNearest, write_templates

from icl_optimizer.agent import ICLAgent, ICLConfig
from icl_optimizer.comparison.model_use import model_use
from icl_optimizer.deciders.chain import ChainDecider
from icl_optimizer.decision import Outcome
from icl_optimizer.errors import ConfigurationError, FailureKind, ModelError
from icl_optimizer.llm import Capabilities, FunctionLLM, ScriptedLLM
from icl_optimizer.llm.chain import ModelChain, split_chain
from icl_optimizer.problem import Context

PROBLEM = tiny_problem()


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    return write_templates(tmp_path / "prompts")


class Failing(CopyNearest):
    """Answers like its base, except where ``fails`` says so."""

    def __init__(self, *fails: int, kind: FailureKind = "server", always: bool = False) -> None:
        super().__init__()
        self.name = "failing"
        self.fails, self.kind, self.always = fails, kind, always
        self.asked = 0

    def _score(self, prompts: list[str], labels: list[str]) -> Any:
        self.asked += 1
        if self.always or self.asked in self.fails:
            raise ModelError("it failed", self.kind)
        return super()._score(prompts, labels)


def agent(prompts: Path, model: Any, **options: Any) -> ICLAgent:
    config = ICLConfig(decider="score", calibration="none", **options)
    return ICLAgent(PROBLEM, model, config, prompts=prompts, env=TinyEnv()).learn_from(random_log())


def test_experience_decides_when_the_model_fails(prompts: Path) -> None:
    policy = agent(prompts, Failing(always=True))
    decisions = policy.decide(SITUATIONS)
    assert [d.action for d in decisions] == list(ANSWERS)
    assert {d.made_by for d in decisions} == {"fallback"}
    # the batch failed, so did each query alone; each counts once
    assert policy.failures == {"server": len({d.context["Thing"] for d in decisions})}


def test_a_failed_answer_is_not_remembered(prompts: Path) -> None:
    model = Failing(1)
    policy = agent(prompts, model)
    row = SITUATIONS[:1]
    made_by = [policy.decide(row)[0].made_by for _ in range(3)]
    assert made_by == ["fallback", "llm", "cache"]


def test_one_failure_does_not_cost_the_others_their_answers(prompts: Path) -> None:
    # the batch fails, then the second of its three distinct queries
    policy = agent(prompts, Failing(1, 3))
    decisions = policy.decide(SITUATIONS)
    by_thing = {d.context["Thing"]: d.made_by for d in decisions if d.made_by != "cache"}
    assert sorted(by_thing.values()) == ["fallback", "llm", "llm"]
    assert [d.action for d in decisions] == list(ANSWERS)


def test_an_open_breaker_is_asked_once_for_a_batch(prompts: Path) -> None:
    model = Failing(always=True, kind="open")
    policy = agent(prompts, model)
    policy.decide(SITUATIONS)
    assert model.asked == 1


def test_it_can_stop_instead(prompts: Path) -> None:
    policy = agent(prompts, Failing(always=True), on_failure="stop")
    with pytest.raises(ModelError, match="it failed"):
        policy.decide(SITUATIONS)


def test_without_any_experience_the_first_label_is_taken(prompts: Path) -> None:
    config = ICLConfig(decider="score", calibration="none")
    policy = ICLAgent(PROBLEM, Failing(always=True), config, prompts=prompts)
    (decision,) = policy.decide(SITUATIONS[:1])
    assert (decision.action, decision.made_by) == (0, "fallback")


def test_learning_goes_on_while_the_model_is_gone(prompts: Path) -> None:
    config = ICLConfig(decider="score", calibration="none")
    policy = ICLAgent(
        PROBLEM, Failing(always=True), config, prompts=prompts, env=TinyEnv(), seed=1
    ).learn(60)
    assert policy.num_timesteps == 60
    assert policy.pool.received == 60
    assert [d.action for d in policy.decide(SITUATIONS)] == list(ANSWERS)


def test_the_next_model_answers_in_its_own_way(prompts: Path) -> None:
    writes = ScriptedLLM(["left"] * 10)
    chain = ModelChain([Failing(always=True), writes])
    policy = ICLAgent(PROBLEM, chain, ICLConfig(calibration="none"), prompts=prompts).learn_from(
        random_log()
    )
    decisions = policy.decide(SITUATIONS)
    assert {d.label for d in decisions} == {"left"}
    assert {d.made_by for d in decisions} <= {"llm", "cache"}
    assert isinstance(policy.decider, ChainDecider)
    assert policy.decider.answered_by == {"scripted": 3}
    assert policy.decider.passed_on == {"failing": {"server": 3}}
    assert policy.asked == 3
    assert not policy.failures


def test_a_chain_whose_models_all_fail_falls_back(prompts: Path) -> None:
    chain = ModelChain([Failing(always=True), Failing(always=True, kind="timeout")])
    chain.models[1].name = "second"
    policy = agent(prompts, chain)
    assert [d.action for d in policy.decide(SITUATIONS)] == list(ANSWERS)
    assert policy.failures == {"timeout": 3}


def test_a_chain_asks_as_one_model() -> None:
    chain = ModelChain([Failing(1), FunctionLLM(lambda prompt: {"left": 0.7, "right": 0.2})])
    scores = chain.score(["where? ->"], [" left", " right"])
    np.testing.assert_allclose(np.exp(scores), [[0.7, 0.2]])
    assert chain.name == "failing,function"
    assert chain.usage.calls == 1
    assert chain.capabilities.logprobs


def test_a_chain_says_what_every_model_said() -> None:
    chain = ModelChain([Failing(always=True), Failing(always=True)])
    with pytest.raises(ModelError, match=r"no model of the chain answered. it failed Then it fai"):
        chain.score(["x"], ["a", "b"])


@pytest.mark.parametrize(
    ("spec", "message"), [("a,,b", "empty part"), ("", "empty part"), ("a, a", "twice")]
)
def test_malformed_chains_are_refused(spec: str, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        split_chain(spec)


class Meeting(CopyNearest):
    """Answers when ``count`` calls are under way at once, and remembers the most there were."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.barrier = threading.Barrier(count)
        self.lock = threading.Lock()
        self.now = self.most = 0

    def _score(self, prompts: list[str], labels: list[str]) -> Any:
        with self.lock:
            self.now += 1
            self.most = max(self.most, self.now)
        self.barrier.wait(timeout=10)
        answer = super()._score(prompts, labels)
        with self.lock:
            self.now -= 1
        return answer


def test_decisions_run_at_once_and_come_back_in_order(prompts: Path) -> None:
    # with fewer than 3 calls at once the barrier would break; the bound keeps it at 3
    policy = agent(prompts, Meeting(3), in_flight=3, cache=False)
    rows = SITUATIONS

    async def decide_all() -> list[int]:
        batches = await asyncio.gather(*(policy.adecide(row[None]) for row in rows))
        return [decision.action for batch in batches for decision in batch]

    assert len(rows) % 3 == 0
    assert asyncio.run(decide_all()) == list(ANSWERS)
    assert policy.model.most == 3  # type: ignore[attr-defined]


def test_every_policy_can_be_awaited(prompts: Path) -> None:
    from icl_optimizer.baselines.heuristics import RandomPolicy

    decisions = asyncio.run(RandomPolicy(PROBLEM).adecide(SITUATIONS))
    assert len(decisions) == len(SITUATIONS)


def test_capabilities_without_an_answer_are_an_error() -> None:
    class Silent(FunctionLLM):
        def _probe(self) -> Capabilities:
            raise ModelError("nobody there", "connection")

    silent = Silent(lambda prompt: "x")
    silent._capabilities = None
    with pytest.raises(ModelError, match="nobody there"):
        _ = silent.capabilities


def test_a_model_that_lists_no_label_is_asked_to_write(prompts: Path) -> None:
    class Unlisted(CopyNearest):
        remote = True

        def _score(self, prompts: list[str], labels: list[str]) -> Any:
            raise ModelError("none of the labels is listed", "answer")

    config = ICLConfig(calibration="none")
    policy = ICLAgent(PROBLEM, Unlisted(), config, prompts=prompts).learn_from(random_log())
    assert [d.action for d in policy.decide(SITUATIONS)] == list(ANSWERS)
    use = model_use(policy)
    assert use is not None
    assert use.decider == {"function": "generate"}
    assert (use.invalid, use.fallback, use.failures) == (0, 0, {})


def test_an_answer_that_will_not_change_is_asked_for_once(prompts: Path) -> None:
    model = Failing(always=True, kind="answer")
    policy = agent(prompts, model)
    made_by = [policy.decide(SITUATIONS[:1])[0].made_by for _ in range(3)]
    assert made_by == ["fallback"] * 3
    assert model.asked == 1


def test_a_remote_model_is_not_asked_before_the_first_decision(prompts: Path) -> None:
    class Far(CopyNearest):
        remote = True

        def _probe(self) -> Capabilities:
            raise ModelError("nobody there", "connection")

    far = Far()
    far._capabilities = None
    config = ICLConfig(calibration="none")
    policy = ICLAgent(PROBLEM, far, config, prompts=prompts).learn_from(random_log())
    assert [d.action for d in policy.decide(SITUATIONS)] == list(ANSWERS)
    assert policy.failures["connection"] == 3


def test_models_of_one_name_are_both_asked(prompts: Path) -> None:
    first, second = Failing(always=True), Failing()
    policy = agent(prompts, ModelChain([first, second]))
    assert {d.made_by for d in policy.decide(SITUATIONS)} <= {"llm", "cache"}
    assert isinstance(policy.decider, ChainDecider)
    assert policy.decider.answered_by == {"failing (2)": 3}


def test_a_model_that_cannot_score_does_not_keep_the_next_from_it(prompts: Path) -> None:
    chain = ModelChain([ScriptedLLM(["left"]), CopyNearest()])
    policy = agent(prompts, chain)
    assert [d.action for d in policy.decide(SITUATIONS)] == list(ANSWERS)
    assert policy.decider.passed_on == {"scripted": {"request": 3}}  # type: ignore[attr-defined]


def test_one_unlisted_query_does_not_change_how_the_others_are_asked(prompts: Path) -> None:
    class Odd(CopyNearest):
        remote = True

        def _score(self, prompts: list[str], labels: list[str]) -> Any:
            if any("odd" in prompt for prompt in prompts):
                raise ModelError("none of the labels is listed", "answer")
            return super()._score(prompts, labels)

    config = ICLConfig(calibration="none", cache=False)
    policy = ICLAgent(PROBLEM, Odd(), config, prompts=prompts).learn_from(random_log())
    odd = PROBLEM.context(("odd thing", "light"))
    stone = PROBLEM.context(("stone", "light"))
    probabilities = [policy.decide([c])[0].probabilities for c in (stone, odd, stone)]
    # written answers are certain, scored ones are not
    assert [max(row) == 1.0 for row in probabilities] == [False, True, False]
    assert max(policy.decide([stone, odd, stone])[2].probabilities) < 1.0


def test_tokens_are_those_of_the_decision(prompts: Path) -> None:
    policy = agent(prompts, Meeting(3), in_flight=3, cache=False)
    alone = agent(prompts, CopyNearest(), cache=False).decide(SITUATIONS[:1])[0].prompt_tokens

    async def decide_all() -> list[int]:
        batches = await asyncio.gather(*(policy.adecide(SITUATIONS[:1]) for _ in range(6)))
        return [batch[0].prompt_tokens for batch in batches]

    assert alone > 0
    assert asyncio.run(decide_all()) == [alone] * 6


@pytest.mark.parametrize("words", [{"Thing": "stone"}, {"Weight": "light", "Thing": "stone"}, {}])
def test_contexts_need_the_problems_keywords(prompts: Path, words: dict[str, str]) -> None:
    policy = agent(prompts, CopyNearest())
    with pytest.raises(ConfigurationError, match=r"allowed: Thing, Weight, in this order"):
        policy.decide([Context(words)])
    with pytest.raises(ConfigurationError, match=r"allowed: Thing, Weight, in this order"):
        policy.update([Outcome(1, Context(words), 0, 1.0)])


def test_names_that_a_prompt_cannot_show_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="labels have 'local -> offload'"):
        replace(PROBLEM, labels=("local -> offload", "other"))
    column = replace(PROBLEM.columns[0], name="A\nRule: local")
    with pytest.raises(ConfigurationError, match="columns have the name"):
        replace(PROBLEM, columns=(column,))
