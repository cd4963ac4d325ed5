"""The inference simulator beside measurements of served models: tables and pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd

from icl_optimizer.environments.batching.costs import StepCosts
from icl_optimizer.environments.batching.fitting import fit_costs, serve
from icl_optimizer.environments.batching.pilot import MEASURED_S, Lengths, Setup, setups
from icl_optimizer.environments.batching.serving import serving_costs
from icl_optimizer.environments.batching.splitwise import Comparison, compare_splitwise
from icl_optimizer.rollout import progress
from icl_optimizer.studies.inference_pictures import draw_against_load
from icl_optimizer.studies.tables import markdown, write_study

MEASURES = {"itl": "time between tokens", "tokens_per_s": "throughput", "ttft": "time to first"}
OTHER_LENGTHS: tuple[Lengths, ...] = ("geometric", "fixed")


def run_inference(
    out: Path,
    seeds: int = 3,
    *,
    measured: Sequence[Setup] | None = None,
    seconds: float = MEASURED_S,
    progress_bar: bool = True,
) -> Path:
    """Simulate what LLM-Pilot measured, and compare costs with SplitwiseSim's batches.

    Writes ``inference.csv`` and ``.md`` (every load; errors by setup), ``inference-lengths.md``
    (the errors if only the mean of the answers were known), ``inference-splitwise.md``, and the
    pictures ``inference-itl.png`` and ``inference-throughput.png``.

    Args:
        out: Folder.
        seeds: Draws of the requests; results are means over them. Costs were fitted to another.
        measured: Setups; None for all.
        seconds: How long users send in the simulation.
        progress_bar: Whether to draw one.

    Returns:
        The path of the first table.
    """
    measured = setups() if measured is None else measured
    shipped = [serving_costs(s.billions, s.gpu, s.n_gpus) for s in measured]
    by_lengths: dict[str, pd.DataFrame] = {}
    with progress("inference", len(measured) * 5, shown=progress_bar) as advance:

        def simulated(lengths: Lengths, costs: Sequence[StepCosts]) -> pd.DataFrame:
            parts = []
            for setup, cost in zip(measured, costs, strict=True):
                parts.append(_simulated(setup, cost, lengths, seeds, seconds))
                advance(1)
            return pd.concat(parts, ignore_index=True)

        by_lengths["measured"] = simulated("measured", shipped)
        for lengths in OTHER_LENGTHS:
            refitted = []
            for setup in measured:
                refitted.append(fit_costs(setup, lengths, seconds=seconds))
                advance(1)
            by_lengths[lengths] = simulated(lengths, refitted)
    values = by_lengths["measured"]
    path = write_study(out, "inference", values, _table(values))
    for name, table in (
        ("lengths", _lengths_table(by_lengths)),
        ("splitwise", _splitwise_table(compare_splitwise())),
    ):
        out.joinpath(f"inference-{name}.md").write_text(markdown(table) + "\n", encoding="utf-8")
    draw_against_load(values, "itl", out / "inference-itl.png")
    draw_against_load(values, "tokens_per_s", out / "inference-throughput.png")
    return path


def _simulated(
    setup: Setup, costs: StepCosts, lengths: Lengths, seeds: int, seconds: float
) -> pd.DataFrame:
    """Return one line per load: measured and simulated values, and whether it was held out.

    The time to first token is that after the stream is open, in both.
    """
    tasks = [(setup, row, costs) for row in setup.rows]
    lines = []
    for seed in range(1, seeds + 1):
        served = serve(tasks, lengths, seconds=seconds, seed=seed)
        for row, result in zip(setup.rows, served, strict=True):
            line = {"setup": setup.name, "billions": setup.billions, "gpu": setup.gpu}
            line |= {"n_gpus": setup.n_gpus, "users": row.users}
            line |= {"held_out": row in setup.held_out}
            line |= {"itl_measured": row.itl_s, "itl": result.itl_s}
            line |= {"tokens_per_s_measured": row.tokens_per_s}
            line |= {"tokens_per_s": result.tokens_per_s}
            line |= {"ttft_measured": row.ttft_s - row.opening_s, "ttft": result.ttft_s}
            lines.append(line)
    keys = ["setup", "users"]
    return pd.DataFrame(lines).groupby(keys, sort=False, as_index=False).agg(_mean_or_same)


def _mean_or_same(column: pd.Series[float]) -> float:
    return column.iloc[0] if column.dtype.kind not in "f" else column.mean()


def mape(values: pd.DataFrame, measure: str) -> float:
    """Return the mean absolute error over measured values, a share.

    Args:
        values: Lines of ``inference.csv``.
        measure: ``itl``, ``tokens_per_s`` or ``ttft``.
    """
    return float((values[measure] / values[f"{measure}_measured"] - 1).abs().mean())


def _table(values: pd.DataFrame) -> list[list[str]]:
    """Return the errors by setup, on loads that were held out and on those fitted to."""
    header = ["model and GPUs", "loads held out"]
    header += [f"{name}, held out" for name in MEASURES.values()]
    header += ["time between tokens, fitted to"]
    groups = [(str(name), part) for name, part in values.groupby("setup", sort=False)]
    rows = []
    for name, part in [*groups, ("**all**", values)]:
        held, fitted = part[part["held_out"]], part[~part["held_out"]]
        loads = ", ".join(map(str, held["users"])) if part is not values else str(len(held))
        errors = [f"{mape(held, measure):.1%}" for measure in MEASURES]
        rows.append([name, loads, *errors, f"{mape(fitted, 'itl'):.1%}"])
    return [header, *rows]


def _lengths_table(by_lengths: Mapping[str, pd.DataFrame]) -> list[list[str]]:
    """Return the errors on loads held out by how answers were taken to be distributed."""
    rows = [["answers", *MEASURES.values()]]
    for lengths, values in by_lengths.items():
        held = values[values["held_out"]]
        rows.append([lengths, *(f"{mape(held, measure):.1%}" for measure in MEASURES)])
    return rows


def _splitwise_table(comparisons: Sequence[Comparison]) -> list[list[str]]:
    """Return the costs in ms, and the errors on rows not fitted to."""
    header = ["model and GPUs", "iteration", "prompt token", "cached token", "of that physical"]
    header += ["sequence", "prefill", "time per token, held out", "time of prefill, held out"]
    rows = [header]
    for c in comparisons:
        costs = c.costs
        rows.append([f"{c.model}, {c.n_gpus} x {c.gpu}", f"{costs.base_s * 1e3:.3g}"])
        rows[-1] += [f"{costs.per_prompt_token_s * 1e3:.3g}"]
        rows[-1] += [f"{costs.per_cached_token_s * 1e3:.2g}"]
        rows[-1] += [f"{costs.per_cached_token_s / c.physical_s:.1f} x"]
        rows[-1] += [f"{costs.per_sequence_s * 1e3:.2g}", f"{costs.prefill_s * 1e3:.2g}"]
        rows[-1] += [f"{c.token_error:.1%}", f"{c.prefill_error:.1%}"]
    return rows
