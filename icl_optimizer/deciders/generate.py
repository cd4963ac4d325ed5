"""Decisions that the model writes."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from icl_optimizer.deciders.base import Answer, Decider
from icl_optimizer.deciders.style import Style, styled
from icl_optimizer.decision import MadeBy
from icl_optimizer.experience import Example
from icl_optimizer.llm.errors import ModelError
from icl_optimizer.problem import Context
from icl_optimizer.selection import Order, fit_to, nearest_last

Constrain = Literal["first", "retry"]


@dataclass
class GenerateDecider(Decider):
    """Lets the model write, and reads the label from the text.

    With ``constrain="retry"`` the model writes freely, and an answer that names no label is counted
    as invalid and asked again, held to the labels where the model can be. With
    ``constrain="first"`` such a model is held to them at once. What stays invalid falls back to the
    decision of the best matching example (the first label without any), and is counted too.
    """

    max_tokens: int = 8
    constrain: Constrain = "retry"
    style: Style = "completion"
    order: Order = "alternating"

    def prompt(self, examples: Sequence[Example], query: Context) -> str:
        """Return what the model answers."""
        shown = fit_to(examples, query, self.order)
        return styled(self.model, self.builder, self.style, shown, query)

    def _answer(
        self, orders: Sequence[Sequence[Example]], queries: Sequence[Context]
    ) -> list[Answer]:
        prompts = [self.prompt(orders[0], q) for q in queries]
        held = self.model.capabilities.constrained
        if held and self.constrain == "first":
            actions = [self._ask_held(prompt) for prompt in prompts]
            self.counts.invalid += actions.count(None)
        else:
            actions = self._ask_freely(prompts, held)
        return [self._result(a, orders[0], q) for a, q in zip(actions, queries, strict=True)]

    def _ask_freely(self, prompts: list[str], held: bool) -> list[int | None]:
        texts = self.model.generate(prompts, max_tokens=self.max_tokens)
        actions = [self.parse(text) for text in texts]
        missing = [i for i, action in enumerate(actions) if action is None]
        if held:
            for i in missing:
                actions[i] = self._ask_held(prompts[i])
        # once all is answered: a request that fails is asked again from the start
        self.counts.invalid += len(missing)
        return actions

    def _ask_held(self, prompt: str) -> int | None:
        """Return the answer held to the labels, None where even that gives none of them."""
        try:
            (text,) = self.model.generate([prompt], choices=self.builder.problem.labels)
        except ModelError as error:
            if error.kind != "answer":
                raise
            return None
        return self.parse(text)

    def parse(self, text: str) -> int | None:
        """Return the label that ``text`` begins with, else the only one it names, else None."""
        plain = text.strip().lower()
        labels = [label.lower() for label in self.builder.problem.labels]
        words = [rf"(?<!\w){re.escape(label)}(?!\w)" for label in labels]
        first = [i for i, word in enumerate(words) if re.match(word, plain)]
        if first:
            return max(first, key=lambda i: len(labels[i]))
        named = [i for i, word in enumerate(words) if re.search(word, plain)]
        return named[0] if len(named) == 1 else None

    def _result(self, action: int | None, examples: Sequence[Example], query: Context) -> Answer:
        made_by: MadeBy = "llm"
        if action is None:
            self.counts.fallback += 1
            made_by = "fallback"
            near = nearest_last(examples, query, 1)
            action = near[0].action if near else 0
        count = len(self.builder.problem.labels)
        return Answer(tuple(float(i == action) for i in range(count)), made_by)
