"""The command of sweeps: many comparisons from one file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from icl_optimizer.cli.app import app
from icl_optimizer.cli.compare import report, say_stopped
from icl_optimizer.cli.options import (
    Cache,
    EngineOption,
    Jobs,
    MaxCalls,
    MaxCost,
    PriceTable,
    RayAddress,
    Replay,
    access_options,
)
from icl_optimizer.errors import BudgetError, ModelError, ReplayError, WorkerError


@app.command()
def sweep(
    file: Annotated[Path, typer.Argument(help="YAML file: systems, parameters, policies, …")],
    out: Annotated[Path, typer.Option(help="Folder for all comparisons and their tables.")],
    llm_cache: Cache = None,
    replay: Replay = False,
    max_calls: MaxCalls = None,
    max_cost: MaxCost = None,
    prices: PriceTable = None,
    jobs: Jobs = None,
    engine: EngineOption = "local",
    ray_address: RayAddress = None,
    resume: Annotated[bool, typer.Option(help="Continue a run; repeats nothing.")] = False,
    quiet: Annotated[bool, typer.Option(help="No progress bar.")] = False,
) -> None:
    """Run the comparisons of a sweep file in one pool of workers; write tables and a report."""
    from icl_optimizer.comparison.sweep import run_sweep
    from icl_optimizer.report import require_plotting
    from icl_optimizer.report.loading import has_results

    require_plotting()
    access = access_options(llm_cache, replay, max_calls, max_cost, prices)
    try:
        run_sweep(
            file,
            out,
            resume=resume,
            jobs=jobs,
            engine=engine,
            ray_address=ray_address,
            progress_bar=not quiet,
            access=access,
        )
    except (BudgetError, ModelError, ReplayError, WorkerError, KeyboardInterrupt) as error:
        if has_results(out):
            report([out], None)
        say_stopped(error)
    report([out], None)
