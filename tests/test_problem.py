"""Contexts, columns and what a problem says about an observation."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_env import WORDS, tiny_problem

from icl_optimizer.columns import Column
from icl_optimizer.environments.registry import make
from icl_optimizer.errors import ConfigurationError
from icl_optimizer.problem import Category, Context, Problem, Quantity

SIZE = Quantity("Size", "tokens", 2.0, 6.0, (1.0, 10.0), ("short", "medium", "long"))
KIND = Category("Kind", ("a", "b", "c", "d"), learned=2)


def test_a_context_is_an_ordered_mapping() -> None:
    context = Context({"b": "x", "a": "y"})
    assert list(context) == ["b", "a"]
    assert context.words == ("x", "y")
    assert (context["a"], len(context), dict(context)) == ("y", 2, {"b": "x", "a": "y"})
    assert repr(context) == "Context(b='x', a='y')"
    with pytest.raises(KeyError):
        context["c"]


def test_equal_words_are_the_same_example() -> None:
    one, other = Context({"a": "x", "b": "y"}), Context({"a": "x", "b": "y"})
    assert one == other
    assert {one: 1}[other] == 1
    assert one != Context({"b": "y", "a": "x"})
    assert one != Context({"a": "x", "b": "z"})
    assert one != {"a": "x", "b": "y"}


def test_a_context_never_changes() -> None:
    source = {"a": "x"}
    context = Context(source)
    source["a"] = "changed"
    assert context["a"] == "x"
    with pytest.raises(AttributeError):
        context.other = 1  # type: ignore[attr-defined]
    with pytest.raises(TypeError):
        context["a"] = "y"  # type: ignore[index]


@pytest.mark.parametrize("word", [3, None, b"bytes"])
def test_words_that_are_no_text_are_refused(word: Any) -> None:
    with pytest.raises(ConfigurationError, match=r"'thing' has the value .*: a text"):
        Context({"thing": word})


def test_words_are_cleaned() -> None:
    context = Context({"a": "two\nlines", "b": "übersetzen 翻译 {{ x }}", "c": "\x00"})
    assert context.words == ("two lines", "übersetzen 翻译 x", "(empty)")


def test_a_columns_words_must_survive_cleaning() -> None:
    column = Category("thing", ("plain", "a -> b"), 2)
    with pytest.raises(ConfigurationError, match=r"'thing' has the word 'a -> b'.*such as 'a b'"):
        Problem("tiny", ("yes", "no"), (column,), 1)


def test_matches_counts_equal_words() -> None:
    context = Context({"a": "x", "b": "y", "c": "z"})
    assert context.matches(Context({"a": "x", "b": "n", "c": "z"})) == 2
    assert context.matches(context) == 3


def test_words_hold_below_their_threshold() -> None:
    # thresholds 1 and 10: short below 1, medium from 1 to below 10, long from 10
    values = [-5.0, 0.999, 1.0, 9.999, 10.0, 1e9]
    assert [SIZE.word(v) for v in values] == ["short", "short", "medium", "medium", "long", "long"]


def test_quantities_are_scaled_and_clipped() -> None:
    # (5 - 2) / (6 - 2) = 0.75; outside of 2..6 it is clipped
    codes = SIZE.encode(np.array([2.0, 5.0, 6.0, 0.0, 7.0]))
    np.testing.assert_allclose(codes, [[0.0], [0.75], [1.0], [0.0], [1.0]])
    assert codes.dtype == np.float32


def test_a_quantity_needs_a_word_for_each_range() -> None:
    with pytest.raises(
        ConfigurationError, match="'Size' has 2 words for 2 thresholds; allowed: 3 words"
    ):
        Quantity("Size", "tokens", 0.0, 1.0, (0.2, 0.4), ("short", "long"))


def test_new_words_share_the_unknown_slot() -> None:
    # a and b are learned, so c and d both get the third slot
    expected = [[1, 0, 0], [0, 1, 0], [0, 0, 1], [0, 0, 1]]
    np.testing.assert_array_equal(KIND.encode(np.array([0.0, 1.0, 2.0, 3.0])), expected)
    assert [KIND.word(v) for v in (0.0, 3.0)] == ["a", "d"]
    assert (KIND.low, KIND.high, KIND.encoded_size) == (0.0, 3.0, 3)


@pytest.mark.parametrize("index", [-1.0, 4.0])
def test_an_index_without_a_word_is_refused(index: float) -> None:
    with pytest.raises(ConfigurationError, match=rf"'Kind' is {int(index)}; allowed: 0 to 3"):
        KIND.word(index)


def test_encoding_concatenates_the_columns() -> None:
    problem = Problem("p", ("l", "r"), (KIND, SIZE), 1)
    codes = problem.encode(np.array([[1.0, 3.0], [3.0, 6.0]]))
    np.testing.assert_allclose(codes, [[0, 1, 0, 0.25], [0, 0, 1, 1.0]])
    assert problem.encoded_size == 4


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 2), st.floats(-3, 5)), min_size=1, max_size=5))
def test_describe_is_a_pure_function_of_the_row(rows: list[tuple[int, float]]) -> None:
    problem, observations = tiny_problem(), np.array(rows)
    before = observations.copy()
    contexts = problem.describe_all(observations)
    np.testing.assert_array_equal(observations, before)
    for context, (thing, weight) in zip(contexts, rows, strict=True):
        # what came before in the batch, and which problem object is asked, does not matter
        assert context == tiny_problem(horizon=3).describe(np.array([thing, weight]))
        heaviness = "light" if weight < 1 else "heavy"
        assert dict(context) == {"Thing": WORDS[thing], "Weight": heaviness}


@pytest.mark.parametrize(("value", "shown"), [(np.nan, "nan"), (np.inf, "inf"), (-np.inf, "-inf")])
def test_numbers_that_are_not_finite_name_their_column(value: float, shown: str) -> None:
    with pytest.raises(ConfigurationError, match=f"observation 1 has {shown} for 'Weight'"):
        tiny_problem().check(np.array([[0.0, 1.0], [0.0, value]]))
    with pytest.raises(ConfigurationError, match="'Weight'; allowed: finite numbers"):
        tiny_problem().describe(np.array([0.0, value]))


def test_an_observation_of_the_wrong_length_names_the_columns() -> None:
    with pytest.raises(
        ConfigurationError, match=r"observation has 3 entries; allowed: 2 \(Thing, Weight\)"
    ):
        tiny_problem().describe(np.zeros(3))


@pytest.mark.parametrize("labels", [("one",), ("a", "b", "a"), (), ("a", " "), ("a", "b\nc")])
def test_labels_must_be_different_lines(labels: tuple[str, ...]) -> None:
    with pytest.raises(ConfigurationError, match="allowed: at least two different names"):
        Problem("p", labels, (KIND,), 1)


def test_labels_and_words_are_found_by_name() -> None:
    problem = tiny_problem()
    assert (problem.action("left"), problem.action("right")) == (0, 1)
    assert problem.context(["pear", "light"]) == problem.describe(np.array([2.0, 0.5]))
    with pytest.raises(ValueError, match="shorter"):
        problem.context(["pear"])


def servers(*, dump: bool = False) -> Problem:
    """Two servers, each with a queue (in words) and a speed (a number)."""
    columns: list[Column] = [KIND]
    for action, name in enumerate(("a", "b")):
        columns += [
            Quantity(f"{name} queue", "tasks", 0.0, 9.0, (1.0,), ("free", "busy"), action, "Queue"),
            Quantity(f"{name} heat", "K", 0.0, 9.0, (5.0,), ("cool", "hot"), action, "Heat"),
            Quantity(f"{name} speed", "1/s", 0.0, 9.0, (), (), action, "Speed"),
        ]
    return Problem("servers", ("a", "b", "dump") if dump else ("a", "b"), tuple(columns), 5)


def test_a_context_is_split_into_shared_and_own_words() -> None:
    problem = servers(dump=True)
    context = problem.describe(np.array([2.0, 0, 7, 1, 3, 0, 2]))
    assert problem.keywords == ("Kind", "a queue", "a heat", "b queue", "b heat")
    shared, own = problem.split(context)
    assert dict(shared) == {"Kind": "c"}
    assert [dict(part) for part in own] == [
        {"Queue": "free", "Heat": "hot"},
        {"Queue": "busy", "Heat": "cool"},
        {},
    ]
    assert tiny_problem().split(tiny_problem().context(["pear", "light"]))[1] == (
        Context({}),
        Context({}),
    )


def test_own_words_come_in_their_order() -> None:
    problem = servers(dump=True)
    expected = [("free", "cool"), ("free", "hot"), ("busy", "cool"), ("busy", "hot")]
    assert problem.own_words(1) == expected
    assert [problem.own_places(1)[words] for words in expected] == [0, 1, 2, 3]
    assert problem.own_words(2) == [()]
    assert (problem.by_action, tiny_problem().by_action) == (True, False)
    assert problem.count == 3


def test_roles_find_the_columns_of_the_decisions() -> None:
    problem = servers(dump=True)
    assert problem.role("Queue").tolist() == [1, 4]
    assert problem.role("Speed").tolist() == [3, 6]
    with pytest.raises(
        ConfigurationError,
        match="'servers' has no column 'Load' for a, b, dump; allowed: Heat, Queue, Speed",
    ):
        problem.role("Load")
    # the first decisions have one, or it cannot be told which one a value belongs to
    second = Problem("p", ("a", "b"), (KIND, problem.columns[4]), 1)
    with pytest.raises(ConfigurationError, match="has no column 'Queue'"):
        second.role("Queue")


def test_own_columns_belong_to_a_label() -> None:
    queue = Quantity("q", "tasks", 0.0, 1.0, (), (), 2, "Queue")
    with pytest.raises(ConfigurationError, match="'q' describes action 2; allowed: 0 to 1"):
        Problem("p", ("a", "b"), (queue,), 1)


@pytest.mark.parametrize(("action", "role"), [(0, ""), (None, "Queue")])
def test_action_and_role_go_together(action: int | None, role: str) -> None:
    with pytest.raises(ConfigurationError, match="allowed: both or neither"):
        Quantity("q", "tasks", 0.0, 1.0, (), (), action, role)


def test_profiles_and_expert_are_optional() -> None:
    problem = tiny_problem()
    assert (problem.profiles, problem.expert) == ((), None)
    with pytest.raises(
        ConfigurationError, match=r"1 profiles; allowed: none, or one per label \(2\)"
    ):
        Problem("p", ("a", "b"), (KIND,), 1, profiles=(Context({"Speed": "5"}),))


def test_the_systems_with_queues_tell_roles_profiles_and_experts() -> None:
    problem = make("slo-scheduling", 1).problem
    observations, _ = make("slo-scheduling", 3).reset(seed=0)
    assert problem.role("Queue").tolist() == [0, 1, 2, 3]
    assert all(set(profile) == {"Model", "Size"} for profile in problem.profiles)
    assert problem.expert is not None
    before = observations.copy()
    told = problem.expert(observations)
    np.testing.assert_array_equal(observations, before)
    assert told.chance.shape == told.value.shape == (3, 4)
    # what is shared has one keyword, whatever the number of servers
    assert tuple(problem.split(problem.describe(observations[0]))[0]) == ("Task",)
