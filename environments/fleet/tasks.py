"""Small tasks with known answers, one kind for each task type, so that answers can be scored."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from icl_optimizer.environments.slo_scheduling_config import TASK_TYPES

_NAMES = ("Anna", "Ben", "Clara", "David", "Emma", "Frank", "Grace", "Henry")
_THINGS = ("apple", "bread", "cup", "desk", "lamp", "pen", "shoe", "table")
_COMPARED = (("taller", "tallest"), ("older", "oldest"), ("faster", "fastest"))
_GOOD = ("I loved every minute of it.", "What a wonderful film.", "The food was excellent.")
_BAD = ("I hated every minute of it.", "What a terrible film.", "The food was awful.")
_AS_LIST = "Write as a JSON list of strings: {}"
_SHOWN: dict[str, tuple[dict[str, str], ...]] = {
    "coding": (
        {"role": "user", "content": _AS_LIST.format("sun, moon, star")},
        {"role": "assistant", "content": '["sun", "moon", "star"]'},
    )
}
"""An example that goes before a task, where small models would not see what is wanted."""


@dataclass(frozen=True)
class CheckableTask:
    """A task that a language model is asked, and what its answer must hold.

    Attributes:
        kind: Index of the task type in :data:`TASK_TYPES`.
        messages: The conversation, in OpenAI's form.
        max_tokens: Most tokens of the answer.
        answer: What is right.
        others: What is wrong, and plausible.
    """

    kind: int
    messages: tuple[dict[str, str], ...]
    max_tokens: int
    answer: str
    others: tuple[str, ...] = ()

    @property
    def body(self) -> dict[str, Any]:
        """The request in OpenAI's form, streamed, without randomness."""
        return {
            "messages": list(self.messages),
            "max_tokens": self.max_tokens,
            "temperature": 0.0,
            "stream": True,
            "stream_options": {"include_usage": True},
        }

    def check(self, text: str) -> float:
        """Return the score of an answer, 0 to 1."""
        return _CHECKS.get(TASK_TYPES[self.kind], _holds)(self, text)


def draw_checkable(kind: int, rng: np.random.Generator) -> CheckableTask:
    """Return a task of the type ``TASK_TYPES[kind]``, drawn from ``rng``."""
    name = TASK_TYPES[kind]
    text, max_tokens, answer, others = _DRAWN[name](rng)
    messages = (*_SHOWN.get(name, ()), {"role": "user", "content": text})
    return CheckableTask(kind, messages, max_tokens, answer, others)


_Drawn = tuple[str, int, str, tuple[str, ...]]


def _pick(rng: np.random.Generator, items: Sequence[str], count: int) -> list[str]:
    return [items[i] for i in rng.permutation(len(items))[:count]]


def _reasoning(rng: np.random.Generator) -> _Drawn:
    first, second, third = _pick(rng, _NAMES, 3)
    more, most = _COMPARED[int(rng.integers(len(_COMPARED)))]
    facts = [f"{first} is {more} than {second}.", f"{second} is {more} than {third}."]
    if rng.random() < 0.5:
        facts.reverse()
    text = f"{' '.join(facts)} Who is the {most}? Give the name first, then explain why."
    return text, 56, first, (second, third)


def _coding(rng: np.random.Generator) -> _Drawn:
    things = _pick(rng, _THINGS, int(rng.integers(3, 7)))
    return _AS_LIST.format(", ".join(things)), 40, json.dumps(things), ()


def _math(rng: np.random.Generator) -> _Drawn:
    a, b = (int(x) for x in rng.integers(2, 10, size=2))
    if rng.random() < 0.5:
        return f"What is {a} + {b}?", 20, str(a + b), ()
    return f"What is {a} times {b}?", 20, str(a * b), ()


def _data_analysis(rng: np.random.Generator) -> _Drawn:
    things = _pick(rng, _THINGS, 4)
    prices = [str(10 + int(x)) for x in rng.permutation(80)[:4]]
    wanted = int(rng.integers(4))
    rows = "\n".join(f"{thing}: {price}" for thing, price in zip(things, prices, strict=True))
    text = f"Prices:\n{rows}\nWhat is the price of the {things[wanted]}? Answer in one sentence."
    others = tuple(price for i, price in enumerate(prices) if i != wanted)
    return text, 32, prices[wanted], others


def _language(rng: np.random.Generator) -> _Drawn:
    good = rng.random() < 0.5
    words = ("positive", "negative") if good else ("negative", "positive")
    reviews = _GOOD if good else _BAD
    review = reviews[int(rng.integers(len(reviews)))]
    text = f'Is this review positive or negative? "{review}" Answer with one word.'
    return text, 12, words[0], (words[1],)


def _holds(task: CheckableTask, text: str) -> float:
    """Return whether the right answer occurs, and none of the wrong ones."""
    words = set(re.findall(r"\w+", text.lower()))
    wrong = any(other.lower() in words for other in task.others)
    return float(task.answer.lower() in words and not wrong)


def _first_named(task: CheckableTask, text: str) -> float:
    """Return whether the right one of the names is the first that occurs."""
    names = [w for w in re.findall(r"\w+", text) if w in (task.answer, *task.others)]
    return float(names[:1] == [task.answer])


def _is_list(task: CheckableTask, text: str) -> float:
    """Return 1 for the very list, 0.5 for a list of some of its words, 0 for anything else."""
    found = re.search(r"\[[^\[\]]*\]", text)
    try:
        items = json.loads(found.group()) if found else None
    except ValueError:
        return 0.0
    wanted = json.loads(task.answer)
    if items == wanted:
        return 1.0
    return 0.5 if items and all(item in wanted for item in items) else 0.0


_DRAWN: dict[str, Callable[[np.random.Generator], _Drawn]] = {
    "reasoning": _reasoning,
    "coding": _coding,
    "math": _math,
    "data analysis": _data_analysis,
    "language": _language,
}
_CHECKS: dict[str, Callable[[CheckableTask, str], float]] = {
    "reasoning": _first_named,
    "coding": _is_list,
}
