"""Several models in order: the next one is asked when one fails."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import reduce
from operator import add
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from icl_optimizer.errors import ConfigurationError
from icl_optimizer.llm.base import Capabilities, LanguageModel, Message
from icl_optimizer.llm.credentials import refuse_credentials
from icl_optimizer.llm.errors import ModelError
from icl_optimizer.llm.usage import Usage

T = TypeVar("T")


class ModelChain(LanguageModel):
    """A model and those that stand in for it, as in ``openai:gpt-4o,ollama:llama3.1:8b,llamacpp``.

    As a model it passes a request to the first one that answers. Vectors of two models cannot be
    compared, so the first one that embeds is the only one that does, and its failures are raised.
    An in-context agent goes further and asks each one in the way that suits it.

    Args:
        models: The models, the preferred one first.
    """

    def __init__(self, models: Sequence[LanguageModel]) -> None:
        """Keep the models; none is asked."""
        if not models:
            raise ConfigurationError("models is empty; allowed: at least one model.")
        super().__init__(",".join(model.name for model in models))
        self.models = tuple(models)
        self.remote = False  # each model asks for permission itself
        self._embedder: LanguageModel | None = None
        self._choosing = threading.Lock()

    @property
    def usage(self) -> Usage:
        """The counters of all models together, as they are now."""
        return reduce(add, (model.usage.snapshot() for model in self.models))

    @property
    def identity(self) -> dict[str, Any]:
        """Those of all models, in order."""
        return {"name": self.name, "models": [model.identity for model in self.models]}

    def count_tokens(self, text: str) -> int:
        """Return how many tokens the first model that answers reads for ``text``."""
        return self._first(lambda model: model.count_tokens(text))

    def reset(self) -> None:
        """Reset every model."""
        for model in self.models:
            model.reset()

    def begin_recording(self, name: str) -> None:
        """Pass the name on to every model; which one embeds is found out anew."""
        self._embedder = None
        for model in self.models:
            model.begin_recording(name)

    def close(self) -> None:
        """Close every model."""
        for model in self.models:
            model.close()

    def _first(self, ask: Callable[[LanguageModel], T]) -> T:
        failures = []
        for model in self.models:
            try:
                return ask(model)
            except ModelError as error:
                failures.append(error)
        raise combined(failures)

    def _probe(self) -> Capabilities:
        return self._first(lambda model: model.capabilities)

    def _score(self, prompts: list[str], labels: list[str]) -> NDArray[np.float64]:
        return self._first(lambda model: model.score(prompts, labels))

    def _likelihood(self, prompts: list[str], texts: list[str]) -> list[float]:
        return self._first(lambda model: list(map(float, model.likelihood(prompts, texts))))

    def _generate(
        self, prompts: list[str], max_tokens: int, choices: list[str] | None, stop: list[str]
    ) -> list[str]:
        return self._first(lambda model: model.generate(prompts, max_tokens, choices, stop))

    def _chat(self, messages: list[Message], max_tokens: int) -> str:
        return self._first(lambda model: model.chat(messages, max_tokens))

    def _embed(self, texts: list[str]) -> NDArray[np.float64]:
        with self._choosing:  # threads that ask at once get vectors of the same model
            if self._embedder is None:
                return self._first(lambda model: self._embedded_first(model, texts))
        return self._embedder.embed(texts)

    def _embedded_first(self, model: LanguageModel, texts: list[str]) -> NDArray[np.float64]:
        """Return the vectors of a model, which is the only one that embeds from here on."""
        if not model.capabilities.embeddings:  # others were asked for those of the chain
            raise ModelError(f"'{model.name}' cannot embed texts.")
        vectors = model.embed(texts)
        self._embedder = model
        return vectors

    def _first_tokens(self, prompt: str, labels: list[str]) -> list[str]:
        return self._first(lambda model: model._first_tokens(prompt, labels))

    @contextmanager
    def _timed(self) -> Iterator[None]:
        yield


@contextmanager
def watched(model: LanguageModel) -> Iterator[list[Usage]]:
    """Yield what the block makes each model of ``model`` do, in this thread and those it starts."""
    models = model.models if isinstance(model, ModelChain) else (model,)
    with ExitStack() as stack:
        yield [stack.enter_context(each.usage.watch()) for each in models]


def combined(failures: Sequence[ModelError]) -> ModelError:
    """Return one error that says what every model said."""
    if len(failures) == 1:
        return failures[0]
    text = " Then ".join(str(failure) for failure in failures)
    return ModelError(f"no model of the chain answered. {text}", failures[-1].kind)


def split_chain(spec: str) -> list[str]:
    """Return the specs of a chain; a comma separates them.

    Raises:
        ConfigurationError: It holds a secret, a part is empty, or the same model stands twice.
    """
    refuse_credentials(spec)
    parts = [part.strip() for part in spec.split(",")]
    if not all(parts):
        raise ConfigurationError(f"the LLM '{spec}' has an empty part; write 'FIRST,SECOND'.")
    if len(set(parts)) != len(parts):
        raise ConfigurationError(f"the LLM '{spec}' names a model twice; allowed: each once.")
    return parts
