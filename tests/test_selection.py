"""Which keywords and examples a prompt shows."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

from icl_optimizer import selection
from icl_optimizer.experience import Example
from icl_optimizer.problem import Context
from icl_optimizer.selection import (
    Keywords,
    alternate,
    arrange,
    fit_to,
    nearest_last,
    relevant_keywords,
    restrict,
    summarise,
)


def example(action: int, reward: float = 0.0, **words: str) -> Example:
    return Example(Context(words), action, reward)


def grid(rule: dict[tuple[str, str], int]) -> list[Example]:
    """Return examples over a, b and an irrelevant c; ``rule`` decides by a and b."""
    return [
        example(action, a=a, b=b, c=c) for (a, b), action in rule.items() for c in ("low", "high")
    ]


# The evidence of a group, worked out outcome by outcome: with two decisions of weight 0.2 each, the
# first has the chance 0.2 / 0.4, a second like it 1.2 / 1.4, a third 2.2 / 2.4, a fourth 3.2 / 3.4.
# So two of one mind have 0.5 * 0.857 = 0.429, three 0.393, four 0.370; two against two have
# 0.429 * 0.2 / 2.4 * 1.2 / 3.4 = 0.0126. A set of keywords has the product over its groups.


def test_an_irrelevant_keyword_is_dropped() -> None:
    # by a: two groups of four of one mind, 0.370 ^ 2 = 0.137; by b or c alone: two against two,
    # 0.0126 ^ 2 = 0.0002; by a and b: four groups of two, 0.429 ^ 4 = 0.034; all: 0.5 ^ 8
    rule = {("0", "0"): 0, ("0", "1"): 0, ("1", "0"): 1, ("1", "1"): 1}
    assert relevant_keywords(grid(rule), 2) == ("a",)


def test_two_keywords_that_matter_together_stay() -> None:
    # exclusive or. Alone each leaves two against two in both groups, 0.0002; a and b make four
    # groups of one mind, 0.429 ^ 4 = 0.034; with c all are apart, 0.5 ^ 8 = 0.004
    rule = {("0", "0"): 0, ("0", "1"): 1, ("1", "0"): 1, ("1", "1"): 0}
    assert relevant_keywords(grid(rule), 2) == ("a", "b")


def test_equal_keywords_give_the_smallest_and_first_set() -> None:
    # one decision throughout: each keyword alone divides it in two halves
    rule = {("0", "0"): 1, ("1", "1"): 1}
    assert relevant_keywords(grid(rule), 2) == ("a",)
    # u and u confirm each other and v is alone, by b as well as by a and b
    examples = [example(0, a="x", b="u"), example(0, a="x", b="u"), example(1, a="x", b="v")]
    assert relevant_keywords(examples, 2) == ("b",)
    assert relevant_keywords([], 2) == ()


def test_visits_tell_an_exception_from_an_accident() -> None:
    def seven(visits: int) -> list[Example]:
        odd = replace(example(1, a="x", b="odd"), visits=visits)
        return [odd, *(example(0, a="x", b=f"w{i}") for i in range(6))]

    # by a: six of one mind, 0.370 * 4.2 / 4.4 * 5.2 / 5.4 = 0.340, and one against,
    # 0.340 * 0.2 / 6.4 = 0.0106; by b all are apart, 0.5 ^ 7 = 0.0078
    assert relevant_keywords(seven(1), 2) == ("a",)
    # seen three times: by a 0.0106 * 1.2 / 7.4 * 2.2 / 8.4 = 0.0005; by b 0.5 ^ 6 * 0.393 = 0.0061
    assert relevant_keywords(seven(3), 2) == ("b",)


def many_keywords(count: int, seed: int = 0, samples: int = 120) -> list[Example]:
    """Return examples over ``count`` keywords, decided by whether k1 and k4 are equal."""
    rng = np.random.default_rng(seed)
    examples = []
    for bits in rng.integers(2, size=(samples, count)):
        words = {f"k{i}": str(bit) for i, bit in enumerate(bits)}
        examples.append(Example(Context(words), int(bits[1] == bits[4]), 0.0))
    return examples


@pytest.mark.parametrize("count", [6, 8, 9, 30])
def test_what_matters_is_found_among_many_keywords(count: int) -> None:
    assert relevant_keywords(many_keywords(count), 2) == ("k1", "k4")


def test_keywords_are_added_one_after_the_other() -> None:
    # the decision is whether two or more of three words are 1
    rng = np.random.default_rng(1)
    examples = []
    for bits in rng.integers(2, size=(200, 12)):
        words = {f"k{i}": str(bit) for i, bit in enumerate(bits)}
        examples.append(Example(Context(words), int(bits[[2, 7, 9]].sum() >= 2), 0.0))
    assert relevant_keywords(examples, 2) == ("k2", "k7", "k9")


def test_the_search_grows_with_the_square_of_the_keywords(monkeypatch: pytest.MonkeyPatch) -> None:
    judged: list[Keywords] = []
    evidence = selection._evidence

    def counted(examples: list[Example], keywords: Keywords, actions: int) -> float:
        judged.append(keywords)
        return evidence(examples, keywords, actions)

    monkeypatch.setattr(selection, "_evidence", counted)
    relevant_keywords(many_keywords(8), 2)
    assert len(judged) == len(set(judged)) == 2**8 - 1
    judged.clear()
    relevant_keywords(many_keywords(30), 2)
    # 30 alone, 435 pairs, and 28 to add to the best of them
    assert len(judged) == 30 + 435 + 28


def test_restricting_keeps_the_order_of_the_keywords() -> None:
    context = Context({"a": "x", "b": "y", "c": "z"})
    assert list(restrict(context, ("a", "c")).items()) == [("a", "x"), ("c", "z")]


def test_summary_by_majority_and_mean() -> None:
    rows = summarise(
        [
            example(0, 4.0, a="x", b="1"),
            example(0, 6.0, a="x", b="2"),
            # one lucky reward does not outvote two examples
            example(1, 100.0, a="x", b="3"),
            # a tie: the higher mean reward
            example(0, 1.0, a="y", b="1"),
            example(1, 3.0, a="y", b="2"),
        ],
        ("a",),
    )
    assert [(dict(r.context), r.action, r.reward) for r in rows] == [
        ({"a": "x"}, 0, 5.0),
        ({"a": "y"}, 1, 3.0),
    ]


def test_summary_counts_visits() -> None:
    often = replace(example(1, 2.0, a="x", b="1"), visits=5)
    rows = summarise([example(0, 9.0, a="x", b="2"), example(0, 7.0, a="x", b="3"), often], ("a",))
    assert [(r.action, r.reward, r.visits) for r in rows] == [(1, 2.0, 5)]


MIXED = [example(int(i >= 6), word=f"w{i}") for i in range(9)]


def test_examples_alternate_between_the_decisions() -> None:
    order = alternate(MIXED, seed=0)
    # six of one decision and three of the other
    assert [e.action for e in order] == [0, 1, 0, 1, 0, 1, 0, 0, 0]
    assert sorted(e.context.words for e in order) == sorted(e.context.words for e in MIXED)


def test_the_order_is_stable() -> None:
    assert alternate(MIXED, seed=3) == alternate(MIXED, seed=3)
    # it does not depend on the order in which experience came
    assert alternate(MIXED[::-1], seed=3) == alternate(MIXED, seed=3)
    # one example more leaves the others in their order
    more = alternate([*MIXED, example(0, word="new")], seed=3)
    without = [e for e in more if e.context["word"] != "new" and e.action == 0]
    assert without == [e for e in alternate(MIXED, seed=3) if e.action == 0]


def test_the_order_depends_on_the_seed() -> None:
    orders = {tuple(e.context["word"] for e in alternate(MIXED, seed)) for seed in range(10)}
    # 6! * 3! = 4,320 orders: ten seeds hardly ever meet twice
    assert len(orders) > 7


def test_the_random_order_is_fixed_and_does_not_alternate() -> None:
    orders = [arrange(MIXED, "random", seed) for seed in range(20)]
    assert orders[3] == arrange(MIXED[::-1], "random", 3)
    actions = {tuple(e.action for e in order) for order in orders}
    # 84 ways to place three of nine
    assert len(actions) > 10
    for order in ("alternating", "similar", "nearest-again"):
        assert arrange(MIXED, order, 3) == alternate(MIXED, 3)


def test_an_order_may_fit_the_query() -> None:
    query = MIXED[4].context
    rest = [e for e in MIXED if e is not MIXED[4]]
    assert fit_to(MIXED, query, "similar") == [*rest, MIXED[4]]
    # of equals the later one is nearer
    assert fit_to(MIXED, query, "nearest-again") == [*MIXED, MIXED[8], MIXED[4]]
    assert fit_to(MIXED, query, "alternating") == fit_to(MIXED, query, "random") == MIXED


def test_the_nearest_examples_come_last() -> None:
    query = Context({"a": "x", "b": "y", "c": "z"})
    words = [("x", "y", "n"), ("n", "n", "n"), ("x", "n", "n"), ("x", "y", "z"), ("n", "y", "n")]
    examples = [example(0, a=a, b=b, c=c) for a, b, c in words]
    # equal words: 2, 0, 1, 3, 1; of equals the later one is nearer to the end
    near = nearest_last(examples, query, 3)
    assert near == [examples[4], examples[0], examples[3]]
    assert all(query.matches(a.context) <= query.matches(b.context) for a, b in pairwise(near))
    assert len(nearest_last(examples, query, 99)) == 5
