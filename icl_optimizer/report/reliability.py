"""Whole distributions of runs: performance profiles, and who beats whom how often."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from icl_optimizer.comparison.statistics import Estimate, Strata, aggregate, improvement, profile
from icl_optimizer.report.curves import LOWEST_OPTIMALITY
from icl_optimizer.report.formatting import share
from icl_optimizer.report.loading import Run
from icl_optimizer.report.measures import headline, last_step, per_entry
from icl_optimizer.report.palette import REFERENCES, Entry, Palette
from icl_optimizer.report.spec import Axis, Figure, Heat, Panel, Series

THRESHOLDS = 61
EVEN = 0.5

Scores = Mapping[Entry, Sequence[NDArray[np.float64]]]
"""Of each policy one array of scores per stratum, strata in the same order for all."""


def shared_scores(
    run: Run, interactions: int | None = None
) -> dict[Entry, list[NDArray[np.float64]]]:
    """Return the headline metric of every run after the shared number of interactions.

    Args:
        run: The comparison.
        interactions: Another number.
    """
    rows = run.rows(headline(run))
    return _scores(rows[rows["step"] <= (interactions or run.config.interactions)])


def final_scores(run: Run) -> dict[Entry, list[NDArray[np.float64]]]:
    """Return the headline metric of every run at the policy's own budget."""
    return _scores(run.rows(headline(run)))


def _scores(rows: pd.DataFrame) -> dict[Entry, list[NDArray[np.float64]]]:
    """Return the last value of each seed; the training scenario is the one stratum.

    A seed that was stopped before the others' last step has no such value.
    """
    found = {}
    for entry, mine in per_entry(rows):
        last = last_step(mine)
        found[entry] = [last.loc[last["step"] == last["step"].max(), "value"].to_numpy()]
    return found


def reliability_figures(run: Run, palette: Palette) -> list[Figure | None]:
    """Return profiles and pairwise odds, after the shared budget and, where it differs, the own."""
    fields = {f"after {run.config.interactions:,} interactions": shared_scores(run)}
    if any(budget > run.config.interactions for budget in run.config.budgets.values()):
        fields["each at its own budget"] = final_scores(run)
    return both_figures(fields, headline(run), palette, "seeds")


def both_figures(
    fields: Mapping[str, Scores], metric: str, palette: Palette, over: str
) -> list[Figure | None]:
    """Return profiles and pairwise odds.

    Args:
        fields: Scores by what they are, a panel each.
        metric: What the scores are.
        palette: Names and styles.
        over: What the intervals are over.
    """
    kept = {title: scores for title, scores in fields.items() if _several(scores)}
    if not kept:
        return [None, None]
    return [_profiles(kept, metric, palette, over), _odds(kept, metric, palette, over)]


def _several(scores: Scores) -> bool:
    """Return whether there are policies to compare, and runs enough to call it a distribution."""
    return len(scores) > 1 and any(s.size > 1 for strata in scores.values() for s in strata)


def _profiles(
    fields: Mapping[str, Scores], metric: str, palette: Palette, over: str
) -> Figure | None:
    panels, seen = [], []
    for title, scores in fields.items():
        shown = {e: s for e, s in scores.items() if e.policy != "oracle"}
        levels = _levels(metric, [s for strata in shown.values() for s in strata])
        curves = {e: profile(strata, levels) for e, strata in shown.items()}
        series = tuple(
            Series(
                palette.label(e),
                tuple(map(float, levels)),
                tuple(curves[e]),
                palette.style(e),
            )
            for e in palette.entries
            if e in curves
        )
        x = Axis(metric, "1 = oracle, 0 = random" if metric == "optimality" else "per decision")
        y = Axis("runs above", "share of runs", limits=(-0.02, 1.02))
        panels.append(Panel(_upper(title), x, y, series))
        seen.append(_headed(title) + ", ".join(f"{s.name} {_median(s)}" for s in series))
    caption = (
        "Performance profiles: the share of runs that score above the level on the x axis. A curve "
        "that lies above another everywhere is better whatever level is asked for; a steep one is "
        f"the same from run to run. Shaded: 95 % bootstrap intervals over {over}."
    )
    alt = f"Line chart of the share of runs above each {metric}. Half of the runs are above: "
    return Figure(
        "profiles", "Performance profiles", caption, f"{alt}{'; '.join(seen)}.", tuple(panels)
    )


def _levels(metric: str, values: Sequence[NDArray[np.float64]]) -> NDArray[np.float64]:
    together = np.concatenate([v[np.isfinite(v)] for v in values])
    low, high = float(together.min()), float(together.max())
    if metric == "optimality":
        low = max(low, LOWEST_OPTIMALITY)
    margin = 0.02 * (high - low) or 0.01
    return np.linspace(low - margin, max(high, low) + margin, THRESHOLDS)


def _median(series: Series) -> str:
    """Return the highest level that half of the runs are above."""
    passed = [x for x, v in zip(series.x, series.values, strict=True) if v.mean >= EVEN]
    return share(passed[-1]) if passed else f"below {share(series.x[0])}"


def _odds(fields: Mapping[str, Scores], metric: str, palette: Palette, over: str) -> Figure:
    panels, seen = [], []
    for title, scores in fields.items():
        entries = ranked(scores)
        table = tuple(
            tuple(None if a == b else _beats(scores[a], scores[b]) for b in entries)
            for a in entries
        )
        names = tuple(palette.label(e) for e in entries)
        heat = Heat("policy", "against", names, names, table, (0.0, 1.0), even=True)
        panels.append(
            Panel(_upper(title), Axis("probability of improvement", "0.5 = even"), heat=heat)
        )
        seen.append(_headed(title) + _neighbours(names, table))
    caption = (
        f"How often a run of the policy on the left has a higher {metric} than a run of the one "
        "below; a tie counts half. Blue: the left one is better, orange: the lower one. Point at a "
        f"cell for its 95 % bootstrap interval over {over}; where it holds 0.5, the order is open."
    )
    alt = f"Heat map of the probability that one policy beats another. {'; '.join(seen)}."
    return Figure("improvement", "Who beats whom", caption, alt, tuple(panels))


def _beats(a: Strata, b: Strata) -> Estimate | None:
    """Return the odds; None for policies that have no stratum in common."""
    odds = improvement(a, b)
    return odds if odds.n else None


def ranked(scores: Scores) -> list[Entry]:
    """Return the entries, best centre first, oracle and random choice last."""

    def rank(entry: Entry) -> tuple[int, float]:
        policy = entry.policy
        group = REFERENCES.index(policy) + 1 if policy in REFERENCES else 0
        return group, -aggregate(scores[entry]).mean

    return sorted(scores, key=rank)


def _neighbours(names: Sequence[str], table: Sequence[Sequence[Estimate | None]]) -> str:
    """Return each policy's odds against the next one, in words."""
    parts = []
    for i in range(len(names) - 1):
        odds = table[i][i + 1]
        if odds is None or not odds.n:
            continue
        parts.append(f"{names[i]} beats {names[i + 1]} with probability {share(odds.mean)}")
    return ", ".join(parts)


def _headed(title: str) -> str:
    return f"{title}: " if title else ""


def _upper(title: str) -> str:
    return title[:1].upper() + title[1:]
