"""Figures of load balancing over single requests: responses, loads and violations over time."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from icl_optimizer.environments.base import Floats
from icl_optimizer.report.draw import DASHES
from icl_optimizer.report.palette import (
    BLUE,
    GREEN,
    ORANGE,
    PURPLE,
    SKY,
    VERMILLION,
)
from icl_optimizer.studies.balancing_figures import INK, KINDS, kind_of, legend_of_kinds
from icl_optimizer.studies.balancing_plan import ROUND_ROBIN, BalancingPlan
from icl_optimizer.studies.balancing_records import Records
from icl_optimizer.studies.pictures import picture, save

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SERVERS = (
    (BLUE, "solid"),
    (ORANGE, "dash"),
    (GREEN, "dot"),
    (PURPLE, "dashdot"),
    (SKY, "longdash"),
)
BINS = 40
"""Columns of the heat map."""
WHISKERS = (5, 95)


def draw_records(records: Records, plan: BalancingPlan, out: Path) -> None:
    """Draw figures 5 to 9 into ``out``.

    Args:
        records: Of single requests, by scenario and policy.
        plan: What was run.
        out: Folder.
    """
    _draw_responses(records, plan, out / "balancing-fig5.png")
    _draw_loads(records, plan, out / "balancing-fig6-7.png")
    _draw_requests(records, plan, out / "balancing-fig8.png")
    _draw_heat(records, plan, out / "balancing-fig9.png")


def _draw_responses(records: Records, plan: BalancingPlan, path: Path) -> None:
    """Draw figure 5: distributions of the response time on a logarithmic axis."""
    height = 1.2 + 0.29 * len(plan.policies)
    low, high = WHISKERS
    drawing, grid = picture(1, len(plan.scenarios), height=height)
    for axes, scenario in zip(grid, plan.scenarios, strict=True):
        _boxes(axes, records[scenario], plan.policies)
        _objective(axes, plan.environment(scenario).slo_s, vertical=True)
        axes.set_xlabel(f"Response time (s)\nbox: quartiles, whiskers: {low} to {high} %")
        axes.set_title(f"Fig. 5: response times, {scenario}", loc="left", fontsize=10)
    legend_of_kinds(grid[0], plan.policies)
    save(drawing, grid[0], path)


def _boxes(axes: Axes, records: dict[str, pd.DataFrame], policies: Sequence[str]) -> None:
    served = [records[p]["response_s"].dropna().to_numpy() for p in policies]
    drawn = axes.boxplot(
        served,
        positions=range(len(policies)),
        orientation="horizontal",
        widths=0.62,
        whis=WHISKERS,
        showfliers=False,
        patch_artist=True,
        medianprops={"color": INK, "linewidth": 1.4},
        tick_labels=list(policies),
    )
    for box, policy in zip(drawn["boxes"], policies, strict=True):
        box.set(facecolor=KINDS[kind_of(policy)], alpha=0.6)
    axes.tick_params(axis="y", labelsize=8)
    axes.set_ylim(len(policies) - 0.4, -0.6)
    axes.set_xscale("log")
    axes.grid(visible=False, axis="y")


def _draw_loads(records: Records, plan: BalancingPlan, path: Path) -> None:
    """Draw figures 6 and 7: load of each server over time, under the learner and round robin."""
    drawing, grid = picture(len(plan.scenarios), 2, height=2.9)
    shown = {plan.learner: "Fig. 6", ROUND_ROBIN: "Fig. 7"}
    for row, scenario in enumerate(plan.scenarios):
        panels = grid[2 * row : 2 * row + 2]
        for axes, (policy, figure) in zip(panels, shown.items(), strict=True):
            _draw_load(axes, records[scenario][policy], plan, scenario)
            axes.set_title(f"{figure}: {policy}, {scenario}", loc="left", fontsize=10)
        top = max(axes.get_ylim()[1] for axes in panels)
        for axes in panels:
            axes.set_ylim(0, top)
    save(drawing, grid[0], path)


def _draw_load(axes: Axes, rows: pd.DataFrame, plan: BalancingPlan, scenario: str) -> None:
    for j, server in enumerate(plan.environment(scenario).setup.servers):
        color, dash = SERVERS[j % len(SERVERS)]
        times, tokens = tokens_in_flight(rows, j)
        axes.step(
            times,
            tokens / server.capacity,
            where="post",
            color=color,
            linestyle=DASHES[dash],
            linewidth=1.1,
            label=f"server {j}",
        )
    axes.set_xlabel("Time (s)")
    axes.set_ylabel("Load (s of capacity)")


def tokens_in_flight(rows: pd.DataFrame, server: int) -> tuple[Floats, Floats]:
    """Return when a server's load changes, in seconds, and its tokens from then on, each ``(n,)``.

    Args:
        rows: Of a record.
        server: Its number.
    """
    mine = rows[(rows["server"] == server) & (rows["dropped"] == 0)]
    arrival, tokens = mine["arrival_s"].to_numpy(float), mine["tokens"].to_numpy(float)
    times = np.concatenate([[0.0], arrival, arrival + mine["response_s"].to_numpy(float)])
    changes = np.concatenate([[0.0], tokens, -tokens])
    order = np.argsort(times, kind="stable")
    return times[order], changes[order].cumsum()


def _draw_requests(records: Records, plan: BalancingPlan, path: Path) -> None:
    """Draw figure 8: response of each request under the learner, with the objective."""
    drawing, grid = picture(1, len(plan.scenarios))
    for axes, scenario in zip(grid, plan.scenarios, strict=True):
        rows = records[scenario][plan.learner]
        late = rows["late"] > 0
        for chosen, color, marker, name in (
            (~late, BLUE, "o", "in time"),
            (late, VERMILLION, "x", "late"),
        ):
            axes.scatter(
                rows["request"][chosen],
                rows["response_s"][chosen],
                s=7,
                color=color,
                marker=marker,
                linewidths=0.8,
                alpha=0.6,
                label=name,
            )
        _objective(axes, plan.environment(scenario).slo_s, vertical=False)
        axes.set_yscale("log")
        axes.set_xlabel("Request")
        axes.set_ylabel("Response time (s)")
        axes.set_title(f"Fig. 8: {plan.learner}, {scenario}", loc="left", fontsize=10)
    save(drawing, grid[0], path)


def _objective(axes: Axes, slo_s: float, *, vertical: bool) -> None:
    """Draw the line that responses should stay below."""
    line = axes.axvline if vertical else axes.axhline
    line(slo_s, color=INK, linestyle=DASHES["dash"], linewidth=1.0, label=f"objective {slo_s:g} s")


def _draw_heat(records: Records, plan: BalancingPlan, path: Path) -> None:
    """Draw figure 9: late requests of each server over time, under the learner."""
    drawing, grid = picture(len(plan.scenarios), 1, width=8.0, height=2.0)
    # a missing matplotlib has been reported by now
    from matplotlib.ticker import MaxNLocator

    for axes, scenario in zip(grid, plan.scenarios, strict=True):
        rows = records[scenario][plan.learner]
        servers = plan.environment(scenario).setup.servers
        counts, edges = late_over_time(rows, len(servers))
        heat = axes.pcolormesh(
            edges,
            np.arange(len(servers) + 1) - 0.5,
            counts,
            cmap="cividis",
            vmin=0,
            vmax=max(counts.max(), 1),
        )
        whole = MaxNLocator(nbins=4, integer=True)
        drawing.colorbar(heat, ax=axes, label="Late requests", ticks=whole)
        names = [
            f"server {j}\n{s.slots} x {s.tokens_per_s:g} tokens/s" for j, s in enumerate(servers)
        ]
        axes.set_yticks(range(len(servers)), names, fontsize=8)
        axes.grid(visible=False)
        axes.set_xlabel("Time of arrival (s)")
        step = edges[1] - edges[0]
        title = f"Fig. 9: SLO violations in {step:.2g} s, {plan.learner}, {scenario}"
        axes.set_title(title, loc="left", fontsize=10)
    save(drawing, grid[0], path)


def late_over_time(rows: pd.DataFrame, servers: int) -> tuple[Floats, Floats]:
    """Return late requests ``(servers, bins)`` and the bins' edges in seconds."""
    edges = np.linspace(0.0, max(float(rows["arrival_s"].max()), 1e-9), BINS + 1)
    late = rows[rows["late"] > 0]
    counts = np.array(
        [
            np.histogram(late["arrival_s"][late["server"] == j], bins=edges)[0]
            for j in range(servers)
        ],
        dtype=np.float64,
    )
    return counts, edges
