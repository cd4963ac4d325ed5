"""Any LangChain chat or completion model as a ``LanguageModel``."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from icl_optimizer.errors import ConfigurationError
from icl_optimizer.llm.base import Capabilities, LanguageModel, Message
from icl_optimizer.llm.errors import ModelError
from icl_optimizer.llm.first_token import Alternative, alternatives, label_logprobs
from icl_optimizer.llm.provider_errors import provider_errors

if TYPE_CHECKING:
    from langchain_core.language_models import BaseLanguageModel

_TOP = 20  # the most that OpenAI and Ollama list
_ANSWER_ROOM = 48  # tokens of JSON around a choice


class LangChainModel(LanguageModel):
    """Wraps a LangChain model: ``ChatOpenAI``, ``ChatOllama``, or any other.

    Prompts are sent as one user message each. ``score`` works with chat models that list the
    alternatives of a token (``top_logprobs``, as OpenAI and Ollama do): a label gets the summed
    probability of the listed tokens that begin it, whatever their case and leading spaces. Other
    models can only ``generate``. ``choices`` are passed as a JSON schema, where the model takes
    one. Tokens are those of ``usage_metadata``; models that do not report them count calls only.
    """

    def __init__(
        self, model: BaseLanguageModel[Any], name: str | None = None, concurrency: int = 4
    ) -> None:
        """Wrap ``model``; nothing is sent.

        Args:
            model: A LangChain chat or completion model.
            name: The spec; by default the class and, where known, the model's own name.
            concurrency: The most requests under way at once.

        Raises:
            ConfigurationError: ``model`` is not a LangChain model.
        """
        from langchain_core.language_models import BaseChatModel, BaseLLM

        if not isinstance(model, BaseChatModel | BaseLLM):
            raise ConfigurationError(
                f"expected a LangChain chat or completion model, got {type(model).__name__}."
            )
        if concurrency < 1:
            raise ConfigurationError(f"concurrency must be at least 1, got {concurrency}.")
        chat = isinstance(model, BaseChatModel)
        structured = chat and (
            type(model).with_structured_output is not BaseChatModel.with_structured_output
        )
        super().__init__(
            name or _default_name(model),
            Capabilities(
                logprobs=chat and "top_logprobs" in type(model).model_fields,
                embeddings=False,
                constrained=structured,
                context_size=getattr(model, "num_ctx", None),
            ),
        )
        self._model: Any = model
        self._concurrency = concurrency

    def count_tokens(self, text: str) -> int:
        """Return an estimate, one token for every four characters.

        Exact counts would download the provider's tokenizer.
        """
        return -(-len(text) // 4)

    def _score(self, prompts: list[str], labels: list[str]) -> NDArray[np.float64]:
        model = self._limited(1).bind(logprobs=True, top_logprobs=_TOP)
        answers = self._batch(model, prompts)
        return np.array([label_logprobs(self._alternatives(a), labels) for a in answers])

    def _alternatives(self, answer: Any) -> list[Alternative]:
        found = alternatives(answer.response_metadata.get("logprobs"))
        if not found:
            raise ModelError(
                f"'{self.name}' returned no log-probabilities for its first token. Use the "
                "'generate' decider, or a server that supports top_logprobs."
            )
        return found

    def _generate(
        self, prompts: list[str], max_tokens: int, choices: list[str] | None, stop: list[str]
    ) -> list[str]:
        if choices is not None:
            return self._choose(prompts, choices)
        model = self._limited(max_tokens)
        return [_text(answer) for answer in self._batch(model.bind(stop=stop or None), prompts)]

    def _choose(self, prompts: list[str], choices: list[str]) -> list[str]:
        room = _ANSWER_ROOM + max(len(choice.encode()) for choice in choices)
        model = self._limited(room).with_structured_output(_schema(choices), include_raw=True)
        texts = []
        for answer in self._batch(model, prompts):
            text = (answer["parsed"] or {}).get("answer")
            if text not in choices:
                raise ModelError(f"'{self.name}' answered {text!r}, allowed: {choices!r}.")
            texts.append(str(text))
        return texts

    def _chat(self, messages: list[Message], max_tokens: int) -> str:
        pairs = [(message["role"], message["content"]) for message in messages]
        return _text(self._batch(self._limited(max_tokens), [pairs])[0])

    def _embed(self, texts: list[str]) -> NDArray[np.float64]:
        raise ConfigurationError(f"the model '{self.name}' cannot embed texts.")

    def _first_tokens(self, prompt: str, labels: list[str]) -> list[str]:
        # The provider's tokenizer is not known here; ``score`` checks against the tokens it gets.
        return [label.strip().casefold() for label in labels]

    def _limited(self, max_tokens: int) -> Any:
        for field in ("num_predict", "max_tokens"):
            if field in type(self._model).model_fields:
                return self._model.model_copy(update={field: max_tokens})
        return self._model.bind(max_tokens=max_tokens)

    def _batch(self, model: Any, inputs: Sequence[Any]) -> list[Any]:
        with provider_errors(self.name):
            answers: list[Any] = model.batch(
                list(inputs), config={"max_concurrency": self._concurrency}
            )
        self._record(answers)
        return answers

    def _record(self, answers: Iterable[Any]) -> None:
        for answer in answers:
            message = answer["raw"] if isinstance(answer, Mapping) else answer
            used = getattr(message, "usage_metadata", None) or {}
            self.usage.add(
                calls=1,
                prompt_tokens=used.get("input_tokens", 0),
                reused_tokens=used.get("input_token_details", {}).get("cache_read") or 0,
                completion_tokens=used.get("output_tokens", 0),
            )


def _default_name(model: Any) -> str:
    name = getattr(model, "model_name", None) or getattr(model, "model", None)
    return type(model).__name__ + (f":{name}" if name else "")


def _text(answer: Any) -> str:
    return answer if isinstance(answer, str) else str(answer.text)


def _schema(choices: list[str]) -> dict[str, Any]:
    return {
        "title": "Answer",
        "description": "The decision.",
        "type": "object",
        "properties": {"answer": {"type": "string", "enum": choices}},
        "required": ["answer"],
        "additionalProperties": False,
    }
