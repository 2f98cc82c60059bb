"""The durable record of debates: every event is committed here before its protocol sees it.

One SQLite file an arena, in WAL mode, written by one process that holds the file's lock. What a machine did is not
kept: the events are, and replaying them gives it again.
"""

from __future__ import annotations

import fcntl
import os
import sqlite3
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Literal

import msgspec

from protocols.errors import JournalError
from protocols.machine import Event, Replied

SCHEMA_VERSION = 1
Sync = Literal["full", "normal"]

_TABLES = """
BEGIN IMMEDIATE;
CREATE TABLE IF NOT EXISTS meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS debates (num INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, graph BLOB, closed_at REAL);
CREATE TABLE IF NOT EXISTS events (
    num INTEGER NOT NULL, seq INTEGER NOT NULL, at REAL NOT NULL, body BLOB NOT NULL, PRIMARY KEY (num, seq)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS notes (at REAL NOT NULL, debate TEXT NOT NULL, kind TEXT NOT NULL, text TEXT NOT NULL);
COMMIT;
"""

_ENCODER = msgspec.msgpack.Encoder()
_DECODER = msgspec.msgpack.Decoder(Event)


class EventEntry(msgspec.Struct, frozen=True):
    """One event of one debate; ``seq`` counts from 0. ``at`` is wall-clock time, for timelines alone."""

    debate_id: str
    seq: int
    at: float
    event: Event


class CloseEntry(msgspec.Struct, frozen=True):
    """A closed debate's graph, encoded."""

    debate_id: str
    at: float
    graph: bytes


class NoteEntry(msgspec.Struct, frozen=True):
    """What no machine takes: ``late`` replies, which were paid for, and why a debate was ``set_aside``."""

    debate_id: str
    at: float
    kind: Literal["late", "set_aside"]
    text: str


Entry = EventEntry | CloseEntry | NoteEntry


class Journal:
    """Open one arena's journal for writing, creating it where it is missing.

    Args:
        path: the file; its folder must exist.
        fingerprint: identity of what is being run. A journal of another fingerprint is refused, never mixed.
        sync: ``full`` survives loss of power, ``normal`` survives the death of any process.
        max_size_mb: refuse to grow beyond; 0 for no limit.
        lock_wait_s: how long to wait for a holder that is about to go.
    Raises: JournalError: held by another process, written by something else, not writable, damaged.
    """

    def __init__(
        self, path: Path, *, fingerprint: str, sync: Sync = "full", max_size_mb: int = 0, lock_wait_s: float = 0.0
    ) -> None:
        self.path = path
        self._nums: dict[str, int] = {}
        self._using = threading.Lock()  # commits run in threads of their own; closing waits for the one under way
        self._lock_fd: int | None = _take_lock(path.with_suffix(".lock"), lock_wait_s)
        try:
            self._db = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        except sqlite3.Error as err:
            os.close(self._lock_fd)
            raise JournalError(f"journal {path}: cannot be opened for writing: {err}") from err
        try:
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute(f"PRAGMA synchronous={sync.upper()}")
            if max_size_mb:
                page = self._db.execute("PRAGMA page_size").fetchone()[0]
                self._db.execute(f"PRAGMA max_page_count={max_size_mb * 1024 * 1024 // page}")
            self._db.executescript(_TABLES)
            self._check_meta(fingerprint)
            self._nums = dict(self._db.execute("SELECT id, num FROM debates"))
        except sqlite3.Error as err:
            self.close()
            raise JournalError(f"journal {path}: cannot be opened for writing: {err}") from err
        except JournalError:
            self.close()
            raise

    def _check_meta(self, fingerprint: str) -> None:
        ours = {"schema_version": str(SCHEMA_VERSION), "fingerprint": fingerprint}
        with self._transaction():
            self._db.executemany("INSERT OR IGNORE INTO meta VALUES (?, ?)", ours.items())
            found = dict(self._db.execute("SELECT key, value FROM meta"))
        for key, value in ours.items():
            if found[key] != value:
                raise JournalError(
                    f"journal {self.path}: its {key} is {found[key]}, this run's is {value}; "
                    "resume with the recipe it was started with, or choose another --run-dir"
                )

    def commit(self, entries: Iterable[Entry]) -> None:
        """Write all entries in one transaction, or none. Blocks until they are durable.

        Raises: JournalError: the disk is full or fails; nothing of this batch was written.
        """
        try:
            with self._using, self._transaction():
                fresh: dict[str, int] = {}
                for entry in entries:
                    self._write(entry, fresh)
            self._nums |= fresh
        except (sqlite3.Error, OSError) as err:
            raise JournalError(
                f"journal {self.path}: cannot write: {err}; free some space, then go on with `moot resume`"
            ) from err

    @property
    def size_bytes(self) -> int:
        """On disk, with what is not yet folded into the file."""
        files = (self.path, self.path.with_name(self.path.name + "-wal"))
        return sum(file.stat().st_size for file in files if file.exists())

    def holds(self, debate_id: str) -> bool:
        """Whether the debate was ever opened here."""
        return debate_id in self._nums

    def answered(self, debate_id: str) -> set[str]:
        """The asks of a debate whose replies are on record. Raises: JournalError: it cannot be read."""
        try:
            with self._using:
                rows = self._db.execute(
                    "SELECT body FROM events WHERE num = ?", (self._nums.get(debate_id, 0),)
                ).fetchall()
        except sqlite3.Error as err:
            raise JournalError(f"journal {self.path}: cannot be read: {err}") from err
        events = (_DECODER.decode(body) for (body,) in rows)
        return {event.reply.ask_id for event in events if isinstance(event, Replied)}

    def _write(self, entry: Entry, fresh: dict[str, int]) -> None:
        if isinstance(entry, EventEntry):
            num = self._nums.get(entry.debate_id) or fresh.get(entry.debate_id)
            if num is None:
                num = self._db.execute("INSERT INTO debates (id) VALUES (?)", (entry.debate_id,)).lastrowid or 0
                fresh[entry.debate_id] = num
            body = _ENCODER.encode(entry.event)
            self._db.execute("INSERT INTO events VALUES (?, ?, ?, ?)", (num, entry.seq, entry.at, body))
        elif isinstance(entry, CloseEntry):
            values = (entry.graph, entry.at, entry.debate_id)
            self._db.execute("UPDATE debates SET graph = ?, closed_at = ? WHERE id = ?", values)
        else:
            self._db.execute(
                "INSERT INTO notes VALUES (?, ?, ?, ?)", (entry.at, entry.debate_id, entry.kind, entry.text)
            )

    def _transaction(self) -> _Transaction:
        return _Transaction(self._db)

    def close(self) -> None:
        """Let go of the file and its lock, once a commit under way is over. Safe to call twice."""
        with self._using:
            self._db.close()
            if self._lock_fd is not None:
                os.close(self._lock_fd)
                self._lock_fd = None


class _Transaction:
    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db

    def __enter__(self) -> None:
        self._db.execute("BEGIN IMMEDIATE")

    def __exit__(self, kind: type[BaseException] | None, err: BaseException | None, trace: object) -> None:
        try:
            if kind is None:
                self._db.execute("COMMIT")
        finally:
            if (
                self._db.in_transaction
            ):  # the body raised, or the commit did; a full disk may have rolled back by itself
                self._db.execute("ROLLBACK")


def _take_lock(path: Path, wait_s: float) -> int:
    """Raises: JournalError: another process holds it, or the folder cannot be written."""
    try:
        fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as err:
        raise JournalError(f"journal folder {path.parent}: cannot be written: {err.strerror}") from err
    deadline = time.monotonic() + wait_s
    while not _locked(fd):
        if time.monotonic() >= deadline:
            os.close(fd)
            raise JournalError(
                f"{path.parent} is in use by another run that is still going; wait for it, or choose another --run-dir"
            )
        time.sleep(0.1)
    return fd


def _locked(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


class Recorded(msgspec.Struct, frozen=True):
    """One debate as the journal holds it. ``graph`` is set once it is closed."""

    debate_id: str
    events: list[tuple[float, Event]]
    graph: bytes | None
    closed_at: float | None


def _connect_for_reading(path: Path) -> sqlite3.Connection:
    """``as_uri`` quotes what would mean something else in a URI: a folder may be called ``a#1``."""
    return sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)


def read_journal(path: Path, *, only_open: bool = False) -> Iterator[Recorded]:
    """Every debate on record, in the order they were opened; safe beside a writer.

    A file without any table yet is a journal whose writer died before its first commit: it holds nothing.

    Raises: JournalError: not a journal, or damaged.
    """
    try:
        with closing(_connect_for_reading(path)) as db:
            if not db.execute("SELECT 1 FROM sqlite_master").fetchone():
                return
            where = "WHERE graph IS NULL" if only_open else ""
            for num, debate_id, graph, closed_at in db.execute(
                f"SELECT num, id, graph, closed_at FROM debates {where} ORDER BY num"
            ).fetchall():
                rows = db.execute("SELECT at, body FROM events WHERE num = ? ORDER BY seq", (num,))
                events = [(at, _DECODER.decode(body)) for at, body in rows]
                yield Recorded(debate_id, events, graph, closed_at)
    except (sqlite3.Error, msgspec.MsgspecError) as err:
        raise JournalError(f"journal {path}: cannot be read: {err}") from err


def read_graphs(path: Path) -> Iterator[bytes]:
    """The graphs of the closed debates, in the order they were opened, few at a time; safe beside a writer.

    Raises: JournalError: not a journal, or damaged.
    """
    try:
        with closing(_connect_for_reading(path)) as db:
            num = 0
            if not db.execute("SELECT 1 FROM sqlite_master").fetchone():
                return
            page = "SELECT num, graph FROM debates WHERE num > ? AND graph IS NOT NULL ORDER BY num LIMIT 64"
            while rows := db.execute(page, (num,)).fetchall():
                num = rows[-1][0]
                yield from (graph for _, graph in rows)
    except sqlite3.Error as err:
        raise JournalError(f"journal {path}: cannot be read: {err}") from err


def read_notes(path: Path) -> list[NoteEntry]:
    """Raises: JournalError: not a journal."""
    try:
        with closing(_connect_for_reading(path)) as db:
            return [NoteEntry(debate, at, kind, text) for at, debate, kind, text in db.execute("SELECT * FROM notes")]
    except sqlite3.Error as err:
        raise JournalError(f"journal {path}: cannot be read: {err}") from err
