"""The report of one comparison."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from icl_optimizer.report.explorer import explorer
from icl_optimizer.report.figures import build_figures
from icl_optimizer.report.loading import Run, load_run
from icl_optimizer.report.measures import shipped_note
from icl_optimizer.report.models import failures, models_table
from icl_optimizer.report.summary import cost_table, key_table
from icl_optimizer.report.verdict import verdict
from icl_optimizer.report.writing import FIGURES, REPORT, write_page


def write_report(folder: str | Path | Run) -> Path:
    """Write ``report.html``, ``figures/*.png`` and ``figures/*.csv`` into a run folder.

    The same folder gives the same report. All input is read and checked first.

    Args:
        folder: A folder that a comparison has written, or what was read from one.

    Returns:
        The report's path.

    Raises:
        ConfigurationError: If it is not one.
        MissingDependencyError: Without matplotlib or plotly.
    """
    run = load_run(folder)
    return write_page(
        run.folder / REPORT,
        "report.html.j2",
        build_figures(run),
        run.folder / FIGURES,
        run=run,
        title=run.config.title or f"Comparison of policies on {run.config.environment}",
        verdict=verdict(run),
        summary=key_table(run),
        costs=cost_table(run),
        models=models_table(run),
        failures=failures(run),
        shipped=shipped_note(run),
        explorer=explorer(run),
        settings=_flat(run.config.settings),
        configuration=_configuration(run),
    )


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
