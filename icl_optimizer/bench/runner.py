"""The benchmarks by name, and the run that writes their results."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

from rich.markup import escape
from rich.table import Table

from icl_optimizer.bench.result import BenchmarkResult
from icl_optimizer.errors import ConfigurationError, MissingDependencyError, unknown_name

Benchmark = Callable[[], BenchmarkResult]

# modules are imported when their benchmark runs, since each needs other extras; the language model
# comes before torch, after which it would have a single thread (see llm.native)
BENCHMARKS: dict[str, str] = {
    "env_batched_vs_single": "icl_optimizer.bench.environments:batched_vs_single",
    "env_vs_mobile_env": "icl_optimizer.bench.environments:vs_mobile_env",
    "queue_batched_vs_single": "icl_optimizer.bench.queues:batched_vs_single",
    "qos_simulator_vs_event_loop": "icl_optimizer.bench.batching:vs_event_loop",
    "icl_vs_plain_loop": "icl_optimizer.bench.language:vs_plain_loop",
    "icl_cached_vs_plain_loop": "icl_optimizer.bench.language:cached_vs_plain_loop",
    "dqn_batched_vs_single": "icl_optimizer.bench.learners:dqn_batched_vs_single",
    "ppo_batched_vs_single": "icl_optimizer.bench.learners:ppo_batched_vs_single",
    "split_perplexity_vs_full_forward": "icl_optimizer.bench.splitting:vs_full_forward",
    "router_overhead_vs_litellm": "icl_optimizer.bench.router:overhead_vs_litellm",
}


def run_benchmarks(name: str | None, out: Path) -> Table:
    """Run one benchmark, or all, and merge the results into the JSON file ``out``.

    The file holds one object per benchmark name; results of other benchmarks stay. When all run,
    one whose peer or extra is not installed is left out, and the table says so.

    Raises:
        ConfigurationError: Unknown name, or ``out`` exists and is not such a file.
        MissingDependencyError: A benchmark asked for by name needs something to be installed.
    """
    if name is not None and name not in BENCHMARKS:
        raise unknown_name("benchmark", name, BENCHMARKS)
    results = read_results(out)
    table = Table("benchmark", "ours", "peer", "unit", "ratio", "over the rounds")
    table.caption = f"what was compared, and further figures: {out}"
    for each in BENCHMARKS if name is None else [name]:
        try:
            result = find_benchmark(each)()
        except MissingDependencyError as error:
            if name is not None:
                raise
            table.add_row(each, "", "", "", "", f"left out: {escape(str(error))}")
            continue
        results[each] = result.to_json()
        write_results(out, results)
        table.add_row(*_row(result))
    return table


def find_benchmark(name: str) -> Benchmark:
    """Return the function of the benchmark ``name``."""
    module, _, function = BENCHMARKS[name].partition(":")
    benchmark: Benchmark = getattr(import_module(module), function)
    return benchmark


def read_results(path: Path) -> dict[str, Any]:
    """Return the results in ``path`` by benchmark name; none where there is no file."""
    if not path.exists():
        return {}
    try:
        data = json.loads(path.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"--out '{path}' is not a JSON file: {error}.") from error
    if not isinstance(data, dict):
        raise ConfigurationError(f"--out '{path}' holds no object; allowed: a file of results.")
    return data


def write_results(path: Path, results: Mapping[str, Any]) -> None:
    """Write ``results``, sorted by name; an interrupted run leaves the former file whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(path.name + ".part")
    draft.write_text(json.dumps(dict(sorted(results.items())), indent=2) + "\n")
    os.replace(draft, path)


def _row(result: BenchmarkResult) -> tuple[str, ...]:
    ours, peer, ratio, lowest, highest = (
        f"{value:,.3g}"
        for value in (
            result.ours,
            result.peer,
            result.ratio,
            result.lowest_ratio,
            result.highest_ratio,
        )
    )
    return result.name, ours, peer, result.unit, ratio, f"{lowest} to {highest}"
