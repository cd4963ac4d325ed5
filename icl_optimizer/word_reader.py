"""Which of a few words continues a prompt, asked of whatever a model can do."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from icl_optimizer.deciders.base import normalised
from icl_optimizer.errors import ModelError
from icl_optimizer.llm.base import LanguageModel
from icl_optimizer.llm.chain import ModelChain, combined

Floats = NDArray[np.float64]


@dataclass
class WordReader:
    """Asks a model for the probability of each word after a prompt; of a chain, one by one.

    A model with log-probabilities scores the words. Another one writes, held to them where it can
    be; the word it writes has the probability 1. An answer that names none of them is invalid.

    Attributes:
        model: The language model, or a chain of which the next one is asked when one fails.
        words: The words.
        invalid: Answers that named none.
        answered_by: Prompts answered, by name of the model.
        passed_on: Prompts that a model of a chain failed to answer, by its name and the kind of
            failure.
    """

    model: LanguageModel
    words: tuple[str, ...]
    invalid: int = 0
    answered_by: Counter[str] = field(default_factory=Counter)
    passed_on: dict[str, Counter[str]] = field(default_factory=dict)

    @property
    def models(self) -> tuple[LanguageModel, ...]:
        """The models, the preferred one first."""
        return self.model.models if isinstance(self.model, ModelChain) else (self.model,)

    def ask(self, prompts: Sequence[str]) -> Floats:
        """Return the probability of each word, ``(n, words)``; NaN where the answer is invalid.

        Raises:
            ModelError: No model answered.
        """
        if not prompts:
            return np.zeros((0, len(self.words)))
        failures = []
        for model in self.models:
            try:
                answers = self._ask(model, prompts)
            except ModelError as error:
                failures.append(error)
                if len(self.models) > 1:
                    kinds = self.passed_on.setdefault(model.name, Counter())
                    kinds[error.kind] += len(prompts)
                continue
            self.answered_by[model.name] += len(prompts)
            return answers
        raise combined(failures)

    def _ask(self, model: LanguageModel, prompts: Sequence[str]) -> Floats:
        if not model.capabilities.logprobs:
            return self._written(model, prompts)
        try:
            return np.exp(normalised(model.score(prompts, [f" {word}" for word in self.words])))
        except ModelError as error:
            if error.kind != "answer":
                raise
        # none of the few alternatives that it lists is one of the words
        if len(prompts) > 1:
            return np.concatenate([self._ask(model, [prompt]) for prompt in prompts])
        return self._written(model, prompts)

    def _written(self, model: LanguageModel, prompts: Sequence[str]) -> Floats:
        held = self.words if model.capabilities.constrained else None
        texts = model.generate(prompts, choices=held)
        rows = np.array([self._parsed(text) for text in texts])
        self.invalid += int(np.isnan(rows).any(axis=1).sum())
        return rows

    def _parsed(self, text: str) -> list[float]:
        """Return 1 for the word that ``text`` begins with, NaN for all where it is none."""
        first = re.match(r"\w*", text.strip().lower())
        if first is None or first[0] not in self.words:
            return [np.nan] * len(self.words)
        return [float(word == first[0]) for word in self.words]
