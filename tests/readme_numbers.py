"""Finds the results of README.md that the data of the reproduction do not have."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from decimal import ROUND_HALF_EVEN, ROUND_HALF_UP, Decimal

from icl_optimizer.studies.reproduction_data import PartData

SECTIONS: dict[str, tuple[str, ...]] = {
    "# icl-optimizer": ("offloading", "open"),
    "### Offloading, as in the paper": ("offloading",),
    "### Words that nobody met while learning": ("open",),
    "### Congested": ("congested",),
    "### Requests to servers with queues": ("scheduling", "cold-start"),
    "### A language model cut between a device and the edge": ("splitting",),
    "### Requests to experts that slow each other down": ("routing", "inference"),
    "### Real servers, and a router in front of them": ("twin", "router-endpoint", "bench"),
}
"""Sections that tell results, and the parts that measured them."""

NO_RESULTS = {
    r"135 M parameters|22 M parameters": "sizes of models",
    r"\(20\d\d\)|Fig\. \d|Figures? \d\(\w\)( to \d\(\w\))?": "years and figures",
    r"\(1 is the oracle, 0 is random choice\)|\(?0\.5 is chance\)?": "ends of a scale",
    r"1 is no upper bound": "end of a scale",
    r"95 % (bootstrap )?interval": "level of intervals",
    r"λ = [\d.]+": "load, not what came of it",
    r"(?:after|with|has|in|from) [\d,]+ decisions|with 10,000\b": "budgets",
    r"there are\s+15 contexts": "size of the task",
    r"from 12 service types, tested on 44 others\. The 44": "words of the task",
    r"below 0\.03 s": "the latency that is allowed",
    r"at 20 per second": "load, not what came of it",
}
"""What is no result in these sections, with the reason."""

MARKUP = re.compile(
    r"^```.*?^```$|<!--.*?-->|!\[[^\]]*\]\([^)]*\)|\]\([^)]*\)|`[^`\n]*`", re.M | re.S
)
NUMBER = re.compile(r"(?<![\w.,])[-−]?\d[\d,]*(?:\.\d+)?(?:e-?\d+)?(?!\w)")


@dataclass(frozen=True)
class Number:
    """A number as it is written, the row of a table that it stands in, and its section."""

    text: str
    section: str
    row: str = ""

    @property
    def value(self) -> Decimal:
        """What it is."""
        return decimal(self.text)

    def told_by(self, other: Decimal) -> bool:
        """Return whether this is ``other``, rounded to as many digits as are shown here."""
        unit = Decimal(1).scaleb(int(self.value.as_tuple().exponent))
        return any(
            other.quantize(unit, rounding) == self.value
            for rounding in (ROUND_HALF_EVEN, ROUND_HALF_UP)
        )

    def __str__(self) -> str:
        place = f"{self.section}, row {self.row}" if self.row else self.section
        return f"{self.text} ({place})"


def decimal(text: str) -> Decimal:
    return Decimal(text.replace(",", "").replace("−", "-"))


def numbers_in(text: str) -> list[str]:
    return [found.rstrip(",") for found in NUMBER.findall(text)]


def results_of(readme: str) -> Iterator[Number]:
    """Yield every number of the sections that tell results."""
    for heading, body in sections(readme):
        if heading in SECTIONS:
            title = heading.lstrip("# ")
            yield from _in_tables(body, title)
            prose = "\n".join(line for line in body.splitlines() if not line.startswith("|"))
            prose = MARKUP.sub(" ", prose)
            for pattern in NO_RESULTS:
                spaced = pattern.replace(" ", r"\s+")
                prose = re.sub(spaced, " ", prose, flags=re.I)
            yield from (Number(text, title) for text in numbers_in(prose))


def sections(readme: str) -> Iterator[tuple[str, str]]:
    """Yield headings outside of blocks, and what stands below each."""
    outside = re.sub(r"^```.*?^```$", "", readme, flags=re.M | re.S)
    parts = re.split(r"^(#+ .+)$", outside, flags=re.M)
    yield from zip(parts[1::2], parts[2::2], strict=True)


def _in_tables(body: str, title: str) -> Iterator[Number]:
    """Yield the numbers of tables; the header and the first cells say of what they are."""
    inside = False
    for line in body.splitlines():
        if line.startswith("|") and inside and not line.startswith("|---"):
            first, *cells = line.strip("|").split("|")
            name = re.search(r"`([^`]+)`", first)
            row = name[1] if name else first.strip()
            yield from (Number(text, title, row) for cell in cells for text in numbers_in(cell))
        inside = line.startswith("|")


def missing_numbers(readme: str, parts: Mapping[str, PartData]) -> list[str]:
    """Return the numbers of README's results that the data of their parts do not have.

    A number of a table has to stand in a row of the same name, one of a sentence anywhere in the
    parts of its section, in their settings or in what the report said.

    Args:
        readme: The text.
        parts: What was measured, by part.
    """
    homes = {heading.lstrip("# "): names for heading, names in SECTIONS.items()}
    known: dict[tuple[str, str], list[Decimal]] = {}
    lacking = []
    for number in results_of(readme):
        key = number.section, number.row
        if key not in known:
            mine = [parts[name] for name in homes[number.section] if name in parts]
            known[key] = [decimal(text) for text in _told(mine, number.row)]
        if not any(number.told_by(value) for value in known[key]):
            lacking.append(str(number))
    return lacking


def _told(parts: Iterable[PartData], row: str) -> Iterator[str]:
    """Yield the numbers of ``parts``; only of rows of this name, unless it is empty."""
    for part in parts:
        for table in part.tables:
            for cells in table.rows:
                if not row or cells[0].strip("`") == row:
                    yield from (text for cell in cells for text in numbers_in(cell.strip("%")))
        if not row:
            yield from numbers_in(part.origin.said)
            settings = part.origin.settings
            yield from (str(value) for value in settings.values() if isinstance(value, int))
            yield from (str(value) for value in settings.get("budgets", {}).values())
