"""From a spec such as ``ollama:llama3.1:8b?temperature=0.2`` to a language model."""

from __future__ import annotations

import importlib.util
import os
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any

from icl_optimizer.errors import ConfigurationError, MissingDependencyError, unknown_name
from icl_optimizer.llm.allowed import OBJECT, allowed_parameters
from icl_optimizer.llm.base import LanguageModel
from icl_optimizer.llm.langchain import LangChainModel
from icl_optimizer.llm.llamacpp import LlamaCpp
from icl_optimizer.llm.ollama_completions import OllamaCompletions
from icl_optimizer.llm.openai_server import OpenAIServer, check_endpoint
from icl_optimizer.llm.parameters import COMMON, TIMEOUT_S, Settings, read_parameters
from icl_optimizer.llm.providers import CLASSES, class_settings, made, make_chat_model
from icl_optimizer.llm.spec import Spec, parse_spec
from icl_optimizer.llm.weights import find_weights

if TYPE_CHECKING:
    from langchain_core.language_models import BaseChatModel, BaseLanguageModel

ENTRY_POINT_GROUP = "icl_optimizer.llms"
"""Other packages add a provider with an entry point: its name, and a function of the model's name
and keyword parameters that returns a ``LanguageModel``."""

_OWN = ("llamacpp", "ollama", "openai")
_CONCURRENCY = 4


def load_llm(
    spec: str | LanguageModel | BaseLanguageModel[Any], *, require_key: bool = True, **params: Any
) -> LanguageModel:
    """Return the language model that ``spec`` names; remote ones are not connected to.

    Args:
        spec: ``llamacpp`` (embedded, no key, no network), ``llamacpp:FILE.gguf``,
            ``ollama:MODEL``, ``openai:MODEL``, ``openai:MODEL@URL`` (any OpenAI-compatible
            server; all that llama.cpp's can do is used), ``PROVIDER:MODEL`` for LangChain's other
            providers, each with parameters as in ``ollama:MODEL?temperature=0.2&seed=1``; or a
            LangChain model; or a ``LanguageModel``, which is returned as it is.
        require_key: Whether a missing API key is an error already now. False is for models whose
            answers are replayed.
        **params: Parameters by keyword: ``temperature`` (0 unless given), ``top_p``,
            ``repeat_penalty``, ``seed``, ``context_size``, ``timeout`` (seconds), ``concurrency``
            and ``logprobs`` for every provider, and each provider's own. Keys are read from the
            environment only.

    Raises:
        ConfigurationError: The spec or a parameter is not valid, or a key is missing.
        MissingDependencyError: Something has to be installed first.
    """
    if isinstance(spec, LanguageModel):
        if params:
            raise ConfigurationError(f"{spec!r} is loaded already and takes no parameters.")
        return spec
    if not isinstance(spec, str):
        common = read_parameters({}, params, OBJECT).common
        return LangChainModel(
            spec, None, common.concurrency or _CONCURRENCY, common.logprobs, common.context_size
        )
    parsed, settings = _checked(spec, params)
    plugin = _plugins().get(parsed.provider)
    if plugin is not None:
        return _load_plugin(plugin, parsed, settings)
    if parsed.provider == "llamacpp":
        return _load_llamacpp(parsed, settings)
    if parsed.provider == "openai":
        return _load_openai(parsed, settings, require_key)
    if parsed.provider == "ollama":
        return _load_ollama(parsed, settings)
    model = make_chat_model(parsed.provider, parsed.model, settings, require_key)
    return _wrapped(model, parsed, settings)


def validate_spec(spec: str, **params: Any) -> None:
    """Check a spec and its parameters without loading or connecting to anything.

    Args:
        spec: One model, with or without parameters.
        **params: Those that ``load_llm`` would be given.

    Raises:
        ConfigurationError: Unknown provider or parameter, missing model name, missing file,
            malformed URL, a value out of range.
        MissingDependencyError: Something has to be installed first.
    """
    _checked(spec, params)


def _checked(spec: str, params: dict[str, Any]) -> tuple[Spec, Settings]:
    parsed = parse_spec(spec)
    known = {*_OWN, *CLASSES, *_plugins()}
    if parsed.provider not in known:
        raise unknown_name("LLM provider", parsed.provider, known)
    if parsed.provider == "llamacpp":
        _check_llamacpp(parsed)
    elif not parsed.model:
        raise ConfigurationError(
            f"the LLM '{parsed.base}' names no model; write '{parsed.provider}:MODEL'."
        )
    names = {*parsed.query, *params}
    allowed = allowed_parameters(parsed, names, _plugins().get(parsed.provider))
    settings = read_parameters(parsed.query, params, allowed)
    if parsed.url:
        check_endpoint(parsed.base, settings, settings.own.get("endpoint"))
    return parsed, settings


def _check_llamacpp(spec: Spec) -> None:
    if importlib.util.find_spec("xllamacpp") is None:
        raise MissingDependencyError(
            f"the LLM '{spec.base}' needs xllamacpp. Install it: pip install 'icl-optimizer[local]'"
        )
    if ":" not in spec.base:
        find_weights()
    elif not spec.model:
        raise ConfigurationError(
            f"the LLM '{spec.base}' names no file; write 'llamacpp:FILE.gguf'."
        )
    elif not Path(spec.model).expanduser().is_file():
        raise ConfigurationError(f"the LLM '{spec.base}': there is no file '{spec.model}'.")


def _load_llamacpp(spec: Spec, settings: Settings) -> LanguageModel:
    given = {name: getattr(settings.common, name) for name in settings.given & set(COMMON)}
    return LlamaCpp(spec.model or None, name=spec.text, **given, **settings.own)


def _load_ollama(spec: Spec, settings: Settings) -> LanguageModel:
    chat = settings.own.get("endpoint") == "chat"
    kind = LangChainModel if chat else OllamaCompletions
    return _wrapped(_ollama(spec, settings), spec, settings, kind)


def _ollama(spec: Spec, settings: Settings) -> BaseChatModel:
    from langchain_ollama import ChatOllama

    arguments = class_settings("ollama", ChatOllama, settings)
    arguments.pop("endpoint", None)
    client = {
        "timeout": settings.common.timeout or TIMEOUT_S,
        **(arguments.get("client_kwargs") or {}),
    }
    return made(
        spec.base, lambda: ChatOllama(model=spec.model, **{**arguments, "client_kwargs": client})
    )


def _load_openai(spec: Spec, settings: Settings, require_key: bool) -> LanguageModel:
    if spec.url:
        return OpenAIServer(
            spec, settings, lambda: _wrapped(_chat_openai(spec, settings), spec, settings)
        )
    if require_key and not os.environ.get("OPENAI_API_KEY"):
        raise ConfigurationError(
            f"the LLM '{spec.base}' needs the environment variable OPENAI_API_KEY. For a local "
            f"server write 'openai:{spec.model}@http://127.0.0.1:PORT/v1'."
        )
    return _wrapped(_chat_openai(spec, settings), spec, settings)


def _chat_openai(spec: Spec, settings: Settings) -> BaseChatModel:
    from langchain_openai import ChatOpenAI

    arguments = class_settings("openai", ChatOpenAI, settings)
    arguments = {n: value for n, value in arguments.items() if n not in ("endpoint",)}
    # Local servers need no key, but the client insists on one.
    arguments["api_key"] = os.environ.get("OPENAI_API_KEY") or "none"
    if spec.url:
        arguments = {"use_responses_api": False, **arguments, "base_url": spec.url}
    return made(spec.base, lambda: ChatOpenAI(model=spec.model, **arguments))


def _wrapped(
    model: BaseChatModel,
    spec: Spec,
    settings: Settings,
    kind: type[LangChainModel] = LangChainModel,
) -> LangChainModel:
    common = settings.common
    return kind(
        model,
        spec.text,
        common.concurrency or _CONCURRENCY,
        common.logprobs,
        common.context_size,
        settings.identity(),
    )


def _plugins() -> dict[str, EntryPoint]:
    return {entry.name: entry for entry in entry_points(group=ENTRY_POINT_GROUP)}


def _load_plugin(entry: EntryPoint, spec: Spec, settings: Settings) -> LanguageModel:
    given = {name: getattr(settings.common, name) for name in settings.given & set(COMMON)}
    loaded = entry.load()(spec.model, **given, **settings.own)
    if not isinstance(loaded, LanguageModel):
        raise ConfigurationError(
            f"the LLM provider '{entry.name}' returned {type(loaded).__name__}, "
            "not a LanguageModel."
        )
    return loaded
