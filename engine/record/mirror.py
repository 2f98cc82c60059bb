"""Journals copied to an object store while a run goes, in sealed segments; and made again from there.

A segment holds the rows that were committed since the one before it. It is read from the file by a connection of its
own, beside the commits, and is never changed once it is written. Its name says which segment it follows, so that what
belongs together is known from the names alone, also after a writer that was thought dead has written on.
"""

from __future__ import annotations

import logging
import os
import re
import sqlite3
import time
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path

import msgspec

from engine.record.journal import reading, whole_rows
from engine.record.journal_lock import take_lock
from engine.record.journal_rows import INSERT, SCHEMA_VERSION, TABLES, Row, create, is_whole, version_of
from engine.record.store import Copier, Store
from protocols.errors import JournalError, MootError

log = logging.getLogger("moot.mirror")

NONE = "none"  # what the first segment follows
SEGMENT_BYTES = 8 * 2**20  # of rows, at which a segment is full

_NAME = re.compile(r"(\d{6}-\d{6})-after-(\d{6}-\d{6}|none)\.segment")
_ENCODER = msgspec.msgpack.Encoder()


class Segment(msgspec.Struct, frozen=True, kw_only=True):
    """``copy`` names the file the rows are from; ``upto``: table -> its last row so far, by number and check."""

    schema_version: int
    fingerprint: str
    copy: str
    upto: dict[str, tuple[int, int]]
    rows: dict[str, list[Row]]


_DECODER = msgspec.msgpack.Decoder(Segment)


class Mirror:
    """Keeps one journal's copy, at most ``every_s`` and the time of an upload behind it.

    A store that cannot be reached is tried again, also at the start: it holds nothing up.

    Raises: JournalError: the store holds what the file does not. ConfigError: no such kind of store.
    """

    def __init__(self, journal: Path, url: str, *, every_s: float) -> None:
        self._journal, self._store = journal, Store(url)
        self._upto = dict.fromkeys(TABLES, (0, 0))
        self._last, self._epoch, self._index = NONE, -1, 0
        with _store_may_fail():
            self._find_place()
        self._copier = Copier(f"journal {journal}", self._copy, every_s=every_s)

    @property
    def num_events(self) -> int:
        """Of those on record, how many are copied."""
        return self._upto["events"][0]

    @property
    def error(self) -> str:
        """Why nothing is copied at present; "" while all is well."""
        return self._copier.error

    @property
    def age_s(self) -> float:
        """How old the copy is: all that was on record then is in it."""
        return time.monotonic() - self._copier.complete_at

    def close(self) -> bool:
        """Copy what is left and stop. Returns: whether all of it is copied."""
        return self._copier.close()

    def _find_place(self) -> None:
        """Go on behind the newest segment; a journal that was rewritten since it was copied is copied anew."""
        names = _segment_names(self._store)
        with reading(self._journal) as (db, _):
            ours = dict(db.execute("SELECT key, value FROM meta"))["copy"]
            epochs = [int(number[:6]) for number in names]
            number, newest = _newest(self._store, names)
            if newest is not None and newest.copy == ours:
                for table, (num, crc) in newest.upto.items():
                    if num and db.execute(f"SELECT crc FROM {table} WHERE num = ?", (num,)).fetchone() != (crc,):
                        raise JournalError(
                            f"journal {self._journal}: {self._store.url} holds another row {num} of its {table}; "
                            "`moot journal restore` makes a folder of what was copied"
                        )
                self._upto, self._last = newest.upto, number
        self._epoch = max(epochs, default=-1) + 1

    def _copy(self) -> None:
        if self._epoch < 0:
            self._find_place()
        while self._copy_segment():
            pass

    def _copy_segment(self) -> bool:
        """Write one segment. Returns: whether there is more already."""
        with reading(self._journal) as (db, _):
            meta = dict(db.execute("SELECT key, value FROM meta"))
            rows, more = _new_rows(db, {table: num for table, (num, _) in self._upto.items()})
        if not any(rows.values()):
            return False
        upto = self._upto | {table: (found[-1][0], found[-1][-1]) for table, found in rows.items() if found}
        segment = Segment(
            schema_version=SCHEMA_VERSION, fingerprint=meta["fingerprint"], copy=meta["copy"], upto=upto, rows=rows
        )
        number = f"{self._epoch:06d}-{self._index:06d}"
        self._store.put(_name(number, self._last), _ENCODER.encode(segment))
        self._upto, self._last, self._index = upto, number, self._index + 1
        return more


def _new_rows(db: sqlite3.Connection, after: Mapping[str, int]) -> tuple[dict[str, list[Row]], bool]:
    """What one segment takes of the rows behind these numbers, and whether any are left.

    A debate is in the same segment as its first event or before it, and a graph behind all events: whatever was copied
    last, what is there can be resumed.
    """
    rows: dict[str, list[Row]] = {table: [] for table in TABLES}
    room = SEGMENT_BYTES
    for table, body in (("events", 4), ("graphs", 3)):
        for row in whole_rows(db, table, after[table]):
            if room <= 0:
                break
            rows[table].append(row)
            room -= len(row[body])
        if room <= 0:
            break
    else:
        rows["notes"] = list(whole_rows(db, "notes", after["notes"]))
    opened = max((row[1] for row in rows["events"]), default=0)
    rows["debates"] = [row for row in whole_rows(db, "debates", after["debates"]) if row[0] <= opened]
    return rows, room <= 0


def _name(number: str, previous: str) -> str:
    return f"{number}-after-{previous}.segment"


def _segment_names(store: Store) -> dict[str, str]:
    """Segment -> the one it follows."""
    found = (_NAME.fullmatch(name) for name in store.names())
    return {match[1]: match[2] for match in found if match}


def _newest(store: Store, names: dict[str, str]) -> tuple[str, Segment | None]:
    """The newest segment that is whole; those that their writer died on are taken out of ``names``."""
    while names:
        number = max(names)
        try:
            return number, _load(store, names, number)
        except msgspec.MsgspecError:
            del names[number]
    return NONE, None


def _load(store: Store, names: Mapping[str, str], number: str) -> Segment:
    return _DECODER.decode(store.get(_name(number, names[number])))


@contextmanager
def _store_may_fail() -> Iterator[None]:
    """What a store's client raises is no error of ours: whatever is to be done with it is tried again."""
    try:
        yield
    except MootError:
        raise
    except Exception as err:
        log.warning("a mirror cannot be reached yet: %s: %s", type(err).__name__, err)


def restore_journal(url: str, path: Path, *, lock_wait_s: float = 0.0) -> int:
    """Put into a journal what its copy has and it has not: all of it where the file is gone.

    Returns: the events that came back; 0: the file has everything, or was written anew since it was copied.
    Raises: JournalError: a segment is missing or damaged, the file says something else, or a run holds it; the file is
        gone and the store cannot be read.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    fd = take_lock(path, lock_wait_s)
    try:
        return _restore(Store(url), path)
    except (MootError, sqlite3.Error) as err:
        raise JournalError(f"mirror {url}: {err}") from err
    except Exception as err:  # of the store's client
        if _holds_nothing(path):
            raise JournalError(f"mirror {url}: cannot be read: {type(err).__name__}: {err}") from err
        log.warning("mirror %s cannot be reached, %s is taken as it is: %s", url, path, err)
        return 0
    finally:
        os.close(fd)


def _holds_nothing(path: Path) -> bool:
    if not path.exists():
        return True
    with reading(path) as (_, version):
        return version == 0


def _restore(store: Store, path: Path) -> int:
    names = _segment_names(store)
    number, newest = _newest(store, names)
    if newest is None:
        return 0
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        if version_of(db) not in (0, SCHEMA_VERSION):
            return 0
        db.execute("PRAGMA journal_mode=WAL")
        db.execute("BEGIN IMMEDIATE")
        create(db)
        meta = {"schema_version": str(newest.schema_version), "fingerprint": newest.fingerprint, "copy": newest.copy}
        db.executemany("INSERT OR IGNORE INTO meta VALUES (?, ?)", meta.items())
        ours = db.execute("SELECT value FROM meta WHERE key = 'copy'").fetchone()
        last: dict[str, int] = {
            table: db.execute(f"SELECT coalesce(max(num), 0) FROM {table}").fetchone()[0] for table in TABLES
        }
        if ours != (newest.copy,) or all(num <= last[table] for table, (num, _) in newest.upto.items()):
            return 0
        events = last["events"]
        for each in reversed(_behind(store, names, number, last)):
            try:
                _add(db, _load(store, names, each), last)
            except (msgspec.MsgspecError, JournalError) as err:
                raise JournalError(f"segment {each} is damaged: {err}") from err
        db.execute("COMMIT")
        return last["events"] - events


def _behind(store: Store, names: Mapping[str, str], number: str, last: Mapping[str, int]) -> list[str]:
    """The segments that hold anything beyond these rows, the newest first. Raises: JournalError: one is missing."""
    numbers = []
    while number != NONE:
        if number not in names:
            raise JournalError(f"segment {number} is missing")
        numbers.append(number)
        if any(last.values()) and all(
            num <= last[table] for table, (num, _) in _load(store, names, number).upto.items()
        ):
            break
        number = names[number]
    return numbers


def _add(db: sqlite3.Connection, segment: Segment, last: dict[str, int]) -> None:
    for table, rows in segment.rows.items():
        for row in rows:
            if not is_whole(table, row) or row[0] > last[table] + 1:
                raise JournalError(f"row {last[table] + 1} of its {table} is missing or damaged")
            if row[0] > last[table]:
                db.execute(INSERT[table], row)
                last[table] += 1
            elif db.execute(f"SELECT crc FROM {table} WHERE num = ?", (row[0],)).fetchone() != (row[-1],):
                raise JournalError(f"row {row[0]} of its {table} is another in the file")


def place_of(mirror: str, journal: Path) -> str:
    """Where a run's journal is copied to: below the name of the run's folder, as it lies in it."""
    run = journal.absolute().parents[2]
    return f"{mirror.rstrip('/')}/{run.name}/journal/{journal.parent.name}/{journal.stem}"
