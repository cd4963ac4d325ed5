"""The command that measures a fleet and writes the settings of its twin."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
import yaml
from rich.table import Table

from icl_optimizer.cli.app import console
from icl_optimizer.cli.fleet import FleetSource, fleet_app
from icl_optimizer.environments.fleet.config import DEMO, dump_fleet, load_fleet
from icl_optimizer.errors import ConfigurationError

if TYPE_CHECKING:
    from icl_optimizer.environments.fleet.fitting import FleetFit

_ABOUT = "# Written by 'icl-optimizer fleet measure'; for --set @FILE with slo-scheduling.\n"


@fleet_app.command()
def measure(
    fleet: FleetSource,
    tasks: Annotated[int, typer.Option(min=10, help="Tasks that every server is asked.")] = 60,
    out: Annotated[Path, typer.Option(help="File for the settings of the twin.")] = Path(
        "twin.yaml"
    ),
    update: Annotated[
        bool, typer.Option("--update", help="Write what was found into the fleet file, too.")
    ] = False,
    seed: Annotated[int, typer.Option(help="Draws the tasks.")] = 0,
    quiet: Annotated[bool, typer.Option(help="No progress bar.")] = False,
) -> None:
    """Ask every server tasks with known answers; fit its speed, lengths and scores."""
    from icl_optimizer.environments.fleet.fitting import fit_fleet, sample_fleet
    from icl_optimizer.environments.live_fleet import FleetThread
    from icl_optimizer.rollout import progress

    config = load_fleet(fleet)
    if update and fleet == DEMO:
        raise ConfigurationError("--update is given with 'demo'; allowed: with a file of your own.")
    if not out.parent.is_dir():
        raise ConfigurationError(f"--out is '{out}'; allowed: a file in a folder that exists.")
    total = tasks * len(config.servers)
    with FleetThread(fleet) as thread, progress("measuring", total, shown=not quiet) as advance:
        samples = thread.call(sample_fleet(thread.fleet, tasks, seed, advance))
    fit = fit_fleet(config.names, samples)
    out.write_text(_ABOUT + yaml.safe_dump(fit.settings(config), sort_keys=False))
    console.print(_speeds(fit))
    console.print(_kinds(fit))
    console.print(
        f"log-standard deviation of lengths: {fit.length_spread:.3f} shared, "
        f"{fit.model_spread:.3f} of each server",
        highlight=False,
    )
    if update:
        _update(Path(fleet), fit)
    console.print(f"twin: {out}", markup=False, soft_wrap=True)


def _update(path: Path, fit: FleetFit) -> None:
    """Write the fleet again; the remarks at its top stay."""
    remarks = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        remarks.append(f"{line}\n")
    path.write_text("".join(remarks) + dump_fleet(fit.described(load_fleet(path))))
    console.print(f"fleet file: {path}", markup=False, soft_wrap=True)


def _speeds(fit: FleetFit) -> Table:
    table = Table("server", title="service time = overhead + tokens / speed")
    for name in ("answers", "tokens/s", "overhead (s)", "R2", "median residual (s)", "largest"):
        table.add_column(name, justify="right")
    for server in fit.servers:
        table.add_row(
            server.name,
            str(server.answers),
            f"{server.tokens_per_s:.2f}",
            f"{server.overhead_s:.3f}",
            f"{server.r2:.4f}",
            f"{server.residual_s:.3f}",
            f"{server.worst_s:.3f}",
        )
    return table


def _kinds(fit: FleetFit) -> Table:
    """Return mean tokens and mean score by task type."""
    table = Table("server", title="mean tokens / mean score")
    kinds = list(dict.fromkeys(kind for server in fit.servers for kind in server.mean_tokens))
    for kind in kinds:
        table.add_column(kind, justify="right")
    for server in fit.servers:
        cells = (
            f"{server.mean_tokens[k]:.1f} / {server.scores[k]:.2f}" if k in server.scores else "-"
            for k in kinds
        )
        table.add_row(server.name, *cells)
    return table
