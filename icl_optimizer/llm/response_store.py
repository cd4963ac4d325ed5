"""Answers of language models on disk: one SQLite file that several processes may share."""

from __future__ import annotations

import fcntl
import os
import sqlite3
import threading
import warnings
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import TypeVar
from urllib.parse import quote

from icl_optimizer.errors import ConfigurationError

FORMAT_VERSION = 2
FILE = "responses.sqlite3"

T = TypeVar("T")

_BUSY_SECONDS = 30.0  # how long a write waits for those of other processes
_SCHEMA = f"""
BEGIN IMMEDIATE;
CREATE TABLE IF NOT EXISTS entries (
    key TEXT PRIMARY KEY, answer TEXT NOT NULL, calls INTEGER NOT NULL,
    prompt_tokens INTEGER NOT NULL, reused_tokens INTEGER NOT NULL,
    completion_tokens INTEGER NOT NULL
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS failures (
    recording TEXT NOT NULL, key TEXT NOT NULL, number INTEGER NOT NULL, failure TEXT,
    PRIMARY KEY (recording, key, number)
) WITHOUT ROWID;
PRAGMA user_version = {FORMAT_VERSION};
COMMIT;
"""


class ResponseCacheWarning(UserWarning):
    """The response cache cannot be written or read as it should; decisions go on without."""


@dataclass(frozen=True)
class Entry:
    """One answer and what it took.

    Attributes:
        answer: JSON text.
        calls: Requests the model counted for it.
        prompt_tokens: Tokens of its prompt.
        reused_tokens: Those of them that came from a prefix cache.
        completion_tokens: Tokens the model produced.
    """

    answer: str
    calls: int = 0
    prompt_tokens: int = 0
    reused_tokens: int = 0
    completion_tokens: int = 0


@dataclass(frozen=True)
class Failure:
    """One time that a request was not answered.

    Attributes:
        number: The same for all that were asked together; later ones have higher numbers.
        text: What happened, as JSON; empty for a request that was not sent because another one
            of the same batch had failed.
    """

    number: int
    text: str


class ResponseStore:
    """Answers and failures by key, in ``responses.sqlite3``. Safe for threads and processes.

    What was written first stays, so that everybody who asks for a key gets the same answer. A
    store for reuse never fails: where it cannot be read it is empty, where it cannot be written it
    keeps nothing, and the first time that happens it warns.

    Args:
        folder: Made if it is not there.
        replay: Only read; whatever is wrong with the file is an error.
    """

    def __init__(self, folder: Path, *, replay: bool) -> None:
        """Open the file.

        Raises:
            ConfigurationError: The file was written by another version; or, for a replay, it is
                missing or damaged.
        """
        self.folder = folder
        self._path = folder / FILE
        self._replay = replay
        self._lock = threading.Lock()
        self._keeps = False
        self._db: sqlite3.Connection | None = None
        if replay:
            self._db = self._open_for_replay()
        else:
            self._open_for_reuse()

    def find(self, keys: Iterable[str]) -> dict[str, Entry]:
        """Return the entries that are there."""
        command = "SELECT answer, calls, prompt_tokens, reused_tokens, completion_tokens FROM "
        rows = self._select(command + "entries WHERE key = ?", keys)
        return {key: Entry(str(row[0]), *map(int, row[1:])) for key, row in rows.items()}

    def failures(self, recording: str, keys: Iterable[str]) -> dict[str, list[Failure]]:
        """Return the failures of a recording, in order."""
        command = (
            "SELECT number, failure FROM failures WHERE recording = ? AND key = ? ORDER BY number"
        )

        def run(db: sqlite3.Connection) -> dict[str, list[Failure]]:
            rows = {key: db.execute(command, (recording, key)).fetchall() for key in set(keys)}
            return {k: [Failure(n, t or "") for n, t in row] for k, row in rows.items() if row}

        return self._run(run, "read") or {}

    def keep(self, entries: Mapping[str, Entry]) -> dict[str, Entry]:
        """Write entries and return those that hold: another process may have been first."""
        rows = [(key, *astuple(entry)) for key, entry in entries.items()]
        command = "INSERT OR IGNORE INTO entries VALUES (?, ?, ?, ?, ?, ?)"
        self._write(lambda db: db.executemany(command, rows))
        return {**entries, **(self.find(entries) if self._keeps else {})}

    def keep_failures(self, recording: str, failures: Mapping[str, str | None]) -> None:
        """Write the failures of requests that were asked together, under the next number.

        Args:
            recording: Which one they belong to.
            failures: JSON texts; None for those that were not sent.
        """
        command = "SELECT COALESCE(MAX(number), 0) + 1 FROM failures WHERE recording = ?"

        def run(db: sqlite3.Connection) -> None:
            (number,) = db.execute(command, (recording,)).fetchone()
            rows = [(recording, key, number, text) for key, text in failures.items()]
            db.executemany("INSERT INTO failures VALUES (?, ?, ?, ?)", rows)

        self._write(run)

    def forget_failures(self, recording: str) -> None:
        """Delete the failures of a recording."""
        command = "SELECT 1 FROM failures WHERE recording = ? LIMIT 1"
        if self._run(lambda db: db.execute(command, (recording,)).fetchone(), "read") is None:
            return  # a file that cannot be written is not written for nothing
        self._write(lambda db: db.execute("DELETE FROM failures WHERE recording = ?", (recording,)))

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            if self._db is not None:
                self._db.close()
            self._db, self._keeps = None, False

    def _select(self, command: str, keys: Iterable[str]) -> dict[str, tuple[str | int, ...]]:
        def run(db: sqlite3.Connection) -> dict[str, tuple[str | int, ...]]:
            found = ((key, db.execute(command, (key,)).fetchone()) for key in keys)
            return {key: row for key, row in found if row is not None}

        return self._run(run, "read") or {}

    def _write(self, change: Callable[[sqlite3.Connection], object]) -> None:
        def run(db: sqlite3.Connection) -> None:
            try:
                db.execute("BEGIN IMMEDIATE")
                change(db)
                db.execute("COMMIT")
            finally:
                if db.in_transaction:
                    db.execute("ROLLBACK")

        if self._keeps:
            self._run(run, "written")

    def _run(self, action: Callable[[sqlite3.Connection], T], verb: str) -> T | None:
        with self._lock:
            if self._db is None:
                return None
            try:
                return action(self._db)
            except sqlite3.Error as error:
                if self._replay:
                    raise self._unusable(f"cannot be {verb}: {error}") from error
                self._keeps = False
                if verb == "read":
                    self._db.close()
                    self._db = None
                failure = error
        self._warn(verb, failure)
        return None

    def _open_for_replay(self) -> sqlite3.Connection:
        if not self._path.is_file():
            raise ConfigurationError(
                f"there is no recording in the folder '{self.folder}': it has no {FILE}. Record "
                "one with the same settings, without the replay."
            )
        try:
            db = self._connect("rw")
        except sqlite3.Error as error:
            raise self._unusable(f"cannot be read: {error}") from error
        if self._version(db) == 0:
            db.close()
            raise self._unusable("holds no recording")
        return db

    def _open_for_reuse(self) -> None:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with _alone(self.folder):
                db = self._sound()
                if self._version(db) == 0:
                    self._begin(db)
        except (OSError, sqlite3.Error) as error:
            self._warn("written", error)
        else:
            self._db, self._keeps = db, True

    def _begin(self, db: sqlite3.Connection) -> None:
        """Make the tables; in WAL mode readers and a writer do not wait for each other."""
        try:
            db.execute("PRAGMA journal_mode = WAL")
            db.executescript(_SCHEMA)
        except sqlite3.Error:
            db.close()
            raise

    def _sound(self) -> sqlite3.Connection:
        """Return a connection; a damaged file is moved aside and a new one begun."""
        try:
            return self._connect("rwc")
        except sqlite3.DatabaseError as error:
            if not _damaged(error):
                raise
            aside = _free_name(self._path)
            for suffix in ("", "-wal", "-shm"):
                if (part := Path(f"{self._path}{suffix}")).exists():
                    part.rename(f"{aside}{suffix}")
            warnings.warn(
                f"the response cache '{self._path}' is damaged ({error}); it was moved to "
                f"'{aside}' and a new one is begun.",
                ResponseCacheWarning,
                stacklevel=6,
            )
        return self._connect("rwc")

    def _connect(self, mode: str) -> sqlite3.Connection:
        """Return a connection that was read from, to a file that is not damaged."""
        try:
            return self._checked(f"mode={mode}")
        except sqlite3.OperationalError:
            wal = Path(f"{self._path}-wal")
            if not self._path.is_file() or (wal.exists() and wal.stat().st_size):
                raise
            # beside a file in a read-only folder SQLite cannot put what it shares with others
            return self._checked("immutable=1")

    def _checked(self, options: str) -> sqlite3.Connection:
        db = sqlite3.connect(
            f"file:{quote(str(self._path.absolute()))}?{options}",
            uri=True,
            timeout=_BUSY_SECONDS,
            isolation_level=None,
            check_same_thread=False,
        )
        try:
            (found,) = db.execute("PRAGMA quick_check(1)").fetchone()
            if found != "ok":
                raise _Damaged(" ".join(found.split()))
            db.execute("PRAGMA synchronous = NORMAL")
        except BaseException:
            db.close()
            raise
        # also at the end of the process, so that what is in the WAL gets into the file
        weakref.finalize(self, db.close)
        return db

    def _version(self, db: sqlite3.Connection) -> int:
        """Return the format of the file, 0 for a new one."""
        (found,) = db.execute("PRAGMA user_version").fetchone()
        if found not in (0, FORMAT_VERSION):
            db.close()
            raise self._unusable(
                f"has format {found}, this version of the library reads {FORMAT_VERSION}"
            )
        return int(found)

    def _unusable(self, why: str) -> ConfigurationError:
        return ConfigurationError(
            f"the response cache '{self._path}' {why}. Use another folder, or a copy of the file."
        )

    def _warn(self, verb: str, error: Exception) -> None:
        warnings.warn(
            f"the response cache in '{self.folder}' cannot be {verb} ({error}); from here on no "
            "answers are kept, so this run cannot be replayed.",
            ResponseCacheWarning,
            stacklevel=5,
        )


class _Damaged(sqlite3.DatabaseError):
    """SQLite's own check found something."""


def _damaged(error: sqlite3.DatabaseError) -> bool:
    code = getattr(error, "sqlite_errorcode", None) or 0
    found = code & 0xFF in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
    return found or isinstance(error, _Damaged)


def _free_name(path: Path) -> Path:
    number = 1
    while (aside := path.with_name(f"{path.name}.damaged-{number}")).exists():
        number += 1
    return aside


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Keep other processes from opening, and perhaps moving, the file in ``folder``."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
