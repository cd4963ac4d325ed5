"""Tables of measured values, read as far as they are needed."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from icl_optimizer.errors import ConfigurationError

if TYPE_CHECKING:
    from pandas.io.parsers import TextFileReader

KEYS = ("environment", "scenario", "policy", "llm")
COLUMNS = (*KEYS, "seed", "split", "step", "metric", "value")
"""Of ``results.csv`` and ``timings.csv``; a sweep's tables have ``point`` before them."""
POINT = "point"
WHOLE, REAL = ("seed", "step"), ("value",)
CHUNK_ROWS = 100_000
"""Rows of a CSV file that are read at once."""

Wanted = str | Collection[str] | None


class ResultsTable:
    """The results of a comparison or of a sweep, read as far as they are needed.

    From ``results.parquet`` where it is there, else from ``results.csv`` in chunks.

    Args:
        folder: That of a comparison or a sweep.

    Attributes:
        columns: Names of the columns; ``point`` is the first of a sweep's.
    """

    def __init__(self, folder: str | Path) -> None:
        """Look at the columns; nothing else is read.

        Raises:
            ConfigurationError: There is no table, or a column is missing.
        """
        self.folder = Path(folder)
        self.path = self.folder / "results.csv"
        require(self.path)
        parquet = self.path.with_suffix(".parquet")
        self._parquet = parquet if parquet.is_file() and find_spec("pyarrow") else None
        self.columns = self._header()
        missing = [name for name in COLUMNS if name not in self.columns]
        if missing:
            raise ConfigurationError(f"{self.path} has no column {', '.join(map(repr, missing))}.")

    def select(
        self,
        columns: Sequence[str] | None = None,
        *,
        split: Wanted = None,
        metric: Wanted = None,
        policy: Wanted = None,
        scenario: Wanted = None,
        point: Wanted = None,
        last_only: bool = False,
    ) -> pd.DataFrame:
        """Return rows in the order of the file.

        Args:
            columns: Which; None for all.
            split: ``eval`` or ``train``; as all that follow, a name, several, or None for all.
            metric: Names of metrics.
            policy: Names of policies.
            scenario: Names of scenarios.
            point: Names of a sweep's points.
            last_only: Of each metric of a policy with a seed, at the last step alone.

        Returns:
            Text as ``str`` (``llm`` is empty where there is none), ``seed`` and ``step`` as
            integers, ``value`` as a float, NaN where it is missing.

        Raises:
            ConfigurationError: A cell of the CSV file is no number where one has to be, or a
                column does not exist.
        """
        filters = {
            name: {given} if isinstance(given, str) else set(given)
            for name, given in {
                "split": split,
                "metric": metric,
                "policy": policy,
                "scenario": scenario,
                POINT: point,
            }.items()
            if given is not None
        }
        for name in (*(columns or ()), *filters):
            if name not in self.columns:
                raise ConfigurationError(
                    f"{self.path} has no column '{name}'; it has: {', '.join(self.columns)}."
                )
        wanted = list(columns or self.columns)
        # what it takes to tell which step is the last one
        needed = self.columns if last_only else wanted
        parts = [_last(part) if last_only else part for part in self._parts(needed, filters)]
        if not parts:
            return pd.DataFrame({name: _empty(name) for name in wanted})
        found = pd.concat(parts, ignore_index=True)
        return (_last(found).reset_index(drop=True) if last_only else found)[wanted]

    def values(self, column: str) -> list[str]:
        """Return the different texts of ``column`` in the order in which they come up."""
        seen: dict[str, None] = {}
        for part in self._parts([column], {}):
            seen |= dict.fromkeys(part[column].unique())
        return list(seen)

    def _header(self) -> list[str]:
        if self._parquet is not None:
            import pyarrow as pa
            import pyarrow.parquet as pq

            try:
                return list(pq.read_schema(self._parquet).names)
            except pa.ArrowException as error:
                raise ConfigurationError(
                    f"'{self._parquet}' is damaged ({error}); delete it, and {self.path.name} "
                    "beside it is read."
                ) from error
        try:
            return list(pd.read_csv(self.path, nrows=0).columns)
        except (pd.errors.EmptyDataError, pd.errors.ParserError, UnicodeDecodeError) as error:
            raise ConfigurationError(f"{self.path} is not a table: {error}.") from error

    def _parts(
        self, columns: Sequence[str], filters: Mapping[str, set[str]]
    ) -> Iterator[pd.DataFrame]:
        if self._parquet is not None:
            return _from_parquet(self._parquet, columns, filters)
        return _from_csv(self.path, columns, filters)


def require(path: Path) -> None:
    """Raise where a file of a run's folder is missing; say what helps."""
    if path.is_file():
        return
    if path.name != "config.json" and path.with_name("config.json").is_file():
        raise ConfigurationError(
            f"'{path.parent}' is unfinished, {path.name} is missing: go on with --resume."
        )
    raise ConfigurationError(
        f"'{path.parent}' is not the folder of a comparison: {path.name} is missing."
    )


def _from_parquet(
    path: Path, columns: Sequence[str], filters: Mapping[str, set[str]]
) -> Iterator[pd.DataFrame]:
    import pyarrow.dataset as ds

    chosen: Any = None
    for name, values in filters.items():
        one = ds.field(name).isin(sorted(values))
        chosen = one if chosen is None else chosen & one
    scanner = ds.dataset(path).scanner(columns=list(columns), filter=chosen, use_threads=False)
    for batch in scanner.to_batches():
        if batch.num_rows:
            yield batch.to_pandas()


def _from_csv(
    path: Path, columns: Sequence[str], filters: Mapping[str, set[str]]
) -> Iterator[pd.DataFrame]:
    read = [*dict.fromkeys([*columns, *filters])]
    dtypes: dict[str, Any] = {name: column_type(name).replace("string", "str") for name in read}
    missing = {name: ["", "nan"] for name in REAL if name in read}
    try:
        with _chunks(path, usecols=read, dtype=dtypes, na_values=missing) as reader:
            for chunk in reader:
                for name, values in filters.items():
                    chunk = chunk[chunk[name].isin(values)]
                if len(chunk):
                    yield chunk[list(columns)]
    except ValueError as error:
        _name_the_cell(path, read)
        raise ConfigurationError(f"{path} is not a table: {error}.") from error


def _name_the_cell(path: Path, columns: Sequence[str]) -> None:
    """Raise for the first cell that is no number where one has to be."""
    with suppress(pd.errors.ParserError, UnicodeDecodeError), _chunks(path, dtype=str) as reader:
        for chunk in reader:
            for name in (n for n in columns if n in (*WHOLE, *REAL)):
                cells = chunk[name]
                numbers = pd.to_numeric(cells, errors="coerce")
                missing = cells.str.lower().isin(["", "nan"]) & (name in REAL)
                bad = (numbers.isna() & ~missing) | ((name in WHOLE) & (numbers % 1 != 0))
                if bad.any():
                    allowed = "a whole number" if name in WHOLE else "a number"
                    line = int(cells.index[bad][0]) + 2
                    raise ConfigurationError(
                        f"{path}, line {line}: column '{name}' has '{cells[bad].iloc[0]}'; "
                        f"allowed: {allowed}."
                    )


def _chunks(path: Path, **options: Any) -> TextFileReader:
    return pd.read_csv(path, chunksize=CHUNK_ROWS, keep_default_na=False, **options)


def _last(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the rows at the last step of each metric of a policy with a seed."""
    keys = [n for n in rows.columns if n not in ("step", "split", "value")]
    return rows[rows.groupby(keys, sort=False)["step"].transform("max") == rows["step"]]


def column_type(name: str) -> str:
    """Return how pyarrow calls the type of a column."""
    return "int64" if name in WHOLE else "float64" if name in REAL else "string"


def _empty(name: str) -> pd.Series[Any]:
    return pd.Series([], dtype=column_type(name).replace("string", "str"))
