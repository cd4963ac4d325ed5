"""The command that reproduces the papers."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from icl_optimizer.cli.app import app, console


@app.command()
def reproduce(
    only: Annotated[
        list[str] | None, typer.Option("--only", help="Parts, separated by spaces; default: all.")
    ] = None,
    collect: Annotated[
        bool, typer.Option("--collect", help="Run nothing; write the page from what there is.")
    ] = False,
    out: Annotated[Path, typer.Option(help="Folder of the raw results.")] = Path(
        "runs/reproduction"
    ),
    data: Annotated[Path, typer.Option(help="Folder of the tables behind the page.")] = Path(
        "benchmarks/reproduction"
    ),
    page: Annotated[Path, typer.Option(help="The page to write.")] = Path("docs/reproduction.md"),
) -> None:
    """Run what reproduces the papers, and write one page; finished parts are not repeated."""
    from icl_optimizer.studies.reproduction import reproduce as run

    def say(line: str) -> None:
        console.print(line, markup=False, highlight=False, soft_wrap=True)

    told = run(out, page, data=data, only=only or (), collect=collect, say=say)
    for name, reason in told.missing.items():
        say(f"no results of {name}: {reason}")
    for name, reason in told.failed.items():
        say(f"failed: {name}: {reason}")
    say(f"on the page from {out}: {', '.join(told.collected) or 'nothing'}")
    say(f"page: {told.page}")
    if told.failed:
        raise typer.Exit(1)
