"""Options that several commands share, and how ``key=value`` texts are read."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from icl_optimizer.errors import ConfigurationError
from icl_optimizer.settings_file import read_settings

if TYPE_CHECKING:
    from icl_optimizer.llm.guard import GuardOptions

Settings = Annotated[
    list[str] | None,
    typer.Option("--set", help="Environment parameter, as in key=value; @FILE.yaml for many."),
]
IclOptions = Annotated[
    list[str] | None, typer.Option("--icl", help="Option of the in-context agent, key=value.")
]
Llm = Annotated[
    str,
    typer.Option(help="Language model: llamacpp, ollama:llama3.1:8b; FIRST,SECOND is a chain."),
]
Prompts = Annotated[Path | None, typer.Option(help="Folder of your own prompt templates.")]
Cache = Annotated[
    Path | None, typer.Option("--llm-cache", help="Folder that keeps the models' answers.")
]
Replay = Annotated[
    bool, typer.Option("--replay", help="Answer from --llm-cache alone; fail on what is not there.")
]
MaxCalls = Annotated[
    int | None, typer.Option(min=1, help="Most requests to language models; then stop.")
]
MaxCost = Annotated[float | None, typer.Option(min=0, help="Most US dollars; then stop.")]
PriceTable = Annotated[
    Path | None, typer.Option("--prices", help="CSV of prices that go before the shipped ones.")
]

Jobs = Annotated[
    int | None, typer.Option(min=1, help="Units at a time; default 1, with Ray all its cores.")
]
EngineOption = Annotated[
    Literal["local", "ray"], typer.Option(help="Where units run: this machine, or a Ray cluster.")
]
RayAddress = Annotated[
    str | None, typer.Option(help="Of an existing cluster, HOST:PORT; default: start one here.")
]


def access_options(
    cache: Path | None,
    replay: bool,
    max_calls: int | None,
    max_cost: float | None,
    prices: Path | None,
) -> GuardOptions:
    """Return what stands around the models, or an error that names the option."""
    from icl_optimizer.llm.budget import Budget
    from icl_optimizer.llm.guard import GuardOptions
    from icl_optimizer.llm.prices import Prices

    if replay and cache is None:
        raise ConfigurationError("--replay is given without --llm-cache; allowed: both.")
    limited = max_calls is not None or max_cost is not None
    budget = Budget(max_calls, max_cost, Prices.load(prices)) if limited else None
    return GuardOptions(cache=cache, replay=replay, budget=budget, price_table=prices)


def pairs(option: str, items: list[str] | None) -> dict[str, Any]:
    """Turn ``key=value`` texts into a dictionary; what comes later counts.

    ``@FILE`` stands for all that the mapping in a YAML or JSON file holds.

    Raises:
        ConfigurationError: An item is neither, or the file cannot be read as a mapping.
    """
    found: dict[str, Any] = {}
    for item in items or []:
        if item.startswith("@"):
            found |= read_settings(option, item[1:])
            continue
        key, separator, value = item.partition("=")
        if not separator or not key.strip():
            raise ConfigurationError(f"{option} is '{item}'; allowed: key=value or @FILE.")
        found[key.strip()] = value.strip()
    return found


def refuse_folder(out: Path) -> None:
    """Raise, before any work, where a file cannot be written since it is a folder."""
    if out.is_dir():
        raise ConfigurationError(f"--out is '{out}', a folder; allowed: a file.")


LISTS = ("--policies", "--only")
"""Options that several values may follow."""


def expand_lists(arguments: list[str]) -> list[str]:
    """Turn ``--policies a b`` into ``--policies a --policies b``, which the parser understands."""
    expanded: list[str] = []
    option = ""
    for argument in arguments:
        if argument.startswith("-"):
            option = argument if argument in LISTS else ""
            if not option:
                expanded.append(argument)
        elif option:
            expanded += [part for name in argument.split(",") for part in (option, name)]
        else:
            expanded.append(argument)
    return expanded
