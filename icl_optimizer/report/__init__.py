"""One self-contained HTML report per comparison, and its summary table for the terminal."""

from __future__ import annotations

from importlib.util import find_spec

from icl_optimizer.errors import MissingDependencyError
from icl_optimizer.report.draw import INSTALL
from icl_optimizer.report.html import write_report
from icl_optimizer.report.summary import print_summary, summary_table

__all__ = ["print_summary", "require_plotting", "summary_table", "write_report"]


def require_plotting() -> None:
    """Raise before any work where a report could not be drawn in the end.

    Raises:
        MissingDependencyError: Matplotlib or plotly is not installed.
    """
    for name in ("matplotlib", "plotly"):
        if find_spec(name) is None:
            raise MissingDependencyError(f"the report needs {name}: {INSTALL}")
