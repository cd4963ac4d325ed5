"""Which keywords and examples a prompt shows."""

from __future__ import annotations

from itertools import pairwise

from icl_optimizer.experience import Example
from icl_optimizer.problem import Context
from icl_optimizer.selection import (
    alternate,
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


def test_an_irrelevant_keyword_is_dropped() -> None:
    # the decision is a alone: the other three examples with the same a agree, so leave-one-out is
    # always right; b or c alone are never better than a guess
    rule = {("0", "0"): 0, ("0", "1"): 0, ("1", "0"): 1, ("1", "1"): 1}
    assert relevant_keywords(grid(rule), 2) == ("a",)


def test_two_keywords_that_matter_together_stay() -> None:
    # exclusive or: without the example itself, the others with the same a have the other decision
    # more often, so a alone is always wrong; a and b leave one other example, which is right;
    # with c there is no other example
    rule = {("0", "0"): 0, ("0", "1"): 1, ("1", "0"): 1, ("1", "1"): 0}
    assert relevant_keywords(grid(rule), 2) == ("a", "b")


def test_equal_keywords_give_the_smallest_and_first_set() -> None:
    # nothing to tell apart: every subset is right about all
    rule = {("0", "0"): 1, ("1", "1"): 1}
    assert relevant_keywords(grid(rule), 2) == ("a",)
    assert relevant_keywords([], 2) == ()


def test_a_keyword_with_a_tie_counts_as_a_guess() -> None:
    # under a: the left-out first example sees 0 and 1 once each, half a point; the second one sees
    # 0 and 1 (half a point), the third sees 0 twice (none): (0.5 + 0.5 + 0) / 3 = 1/3.
    # under b: 0 and 0 confirm each other, the third is alone and a guess: (1 + 1 + 0.5) / 3
    examples = [example(0, a="x", b="u"), example(0, a="x", b="u"), example(1, a="x", b="v")]
    assert relevant_keywords(examples, 2) == ("b",)


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


def test_the_nearest_examples_come_last() -> None:
    query = Context({"a": "x", "b": "y", "c": "z"})
    words = [("x", "y", "n"), ("n", "n", "n"), ("x", "n", "n"), ("x", "y", "z"), ("n", "y", "n")]
    examples = [example(0, a=a, b=b, c=c) for a, b, c in words]
    # equal words: 2, 0, 1, 3, 1; of equals the later one is nearer to the end
    near = nearest_last(examples, query, 3)
    assert near == [examples[4], examples[0], examples[3]]
    assert all(query.matches(a.context) <= query.matches(b.context) for a, b in pairwise(near))
    assert len(nearest_last(examples, query, 99)) == 5
