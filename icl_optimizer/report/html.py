"""The report: one HTML file that needs nothing else, not even a network."""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from icl_optimizer.errors import MissingDependencyError
from icl_optimizer.report.draw import INSTALL, draw
from icl_optimizer.report.figures import build_figures
from icl_optimizer.report.interactive import interactive
from icl_optimizer.report.loading import Run, load_run
from icl_optimizer.report.measures import shipped_note
from icl_optimizer.report.models import failures, models_table
from icl_optimizer.report.spec import Figure
from icl_optimizer.report.summary import cost_table, key_table
from icl_optimizer.report.verdict import verdict

REPORT = "report.html"
FIGURES = "figures"


@dataclass(frozen=True)
class Shown:
    """A figure with its two pictures."""

    figure: Figure
    png: str
    plot: dict[str, Any]


def write_report(folder: str | Path) -> Path:
    """Write ``report.html`` and ``figures/*.png`` into a run folder and return the report's path.

    The same folder gives the same report. All input is read and checked first.

    Args:
        folder: A folder that a comparison has written.

    Raises:
        ConfigurationError: If it is not one.
        MissingDependencyError: Without matplotlib or plotly.
    """
    run = load_run(folder)
    script = plotly_script()
    figures = build_figures(run)
    shown = [_show(figure, run.folder / FIGURES) for figure in figures]
    page = (
        _environment()
        .get_template("report.html.j2")
        .render(
            run=run,
            title=run.config.title or f"Comparison of policies on {run.config.environment}",
            verdict=verdict(run),
            summary=key_table(run),
            costs=cost_table(run),
            models=models_table(run),
            failures=failures(run),
            shipped=shipped_note(run),
            figures=shown,
            settings=_flat(run.config.settings),
            configuration=_configuration(run),
            plotly=Markup(script),
        )
    )
    path = run.folder / REPORT
    part = path.with_suffix(".part")
    part.write_text(page, encoding="utf-8")
    # a reader never sees half a report
    part.replace(path)
    return path


def plotly_script() -> str:
    """Return plotly.js, for one page that needs no network.

    Raises:
        MissingDependencyError: Without plotly.
    """
    try:
        from plotly.offline import get_plotlyjs
    except ImportError as error:
        raise MissingDependencyError(f"the report needs plotly: {INSTALL}") from error
    return str(get_plotlyjs())


def _environment() -> Environment:
    return Environment(
        loader=PackageLoader("icl_optimizer.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def _show(figure: Figure, folder: Path) -> Shown:
    path = folder / f"{figure.id}.png"
    draw(figure, path)
    return Shown(figure, base64.b64encode(path.read_bytes()).decode(), interactive(figure))


def _configuration(run: Run) -> list[tuple[str, str]]:
    config = run.config
    llm = config.llm if isinstance(config.llm, str) else ", ".join(config.llm or [])
    seeds = config.seeds if isinstance(config.seeds, int) else ", ".join(map(str, config.seeds))
    rows = [
        ("environment", config.environment),
        ("training scenario", run.scenario),
        ("policies", ", ".join(config.policies)),
        ("language model", llm or "none"),
        ("seeds", str(seeds)),
        ("shared interactions", f"{config.interactions:,}"),
        ("budgets", ", ".join(f"{name} {n:,}" for name, n in config.budgets.items())),
        ("checkpoints", _flat_value(config.checkpoints)),
    ]
    return [row for row in rows if row[1]]


def _flat(settings: dict[str, Any]) -> list[tuple[str, str]]:
    return [(key, _flat_value(value)) for key, value in settings.items()]


def _flat_value(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return value if isinstance(value, str) else json.dumps(value)
