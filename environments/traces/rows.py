"""Lines of a trace to numbers: at once where all are well formed, else one by one."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from icl_optimizer.errors import ConfigurationError

Malformed = Literal["reject", "skip"]
TIMESTAMP, CONTEXT, GENERATED = COLUMNS = ("TIMESTAMP", "ContextTokens", "GeneratedTokens")
MOST_TOKENS = int(np.iinfo(np.int32).max)
YEARS = (1678, 2262)
"""Years that nanoseconds in 64 bits hold."""
DATE_LENGTH = 10
"""Of a whole date; for pandas 'now' and '2023' are times, too."""
CLOSER = 5_000
"""Lines that are read one by one when one of them is malformed."""
SHOWN = 10
"""Malformed lines that a message names; the others are counted."""

TIME_ALLOWED = "allowed: a date and time as 2023-11-16 18:17:03.9799600"
TOKENS_ALLOWED = f"allowed: a whole number from 0 to {MOST_TOKENS}"


class MalformedRowsWarning(UserWarning):
    """Rows of a trace were malformed and left out."""


class Layout(NamedTuple):
    """Where a file has its columns.

    Attributes:
        width: Number of columns.
        places: Index of the time, the context tokens and the generated tokens.
    """

    width: int
    places: tuple[int, int, int]


class Rows(NamedTuple):
    """Well-formed rows.

    Attributes:
        time_ns: Nanoseconds since 1970, shape (n,).
        context: Context tokens, shape (n,).
        generated: Generated tokens, shape (n,).
    """

    time_ns: NDArray[np.int64]
    context: NDArray[np.int32]
    generated: NDArray[np.int32]


@dataclass
class Findings:
    """Malformed lines of one file.

    Attributes:
        count: How many.
        first: What is wrong with the first few.
    """

    count: int = 0
    first: list[str] = field(default_factory=list)

    def message(self, source: str) -> str:
        """Return one text that names the first lines and how many there are."""
        lines = "line is" if self.count == 1 else "lines are"
        left = self.count - len(self.first)
        more = [f"… and {left:,} more"] if left else []
        listed = "\n".join(f"  {text}" for text in self.first + more)
        return f"trace '{source}': {self.count:,} {lines} malformed:\n{listed}"


def parse(
    lines: Sequence[bytes], layout: Layout, first_line: int, latest_ns: int, findings: Findings
) -> Rows:
    """Return the well-formed rows of ``lines``; the others are added to ``findings``.

    Args:
        lines: Consecutive lines of the file.
        layout: The file's columns.
        first_line: Number of the first line; the header is line 1.
        latest_ns: Latest time so far; a row must not be earlier.
        findings: Of the whole file.
    """
    rows = _parse_at_once(lines, layout)
    if rows is not None and rows.time_ns[0] >= latest_ns and (np.diff(rows.time_ns) >= 0).all():
        return rows
    if len(lines) <= CLOSER:
        return _parse_one_by_one(lines, layout, first_line, latest_ns, findings)
    parts = []
    for begin in range(0, len(lines), CLOSER):
        some = lines[begin : begin + CLOSER]
        part = parse(some, layout, first_line + begin, latest_ns, findings)
        latest_ns = int(part.time_ns[-1]) if len(part.time_ns) else latest_ns
        parts.append(part)
    return Rows(*(np.concatenate(arrays) for arrays in zip(*parts, strict=True)))


def _parse_at_once(lines: Sequence[bytes], layout: Layout) -> Rows | None:
    """Return the rows, or None where any line needs a closer look."""
    block = b"".join(lines)
    # pandas drops surplus fields without a word, and fills in missing ones
    if b'"' in block or not _even(block, lines, layout.width - 1):
        return None
    time, context, generated = layout.places
    try:
        frame = pd.read_csv(
            io.BytesIO(block),
            header=None,
            names=range(layout.width),
            usecols=list(layout.places),
            dtype={time: object},
            low_memory=False,
            quoting=csv.QUOTE_NONE,
            skip_blank_lines=False,
        )
        # found types, not asked for: a column of 'True' would become numbers
        if any(frame[c].dtype != np.int64 for c in (context, generated)):
            return None
        if len(frame) != len(lines) or min(map(len, frame[time])) < DATE_LENGTH:
            return None
        stamps = pd.to_datetime(frame[time], format="ISO8601", utc=True).dt.as_unit("ns")
    except (ValueError, OverflowError, TypeError):
        return None
    tokens = frame[[context, generated]].to_numpy()
    if stamps.isna().any() or tokens.min() < 0 or tokens.max() > MOST_TOKENS:
        return None
    small = tokens.astype(np.int32)
    return Rows(_nanoseconds(stamps), small[:, 0].copy(), small[:, 1].copy())


def _even(block: bytes, lines: Sequence[bytes], commas: int) -> bool:
    """Whether every line has so many commas."""
    ends = np.cumsum(np.fromiter(map(len, lines), dtype=np.int64, count=len(lines)))
    places = np.flatnonzero(np.frombuffer(block, dtype=np.uint8) == ord(","))
    expected = commas * np.arange(1, len(lines) + 1)
    return bool((np.searchsorted(places, ends) == expected).all())


def _parse_one_by_one(
    lines: Sequence[bytes], layout: Layout, first_line: int, latest_ns: int, findings: Findings
) -> Rows:
    numbered = [(first_line + i, split_line(line)) for i, line in enumerate(lines) if line.strip()]
    whole = [(number, row) for number, row in numbered if len(row) == layout.width]
    wrong = {
        number: f"number of columns is {len(row)}; allowed: {layout.width}, as in the header"
        for number, row in numbered
        if len(row) != layout.width
    }
    time, context, generated = (
        pd.Series([r[i] for _, r in whole], dtype=object) for i in layout[1]
    )
    stamps, counts = _stamps(time), [_counts(context), _counts(generated)]
    read = stamps.notna().to_numpy() & ~np.isnan(counts[0]) & ~np.isnan(counts[1])
    ns = np.where(read, _nanoseconds(stamps), np.iinfo(np.int64).min)
    before = np.maximum.accumulate(np.concatenate([[latest_ns], ns]))[:-1]
    kept = read & (ns >= before)
    for i in np.flatnonzero(~kept):
        number, row = whole[i]
        texts = [row[place] for place in layout.places]
        wrong[number] = _reason(
            texts, bool(stamps.isna()[i]), [bool(np.isnan(c[i])) for c in counts]
        )
    findings.count += len(wrong)
    for number in sorted(wrong)[: SHOWN - len(findings.first)]:
        findings.first.append(f"line {number}: {wrong[number]}")
    return Rows(ns[kept], counts[0][kept].astype(np.int32), counts[1][kept].astype(np.int32))


def split_line(line: bytes) -> list[str]:
    """Return the fields of a line without spaces and quotes around them."""
    text = line.decode("utf-8", "replace")
    return [part.strip().strip('"').strip() for part in text.split(",")]


def _stamps(texts: pd.Series) -> pd.Series:
    """Return times, NaT for what is none."""
    dated = texts.where(texts.str.len() >= DATE_LENGTH)
    stamps = pd.to_datetime(dated, format="ISO8601", utc=True, errors="coerce")
    stamps = stamps.where((stamps.dt.year >= YEARS[0]) & (stamps.dt.year < YEARS[1]))
    return stamps.dt.as_unit("ns")


def _counts(texts: pd.Series) -> NDArray[np.float64]:
    """Return numbers of tokens, NaN for what is none."""
    numeric = texts.where(texts.str.match(r"[+-]?[\d.]"))
    numbers = pd.to_numeric(numeric, errors="coerce").to_numpy(dtype=np.float64)
    with np.errstate(invalid="ignore"):
        good = (numbers >= 0) & (numbers <= MOST_TOKENS) & (numbers == np.floor(numbers))
    return np.where(good, numbers, np.nan)


def _nanoseconds(stamps: pd.Series) -> NDArray[np.int64]:
    nanoseconds: NDArray[np.int64] = (
        stamps.dt.tz_localize(None).to_numpy(dtype="datetime64[ns]").view(np.int64)
    )
    return nanoseconds


def _reason(texts: Sequence[str], no_time: bool, no_counts: Sequence[bool]) -> str:
    """Say what is wrong with the fields of a row, the first thing only."""
    values = [repr(text) if text else "missing" for text in texts]
    if no_time:
        return f"{TIMESTAMP} is {values[0]}; {TIME_ALLOWED}"
    for name, value, bad in zip((CONTEXT, GENERATED), values[1:], no_counts, strict=True):
        if bad:
            return f"{name} is {value}; {TOKENS_ALLOWED}"
    return f"{TIMESTAMP} is {values[0]}, earlier than a row before it; allowed: times in order"


def check_malformed(value: str) -> Malformed:
    """Return what to do with malformed rows, or raise where ``value`` is nothing of it."""
    if value == "reject":
        return "reject"
    if value == "skip":
        return "skip"
    raise ConfigurationError(f"malformed is '{value}'; allowed: reject, skip.")
