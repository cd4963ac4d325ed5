"""The command that measures what channels do to the perplexity of a split model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from icl_optimizer.cli.app import console
from icl_optimizer.cli.split import Model, split_app
from icl_optimizer.errors import ConfigurationError

if TYPE_CHECKING:
    import pandas as pd

MOST_COLUMNS = 8
"""Channels that the table at the end shows, evenly chosen."""


@split_app.command()
def measure(
    out: Annotated[Path, typer.Argument(help="Table to write (CSV); one that is there goes on.")],
    splits: Annotated[str, typer.Option(help="Layers, as in 1-10 or 1,5,29.")] = "1-10",
    channel: Annotated[
        list[str] | None,
        typer.Option(help="As in sigma=1,loss=0.1; repeat it. Default: those of the environment."),
    ] = None,
    draws: Annotated[int, typer.Option(min=1, help="Records of each split and channel.")] = 18,
    tokens: Annotated[int, typer.Option(min=2, help="Tokens of a text.")] = 32,
    texts: Annotated[int, typer.Option(min=1, help="Texts of a record.")] = 8,
    text: Annotated[
        Path | None, typer.Option(help="File with a paragraph per line; default: WikiText-2.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of fading, noise and losses.")] = 0,
    model: Model = None,
) -> None:
    """Measure the perplexity of a split model behind channels, into a table of records."""
    from icl_optimizer.environments.splitting.channel import Channel
    from icl_optimizer.environments.splitting.excerpt import (
        excerpt_paragraphs,
        file_paragraphs,
        windows,
    )
    from icl_optimizer.environments.splitting.measuring import measure as measure_into
    from icl_optimizer.environments.splitting.model import load_split_model
    from icl_optimizer.environments.splitting.perplexity import PerplexityMeter
    from icl_optimizer.environments.splitting.records import link_channels, plan, read_records
    from icl_optimizer.rollout import progress

    layers = layer_numbers(splits)
    channels = [Channel.parse(c) for c in channel] if channel else link_channels()
    paragraphs = file_paragraphs(text) if text else excerpt_paragraphs()
    loaded = load_split_model(model)
    for layer in layers:
        loaded.check_split(layer)
    groups = windows(paragraphs, loaded.tokenizer, tokens=tokens, texts=texts)
    planned = list(plan(layers, channels, draws, seed))
    with progress("records", len(planned), shown=True) as advance:
        measure_into(PerplexityMeter(loaded, groups), planned, out, advance)
    records = read_records(out)
    console.print(_table(records))
    console.print(f"{len(records)} records in {out}", markup=False, soft_wrap=True)


def layer_numbers(text: str) -> list[int]:
    """Return the layers that ``1-3,7`` stands for.

    Raises:
        ConfigurationError: It is written in another way.
    """
    try:
        parts = [[int(n) for n in part.split("-")] for part in text.split(",")]
        return [n for part in parts for n in range(part[0], part[-1] + 1)]
    except ValueError:
        raise ConfigurationError(f"splits is '{text}'; allowed: as in 1-10 or 1,5,29.") from None


def _table(records: pd.DataFrame) -> Table:
    """Return mean extra nats per token by split and channel."""
    means = records.groupby(["split", "channel"], sort=False)["extra_nats"].mean().unstack()
    step = -(-len(means.columns) // MOST_COLUMNS)
    shown = means[means.columns[::step]]
    table = Table(title="extra nats per token: ln(perplexity / that without a channel)")
    table.add_column("split", justify="right")
    for name in shown.columns:
        table.add_column(str(name), justify="right")
    for split, row in shown.iterrows():
        table.add_row(str(split), *(f"{value:.3f}" for value in row))
    return table
