"""Runs what reproduces the papers, part by part, and keeps small tables and a page of it."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from icl_optimizer.comparison.description import versions
from icl_optimizer.comparison.store import write_json
from icl_optimizer.errors import ConfigurationError, unknown_name
from icl_optimizer.studies.reproduction_data import (
    HOME,
    Origin,
    PartData,
    machine,
    write_part,
)
from icl_optimizer.studies.reproduction_page import write_page
from icl_optimizer.studies.reproduction_parts import PARTS, Part
from icl_optimizer.studies.reproduction_sources import UnfinishedError

Runner = Callable[[Part, Path], int]
"""Runs a part's command with a folder for all parts, and returns its exit status."""
Say = Callable[[str], object]


@dataclass
class Told:
    """How it went.

    Attributes:
        page: What was written.
        collected: Parts whose tables are on the page as of now.
        missing: Parts without results, with the reason.
        failed: Parts whose command failed, with the reason.
    """

    page: Path
    collected: list[str] = field(default_factory=list)
    missing: dict[str, str] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)


def reproduce(
    out: Path,
    page: Path,
    *,
    data: Path = HOME,
    only: Iterable[str] = (),
    collect: bool = False,
    say: Say = print,
    run: Runner | None = None,
) -> Told:
    """Run the parts that have not finished yet, keep their tables, and write the page.

    A part that fails is told and does not stop the others; run again, it goes on where it was.

    Args:
        out: Folder of all raw results.
        page: The page; pictures go into ``figures`` beside it.
        data: Folder for the tables that the page is written from. Parts without results now keep
            what was there.
        only: Names of parts; empty for all.
        collect: Run nothing; only keep what there is, and write the page.
        say: Gets a line when a part begins and when it ends.
        run: What runs a part's command; None for a process of its own.

    Raises:
        ConfigurationError: There is no part of such a name, or another run is at work in ``out``.
    """
    chosen, run = chosen_parts(only), run or run_command
    told = Told(page)
    with nullcontext() if collect else alone(out):
        for number, part in enumerate(chosen, 1):
            label = f"[{number}/{len(chosen)}] {part.name}"
            if not collect:
                _run_once(part, out, label, told, say, run)
            _collect(part, out, data, page, told)
    write_page(data, page)
    return told


@contextmanager
def alone(out: Path) -> Iterator[None]:
    """Hold the folder, so that no other run writes into it.

    The process of a part holds it, too: it may outlive this one, which was killed.

    Raises:
        ConfigurationError: Another run holds it.
    """
    path = out / "parts" / "lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigurationError(
                f"--out '{out}' is in use by another run; allowed: a folder of its own, or this "
                "one when that run has ended."
            ) from None
        os.set_inheritable(file.fileno(), True)
        yield


def chosen_parts(only: Iterable[str]) -> Sequence[Part]:
    """Return the parts of these names in their order; all for none.

    Raises:
        ConfigurationError: There is no such part.
    """
    names = list(only)
    known = [part.name for part in PARTS]
    for name in names:
        if name not in known:
            raise unknown_name("part", name, known)
    return [part for part in PARTS if not names or part.name in names]


def run_command(part: Part, out: Path) -> int:
    """Run the part's command in a process of its own; what it prints goes into a log."""
    log = log_path(part, out)
    log.parent.mkdir(parents=True, exist_ok=True)
    code = "from icl_optimizer.cli import main; main()"
    with log.open("a", encoding="utf-8") as file:
        command = [sys.executable, "-c", code, *part.words(out)]
        # only the lock of the folder is inherited: Python makes no other file inheritable
        done = subprocess.run(
            command, stdout=file, stderr=subprocess.STDOUT, check=False, close_fds=False
        )
    return done.returncode


def log_path(part: Part, out: Path) -> Path:
    """Return where the part's output goes."""
    return out / "parts" / f"{part.name}.log"


def _record_path(part: Part, out: Path) -> Path:
    return out / "parts" / f"{part.name}.json"


def _run_once(part: Part, out: Path, label: str, told: Told, say: Say, run: Runner) -> None:
    """Run a part unless the same command has ended well in this folder before."""
    record = _record_path(part, out)
    kept = json.loads(record.read_text()) if record.exists() else {}
    if kept.get("command") == part.command and (out / part.home).exists():
        say(f"{label}: kept from {kept['date']}")
        return
    say(f"{label}: running; output in {log_path(part, out)}")
    record.parent.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    status = run(part, out)
    seconds = time.monotonic() - began
    if "command" not in kept:
        # what an attempt that failed had finished was not repeated
        seconds += kept.get("seconds", 0)
    if status:
        write_json(record, {"seconds": round(seconds)})
        told.failed[part.name] = f"exit status {status}, see {log_path(part, out)}"
        say(f"{label}: failed after {seconds / 60:.1f} min, {told.failed[part.name]}")
        return
    write_json(
        record,
        {
            "command": part.command,
            "date": f"{datetime.now(UTC):%Y-%m-%d}",
            "seconds": round(seconds),
            "versions": versions(),
            "machine": machine(),
        },
    )
    say(f"{label}: finished after {seconds / 60:.1f} min")


def _collect(part: Part, out: Path, data: Path, page: Path, told: Told) -> None:
    """Keep the part's tables and pictures; without results, say why."""
    try:
        found = part.find(out)
    except UnfinishedError as error:
        told.missing[part.name] = str(error)
        return
    settings = dict(found.settings)
    origin = Origin(**_origin(part, out), settings=settings, said=found.said)
    write_part(data, PartData(part.name, origin, found.tables))
    for name, source in part.figures.items():
        if (out / source).exists():
            (page.parent / "figures").mkdir(parents=True, exist_ok=True)
            shutil.copyfile(out / source, page.parent / "figures" / name)
    told.collected.append(part.name)


def _origin(part: Part, out: Path) -> dict[str, Any]:
    """Return command, date, seconds, versions and machine of what a part measured.

    Where the command was run by hand nobody wrote these down: then the day is that of the results,
    versions are those in the comparison's folder or, as the machine, the present ones.
    """
    record = _record_path(part, out)
    kept: dict[str, Any] = json.loads(record.read_text()) if record.exists() else {}
    if "command" in kept:
        return kept
    home = out / part.home
    config = home / "config.json"
    known = json.loads(config.read_text())["versions"] if config.exists() else versions()
    newest = home / "summary.csv" if home.is_dir() else home
    day = datetime.fromtimestamp(newest.stat().st_mtime, UTC)
    return {
        "command": part.command,
        "date": f"{day:%Y-%m-%d}",
        "seconds": None,
        "versions": known,
        "machine": machine(),
    }
