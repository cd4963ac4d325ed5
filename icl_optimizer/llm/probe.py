"""What a chat model can do, found out with one or two tiny questions."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Protocol, TypeVar

from icl_optimizer.llm.errors import ModelError
from icl_optimizer.llm.first_token import Alternative
from icl_optimizer.llm.provider_errors import call_provider
from icl_optimizer.llm.requests import announce
from icl_optimizer.llm.usage import Usage

T = TypeVar("T")

MOST = 20
"""The most alternatives that OpenAI and Ollama list."""

_FEWER = 5  # servers with a lower limit refuse a request for more
_JSON_ROOM = 48  # tokens around a choice
_LETTERS = "Reply with A or B only."
_FRUIT = "Reply with the word apple."
_OTHER_FRUIT = ["pear", "plum"]


class Questions(Protocol):
    """How a chat model is asked during the probe; each raises ModelError as usual."""

    def listed(self, prompt: str, top: int) -> list[Alternative]:
        """Return the first token's alternatives, of which ``top`` are asked for."""

    def held_to(self, prompt: str, choices: list[str]) -> str:
        """Return the answer to a request whose schema allows ``choices`` only."""

    def written(self, prompt: str) -> str:
        """Return a free answer."""


def probe(model: Questions, may_list: bool, may_take_schema: bool) -> tuple[int | None, bool]:
    """Ask a model for alternatives, and for an answer that only a schema can bring about.

    A refusal (HTTP 400) is an answer: the model cannot do it. Any other failure is raised, so
    that a server that is down now is asked again later.

    Args:
        model: How to ask.
        may_list: Whether its client can ask for alternatives at all.
        may_take_schema: Whether its client can pass a schema.

    Returns:
        How many alternatives it lists, None for none; whether it honours a schema.

    Raises:
        ModelError: It does not answer, not even a plain question.
    """
    counted = _count_listed(model) if may_list else None
    held = _unless_refused(lambda: model.held_to(_FRUIT, _OTHER_FRUIT)) if may_take_schema else None
    if (may_list or may_take_schema) and counted is None and held is None:
        # Perhaps it refuses everything, for example because there is no such model.
        model.written(_LETTERS)
    # One alternative is the answer itself and says nothing about the others.
    return counted if counted and counted > 1 else None, held in _OTHER_FRUIT


def _count_listed(model: Questions) -> int | None:
    for top in (MOST, _FEWER):
        listed = _unless_refused(partial(model.listed, _LETTERS, top))
        if listed is not None:
            return len(listed)
    return None


def _unless_refused(ask: Callable[[], T]) -> T | None:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # clients warn of what the model cannot do
            return ask()
    except ModelError as error:
        if error.kind in ("request", "answer"):
            return None
        raise


def schema(choices: list[str]) -> dict[str, Any]:
    """Return the JSON schema of an object whose ``answer`` is one of ``choices``."""
    return {
        "title": "Answer",
        "description": "The decision.",
        "type": "object",
        "properties": {"answer": {"type": "string", "enum": choices}},
        "required": ["answer"],
        "additionalProperties": False,
    }


def answer_room(choices: Sequence[str]) -> int:
    """Return the tokens that an answer held to ``choices`` may take, the JSON around it too."""
    return _JSON_ROOM + max(len(choice.encode()) for choice in choices)


def known_context(model: Any) -> int | None:
    """Return the context size of a LangChain model in tokens, where its server tells.

    Ollama tells what it gave the model once it is loaded, vLLM and LM Studio in their list of
    models, and LangChain knows that of many hosted models.

    Args:
        model: A LangChain chat model that has answered already.
    """
    size: int | None = getattr(model, "num_ctx", None)
    if size is None and type(model).__name__ == "ChatOllama":
        return _of_ollama(model)
    if size is None and getattr(model, "openai_api_base", None):
        return _of_server(model)
    profile = getattr(model, "profile", None)
    told = profile.get("max_input_tokens") if isinstance(profile, Mapping) else None
    return size or told


def _of_ollama(model: Any) -> int | None:
    from ollama import Client

    announce(Usage())
    client = Client(model.base_url, **(model.client_kwargs or {}))
    loaded = _optional(lambda: client.ps().models) or ()
    names = (model.model, f"{model.model}:latest")
    return next((each.context_length for each in loaded if each.model in names), None)


def _of_server(model: Any) -> int | None:
    announce(Usage())
    listed = _optional(lambda: list(model.root_client.models.list())) or ()
    mine = [entry for entry in listed if entry.id == model.model_name]
    for name in ("max_model_len", "max_context_length", "context_length"):
        for entry in mine:
            size = getattr(entry, name, None)
            if isinstance(size, int):
                return size
    return None


def _optional(ask: Callable[[], Any]) -> Any:
    """Return what a server tells beside its answers, None where it does not."""
    try:
        return call_provider("the server", ask)
    except ModelError:
        return None
