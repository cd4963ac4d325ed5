"""Outcomes on disk: one SQLite file, so that nothing learned is lost when the router dies."""

from __future__ import annotations

import json
import sqlite3
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from icl_optimizer.closing import Closing
from icl_optimizer.decision import Outcome
from icl_optimizer.errors import ConfigurationError
from icl_optimizer.problem import Context, Problem

FORMAT_VERSION = 1
_AGAIN_S = 1.0
_MOST_PENDING = 100_000
_SCHEMA = """
CREATE TABLE IF NOT EXISTS about (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS outcomes (
    id INTEGER PRIMARY KEY, at REAL NOT NULL, label TEXT NOT NULL, outcome TEXT NOT NULL
);
"""

Row = tuple[float, str, str]


class PoolStore(Closing):
    """Outcomes in the order in which they came, written as they come.

    A write is committed before :meth:`append` returns and survives the end of the process. Where
    the disk is full or broken the outcomes wait in memory and are written when that is possible
    again; whoever learns from them does so all the same.

    Args:
        path: The file; made if it is not there.
        problem: Labels and columns; a file with others is refused.

    Raises:
        ConfigurationError: The file is not such a pool, or one of another problem.
    """

    def __init__(self, path: Path, problem: Problem) -> None:
        """Open the file."""
        self.path = path
        self._problem = problem
        self._pending: deque[Row] = deque()
        self._next_try = 0.0
        self.lost = 0
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._db = self._opened()
        except (sqlite3.DatabaseError, OSError) as error:
            raise ConfigurationError(
                f"pool is '{path}': {error}; allowed: a pool of this router, or a file that can be "
                "made."
            ) from error

    @property
    def pending(self) -> int:
        """Outcomes that are not on disk yet."""
        return len(self._pending)

    def __len__(self) -> int:
        """Return how many outcomes are on disk."""
        return int(self._db.execute("SELECT count(*) FROM outcomes").fetchone()[0])

    def append(self, outcome: Outcome) -> None:
        """Write an outcome, and those that could not be written before."""
        fields = asdict(outcome) | {"context": dict(outcome.context)}
        row = time.time(), self._problem.labels[outcome.action], json.dumps(fields)
        if len(self._pending) >= _MOST_PENDING:
            self._pending.popleft()
            self.lost += 1
        self._pending.append(row)
        if time.monotonic() >= self._next_try:
            self.flush()

    def flush(self) -> bool:
        """Write what waits; return whether nothing waits any more."""
        while self._pending:
            batch = [self._pending[i] for i in range(min(1000, len(self._pending)))]
            try:
                with self._db:
                    self._db.executemany(
                        "INSERT INTO outcomes (at, label, outcome) VALUES (?, ?, ?)", batch
                    )
            except sqlite3.Error:
                # full or broken: what is in memory stays there
                self._next_try = time.monotonic() + _AGAIN_S
                return False
            for _ in batch:
                self._pending.popleft()
        return True

    def outcomes(self) -> Iterator[Outcome]:
        """Yield all outcomes on disk, oldest first."""
        for (text,) in self._db.execute("SELECT outcome FROM outcomes ORDER BY id"):
            fields: dict[str, Any] = json.loads(text)
            seen = fields["observation"]
            yield Outcome(
                **fields
                | {
                    "context": Context(fields["context"]),
                    "observation": None if seen is None else tuple(seen),
                }
            )

    def close(self) -> None:
        """Write what waits, and close the file."""
        self.flush()
        self.lost += len(self._pending)
        self._db.close()

    def _opened(self) -> sqlite3.Connection:
        # who finds it locked does not wait: what cannot be written now is written later
        db = sqlite3.connect(self.path, timeout=0.0)
        try:
            # a commit reaches the system's cache, which outlives the process
            db.execute("PRAGMA journal_mode = WAL")
            db.execute("PRAGMA synchronous = NORMAL")
            with db:
                db.executescript(_SCHEMA)
                self._check(db)
        except BaseException:
            db.close()
            raise
        return db

    def _check(self, db: sqlite3.Connection) -> None:
        mine = {
            "format": f"icl-optimizer pool {FORMAT_VERSION}",
            "labels": json.dumps(self._problem.labels),
            "keywords": json.dumps(self._problem.keywords),
        }
        known = dict(db.execute("SELECT name, value FROM about").fetchall())
        for name, value in mine.items():
            if name not in known:
                db.execute("INSERT INTO about VALUES (?, ?)", (name, value))
            elif known[name] != value:
                raise ConfigurationError(
                    f"pool '{self.path}' has {name} {known[name]}; allowed: {value}. Another fleet "
                    "needs a pool of its own."
                )
