"""A limit on the requests and the money that models may use together."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
from numpy.typing import NDArray

from icl_optimizer.errors import BudgetError, ConfigurationError
from icl_optimizer.llm.base import Capabilities, LanguageModel, Message
from icl_optimizer.llm.prices import Prices
from icl_optimizer.llm.usage import Usage
from icl_optimizer.llm.wrapper import ModelWrapper

_LETTERS = 4  # per token, where tokens are not counted yet


class Budget:
    """What models may use together, and what they have used. Safe from several threads.

    Each request that is sent counts, also one that fails. Its cost is estimated before (four
    characters a token, the longest answer allowed) and replaced by that of the tokens which the
    model reports; where it reports none, the estimate stands.

    Args:
        max_calls: The most requests; None for any number.
        max_cost: The most USD; None for any sum.
        prices: What models cost; None for the shipped table.

    Raises:
        ConfigurationError: A limit is negative.
    """

    def __init__(
        self,
        max_calls: int | None = None,
        max_cost: float | None = None,
        prices: Prices | None = None,
    ) -> None:
        """Begin with nothing used."""
        for field, limit in (("max_calls", max_calls), ("max_cost", max_cost)):
            if limit is not None and not limit >= 0:
                raise ConfigurationError(f"{field} is {limit}; allowed: 0 or more, or None.")
        self.max_calls = max_calls
        self.max_cost = max_cost
        self._prices = prices or Prices.load()
        self._calls = 0
        self._spent = 0.0
        self._held = 0.0
        self._unpriced = False
        self._lock = threading.Lock()

    @property
    def calls(self) -> int:
        """Requests sent so far."""
        return self._calls

    @property
    def cost(self) -> float | None:
        """USD spent so far; None when a model without a known price was asked."""
        return None if self._unpriced else self._spent

    def check(self, name: str) -> None:
        """Raise ConfigurationError if money is limited and the price of ``name`` is not known."""
        if self.max_cost is not None and self._prices.find(name) is None:
            raise ConfigurationError(
                f"max_cost is {self.max_cost}, but the price of '{name}' is not known. Give a "
                "price table, a CSV file with the columns model,input,output (USD per million "
                f"tokens) and a line such as '{name},0.5,1.5'."
            )

    @contextmanager
    def spending(self, model: LanguageModel, calls: int, estimate: Usage) -> Iterator[None]:
        """Reserve requests before they are sent, and settle their cost afterwards.

        Args:
            model: Who is asked, in the thread of the block.
            calls: Requests that the block sends.
            estimate: The tokens they will take.

        Raises:
            BudgetError: They do not fit; nothing was sent.
        """
        held = self._prices.cost(model.name, estimate) or 0.0
        with self._lock:
            self._refuse(calls, held)
            self._calls += calls
            self._held += held
        spent = 0.0
        try:
            with model.usage.watch() as used:
                yield
            spent = held if calls and not used.prompt_tokens else 0.0
        finally:
            cost = self._prices.cost(model.name, used)
            with self._lock:
                # looking at what a model can do, or at rare labels, takes requests of its own
                self._calls += max(0, used.calls - calls)
                self._held -= held
                self._spent += spent + (cost or 0.0)
                self._unpriced |= cost is None

    def _refuse(self, calls: int, cost: float) -> None:
        if self.max_calls is not None and self._calls + calls > self.max_calls:
            raise BudgetError(
                f"the budget is {self.max_calls} requests: {self._calls} were sent, and {calls} "
                "more do not fit. What was finished is kept; --resume goes on from there with a "
                "budget of its own."
            )
        under_way = self._spent + self._held
        if self.max_cost is not None and under_way + cost > self.max_cost:
            raise BudgetError(
                f"the budget is {self.max_cost:.4f} USD: {under_way:.4f} USD are used by "
                f"{self._calls} requests, and {calls} more, about {cost:.4f} USD, do not fit. "
                "What was finished is kept; --resume goes on from there with a budget of its own."
            )


class BudgetedModel(ModelWrapper):
    """Asks only what still fits into a budget; a batch is sent whole or not at all.

    It belongs around the model itself, inside of retries, which are requests too, and of a cache,
    whose answers cost nothing.

    Args:
        inner: The model that answers.
        budget: Perhaps shared with other models.
    """

    def __init__(self, inner: LanguageModel, budget: Budget) -> None:
        """Wrap ``inner``.

        Raises:
            ConfigurationError: Money is limited and the model's price is not known.
        """
        super().__init__(inner)
        budget.check(inner.name)
        self.budget = budget

    def _probe(self) -> Capabilities:
        with self.budget.spending(self.inner, 0, Usage()):
            return self.inner.capabilities

    def _score(self, prompts: list[str], labels: list[str]) -> NDArray[np.float64]:
        with self._spending(prompts, 1):
            return super()._score(prompts, labels)

    def _likelihood(self, prompts: list[str], texts: list[str]) -> list[float]:
        with self._spending([p + t for p, t in zip(prompts, texts, strict=True)], 1):
            return super()._likelihood(prompts, texts)

    def _generate(
        self, prompts: list[str], max_tokens: int, choices: list[str] | None, stop: list[str]
    ) -> list[str]:
        with self._spending(prompts, max_tokens):
            return super()._generate(prompts, max_tokens, choices, stop)

    def _chat(self, messages: list[Message], max_tokens: int) -> str:
        with self._spending(["".join(message["content"] for message in messages)], max_tokens):
            return super()._chat(messages, max_tokens)

    def _embed(self, texts: list[str]) -> NDArray[np.float64]:
        with self._spending(texts, 0):
            return super()._embed(texts)

    @contextmanager
    def _spending(self, prompts: Sequence[str], max_tokens: int) -> Iterator[None]:
        """Reserve one request for each prompt and the tokens of its longest answer."""
        estimate = Usage(
            prompt_tokens=sum(-(-len(prompt) // _LETTERS) for prompt in prompts),
            completion_tokens=len(prompts) * max_tokens,
        )
        with self.budget.spending(self.inner, len(prompts), estimate):
            yield


__all__ = ["Budget", "BudgetedModel"]
