"""Tables of measured values, written from rows that come one after the other."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pandas as pd

from icl_optimizer.comparison.tables import COLUMNS, REAL, column_type

GROUP_ROWS = 20_000
"""Rows that are written at once."""
DECIMALS = 10


class TableWriter:
    """Writes a CSV file, and a Parquet file beside it, from rows that come one after the other.

    Neither is seen before it is whole. Memory holds :data:`GROUP_ROWS` rows, however many there
    are. Without pyarrow there is no Parquet file, not even one of an earlier run.

    Args:
        path: The CSV file; the other has its name and ``.parquet``.
        columns: Their names.
        parquet: Whether to write the Parquet file, too.
    """

    def __init__(
        self, path: Path, columns: Sequence[str] = COLUMNS, *, parquet: bool = False
    ) -> None:
        """Start the files."""
        self.path = path
        self.columns = list(columns)
        self._rows: list[Sequence[Any]] = []
        self._partial = path.with_name(f"{path.name}.partial")
        self._file = self._partial.open("w", encoding="utf-8", newline="")
        self._file.write(",".join(self.columns) + "\n")
        self._parquet = _ParquetFile(path.with_suffix(".parquet"), columns) if parquet else None

    def write(self, rows: Iterable[Sequence[Any]]) -> None:
        """Write rows of values, reals with ten decimals."""
        self._rows += rows
        if len(self._rows) >= GROUP_ROWS:
            self._flush()

    def _flush(self) -> None:
        if not self._rows:
            return
        frame = pd.DataFrame(self._rows, columns=self.columns).round(dict.fromkeys(REAL, DECIMALS))
        self._rows = []
        frame.to_csv(self._file, index=False, header=False, lineterminator="\n")
        if self._parquet is not None:
            self._parquet.write(frame)

    def __enter__(self) -> Self:
        """Write inside the block."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        where: TracebackType | None,
    ) -> None:
        """Put the files in place, or drop them after an error."""
        whole = False
        try:
            if kind is None:
                self._flush()
                whole = True
        finally:
            self._file.close()
            # first this one: an earlier Parquet file is gone by now, an earlier CSV file is not,
            # and a kill in between must not leave tables that differ
            _place(self._partial, self.path, keep=whole)
            if self._parquet is not None:
                self._parquet.close(keep=whole)


class _ParquetFile:
    """The same rows, a group for each part."""

    def __init__(self, path: Path, columns: Sequence[str]) -> None:
        self._path = path
        self._partial = path.with_name(f"{path.name}.partial")
        self._writer: Any = None
        # one of an earlier run would not fit the CSV file that is about to be replaced
        path.unlink(missing_ok=True)
        if find_spec("pyarrow") is None:
            return
        import pyarrow as pa
        import pyarrow.parquet as pq

        self._schema = pa.schema([(name, pa.type_for_alias(column_type(name))) for name in columns])
        self._writer = pq.ParquetWriter(self._partial, self._schema)

    def write(self, frame: pd.DataFrame) -> None:
        if self._writer is None:
            return
        import pyarrow as pa

        self._writer.write_table(
            pa.Table.from_pandas(frame, schema=self._schema, preserve_index=False)
        )

    def close(self, *, keep: bool) -> None:
        if self._writer is None:
            return
        self._writer.close()
        _place(self._partial, self._path, keep=keep)


def _place(partial: Path, path: Path, *, keep: bool) -> None:
    if keep:
        os.replace(partial, path)
    else:
        partial.unlink()
