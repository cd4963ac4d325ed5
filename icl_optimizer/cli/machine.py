"""Commands about this installation: list, setup, doctor, bench, study."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from icl_optimizer.cli.app import app, console


@app.command("list")
def list_all() -> None:
    """List environments and policies."""
    from icl_optimizer.environments.registry import environment_names, get_spec
    from icl_optimizer.policies import get_policy_spec, policy_names

    table = Table("environment", "Gymnasium id", "what it is")
    for name in environment_names():
        spec = get_spec(name)
        table.add_row(name, spec.gym_id, spec.summary)
    console.print(table)
    table = Table("policy", "what it is")
    for name in policy_names():
        table.add_row(name, get_policy_spec(name).summary)
    console.print(table)


@app.command()
def setup() -> None:
    """Install the weights of the embedded language model."""
    from icl_optimizer.llm.weights import install_weights

    console.print(f"weights: {install_weights().name}")


@app.command()
def doctor(
    llm: Annotated[
        list[str] | None, typer.Option("--llm", help="Model to ask, too; may be repeated.")
    ] = None,
) -> None:
    """Say what is installed, which models answer, and what to do about the rest."""
    from icl_optimizer.llm.doctor import diagnose

    table = Table("", "part", "finding", "remedy")
    findings = diagnose(llm or ())
    for finding in findings:
        mark = "[green]ok[/]" if finding.ok else "[yellow]--[/]"
        table.add_row(mark, finding.name, escape(finding.detail), escape(finding.remedy))
    console.print(table)


@app.command()
def bench(
    name: Annotated[str | None, typer.Argument(help="One benchmark; default: all.")] = None,
    out: Annotated[Path, typer.Option(help="File for the ratios.")] = Path(
        "benchmarks/results.json"
    ),
) -> None:
    """Measure ratios against peers, both sides in the same run."""
    from icl_optimizer.bench.runner import run_benchmarks

    console.print(run_benchmarks(name, out))


@app.command()
def study(
    name: Annotated[
        str,
        typer.Argument(
            help="backends, balancing, cold-start, faults, inference, levers, off-policy, "
            "router-access, router-endpoint, router-faults, routing, scale, scheduling, splitting "
            "or twin."
        ),
    ],
    out: Annotated[Path, typer.Option(help="Folder for the tables.")] = Path("runs/studies"),
    seeds: Annotated[int | None, typer.Option(min=1, help="Repetitions.")] = None,
) -> None:
    """Measure one of the documentation's tables on the embedded model."""
    from icl_optimizer.studies.catalogue import run_study

    path = run_study(name, out, seeds)
    console.print(path.read_text(), markup=False, highlight=False, soft_wrap=True)
    console.print(f"table: {path}", markup=False, soft_wrap=True)
