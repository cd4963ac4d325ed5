"""A decider for several models: each is asked in its own way, the next one when one fails."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from icl_optimizer.deciders.base import Answer, Decider
from icl_optimizer.experience import Example
from icl_optimizer.llm.base import LanguageModel
from icl_optimizer.llm.chain import ModelChain, combined
from icl_optimizer.llm.errors import ModelError
from icl_optimizer.problem import Context


@dataclass
class ChainDecider(Decider):
    """Asks the models of a chain in order until one answers; a single model is a chain of one.

    Each gets the decider that suits it, made when it is first asked: what a model can do is not
    known before, and one that is never needed is never asked.

    Attributes:
        make: Returns the decider of a model.
        answered_by: Queries answered, by name of the model.
        passed_on: Queries that a model failed to answer, by its name and the kind of failure.
        deciders: Those made so far, by name of the model.
    """

    make: Callable[[LanguageModel], Decider] = field(kw_only=True)
    answered_by: Counter[str] = field(default_factory=Counter)
    passed_on: dict[str, Counter[str]] = field(default_factory=dict)
    deciders: dict[str, Decider] = field(default_factory=dict)

    def prepare(self) -> None:
        """Find out now what the first model that answers can do.

        Raises:
            ConfigurationError: It cannot do what is asked of it.
            ModelError: No model answers.
        """
        self._first_possible()

    def prompt(self, examples: Sequence[Example], query: Context) -> str:
        """Return the text that the first model that can be asked is sent."""
        return self._first_possible().prompt(examples, query)

    def _answer(
        self, orders: Sequence[Sequence[Example]], queries: Sequence[Context]
    ) -> list[Answer]:
        failures = []
        for model in self._models:
            try:
                answers = self._decider(model).answer(orders, queries)
            except ModelError as error:
                failures.append(error)
                self.passed_on.setdefault(model.name, Counter())[error.kind] += len(queries)
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
        if model.name not in self.deciders:
            self.deciders[model.name] = self.make(model)
        return self.deciders[model.name]

    @property
    def _models(self) -> tuple[LanguageModel, ...]:
        return self.model.models if isinstance(self.model, ModelChain) else (self.model,)
