"""What a reproduction keeps of its parts: small tables, and what they came from."""

from __future__ import annotations

import csv
import json
import os
import platform
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from icl_optimizer.errors import ConfigurationError

HOME = Path("benchmarks/reproduction")
"""Where the repository keeps the data of its page."""


@dataclass(frozen=True)
class ShownTable:
    """A table as the page shows it.

    Attributes:
        name: Of its file, after that of the part.
        title: What it shows.
        header: Names of the columns.
        rows: Cells, as many in each row as the header has.
        keys: How many cells at the beginning of a row say what the row is about.
    """

    name: str
    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    keys: int = 1

    def cell(self, row: str, column: str) -> str:
        """Return a cell.

        Args:
            row: Its first cells with a space between; a star at the end stands for anything.
            column: Of the header; the first one of that name.

        Raises:
            ConfigurationError: There is no such row or column.
        """
        found = [cells for cells in self.rows if _named(" ".join(cells[: self.keys]), row)]
        if not found or column not in self.header:
            raise ConfigurationError(
                f"table '{self.name}' has no row '{row}' with a column '{column}'; allowed: rows "
                f"{', '.join(' '.join(r[: self.keys]) for r in self.rows)}; columns "
                f"{', '.join(self.header)}."
            )
        return found[0][self.header.index(column)]


def _named(name: str, wanted: str) -> bool:
    start = wanted.removesuffix("*")
    return name == wanted or (start != wanted and name.startswith(start))


@dataclass(frozen=True)
class Origin:
    """Where a part's tables come from.

    Attributes:
        command: That measured them.
        date: Day on which it ended.
        seconds: It took; None where nobody kept the time.
        versions: Of Python and packages.
        machine: Cores and processor.
        settings: Of the comparison, where it is one: seeds and budgets, for example.
        said: Sentences of the report.
    """

    command: str
    date: str
    seconds: float | None
    versions: Mapping[str, str]
    machine: Mapping[str, Any]
    settings: Mapping[str, Any] = field(default_factory=dict)
    said: str = ""


@dataclass(frozen=True)
class PartData:
    """What the page knows of a part: its name, its origin and its tables."""

    name: str
    origin: Origin
    tables: tuple[ShownTable, ...]

    def table(self, name: str) -> ShownTable:
        """Return the table of that name.

        Raises:
            ConfigurationError: There is none.
        """
        found = {table.name: table for table in self.tables}
        if name not in found:
            raise ConfigurationError(
                f"part '{self.name}' has no table '{name}'; allowed: {', '.join(found)}."
            )
        return found[name]


def machine() -> dict[str, Any]:
    """Return what this process runs on: ``cores`` that it may use, and the ``processor``."""
    cores = (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
    return {"cores": cores, "processor": _processor()}


def _processor() -> str:
    """Return the processor's name; its architecture where the system does not tell more."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def write_part(folder: Path, data: PartData) -> None:
    """Write a JSON file about the part, and a CSV file for each of its tables.

    Args:
        folder: Of all parts; made when missing. Older tables of this part are removed.
        data: The part.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob(f"{data.name}.*.csv"):
        old.unlink()
    for table in data.tables:
        path = folder / f"{data.name}.{table.name}.csv"
        with path.open("w", encoding="utf-8", newline="") as file:
            csv.writer(file, lineterminator="\n").writerows([table.header, *table.rows])
    about = asdict(data.origin) | {
        "tables": [{"name": t.name, "title": t.title, "keys": t.keys} for t in data.tables]
    }
    text = json.dumps(about, indent=1, ensure_ascii=False) + "\n"
    (folder / f"{data.name}.json").write_text(text, encoding="utf-8")


def read_part(folder: Path, name: str) -> PartData | None:
    """Return the part as :func:`write_part` left it; None where it was never written.

    Raises:
        ConfigurationError: A table's file is missing or empty.
    """
    path = folder / f"{name}.json"
    if not path.exists():
        return None
    about = json.loads(path.read_text(encoding="utf-8"))
    tables = tuple(_read_table(folder, name, **table) for table in about.pop("tables"))
    return PartData(name, Origin(**about), tables)


def _read_table(folder: Path, part: str, name: str, title: str, keys: int) -> ShownTable:
    path = folder / f"{part}.{name}.csv"
    if not path.exists():
        raise ConfigurationError(f"'{path}' is missing, which {part}.json names.")
    with path.open(encoding="utf-8", newline="") as file:
        lines = [tuple(line) for line in csv.reader(file)]
    if not lines:
        raise ConfigurationError(f"'{path}' is empty; allowed: a header and rows.")
    return ShownTable(name, title, lines[0], tuple(lines[1:]), keys)
