"""The command line: one module for each family of commands."""

from __future__ import annotations

import sys
from typing import NoReturn

from rich.console import Console
from rich.markup import escape

from icl_optimizer.cli import (
    compare,
    evaluate,
    fleet,
    fleet_measure,
    learn,
    machine,
    measure,
    reproduce,
    route,
    split,
    sweep,
    trace,
    weights,
)
from icl_optimizer.cli.app import app
from icl_optimizer.cli.options import expand_lists
from icl_optimizer.errors import (
    BudgetError,
    ConfigurationError,
    MissingDependencyError,
    ModelError,
    ReplayError,
)

EXPECTED = (
    BudgetError,
    ConfigurationError,
    MissingDependencyError,
    ModelError,
    OSError,
    ReplayError,
)


def main() -> None:
    """Run the command line; expected errors are one line each, without a traceback."""
    try:
        app(expand_lists(sys.argv[1:]))
    except EXPECTED as error:
        _fail(str(error))


def _fail(message: str) -> NoReturn:
    text = f"[red]error:[/] {escape(message)}"
    Console(stderr=True).print(text, soft_wrap=True, highlight=False)
    sys.exit(2)


__all__ = [
    "app",
    "compare",
    "evaluate",
    "expand_lists",
    "fleet",
    "fleet_measure",
    "learn",
    "machine",
    "main",
    "measure",
    "reproduce",
    "route",
    "split",
    "sweep",
    "trace",
    "weights",
]
