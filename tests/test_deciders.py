"""How labels get their probabilities, worked by hand with scripted models."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from pydantic import ValidationError
from tiny_env import tiny_problem
from tiny_prompts import examples_of, query_of, write_templates

from icl_optimizer.deciders import (
    Calibration,
    ChannelDecider,
    Decider,
    GenerateDecider,
    PermutedDecider,
    ScoreDecider,
    Style,
    namings,
)
from icl_optimizer.errors import ConfigurationError
from icl_optimizer.experience import Example
from icl_optimizer.icl_config import ICLConfig, make_decider
from icl_optimizer.llm.base import Capabilities, Message
from icl_optimizer.llm.conversation import Conversation
from icl_optimizer.llm.errors import ModelError
from icl_optimizer.llm.scripted import FunctionLLM, ScriptedLLM
from icl_optimizer.llm.wrapper import ModelWrapper
from icl_optimizer.problem import Category, Context, Problem
from icl_optimizer.prompting import PromptBuilder

PROBLEM = tiny_problem()
LEFT, RIGHT = 0, 1


def thing(word: str, weight: str = "light") -> Context:
    return PROBLEM.context([word, weight])


APPLE, STONE = Example(thing("apple"), LEFT, 8.0), Example(thing("stone"), RIGHT, 8.0)
BOTH = [APPLE, STONE]


@pytest.fixture
def builder(tmp_path: Path) -> PromptBuilder:
    return PromptBuilder(PROBLEM, folder=write_templates(tmp_path))


def odds_of(table: dict[str, float]) -> FunctionLLM:
    """Return a model that gives left : right in these odds, by the query's first word."""

    def answer(prompt: str) -> dict[str, float]:
        left = table[query_of(prompt)[0]] / (1 + table[query_of(prompt)[0]])
        # a tenth goes to words that are no label
        return {"left": 0.9 * left, "right": 0.9 * (1 - left)}

    return FunctionLLM(answer)


def left(decider: Decider, *queries: Context, examples: Sequence[Example] = BOTH) -> list[float]:
    """Return the probability of left for each query."""
    answers = decider.answer([examples], queries)
    assert all(sum(a.probabilities) == pytest.approx(1.0) for a in answers)
    return [a.probabilities[LEFT] for a in answers]


def test_the_likelier_label_wins(builder: PromptBuilder) -> None:
    model = FunctionLLM(lambda prompt: {"left": 0.2, "right": 0.5})
    (answer,) = ScoreDecider(model, builder, calibration="none").answer([BOTH], [thing("pear")])
    # over the two labels: 0.2 / 0.7 and 0.5 / 0.7
    assert answer.probabilities == pytest.approx((2 / 7, 5 / 7))
    assert answer.made_by == "llm"


def test_the_prompt_shows_the_examples_so_many_times(builder: PromptBuilder) -> None:
    model = odds_of({"pear": 1.0})
    ScoreDecider(model, builder, calibration="none", passes=3).answer([BOTH], [thing("pear")])
    shown = [(("apple", "light"), "left"), (("stone", "light"), "right")]
    assert [examples_of(prompt) for prompt in model.prompts] == [shown * 3]
    assert query_of(model.prompts[0]) == ("pear", "light")


def test_pool_calibration_takes_the_middle_of_the_classes(builder: PromptBuilder) -> None:
    # a model that prefers left throughout: 9 : 1 for apple, 4 : 1 for stone. The middle of
    # ln 9 and ln 4 is ln 6, so apple comes out at 9 / 6 = 1.5 : 1 and stone at 4 / 6 = 2 : 3
    decider = ScoreDecider(odds_of({"apple": 9.0, "stone": 4.0}), builder)
    assert left(decider, thing("apple"), thing("stone")) == pytest.approx([0.6, 0.4])


def test_pool_calibration_weighs_classes_not_examples(builder: PromptBuilder) -> None:
    # left: ln 9 and ln 1, mean ln 3; right: ln 12; the middle of those two is ln 6. Over the three
    # examples it would be ln 108 / 3 = ln 4.76
    model = odds_of({"apple": 9.0, "pear": 1.0, "stone": 12.0})
    pool = [APPLE, Example(thing("pear"), LEFT, 8.0), STONE]
    assert left(ScoreDecider(model, builder), thing("stone"), examples=pool) == pytest.approx(
        [2 / 3]
    )


def test_pool_calibration_is_measured_once(builder: PromptBuilder) -> None:
    model = odds_of({"apple": 9.0, "stone": 4.0, "pear": 1.0})
    decider = ScoreDecider(model, builder)
    left(decider, thing("apple"))
    # the query, and both examples as queries
    assert [query_of(p)[0] for p in model.prompts] == ["apple", "apple", "stone"]
    left(decider, thing("pear"))
    assert [query_of(p)[0] for p in model.prompts[3:]] == ["pear"]
    left(decider, thing("pear"), examples=BOTH[::-1])
    assert len(model.prompts) == 7


@pytest.mark.parametrize("pool", [[], [APPLE]])
@pytest.mark.parametrize("calibration", ["pool", "content-free"])
def test_content_free_calibration(
    calibration: Calibration, pool: list[Example], builder: PromptBuilder
) -> None:
    # 1.5 : 1 for the query and 4 : 1 for nothing at all make 1.5 / 4 = 3 : 8. A pool without an
    # example of every decision cannot calibrate otherwise
    model = odds_of({"pear": 1.5, "N/A": 4.0})
    decider = ScoreDecider(model, builder, calibration=calibration)
    assert left(decider, thing("pear"), examples=pool) == pytest.approx([3 / 11])
    assert query_of(model.prompts[-1]) == ("N/A", "N/A")


def test_batch_calibration_subtracts_the_mean_of_earlier_queries(builder: PromptBuilder) -> None:
    decider = ScoreDecider(odds_of({"a": 4.0, "b": 1.0, "c": 2.0}), builder, calibration="batch")
    # nothing came before: 4 : 1 and 1 : 1 as they are
    assert left(decider, thing("a"), thing("b")) == pytest.approx([0.8, 0.5])
    # the log-probabilities before were (ln 0.8, ln 0.2) and (ln 0.5, ln 0.5), odds 4 and 1 with
    # the geometric mean 2: what had 2 : 1 comes out even
    assert left(decider, thing("c")) == pytest.approx([0.5])


def test_leave_one_out_scores_what_the_prompt_does_not_show(builder: PromptBuilder) -> None:
    model = odds_of({"apple": 9.0, "pear": 1.0, "stone": 4.0})
    decider = ScoreDecider(model, builder, calibration="leave-one-out", passes=1)
    pool = [APPLE, STONE, Example(thing("pear"), LEFT, 8.0)]
    # left: ln 9 and ln 1, mean ln 3; right: ln 4; the middle is ln 12 / 2, so that stone with 4 : 1
    # comes out at 4 / sqrt(12)
    odds = 4 / math.sqrt(12)
    assert left(decider, thing("stone"), examples=pool) == pytest.approx([odds / (1 + odds)])
    whole, *calibrating = model.prompts
    assert len(examples_of(whole)) == 3
    assert [query_of(p)[0] for p in calibrating] == ["apple", "stone", "pear"]
    shown = [[words[0] for words, _ in examples_of(p)] for p in calibrating]
    assert shown == [["pear"], ["pear"], ["apple", "stone"]]


def test_similar_examples_come_last(builder: PromptBuilder) -> None:
    model = odds_of({"apple": 1.0, "stone": 1.0})
    decider = ScoreDecider(model, builder, calibration="none", order="similar", passes=2)
    left(decider, thing("apple"), thing("stone"))
    shown = [[words[0] for words, _ in examples_of(p)] for p in model.prompts]
    # the first time over in the stable order, which the model's prefix cache keeps
    assert shown == [["apple", "stone", "stone", "apple"], ["apple", "stone"] * 2]


def test_the_nearest_are_shown_again(builder: PromptBuilder) -> None:
    model = odds_of({"apple": 1.0})
    pool = [APPLE, STONE, Example(thing("pear"), LEFT, 8.0)]
    decider = ScoreDecider(model, builder, calibration="none", order="nearest-again", passes=1)
    left(decider, thing("apple"), examples=pool)
    (prompt,) = model.prompts
    # the stable order, then the nearest two, the nearest last
    assert [w[0] for w, _ in examples_of(prompt)] == ["apple", "stone", "pear", "pear", "apple"]


@pytest.mark.parametrize("style", ["completion", "chat", "turns"])
def test_styles(style: Style, builder: PromptBuilder) -> None:
    asked: list[str] = []

    class Chat(FunctionLLM):
        def _score(self, prompts: list[str], labels: list[str]) -> NDArray[np.float64]:
            asked.extend([*prompts, *labels])
            return np.log([[0.6, 0.4]])

    decider = ScoreDecider(Chat(str), builder, calibration="none", passes=1, style=style)
    assert left(decider, thing("pear")) == pytest.approx([0.6])
    prompt, *labels = asked
    text = builder.render(BOTH, thing("pear"))
    if style == "completion":
        assert (prompt, labels) == (text, [" left", " right"])
        return
    # at the start of a reply nothing precedes the label
    assert labels == ["left", "right"]
    assert isinstance(prompt, Conversation)
    roles = [m["role"] for m in prompt.messages]
    if style == "chat":
        assert (roles, prompt.messages[0]["content"]) == (["user"], text)
    else:
        assert list(prompt.messages) == builder.turns(BOTH, thing("pear"))
        assert roles == ["system", "user", "assistant", "user", "assistant", "user"]


def test_a_model_with_a_chat_template_gets_finished_text(builder: PromptBuilder) -> None:
    class Templated(FunctionLLM):
        def apply_template(self, messages: Sequence[Message]) -> str:
            return "|".join(m["content"] for m in messages) + "|reply:"

    model = Templated(lambda prompt: {"left": 0.6, "right": 0.4})
    decider = ScoreDecider(model, builder, calibration="none", passes=1, style="turns")
    left(decider, thing("pear"))
    (prompt,) = model.prompts
    assert prompt.endswith("|apple, light|left|stone, light|right|pear, light|reply:")
    # a wrapper around it changes nothing
    wrapped = ScoreDecider(ModelWrapper(model), builder, passes=1, style="turns")
    assert wrapped.prompt(BOTH, thing("pear")) == prompt


def permuted(model: FunctionLLM, builder: PromptBuilder, **options: Any) -> Decider:
    return make_decider(ICLConfig(decider="score", passes=1, **options), model, builder)


def test_exchanged_names_cancel_a_preference(builder: PromptBuilder) -> None:
    def answer(prompt: str) -> dict[str, float]:
        # copies the apple's label with 2 : 1, and prefers "left" with 8 : 1 on top of it
        copied = {w[0]: label for w, label in examples_of(prompt)}["apple"]
        odds = 8 * (2 if copied == "left" else 1 / 2)
        return {"left": odds / (1 + odds), "right": 1 / (1 + odds)}

    model = FunctionLLM(answer)
    plain = permuted(model, builder, calibration="none")
    assert left(plain, thing("apple")) == pytest.approx([16 / 17])
    assert left(plain, thing("apple"), examples=[Example(thing("apple"), RIGHT, 8.0)]) == (
        pytest.approx([0.8])
    )
    decider = permuted(model, builder, calibration="none", permute_labels="exchange")
    assert isinstance(decider, PermutedDecider)
    assert left(decider, thing("apple")) == pytest.approx([2 / 3])
    own, exchanged = model.prompts[-2:]
    assert [label for _, label in examples_of(own)] == ["left", "right"]
    assert [label for _, label in examples_of(exchanged)] == ["right", "left"]
    # the right decision is as likely when it is the right one
    assert left(decider, thing("apple"), examples=[Example(thing("apple"), RIGHT, 8.0)]) == (
        pytest.approx([1 / 3])
    )


def test_letters_take_the_place_of_names(tmp_path: Path) -> None:
    goal = "Sort things {{ labels | join(' or ') }}."
    builder = PromptBuilder(PROBLEM, folder=write_templates(tmp_path, goal=goal))
    # says A with 3 : 1 whatever it stands for
    model = FunctionLLM(lambda prompt: {"A": 0.75, "B": 0.25})
    decider = permuted(model, builder, calibration="none", permute_labels="letters")
    assert left(decider, thing("apple")) == pytest.approx([0.5])
    assert [[label for _, label in examples_of(p)] for p in model.prompts] == [
        ["A", "B"],
        ["B", "A"],
    ]
    assert model.prompts[0].startswith("Sort things A or B.")
    assert "left" not in "".join(model.prompts)


def test_every_decision_bears_every_name() -> None:
    labels = ("x", "y", "z")
    assert namings(labels, "none") == [labels]
    assert namings(labels, "exchange") == [labels, ("y", "z", "x"), ("z", "x", "y")]
    assert namings(labels, "letters") == [("A", "B", "C"), ("B", "C", "A"), ("C", "A", "B")]
    with pytest.raises(ConfigurationError, match="27 labels; allowed: at most 26"):
        namings([str(i) for i in range(27)], "letters")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"style": "turns", "decider": "channel"}, "style is 'turns' for decider 'channel'"),
        ({"order": "similar", "decider": "predict"}, "allowed: 'alternating', 'random'"),
        ({"style": "turns", "layout": "blocks"}, "layout is 'blocks' for style 'turns'"),
        ({"permute_labels": "letters", "decider": "generate"}, "allowed: 'none'"),
    ],
)
def test_options_without_effect_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        ICLConfig(**options)


def test_three_decisions_work_alike(tmp_path: Path) -> None:
    problem = Problem("tiny", ("left", "right", "keep"), PROBLEM.columns, 10)
    folder = write_templates(tmp_path, goal="left, right or keep")
    builder = PromptBuilder(problem, folder=folder)
    pool = [APPLE, STONE, Example(thing("pear"), 2, 8.0)]

    def answer(prompt: str) -> dict[str, float]:
        copied = {w[0]: label for w, label in examples_of(prompt)}[query_of(prompt)[0]]
        return {label: 0.4 if label == copied else 0.3 for label in problem.labels}

    for options in ({}, {"permute_labels": "exchange"}, {"order": "similar"}):
        config = ICLConfig(decider="score", **options)
        decider = make_decider(config, FunctionLLM(answer), builder)
        answers = decider.answer([pool], [e.context for e in pool])
        assert [int(np.argmax(a.probabilities)) for a in answers] == [0, 1, 2]


def test_no_calibration_is_what_the_model_says(builder: PromptBuilder) -> None:
    model = odds_of({"apple": 9.0, "stone": 4.0})
    decider = ScoreDecider(model, builder, calibration="none")
    assert left(decider, thing("apple"), thing("stone")) == pytest.approx([0.9, 0.8])
    assert len(model.prompts) == 2


def test_orders_are_averaged(builder: PromptBuilder) -> None:
    def answer(prompt: str) -> dict[str, float]:
        first = examples_of(prompt)[0][1]
        # 4 : 1 when the first example is left, else 1 : 1
        return {"left": 0.8, "right": 0.2} if first == "left" else {"left": 0.5, "right": 0.5}

    decider = ScoreDecider(FunctionLLM(answer), builder, calibration="none")
    (got,) = decider.answer([BOTH, BOTH[::-1]], [thing("pear")])
    # the mean of ln 4 and ln 1 is ln 2
    assert got.probabilities == pytest.approx((2 / 3, 1 / 3))


def test_an_unknown_calibration_names_the_nearest(builder: PromptBuilder) -> None:
    with pytest.raises(ConfigurationError, match="Did you mean 'batch'"):
        ScoreDecider(odds_of({}), builder, calibration="batches")  # type: ignore[arg-type]


class FirstLetters(FunctionLLM):
    """Its tokens have two letters."""

    def _first_tokens(self, prompt: str, labels: list[str]) -> list[str]:
        return [label.strip()[:2] for label in labels]


def test_labels_that_begin_alike_are_refused(tmp_path: Path) -> None:
    problem = Problem("tiny", ("left", "lend"), PROBLEM.columns, 10)
    builder = PromptBuilder(problem, folder=write_templates(tmp_path, goal="left or lend"))
    model = FirstLetters(lambda prompt: {"left": 0.5, "lend": 0.5})
    with pytest.raises(ConfigurationError, match="both start with the token 'le'"):
        ScoreDecider(model, builder)
    # the channel never scores a label
    ChannelDecider(model, builder)


class Listener(FunctionLLM):
    """Says how likely a text continues a list, and remembers the pairs that it was asked about."""

    def __init__(self, table: dict[tuple[str, str], float]) -> None:
        """Keep probabilities by label of the list and first word of the text."""
        super().__init__(lambda prompt: {"left": 0.5, "right": 0.5}, likelihoods=True)
        self.table = table
        self.asked: list[tuple[str, str]] = []

    def _likelihood(self, prompts: list[str], texts: list[str]) -> list[float]:
        self.asked += zip(prompts, texts, strict=True)
        return [
            math.log(self.table[prompt.split("decision ")[1].split(":")[0], text.split(",")[0][1:]])
            for prompt, text in zip(prompts, texts, strict=True)
        ]


LISTS = {
    ("left", "pear"): 0.2,
    ("right", "pear"): 0.05,
    ("left", "apple"): 0.4,
    ("right", "apple"): 0.1,
    ("left", "stone"): 0.09,
    ("right", "stone"): 0.01,
    ("left", "N/A"): 0.08,
    ("right", "N/A"): 0.02,
}


def test_the_channel_is_bayes_rule(builder: PromptBuilder) -> None:
    model = Listener(LISTS)
    decider = ChannelDecider(model, builder, calibration="none", passes=1)
    # 0.2 : 0.05 is 4 : 1
    assert left(decider, thing("pear")) == pytest.approx([0.8])
    (one, text), (other, same) = model.asked
    assert one.endswith("Tasks with the decision left: apple, light,")
    assert other.endswith("Tasks with the decision right: stone, light,")
    assert text == same == " pear, light"


def test_the_channel_leaves_out_what_it_calibrates_with(builder: PromptBuilder) -> None:
    model = Listener(LISTS)
    decider = ChannelDecider(model, builder, passes=1)
    pool = [APPLE, Example(thing("pear"), LEFT, 8.0), STONE]
    # a new word. Left: apple 4 : 1 and pear 4 : 1, mean ln 4; right: stone 9 : 1; the middle is
    # ln 6, so that N/A with 4 : 1 comes out at 4 / 6 = 2 : 3
    assert left(decider, thing("N/A"), examples=pool) == pytest.approx([0.4])
    calibrating = model.asked[2:]
    assert {text for _, text in calibrating} == {f" {e.context['Thing']}, light" for e in pool}
    assert not [prompt for prompt, text in calibrating if f"{text}," in prompt]
    # one of each decision is left out at a time: without pear nothing is taken from the right
    lists = {prompt.split("decision ")[1] for prompt, text in calibrating if "pear" in text}
    assert lists == {"left: apple, light,", "right: stone, light,"}
    # a known context is calibrated with the whole lists
    model.asked.clear()
    left(decider, thing("apple"), examples=pool)
    assert any(f"{text}," in prompt for prompt, text in model.asked[2:])


def test_the_channel_needs_likelihoods(builder: PromptBuilder) -> None:
    decider = ChannelDecider(odds_of({"pear": 1.0}), builder)
    with pytest.raises(ConfigurationError, match="cannot give the likelihood of a text"):
        left(decider, thing("pear"))


def test_auto_asks_the_channel_about_new_words(builder: PromptBuilder) -> None:
    model = Listener(LISTS)
    decider = make_decider(ICLConfig(calibration="none"), model, builder)
    pear, apple = thing("pear"), thing("apple")
    # the channel gives 4 : 1, scores are 1 : 1 for everything; the answers keep the order
    assert left(decider, apple, pear, thing("stone")) == pytest.approx([0.5, 0.8, 0.5])
    assert {text for _, text in model.asked} == {" pear, light"}
    assert [query_of(p)[0] for p in model.prompts] == ["apple", "stone"]
    # a known word under a keyword where it is new is a new word, too
    model.asked.clear()
    left(decider, thing("apple", "heavy"))
    assert {text for _, text in model.asked} == {" apple, heavy"}
    # without examples there is no list to continue
    model.asked.clear()
    assert left(decider, pear, examples=[]) == pytest.approx([0.5])
    assert model.asked == []
    assert (decider.counts.asked, decider.counts.fallback) == (5, 0)


@pytest.mark.parametrize(
    ("text", "action"),
    [
        ("left", LEFT),
        (" Right.\n", RIGHT),
        ("RIGHT, since it is heavy", RIGHT),
        ("I choose right.", RIGHT),
        ("The answer is 'left'!", LEFT),
        ("not left but right", None),
        ("leftover", None),
        ("up", None),
        ("", None),
    ],
)
def test_labels_are_read_from_text(text: str, action: int | None, builder: PromptBuilder) -> None:
    assert GenerateDecider(ScriptedLLM([]), builder).parse(text) == action


def test_a_label_may_begin_with_another(tmp_path: Path) -> None:
    problem = Problem("tiny", ("edge", "edge server"), (Category("Thing", ("x",), 1),), 1)
    builder = PromptBuilder(problem, folder=write_templates(tmp_path, goal="edge, edge server"))
    decider = GenerateDecider(ScriptedLLM([]), builder)
    assert [decider.parse(t) for t in ("edge", "Edge server.", "edge server")] == [0, 1, 1]


def test_a_written_label_is_the_decision(builder: PromptBuilder) -> None:
    model = ScriptedLLM([" right", "Left."])
    decider = GenerateDecider(model, builder)
    answers = decider.answer([BOTH], [thing("pear"), thing("apple")])
    assert [a.probabilities for a in answers] == [(0.0, 1.0), (1.0, 0.0)]
    assert [a.made_by for a in answers] == ["llm", "llm"]
    assert (decider.counts.asked, decider.counts.invalid, decider.counts.fallback) == (2, 0, 0)


def test_an_invalid_answer_is_asked_again_constrained(builder: PromptBuilder) -> None:
    model = ScriptedLLM(["left", "no idea", "right"])
    decider = GenerateDecider(model, builder)
    answers = decider.answer([BOTH], [thing("apple"), thing("pear")])
    assert [a.probabilities for a in answers] == [(1.0, 0.0), (0.0, 1.0)]
    assert answers[1].made_by == "llm"
    assert (decider.counts.invalid, decider.counts.fallback) == (1, 0)
    # the same prompt again, that of the pear
    assert model.prompts[2] == model.prompts[1]


def test_what_stays_invalid_falls_back_to_the_nearest_example(builder: PromptBuilder) -> None:
    # neither the model nor the constraint helps for the stone; the pear is answered all the same
    model = ScriptedLLM(["no idea", "no idea", "still none", "left"])
    decider = GenerateDecider(model, builder)
    answers = decider.answer([BOTH], [thing("stone"), thing("pear")])
    assert [a.probabilities for a in answers] == [(0.0, 1.0), (1.0, 0.0)]
    assert [a.made_by for a in answers] == ["fallback", "llm"]
    assert (decider.counts.asked, decider.counts.invalid, decider.counts.fallback) == (2, 2, 1)


def test_a_model_can_be_held_to_the_labels_at_once(builder: PromptBuilder) -> None:
    held: list[Sequence[str] | None] = []

    class Listening(ScriptedLLM):
        def _generate(self, *request: Any) -> list[str]:
            held.append(request[2])
            return super()._generate(*request)

    decider = GenerateDecider(Listening(["right", "no idea"]), builder, constrain="first")
    answers = decider.answer([BOTH], [thing("pear"), thing("apple")])
    # what the model does not answer even so falls back to the nearest example
    assert [(a.probabilities, a.made_by) for a in answers] == [
        ((0.0, 1.0), "llm"),
        ((1.0, 0.0), "fallback"),
    ]
    assert held == [["left", "right"]] * 2
    assert (decider.counts.asked, decider.counts.invalid, decider.counts.fallback) == (2, 1, 1)
    # a model that cannot be held writes freely
    free = ScriptedLLM(["left"])
    free._capabilities = Capabilities(logprobs=False, embeddings=False, constrained=False)
    assert left(GenerateDecider(free, builder, constrain="first"), thing("pear")) == [1.0]


def test_a_writing_model_may_be_asked_in_turns(builder: PromptBuilder) -> None:
    model = ScriptedLLM(["right"])
    decider = GenerateDecider(model, builder, style="turns")
    assert left(decider, thing("pear")) == [0.0]
    (prompt,) = model.prompts
    assert isinstance(prompt, Conversation)
    assert list(prompt.messages) == builder.turns(BOTH, thing("pear"))


def test_a_writing_model_is_shown_similar_examples_last(builder: PromptBuilder) -> None:
    model = ScriptedLLM(["right"])
    left(GenerateDecider(model, builder, order="similar"), thing("apple"))
    assert [w[0] for w, _ in examples_of(model.prompts[0])] == ["stone", "apple"]


def test_a_model_without_constraint_falls_back_at_once(builder: PromptBuilder) -> None:
    model = ScriptedLLM(["no idea", "no idea"])
    model._capabilities = Capabilities(logprobs=False, embeddings=False, constrained=False)
    decider = GenerateDecider(model, builder)
    assert left(decider, thing("stone", "heavy")) == [0.0]
    # without examples the first label
    assert left(decider, thing("stone"), examples=[]) == [1.0]
    assert (decider.counts.invalid, decider.counts.fallback) == (2, 2)


def test_a_model_that_fails_is_not_hidden(builder: PromptBuilder) -> None:
    with pytest.raises(ModelError, match="was asked once more"):
        GenerateDecider(ScriptedLLM([]), builder).answer([BOTH], [thing("pear")])
