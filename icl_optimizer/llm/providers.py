"""LangChain's providers: which class each one has, what it takes, and how it is made."""

from __future__ import annotations

import importlib
import importlib.util
import os
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from icl_optimizer.errors import ConfigurationError, MissingDependencyError, invalid_fields
from icl_optimizer.llm.parameters import TIMEOUT_S, Parameters, Settings, fields_of
from icl_optimizer.llm.redaction import redact

if TYPE_CHECKING:
    from langchain_core.language_models import BaseChatModel

CLASSES = {
    "anthropic": ("langchain_anthropic", "ChatAnthropic"),
    "anthropic_bedrock": ("langchain_aws", "ChatAnthropicBedrock"),
    "azure_ai": ("langchain_azure_ai.chat_models", "AzureAIOpenAIApiChatModel"),
    "azure_openai": ("langchain_openai", "AzureChatOpenAI"),
    "baseten": ("langchain_baseten", "ChatBaseten"),
    "bedrock": ("langchain_aws", "ChatBedrock"),
    "bedrock_converse": ("langchain_aws", "ChatBedrockConverse"),
    "bedrock_mantle_anthropic": ("langchain_aws", "ChatAnthropicMantle"),
    "bedrock_mantle_openai": ("langchain_aws", "ChatOpenAIMantle"),
    "cohere": ("langchain_cohere", "ChatCohere"),
    "deepseek": ("langchain_deepseek", "ChatDeepSeek"),
    "fireworks": ("langchain_fireworks", "ChatFireworks"),
    "google_anthropic_vertex": ("langchain_google_vertexai.model_garden", "ChatAnthropicVertex"),
    "google_genai": ("langchain_google_genai", "ChatGoogleGenerativeAI"),
    "google_vertexai": ("langchain_google_vertexai", "ChatVertexAI"),
    "groq": ("langchain_groq", "ChatGroq"),
    "huggingface": ("langchain_huggingface", "ChatHuggingFace"),
    "ibm": ("langchain_ibm", "ChatWatsonx"),
    "langsmith": ("langchain_openai", "ChatOpenAI"),
    "litellm": ("langchain_litellm", "ChatLiteLLM"),
    "meta": ("langchain_meta", "ChatMetaModel"),
    "mistralai": ("langchain_mistralai", "ChatMistralAI"),
    "nvidia": ("langchain_nvidia_ai_endpoints", "ChatNVIDIA"),
    "openrouter": ("langchain_openrouter", "ChatOpenRouter"),
    "perplexity": ("langchain_perplexity", "ChatPerplexity"),
    "together": ("langchain_together", "ChatTogether"),
    "upstage": ("langchain_upstage", "ChatUpstage"),
    "xai": ("langchain_xai", "ChatXAI"),
}
"""Provider to module and class: those of LangChain 1.5 beside ``ollama`` and ``openai``."""

_OWN_NAMES = {
    "temperature": ("temperature",),
    "top_p": ("top_p",),
    "repeat_penalty": ("repeat_penalty", "repetition_penalty"),
    "seed": ("seed", "random_seed"),
    "context_size": ("num_ctx",),
    "timeout": ("timeout", "request_timeout", "default_request_timeout"),
}
"""Common parameter to the names that LangChain's classes give it."""

_THROUGH_MODEL_KWARGS = {"groq": ("top_p", "seed")}
"""What a class has no field for and its API takes."""


def provider_class(provider: str) -> type[BaseChatModel]:
    """Import the LangChain class of one of ``CLASSES``.

    Raises:
        MissingDependencyError: LangChain or the provider's package is not installed.
    """
    require_package(provider)
    module, name = CLASSES[provider]
    try:
        found: type[BaseChatModel] = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise MissingDependencyError(
            f"the LLM provider '{provider}' cannot be imported: {error}. Update it: "
            f"pip install -U {_package(provider)}"
        ) from error
    return found


def require_package(provider: str) -> None:
    """Raise MissingDependencyError unless LangChain and the provider's package are installed."""
    root = CLASSES[provider][0].partition(".")[0]
    if any(importlib.util.find_spec(name) is None for name in ("langchain", root)):
        raise MissingDependencyError(
            f"the LLM provider '{provider}' needs LangChain and its package. Install them: "
            f"pip install langchain {_package(provider)}"
        )


def class_parameters(provider: str, model: type[BaseChatModel]) -> Parameters:
    """Return what a LangChain class takes, read from its fields."""
    from langchain_core.language_models import BaseChatModel

    own, names = fields_of(model, BaseChatModel.model_fields)
    refused = {}
    aliases = dict(names)
    for common, candidates in _OWN_NAMES.items():
        field = _first(candidates, own)
        if field is not None:
            del own[field]
            aliases |= {n: common for n in (field, *_keys(names, field)) if n != common}
        elif common != "context_size" and common not in _THROUGH_MODEL_KWARGS.get(provider, ()):
            refused[common] = f"its LangChain class {model.__name__} has no such setting"
    return Parameters(provider, refused, own, aliases)


def class_settings(provider: str, model: type[BaseChatModel], settings: Settings) -> dict[str, Any]:
    """Return the keyword arguments for a LangChain class.

    Its client repeats nothing by itself and gives up after ``timeout`` seconds.
    """
    own, _ = fields_of(model)
    arguments = dict(settings.own)
    common = {"timeout": TIMEOUT_S, **settings.common.model_dump(exclude_none=True)}
    for name, candidates in _OWN_NAMES.items():
        field = _first(candidates, own)
        if name not in common:
            continue
        if field is not None:
            arguments[field] = common[name]
        elif name in _THROUGH_MODEL_KWARGS.get(provider, ()):
            arguments["model_kwargs"] = {
                **arguments.get("model_kwargs", {}),
                name: common[name],
            }
    return {**arguments, "max_retries": 0} if "max_retries" in own else arguments


def make_chat_model(
    provider: str, name: str, settings: Settings, require_key: bool
) -> BaseChatModel:
    """Make the LangChain model of one of ``CLASSES``; nothing is sent.

    Args:
        provider: The provider.
        name: Its name of the model.
        settings: Checked parameters.
        require_key: Whether a missing key is an error already now.

    Raises:
        ConfigurationError: The class refuses a parameter or finds no key.
        MissingDependencyError: Something has to be installed first.
    """
    model = provider_class(provider)
    arguments = class_settings(provider, model, settings)
    if not require_key:
        arguments |= placeholder_key(provider, model)
    init_chat_model = importlib.import_module("langchain.chat_models").init_chat_model
    return made(
        f"{provider}:{name}", lambda: init_chat_model(name, model_provider=provider, **arguments)
    )


def made(spec: str, make: Callable[[], BaseChatModel]) -> BaseChatModel:
    """Return ``make()``; whatever keeps it from being made is an error without secrets."""
    try:
        return make()
    except ValidationError as error:
        problem = str(invalid_fields(spec, error))
    except ImportError as error:
        raise MissingDependencyError(f"the LLM '{spec}' needs more: {error}") from error
    except Exception as error:  # each client has its own class for a missing key
        problem = f"the LLM '{spec}' cannot be set up: {type(error).__name__}: {error}"
    raise ConfigurationError(redact(problem))


def placeholder_key(provider: str, model: type[BaseChatModel]) -> dict[str, str]:
    """Return a stand-in for a missing key, for models that will not be asked (a replay)."""
    for name, info in model.model_fields.items():
        if "api_key" in (name, info.alias):
            variables = (name.upper(), f"{provider.upper()}_API_KEY")
            return {} if any(map(os.environ.get, variables)) else {"api_key": "none"}
    return {}


def _package(provider: str) -> str:
    return CLASSES[provider][0].partition(".")[0].replace("_", "-")


def _first(candidates: Iterable[str], names: Mapping[str, Any]) -> str | None:
    return next((name for name in candidates if name in names), None)


def _keys(aliases: Mapping[str, str], target: str) -> list[str]:
    return [name for name, shown in aliases.items() if shown == target]
