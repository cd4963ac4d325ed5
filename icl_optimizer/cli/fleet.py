"""Commands about fleets of language-model servers: up, status, check."""

from __future__ import annotations

import signal
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.live import Live
from rich.table import Table
from rich.text import Text

from icl_optimizer.cli.app import app, console
from icl_optimizer.errors import ConfigurationError

if TYPE_CHECKING:
    from icl_optimizer.environments.fleet.config import FleetConfig, ServerConfig
    from icl_optimizer.environments.fleet.demo import DemoFleet
    from icl_optimizer.environments.fleet.demo_check import PaceCheck

fleet_app = typer.Typer(no_args_is_help=True, help="Run language-model servers and look at them.")
app.add_typer(fleet_app, name="fleet")

_LOOK_S = 1.0
_MARK = "# Written by 'icl-optimizer fleet up'; the servers answer while it runs.\n"
_LAST_PORT = 65535

FleetSource = Annotated[str, typer.Argument(metavar="FLEET", help="Fleet file, or demo.")]


@fleet_app.command()
def up(
    fleet: FleetSource = "demo",
    port: Annotated[
        int, typer.Option(min=0, max=_LAST_PORT, help="Port of the first server; 0: free ones.")
    ] = 7700,
    out: Annotated[Path, typer.Option(help="Fleet file to write, with the URLs.")] = Path(
        "fleet.yaml"
    ),
) -> None:
    """Start the servers of a fleet on this machine and keep them up until Ctrl-C."""
    from icl_optimizer.environments.fleet.config import dump_fleet, load_fleet
    from icl_optimizer.environments.fleet.demo import DemoFleet

    config = load_fleet(fleet)
    ports = _ports(port, len(config.servers))
    _check_out(out)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler)
    try:
        with console.status(f"starting {len(config.servers)} servers"):
            running = DemoFleet(config, ports)
        with running:
            out.write_text(_MARK + dump_fleet(running.config))
            console.print(_table(running.config, running.paces()))
            console.print(f"fleet file: {out}", markup=False, soft_wrap=True)
            console.print("Ctrl-C stops the servers.")
            _watch(running)
    except KeyboardInterrupt:
        console.print("stopped")


@fleet_app.command()
def status(fleet: FleetSource) -> None:
    """Ask each server of a fleet whether it answers and, if it is paced, how well it keeps pace."""
    from icl_optimizer.environments.fleet.config import load_fleet
    from icl_optimizer.environments.fleet.demo import ask_server

    config = load_fleet(fleet)
    urls = [_url(server) for server in config.servers]
    found = [ask_server(url, "/pace") or ask_server(url, "/health") for url in urls]
    console.print(_table(config, found))
    if not any(found):
        raise typer.Exit(1)


@fleet_app.command()
def check(
    fleet: FleetSource = "demo",
    seconds: Annotated[float, typer.Option(min=1, max=3600, help="Length in total.")] = 60.0,
) -> None:
    """Start a fleet and measure how well it keeps its pace, alone and together."""
    from icl_optimizer.environments.fleet.config import load_fleet
    from icl_optimizer.environments.fleet.demo import require_packages

    require_packages()
    from icl_optimizer.environments.fleet.demo_check import check_demo

    with console.status("measuring"):
        found = list(check_demo(load_fleet(fleet), seconds))
    console.print(_check_table(found))


def _ports(first: int, count: int) -> list[int]:
    if not first:
        return [0] * count
    if first + count - 1 > _LAST_PORT:
        raise ConfigurationError(
            f"--port is {first}; allowed: at most {_LAST_PORT + 1 - count} for {count} servers."
        )
    return list(range(first, first + count))


def _check_out(out: Path) -> None:
    """Refuse to write where it would fail later, or over a file of somebody's own."""
    if not out.parent.is_dir():
        raise ConfigurationError(f"--out is '{out}'; allowed: a file in a folder that exists.")
    if out.exists() and (not out.is_file() or not out.read_bytes().startswith(_MARK.encode())):
        raise ConfigurationError(
            f"--out is '{out}', which exists; allowed: a new file, or one that 'fleet up' wrote."
        )


def _watch(fleet: DemoFleet) -> None:
    """Show how the servers are, and start those again that ended, for ever."""
    with Live(console=console, refresh_per_second=2) as live:
        while True:
            for name in fleet.restart_dead():
                console.print(f"the server '{name}' had ended and was started again", markup=False)
            live.update(_line(fleet.config, fleet.paces()))
            time.sleep(_LOOK_S)


def _line(config: FleetConfig, paces: Sequence[Mapping[str, Any] | None]) -> Text:
    """Return who is up and what was done, in one line."""
    parts = [
        f"{name} " + ("{busy}+{waiting}".format_map(pace) if pace else "silent")
        for name, pace in zip(config.names, paces, strict=True)
    ]
    heard = [pace for pace in paces if pace]
    served, tokens, late = (
        sum(pace[key] for pace in heard) for key in ("served", "tokens", "late_tokens")
    )
    done = f"{served} served, {tokens} tokens, {late} late"
    return Text(f"in service + waiting: {', '.join(parts)}; {done}")


def _url(server: ServerConfig) -> str:
    """Return where a server is asked, without the path of its interface."""
    from icl_optimizer.llm.spec import parse_spec

    url = parse_spec(server.llm).url
    if not url.startswith("http://"):
        raise ConfigurationError(
            f"the server '{server.name}' has llm '{server.llm}'; allowed for a status: "
            "openai:NAME@http://HOST:PORT/v1."
        )
    return url.removesuffix("/v1")


def _table(config: FleetConfig, found: Sequence[Mapping[str, Any] | None]) -> Table:
    table = Table("server", "URL", "pace", "state")
    for server, told in zip(config.servers, found, strict=True):
        pace = f"{server.tokens_per_s:g} tokens/s after {server.overhead_s:g} s"
        table.add_row(server.name, Text(_url(server)), pace, _state(told))
    return table


def _state(told: Mapping[str, Any] | None) -> str:
    """Return whether a server answers and, where it counts them, what it did."""
    if told is None:
        return "[red]silent[/]"
    if "tokens" not in told:
        return "[green]up[/]"
    late = told["late_tokens"] / told["tokens"] if told["tokens"] else 0.0
    counts = "{busy} in service, {waiting} waiting, {served} served".format_map(told)
    return f"[green]up[/], {counts}, {late:.1%} of {told['tokens']} tokens late"


def _check_table(rows: Sequence[PaceCheck]) -> Table:
    table = Table("load", "server", "requests", "pace (tokens/s)", "achieved")
    for name in ("first token (s)", "longest", "late tokens", "by (ms)"):
        table.add_column(name)
    for row in rows:
        rates = (f"{row.tokens_per_s:g}", f"{row.achieved_per_s:.2f}")
        first = (f"{row.ttft_s:.2f}", f"{row.worst_ttft_s:.2f}")
        late = (f"{row.late:.1%}", f"{1000 * row.lateness_s:.0f}")
        table.add_row(row.load, row.server, str(row.requests), *rates, *first, *late)
    return table
