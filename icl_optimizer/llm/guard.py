"""Retries, cache and budget around a model, in the order that works."""

from __future__ import annotations

from pathlib import Path
from typing import Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from icl_optimizer.llm.base import LanguageModel
from icl_optimizer.llm.budget import Budget, BudgetedModel
from icl_optimizer.llm.chain import ModelChain
from icl_optimizer.llm.prices import Prices
from icl_optimizer.llm.resilience import BreakerPolicy, ResilientModel, RetryPolicy
from icl_optimizer.llm.response_cache import CachedModel
from icl_optimizer.llm.wrapper import unwrapped


class GuardOptions(BaseModel):
    """What stands between a caller and a model."""

    model_config = ConfigDict(frozen=True, extra="forbid", arbitrary_types_allowed=True)

    retry: RetryPolicy = Field(RetryPolicy(), description="When a remote model is asked again.")
    breaker: BreakerPolicy = Field(
        BreakerPolicy(), description="When a remote model is left alone for a while."
    )
    cache: Path | None = Field(None, description="Folder of the response cache; None: no cache.")
    replay: bool = Field(False, description="Answer from the cache alone and ask no model.")
    budget: Budget | None = Field(None, description="What models may use together; None: any.")
    price_table: Path | None = Field(
        None, description="CSV file with prices that go before the shipped ones."
    )

    @property
    def prices(self) -> Prices:
        """What models cost."""
        return Prices.load(self.price_table)

    @model_validator(mode="after")
    def _check_replay(self) -> Self:
        if self.replay and self.cache is None:
            raise ValueError("a replay needs the folder of a recording; give cache")
        return self


def guard(model: LanguageModel, options: GuardOptions) -> LanguageModel:
    """Return ``model`` with what ``options`` ask for around it.

    From the outside: the cache, whose answers cost nothing; retries and the circuit breaker, for
    models outside this process; the budget, which counts every request that is sent. The models
    of a chain get their own each, and share the budget and the folder of the cache.

    Raises:
        ConfigurationError: Money is limited and a model's price is not known, or there is no
            recording to replay.
    """
    if isinstance(model, ModelChain):
        return ModelChain([guard(each, options) for each in model.models])
    if options.replay and options.cache is not None:
        return CachedModel(model, options.cache, "replay")
    remote = unwrapped(model).remote
    if options.budget is not None:
        model = BudgetedModel(model, options.budget)
    if remote:
        model = ResilientModel(model, options.retry, options.breaker)
    return model if options.cache is None else CachedModel(model, options.cache)


def spent(model: LanguageModel, prices: Prices) -> float | None:
    """Return what the tokens of ``model`` so far cost at the list price, in USD.

    Returns:
        None when the price of a model that was asked is not known.
    """
    models = model.models if isinstance(model, ModelChain) else (model,)
    costs = [prices.cost(each.name, each.usage) for each in models if each.usage.calls]
    return None if None in costs else sum(cost for cost in costs if cost is not None)


__all__ = ["GuardOptions", "guard", "spent"]
