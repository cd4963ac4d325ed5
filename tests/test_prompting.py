"""The prompt, to the letter, and what templates may and may not do."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_env import tiny_problem
from tiny_prompts import GOAL, write_templates

from icl_optimizer.environments.offloading_config import service_types
from icl_optimizer.environments.registry import make
from icl_optimizer.errors import ConfigurationError
from icl_optimizer.experience import Example, Tally
from icl_optimizer.problem import Category, Context, Problem
from icl_optimizer.prompting import PromptBuilder
from icl_optimizer.summaries import summaries

OFFLOADING = make("offloading").problem
EXAMPLES = [
    Example(OFFLOADING.context(["chatting", "short"]), 0, 15.9367),
    Example(OFFLOADING.context(["coding", "long"]), 1, -2.27, good=False),
]
QUERY = OFFLOADING.context(["translation", "medium"])
BUILDER = PromptBuilder(OFFLOADING)

COMPLETION = """\
Choose local or offload for each generation task, so that the total delay is small and the \
quality requirement holds.
A task is described by its service type, output size.
Reply with local or offload only.

chatting, short -> local
coding, long -> offload
translation, medium ->"""

BLOCKS = """\
Choose local or offload for each generation task, so that the total delay is small and the \
quality requirement holds.
A task is described by its service type, output size.
Reply with local or offload only.

Service type: chatting, output size: short
Decision: local

Service type: coding, output size: long
Decision: offload

Service type: translation, output size: medium
Decision:"""

LIST = """\
Choose local or offload for each generation task, so that the total delay is small and the \
quality requirement holds.
A task is described by its service type, output size.

Tasks with the decision offload: coding, long,"""


@pytest.mark.parametrize(("layout", "expected"), [("completion", COMPLETION), ("blocks", BLOCKS)])
def test_the_shipped_prompt(layout: str, expected: str) -> None:
    assert PromptBuilder(OFFLOADING, layout).render(EXAMPLES, QUERY) == expected


def test_the_shipped_list_of_one_decision() -> None:
    assert BUILDER.render_list(EXAMPLES, 1) == LIST


# both decisions twice in the first context: a bonus of sqrt(2 ln 4 / 2) = 1.18 standard deviations
# of the means 16, 6, -24 and -4, which are 14.7; in the second sqrt(2 ln 2 / 1), also 1.18
SUMMARIES = summaries(
    {
        OFFLOADING.context(["chatting", "short"]): {0: Tally(2, 15.937), 1: Tally(2, 6.0)},
        OFFLOADING.context(["coding", "long"]): {1: Tally(1, -4.0), 0: Tally(1, -24.1)},
    },
    ("Service type", "Output size"),
)
SUMMARY = """\
chatting, short: local good (2), offload poor (2), -> local
coding, long: local poor (1), offload good (1), -> offload
"""
GUIDED = """\
Every decision tried has its mean reward, its number of trials, and a bonus for what is uncertain.

chatting, short:
- local: mean 16, tried 2, bonus 17
- offload: mean 6, tried 2, bonus 17
chatting, short -> local
coding, long:
- local: mean -24, tried 1, bonus 17
- offload: mean -4, tried 1, bonus 17
coding, long -> offload
"""
OWN = """\
coding, long:
- local: mean -24, tried 1, bonus 17
- offload: mean -4, tried 1, bonus 17
coding, long ->"""
INADVISABLE = """\
good: chatting, short -> local
bad: chatting, short -> offload
good: coding, long -> offload
bad: coding, long -> local
"""


@pytest.mark.parametrize(
    ("layout", "middle", "known", "new"),
    [
        ("summary", SUMMARY, "coding, long: local poor (1), offload good (1), ->", "{}: ->"),
        ("guided", GUIDED, OWN, "{0}:\n{0} ->"),
        ("inadvisable", INADVISABLE, "good: coding, long ->", "good: {} ->"),
    ],
)
def test_layouts_that_sum_up(layout: str, middle: str, known: str, new: str) -> None:
    builder = PromptBuilder(OFFLOADING, layout)
    assert builder.shows_tried
    head = "\n".join(COMPLETION.splitlines()[:3]) + ("\n" if layout == "guided" else "\n\n")
    # a known query shows what was seen of it, too
    assert builder.render(SUMMARIES, SUMMARIES[1].context) == head + middle + known
    new = new.format("translation, medium")
    assert builder.render(SUMMARIES, QUERY) == head + middle + new
    assert not BUILDER.shows_tried
    assert BUILDER.render(SUMMARIES, QUERY) == COMPLETION


def test_only_the_worst_decision_is_inadvisable() -> None:
    problem = Problem("offloading", ("local", "offload"), OFFLOADING.columns, 1)
    single = summaries({QUERY: {1: Tally(3, 1.0)}}, ("Service type", "Output size"))
    text = PromptBuilder(problem, "inadvisable").render(single, QUERY)
    # nothing else was tried, so nothing is called bad
    assert "\ngood: translation, medium -> offload\n" in text
    assert "bad:" not in text


@pytest.mark.parametrize(
    ("layout", "count", "mean", "order"),
    [
        ("completion", False, False, False),
        ("summary", True, False, False),
        ("guided", True, True, False),
        ("inadvisable", False, False, True),
    ],
)
def test_signatures_change_with_what_is_shown(
    layout: str, count: bool, mean: bool, order: bool
) -> None:
    labels = ("local", "offload")
    builder = PromptBuilder(Problem("offloading", labels, OFFLOADING.columns, 1), layout)

    def signed(best: Tally, worst: Tally, third: Tally) -> Any:
        cells = {0: best, 1: worst, 2: third}
        return builder.signature(summaries({QUERY: cells}, ("Service type", "Output size")))

    now = signed(Tally(5, 900.0), Tally(5, 10.0), Tally(5, 12.0))
    # the bonus depends on the counts as well
    assert (now != signed(Tally(6, 900.0), Tally(5, 10.0), Tally(5, 12.0))) == count
    assert (now != signed(Tally(5, 950.0), Tally(5, 10.0), Tally(5, 12.0))) == mean
    # another decision is the worst, though both are poor
    assert (now != signed(Tally(5, 900.0), Tally(5, 12.0), Tally(5, 10.0))) == (order or mean)
    # the best decision is another one
    assert now != signed(Tally(5, 10.0), Tally(5, 900.0), Tally(5, 12.0))


def test_turns_are_a_conversation() -> None:
    task = "\n".join(COMPLETION.splitlines()[:3])
    assert BUILDER.turns(EXAMPLES, QUERY) == [
        {"role": "system", "content": task},
        {"role": "user", "content": "chatting, short"},
        {"role": "assistant", "content": "local"},
        {"role": "user", "content": "coding, long"},
        {"role": "assistant", "content": "offload"},
        {"role": "user", "content": "translation, medium"},
    ]


def test_decisions_can_bear_other_names() -> None:
    renamed = BUILDER.renamed(("offload", "local")).render(EXAMPLES, QUERY)
    assert "\nchatting, short -> offload\ncoding, long -> local\n" in renamed
    assert renamed.startswith("Choose offload or local for")
    assert BUILDER.render(EXAMPLES, QUERY) == COMPLETION


def test_without_examples_the_query_stands_alone() -> None:
    lines = COMPLETION.splitlines()
    expected = "\n".join([*lines[:4], lines[-1]])
    assert BUILDER.render([], QUERY) == expected


def test_words_are_shown_as_they_are() -> None:
    problem = Problem("offloading", ("local", "offload"), (Category("Kind", ("x",), 1),), 1)
    query = Context({"Kind": "DNA folding (a < b) & äöü"})
    prompt = PromptBuilder(problem, "blocks").render([], query)
    assert prompt.endswith("\nKind: DNA folding (a < b) & äöü\nDecision:")


@pytest.mark.parametrize("fields", [{}, {"congested": True}, {"vocabulary": "open"}])
def test_the_description_does_not_give_the_answer_away(fields: dict[str, Any]) -> None:
    parts = PromptBuilder(make("offloading", **fields).problem).parts
    text = " ".join(parts.values()).lower()
    assert not [name for name in service_types() if re.search(rf"\b{re.escape(name)}\b", text)]
    # both labels are named alike, neither next to a kind of model or task
    assert text.count("local") == text.count("offload")
    assert not re.search(r"\b(edge|cloud|regular|small|large|fast|better) (model|task)", text)


def test_a_label_that_no_part_names_is_an_error(tmp_path: Path) -> None:
    folder = write_templates(tmp_path, goal="Sort things left or elsewhere.")
    with pytest.raises(ConfigurationError, match="'tiny/' do not name the label 'right'"):
        PromptBuilder(tiny_problem(), folder=folder)


def test_a_label_inside_another_word_is_not_named(tmp_path: Path) -> None:
    folder = write_templates(tmp_path, goal="Sort things leftwards or right.")
    with pytest.raises(ConfigurationError, match="do not name the label 'left'"):
        PromptBuilder(tiny_problem(), folder=folder)


def test_an_undefined_variable_is_an_error(tmp_path: Path) -> None:
    folder = write_templates(tmp_path, rules="Use {{ secret }}.")
    with pytest.raises(
        ConfigurationError, match=r"template 'tiny/rules\.j2': 'secret' is undefined"
    ):
        PromptBuilder(tiny_problem(), folder=folder)


@pytest.mark.parametrize(
    "trick",
    [
        "{{ labels.__class__ }}",
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ labels.__init__.__globals__ }}",
        "{{ '{0.__class__}'.format(labels) }}",
        "{{ self._TemplateReference__context }}",
        "{{ keywords.append('x') or '' }}{% set _ = keywords.__reduce__() %}",
        "{% include '../secret.j2' %}",
        "{{ 1 / 0 }}",
        "{{ range(10 ** 9) | list }}",
        "{{ unclosed",
        "{{ 1 + 'a' }}",
    ],
)
def test_templates_run_in_a_sandbox(trick: str, tmp_path: Path) -> None:
    (tmp_path / "secret.j2").write_text("secret")
    folder = write_templates(tmp_path / "mine", rules=f"left right {trick}")
    with pytest.raises(ConfigurationError, match=r"template 'tiny/rules\.j2'"):
        PromptBuilder(tiny_problem(), folder=folder)


def test_a_folder_replaces_single_templates(tmp_path: Path) -> None:
    (tmp_path / "offloading").mkdir()
    (tmp_path / "offloading" / "rules.j2").write_text("One of {{ labels | join('/') }}, please.")
    (tmp_path / "layouts").mkdir()
    (tmp_path / "layouts" / "mine.j2").write_text(
        "{{ rules }} {% for e in examples %}[{{ e.words }}={{ e.label }} {{ e.reward }} "
        "{{ e.evaluation }}]{% endfor %} {{ query }}?"
    )
    builder = PromptBuilder(OFFLOADING, folder=tmp_path)
    # the other parts and layouts are still the shipped ones
    expected = COMPLETION.replace(
        "Reply with local or offload only.", "One of local/offload, please."
    )
    assert builder.render(EXAMPLES, QUERY) == expected
    assert PromptBuilder(OFFLOADING, "mine", tmp_path).render(EXAMPLES, QUERY) == (
        "One of local/offload, please. [chatting, short=local 15.94 good]"
        "[coding, long=offload -2.27 bad] translation, medium?"
    )


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"nowhere' does not exist"):
        PromptBuilder(OFFLOADING, folder=tmp_path / "nowhere")
    with pytest.raises(ConfigurationError, match=r"template 'tiny/goal\.j2'"):
        PromptBuilder(tiny_problem())
    with pytest.raises(ConfigurationError, match=r"template 'layouts/completion2\.j2'"):
        PromptBuilder(OFFLOADING, "completion2").render([], QUERY)


@settings(deadline=None, max_examples=200)
@given(st.lists(st.text(min_size=1), min_size=2, max_size=2))
def test_hostile_words_cannot_add_lines(words: list[str]) -> None:
    context = OFFLOADING.context(words)
    prompt = BUILDER.render([*EXAMPLES, Example(context, 0, 1.0)], context)
    assert len(prompt.splitlines()) == len(COMPLETION.splitlines()) + 1
    shown = ", ".join(context.words)
    assert prompt.splitlines()[-2:] == [f"{shown} -> local", f"{shown} ->"]


def test_parts_are_given_to_the_layout_once(tmp_path: Path) -> None:
    builder = PromptBuilder(tiny_problem(), folder=write_templates(tmp_path))
    assert builder.parts == {
        "goal": GOAL,
        "definition": "A thing has a weight.",
        "rules": "Be brief.",
    }
    # a goal that is text of a user's template is not a template again
    folder = write_templates(tmp_path, goal="left right {% raw %}{{ 1 }}{% endraw %}")
    assert PromptBuilder(tiny_problem(), folder=folder).parts["goal"] == "left right {{ 1 }}"
