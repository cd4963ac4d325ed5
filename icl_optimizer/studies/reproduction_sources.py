"""Tables for the page from what commands leave behind: comparisons, studies, benchmarks."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from icl_optimizer.bench.runner import read_results
from icl_optimizer.comparison.statistics import estimate
from icl_optimizer.errors import ConfigurationError
from icl_optimizer.report.formatting import FIXED, MISSING, number, with_interval
from icl_optimizer.report.loading import Run, load_run, parse_scenario
from icl_optimizer.report.measures import cost, eval_curves, last_step, per_entry
from icl_optimizer.report.palette import REFERENCES, Entry
from icl_optimizer.report.scenarios import reached_text
from icl_optimizer.report.summary import standings
from icl_optimizer.studies.reproduction_data import ShownTable

RULE = re.compile(r"^\|(?:\s*:?-+:?\s*\|)+$")
SETTINGS = ("seeds", "interactions", "budgets")


class UnfinishedError(RuntimeError):
    """A part has not been run, or not to its end."""


@dataclass(frozen=True)
class StudyTable:
    """A table in a Markdown file of a study.

    Attributes:
        name: For the page's data.
        title: What it shows.
        file: The study's.
        index: How many tables come before it in the file.
        keys: Cells at the beginning of a row that say what it is about.
        header: Other names of the columns; None for the study's own.
    """

    name: str
    title: str
    file: str
    index: int = 0
    keys: int = 1
    header: tuple[str, ...] | None = None


def study_tables(folder: Path, wanted: Iterable[StudyTable]) -> list[ShownTable]:
    """Return tables of a study.

    Raises:
        UnfinishedError: A file or a table in it is not there yet.
        ConfigurationError: A table has other columns than it is to be shown with.
    """
    found = []
    for want in wanted:
        path = folder / want.file
        if not path.exists():
            raise UnfinishedError(f"{path} is missing")
        tables = markdown_tables(path.read_text(encoding="utf-8"))
        if len(tables) <= want.index:
            raise UnfinishedError(f"{path} holds {len(tables)} of {want.index + 1} tables")
        header, *rows = tables[want.index]
        if want.header is not None and len(want.header) != len(header):
            raise ConfigurationError(
                f"table {want.index + 1} of '{path}' has the columns {', '.join(header)}; "
                f"allowed: {len(want.header)} columns."
            )
        found.append(
            ShownTable(want.name, want.title, want.header or header, tuple(rows), want.keys)
        )
    return found


def markdown_tables(text: str) -> list[list[tuple[str, ...]]]:
    """Return the tables of a Markdown page, the header first, without its rule."""
    tables: list[list[tuple[str, ...]]] = []
    inside = False
    for line in text.splitlines():
        if not line.startswith("|"):
            inside = False
            continue
        if not inside:
            tables.append([])
        inside = True
        if not RULE.match(line):
            cells = line.strip().removeprefix("|").removesuffix("|").split("|")
            tables[-1].append(tuple(plain(cell) for cell in cells))
    return tables


def plain(cell: str) -> str:
    """Return a cell without marks and unbreakable spaces."""
    return cell.replace(FIXED, " ").replace("**", "").strip()


def whole_run(folder: Path) -> Run:
    """Return a comparison all of whose units are finished.

    Raises:
        UnfinishedError: Something is missing.
    """
    if not (folder / "config.json").exists():
        raise UnfinishedError(f"{folder} holds no comparison")
    about = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    missing = [
        f"{policy}-{seed}"
        for policy in about["policies"]
        for seed in range(about["seeds"])
        if not (folder / "units" / f"{policy}-{seed}.json").exists()
    ]
    if missing:
        raise UnfinishedError(f"{folder} lacks {len(missing)} units, {missing[0]} first")
    try:
        return load_run(folder)
    except ConfigurationError as error:
        raise UnfinishedError(f"{folder} has no tables yet: {error}") from error


def settings_of(folder: Path) -> dict[str, object]:
    """Return what a reader of numbers has to know of a comparison."""
    about = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    found = {key: about[key] for key in SETTINGS}
    return found | {"eval_tasks": about["config"]["eval_tasks"]}


def policies_table(run: Run) -> ShownTable:
    """Return how good every policy is, how soon, and at what cost."""
    shared, success = (eval_curves(run, m) for m in ("optimality", "success_rate"))
    n = run.config.interactions
    kinds = [m for m in ("reward_regular", "reward_quality") if cost_of(run, m)]
    header = [
        "policy",
        f"optimality after {n:,} decisions",
        "own budget",
        "optimality with it",
        "decisions to 95 %",
        "success rate",
        "reward",
        *(f"{m.removeprefix('reward_')} tasks" for m in kinds),
        "LLM calls",
        "prompt tokens",
        "learning, s",
        "ms per decision",
    ]
    rows = []
    for standing in standings(run):
        entry = standing.entry
        curve = shared[entry]
        row = [
            standing.name,
            with_interval("optimality", curve.at(n)),
            f"{standing.budget:,}" if standing.learns else MISSING,
            with_interval("optimality", curve.values[-1]),
            _reached(run, entry, learns=standing.learns),
            with_interval("success_rate", success[entry].values[-1]),
            *(with_interval(m, cost(run, entry, m)) for m in ("reward", *kinds)),
        ]
        costs = ["llm_calls", "prompt_tokens", "train_s", "decision_ms_p50"]
        rows.append((*map(plain, row), *(_cost(run, entry, m) for m in costs)))
    title = "Every policy, on held-out tasks: success, reward and costs with its own budget"
    return ShownTable("policies", title, tuple(header), tuple(rows))


def cost_of(run: Run, metric: str) -> bool:
    """Return whether ``metric`` was measured at all."""
    return bool((run.summary["metric"] == metric).any())


def _reached(run: Run, entry: Entry, *, learns: bool) -> str:
    if entry.policy in REFERENCES or not learns:
        return MISSING
    reached = cost(run, entry, "interactions_to_95")
    return "not reached" if reached is None else reached_text(run, reached)


def _cost(run: Run, entry: Entry, metric: str) -> str:
    value = cost(run, entry, metric)
    return MISSING if value is None else number(value.mean)


def words_table(run: Run) -> ShownTable:
    """Return the balanced accuracy on words that nobody met, by the share of quality tasks."""
    rows = run.extra_rows("balanced_accuracy")
    found: dict[float, dict[Entry, str]] = {}
    for name, mine in rows.groupby("scenario", observed=True):
        keys = parse_scenario(str(name))
        if keys.get("words") == "unseen":
            found[float(keys["quality_share"])] = {
                entry: with_interval("balanced_accuracy", estimate(last_step(r)["value"]))
                for entry, r in per_entry(mine)
            }
    shares = sorted(found, key=lambda share: (abs(share - 0.5), -share))
    header = ("policy", *(f"{share:.0%}".replace("%", " %") for share in shares))
    lines = tuple(
        (s.name, *(plain(found[share].get(s.entry, MISSING)) for share in shares))
        for s in standings(run)
    )
    title = "Balanced accuracy on new words, by the share of quality-preferred tasks"
    return ShownTable("words", title, header, lines)


def metrics_table(run: Run, title: str, measures: Mapping[str, tuple[str, float]]) -> ShownTable:
    """Return the last evaluation of every policy by some measures.

    Args:
        run: A comparison.
        title: Of the table.
        measures: Title and factor by the metric's name.
    """
    rows = []
    for standing in standings(run):
        cells = []
        for metric, (_, factor) in measures.items():
            mine = run.rows(metric)
            mine = mine[mine["policy"] == standing.entry.policy]
            value = estimate(last_step(mine)["value"] * factor)
            cells.append(plain(with_interval(metric, value)))
        rows.append((standing.name, *cells))
    header = ("policy", *(name for name, _ in measures.values()))
    return ShownTable("measures", title, header, tuple(rows))


def delay_table(run: Run, points: Sequence[str]) -> ShownTable:
    """Return the mean delay of ``icl`` after learning by pair of models, in seconds.

    Args:
        run: A comparison with sweeps.
        points: As in ``users=20``.
    """
    rows = run.extra_rows("delay_s")
    rows = rows[rows["policy"] == "icl"]
    values: dict[str, dict[str, str]] = {}
    for name, mine in rows.groupby("scenario", observed=True):
        point, _, pair = str(name).partition(";pair=")
        mean = estimate(last_step(mine)["value"]).mean
        values.setdefault(pair, {})[point] = f"{mean:.2f}"
    header = ("pair", *(point.replace("_", " ").replace("=", " ") for point in points))
    lines = tuple(
        (pair.replace("+", " + "), *(found.get(point, MISSING) for point in points))
        for pair, found in sorted(values.items())
    )
    return ShownTable("delays", "Mean delay of icl after learning, s", header, lines)


def benchmark_table(path: Path) -> ShownTable:
    """Return the ratios of ``icl-optimizer bench``.

    Raises:
        UnfinishedError: There is no such file.
    """
    results = read_results(path)
    if not results:
        raise UnfinishedError(f"{path} holds no results")
    rows = tuple(
        (
            name,
            number(r["ours"]),
            number(r["peer"]),
            r["unit"],
            number(r["ratio"]),
            f"{number(r['lowest_ratio'])} to {number(r['highest_ratio'])}",
        )
        for name, r in results.items()
    )
    header = ("name", "ours", "peer", "unit", "ratio", "over the rounds")
    return ShownTable("ratios", "Ratios against peers, measured in one run each", header, rows)
