"""The task type of a request that does not name it."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest

from icl_optimizer.environments.fleet.tasks import draw_checkable
from icl_optimizer.environments.slo_scheduling_config import TASK_TYPES
from icl_optimizer.router.classifier import (
    MOST_CHARACTERS,
    TaskClassifier,
    new_model,
    prompt_text,
    task_prompts,
)


@pytest.fixture(scope="module")
def classifier() -> TaskClassifier:
    return TaskClassifier()


def test_shipped_prompts_are_balanced_and_apart() -> None:
    learned, held_out = task_prompts("train"), task_prompts("test")
    assert Counter(p.task for p in learned) == dict.fromkeys(TASK_TYPES, 70)
    assert Counter(p.task for p in held_out) == dict.fromkeys(TASK_TYPES, 15)
    texts = [" ".join(p.prompt.lower().split()) for p in learned + held_out]
    assert len(set(texts)) == len(texts)


def test_most_held_out_prompts_are_recognised(classifier: TaskClassifier) -> None:
    found = [(p.task, classifier.classify(p.prompt)[0]) for p in task_prompts("test")]
    right = Counter(task for task, guess in found if task == guess)
    assert sum(right.values()) / len(found) > 0.8
    assert min(right[task] for task in TASK_TYPES) > 9


@pytest.mark.parametrize("kind", range(len(TASK_TYPES)), ids=TASK_TYPES)
def test_tasks_of_the_fleet_are_recognised(classifier: TaskClassifier, kind: int) -> None:
    rng = np.random.default_rng(0)
    asked = [prompt_text(draw_checkable(kind, rng).body) for _ in range(30)]
    right = [classifier.classify(text)[0] == TASK_TYPES[kind] for text in asked]
    assert np.mean(right) > 0.8


def test_two_trained_alike_answer_alike(classifier: TaskClassifier) -> None:
    texts = [p.prompt for p in task_prompts("test")]
    again = TaskClassifier()
    assert [again.classify(t) for t in texts] == [classifier.classify(t) for t in texts]


def test_probability_is_that_of_the_model(classifier: TaskClassifier) -> None:
    learned = task_prompts("train")
    model = new_model().fit([p.prompt for p in learned], [p.task for p in learned])
    texts = [p.prompt for p in task_prompts("test")]
    expected = model.predict_proba(texts)
    found = [classifier.classify(text) for text in texts]
    assert [name for name, _ in found] == list(model.classes_[expected.argmax(axis=1)])
    assert [p for _, p in found] == pytest.approx(expected.max(axis=1))


@pytest.mark.parametrize("text", ["", "  \n\t", "\x00", "🦜", "\ud800", "zzzz qqqq", "`" * 9000])
def test_any_text_gets_a_type(classifier: TaskClassifier, text: str) -> None:
    task, probability = classifier.classify(text)
    assert task in TASK_TYPES
    assert 1 / len(TASK_TYPES) <= probability <= 1


def test_without_text_it_is_a_guess(classifier: TaskClassifier) -> None:
    assert classifier.classify("") == ("language", pytest.approx(0.2))


def test_only_the_start_counts(classifier: TaskClassifier) -> None:
    start = "What is 17 * 24? ".ljust(MOST_CHARACTERS)
    assert classifier.classify(start + "translate into French " * 500) == classifier.classify(start)


@pytest.mark.parametrize(
    ("body", "text"),
    [
        ({"messages": [{"role": "user", "content": "hello"}]}, "hello"),
        (
            {
                "messages": [
                    {"role": "system", "content": "be brief"},
                    {"role": "user", "content": "first"},
                    {"role": "assistant", "content": "yes"},
                    {"role": "user", "content": "second"},
                    {"role": "assistant", "content": "so"},
                ]
            },
            "second",
        ),
        (
            {
                "messages": [
                    {
                        "role": "user",
                        "content": [
                            {"type": "text", "text": "what is"},
                            {"type": "image_url", "image_url": {"url": "data:"}, "text": "no"},
                            {"type": "text", "text": "this?"},
                            {"type": "text", "text": 5},
                        ],
                    }
                ]
            },
            "what is\nthis?",
        ),
        ({"prompt": "def f("}, "def f("),
        ({"prompt": ["one", "two"]}, "one\ntwo"),
        ({"prompt": [12, 99]}, ""),
        ({"messages": [{"role": "system", "content": "be brief"}]}, ""),
        ({"messages": [{"role": "user", "content": None}, "hello"]}, ""),
        ({"messages": []}, ""),
        ({}, ""),
    ],
)
def test_text_of_a_request(body: dict[str, Any], text: str) -> None:
    assert prompt_text(body) == text
