"""Pictures of learning where to split: figures 5 to 8 of Chen et al."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from icl_optimizer.comparison.statistics import estimate
from icl_optimizer.errors import MissingDependencyError
from icl_optimizer.report.draw import INSTALL
from icl_optimizer.report.palette import (
    BLACK,
    BLUE,
    GREEN,
    ORANGE,
    VERMILLION,
    Entry,
    Palette,
    Style,
)
from icl_optimizer.studies.pictures import picture, plot_series, save

SHOWN = 500
"""Points of figure 7."""
LOESS_SHARE = 0.5
"""Share of the points that each local regression looks at."""
SHADES = (
    Style(BLUE),
    Style(VERMILLION, "dash", "square"),
    Style(GREEN, "dot", "triangle"),
    Style(ORANGE, "dashdot", "diamond"),
)
SETTINGS = {
    "learning_rate": "learning rate",
    "batch_size": "batch size",
    "clip_range": "clip range",
    "gae_lambda": "GAE parameter",
}


def draw_curves(curves: Mapping[str, pd.DataFrame], policies: Sequence[str], path: Path) -> None:
    """Draw the reward while learning, a panel per case (figure 5).

    Args:
        curves: By case: columns policy, seed, step, metric, value of held-out evaluations.
        policies: Those to draw.
        path: The PNG file.
    """
    drawing, grid = picture(1, len(curves))
    palette = Palette(Entry(policy) for policy in policies)
    for axes, (case, rows) in zip(grid, curves.items(), strict=True):
        for policy in policies:
            mine = rows[(rows["policy"] == policy) & (rows["metric"] == "reward")]
            steps = sorted(set(mine["step"]))
            means = [estimate(mine.loc[mine["step"] == step, "value"]) for step in steps]
            plot_series(axes, steps, means, policy, palette.style(Entry(policy)))
        axes.set(title=f"case {case}", xscale="log", xlabel="decisions learned from")
        axes.set_ylabel("reward per decision")
    save(drawing, grid[0], path)


def draw_violins(chosen: Mapping[str, pd.DataFrame], path: Path) -> None:
    """Draw the distribution of episodes' rewards by policy (figure 6).

    The dot is the median, the thick bar spans the middle half.
    """
    drawing, (axes,) = picture(1, 1, width=8.0)
    places = range(1, len(chosen) + 1)
    rewards = [rows["reward"].to_numpy() for rows in chosen.values()]
    parts = axes.violinplot(rewards, positions=places, widths=0.8, showextrema=False)
    for body in parts["bodies"]:  # type: ignore[attr-defined]
        body.set(facecolor=BLUE, edgecolor=BLUE, alpha=0.35)
    for place, values in zip(places, rewards, strict=True):
        low, middle, high = np.percentile(values, [25, 50, 75])
        axes.plot([place, place], [low, high], color=BLACK, linewidth=5, solid_capstyle="butt")
        axes.plot(place, middle, "o", color="white", markersize=4, zorder=3)
    axes.set_xticks(places, list(chosen))
    axes.set_ylabel("mean reward of an episode")
    save(drawing, axes, path)


def draw_choices(rows: pd.DataFrame, path: Path) -> None:
    """Draw the split that a policy ends at over noise and loss, with LOESS lines (figure 7).

    Args:
        rows: Columns sigma, loss, split, one row per episode.
        path: The PNG file.
    """
    drawing, grid = picture(1, 2)
    shown = rows.iloc[:SHOWN]
    # layers are whole numbers: spread out a little, so that one sees how many points there are
    spread = np.random.default_rng(0).uniform(-0.3, 0.3, len(shown))
    for axes, column, label in zip(
        grid, ("sigma", "loss"), ("noise intensity σ", "loss probability"), strict=True
    ):
        axes.plot(shown[column], shown["split"] + spread, ".", color=BLUE, alpha=0.4)
        line = loess(rows[column].to_numpy(), rows["split"].to_numpy())
        slope, r2 = straight_line(rows[column].to_numpy(), rows["split"].to_numpy())
        axes.plot(line[:, 0], line[:, 1], color=VERMILLION, linewidth=2)
        axes.set(xlabel=label, ylabel="layers on the device at the end")
        axes.set_title(f"slope {slope:.2f} layers per unit, R² {r2:.2f}", fontsize="medium")
    save(drawing, grid[0], path)


def loess(x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the LOESS line (Cleveland 1979) as rows ``(x, fitted)``, in order of ``x``."""
    try:
        from statsmodels.nonparametric.smoothers_lowess import lowess
    except ImportError as error:
        raise MissingDependencyError(f"LOESS lines need statsmodels: {INSTALL}") from error
    line: NDArray[np.float64] = lowess(y, x, frac=LOESS_SHARE)
    return line


def straight_line(x: NDArray[np.float64], y: NDArray[np.float64]) -> tuple[float, float]:
    """Return slope and R² of the least-squares line."""
    slope = float(np.polyfit(x, y, 1)[0])
    return slope, float(np.corrcoef(x, y)[0, 1] ** 2)


def draw_sweeps(curves: pd.DataFrame, path: Path) -> None:
    """Draw learning curves with one setting varied at a time (figure 8).

    Args:
        curves: Columns setting, value, seed, step, reward.
        path: The PNG file.
    """
    drawing, grid = picture(2, 2)
    for axes, (setting, title) in zip(grid, SETTINGS.items(), strict=True):
        mine = curves[curves["setting"] == setting]
        for value, style in zip(sorted(set(mine["value"])), SHADES, strict=False):
            rows = mine[mine["value"] == value]
            steps = sorted(set(rows["step"]))
            means = [estimate(rows.loc[rows["step"] == step, "reward"]) for step in steps]
            plot_series(axes, steps, means, f"{value:g}", style)
        axes.set(title=title, xlabel="decisions learned from", ylabel="reward per decision")
        axes.legend(frameon=False, fontsize="small")
    save(drawing, None, path)
