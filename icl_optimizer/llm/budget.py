"""A limit on the requests and the money that models may use together."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import numpy as np
from numpy.typing import NDArray

from icl_optimizer.errors import BudgetError, ConfigurationError
from icl_optimizer.llm.base import Capabilities, LanguageModel, Message
from icl_optimizer.llm.prices import Prices
from icl_optimizer.llm.probe import answer_room
from icl_optimizer.llm.requests import Settle, estimate, passing
from icl_optimizer.llm.usage import Usage
from icl_optimizer.llm.wrapper import ModelWrapper


class Budget:
    """What models may use together, and what they have used. Safe from several threads.

    Each request counts before it is sent: those that find out what a model can do, those for its
    tokens, repeated and failed ones. Its cost is estimated (four bytes a token, the longest answer
    allowed) and replaced by that of the tokens which the model reports; where it reports none, as
    for a request that failed, the estimate stands.

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
        self._unpriced = False
        self._lock = threading.Lock()

    @property
    def calls(self) -> int:
        """Requests sent so far."""
        return self._calls

    @property
    def cost(self) -> float | None:
        """USD spent so far, estimates included; None when a model without a price was asked."""
        return None if self._unpriced else self._spent

    def check(self, name: str) -> None:
        """Raise ConfigurationError if money is limited and the price of ``name`` is not known."""
        if self.max_cost is not None and self._prices.find(name) is None:
            raise ConfigurationError(
                f"max_cost is {self.max_cost}, but the price of '{name}' is not known. Give a "
                "price table, a CSV file with the columns model,input,output (USD per million "
                f"tokens) and a line such as '{name},0.5,1.5'."
            )

    def admit(self, name: str, estimates: Sequence[Usage]) -> list[Settle]:
        """Count requests before they are sent, at what they are estimated to cost.

        Args:
            name: The model that is asked.
            estimates: The tokens of each request.

        Returns:
            For each one, what replaces the estimate by the tokens that the model reports.

        Raises:
            BudgetError: They do not fit; none of them may be sent.
        """
        costs = [self._prices.cost(name, each) for each in estimates]
        with self._lock:
            self._refuse(len(estimates), sum(cost or 0.0 for cost in costs))
            self._calls += len(estimates)
            self._spent += sum(cost or 0.0 for cost in costs)
            self._unpriced |= None in costs
        return [partial(self.settle, name, each) for each in estimates]

    def settle(self, name: str, estimate: Usage, used: Usage) -> None:
        """Replace an estimate by what was used; where no tokens are reported it stands."""
        if used.prompt_tokens:
            change = self._cost(name, used) - self._cost(name, estimate)
            with self._lock:
                self._spent += change

    def check_room(self, name: str, estimates: Sequence[Usage]) -> None:
        """Raise BudgetError if requests do not fit any more; nothing is counted."""
        cost = sum(self._cost(name, each) for each in estimates)
        with self._lock:
            self._refuse(len(estimates), cost)

    def count(self, name: str, requests: int) -> None:
        """Count requests of which nobody was told before."""
        with self._lock:
            self._calls += requests
            self._unpriced |= requests > 0 and self._prices.find(name) is None

    def _cost(self, name: str, used: Usage) -> float:
        return self._prices.cost(name, used) or 0.0

    def _refuse(self, calls: int, cost: float) -> None:
        if self.max_calls is not None and self._calls + calls > self.max_calls:
            raise BudgetError(
                f"the budget is {self.max_calls} requests: {self._calls} were sent, and {calls} "
                "more do not fit. What was finished is kept; --resume goes on from there with a "
                "budget of its own."
            )
        if self.max_cost is not None and self._spent + cost > self.max_cost:
            raise BudgetError(
                f"the budget is {self.max_cost:.4f} USD: {self._spent:.4f} USD are used by "
                f"{self._calls} requests, and {calls} more, about {cost:.4f} USD, do not fit. "
                "What was finished is kept; --resume goes on from there with a budget of its own."
            )


class BudgetedModel(ModelWrapper):
    """Asks only what still fits into a budget; a batch that cannot fit is not begun.

    Of a model that does not announce its requests (a package of its own may bring one), the first
    request for each prompt counts before, and any further one afterwards.

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

    def count_tokens(self, text: str) -> int:
        """Return how many tokens the model reads for ``text``; a server may have to be asked."""
        with self._spending([], 0):
            return super().count_tokens(text)

    def apply_template(self, messages: Sequence[Message]) -> str:
        """Return the messages as a prompt; a server may have to be asked."""
        with self._spending([], 0):
            return super().apply_template(messages)

    def _first_tokens(self, prompt: str, labels: list[str]) -> list[str]:
        with self._spending([], 0):
            return super()._first_tokens(prompt, labels)

    def _probe(self) -> Capabilities:
        with self._spending([], 0):
            return super()._probe()

    def _score(self, prompts: list[str], labels: list[str]) -> NDArray[np.float64]:
        with self._spending(prompts, 1):
            return super()._score(prompts, labels)

    def _likelihood(self, prompts: list[str], texts: list[str]) -> list[float]:
        with self._spending([p + t for p, t in zip(prompts, texts, strict=True)], 1):
            return super()._likelihood(prompts, texts)

    def _generate(
        self, prompts: list[str], max_tokens: int, choices: list[str] | None, stop: list[str]
    ) -> list[str]:
        with self._spending(prompts, max_tokens if choices is None else answer_room(choices)):
            return super()._generate(prompts, max_tokens, choices, stop)

    def _chat(self, messages: list[Message], max_tokens: int) -> str:
        with self._spending(["".join(message["content"] for message in messages)], max_tokens):
            return super()._chat(messages, max_tokens)

    def _embed(self, texts: list[str]) -> NDArray[np.float64]:
        # texts are one request, where requests are announced
        with self._spending(["".join(texts)] if self.inner.announces else texts, 0):
            return super()._embed(texts)

    @contextmanager
    def _spending(self, prompts: Sequence[str], max_tokens: int) -> Iterator[None]:
        """Count what the block sends; from a model that announces nothing, one for each prompt."""
        name, admit = self.inner.name, partial(self.budget.admit, self.inner.name)
        estimates = [estimate(prompt, max_tokens) for prompt in prompts]
        if self.inner.announces:
            self.budget.check_room(name, estimates)
            with passing(admit):
                yield
            return
        admit(estimates)
        whole = sum(estimates, Usage())
        with self.inner.usage.watch() as used:
            try:
                yield
                self.budget.settle(name, whole, used)
            finally:
                self.budget.count(name, max(0, used.calls - len(prompts)))


__all__ = ["Budget", "BudgetedModel"]
