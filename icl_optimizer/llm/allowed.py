"""What each provider takes: common parameters that it honours, and its own."""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from importlib.metadata import EntryPoint
from typing import Annotated, Any, Literal

from pydantic import Field

from icl_optimizer.llm.parameters import COMMON, Parameters
from icl_optimizer.llm.providers import class_parameters, provider_class, require_package
from icl_optimizer.llm.spec import Spec

_IN_PROCESS = "the embedded model runs inside this process, one request after the other"
_LLAMACPP = Parameters(
    "llamacpp",
    refused={"timeout": _IN_PROCESS, "concurrency": _IN_PROCESS},
    own={
        "threads": Annotated[int | None, Field(ge=1)],
        "cache_mib": Annotated[int, Field(ge=0)],
        "reuse_prefix": bool,
        "verbose": bool,
    },
)
OBJECT = Parameters(
    "a LangChain object",
    refused=dict.fromkeys(
        ("temperature", "top_p", "repeat_penalty", "seed", "timeout"),
        "it has its own settings already",
    ),
)
_NO_PENALTY = "OpenAI's API has none; its presence_penalty and frequency_penalty are others"


def allowed_parameters(spec: Spec, names: Iterable[str], plugin: EntryPoint | None) -> Parameters:
    """Return what the provider of ``spec`` takes.

    Its client is only imported for names that are not common to all providers.

    Args:
        spec: The model.
        names: Those that were given.
        plugin: The entry point that adds the provider, if one does.
    """
    if plugin is not None:
        return _plugin_parameters(plugin)
    if spec.provider == "llamacpp":
        return _LLAMACPP
    only_common = set(names) <= set(COMMON)
    if spec.provider == "ollama":
        return _ollama_parameters(only_common)
    if spec.provider == "openai":
        return _openai_parameters(bool(spec.url), only_common)
    require_package(spec.provider)
    if not names:
        return Parameters(spec.provider)
    return class_parameters(spec.provider, provider_class(spec.provider))


def _ollama_parameters(only_common: bool) -> Parameters:
    if only_common:
        return Parameters("ollama")
    from langchain_ollama import ChatOllama

    found = class_parameters("ollama", ChatOllama)
    own = {**found.own, "endpoint": Literal["chat", "completions"]}
    return Parameters("ollama", {}, own, found.aliases)


def _openai_parameters(other_server: bool, only_common: bool) -> Parameters:
    refused = {"base_url": "the URL of a server stands in the spec, as in openai:MODEL@URL"}
    if not other_server:
        refused["repeat_penalty"] = _NO_PENALTY
    if only_common:
        return Parameters("openai", refused)
    from langchain_openai import ChatOpenAI

    found = class_parameters("openai", ChatOpenAI)
    own = dict(found.own)
    if other_server:
        own |= {"endpoint": Literal["chat", "completions"], "reuse_prefix": bool}
    return Parameters("openai", refused, own, found.aliases)


def _plugin_parameters(entry: EntryPoint) -> Parameters:
    parameters = list(inspect.signature(entry.load()).parameters.values())
    takes_any = any(each.kind is inspect.Parameter.VAR_KEYWORD for each in parameters)
    names = {each.name for each in parameters[1:] if each.kind is not inspect.Parameter.VAR_KEYWORD}
    refused = (
        {}
        if takes_any
        else dict.fromkeys(set(COMMON) - names, "the package that adds it does not take it")
    )
    own = dict.fromkeys(names - set(COMMON), Any)
    return Parameters(entry.name, refused, own, open=takes_any)
