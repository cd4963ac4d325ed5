"""Measures a plan of records into a file, and goes on where it was interrupted."""

from __future__ import annotations

import csv
import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path

from icl_optimizer.environments.splitting.perplexity import PerplexityMeter
from icl_optimizer.environments.splitting.records import COLUMNS, Measurement, read_records
from icl_optimizer.errors import ConfigurationError


def measure(
    meter: PerplexityMeter,
    planned: Sequence[Measurement],
    path: Path,
    advance: Callable[[int], None] = lambda records: None,
) -> None:
    """Write a record for everything planned to ``path`` (CSV); what is there is not repeated.

    Beside it, ``path`` with the ending ``.json`` says which model and texts they belong to.

    Args:
        meter: Model and texts.
        planned: What to measure, in order.
        path: Table that is written, a line at a time.
        advance: Called with 1 for every record that is there.

    Raises:
        ConfigurationError: The records that are there were measured with another model or text.
    """
    done = _begun(path, _origin(meter))
    with path.open("a", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        for item in planned:
            if item.key not in done:
                group = item.draw % len(meter.groups)
                value = meter.extra_nats(item.split, item.channel, group, item.seed)
                writer.writerow([item.split, str(item.channel), item.draw, group, f"{value:.5f}"])
                file.flush()
            advance(1)


def _begun(path: Path, origin: dict[str, str]) -> set[tuple[int, str, int]]:
    """Return the keys of records that are there already; begin the file where there is none."""
    about = path.with_suffix(".json")
    if path.exists():
        there = json.loads(about.read_text(encoding="utf-8"))
        for field, value in origin.items():
            if there.get(field) != value:
                raise ConfigurationError(
                    f"'{path}' was measured with {field} {there.get(field)!r}; allowed: {value!r}, "
                    "or another file."
                )
        _cut_torn_line(path)
        table = read_records(path)
        return set(zip(table["split"], table["channel"], table["draw"], strict=True))
    path.parent.mkdir(parents=True, exist_ok=True)
    about.write_text(json.dumps(origin, indent=1) + "\n", encoding="utf-8")
    path.write_text(",".join(COLUMNS) + "\n", encoding="utf-8")
    return set()


def _cut_torn_line(path: Path) -> None:
    """Drop a last line that a killed run did not finish."""
    text = path.read_bytes()
    if not text.endswith(b"\n"):
        path.write_bytes(text[: text.rfind(b"\n") + 1])


def _origin(meter: PerplexityMeter) -> dict[str, str]:
    """Return what the records depend on besides their plan."""
    tokens = "|".join(str(ids.tolist()) for ids in meter.groups)
    return {
        "model": meter.model.identity,
        "texts": hashlib.sha256(tokens.encode()).hexdigest()[:16],
    }
