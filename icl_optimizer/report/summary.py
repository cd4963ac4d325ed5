"""One row per policy: how good, how soon, and at what cost."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from icl_optimizer.comparison.statistics import Estimate, aggregate
from icl_optimizer.report.formatting import FIXED, MISSING, metric_value, number, with_interval
from icl_optimizer.report.loading import Run, load_run, parse_scenario
from icl_optimizer.report.measures import (
    Curve,
    cost,
    eval_curves,
    headline,
    last_step,
    learners,
    per_entry,
    shipped,
)
from icl_optimizer.report.palette import REFERENCES, Entry, Palette
from icl_optimizer.report.scenarios import THRESHOLD, reached_text

if TYPE_CHECKING:
    from rich.table import Table as RichTable

COSTS = {
    "interactions": "interactions learned from",
    "llm_calls": "LLM calls",
    "llm_cached": "answers from cache",
    "prompt_tokens": "prompt tokens",
    "completion_tokens": "answer tokens",
    "cost_usd": "cost, USD",
    "invalid_rate": "invalid answers, share",
    "fallback_rate": "fallbacks, share",
    "decision_ms_p50": "decision p50, ms",
    "decision_ms_p95": "decision p95, ms",
    "train_s": "train, s",
    "llm_ms_p50": "LLM request p50, ms",
    "llm_ms_p95": "LLM request p95, ms",
    "llm_disk_cached": "answers from disk",
    "llm_retries": "retries",
    "llm_failures": "failed requests",
}


UNSEEN = "balanced accuracy on unseen words"


@dataclass(frozen=True)
class Standing:
    """Where one entry stands.

    Attributes:
        entry: Who.
        name: Its label in the run.
        learns: Whether it learned; a fixed rule did not.
        shared: Its headline metric at the shared number of interactions; None without one.
        final: Its headline metric at its own budget.
        budget: Its own budget.
    """

    entry: Entry
    name: str
    learns: bool
    shared: Estimate | None
    final: Estimate
    budget: int


@dataclass(frozen=True)
class Table:
    """A table as text."""

    header: list[str]
    rows: list[list[str]] = field(default_factory=list)


def standings(run: Run) -> list[Standing]:
    """Return every entry, the best at the shared budget first, oracle and random choice last."""
    palette, moving = Palette.of(run), learners(run)
    found = [
        Standing(
            entry,
            palette.label(entry),
            entry in moving,
            curve.at(run.config.interactions),
            curve.values[-1],
            curve.steps[-1],
        )
        for entry, curve in eval_curves(run, headline(run)).items()
    ]
    return sorted(found, key=_rank)


def _rank(standing: Standing) -> tuple[int, float]:
    policy = standing.entry.policy
    group = REFERENCES.index(policy) + 1 if policy in REFERENCES else 0
    return group, float("inf") if standing.shared is None else -standing.shared.mean


def key_table(run: Run, *, brief: bool = False) -> Table:
    """Return the summary; columns that no policy has a value for are left out.

    Args:
        run: The run.
        brief: Whether it must fit a terminal of 80 characters.
    """
    metric, n = headline(run), run.config.interactions
    success, delay = eval_curves(run, "success_rate"), eval_curves(run, "delay_s")
    first = eval_curves(run, "ttft_s")
    strange = unseen_words(run)
    # of real servers
    response = eval_curves(run, "response_time_s") if first else {}
    columns: dict[str, Callable[[Standing], str]] = {
        "policy": lambda s: s.name,
        f"{metric} at{FIXED}{n:,}": lambda s: with_interval(metric, s.shared),
        "own budget" if brief else f"{metric} at own budget": lambda s: _final(metric, s, brief),
        "success rate": lambda s: _last(success, s.entry, "success_rate"),
        "delay s" if brief else "delay, s": lambda s: _last(delay, s.entry, "delay_s"),
        "response s" if brief else "response, s": lambda s: _last(
            response, s.entry, "response_time_s"
        ),
        "first token s" if brief else "first token, s": lambda s: _last(first, s.entry, "ttft_s"),
        "unseen words" if brief else UNSEEN: lambda s: _unseen(strange, s.entry, brief),
        f"to{FIXED}95{FIXED}%" if brief else "interactions to 95 %": lambda s: _reached(run, s),
        "to recover" if brief else "interactions to recover": lambda s: _recovered(run, s),
        "LLM calls": lambda s: _cost(run, s.entry, "llm_calls"),
        "prompt tokens": lambda s: _cost(run, s.entry, "prompt_tokens"),
        "ms p50 / p95" if brief else "decision p50 / p95, ms": lambda s: _latency(run, s.entry),
    }
    if not brief:
        columns["train, s"] = lambda s: _cost(run, s.entry, "train_s")
    return _build(columns, standings(run))


def unseen_words(run: Run) -> dict[Entry, Estimate]:
    """Return the balanced accuracy on words that no policy met while learning, over all mixes."""
    rows = run.extra_rows("balanced_accuracy")
    mixes = [
        n for n in rows["scenario"].unique() if parse_scenario(str(n)).get("words") == "unseen"
    ]
    found = {}
    for entry, mine in per_entry(rows[rows["scenario"].isin(mixes)]):
        strata = mine.groupby("scenario", sort=False, observed=True)
        found[entry] = aggregate([last_step(stratum)["value"] for _, stratum in strata])
    return found


def cost_table(run: Run) -> Table:
    """Return what each policy costs, with intervals over seeds."""
    columns: dict[str, Callable[[Standing], str]] = {"policy": lambda s: s.name}
    for metric, text in COSTS.items():
        columns[text] = lambda s, m=metric: with_interval(m, cost(run, s.entry, m))  # type: ignore[misc]
    return _build(columns, standings(run))


def summary_table(folder: str | Path | Run) -> RichTable:
    """Return the key columns of the run in ``folder`` as a table for the terminal."""
    return terminal_table(key_table(load_run(folder), brief=True))


def terminal_table(table: Table) -> RichTable:
    """Return ``table`` for a terminal of 80 characters."""
    from rich import box
    from rich.table import Table as RichTable
    from rich.text import Text

    shown = RichTable(box=box.SIMPLE_HEAD, padding=0)
    for i, name in enumerate(table.header):
        shown.add_column(Text(_stack(name)), justify="right" if i else "left", overflow="fold")
    for name, *cells in table.rows:
        shown.add_row(Text(name), *(Text(_stack(cell)) for cell in cells))
    return shown


def print_summary(folder: str | Path) -> None:
    """Print the verdict and the key columns of the run in ``folder``."""
    from rich.console import Console
    from rich.text import Text

    from icl_optimizer.report.verdict import verdict

    console = Console()
    console.print(summary_table(folder))
    console.print(Text(verdict(load_run(folder))))


def _build(columns: dict[str, Callable[[Standing], str]], found: list[Standing]) -> Table:
    cells = {name: [text(standing) for standing in found] for name, text in columns.items()}
    kept = [name for name, column in cells.items() if any(c != MISSING for c in column)]
    return Table(kept, [[cells[name][i] for name in kept] for i in range(len(found))])


def _stack(cell: str) -> str:
    """Return the words of a cell under each other, for a terminal of 80 characters."""
    return cell.replace(" / ", "\n").replace(" ", "\n").replace(f",{FIXED}", ",")


def _final(metric: str, standing: Standing, brief: bool) -> str:
    final = standing.final
    text = metric_value(metric, final.mean) if brief else with_interval(metric, final)
    return f"{text} at{FIXED}{standing.budget:,}" if standing.learns else text


def _unseen(found: dict[Entry, Estimate], entry: Entry, brief: bool) -> str:
    value = found.get(entry)
    if value is None or not brief:
        return with_interval("balanced_accuracy", value)
    return metric_value("balanced_accuracy", value.mean)


def _last(curves: dict[Entry, Curve], entry: Entry, metric: str) -> str:
    curve = curves.get(entry)
    return MISSING if curve is None else metric_value(metric, curve.values[-1].mean)


def _reached(run: Run, standing: Standing) -> str:
    if headline(run) != "optimality" or standing.entry.policy in REFERENCES:
        return MISSING
    if not standing.learns:
        return "from the start" if standing.final.mean >= THRESHOLD else "never"
    if standing.entry in shipped(run):
        return MISSING
    reached = cost(run, standing.entry, "interactions_to_95")
    return "not reached" if reached is None else reached_text(run, reached)


def _recovered(run: Run, standing: Standing) -> str:
    drifted = run.config.drift_at is not None and standing.learns
    if not drifted or headline(run) != "optimality":
        return MISSING
    reached = cost(run, standing.entry, "interactions_to_recover")
    return "not reached" if reached is None else reached_text(run, reached)


def _cost(run: Run, entry: Entry, metric: str) -> str:
    value = cost(run, entry, metric)
    return MISSING if value is None else number(value.mean)


def _latency(run: Run, entry: Entry) -> str:
    halves = [_cost(run, entry, f"decision_ms_{p}") for p in ("p50", "p95")]
    return MISSING if MISSING in halves else " / ".join(halves)
