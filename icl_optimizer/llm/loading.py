"""From a spec such as ``ollama:llama3.1:8b`` to a language model."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import os
from collections.abc import Callable
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from icl_optimizer.errors import ConfigurationError, MissingDependencyError, unknown_name
from icl_optimizer.llm.base import LanguageModel
from icl_optimizer.llm.langchain import LangChainModel
from icl_optimizer.llm.llamacpp import LlamaCpp
from icl_optimizer.llm.weights import find_weights

if TYPE_CHECKING:
    from langchain_core.language_models import BaseLanguageModel
    from pydantic import BaseModel

ENTRY_POINT_GROUP = "icl_optimizer.llms"
"""Other packages add a provider with an entry point: its name, and a function of the model's name
and keyword parameters that returns a ``LanguageModel``."""

_OWN = ("llamacpp", "ollama", "openai")
_LANGCHAIN = (
    "anthropic",
    "azure_ai",
    "azure_openai",
    "bedrock",
    "bedrock_converse",
    "cohere",
    "deepseek",
    "fireworks",
    "google_genai",
    "google_vertexai",
    "groq",
    "huggingface",
    "ibm",
    "mistralai",
    "nvidia",
    "openrouter",
    "perplexity",
    "together",
    "upstage",
    "xai",
)


def load_llm(spec: str | LanguageModel | BaseLanguageModel[Any], **params: Any) -> LanguageModel:
    """Return the language model that ``spec`` names.

    Args:
        spec: ``llamacpp`` (embedded, no key, no network), ``llamacpp:FILE.gguf``,
            ``ollama:MODEL``, ``openai:MODEL``, ``openai:MODEL@URL`` (any OpenAI-compatible
            server), ``PROVIDER:MODEL`` for LangChain's other providers, a LangChain model, or a
            ``LanguageModel``, which is returned as it is.
        **params: Of ``LlamaCpp``, or of the LangChain model (``temperature`` is 0 unless given).
            Keys are read from the environment only.

    Raises:
        ConfigurationError: The spec or a parameter is not valid.
        MissingDependencyError: Something has to be installed first.
    """
    if isinstance(spec, LanguageModel):
        if params:
            raise ConfigurationError(f"{spec!r} is loaded already and takes no parameters.")
        return spec
    if not isinstance(spec, str):
        return LangChainModel(spec, **_known(LangChainModel, params, skip=1))
    spec = spec.strip()
    validate_spec(spec)
    _refuse_keys(params)
    provider, _, model = spec.partition(":")
    plugin = _plugins().get(provider)
    if plugin is not None:
        return _load_plugin(plugin, model, params)
    return _LOADERS.get(provider, _load_other)(spec, model, params)


def validate_spec(spec: str) -> None:
    """Check a spec without loading or connecting to anything.

    Raises:
        ConfigurationError: Unknown provider, missing model name, missing file, malformed URL.
        MissingDependencyError: Something has to be installed first.
    """
    spec = spec.strip()
    provider, _, model = spec.partition(":")
    if provider not in {*_OWN, *_LANGCHAIN, *_plugins()}:
        raise unknown_name("LLM provider", provider, {*_OWN, *_LANGCHAIN, *_plugins()})
    if provider == "llamacpp":
        _check_llamacpp(spec, model)
        return
    name, at, url = _split_url(model)
    if not name:
        raise ConfigurationError(f"the LLM '{spec}' names no model; write '{provider}:MODEL'.")
    if provider == "openai" and at:
        _check_url(spec, url)
    if provider in _LANGCHAIN and importlib.util.find_spec("langchain") is None:
        raise MissingDependencyError(
            f"the LLM '{spec}' needs LangChain and its {provider} package. Install them: "
            f"pip install langchain langchain-{provider.replace('_', '-')}"
        )


def _check_llamacpp(spec: str, model: str) -> None:
    if importlib.util.find_spec("xllamacpp") is None:
        raise MissingDependencyError(
            f"the LLM '{spec}' needs xllamacpp. Install it: pip install 'icl-optimizer[local]'"
        )
    if ":" not in spec:
        find_weights()
    elif not model:
        raise ConfigurationError(f"the LLM '{spec}' names no file; write 'llamacpp:FILE.gguf'.")
    elif not Path(model).expanduser().is_file():
        raise ConfigurationError(f"the LLM '{spec}': there is no file '{model}'.")


def _split_url(model: str) -> tuple[str, str, str]:
    """Split ``NAME@URL``; an @ that no URL follows belongs to the name."""
    name, at, url = model.partition("@http")
    return (name, "@", "http" + url) if at else (model, "", "")


def _check_url(spec: str, url: str) -> None:
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ConfigurationError(
            f"the LLM '{spec}' has no valid URL after the @; write 'openai:MODEL@http://HOST:PORT/v1'."
        )
    if parts.username or parts.password:
        raise ConfigurationError("an LLM's URL must not hold a user name or password.")


def _refuse_keys(params: dict[str, Any]) -> None:
    for name in params:
        if "key" in name or "token" in name.split("_") or "secret" in name:
            raise ConfigurationError(
                f"the parameter '{name}' would hold a secret; set the provider's environment "
                "variable instead, such as OPENAI_API_KEY."
            )


def _load_llamacpp(spec: str, model: str, params: dict[str, Any]) -> LanguageModel:
    return LlamaCpp(model or None, **_known(LlamaCpp, params, skip=1))


def _load_ollama(spec: str, model: str, params: dict[str, Any]) -> LanguageModel:
    from langchain_ollama import ChatOllama

    own, settings = _split_params(params, ChatOllama)
    return LangChainModel(ChatOllama(model=model, **settings), spec, **own)


def _load_openai(spec: str, model: str, params: dict[str, Any]) -> LanguageModel:
    from langchain_openai import ChatOpenAI

    own, settings = _split_params(params, ChatOpenAI)
    name, at, url = _split_url(model)
    if at:
        # Local servers need no key, but the client insists on one.
        key = os.environ.get("OPENAI_API_KEY") or "none"
        settings |= {"base_url": url, "api_key": key}
    elif not os.environ.get("OPENAI_API_KEY"):
        raise ConfigurationError(
            f"the LLM '{spec}' needs the environment variable OPENAI_API_KEY. For a local server "
            f"write 'openai:{name}@http://127.0.0.1:PORT/v1'."
        )
    return LangChainModel(ChatOpenAI(model=name, **settings), spec, **own)


def _load_other(spec: str, model: str, params: dict[str, Any]) -> LanguageModel:
    init_chat_model = importlib.import_module("langchain.chat_models").init_chat_model
    own, settings = _split_params(params)
    try:
        return LangChainModel(init_chat_model(spec, **settings), spec, **own)
    except ImportError as error:
        raise MissingDependencyError(f"the LLM '{spec}' cannot be loaded: {error}") from error


_LOADERS: dict[str, Callable[[str, str, dict[str, Any]], LanguageModel]] = {
    "llamacpp": _load_llamacpp,
    "ollama": _load_ollama,
    "openai": _load_openai,
}


def _plugins() -> dict[str, EntryPoint]:
    return {entry.name: entry for entry in entry_points(group=ENTRY_POINT_GROUP)}


def _load_plugin(entry: EntryPoint, model: str, params: dict[str, Any]) -> LanguageModel:
    loaded = entry.load()(model, **params)
    if not isinstance(loaded, LanguageModel):
        raise ConfigurationError(
            f"the LLM provider '{entry.name}' returned {type(loaded).__name__}, "
            "not a LanguageModel."
        )
    return loaded


def _known(target: Callable[..., Any], params: dict[str, Any], skip: int) -> dict[str, Any]:
    """Return ``params`` if ``target`` takes them all; its first ``skip`` are set by the spec."""
    allowed = list(inspect.signature(target).parameters)[skip:]
    for name in params:
        if name not in allowed:
            raise unknown_name("LLM parameter", name, allowed)
    return params


def _split_params(
    params: dict[str, Any], model: type[BaseModel] | None = None
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the parameters of ``LangChainModel`` and those of the LangChain ``model``."""
    own = {name: value for name, value in params.items() if name == "concurrency"}
    settings = {name: value for name, value in params.items() if name not in own}
    if model is not None:
        fields = model.model_fields
        allowed = {*fields, *(f.alias for f in fields.values() if f.alias), "concurrency"}
        for name in settings:
            if name not in allowed:
                raise unknown_name("LLM parameter", name, allowed)
    return own, {"temperature": 0.0, **settings}
