"""Which examples a prompt shows, with which keywords, in which order."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Sequence
from itertools import combinations, zip_longest

import numpy as np

from icl_optimizer.experience import Example
from icl_optimizer.problem import Context

Keywords = tuple[str, ...]


def relevant_keywords(examples: Sequence[Example], actions: int) -> Keywords:
    """Return the fewest keywords that explain the decisions of ``examples`` best.

    Each subset of keywords is judged by leave-one-out: how many examples have the decision that
    most *other* examples with the same words under these keywords have (a tie or no such example
    counts as a guess, ``1 / actions``). Among equals the smaller subset wins, so that keywords
    which do not matter leave the prompt.
    """
    names = tuple(examples[0].context) if examples else ()
    best: tuple[float, Keywords] = (-np.inf, names)
    for size in range(1, len(names) + 1):
        for subset in combinations(names, size):
            score = _left_out_accuracy(examples, subset, actions)
            if score > best[0] + 1e-9:
                best = (score, subset)
    return best[1]


def restrict(context: Context, keywords: Keywords) -> Context:
    """Return ``context`` with these keywords alone."""
    return Context({name: context[name] for name in keywords})


def summarise(examples: Sequence[Example], keywords: Keywords) -> list[Example]:
    """Return one example per combination of words under ``keywords``.

    Its decision is the one with the greater number of examples, on a tie the one with the higher
    mean reward; its reward is the mean over the examples with that decision.
    """
    groups: dict[Context, dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
    for example in examples:
        groups[restrict(example.context, keywords)][example.action].append(example.reward)
    rows = []
    for context, rewards in groups.items():
        action = max(rewards, key=lambda a: (len(rewards[a]), np.mean(rewards[a])))
        rows.append(Example(context, action, float(np.mean(rewards[action]))))
    return rows


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


def _left_out_accuracy(examples: Sequence[Example], keywords: Keywords, actions: int) -> float:
    groups: dict[Context, Counter[int]] = defaultdict(Counter)
    keys = [restrict(e.context, keywords) for e in examples]
    for key, example in zip(keys, examples, strict=True):
        groups[key][example.action] += 1
    return float(
        np.mean(
            [
                _majority_of_others(groups[key], example.action, actions)
                for key, example in zip(keys, examples, strict=True)
            ]
        )
    )


def _majority_of_others(counts: Counter[int], action: int, actions: int) -> float:
    others = counts - Counter({action: 1})
    if not others:
        return 1 / actions
    top = max(others.values())
    winners = [a for a, n in others.items() if n == top]
    return (action in winners) / len(winners)


def _shuffled(context: Context, seed: int) -> bytes:
    return hashlib.sha256(f"{seed}|{context.words}".encode()).digest()
