"""The command that makes the weights which come with the package."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from icl_optimizer.cli.app import app, console
from icl_optimizer.cli.options import Settings, pairs


@app.command()
def weights(
    environment: Annotated[str, typer.Argument(help="Name of the environment.")],
    out: Annotated[Path, typer.Option(help="Folder for weights and index.")],
    policies: Annotated[
        list[str] | None, typer.Option("--policies", help="Deep-RL policies, by spaces.")
    ] = None,
    seeds: Annotated[int | None, typer.Option(min=1, help="Repetitions.")] = None,
    drl_interactions: Annotated[
        int | None, typer.Option(min=1, help="Decisions to learn from.")
    ] = None,
    settings: Settings = None,
    quiet: Annotated[bool, typer.Option(help="No progress bar.")] = False,
) -> None:
    """Train deep-RL policies and keep what deciding needs, as compare uses it."""
    from icl_optimizer.comparison.shipping import make_weights

    made = make_weights(
        environment,
        out,
        policies=policies or None,
        seeds=seeds,
        settings=pairs("--set", settings),
        interactions=drl_interactions,
        progress_bar=not quiet,
    )
    console.print(f"weights: {len(made)} files in {out / environment}", markup=False)
