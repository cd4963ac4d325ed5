"""Several runs on one page: the same policies in a column per run, and how far they differ."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from icl_optimizer.comparison.statistics import Estimate, aggregate, difference, improvement
from icl_optimizer.errors import ConfigurationError
from icl_optimizer.report.figures import learning_panel
from icl_optimizer.report.formatting import MISSING, metric_value, with_interval
from icl_optimizer.report.loading import Run, load_run
from icl_optimizer.report.measures import cost, headline
from icl_optimizer.report.palette import Entry, Palette
from icl_optimizer.report.reliability import ranked, shared_scores
from icl_optimizer.report.spec import Axis, Bar, Figure, Panel, Rule
from icl_optimizer.report.summary import COSTS, Table
from icl_optimizer.report.sweep_loading import is_sweep
from icl_optimizer.report.verdict import verdict
from icl_optimizer.report.writing import write_page

PAGE = "side-by-side.html"
Strata = list[NDArray[np.float64]]


@dataclass(frozen=True)
class Side:
    """One of the runs.

    Attributes:
        name: What tells it from the others.
        run: What it measured.
        entries: Its entries by label.
        scores: The headline metric of its seeds by label, after the interactions all runs share.
    """

    name: str
    run: Run
    entries: dict[str, Entry]
    scores: dict[str, Strata]


def write_side_by_side(folders: Sequence[str | Path], out: str | Path | None = None) -> Path:
    """Write one page about several runs.

    Args:
        folders: Folders of comparisons of one environment, the first is the one that the others
            are held against.
        out: The HTML file; None for ``side-by-side.html`` beside the first folder. Its figures
            are in a folder of its name and ``-figures``.

    Returns:
        The page's path.

    Raises:
        ConfigurationError: A folder is not of a comparison, or they cannot be compared; nothing is
            written.
    """
    for folder in folders:
        if is_sweep(folder):
            raise ConfigurationError(
                f"'{folder}' holds a sweep; side by side takes folders of comparisons, such as "
                "those of a sweep's points in it."
            )
    if out is not None and Path(out).is_dir():
        raise ConfigurationError(f"--out is '{out}', a folder; allowed: an HTML file.")
    runs = [load_run(folder) for folder in folders]
    metric = check_comparable(runs)
    n = common_step(runs, metric)
    sides = [_side(name, run, n) for name, run in zip(_names(runs), runs, strict=True)]
    path = Path(out) if out is not None else runs[0].folder.parent / PAGE
    path.parent.mkdir(parents=True, exist_ok=True)
    return write_page(
        path,
        "side_by_side.html.j2",
        _figures(sides, metric),
        path.with_name(f"{path.stem}-figures"),
        title=f"{runs[0].config.environment}: {len(runs)} runs side by side",
        sentence=_sentence(sides, metric, n),
        sides=[(s.name, verdict(s.run), s.run.config.command) for s in sides],
        levels=_table(sides, metric),
        metric=metric,
        interactions=n,
        costs=_costs(sides),
        settings=_differing(sides),
    )


def common_step(runs: Sequence[Run], metric: str) -> int:
    """Return the last number of interactions, within all budgets, at which all runs evaluated.

    Raises:
        ConfigurationError: There is none.
    """
    most = min(run.config.interactions for run in runs)
    steps = set.intersection(*(set(run.rows(metric)["step"].astype(int)) for run in runs))
    within = [step for step in steps if step <= most]
    if not within:
        raise ConfigurationError(
            f"the runs have no evaluation after the same number of interactions up to {most}; "
            "allowed: runs with a common checkpoint."
        )
    return max(within)


def check_comparable(runs: Sequence[Run]) -> str:
    """Return the metric that all runs are held against.

    Raises:
        ConfigurationError: They do not measure the same; the message says what differs.
    """
    first = runs[0]
    if len({run.folder.resolve() for run in runs}) < max(2, len(runs)):
        raise ConfigurationError("side by side takes two or more folders; allowed: each once.")
    for other in runs[1:]:
        pair = f"'{first.folder}' and '{other.folder}' cannot be compared: "
        mine, theirs = first.config.environment, other.config.environment
        if mine != theirs:
            raise ConfigurationError(
                f"{pair}environment is '{mine}' and '{theirs}'; allowed: one environment."
            )
        if headline(first) != headline(other):
            raise ConfigurationError(
                f"{pair}one has {headline(first)}, the other {headline(other)}; "
                "allowed: the same metric."
            )
        # optimality is a share of what is possible in each, a reward is not
        if headline(first) == "reward" and first.scenario != other.scenario:
            raise ConfigurationError(
                f"{pair}without an oracle rewards count, at scenario '{first.scenario}' and "
                f"'{other.scenario}'; allowed: one scenario."
            )
        if not set(_labels(first)) & set(_labels(other)):
            raise ConfigurationError(
                f"{pair}they share no policy; {_listed(first)} and {_listed(other)}; "
                "allowed: at least one in common."
            )
    return headline(first)


def _labels(run: Run) -> dict[str, Entry]:
    palette = Palette.of(run)
    return {palette.label(entry): entry for entry in palette.entries}


def _listed(run: Run) -> str:
    return f"'{run.folder}' has {', '.join(_labels(run))}"


def _names(runs: Sequence[Run]) -> list[str]:
    names = [run.folder.resolve().name for run in runs]
    return names if len(set(names)) == len(names) else [str(run.folder) for run in runs]


def _side(name: str, run: Run, n: int) -> Side:
    entries, scores = _labels(run), shared_scores(run, n)
    found = {label: list(scores[e]) for label, e in entries.items() if e in scores}
    return Side(name, run, entries, found)


def _common(first: Side, other: Side) -> list[str]:
    """Return the labels that both have, best of the first run first."""
    entries = {entry: label for label, entry in first.entries.items()}
    order = ranked({first.entries[label]: s for label, s in first.scores.items()})
    return [entries[e] for e in order if entries[e] in other.scores]


def _sentence(sides: Sequence[Side], metric: str, n: int) -> str:
    """Return for each further run where it differs from the first."""
    first, parts = sides[0], []
    for other in sides[1:]:
        labels = _common(first, other)
        gaps = {p: difference(other.scores[p], first.scores[p]) for p in labels}
        apart = [f"{p} ({_gap(metric, v)})" for p, v in gaps.items() if not _open(v)]
        single = any(v.n < 2 for v in gaps.values())
        who = f"{other.name} against {first.name}, after {n:,} interactions"
        if apart:
            parts.append(f"{who}: {metric} differs for {', '.join(apart)}.")
        else:
            why = "one seed gives no interval" if single else "no interval is clear of 0"
            parts.append(
                f"{who}: of {len(labels)} policies in both, none is surely different; {why}."
            )
    return " ".join(parts)


def _open(value: Estimate) -> bool:
    """Return whether it is open if there is a difference at all; a single seed proves nothing."""
    return value.n < 2 or value.low <= 0 <= value.high


def _gap(metric: str, value: Estimate) -> str:
    low, high = (metric_value(metric, v) for v in (value.low, value.high))
    return f"{_signed(metric, value.mean)}, 95 % interval {low} to {high}"


def _signed(metric: str, value: float) -> str:
    return f"{'+' if value > 0 else ''}{metric_value(metric, value)}"


def _table(sides: Sequence[Side], metric: str) -> Table:
    first = sides[0]
    header = ["policy", *(s.name for s in sides)]
    for other in sides[1:]:
        header += [f"{other.name} − {first.name}", f"{other.name} is better, probability"]
    labels = list(dict.fromkeys(p for side in sides for p in side.scores))
    shared = [p for other in sides[1:] for p in _common(first, other)]
    order = [*dict.fromkeys(shared), *(p for p in labels if p not in shared)]
    table = Table(header)
    for label in order:
        levels = [s.scores.get(label) for s in sides]
        row = [
            label,
            *(MISSING if v is None else with_interval(metric, aggregate(v)) for v in levels),
        ]
        for mine in levels[1:]:
            row += _against(metric, mine, levels[0])
        table.rows.append(row)
    return table


def _against(metric: str, mine: Strata | None, theirs: Strata | None) -> list[str]:
    if mine is None or theirs is None:
        return [MISSING, MISSING]
    gap, odds = difference(mine, theirs), improvement(mine, theirs)
    return [with_interval(metric, gap), with_interval("optimality", odds)]


def _figures(sides: Sequence[Side], metric: str) -> list[Figure]:
    palette = Palette(dict.fromkeys(e for s in sides for e in s.entries.values()))
    panels = tuple(
        replace(panel, title=side.name)
        for side in sides
        if (panel := learning_panel(side.run, palette)) is not None
    )
    caption = (
        "Greedy decisions on held-out tasks, a panel per run. Shaded: 95 % bootstrap intervals "
        "over seeds. Rules that do not learn are drawn across."
    )
    ends = "; ".join(
        f"{p.title}: "
        + ", ".join(f"{s.name} {metric_value(metric, s.values[-1].mean)}" for s in p.series)
        for p in panels
    )
    alt = f"Line charts of {metric} against interactions, one per run. In the end, {ends}."
    curves = Figure("learning-curves", "Learning curves", caption, alt, panels)
    return [curves, _differences(sides, metric, palette)]


def _differences(sides: Sequence[Side], metric: str, palette: Palette) -> Figure:
    first, panels = sides[0], []
    for other in sides[1:]:
        bars = []
        for label in _common(first, other):
            value = difference(other.scores[label], first.scores[label])
            style = palette.style(first.entries[label])
            bars.append(Bar(label, value, style, _signed(metric, value.mean), hollow=_open(value)))
        axis = Axis(f"difference in {metric}", "right of 0: higher than in the first run")
        title = f"{other.name} − {first.name}"
        panels.append(Panel(title, axis, bars=tuple(bars), rules=(Rule(0.0, "no difference"),)))
    caption = (
        "How much higher a policy scores than in the first run, after the interactions that all "
        "runs share. Whiskers are 95 % bootstrap intervals; hollow: the interval holds 0, or there "
        "is one seed alone."
    )
    alt = f"Bar charts of the difference in {metric}. " + "; ".join(
        f"{p.title}: {', '.join(f'{b.name} {b.note}' for b in p.bars)}" for p in panels
    )
    return Figure("differences", "Differences", caption, f"{alt}.", tuple(panels))


def _costs(sides: Sequence[Side]) -> Table:
    table = Table(["policy", "cost", *(s.name for s in sides)])
    for label in dict.fromkeys(p for s in sides for p in s.entries):
        for metric, text in COSTS.items():
            values = [
                cost(s.run, s.entries[label], metric) if label in s.entries else None for s in sides
            ]
            if any(v is not None for v in values):
                cells = [with_interval(metric, v) for v in values]
                table.rows.append([label, text, *cells])
    return table


def _differing(sides: Sequence[Side]) -> Table:
    """Return the fields of the configurations and the versions that are not the same in all."""
    fields = [
        _told(s.run.config.model_dump(exclude={"command", "versions", "title"}), s.run)
        | {f"version of {k}": v for k, v in s.run.config.versions.items()}
        for s in sides
    ]
    names = dict.fromkeys(name for found in fields for name in found)
    table = Table(["field", *(s.name for s in sides)])
    for name in names:
        cells = [found.get(name, MISSING) for found in fields]
        if len(set(cells)) > 1:
            table.rows.append([name, *cells])
    return table


def _told(config: dict[str, Any], run: Run) -> dict[str, str]:
    flat = config | {f"setting {k}": v for k, v in config.pop("settings").items()}
    flat.pop("settings", None)
    flat["scenario"] = run.scenario
    return {k: v if isinstance(v, str) else json.dumps(v) for k, v in flat.items()}
