"""Traces in the format of Azure's, whole or in chunks.

The format is that of the Azure LLM inference traces (Patel et al., "Splitwise", ISCA 2024): a CSV
file with the columns ``TIMESTAMP``, ``ContextTokens`` and ``GeneratedTokens`` in any order, beside
any others.
"""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import warnings
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.resources import as_file, files
from itertools import islice
from pathlib import Path
from typing import IO, Any

import numpy as np
import pandas as pd

from icl_optimizer.environments.traces.rows import (
    COLUMNS,
    Findings,
    Layout,
    Malformed,
    MalformedRowsWarning,
    Rows,
    check_malformed,
    parse,
    split_line,
)
from icl_optimizer.environments.traces.trace import Trace
from icl_optimizer.errors import ConfigurationError, unknown_name

SHIPPED = {
    "azure-code": "AzureLLMInferenceTrace_code.csv.gz",
    "azure-conversation": "AzureLLMInferenceTrace_conv.csv.gz",
}
"""Traces that come with the package, one hour each; see ``data/SOURCES.md``."""

OPENERS: dict[str, Callable[[IO[bytes]], Any]] = {
    ".gz": gzip.open,
    ".bz2": bz2.open,
    ".xz": lzma.open,
}
FORMAT = f"a CSV file with the columns {', '.join(COLUMNS)}, plain or {', '.join(OPENERS)}"
LONGEST_HEADER = 100_000


def read_trace(
    source: str | Path, *, malformed: Malformed = "reject", max_rows: int | None = None
) -> Trace:
    """Return a whole trace.

    Args:
        source: A shipped name (``azure-code``, ``azure-conversation``) or a file; compressed ones
            end in ``.gz``, ``.bz2`` or ``.xz``.
        malformed: ``reject`` raises where rows are malformed, ``skip`` leaves them out and warns.
        max_rows: Stop after so many rows; None reads all. What comes later is not looked at.

    Raises:
        ConfigurationError: The file is missing, empty or has other columns, no row is left, or
            rows are malformed: the message names the first lines, what is wrong, what is allowed.
    """
    parts = list(iter_trace(source, malformed=malformed, max_rows=max_rows))
    return Trace(
        parts[0].name,
        parts[0].start,
        np.concatenate([p.arrival_s for p in parts]),
        np.concatenate([p.context_tokens for p in parts]),
        np.concatenate([p.generated_tokens for p in parts]),
    )


def iter_trace(
    source: str | Path,
    *,
    chunk_rows: int = 500_000,
    malformed: Malformed = "reject",
    max_rows: int | None = None,
    progress: Callable[[float], None] | None = None,
) -> Iterator[Trace]:
    """Return a trace in consecutive parts, with the memory of one of them.

    All parts have the same ``start``, that of the first request of the file. Malformed rows are
    reported at the end of the file, when all of them are known; with ``reject`` no part comes after
    the first of them.

    Args:
        source: As in :func:`read_trace`.
        chunk_rows: Most rows in a part.
        malformed: As in :func:`read_trace`.
        max_rows: As in :func:`read_trace`.
        progress: Called after each part with the share of the file that is read, 0 to 1.

    Raises:
        ConfigurationError: As :func:`read_trace`; or a number of rows is below 1.
    """
    check_malformed(malformed)
    for name, value in (("chunk_rows", chunk_rows), ("max_rows", max_rows)):
        if value is not None and value < 1:
            raise ConfigurationError(f"{name} is {value}; allowed: 1 and more.")
    check_source(source)
    return _parts(source, chunk_rows, malformed, max_rows, progress)


def _parts(
    source: str | Path,
    chunk_rows: int,
    malformed: Malformed,
    max_rows: int | None,
    progress: Callable[[float], None] | None,
) -> Iterator[Trace]:
    findings, start_ns, name = Findings(), None, trace_name(source)
    for rows, share in _blocks(source, chunk_rows, max_rows, findings):
        if progress is not None:
            progress(share)
        if len(rows.time_ns) == 0 or (findings.count and malformed == "reject"):
            continue
        if start_ns is None:
            start_ns = rows.time_ns[0]
        arrival_s = (rows.time_ns - start_ns) / 1e9
        yield Trace(
            name, pd.Timestamp(start_ns, unit="ns"), arrival_s, rows.context, rows.generated
        )
    if findings.count and malformed == "reject":
        text = f"{findings.message(str(source))}\n  malformed 'skip' leaves them out."
        raise ConfigurationError(text)
    if start_ns is None:
        raise ConfigurationError(f"trace '{source}' holds no request; allowed: {FORMAT}.")
    if findings.count:
        text = f"{findings.message(str(source))}\n  They were left out."
        warnings.warn(text, MalformedRowsWarning, stacklevel=2)


def _blocks(
    source: str | Path, chunk_rows: int, max_rows: int | None, findings: Findings
) -> Iterator[tuple[Rows, float]]:
    """Yield the well-formed rows of each block of lines, and the share of the file read."""
    number, latest_ns, left = 2, int(np.iinfo(np.int64).min), max_rows
    try:
        with _opened(source) as (file, share):
            layout = _layout(source, file)
            while lines := list(islice(file, min(chunk_rows, left or chunk_rows))):
                rows = parse(lines, layout, number, latest_ns, findings)
                number += len(lines)
                if len(rows.time_ns):
                    latest_ns = int(rows.time_ns[-1])
                yield rows, share()
                if left is not None and (left := left - len(rows.time_ns)) == 0:
                    return
    except (EOFError, OSError, zlib.error, lzma.LZMAError) as error:
        message = f"trace '{source}' cannot be read: {error}; allowed: {FORMAT}."
        raise ConfigurationError(message) from error


@contextmanager
def _opened(source: str | Path) -> Iterator[tuple[IO[bytes], Callable[[], float]]]:
    """Yield the text as bytes, and a function that says what share of it is read."""
    shipped = SHIPPED.get(str(source))
    found = files("icl_optimizer.environments.data") / shipped if shipped else Path(source)
    with as_file(found) as path, path.open("rb") as raw:
        size = max(1, path.stat().st_size)
        opener = OPENERS.get(path.suffix)
        # buffered once more, since lines of compressed files are slow to find
        file = io.BufferedReader(opener(raw), 1 << 20) if opener else raw
        yield file, lambda: min(1.0, raw.tell() / size)


def _layout(source: str | Path, file: IO[bytes]) -> Layout:
    """Return where the header says the columns are."""
    header = file.readline(LONGEST_HEADER)
    if not header.strip():
        raise ConfigurationError(f"trace '{source}' is empty; allowed: {FORMAT}.")
    names = split_line(header.removeprefix(b"\xef\xbb\xbf"))
    if missing := [name for name in COLUMNS if name not in names]:
        shown = ", ".join(names)[:200]
        raise ConfigurationError(
            f"trace '{source}' lacks the columns {', '.join(missing)}; its header is {shown!r}; "
            f"allowed: {FORMAT}."
        )
    time, context, generated = (names.index(name) for name in COLUMNS)
    return Layout(len(names), (time, context, generated))


def stamp(source: str | None) -> tuple[int, int]:
    """Return size and time of a file, by which versions of it are told apart; zeros for none."""
    path = Path(source or "")
    if not path.is_file():
        return 0, 0
    stat = path.stat()
    return stat.st_size, stat.st_mtime_ns


def check_source(source: str | Path) -> None:
    """Raise unless ``source`` is a shipped name or a file."""
    if str(source) in SHIPPED or Path(source).is_file():
        return
    if Path(source).is_dir():
        raise ConfigurationError(f"trace '{source}' is a folder; allowed: {FORMAT}.")
    if isinstance(source, str) and not Path(source).suffix and "/" not in source:
        raise ConfigurationError(f"{unknown_name('trace', source, SHIPPED)} Or {FORMAT}.")
    raise ConfigurationError(
        f"trace '{source}' is not there; allowed: {', '.join(SHIPPED)}, or {FORMAT}."
    )


def trace_name(source: str | Path) -> str:
    """Return a shipped name as it is, and of a path the file's name without its endings."""
    if str(source) in SHIPPED:
        return str(source)
    path = Path(source)
    path = path.with_suffix("") if path.suffix in OPENERS else path
    return path.stem
