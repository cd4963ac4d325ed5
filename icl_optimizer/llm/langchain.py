"""Any LangChain chat or completion model as a ``LanguageModel``."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NoReturn
from urllib.parse import urlsplit

import numpy as np
from numpy.typing import NDArray

from icl_optimizer.errors import ConfigurationError
from icl_optimizer.llm.base import Capabilities, LanguageModel, Message
from icl_optimizer.llm.conversation import Conversation
from icl_optimizer.llm.errors import ModelError, PromptTooLongError
from icl_optimizer.llm.first_token import Alternative, alternatives, label_logprobs
from icl_optimizer.llm.object_secrets import secrets_of
from icl_optimizer.llm.parameters import plain
from icl_optimizer.llm.probe import MOST, answer_room, known_context, probe, schema
from icl_optimizer.llm.provider_errors import call_provider, read_answer
from icl_optimizer.llm.redaction import holds_secret, redact, remember_secrets
from icl_optimizer.llm.requests import Settle, announce, estimate
from icl_optimizer.llm.usage import Usage

if TYPE_CHECKING:
    from langchain_core.language_models import BaseLanguageModel

_SHOWN = 80  # characters of an answer in an error
_LIMITS = ("num_predict", "max_tokens", "max_output_tokens", "max_new_tokens")


class LangChainModel(LanguageModel):
    """Wraps a LangChain model: ``ChatOpenAI``, ``ChatOllama``, or any other.

    Prompts are sent as one user message each. ``score`` works with chat models that list the
    alternatives of a token, as OpenAI's and Ollama's do: a label gets the summed probability of
    the listed tokens that begin it, whatever their case and leading spaces. ``choices`` are passed
    as a JSON schema. Whether the model at hand does either is asked at the first look at its
    capabilities, with one tiny question each; classes that cannot pass such a request are not
    asked. Tokens are those of ``usage_metadata``; models that do not report them count calls only.
    """

    announces = True

    def __init__(
        self,
        model: BaseLanguageModel[Any],
        name: str | None = None,
        concurrency: int = 4,
        logprobs: bool = True,
        context_size: int | None = None,
        parameters: Mapping[str, Any] | None = None,
    ) -> None:
        """Wrap ``model``; nothing is sent.

        Args:
            model: A LangChain chat or completion model.
            name: The spec; by default the class and, where known, the model's own name.
            concurrency: The most requests under way at once.
            logprobs: False treats the model as one that only writes.
            context_size: What prompts must fit into; None for what the server tells, if it does.
            parameters: What answers depend on, for ``identity``; by default the model's fields.

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
        remember_secrets(secrets_of(model))
        super().__init__(name or _default_name(model))
        chat = isinstance(model, BaseChatModel)
        self._model: Any = model
        self._concurrency = concurrency
        self._may_list = chat and logprobs and "top_logprobs" in type(model).model_fields
        self._may_take_schema = chat and (
            type(model).with_structured_output is not BaseChatModel.with_structured_output
        )
        self._context = context_size or getattr(model, "num_ctx", None)
        self._parameters = _fields(model) if parameters is None else dict(parameters)
        self._probing = threading.Lock()
        self._found: Capabilities | None = None

    @property
    def model(self) -> Any:
        """The LangChain model itself."""
        return self._model

    @property
    def identity(self) -> dict[str, Any]:
        """The name of the model and its parameters."""
        return {"name": self.name.partition("?")[0], "parameters": self._parameters}

    def count_tokens(self, text: str) -> int:
        """Return an estimate, one token for every four characters.

        Exact counts would download the provider's tokenizer.
        """
        return -(-len(text) // 4)

    def _probe(self) -> Capabilities:
        with self._probing:  # threads that look at the same time ask once
            if self._found is None:
                self._found = self._find_capabilities()
            return self._found

    def _find_capabilities(self) -> Capabilities:
        top, constrained = probe(_Questions(self), self._may_list, self._may_take_schema)
        asked = self._may_list or self._may_take_schema
        if self._context is None and asked:
            self._context = known_context(self._model)
        return Capabilities(
            logprobs=top is not None,
            embeddings=False,
            constrained=constrained,
            context_size=self._context,
            top_logprobs=top,
        )

    def _score(self, prompts: list[str], labels: list[str]) -> NDArray[np.float64]:
        listed = self._alternatives(prompts, self.capabilities.top_logprobs or MOST)
        if not all(listed):
            raise ModelError(
                f"'{self.name}' returned no log-probabilities for its first token, as it did "
                "before.",
                "malformed",
            )
        return np.array([label_logprobs(each, labels) for each in listed])

    def _alternatives(self, prompts: list[str], top: int) -> list[list[Alternative]]:
        model = self._limited(1).bind(logprobs=True, top_logprobs=top)
        self._check_room(prompts, 1)
        answers = self._batch(model, prompts, 1)
        return read_answer(
            self.name, lambda: [alternatives(a.response_metadata.get("logprobs")) for a in answers]
        )

    def _generate(
        self, prompts: list[str], max_tokens: int, choices: list[str] | None, stop: list[str]
    ) -> list[str]:
        if choices is not None:
            return [self._choice(text, choices) for text in self._held(prompts, choices)]
        self._check_room(prompts, max_tokens)
        model = self._limited(max_tokens).bind(stop=stop or None)
        return [self._nonempty(_text(answer)) for answer in self._batch(model, prompts, max_tokens)]

    def _held(self, prompts: list[str], choices: list[str]) -> list[str]:
        """Return what the schema's field holds, or the whole text where there is none."""
        room = answer_room(choices)
        self._check_room(prompts, room)
        model = self._limited(room).with_structured_output(schema(choices), include_raw=True)
        texts = []
        for answer in self._batch(model, prompts, room):
            text, parsed = _text(answer["raw"]).strip(), answer["parsed"]
            # LangChain completes JSON that was cut short
            whole = isinstance(parsed, Mapping) and not _is_cut_short(text)
            found = parsed.get("answer") if whole else None
            texts.append(text if found is None else str(found))
        return texts

    def _choice(self, text: str, choices: list[str]) -> str:
        if text in choices:
            return text
        if self._nonempty(text).startswith("{"):
            raise ModelError(f"'{self.name}' sent JSON cut short: {_shown(text)}.", "malformed")
        raise ModelError(f"'{self.name}' answered {_shown(text)}, allowed: {choices!r}.")

    def _nonempty(self, text: str) -> str:
        if not text.strip():
            raise ModelError(f"'{self.name}' sent an answer without content.", "malformed")
        return text

    def _chat(self, messages: list[Message], max_tokens: int) -> str:
        asked = [list(map(_pair, messages))]
        answer = self._batch(self._limited(max_tokens), asked, max_tokens)[0]
        return self._nonempty(_text(answer))

    def _embed(self, texts: list[str]) -> NDArray[np.float64]:
        raise ConfigurationError(f"the model '{self.name}' cannot embed texts.")

    def _first_tokens(self, prompt: str, labels: list[str]) -> list[str]:
        # The provider's tokenizer is not known here; ``score`` checks against the tokens it gets.
        return [label.strip().casefold() for label in labels]

    def _check_room(self, prompts: Sequence[str], max_tokens: int) -> None:
        """Refuse what surely does not fit: some servers cut prompts without a word."""
        if self._context is None:
            return
        for prompt in prompts:
            tokens = self.count_tokens(prompt) + max_tokens
            if tokens > self._context:
                raise PromptTooLongError(tokens, self._context)

    def _limited(self, max_tokens: int) -> Any:
        fields = type(self._model).model_fields
        if _is_other_server(self._model):
            # the client would send max_completion_tokens, which Ollama's /v1 ignores
            body = {**(self._model.extra_body or {}), "max_tokens": max_tokens}
            return self._model.model_copy(update={"extra_body": body})
        for field in _LIMITS:
            if field in fields:
                return self._model.model_copy(update={field: max_tokens})
        return self._model.bind(max_tokens=max_tokens)

    def _batch(self, model: Any, inputs: Sequence[Any], max_tokens: int) -> list[Any]:
        config = {"max_concurrency": self._concurrency}
        asked = [list(map(_pair, i.messages)) if isinstance(i, Conversation) else i for i in inputs]
        settling = announce(*(estimate(str(each), max_tokens) for each in asked))
        answers: list[Any] = call_provider(
            self.name, lambda: model.batch(asked, config=config, return_exceptions=True)
        )
        failures = [answer for answer in answers if isinstance(answer, Exception)]
        self._record(
            (answer, settle)
            for answer, settle in zip(answers, settling, strict=True)
            if not isinstance(answer, Exception)
        )
        if failures:
            call_provider(self.name, lambda: _raise(failures[0]))
        return answers

    def _record(self, answers: Iterable[tuple[Any, Settle]]) -> None:
        for answer, settle in answers:
            message = answer["raw"] if isinstance(answer, Mapping) else answer
            used = getattr(message, "usage_metadata", None) or {}
            tokens = {
                "prompt_tokens": used.get("input_tokens", 0),
                "completion_tokens": used.get("output_tokens", 0),
            }
            reused = used.get("input_token_details", {}).get("cache_read") or 0
            self.usage.add(calls=1, reused_tokens=reused, **tokens)
            settle(Usage(**tokens))
            metadata = getattr(message, "response_metadata", {})
            if type(self._model).__name__ == "ChatOllama" and metadata.get("done") is not True:
                # its client takes a stream that ends too early for a whole answer
                raise ModelError(f"'{self.name}' sent an answer cut short.", "malformed")


class _Questions:
    """How the probe asks a model."""

    def __init__(self, model: LangChainModel) -> None:
        self._model = model

    def listed(self, prompt: str, top: int) -> list[Alternative]:
        return self._model._alternatives([prompt], top)[0]

    def held_to(self, prompt: str, choices: list[str]) -> str:
        return self._model._held([prompt], choices)[0]

    def written(self, prompt: str) -> str:
        return _text(self._model._batch(self._model._limited(1), [prompt], 1)[0])


def _raise(error: Exception) -> NoReturn:
    raise error


def _default_name(model: Any) -> str:
    name = getattr(model, "model_name", None) or getattr(model, "model", None)
    return type(model).__name__ + (f":{name}" if name else "")


def _is_other_server(model: Any) -> bool:
    """Whether OpenAI's client talks to somebody else's server."""
    names = [cls.__name__ for cls in type(model).__mro__]
    url: str = getattr(model, "openai_api_base", None) or ""
    return "ChatOpenAI" in names and urlsplit(url).hostname not in (None, "api.openai.com")


def _fields(model: Any) -> dict[str, Any]:
    """Return the fields that were set, that JSON can hold, and that hold no secret."""
    from langchain_core.language_models import BaseChatModel

    names = model.model_fields_set - set(BaseChatModel.model_fields)
    given = {name: getattr(model, name) for name in sorted(names)}
    open_ones = {n: value for n, value in given.items() if not holds_secret({n: value})}
    kept: dict[str, Any] = json.loads(redact(json.dumps(plain(open_ones))))
    return kept


def _pair(message: Message) -> tuple[str, str]:
    return message["role"], message["content"]


def _text(answer: Any) -> str:
    return answer if isinstance(answer, str) else str(answer.text)


def _is_cut_short(text: str) -> bool:
    if not text.startswith("{"):
        return False  # from the arguments of a tool call
    try:
        json.loads(text)
    except ValueError:
        return True
    return False


def _shown(text: str) -> str:
    text = redact(text)
    return repr(text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…")
