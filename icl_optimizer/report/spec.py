"""What a figure shows, said once: the static picture, the interactive one, its table and CSV."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from icl_optimizer.comparison.statistics import Estimate
from icl_optimizer.report.formatting import number
from icl_optimizer.report.palette import Style

Kind = Literal["lines", "bars", "heat"]
Cell = str | float


@dataclass(frozen=True)
class Axis:
    """One axis.

    Attributes:
        name: What is measured.
        unit: Its unit, shown in brackets after the name.
        log: Whether it is logarithmic.
        limits: Range shown; None fits the data.
    """

    name: str
    unit: str
    log: bool = False
    limits: tuple[float, float] | None = None

    @property
    def label(self) -> str:
        """The text beside the axis."""
        return f"{self.name} [{self.unit}]"


@dataclass(frozen=True)
class Series:
    """A line with its interval.

    Attributes:
        name: What it is.
        x: Positions.
        values: One estimate per position.
        style: Colour, dash and marker.
        level: Whether it is one value drawn across the panel, without markers.
        faint: Whether it is a reference that stays in the background.
        legend: Text of the legend where it is not the name; empty keeps it out.
    """

    name: str
    x: tuple[float, ...]
    values: tuple[Estimate, ...]
    style: Style
    level: bool = False
    faint: bool = False
    legend: str | None = None

    @property
    def listed_as(self) -> str:
        """Text of the legend, empty if it has no place there."""
        return self.name if self.legend is None else self.legend


@dataclass(frozen=True)
class Bar:
    """A horizontal bar with its interval.

    Attributes:
        name: Text beside it.
        value: Its length and interval.
        style: Its colour.
        note: Text after its end.
        hollow: Whether only the outline is drawn, for a value that was not reached.
    """

    name: str
    value: Estimate
    style: Style
    note: str
    hollow: bool = False


def decades(bars: Sequence[Bar], least: float) -> tuple[float, float]:
    """Return limits of a logarithmic axis for bars, on which the note after each still fits.

    Args:
        bars: At least one.
        least: Positive value that the axis begins at or below; smaller bars have no length.
    """
    start = math.floor(math.log10(max(least, min(b.value.low for b in bars))) - 0.01)
    widths = [(math.log10(max(b.value.high, least)) - start, 0.02 * len(b.note)) for b in bars]
    return 10.0**start, 10 ** (start + max(length / (0.97 - note) for length, note in widths))


@dataclass(frozen=True)
class Heat:
    """A table of values as colours, each with its value written on it.

    Attributes:
        row: What a row is.
        column: What a column is.
        rows: Names of the rows, first on top.
        columns: Names of the columns.
        values: One list per row; None where there is nothing to show.
        limits: Values of the first and the last colour.
        even: Whether the middle colour means that nothing is better than the other.
    """

    row: str
    column: str
    rows: tuple[str, ...]
    columns: tuple[str, ...]
    values: tuple[tuple[Estimate | None, ...], ...]
    limits: tuple[float, float]
    even: bool = False


@dataclass(frozen=True)
class Rule:
    """A dashed reference line: horizontal across lines, vertical across bars."""

    at: float
    text: str


@dataclass(frozen=True)
class Panel:
    """One pair of axes with lines, bars or a heat map; bars have no ``y`` axis but their names.

    ``rules`` stand at a value, ``marks`` at a position of the x axis. The ``x`` of a heat map says
    what its colours are.
    """

    title: str
    x: Axis
    y: Axis | None = None
    series: tuple[Series, ...] = ()
    bars: tuple[Bar, ...] = ()
    rules: tuple[Rule, ...] = ()
    marks: tuple[Rule, ...] = ()
    heat: Heat | None = None

    def x_range(self) -> tuple[float, float]:
        """Return the first and last position of any line."""
        points = [x for s in self.series for x in s.x]
        return min(points), max(points)


@dataclass(frozen=True)
class Figure:
    """A figure of the report.

    Attributes:
        id: File name without suffix, and anchor.
        title: Heading.
        caption: What is shown and how to read it.
        alt: What there is to see, for readers who do not.
        panels: At least one, all of a kind.
    """

    id: str
    title: str
    caption: str
    alt: str
    panels: tuple[Panel, ...] = field(default=())

    @property
    def kind(self) -> Kind:
        """What its panels hold."""
        first = self.panels[0]
        return "heat" if first.heat is not None else "bars" if first.bars else "lines"

    def data(self) -> tuple[list[str], list[list[Cell]]]:
        """Return header and rows of the data behind the figure, numbers as they are."""
        first = self.panels[0]
        values = [(first.y or first.x).label, "CI low", "CI high"]
        if first.heat is not None:
            header = ["panel", first.heat.row, first.heat.column, *values]
            rows = [row for p in self.panels for row in _heat_rows(p)]
        elif first.bars:
            header = ["panel", "policy", *values, "note"]
            rows = [
                [p.title, b.name, *_cells(b.value), b.note] for p in self.panels for b in p.bars
            ]
        else:
            header = ["panel", "line", first.x.label, *values]
            rows = [r for p in self.panels for s in p.series for r in _series_rows(p, s)]
        if len(self.panels) == 1:
            return header[1:], [row[1:] for row in rows]
        return header, rows

    def table(self) -> tuple[list[str], list[list[str]]]:
        """Return the data as a reader meets it, numbers rounded."""
        header, rows = self.data()
        return header, [[c if isinstance(c, str) else number(c) for c in row] for row in rows]

    def csv(self) -> str:
        """Return the data as CSV, numbers in full."""
        header, rows = self.data()
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows([header, *rows])
        return text.getvalue()


def _heat_rows(panel: Panel) -> list[list[Cell]]:
    assert panel.heat is not None, "all panels are of a kind"
    return [
        [panel.title, name, column, *_cells(value)]
        for name, values in zip(panel.heat.rows, panel.heat.values, strict=True)
        for column, value in zip(panel.heat.columns, values, strict=True)
        if value is not None
    ]


def _series_rows(panel: Panel, series: Series) -> list[list[Cell]]:
    if series.level:
        return [[panel.title, series.name, "any", *_cells(series.values[0])]]
    pairs = zip(series.x, series.values, strict=True)
    return [[panel.title, series.name, x, *_cells(v)] for x, v in pairs]


def _cells(value: Estimate) -> list[Cell]:
    return [value.mean, value.low, value.high]


def ticks(low: float, high: float) -> list[float]:
    """Return round positions for a logarithmic axis: 1, 2, 5 or 1, 3 or 1 per factor of ten."""
    span = math.log10(high / low)
    steps = (1, 2, 5) if span < 1.7 else (1, 3) if span < 3.5 else (1,)
    exponents = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    points = [float(f"{m}e{e}") for e in exponents for m in steps]
    return [p for p in points if low <= p * 1.0001 and p <= high * 1.0001]


def tick_text(place: float) -> str:
    """Return the text at a position of a logarithmic axis."""
    return f"{place:,.0f}" if place >= 1 else f"{place:g}"
