"""The command that puts the router in front of servers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from icl_optimizer.cli.app import app, console
from icl_optimizer.cli.options import IclOptions, Llm, pairs
from icl_optimizer.errors import ConfigurationError, MissingDependencyError, invalid_fields

if TYPE_CHECKING:
    from icl_optimizer.environments.fleet.config import FleetConfig
    from icl_optimizer.router.keys import Keys
    from icl_optimizer.router.router import Router
    from icl_optimizer.router.settings import RouterSettings

_PACKAGES = ("starlette", "uvicorn", "httptools", "aiohttp", "prometheus_client")


@app.command()
def route(
    fleet: Annotated[str, typer.Argument(help="Fleet file (YAML), or demo: it is started, too.")],
    policy: Annotated[str, typer.Option(help="Who decides where a request goes.")] = "icl-predict",
    llm: Llm = "llamacpp",
    agent: Annotated[Path | None, typer.Option(help="A saved policy.")] = None,
    icl: IclOptions = None,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: a free one.")] = 8000,
    keys_env: Annotated[
        str | None, typer.Option(help="Environment variable that holds the callers' keys.")
    ] = None,
    keys_file: Annotated[
        Path | None, typer.Option(help="File with the callers' keys, one in a line.")
    ] = None,
    open_to_all: Annotated[
        bool, typer.Option("--open", help="Let everybody in who can reach the address.")
    ] = False,
    pool: Annotated[
        Path | None, typer.Option(help="SQLite file that keeps what was learned.")
    ] = None,
    log: Annotated[Path | None, typer.Option(help="File for a line of JSON per decision.")] = None,
    log_prompts: Annotated[
        bool, typer.Option("--log-prompts", help="Write prompts into it, too.")
    ] = False,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", help="Other setting of the router, as in drain_s=60."),
    ] = None,
) -> None:
    """Serve an OpenAI-compatible endpoint that sends each request where the policy says."""
    require_packages()
    from icl_optimizer.router.keys import check_exposure, load_keys
    from icl_optimizer.router.serving import bind, end_on_signals

    given: dict[str, Any] = {
        "policy": policy,
        "llm": llm,
        "agent": agent,
        "options": pairs("--icl", icl),
    }
    given |= {"host": host, "port": port, "pool": pool, "decision_log": log}
    chosen = router_settings({**given, "log_prompts": log_prompts}, pairs("--set", settings))
    if log_prompts and log is None:
        raise ConfigurationError("--log-prompts is given without --log; allowed: both.")
    _check_policy(chosen)
    keys = load_keys(keys_env, keys_file)
    check_exposure(host, keys, open_to_all=open_to_all)
    end_on_signals()
    with bind(host, port) as listener, running_fleet(fleet) as config:
        from icl_optimizer.router.router import Router
        from icl_optimizer.router.serving import serve, url_of

        router = Router(config, settings=chosen)
        where = url_of(listener)

        def announce(_: Any) -> None:
            console.print(_table(router, where, keys))
            console.print(f"page: {where}/", markup=False, highlight=False, soft_wrap=True)

        serve(router, keys, listener, open_to_all=open_to_all, ready=announce)
    console.print("stopped")


def require_packages() -> None:
    """Raise MissingDependencyError unless everything is there that serving needs."""
    missing = [name for name in _PACKAGES if find_spec(name) is None]
    if missing:
        raise MissingDependencyError(
            f"the router needs {', '.join(missing)}: pip install 'icl-optimizer[serve]'"
        )


def router_settings(given: dict[str, Any], more: dict[str, Any]) -> RouterSettings:
    """Return the router's settings.

    Args:
        given: From options of their own.
        more: From ``--set``.

    Raises:
        ConfigurationError: One is not allowed, or given twice.
    """
    from pydantic import ValidationError

    from icl_optimizer.router.settings import RouterSettings

    for name in more:
        if name in given:
            option = {"decision_log": "log", "options": "icl"}.get(name, name).replace("_", "-")
            raise ConfigurationError(f"--set names '{name}'; allowed: the option --{option}.")
    try:
        return RouterSettings(**given, **more)
    except ValidationError as error:
        raise invalid_fields("router", error) from error


@contextmanager
def running_fleet(source: str) -> Iterator[FleetConfig]:
    """Yield a fleet; the demo one runs as long as the block."""
    from icl_optimizer.environments.fleet.config import DEMO, load_fleet

    if source != DEMO:
        yield load_fleet(source)
        return
    from icl_optimizer.environments.fleet.demo import DemoFleet

    with console.status("starting the demo fleet"):
        demo = DemoFleet()
    with demo:
        yield demo.config


def _check_policy(settings: RouterSettings) -> None:
    """Refuse what would only be found when everything runs already."""
    from icl_optimizer.llm.credentials import refuse_credentials
    from icl_optimizer.policies import get_policy_spec

    get_policy_spec(settings.policy)
    refuse_credentials(settings.llm)
    if settings.agent is not None and not settings.agent.exists():
        raise ConfigurationError(f"agent is '{settings.agent}'; allowed: a file that exists.")


def _table(router: Router, url: str, keys: Keys) -> Table:
    table = Table("server", "model", "slots", "queue", title=f"{router.policy.name} decides")
    for server in router.config.servers:
        shown = server.llm.partition("?")[0]
        table.add_row(server.name, escape(shown), str(server.slots), str(server.queue_size))
    who = f"{len(keys.digests)} keys" if keys.required else "no key needed"
    table.caption = f"{url}/v1 ({who})"
    return table
