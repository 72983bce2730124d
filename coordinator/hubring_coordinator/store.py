"""Where the coordinator's rows outlive it. What the rows mean is the machine's business."""

import fcntl
import json
import os
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import IO, Any, Protocol

from hubring_common.errors import Busy, HubringError, UsageError
from hubring_coordinator.machine.events import Put

FILE = "coordinator.db"
LOCK = "coordinator.lock"
SCHEMA = 1
"""Of the table; a file of another one is refused."""

_CREATE = """
CREATE TABLE IF NOT EXISTS rows (
  kind TEXT NOT NULL, key TEXT NOT NULL, value TEXT NOT NULL, PRIMARY KEY (kind, key)
) WITHOUT ROWID
"""


class Store(Protocol):
    def commit(self, puts: Sequence[Put]) -> None:
        """All of `puts` or none, in order; durable when this returns. Raises HubringError."""
        ...

    def load(self) -> list[Put]:
        """Every row, in no order that means anything."""
        ...

    def close(self) -> None: ...


class MemoryStore:
    """Rows that end with the process: for a run that is not to outlive its coordinator."""

    def __init__(self) -> None:
        self._rows: dict[tuple[str, str], str] = {}

    def commit(self, puts: Sequence[Put]) -> None:
        written = [(put.kind, put.key, _text(put.value)) for put in puts]
        for kind, key, text in written:
            if text is None:
                self._rows.pop((kind, key), None)
            else:
                self._rows[kind, key] = text

    def load(self) -> list[Put]:
        return [Put(kind, key, json.loads(text)) for (kind, key), text in self._rows.items()]

    def close(self) -> None:
        self._rows.clear()


class SqliteStore:
    """One SQLite file in WAL mode, fsynced at each commit; one coordinator a folder.

    Raises UsageError where the folder cannot be used, is another coordinator's, or holds a file
    that is not ours or is damaged. One thread at a time.
    """

    def __init__(self, folder: Path) -> None:
        self._file = folder / FILE
        self._lock = _lock(folder)
        try:
            self._db = self._open()
        except HubringError:
            self._lock.close()
            raise

    def commit(self, puts: Sequence[Put]) -> None:
        with self._explained(), _transaction(self._db):
            for put in puts:
                self._write(put)

    def load(self) -> list[Put]:
        with self._explained(), closing(self._db.execute("SELECT kind, key, value FROM rows")) as c:
            found = c.fetchall()
        try:
            return [Put(kind, key, json.loads(text)) for kind, key, text in found]
        except ValueError as error:
            raise self._damaged(str(error)) from None

    def close(self) -> None:
        self._db.close()
        self._lock.close()

    def _write(self, put: Put) -> None:
        text = _text(put.value)
        if text is None:
            self._db.execute("DELETE FROM rows WHERE kind = ? AND key = ?", (put.kind, put.key))
        else:
            values = put.kind, put.key, text
            self._db.execute("INSERT OR REPLACE INTO rows VALUES (?, ?, ?)", values)

    def _open(self) -> sqlite3.Connection:
        with self._explained():
            db = sqlite3.connect(self._file, isolation_level=None, check_same_thread=False)
            try:
                self._prepare(db)
            except BaseException:
                db.close()
                raise
        return db

    def _prepare(self, db: sqlite3.Connection) -> None:
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = FULL")
        (health,) = db.execute("PRAGMA quick_check(1)").fetchone()
        if health != "ok":
            raise self._damaged(health)
        (schema,) = db.execute("PRAGMA user_version").fetchone()
        if schema not in {0, SCHEMA}:
            fact = f"{self._file} has schema {schema}; this version writes schema {SCHEMA}"
            raise UsageError(fact, todo="give --state another folder, or use that version")
        with _transaction(db):
            db.execute(_CREATE)
            db.execute(f"PRAGMA user_version = {SCHEMA}")

    def _damaged(self, how: str) -> UsageError:
        fact = f"{self._file} is damaged: {how}"
        return UsageError(fact, todo=f"move {self._file} away; the next start begins a new run")

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """Turns sqlite3's errors into ours: what it was, and what helps."""
        try:
            yield
        except sqlite3.Error as error:
            raise self._explain(error) from error

    def _explain(self, error: sqlite3.Error) -> HubringError:
        match getattr(error, "sqlite_errorcode", 0) & 0xFF:  # the primary code
            case sqlite3.SQLITE_FULL:
                return Busy(f"the disk of {self._file} is full", todo="free space, then restart")
            case sqlite3.SQLITE_CORRUPT | sqlite3.SQLITE_NOTADB:
                return self._damaged(str(error))
            case sqlite3.SQLITE_BUSY | sqlite3.SQLITE_LOCKED:
                fact = f"another program holds {self._file}"
                return Busy(fact, todo="close it; only the coordinator may use that file")
            case sqlite3.SQLITE_CANTOPEN | sqlite3.SQLITE_READONLY | sqlite3.SQLITE_PERM:
                fact = f"cannot write {self._file}: {error}"
                return UsageError(fact, todo="give --state a folder that can be written")
            case _:
                return Busy(f"cannot write {self._file}: {error}", todo="look at its disk")


@contextmanager
def _transaction(db: sqlite3.Connection) -> Iterator[None]:
    db.execute("BEGIN IMMEDIATE")
    try:
        yield
        db.execute("COMMIT")
    except BaseException:
        if db.in_transaction:
            db.execute("ROLLBACK")
        raise


def _text(value: Any) -> str | None:
    return None if value is None else json.dumps(value, separators=(",", ":"))


def _lock(folder: Path) -> IO[str]:
    """The folder's lock file, locked. The lock goes with the process, however it ends."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / LOCK).open("a+")
    except OSError as error:
        fact = f"cannot use the state folder {folder}: {error.strerror}"
        raise UsageError(fact, todo="give --state a folder that can be written") from None
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        file.seek(0)
        fact = f"another coordinator (pid {file.read().strip() or 'unknown'}) uses {folder}"
        file.close()
        raise UsageError(fact, todo="stop it, or give --state another folder") from None
    file.truncate(0)
    file.write(f"{os.getpid()}\n")
    file.flush()
    return file
