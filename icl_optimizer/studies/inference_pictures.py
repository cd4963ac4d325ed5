"""Pictures of the inference simulator beside measurements, over the load."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from icl_optimizer.report.draw import MARKERS
from icl_optimizer.report.palette import BLUE, GREEN, VERMILLION, Style
from icl_optimizer.studies.pictures import picture, save

if TYPE_CHECKING:
    from matplotlib.axes import Axes

STYLES = {
    1: Style(BLUE, marker="circle"),
    2: Style(VERMILLION, marker="square"),
    4: Style(GREEN, marker="diamond"),
}
"""By number of GPUs."""
TICKS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000)
LABELS = {"itl": ("time between tokens (ms)", 1e3), "tokens_per_s": ("throughput (tokens/s)", 1.0)}


def draw_against_load(values: pd.DataFrame, measure: str, path: Path) -> None:
    """Draw simulated values as lines and measured ones as markers, a panel per model and GPU.

    Args:
        values: Lines of ``inference.csv``; markers of loads that costs were fitted to are hollow.
        measure: ``itl`` or ``tokens_per_s``.
        path: The PNG file.
    """
    kinds = values[["billions", "gpu"]].drop_duplicates().to_numpy()
    drawing, grid = picture(-(-len(kinds) // 2), min(2, len(kinds)), height=3.2)
    label, scale = LABELS[measure]
    for axes, (billions, gpu) in zip(grid, kinds, strict=False):
        panel = values[(values["billions"] == billions) & (values["gpu"] == gpu)]
        for n_gpus in sorted(set(panel["n_gpus"])):
            _draw(axes, panel[panel["n_gpus"] == n_gpus], measure, scale, n_gpus)
        axes.set(xscale="log", yscale="log", xlabel="users, each with one request under way")
        axes.set(ylabel=label, title=f"llama-{billions:g}b on {gpu.upper()}")
        both = panel[[measure, f"{measure}_measured"]].to_numpy()
        low, high = both.min(), both.max()
        users = sorted(set(panel["users"]))
        axes.set_xticks(users, [str(count) for count in users])
        axes.set_yticks(TICKS, [f"{tick:g}" for tick in TICKS])
        axes.set_ylim(0.8 * low * scale, 1.25 * high * scale)
        axes.minorticks_off()
    save(drawing, grid[0], path)


def _draw(axes: Axes, part: pd.DataFrame, measure: str, scale: float, n_gpus: int) -> None:
    style = STYLES[n_gpus]
    gpus = f"{n_gpus} GPU{'s' if n_gpus > 1 else ''}"
    axes.plot(
        part["users"],
        part[measure] * scale,
        color=style.color,
        linewidth=1.6,
        label=f"{gpus}, simulated",
    )
    for held_out, face in ((True, style.color), (False, "white")):
        chosen = part[part["held_out"] == held_out]
        axes.plot(
            chosen["users"],
            chosen[f"{measure}_measured"] * scale,
            linestyle="",
            marker=MARKERS[style.marker],
            markersize=6,
            color=style.color,
            markerfacecolor=face,
            label=f"{gpus}, measured, {'held out' if held_out else 'fitted to'}",
        )
