"""A decider for several models: each is asked in its own way, the next one when one fails."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from icl_optimizer.deciders.base import Answer, Decider
from icl_optimizer.errors import ConfigurationError
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
    _chain: list[tuple[str, LanguageModel]] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Give each model a name of its own."""
        models = self.model.models if isinstance(self.model, ModelChain) else (self.model,)
        names: Counter[str] = Counter()
        for model in models:
            names[model.name] += 1
            number = names[model.name]
            self._chain.append((model.name if number == 1 else f"{model.name} ({number})", model))

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
        for name, model in self._chain:
            try:
                answers = self._decider(name, model).answer(orders, queries)
            except ModelError as error:
                failures.append(error)
                self.passed_on.setdefault(name, Counter())[error.kind] += len(queries)
                continue
            self.answered_by[name] += len(queries)
            return answers
        raise combined(failures)

    def _first_possible(self) -> Decider:
        failures = []
        for name, model in self._chain:
            try:
                return self._decider(name, model)
            except ModelError as error:
                failures.append(error)
        raise combined(failures)

    def _decider(self, name: str, model: LanguageModel) -> Decider:
        if name not in self.deciders:
            try:
                self.deciders[name] = self.make(model)
            except ConfigurationError as error:
                if len(self._chain) == 1:
                    raise
                # one that cannot do what is asked for must not keep the others from it
                raise ModelError(str(error), "request") from error
        return self.deciders[name]
