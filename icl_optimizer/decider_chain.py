"""A decider for several models: each is asked in its own way, the next one when one fails."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields

from icl_optimizer.deciders import Answer, Decider, DeciderCounts
from icl_optimizer.experience import Example
from icl_optimizer.llm.base import LanguageModel
from icl_optimizer.llm.chain import ModelChain, combined
from icl_optimizer.llm.errors import ModelError
from icl_optimizer.problem import Context


@dataclass
class ChainDecider(Decider):
    """Asks the models of a chain in order until one answers.

    Each gets the decider that suits it, made when it is first asked: what a model can do is not
    known before, and one that is never needed is never asked.

    Attributes:
        make: Returns the decider of a model.
        answered_by: Queries answered, by name of the model.
    """

    make: Callable[[LanguageModel], Decider] = field(kw_only=True)
    answered_by: Counter[str] = field(default_factory=Counter)
    _deciders: dict[str, Decider] = field(default_factory=dict)

    def prompt(self, examples: Sequence[Example], query: Context) -> str:
        """Return the text that the first model that can be asked is sent."""
        return self._first_possible().prompt(examples, query)

    @property
    def total(self) -> DeciderCounts:
        """The counts of all deciders; a query that two of them were asked counts once."""
        parts = [decider.counts for decider in self._deciders.values()]
        sums = {f.name: sum(getattr(part, f.name) for part in parts) for f in fields(DeciderCounts)}
        return DeciderCounts(**sums | {"asked": self.counts.asked})

    def _answer(
        self, orders: Sequence[Sequence[Example]], queries: Sequence[Context]
    ) -> list[Answer]:
        failures = []
        for model in self._models:
            try:
                answers = self._decider(model).answer(orders, queries)
            except ModelError as error:
                failures.append(error)
                continue
            self.answered_by[model.name] += len(queries)
            return answers
        raise combined(failures)

    def _first_possible(self) -> Decider:
        failures = []
        for model in self._models:
            try:
                return self._decider(model)
            except ModelError as error:
                failures.append(error)
        raise combined(failures)

    def _decider(self, model: LanguageModel) -> Decider:
        if model.name not in self._deciders:
            self._deciders[model.name] = self.make(model)
        return self._deciders[model.name]

    @property
    def _models(self) -> tuple[LanguageModel, ...]:
        assert isinstance(self.model, ModelChain), "made for chains alone"
        return self.model.models
