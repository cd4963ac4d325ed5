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
    EngineOption,
    IclOptions,
    Jobs,
    Llm,
    MaxCalls,
    MaxCost,
    PriceTable,
    Prompts,
    RayAddress,
    Replay,
    Settings,
    access_options,
    pairs,
)
from icl_optimizer.errors import BudgetError, ModelError, ReplayError, WorkerError


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
    threads: Annotated[int | None, typer.Option(min=1, help="Threads of each unit.")] = None,
    jobs: Jobs = None,
    engine: EngineOption = "local",
    ray_address: RayAddress = None,
    out: Annotated[Path | None, typer.Option(help="Folder for tables and report.")] = None,
    resume: Annotated[bool, typer.Option(help="Continue a run; repeats nothing.")] = False,
    quiet: Annotated[bool, typer.Option(help="No progress bar.")] = False,
) -> None:
    """Compare policies on an environment and write tables and a report."""
    from icl_optimizer.comparison.config import default_config
    from icl_optimizer.comparison.runner import compare as run
    from icl_optimizer.comparison.sweep_file import folder_name
    from icl_optimizer.environments.registry import get_spec
    from icl_optimizer.report import require_plotting
    from icl_optimizer.report.loading import has_results

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
        threads=threads,
    )
    access = access_options(llm_cache, replay, max_calls, max_cost, prices)
    name = get_spec(environment).name
    folder = out or Path("runs") / folder_name([name, config.scenario])
    try:
        run(
            config,
            folder,
            resume=resume,
            jobs=jobs,
            engine=engine,
            ray_address=ray_address,
            progress_bar=not quiet,
            access=access,
        )
    except (BudgetError, ModelError, ReplayError, WorkerError, KeyboardInterrupt) as error:
        if has_results(folder):
            _finish(folder)
        say_stopped(error)
    _finish(folder)


@app.command()
def report(
    folders: Annotated[list[Path], typer.Argument(help="Folders of comparisons, or of one sweep.")],
    out: Annotated[
        Path | None, typer.Option(help="HTML file about several; else beside the first.")
    ] = None,
) -> None:
    """Write the report of a comparison or a sweep from its tables, or one about several runs."""
    from icl_optimizer.errors import ConfigurationError
    from icl_optimizer.report import (
        is_sweep,
        sweep_summary,
        write_side_by_side,
        write_sweep_report,
    )

    if len(folders) > 1:
        path = write_side_by_side(folders, out)
        console.print(f"report: {path}", markup=False, soft_wrap=True)
    elif out is not None:
        raise ConfigurationError(
            f"--out is '{out}', but the report of one run lies in its folder; "
            "allowed: --out with two or more folders."
        )
    elif is_sweep(folders[0]):
        console.print(sweep_summary(folders[0]))
        path = write_sweep_report(folders[0])
        console.print(f"report: {path}", markup=False, soft_wrap=True)
    else:
        _finish(folders[0])


def _finish(folder: Path) -> None:
    """Write the report and print the table, the report's path last."""
    from icl_optimizer.report import summary_table, write_report
    from icl_optimizer.report.loading import load_run
    from icl_optimizer.report.measures import shipped_note

    run = load_run(folder)
    path = write_report(run)
    console.print(summary_table(run))
    if note := shipped_note(run):
        console.print(note, markup=False, highlight=False)
    console.print(f"report: {path}", markup=False, soft_wrap=True)


def say_stopped(error: BaseException) -> NoReturn:
    """Say why a run ended and how to go on; end the program."""
    again = shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])
    again += "" if "--resume" in sys.argv else " --resume"
    reason = "interrupted" if isinstance(error, KeyboardInterrupt) else str(error)
    console.print(f"stopped: {reason}", markup=False, highlight=False, soft_wrap=True)
    console.print(f"finished parts are kept; go on with: {again}", markup=False, soft_wrap=True)
    # as shells report an interrupt
    sys.exit(130 if isinstance(error, KeyboardInterrupt) else 3)
