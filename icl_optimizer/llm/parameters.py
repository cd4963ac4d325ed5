"""Parameters of language models: common names for all providers, checked before anything starts."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from icl_optimizer.errors import ConfigurationError, invalid_fields, unknown_name
from icl_optimizer.llm.credentials import holds_login
from icl_optimizer.llm.redaction import holds_secret, refuse_secrets, shown

TIMEOUT_S = 120.0
"""How long a remote model may take for one answer unless ``timeout`` says otherwise."""


class CommonParameters(BaseModel):
    """Parameters with the same name for every provider.

    A provider that cannot honour one refuses it; None leaves the choice to the provider.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    temperature: float = Field(0.0, ge=0, le=2, description="0 takes the likeliest token.")
    top_p: float | None = Field(None, gt=0, le=1, description="Sample from this share only.")
    repeat_penalty: float | None = Field(None, gt=0, le=10, description="1 is none.")
    seed: int | None = Field(None, ge=0, lt=2**32, description="Of the sampling.")
    context_size: int | None = Field(
        None, ge=16, description="Tokens of prompt and answer together."
    )
    timeout: float | None = Field(None, gt=0, description="Seconds to wait for an answer.")
    concurrency: int | None = Field(
        None, ge=1, le=1024, description="The most requests of a batch under way at once."
    )
    logprobs: bool = Field(
        True, description="false treats the model as one that only writes: no label scores."
    )


COMMON = tuple(CommonParameters.model_fields)
_SET_HERE = {
    "max_retries": "failed requests are repeated by the library itself, and counted",
    **dict.fromkeys(("model", "model_name", "model_id", "model_path"), "the spec names the model"),
    **dict.fromkeys(
        (
            "max_tokens",
            "max_completion_tokens",
            "max_tokens_to_sample",
            "max_output_tokens",
            "num_predict",
            "stop",
            "stop_sequences",
        ),
        "each request has its own",
    ),
    **dict.fromkeys(
        ("n", "streaming", "top_logprobs", "format", "validate_model_on_init"),
        "label scores and choices depend on it",
    ),
}
_CLIENTS = ("client", "async_client", "root_client", "root_async_client")
"""Fields that LangChain's classes fill themselves."""


@dataclass(frozen=True)
class Parameters:
    """What one provider takes.

    Attributes:
        provider: Its name, for messages.
        refused: Names it cannot honour, with the reason.
        own: Its own parameters beside the common ones: name to type (anything that pydantic can
            check).
        aliases: Other names of parameters, such as its ``num_ctx`` for ``context_size``.
        open: Whether it may take parameters that are not known here.
    """

    provider: str
    refused: Mapping[str, str] = field(default_factory=dict)
    own: Mapping[str, Any] = field(default_factory=dict)
    aliases: Mapping[str, str] = field(default_factory=dict)
    open: bool = False

    @property
    def allowed(self) -> list[str]:
        """Every name that may be given."""
        names = {*COMMON, *self.own, *self.aliases} - {*self.refused, *_SET_HERE, *_CLIENTS}
        return sorted(name for name in names if not holds_secret({name: ""}))


@dataclass(frozen=True)
class Settings:
    """Checked parameters.

    Attributes:
        common: Those every provider shares.
        own: The provider's own, by its names.
        given: The names among both that were given, by their common name where there is one.
    """

    common: CommonParameters
    own: Mapping[str, Any]
    given: frozenset[str]

    def identity(self) -> dict[str, Any]:
        """Return what answers depend on, as plain JSON values."""
        common = self.common.model_dump(exclude={"timeout", "concurrency"}, exclude_none=True)
        return plain({**common, **self.own})


def read_parameters(
    query: Mapping[str, str], params: Mapping[str, Any], allowed: Parameters
) -> Settings:
    """Check the parameters of a spec's query and those given by keyword.

    Args:
        query: Texts from the spec.
        params: Values from Python.
        allowed: What the provider takes.

    Raises:
        ConfigurationError: A name is unknown, given twice, not honoured by the provider or would
            hold a secret, or a value has the wrong type or range.
    """
    refuse_secrets({**query, **params})
    values: dict[str, Any] = {}
    names: dict[str, str] = {}
    for given, value in (*query.items(), *params.items()):
        name = _known_name(given, allowed)
        if name in values:
            same = f" and as '{names[name]}'" if names[name] != given else ""
            raise ConfigurationError(
                f"the LLM parameter '{given}' is given twice{same}; allowed: once."
            )
        names[name] = given
        is_text = given in query
        values[name] = value if name in COMMON else _own_value(name, value, is_text, allowed)
    common = {name: value for name, value in values.items() if name in COMMON}
    try:
        checked = CommonParameters(**common)
    except ValidationError as error:
        raise invalid_fields("LLM parameter", error) from None
    own = {name: value for name, value in values.items() if name not in COMMON}
    return Settings(checked, own, frozenset(values))


def _known_name(name: str, allowed: Parameters) -> str:
    """Return the common name, or the provider's own, of a parameter that may be given."""
    if name in _SET_HERE and ({name, allowed.aliases.get(name)} & {*allowed.own, "max_retries"}):
        raise ConfigurationError(f"the LLM parameter '{name}' cannot be set: {_SET_HERE[name]}.")
    known = allowed.aliases.get(name, name)
    if known in allowed.refused:
        raise ConfigurationError(
            f"{allowed.provider} cannot honour the LLM parameter '{name}': "
            f"{allowed.refused[known]}."
        )
    if known not in COMMON and known not in allowed.own and not allowed.open:
        raise unknown_name("LLM parameter", name, allowed.allowed)
    return known


def _own_value(name: str, value: Any, is_text: bool, allowed: Parameters) -> Any:
    if holds_login(value):
        raise ConfigurationError(
            f"the LLM parameter '{name}' must not hold a user name or password."
        )
    candidates = [_from_text(value), value] if is_text else [value]
    refuse_secrets({name: candidates[0]})
    if name not in allowed.own:
        return candidates[0]
    adapter: TypeAdapter[Any] = TypeAdapter(
        allowed.own[name], config=ConfigDict(arbitrary_types_allowed=True)
    )
    for candidate in candidates:
        try:
            return adapter.validate_python(candidate)
        except ValidationError as error:
            reason = error.errors()[0]["msg"]
    raise ConfigurationError(f"LLM parameter: {name} is {shown(value)}: {reason}.")


def _from_text(text: str) -> Any:
    """Return the JSON value of a text from a query, such as a number or true; else the text."""
    try:
        return json.loads(text)
    except ValueError:
        return text


def fields_of(
    model: type[BaseModel], inherited: Iterable[str] = ()
) -> tuple[dict[str, Any], dict[str, str]]:
    """Return the fields of a pydantic class in the form of ``own`` and ``aliases``.

    Args:
        model: The class.
        inherited: Fields to leave out.
    """
    skipped = set(inherited)
    types: dict[str, Any] = {}
    aliases: dict[str, str] = {}
    for name, info in model.model_fields.items():
        if name in skipped:
            continue
        shown = info.alias or name
        types[shown] = (
            Annotated[(info.annotation, *info.metadata)] if info.metadata else (info.annotation)
        )
        if shown != name:
            aliases[name] = shown
    return types, aliases


def plain(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return those of ``values`` that JSON can hold."""
    kept: dict[str, Any] = {}
    for name, value in values.items():
        try:
            kept[name] = json.loads(json.dumps(value, allow_nan=False))
        except (TypeError, ValueError):
            continue
    return kept
