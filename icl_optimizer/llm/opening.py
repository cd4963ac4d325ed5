"""From a spec, or several in a chain, to a model that stands up to failures."""

from __future__ import annotations

from typing import Any

from icl_optimizer.llm.base import LanguageModel
from icl_optimizer.llm.chain import ModelChain, split_chain
from icl_optimizer.llm.guard import GuardOptions, guard
from icl_optimizer.llm.loading import load_llm, validate_spec
from icl_optimizer.llm.spec import parse_spec


def open_llm(
    spec: str, options: GuardOptions | None = None, *, threads: int | None = None, **params: Any
) -> LanguageModel:
    """Return the model that ``spec`` names, with retries, circuit breaker, cache and budget.

    Args:
        spec: As for :func:`~.loading.load_llm`, or several separated by commas: the next one is
            asked when one fails.
        options: What stands around each model; None for the defaults.
        threads: Of the embedded models whose spec does not say; None for their default.
        **params: As for :func:`~.loading.load_llm`, for every model of the chain.

    Raises:
        ConfigurationError: A spec, a parameter or an option is not valid.
        MissingDependencyError: Something has to be installed first.
    """
    options = options or GuardOptions()
    parts = split_chain(spec)
    models = [
        load_llm(part, require_key=not options.replay, **params, **_threads(part, threads))
        for part in parts
    ]
    model = models[0] if len(models) == 1 else ModelChain(models)
    return guard(model, options)


def _threads(spec: str, threads: int | None) -> dict[str, int]:
    """Return the parameter for a model that runs in this process and has none of its own."""
    parsed = parse_spec(spec)
    mine = parsed.provider == "llamacpp" and "threads" not in parsed.query
    return {"threads": threads} if mine and threads is not None else {}


def validate_chain(spec: str) -> None:
    """Check a spec or a chain without loading or connecting to anything.

    Raises:
        ConfigurationError: See :func:`~.loading.validate_spec`.
        MissingDependencyError: Something has to be installed first.
    """
    for part in split_chain(spec):
        validate_spec(part)
