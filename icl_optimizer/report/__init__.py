"""One self-contained HTML report per comparison or several, and summary tables for the terminal."""

from __future__ import annotations

from importlib.util import find_spec

from icl_optimizer.errors import MissingDependencyError
from icl_optimizer.report.draw import INSTALL
from icl_optimizer.report.html import write_report
from icl_optimizer.report.side_by_side import write_side_by_side
from icl_optimizer.report.summary import print_summary, summary_table
from icl_optimizer.report.sweep import sweep_summary, write_sweep_report
from icl_optimizer.report.sweep_loading import is_sweep

__all__ = [
    "is_sweep",
    "print_summary",
    "require_plotting",
    "summary_table",
    "sweep_summary",
    "write_report",
    "write_side_by_side",
    "write_sweep_report",
]


def require_plotting() -> None:
    """Raise before any work where a report could not be drawn in the end.

    Raises:
        MissingDependencyError: Matplotlib or plotly is not installed.
    """
    for name in ("matplotlib", "plotly"):
        if find_spec(name) is None:
            raise MissingDependencyError(f"the report needs {name}: {INSTALL}")
