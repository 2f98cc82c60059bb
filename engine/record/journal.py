"""The durable record of debates: every event is committed here before its protocol sees it.

One SQLite file an arena, in WAL mode, written by one process that holds the file's lock. What a machine did is not
kept: the events are, and replaying them gives it again. How the file is laid out: ``engine.record.journal_rows``.
"""

from __future__ import annotations

import os
import sqlite3
import threading
from array import array
from collections.abc import Collection, Iterable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Literal

import msgspec

from engine.record.journal_lock import refuse_half_repaired, take_lock
from engine.record.journal_rows import (
    INSERT,
    SCHEMA_VERSION,
    TABLES,
    Row,
    checked,
    create,
    is_whole,
    migrate,
    version_of,
)
from protocols.errors import JournalError
from protocols.machine import Event, Replied

Sync = Literal["full", "normal"]
NoteKind = Literal["late", "set_aside", "spent"]

_ENCODER = msgspec.msgpack.Encoder()
_DECODER = msgspec.msgpack.Decoder(Event)


class EventEntry(msgspec.Struct, frozen=True, gc=False):
    """One event of one debate; ``seq`` counts from 0. ``at`` is wall-clock time, for timelines alone."""

    debate_id: str
    seq: int
    at: float
    event: Event


class CloseEntry(msgspec.Struct, frozen=True, gc=False):
    """A closed debate's graph, encoded."""

    debate_id: str
    at: float
    graph: bytes


class NoteEntry(msgspec.Struct, frozen=True, gc=False):
    """What no machine takes: ``late`` replies, which were paid for, and why a debate was ``set_aside``.

    ``spent``: what the events that a compaction dropped had cost.
    """

    debate_id: str
    at: float
    kind: NoteKind
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
        self._seqs: dict[int, int] = {}  # debate -> its next event's number, where it is known
        self._next: dict[str, int] = {}  # table -> its next row's number
        self._rows: dict[int, array[int]] | None = None  # debate -> its events' numbers, once somebody asked
        self._late: dict[str, set[str]] = {}  # debate -> asks whose replies came late, from then on
        self._using = threading.Lock()  # commits run in threads of their own; closing waits for the one under way
        self._lock_fd: int | None = take_lock(path, lock_wait_s)
        try:
            self._db = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        except sqlite3.Error as err:
            os.close(self._lock_fd)
            raise JournalError(f"journal {path}: cannot be opened for writing: {err}") from err
        try:
            refuse_half_repaired(path)
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute(f"PRAGMA synchronous={sync.upper()}")
            if max_size_mb:
                page = self._db.execute("PRAGMA page_size").fetchone()[0]
                self._db.execute(f"PRAGMA max_page_count={max_size_mb * 1024 * 1024 // page}")
            with _transaction(self._db):
                self._prepare(fingerprint)
            self._nums = {debate_id: num for num, debate_id in _debates(self._db)}
        except sqlite3.Error as err:
            self.close()
            raise JournalError(f"journal {path}: cannot be opened for writing: {err}") from err
        except JournalError as err:
            self.close()
            raise JournalError(f"journal {path}: {err}") from err

    def _prepare(self, fingerprint: str) -> None:
        """Make the tables, bring an older schema's up to date, and see that they are this run's."""
        version = version_of(self._db)
        if version == 0:
            create(self._db)
            ours = (("schema_version", str(SCHEMA_VERSION)), ("fingerprint", fingerprint))
            self._db.executemany("INSERT OR IGNORE INTO meta VALUES (?, ?)", ours)
        elif version > SCHEMA_VERSION:
            raise JournalError(f"its schema_version is {version}, this moot's is {SCHEMA_VERSION}; take a newer moot")
        ((found,),) = self._db.execute("SELECT value FROM meta WHERE key = 'fingerprint'")
        if found != fingerprint:
            raise JournalError(
                f"its fingerprint is {found}, this run's is {fingerprint}; "
                "resume with the recipe it was started with, or choose another --run-dir"
            )
        if 0 < version < SCHEMA_VERSION:
            migrate(self._db)
        # which file this is: one that is written anew, as by a repair, is told from the one before it
        self._db.execute("INSERT OR IGNORE INTO meta VALUES ('copy', ?)", (os.urandom(8).hex(),))
        self._next = {table: _last(self._db, table) + 1 for table in TABLES}

    def commit(self, entries: Iterable[Entry]) -> None:
        """Write all entries in one transaction, or none. Blocks until they are durable.

        Raises: JournalError: the disk is full or fails; nothing of this batch was written.
        """
        batch = _Batch(self._nums, self._seqs, self._next)
        try:
            for entry in entries:
                batch.add(entry)
            with self._using, _transaction(self._db):
                for table, rows in batch.rows.items():
                    if rows:
                        self._db.executemany(INSERT[table], rows)
        except (sqlite3.Error, OSError) as err:
            raise JournalError(
                f"journal {self.path}: cannot write: {err}; free some space, then go on with `moot resume`"
            ) from err
        self._nums |= batch.nums
        self._seqs |= batch.seqs
        for num in batch.closed:  # nothing follows: it need not be remembered
            self._seqs.pop(num, None)
        for table, rows in batch.rows.items():
            self._next[table] += len(rows)
        if self._rows is not None:
            _gather(self._rows, ((row[0], row[1]) for row in batch.rows["events"]))
            _gather_late(self._late, batch.rows["notes"])

    @property
    def num_events(self) -> int:
        """On record."""
        return self._next["events"] - 1

    @property
    def size_bytes(self) -> int:
        """On disk, with what is not yet folded into the file."""
        files = (self.path, self.path.with_name(self.path.name + "-wal"))
        return sum(file.stat().st_size for file in files if file.exists())

    def holds(self, debate_id: str) -> bool:
        """Whether the debate was ever opened here."""
        return debate_id in self._nums

    def answered(self, debate_id: str) -> set[str]:
        """The asks of a debate whose replies are on record, late ones too. Raises: JournalError: it cannot be read."""
        try:
            with self._using:
                if self._rows is None:  # the first to ask pays for reading all of it
                    self._rows = _gather({}, _numbered(self._db))
                    _gather_late(self._late, whole_rows(self._db, "notes"))
                events = [event for _, event in _events(self._db, self._rows.get(self._nums.get(debate_id, 0), ()))]
        except (sqlite3.Error, JournalError) as err:
            raise JournalError(f"journal {self.path}: cannot be read: {err}") from err
        return {event.reply.ask_id for event in events if isinstance(event, Replied)} | self._late.get(debate_id, set())

    def close(self) -> None:
        """Let go of the file and its lock, once a commit under way is over. Safe to call twice."""
        with self._using:
            self._db.close()
            if self._lock_fd is not None:
                os.close(self._lock_fd)
                self._lock_fd = None


class _Batch:
    """The rows of one commit, and what they change of what the journal knows."""

    def __init__(self, nums: dict[str, int], seqs: dict[int, int], following: dict[str, int]) -> None:
        self.nums: dict[str, int] = {}
        self.seqs: dict[int, int] = {}
        self.closed: list[int] = []
        self.rows: dict[str, list[Row]] = {table: [] for table in TABLES}
        self._known_nums, self._known_seqs, self._following = nums, seqs, following

    def add(self, entry: Entry) -> None:
        if isinstance(entry, EventEntry):
            num = self._num(entry.debate_id) or self._open(entry.debate_id)
            due = self.seqs.get(num, self._known_seqs.get(num, entry.seq))
            if entry.seq != due:
                raise sqlite3.IntegrityError(f"event {entry.seq} of {entry.debate_id!r} came where {due} is due")
            self.seqs[num] = due + 1
            self._row("events", num, entry.seq, entry.at, _ENCODER.encode(entry.event))
        elif isinstance(entry, CloseEntry):
            if (held := self._num(entry.debate_id)) is None:
                raise sqlite3.IntegrityError(f"{entry.debate_id!r} is to be closed and was never opened")
            self.closed.append(held)
            self._row("graphs", held, entry.at, entry.graph)
        else:
            self._row("notes", entry.debate_id, entry.kind, entry.at, entry.text)

    def _num(self, debate_id: str) -> int | None:
        return self.nums.get(debate_id) or self._known_nums.get(debate_id)

    def _open(self, debate_id: str) -> int:
        num = self.nums[debate_id] = self._following["debates"] + len(self.rows["debates"])
        self._row("debates", debate_id)
        return num

    def _row(self, table: str, *values: object) -> None:
        rows = self.rows[table]
        rows.append(checked(table, self._following[table] + len(rows), *values))


@contextmanager
def _transaction(db: sqlite3.Connection) -> Iterator[None]:
    db.execute("BEGIN IMMEDIATE")
    try:
        yield
        db.execute("COMMIT")
    finally:
        if db.in_transaction:  # the body raised, or the commit did; a full disk may have rolled back by itself
            db.execute("ROLLBACK")


class Recorded(msgspec.Struct, frozen=True):
    """One debate as the journal holds it. ``graph`` is set once it is closed."""

    debate_id: str
    events: list[tuple[float, Event]]
    graph: bytes | None
    closed_at: float | None


@contextmanager
def reading(path: Path) -> Iterator[tuple[sqlite3.Connection, int]]:
    """One moment of a journal, and its schema version; 0: its writer died before the first commit. Safe beside one.

    Raises: JournalError: not a journal, damaged, or of a newer moot.
    """
    try:
        refuse_half_repaired(path)
        # as_uri quotes what would mean something else in a URI: a folder may be called "a#1"
        uri = f"{path.absolute().as_uri()}?mode=ro"
        with closing(sqlite3.connect(uri, uri=True, isolation_level=None)) as db:
            db.execute("BEGIN")
            version = version_of(db)
            if version > SCHEMA_VERSION:
                raise JournalError(f"its schema_version is {version}, this moot reads up to {SCHEMA_VERSION}")
            yield db, version
    except (sqlite3.Error, msgspec.MsgspecError) as err:
        raise JournalError(f"journal {path}: cannot be read: {err}; `moot journal check RUN` says where") from err
    except JournalError as err:
        raise JournalError(f"journal {path}: cannot be read: {err}") from err


def read_journal(path: Path, *, only_open: bool = False) -> Iterator[Recorded]:
    """Every debate on record, in the order they were opened; safe beside a writer.

    Raises: JournalError: not a journal, or damaged.
    """
    with reading(path) as (db, version):
        if version == 1:
            yield from _read_1(db, only_open=only_open)
        if version in (0, 1):
            return
        closed = {debate: num for num, debate in db.execute("SELECT num, debate FROM graphs")}
        skipped = closed if only_open else ()
        rows = _gather({}, _numbered(db), skipped)
        for num, debate_id in _debates(db):
            graph, at = _graph(db, closed[num]) if num in closed else (None, None)
            if not (only_open and graph is not None):
                yield Recorded(debate_id, list(_events(db, rows.get(num, ()))), graph, at)


def _read_1(db: sqlite3.Connection, *, only_open: bool) -> Iterator[Recorded]:
    where = "WHERE graph IS NULL" if only_open else ""
    for num, debate_id, graph, at in db.execute(f"SELECT num, id, graph, closed_at FROM debates {where} ORDER BY num"):
        rows = db.execute("SELECT at, body FROM events WHERE num = ? ORDER BY seq", (num,))
        yield Recorded(debate_id, [(at, _DECODER.decode(body)) for at, body in rows], graph, at)


def read_events(path: Path) -> Iterator[Event]:
    """All events, in the order they came; safe beside a writer. Raises: JournalError: not a journal, or damaged."""
    with reading(path) as (db, version):
        if version == 1:
            yield from (_DECODER.decode(body) for (body,) in db.execute("SELECT body FROM events ORDER BY num, seq"))
        elif version > 1:
            yield from (_DECODER.decode(row[4]) for row in whole_rows(db, "events"))


def read_closed(path: Path, among: Collection[str] | None = None) -> Iterator[CloseEntry]:
    """The closed debates with their graphs, in the order they were opened; safe beside a writer.

    Args: among: only those of these ids are read.
    Raises: JournalError: not a journal, or damaged.
    """
    with reading(path) as (db, version):
        if version == 1:
            rows = db.execute("SELECT id, closed_at, graph FROM debates WHERE graph IS NOT NULL ORDER BY num")
            yield from (CloseEntry(*row) for row in rows if among is None or row[0] in among)
        elif version > 1:
            ids = dict(_debates(db))
            for debate, num in sorted(db.execute("SELECT debate, num FROM graphs")):
                if debate not in ids:
                    raise JournalError(f"row {debate} of its debates is missing; {_WAY_OUT}")
                if among is None or ids[debate] in among:
                    graph, at = _graph(db, num)
                    yield CloseEntry(ids[debate], at, graph)


def read_graphs(path: Path) -> Iterator[bytes]:
    """As ``read_closed``, the graphs alone."""
    return (closed.graph for closed in read_closed(path))


def read_notes(path: Path) -> list[NoteEntry]:
    """Raises: JournalError: not a journal, or damaged."""
    with reading(path) as (db, version):
        if version == 1:
            return [NoteEntry(*row) for row in db.execute("SELECT debate, at, kind, text FROM notes")]
        rows = whole_rows(db, "notes") if version else ()
        return [NoteEntry(debate, at, kind, text) for _, debate, kind, at, text, _ in rows]


def whole_rows(db: sqlite3.Connection, table: str, after: int = 0) -> Iterator[Row]:
    """The rows of a table in order. Raises: JournalError: one is damaged or missing."""
    due = after + 1
    for row in db.execute(f"SELECT * FROM {table} WHERE num > ? ORDER BY num", (after,)):
        if row[0] != due:
            raise JournalError(f"{table} {due} to {row[0] - 1} are missing; {_WAY_OUT}")
        _check(table, row)
        due += 1
        yield row


_WAY_OUT = "`moot journal repair RUN` saves the rest"


def _check(table: str, row: Row) -> None:
    if not is_whole(table, row):
        raise JournalError(f"row {row[0]} of its {table} is damaged; {_WAY_OUT}")


def _last(db: sqlite3.Connection, table: str) -> int:
    return int(db.execute(f"SELECT coalesce(max(num), 0) FROM {table}").fetchone()[0])


def _debates(db: sqlite3.Connection) -> Iterator[tuple[int, str]]:
    return ((num, debate_id) for num, debate_id, _ in whole_rows(db, "debates"))


def _gather(
    rows: dict[int, array[int]], numbered: Iterable[tuple[int, int]], skipped: Collection[int] = ()
) -> dict[int, array[int]]:
    """Debate -> the numbers of its events; those of ``skipped`` debates are passed by."""
    for num, debate in numbered:
        if debate in skipped:
            continue
        if (found := rows.get(debate)) is None:
            rows[debate] = array("q", (num,))
        else:
            found.append(num)
    return rows


def _gather_late(late: dict[str, set[str]], notes: Iterable[Row]) -> None:
    for _, debate_id, kind, _, text, *_ in notes:
        event = _DECODER.decode(bytes.fromhex(text)) if kind == "late" else None
        if isinstance(event, Replied):
            late.setdefault(debate_id, set()).add(event.reply.ask_id)


def _numbered(db: sqlite3.Connection) -> Iterator[tuple[int, int]]:
    """Every event's number and debate. Raises: JournalError: one is missing."""
    due = 1
    for num, debate in db.execute("SELECT num, debate FROM events ORDER BY num"):
        if num != due:
            raise JournalError(f"events {due} to {num - 1} are missing; {_WAY_OUT}")
        due += 1
        yield num, debate


def _events(db: sqlite3.Connection, nums: Iterable[int]) -> Iterator[tuple[float, Event]]:
    """One debate's. Raises: JournalError: one is damaged or missing."""
    for seq, num in enumerate(nums):
        row = _row(db, "events", num)
        if row[2] != seq:
            raise JournalError(f"event {seq} of its debate {row[1]} is missing; {_WAY_OUT}")
        yield row[3], _DECODER.decode(row[4])


def _graph(db: sqlite3.Connection, num: int) -> tuple[bytes, float]:
    _, _, at, graph, _ = _row(db, "graphs", num)
    return graph, at


def _row(db: sqlite3.Connection, table: str, num: int) -> Row:
    row: Row | None = db.execute(f"SELECT * FROM {table} WHERE num = ?", (num,)).fetchone()
    if row is None:
        raise JournalError(f"row {num} of its {table} cannot be found; {_WAY_OUT}")
    _check(table, row)
    return row
