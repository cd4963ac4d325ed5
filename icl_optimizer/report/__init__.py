"""One self-contained HTML report per comparison, and its summary table for the terminal."""

from __future__ import annotations

from icl_optimizer.report.html import write_report
from icl_optimizer.report.summary import print_summary, summary_table

__all__ = ["print_summary", "summary_table", "write_report"]
