"""Commands about comparisons: compare policies, write the report again."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from icl_optimizer.cli.app import app, console
from icl_optimizer.cli.options import (
    Cache,
    IclOptions,
    Llm,
    MaxCalls,
    MaxCost,
    PriceTable,
    Prompts,
    Replay,
    Settings,
    access_options,
    pairs,
)
from icl_optimizer.errors import BudgetError, ModelError, ReplayError


@app.command()
def compare(
    environment: Annotated[str, typer.Argument(help="Name of the environment.")],
    policies: Annotated[
        list[str] | None, typer.Option("--policies", help="Policies, separated by spaces.")
    ] = None,
    llm: Llm = "llamacpp",
    seeds: Annotated[int | None, typer.Option(help="Repetitions.")] = None,
    interactions: Annotated[int | None, typer.Option(help="Decisions to learn from.")] = None,
    drl_interactions: Annotated[
        int | None, typer.Option(help="Budget of the deep-RL policies.")
    ] = None,
    train: Annotated[
        bool, typer.Option("--train", help="Train deep RL even where its weights are shipped.")
    ] = False,
    eval_tasks: Annotated[int | None, typer.Option(help="Held-out tasks.")] = None,
    settings: Settings = None,
    icl: IclOptions = None,
    prompts: Prompts = None,
    drift_at: Annotated[
        int | None, typer.Option(min=1, help="Interactions after which the environment changes.")
    ] = None,
    drift: Annotated[
        list[str] | None, typer.Option("--drift", help="What changes then, as in key=value.")
    ] = None,
    llm_cache: Cache = None,
    replay: Replay = False,
    max_calls: MaxCalls = None,
    max_cost: MaxCost = None,
    prices: PriceTable = None,
    sweeps: Annotated[bool, typer.Option(help="Evaluate at further points.")] = True,
    jobs: Annotated[int, typer.Option(min=1, help="Processes.")] = 1,
    out: Annotated[Path | None, typer.Option(help="Folder for tables and report.")] = None,
    resume: Annotated[bool, typer.Option(help="Continue a run; repeats nothing.")] = False,
    quiet: Annotated[bool, typer.Option(help="No progress bar.")] = False,
) -> None:
    """Compare policies on an environment and write tables and a report."""
    from icl_optimizer.comparison.config import default_config
    from icl_optimizer.comparison.runner import compare as run
    from icl_optimizer.environments.registry import get_spec
    from icl_optimizer.report import require_plotting

    require_plotting()
    config = default_config(
        environment,
        policies=tuple(policies) if policies else None,
        llm=llm,
        seeds=seeds,
        interactions=interactions,
        drl_interactions=drl_interactions,
        train=train,
        eval_tasks=eval_tasks,
        settings=pairs("--set", settings),
        icl=pairs("--icl", icl),
        prompts=str(prompts) if prompts else None,
        sweeps=sweeps,
        drift_at=drift_at,
        drift=pairs("--drift", drift) or None,
    )
    access = access_options(llm_cache, replay, max_calls, max_cost, prices)
    name = get_spec(environment).name
    folder = out or Path("runs") / f"{name}-{config.scenario.replace('=', '-')[:60]}"
    try:
        run(config, folder, resume=resume, jobs=jobs, progress_bar=not quiet, access=access)
    except (BudgetError, ModelError, ReplayError, KeyboardInterrupt) as error:
        _stopped(folder, error)
    _finish(folder)


@app.command()
def report(folder: Annotated[Path, typer.Argument(help="Folder of a comparison.")]) -> None:
    """Write the report of a comparison again from its tables."""
    _finish(folder)


def _finish(folder: Path) -> None:
    """Write the report and print the table, the report's path last."""
    from icl_optimizer.report import summary_table, write_report
    from icl_optimizer.report.loading import load_run
    from icl_optimizer.report.measures import shipped_note

    path = write_report(folder)
    console.print(summary_table(folder))
    if note := shipped_note(load_run(folder)):
        console.print(note, markup=False, highlight=False)
    console.print(f"report: {path}", markup=False, soft_wrap=True)


def _stopped(folder: Path, error: BaseException) -> NoReturn:
    """Show what there is so far, why it ended and how to go on; end the program."""
    from icl_optimizer.report.loading import has_results

    if has_results(folder):
        _finish(folder)
    again = shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])
    again += "" if "--resume" in sys.argv else " --resume"
    reason = "interrupted" if isinstance(error, KeyboardInterrupt) else str(error)
    console.print(f"stopped: {reason}", markup=False, highlight=False, soft_wrap=True)
    console.print(f"finished parts are kept; go on with: {again}", markup=False, soft_wrap=True)
    # as shells report an interrupt
    sys.exit(130 if isinstance(error, KeyboardInterrupt) else 3)
