"""Which examples a prompt shows, with which keywords, in which order."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Sequence
from itertools import combinations, zip_longest
from math import lgamma
from typing import Literal

import numpy as np

from icl_optimizer.experience import Example
from icl_optimizer.problem import Context

Keywords = tuple[str, ...]
Order = Literal["alternating", "random", "similar", "nearest-again"]

MOST_TOGETHER = 8
"""Keywords of which every subset is looked at; among more, one is added after the other."""
REPEATED = 2
"""Examples that ``order="nearest-again"`` shows once more."""
PRIOR = 0.2
"""Weight of each decision before any outcome; chosen on seeds that no table reports."""


def relevant_keywords(examples: Sequence[Example], actions: int) -> Keywords:
    """Return the keywords that explain the decisions of ``examples`` best.

    Each subset of keywords divides the examples into groups with the same words. Its evidence is
    the chance of the decisions when every group has a decision rate of its own, unknown
    beforehand (Dirichlet-multinomial): groups of one mind count for it, and dividing more finely
    than needed counts against it. An example counts as often as its context was visited. Among
    equals the smaller subset wins. So keywords that do not matter leave the prompt, and ones that
    matter only jointly stay.

    All subsets are looked at for up to :data:`MOST_TOGETHER` keywords. Beyond, the search begins
    with the best keyword or pair and adds the one that helps most for as long as one does: what
    matters only together with two others may then be missed.
    """
    names = tuple(examples[0].context) if examples else ()
    if len(names) > MOST_TOGETHER:
        return _added(examples, names, actions)
    subsets = [s for size in range(1, len(names) + 1) for s in combinations(names, size)]
    return max(subsets, key=lambda s: _evidence(examples, s, actions), default=names)


def _added(examples: Sequence[Example], names: Keywords, actions: int) -> Keywords:
    """Return the keywords found by forward selection, in the order of ``names``."""
    start = [s for size in (1, 2) for s in combinations(names, size)]
    evidence = {s: _evidence(examples, s, actions) for s in start}
    best = max(start, key=lambda s: evidence[s])
    reached = evidence[best]
    while len(best) < len(names):
        larger = [tuple(n for n in names if n in (*best, new)) for new in names if new not in best]
        found, keywords = max(
            ((_evidence(examples, s, actions), s) for s in larger), key=lambda pair: pair[0]
        )
        if found <= reached:
            break
        best, reached = keywords, found
    return best


def restrict(context: Context, keywords: Keywords) -> Context:
    """Return ``context`` with these keywords alone."""
    return Context({name: context[name] for name in keywords})


def summarise(examples: Sequence[Example], keywords: Keywords) -> list[Example]:
    """Return one example per combination of words under ``keywords``.

    Its decision is the one with the greater number of visits, on a tie the one with the higher
    mean reward; its reward is the mean over the examples with that decision.
    """
    groups: dict[Context, dict[int, list[Example]]] = defaultdict(lambda: defaultdict(list))
    for example in examples:
        groups[restrict(example.context, keywords)][example.action].append(example)
    return [_merged(context, by_action) for context, by_action in groups.items()]


def _merged(context: Context, by_action: dict[int, list[Example]]) -> Example:
    rewards = {a: float(np.mean([e.reward for e in group])) for a, group in by_action.items()}
    visits = {a: sum(e.visits for e in group) for a, group in by_action.items()}
    action = max(by_action, key=lambda a: (visits[a], rewards[a]))
    return Example(context, action, rewards[action], visits=visits[action])


def arrange(examples: Sequence[Example], order: Order, seed: int) -> list[Example]:
    """Return the examples in a fixed order, which does not depend on the query.

    Args:
        examples: In any order.
        order: ``random``: a permutation; otherwise alternating between the decisions.
        seed: Another one, another order.
    """
    if order == "random":
        return sorted(examples, key=lambda e: _shuffled(e.context, seed))
    return alternate(examples, seed)


def fit_to(examples: Sequence[Example], context: Context, order: Order) -> list[Example]:
    """Return the examples as ``order`` has them for the query ``context``.

    ``similar``: those that share most words with it last. ``nearest-again``: the nearest two once
    more at the end. The other orders do not look at the query.
    """
    if order == "similar":
        return nearest_last(examples, context, len(examples))
    if order == "nearest-again":
        return [*examples, *nearest_last(examples, context, REPEATED)]
    return list(examples)


def alternate(examples: Sequence[Example], seed: int) -> list[Example]:
    """Return the examples in a fixed order that alternates between the decisions.

    Within a decision the order is a permutation that depends on ``seed`` and the words alone, so
    the text stays the same from call to call, which keeps it in the model's prefix cache.
    """
    by_action: dict[int, list[Example]] = defaultdict(list)
    for example in sorted(examples, key=lambda e: _shuffled(e.context, seed)):
        by_action[example.action].append(example)
    columns = [by_action[action] for action in sorted(by_action)]
    return [e for row in zip_longest(*columns) for e in row if e is not None]


def nearest_last(examples: Sequence[Example], context: Context, k: int) -> list[Example]:
    """Return the ``k`` examples that share most words with ``context``, the nearest at the end."""
    ranked = sorted(
        enumerate(examples), key=lambda item: (context.matches(item[1].context), item[0])
    )
    return [example for _, example in ranked[-k:]]


def _evidence(examples: Sequence[Example], keywords: Keywords, actions: int) -> float:
    """Return the log of the chance of the decisions, given groups by ``keywords``."""
    groups: dict[Context, Counter[int]] = defaultdict(Counter)
    for example in examples:
        groups[restrict(example.context, keywords)][example.action] += example.visits
    # rounded, so that equal evidence is equal whatever the order of the sum
    return round(sum(_group_evidence(counts, actions) for counts in groups.values()), 9)


def _group_evidence(counts: Counter[int], actions: int) -> float:
    total = actions * PRIOR
    log_chance = lgamma(total) - lgamma(total + counts.total())
    return log_chance + sum(lgamma(PRIOR + n) - lgamma(PRIOR) for n in counts.values())


def _shuffled(context: Context, seed: int) -> bytes:
    return hashlib.sha256(f"{seed}|{context.words}".encode()).digest()
