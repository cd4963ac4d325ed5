"""What a paper reports, and where ours is in the tables of a part."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from icl_optimizer.report.formatting import MISSING
from icl_optimizer.studies.reproduction_data import PartData

CELL = re.compile(r"\{([^{}|]+)\|([^{}|]+)\|([^{}|]+)\}")


@dataclass(frozen=True)
class Claim:
    """A row: something published, and what came out here.

    Attributes:
        what: It is about.
        published: By the paper.
        part: That measured ours.
        ours: Text with ``{table|row|column}`` for cells of the part's tables, without intervals.
        why: They differ.
    """

    what: str
    published: str
    part: str
    ours: str
    why: str = MISSING


@dataclass(frozen=True)
class System:
    """A chapter of the page.

    Attributes:
        name: Of the system, as parts have it.
        title: Of the chapter.
        page: About the system, below ``docs``.
        text: What to know beforehand.
        claims: Rows.
    """

    name: str
    title: str
    page: str
    text: str
    claims: tuple[Claim, ...] = ()


def filled(claim: Claim, parts: Mapping[str, PartData]) -> str:
    """Return what came out here; that the part was not run where it was not.

    Raises:
        ConfigurationError: The claim names a cell that the part does not have.
    """
    part = parts.get(claim.part)
    if part is None:
        return "not run in this version"

    def cell(found: re.Match[str]) -> str:
        table, row, column = found.groups()
        return part.table(table).cell(row, column).split(" [")[0]

    return CELL.sub(cell, claim.ours)
