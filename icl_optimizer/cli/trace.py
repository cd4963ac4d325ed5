"""The command that shows traces: a table of them side by side, a picture of each."""

from __future__ import annotations

import warnings
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.progress import Progress
from rich.table import Table

from icl_optimizer.cli.app import app, console
from icl_optimizer.errors import ConfigurationError, MissingDependencyError

if TYPE_CHECKING:
    from icl_optimizer.environments.traces import Malformed, TokenDistribution, TraceStatistics


SECTIONS = ("duration", "longest gap (s)", "context tokens: most", "generated tokens: most")
"""Rows of the table with a line below."""


@app.command()
def trace(
    files: Annotated[
        list[str], typer.Argument(help="Traces: azure-code, azure-conversation, or CSV files.")
    ],
    out: Annotated[Path, typer.Option(help="Folder for the pictures.")] = Path(),
    malformed: Annotated[
        str, typer.Option(help="What to do with malformed rows: reject or skip.")
    ] = "reject",
) -> None:
    """Show traces of requests: rates, burstiness, tokens."""
    from icl_optimizer.environments.traces import check_malformed, check_source, trace_name
    from icl_optimizer.report.draw import INSTALL
    from icl_optimizer.report.trace_picture import draw_trace

    if find_spec("matplotlib") is None:
        raise MissingDependencyError(f"pictures need matplotlib: {INSTALL}")
    choice = check_malformed(malformed)
    for source in files:
        check_source(source)
    names = [trace_name(source) for source in files]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ConfigurationError(f"several traces are named {twice}; allowed: different names.")
    found = [_read(source, choice) for source in files]
    console.print(_table(found))
    for statistics in found:
        path = out / f"trace-{statistics.name}.png"
        draw_trace(statistics, path)
        console.print(f"picture: {path}", markup=False, soft_wrap=True)


def _read(source: str, malformed: Malformed) -> TraceStatistics:
    """Return the statistics of a trace, with a progress bar and warnings as plain text."""
    from icl_optimizer.environments.traces import (
        MalformedRowsWarning,
        iter_trace,
        summarise,
        trace_name,
    )

    def show(message: Warning | str, *_: object, **__: object) -> None:
        console.print(f"warning: {message}", markup=False, highlight=False, soft_wrap=True)

    columns = Progress.get_default_columns()
    bar = Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
    with warnings.catch_warnings(), bar:
        warnings.simplefilter("always", MalformedRowsWarning)
        warnings.showwarning = show
        task = bar.add_task(trace_name(source), total=1.0)
        parts = iter_trace(
            source, malformed=malformed, progress=lambda share: bar.update(task, completed=share)
        )
        return summarise(parts)


def _table(found: list[TraceStatistics]) -> Table:
    """Return the statistics, a column for each trace."""
    table = Table("", caption="Variation and dispersion are 1 where arrivals are Poisson.")
    for statistics in found:
        table.add_column(statistics.name, justify="right", overflow="fold")
    columns = [_figures(statistics) for statistics in found]
    for name in columns[0]:
        table.add_row(name, *(column[name] for column in columns), end_section=name in SECTIONS)
    return table


def _figures(statistics: TraceStatistics) -> dict[str, str]:
    """Return the rows of the table with their values."""
    from icl_optimizer.report.trace_picture import duration_text

    rows = {
        "first request": f"{statistics.start:%Y-%m-%d %H:%M:%S}",
        "requests": f"{statistics.requests:,}",
        "duration": duration_text(statistics.duration_s),
        "mean rate (requests/s)": _number(statistics.mean_rate),
        "most in a second": f"{statistics.peak_per_second:,}",
        "most in a minute": f"{statistics.peak_per_minute:,}",
        "variation of gaps": _number(statistics.gap_cv),
        "dispersion, 1 s": _number(statistics.dispersion_1s),
        "dispersion, 60 s": _number(statistics.dispersion_60s),
        "longest gap (s)": _number(statistics.longest_gap_s),
    }
    for name in ("context", "generated", "total"):
        tokens: TokenDistribution = getattr(statistics, name)
        rows |= {
            f"{name} tokens: mean": _number(tokens.mean),
            f"{name} tokens: deviation": _number(tokens.std),
            f"{name} tokens: median": f"{tokens.p50:,}",
            f"{name} tokens: 95 %": f"{tokens.p95:,}",
            f"{name} tokens: 99 %": f"{tokens.p99:,}",
            f"{name} tokens: most": f"{tokens.max:,}",
        }
    return rows


def _number(value: float) -> str:
    """Return three digits; a dash where there is no number."""
    if value != value:
        return "–"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
