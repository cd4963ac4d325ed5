"""Writing a page: one HTML file that needs nothing else, not even a network."""

from __future__ import annotations

import base64
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from icl_optimizer.errors import MissingDependencyError
from icl_optimizer.report.draw import INSTALL, draw
from icl_optimizer.report.interactive import interactive
from icl_optimizer.report.spec import Figure

REPORT = "report.html"
FIGURES = "figures"


@dataclass(frozen=True)
class Shown:
    """A figure with its two pictures, and its data as an address that needs no network."""

    figure: Figure
    png: str
    plot: dict[str, Any]
    csv: str


def write_page(
    path: Path, template: str, figures: Iterable[Figure], folder: Path, **parts: Any
) -> Path:
    """Write a page, and its figures as PNG and CSV.

    Args:
        path: The HTML file.
        template: Which of the templates.
        figures: Its figures.
        folder: Where they go.
        **parts: What else the template takes.

    Returns:
        ``path``.
    """
    script = plotly_script()
    shown = [_show(figure, folder) for figure in figures]
    page = (
        _environment().get_template(template).render(figures=shown, plotly=Markup(script), **parts)
    )
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
    data = figure.csv().encode()
    path.with_suffix(".csv").write_bytes(data)
    png, address = (base64.b64encode(b).decode() for b in (path.read_bytes(), data))
    return Shown(figure, png, interactive(figure), f"data:text/csv;base64,{address}")
