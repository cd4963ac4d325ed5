"""What hosted models cost, and what a usage would cost at these prices."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from importlib import resources
from pathlib import Path
from typing import Self

from icl_optimizer.errors import ConfigurationError
from icl_optimizer.llm.usage import Usage

COLUMNS = ("model", "input", "output", "date", "source")
_NEEDED = COLUMNS[:3]
_MILLION = 1e6


@dataclass(frozen=True)
class Price:
    """One row of a price table.

    Attributes:
        model: Spec of the model; ``*`` stands for any text and ``?`` for one character.
        input: USD per million prompt tokens.
        output: USD per million completion tokens.
        date: When the price was looked up.
        source: Where.
    """

    model: str
    input: float
    output: float
    date: str = ""
    source: str = ""

    def cost(self, usage: Usage) -> float:
        """Return what the tokens of ``usage`` cost, in USD."""
        tokens = usage.prompt_tokens * self.input + usage.completion_tokens * self.output
        return tokens / _MILLION


class Prices:
    """A price table; the longest pattern that fits a model counts.

    The shipped list prices are those of the providers' pages, as checked by genai-prices
    (github.com/pydantic/genai-prices, MIT) on the dates in the table. Names that a provider lets
    wander to newer models have no price, nor has any server of one's own
    (``openai:NAME@URL``).

    Args:
        rows: Later ones replace earlier ones with the same pattern.
    """

    def __init__(self, rows: Iterable[Price]) -> None:
        """Keep the rows."""
        self._rows = {row.model: row for row in rows}

    @classmethod
    def load(cls, path: str | Path | None = None) -> Self:
        """Return the shipped table, with the rows of the user's file over it.

        Args:
            path: A CSV file with the columns ``model, input, output`` and, if wanted, ``date,
                source``; None for the shipped table alone.

        Raises:
            ConfigurationError: The file is not there or a line is wrong.
        """
        shipped = resources.files("icl_optimizer.llm") / "prices.csv"
        rows = _parse("prices.csv", shipped.read_text(encoding="utf-8"))
        return cls([*rows, *([] if path is None else _read(Path(path).expanduser()))])

    def find(self, name: str) -> Price | None:
        """Return the price of a model, None when it is not known.

        Args:
            name: Its spec; parameters after a ``?`` do not count.
        """
        spec = name.partition("?")[0]
        fits = [row for row in self._rows.values() if fnmatchcase(spec, row.model)]
        return max(fits, key=lambda row: (len(row.model), row.model == spec), default=None)

    def cost(self, name: str, usage: Usage) -> float | None:
        """Return what the tokens of ``usage`` cost at the list price, in USD.

        Cached answers count like the others, so a replay costs what the recorded run did; what
        was really spent is told by ``Budget``. Discounts for reused prefixes or for batches are
        not known here, so this is an upper bound.

        Returns:
            None when the price is not known.
        """
        price = self.find(name)
        return None if price is None else price.cost(usage)


def _read(path: Path) -> list[Price]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"the price table '{path}' cannot be read: {error}.") from error
    return _parse(str(path), text)


def _parse(name: str, text: str) -> list[Price]:
    lines = csv.reader(text.splitlines())
    header = [cell.strip() for cell in next(lines, [])]
    if not set(_NEEDED) <= set(header) <= set(COLUMNS) or len(set(header)) != len(header):
        raise ConfigurationError(
            f"{name}, line 1: the columns are {header}; allowed: {', '.join(_NEEDED)}, and date, "
            "source."
        )
    rows: dict[str, Price] = {}
    for cells in lines:
        where = f"{name}, line {lines.line_num}"
        if cells:
            row = _row(where, header, [cell.strip() for cell in cells])
            if row.model in rows:
                raise ConfigurationError(f"{where}: model '{row.model}' is there twice.")
            rows[row.model] = row
    return list(rows.values())


def _row(where: str, header: Sequence[str], cells: Sequence[str]) -> Price:
    if len(cells) != len(header):
        raise ConfigurationError(
            f"{where}: there are {len(cells)} values; allowed: one for each of {', '.join(header)}."
        )
    values = dict(zip(header, cells, strict=True))
    if not values["model"]:
        raise ConfigurationError(f"{where}: model is empty; allowed: a spec or a pattern.")
    prices = {field: _number(where, field, values.pop(field)) for field in ("input", "output")}
    return Price(**prices, **values)  # type: ignore[arg-type]  # the other columns are texts


def _number(where: str, field: str, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value < math.inf:
        raise ConfigurationError(
            f"{where}: {field} is {text!r}; allowed: USD per million tokens, 0 or more."
        )
    return value
