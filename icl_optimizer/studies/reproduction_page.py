"""The page of a reproduction, written from the data of its parts alone."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from icl_optimizer.report.formatting import MISSING
from icl_optimizer.studies.reproduction_claims import System, filled
from icl_optimizer.studies.reproduction_data import PartData, read_part
from icl_optimizer.studies.reproduction_parts import PARTS, Part
from icl_optimizer.studies.reproduction_systems import SYSTEMS
from icl_optimizer.studies.tables import markdown

INTRODUCTION = """\
# Reproduction

What the five papers report beside what comes out here, all of it by

```bash
make reproduce
```

with the embedded language model: every table and figure of the papers that can be run without
their GPUs, networks and hosted models. It takes hours on two cores; parts that have finished are
kept in `runs/reproduction`, and a part that was killed goes on where it was.
`icl-optimizer reproduce --only scheduling` runs one part, `icl-optimizer reproduce --collect`
writes this page from what there is. What stands here comes from `benchmarks/reproduction/`, a JSON
file about each part and a CSV file for each table; every result in the
[README](../README.md#results) is found in it, which a test checks. Parts without minutes were run
by hand, with the same commands; splitting in pieces with the plan and seeds of the study.

Means and, in brackets, 95 % bootstrap intervals over seeds; one value alone where all agree."""
SECONDS_PER_MINUTE = 60


def write_page(data: Path, page: Path) -> Path:
    """Write the page from the data of all parts.

    Args:
        data: Folder of the parts' JSON and CSV files.
        page: The Markdown file.
    """
    page.parent.mkdir(parents=True, exist_ok=True)
    page.write_text(page_text(read_parts(data)), encoding="utf-8")
    return page


def read_parts(data: Path) -> dict[str, PartData]:
    """Return the data of all parts that there are some of."""
    found = {part.name: read_part(data, part.name) for part in PARTS}
    return {name: part for name, part in found.items() if part is not None}


def page_text(parts: Mapping[str, PartData]) -> str:
    """Return the page as Markdown.

    Args:
        parts: By name; the page says which are missing.
    """
    sections = [INTRODUCTION, "## Parts", _overview(parts)]
    for system in SYSTEMS:
        sections += _chapter(system, parts)
    sections += ["## Machines and versions", *_origins(parts)]
    return "\n\n".join(sections) + "\n"


def _overview(parts: Mapping[str, PartData]) -> str:
    rows = [["part", "what", "run on", "minutes"]]
    for part in PARTS:
        data = parts.get(part.name)
        day = data.origin.date if data else "**not run in this version**"
        rows.append([f"`{part.name}`", part.what, day, _minutes(data)])
    missing = [f"`{part.name}`" for part in PARTS if part.name not in parts]
    table = markdown(rows)
    if not missing:
        return table
    return f"{table}\n\nNot run in this version: {', '.join(missing)}."


def _minutes(data: PartData | None) -> str:
    if data is None or data.origin.seconds is None:
        return MISSING
    return f"{max(1, round(data.origin.seconds / SECONDS_PER_MINUTE))}"


def _chapter(system: System, parts: Mapping[str, PartData]) -> Iterator[str]:
    yield f"## {system.title}"
    yield f"{system.text} More: [{system.title}]({system.page})."
    if system.claims:
        rows = [["what", "published", "ours", "why they differ", "command"]]
        for claim in system.claims:
            command = f"`icl-optimizer reproduce --only {claim.part}`"
            rows.append([claim.what, claim.published, filled(claim, parts), claim.why, command])
        yield markdown(rows)
    for part in PARTS:
        if part.system == system.name:
            yield from _section(part, parts.get(part.name))


def _section(part: Part, data: PartData | None) -> Iterator[str]:
    yield f"### {part.name}: {part.what}"
    yield f"```bash\n{_wrapped(part.command)}\n```"
    if data is None:
        yield "Not run in this version."
        return
    if data.origin.said:
        yield data.origin.said
    for figure in part.figures:
        yield f"![{part.what[0].upper()}{part.what[1:]}](figures/{figure})"
    for table in data.tables:
        yield f"{table.title}:"
        yield markdown([table.header, *table.rows])


def _wrapped(command: str, width: int = 98) -> str:
    """Return a command in lines that a page can show; an option stays with its first value."""
    lines: list[str] = []
    for piece in re.findall(r"(?:--\S+ (?!--))?\S+", command):
        if lines and len(lines[-1]) + 1 + len(piece) <= width:
            lines[-1] += f" {piece}"
        else:
            lines.append(piece)
    return " \\\n  ".join(lines)


def _origins(parts: Mapping[str, PartData]) -> Iterator[str]:
    """Yield a table of machines and versions for parts that have these in common."""
    groups: dict[tuple[tuple[str, str], ...], list[str]] = {}
    for name, part in parts.items():
        origin = part.origin
        facts = {key: str(value) for key, value in {**origin.machine, **origin.versions}.items()}
        groups.setdefault(tuple(facts.items()), []).append(f"`{name}`")
    if not groups:
        yield "No part was run in this version."
    for together, names in groups.items():
        yield f"{', '.join(names)}:"
        yield markdown([("", ""), *together])
