"""What channels do to a split model, over the layer it is split after: tables and a picture."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import as_file, files
from pathlib import Path

import pandas as pd

from icl_optimizer.environments.splitting.channel import Channel, fading_scale
from icl_optimizer.environments.splitting.records import read_records
from icl_optimizer.report.palette import BLUE, GREEN, ORANGE, PURPLE, SKY, VERMILLION, Style
from icl_optimizer.studies.pictures import picture, save

SHIPPED = "split_channels.csv.gz"
THRESHOLD = 0.1
"""Gain h_th below which an element is lost; the paper gives none: only h_th / sigma_h counts."""


@dataclass(frozen=True)
class Panel:
    """Channels that one panel of the picture compares.

    Attributes:
        title: What they have in common.
        channels: By their name in the legend.
    """

    title: str
    channels: Mapping[str, Channel]


def _rayleigh(loss: float) -> Channel:
    """Return a Rayleigh channel whose receiver knows the gain and loses this share, eq. (4)."""
    return Channel(fading=round(fading_scale(loss, THRESHOLD), 4), threshold=THRESHOLD)


PANELS = (
    Panel(
        "noise of fixed size, eq. (3)",
        {"σ = 0.5 (high SNR)": Channel(sigma=0.5), "σ = 2 (low SNR)": Channel(sigma=2.0)},
    ),
    Panel(
        "noise relative to each token's power",
        {"SNR 15 dB": Channel(snr_db=15.0), "SNR 5 dB": Channel(snr_db=5.0)},
    ),
    Panel(
        "Rayleigh fading, elements lost, eq. (4)",
        {"loss 5 %": _rayleigh(0.05), "loss 30 %": _rayleigh(0.3)},
    ),
    Panel(
        "whole tokens lost",
        {
            "loss 5 %": Channel(loss=0.05, unit="token"),
            "loss 30 %": Channel(loss=0.3, unit="token"),
        },
    ),
    Panel(
        "quantised states, nothing lost",
        {"8 bits": Channel(bits=8), "4 bits": Channel(bits=4)},
    ),
    Panel(
        "elements lost at 10 %",
        {
            "start token known to the edge": Channel(loss=0.1),
            "start token sent too": Channel(loss=0.1, known_start=False),
        },
    ),
)
STYLES = (Style(BLUE), Style(VERMILLION, marker="square"))
OTHERS = (Style(SKY, "dash"), Style(ORANGE, "dash", "square"))
FURTHER = (Style(GREEN, "dot"), Style(PURPLE, "dot", "square"))
"""Of the first, second and third model."""


@cache
def shipped_channels() -> pd.DataFrame:
    """Return the measurements behind the picture that ship, of the embedded model."""
    with as_file(files("icl_optimizer.environments.data").joinpath(SHIPPED)) as path:
        return read_records(path)


def channel_means(records: pd.DataFrame) -> pd.DataFrame:
    """Return perplexity over that of the clean model: rows are splits, columns channels.

    The mean is over nats per token, so that it is the perplexity of all texts together.
    """
    means = records.groupby(["split", "channel"])["extra_nats"].mean().unstack()
    return means.map(math.exp)


def channels_table(records: pd.DataFrame) -> list[list[str]]:
    """Return what every channel costs at some splits, and where it costs least and most."""
    ratios = channel_means(records)
    layers = [int(layer) for layer in ratios.index]
    shown = sorted({layers[round(i * (len(layers) - 1) / 5)] for i in range(6)})
    header = ["channel", "", *(f"layer {layer}" for layer in shown), "least at", "most at"]
    rows = [header]
    for panel in PANELS:
        for name, channel in panel.channels.items():
            if str(channel) in ratios:
                column = ratios[str(channel)]
                values = [f"{column[layer]:.2f}" for layer in shown]
                ends = [str(column.idxmin()), str(column.idxmax())]
                rows.append([panel.title, name, *values, *ends])
    return rows


def draw_channels(models: Mapping[str, pd.DataFrame], path: Path) -> None:
    """Draw perplexity over the split layer, a panel per kind of channel (figure 3 of the paper).

    Args:
        models: Records of one to three models by name; channels of :data:`PANELS` are drawn.
        path: The PNG file.
    """
    drawing, grid = picture(2, 3, height=3.4)
    for axes, panel in zip(grid, PANELS, strict=True):
        for (model, records), styles in zip(
            models.items(), (STYLES, OTHERS, FURTHER), strict=False
        ):
            ratios = channel_means(records)
            for (name, channel), style in zip(panel.channels.items(), styles, strict=True):
                if str(channel) not in ratios:
                    continue
                column = ratios[str(channel)]
                label = name if len(models) == 1 else f"{model}, {name}"
                axes.plot(
                    column.index, column, color=style.color, linewidth=1.6, marker=".", label=label
                )
        axes.set(title=panel.title, yscale="log")
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter("{x:g}")
        axes.set(xlabel="layers on the device", ylabel="perplexity / clean perplexity")
        axes.legend(frameon=False, fontsize="small")
    save(drawing, None, path)
