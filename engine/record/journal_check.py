"""What of a journal is whole, and what is damaged: each damage one sentence that names the debate and the event."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import msgspec

from engine.record.journal import reading
from engine.record.journal_rows import SCHEMA_VERSION, TABLES, Row, is_whole, version_of
from protocols.errors import GraphError, JournalError
from protocols.graph import decode_debate
from protocols.machine import Event

SHOWN = 20  # of SQLite's own complaints about a file

_EVENT_DECODER = msgspec.msgpack.Decoder(Event)


class Checked(msgspec.Struct, kw_only=True):
    """What a journal holds whole, and its damage."""

    file: str
    schema_version: int = SCHEMA_VERSION
    debates: int = 0
    closed: int = 0
    events: int = 0
    notes: int = 0
    damage: list[str] = []


def check_journal(path: Path, fingerprint: str) -> Checked:
    """Read all of a journal; safe beside its writer.

    Args: fingerprint: of the run that it belongs to.
    """
    found = Checked(file=str(path))
    try:
        with reading(path) as (db, version):
            found.schema_version = version
            if version == 1:
                _check_1(db, found)
            elif version:
                _Check(db, found).run(fingerprint)
            complaints = [text for (text,) in db.execute(f"PRAGMA integrity_check({SHOWN})") if text != "ok"]
            found.damage += [f"SQLite finds in the file: {' '.join(text.split())}" for text in complaints]
    except JournalError as err:
        found.damage.append(str(err))
    return found


class _Check:
    """Table by table, and then what the tables say of each other."""

    def __init__(self, db: sqlite3.Connection, found: Checked) -> None:
        self._db, self._found = db, found
        self._ids: dict[int, str] = {}
        self._seqs: dict[int, set[int]] = {}

    def run(self, fingerprint: str) -> None:
        told = self._db.execute("SELECT value FROM meta WHERE key = 'fingerprint'").fetchone()
        if told != (fingerprint,):
            self._tell(f"its fingerprint is {told and told[0]}, the run's is {fingerprint}")
        for table in TABLES:
            for row in self._whole(table):
                getattr(self, f"_{table}")(row)
        for debate, seqs in self._seqs.items():
            if debate not in self._ids:
                self._tell(f"debate number {debate} has {len(seqs)} events, and nothing says which debate it is")
            if missing := sorted(set(range(max(seqs) + 1)) - seqs):
                self._tell(f"of debate {self._name(debate)} events are missing: {_spans(missing)}")
        for debate in self._ids.keys() - self._seqs.keys():
            self._tell(f"debate {self._name(debate)} has no events")

    def _whole(self, table: str) -> Iterator[Row]:
        """The rows that are whole; what is wrong with the others is told."""
        due = 1
        try:
            for row in self._db.execute(f"SELECT * FROM {table} ORDER BY num"):
                if row[0] != due:
                    self._tell(f"{table} {due} to {row[0] - 1} are missing")
                due = row[0] + 1
                if is_whole(table, row):
                    yield row
                else:
                    self._tell(self._where(table, row) + " is damaged")
        except sqlite3.Error as err:
            self._tell(f"its {table} cannot be read from number {due} on: {err}")

    def _where(self, table: str, row: Row) -> str:
        if table == "events":
            return f"event {row[2]} of debate {self._name(row[1])}"
        return f"the graph of debate {self._name(row[1])}" if table == "graphs" else f"row {row[0]} of its {table}"

    def _debates(self, row: Row) -> None:
        self._ids[row[0]] = row[1]
        self._found.debates += 1

    def _events(self, row: Row) -> None:
        try:
            _EVENT_DECODER.decode(row[4])
        except msgspec.MsgspecError as err:
            self._tell(f"{self._where('events', row)} cannot be decoded: {err}")
        self._seqs.setdefault(row[1], set()).add(row[2])
        self._found.events += 1

    def _graphs(self, row: Row) -> None:
        try:
            decode_debate(row[3])
        except GraphError as err:
            self._tell(f"{self._where('graphs', row)} cannot be decoded: {err}")
        self._found.closed += 1

    def _notes(self, row: Row) -> None:
        self._found.notes += 1

    def _name(self, debate: Any) -> str:
        return self._ids.get(debate, f"number {debate}")

    def _tell(self, text: str) -> None:
        self._found.damage.append(text)


def _check_1(db: sqlite3.Connection, found: Checked) -> None:
    """Rows of schema 1 carry no checks: only what cannot be decoded is found. Raises: sqlite3.Error."""
    for num, debate, graph in db.execute("SELECT num, id, graph FROM debates"):
        found.debates += 1
        found.closed += graph is not None
        for seq, body in db.execute("SELECT seq, body FROM events WHERE num = ? ORDER BY seq", (num,)):
            found.events += 1
            try:
                _EVENT_DECODER.decode(body)
            except msgspec.MsgspecError as err:
                found.damage.append(f"event {seq} of debate {debate} cannot be decoded: {err}")
    found.notes = db.execute("SELECT count(*) FROM notes").fetchone()[0]


def schema_of(path: Path) -> int:
    """Of a file that may be damaged; 0: it does not say."""
    try:
        with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)) as db:
            return version_of(db)
    except sqlite3.Error:
        return 0


def _spans(numbers: list[int]) -> str:
    """``[1, 2, 3, 7]`` as "1-3, 7"."""
    spans: list[list[int]] = []
    for number in numbers:
        if spans and number == spans[-1][1] + 1:
            spans[-1][1] = number
        else:
            spans.append([number, number])
    return ", ".join(str(first) if first == last else f"{first}-{last}" for first, last in spans)
