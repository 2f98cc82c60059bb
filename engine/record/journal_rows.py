"""How a journal's file is laid out, and the check that each of its rows carries.

Rows are only ever added, under the next number of their table. So a commit writes at the end of the file wherever its
debates are, a row that is missing leaves a gap in the numbers, and what is new since a moment is a range of numbers.
"""

from __future__ import annotations

import sqlite3
import zlib
from collections.abc import Iterable, Iterator
from typing import Any

import msgspec

SCHEMA_VERSION = 2
COLUMNS = {
    "debates": "num INTEGER PRIMARY KEY, id TEXT NOT NULL, crc INTEGER NOT NULL",
    "events": (
        "num INTEGER PRIMARY KEY, debate INTEGER NOT NULL, seq INTEGER NOT NULL, at REAL NOT NULL, body BLOB NOT NULL, "
        "crc INTEGER NOT NULL"
    ),
    "graphs": (
        "num INTEGER PRIMARY KEY, debate INTEGER NOT NULL, at REAL NOT NULL, body BLOB NOT NULL, crc INTEGER NOT NULL"
    ),
    "notes": (
        "num INTEGER PRIMARY KEY, debate TEXT NOT NULL, kind TEXT NOT NULL, at REAL NOT NULL, text TEXT NOT NULL, "
        "crc INTEGER NOT NULL"
    ),
}
TABLES = tuple(COLUMNS)
INSERT = {
    table: f"INSERT INTO {table} VALUES ({', '.join('?' * (columns.count(',') + 1))})"
    for table, columns in COLUMNS.items()
}
META = "CREATE TABLE IF NOT EXISTS meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID"

Row = tuple[Any, ...]
"""A row's values in the order of its table's columns, its check last."""

_ENCODER = msgspec.msgpack.Encoder()


def checked(table: str, *values: Any) -> Row:
    """The row with its check: a CRC-32 over the table's name and every value, its number among them.

    It finds whatever a disk, a copy or a stray write does to a row, and a row that stands in another's place: all
    damage of up to 32 bits in a row, and of all other one in four billion less. It is no signature. A check a row says
    which event is damaged and leaves those around it usable, as one over a commit or a chain would not.
    """
    return (*values, zlib.crc32(_ENCODER.encode((table, *values))))


def is_whole(table: str, row: Row) -> bool:
    return bool(zlib.crc32(_ENCODER.encode((table, *row[:-1]))) == row[-1])


def create(db: sqlite3.Connection) -> None:
    """The tables, where they are missing."""
    db.execute(META)
    for table, columns in COLUMNS.items():
        db.execute(f"CREATE TABLE IF NOT EXISTS {table} ({columns})")


def version_of(db: sqlite3.Connection) -> int:
    """Of the file's layout; 0: nothing was ever committed to it."""
    if not db.execute("SELECT 1 FROM sqlite_master").fetchone():
        return 0
    row = db.execute("SELECT value FROM meta WHERE key = 'schema_version'").fetchone()
    if row is not None and not str(row[0]).isdigit():
        raise sqlite3.DatabaseError(f"its schema_version is {row[0]!r}")
    return int(row[0]) if row else 0


def migrate(db: sqlite3.Connection) -> None:
    """From schema 1, whose events lay sorted by debate, without checks; within the caller's transaction."""
    for table in ("debates", "events", "notes"):
        db.execute(f"ALTER TABLE {table} RENAME TO old_{table}")
    create(db)
    for table, rows in rows_of_1(db, "old_").items():
        db.executemany(INSERT[table], (checked(table, *row) for row in rows))
    for table in ("debates", "events", "notes"):
        db.execute(f"DROP TABLE old_{table}")
    db.execute("UPDATE meta SET value = ? WHERE key = 'schema_version'", (str(SCHEMA_VERSION),))


def rows_of_1(db: sqlite3.Connection, prefix: str = "") -> dict[str, Iterator[Row]]:
    """What a journal of schema 1 holds, as rows of this schema without their checks."""

    def numbered(select: str) -> Iterator[Row]:
        rows: Iterable[Row] = db.execute(select)
        return ((num, *row) for num, row in enumerate(rows, 1))

    return {
        "debates": iter(db.execute(f"SELECT num, id FROM {prefix}debates ORDER BY num")),
        "events": numbered(f"SELECT num, seq, at, body FROM {prefix}events ORDER BY num, seq"),
        "graphs": numbered(
            f"SELECT num, closed_at, graph FROM {prefix}debates WHERE graph IS NOT NULL ORDER BY closed_at, num"
        ),
        "notes": numbered(f"SELECT debate, kind, at, text FROM {prefix}notes ORDER BY rowid"),
    }
