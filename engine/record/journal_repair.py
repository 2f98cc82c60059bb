"""A damaged journal, made whole from what can be read; and one without the events that nobody needs any more.

The new file is written beside the old one and takes its place in steps that can be taken up again wherever they were
interrupted. What is damaged is kept: a better tool, or a person, may find more in it.
"""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from itertools import islice
from pathlib import Path

import msgspec

from actors.limits.prices import Amount
from engine.record.journal import (
    CloseEntry,
    Entry,
    EventEntry,
    Journal,
    NoteEntry,
    read_journal,
    read_notes,
)
from engine.record.journal_check import check_journal, schema_of
from engine.record.journal_lock import repaired_path, take_lock
from engine.record.journal_pages import find_rows
from engine.record.journal_rows import INSERT, Row, checked, create, rows_of_1
from engine.record.spending import spent_note, spent_on, total
from protocols.errors import GraphError, JournalError
from protocols.graph import decode_debate
from protocols.machine import AgentFailed, Event, Machine, Opened, Replied

BATCH = 1000  # entries a commit

Usable = Callable[[Sequence[Event], Sequence[Event]], list[Event]]
"""Of the events after one that is lost, those that still count; see ``usable_after``."""
Opening = Callable[[str], Opened | None]
"""How a debate of this id was opened, where that can be known without the record."""

_DECODER = msgspec.msgpack.Decoder(Event)
_ENCODER = msgspec.msgpack.Encoder()


class Repaired(msgspec.Struct, kw_only=True):
    """What a repair kept, what was ``found`` to be wrong before it, and what is lost: one sentence each."""

    file: str
    kept_as: str = ""  # the damaged file
    debates: int = 0
    closed: int = 0
    events: int = 0
    found: list[str] = []
    lost: list[str] = []


def usable_after(machine: Machine, before: Sequence[Event], after: Sequence[Event]) -> list[Event]:
    """What counts of the events behind a gap: outcomes of asks that were under way when it began.

    Those asks were made from what is whole, so they would be made again word for word. Anything later may have been
    asked from what is lost, and is not taken for an answer to something else.
    """
    kept: list[Event] = []
    try:
        for event in before:
            machine.receive(event)
        waiting = set(machine.outstanding)
        for event in after:
            if isinstance(event, Replied | AgentFailed) and (ask_id := _ask_id(event)) in waiting:
                if ask_id in machine.outstanding:
                    machine.receive(event)
                    kept.append(event)
                waiting.discard(ask_id)
    except Exception:  # a protocol that fails on them would fail again: what it took before that is kept
        return kept
    return kept


def _ask_id(event: Replied | AgentFailed) -> str:
    return event.reply.ask_id if isinstance(event, Replied) else event.failure.ask_id


def repair_journal(path: Path, fingerprint: str, usable: Usable, opening: Opening = lambda _: None) -> Repaired | None:
    """Write what can be read into a new file, and put it in the journal's place; the old one is kept beside it.

    Returns: None: it is whole. Raises: JournalError: a run holds it, or nothing in it can be read.
    """
    with _held(path):
        if repaired_path(path).exists():
            return Repaired(file=str(path), kept_as=_take_place(path).name)
        damage = check_journal(path, fingerprint).damage
        if not damage:
            return None
        repaired = Repaired(file=str(path), found=damage)
        scratch = path.with_suffix(".salvage")
        try:
            with _scratch(scratch) as db:
                _fill(db, path)
                if not db.execute("SELECT 1 FROM events UNION SELECT 1 FROM graphs LIMIT 1").fetchone():
                    raise JournalError(f"journal {path}: nothing in it can be read; it is left as it is")
                _write(path, fingerprint, _saved(db, usable, opening, repaired))
        finally:
            _remove(scratch)
        repaired.kept_as = _take_place(path).name
        return repaired


def _fill(db: sqlite3.Connection, path: Path) -> None:
    """Every row that is whole, by its number; where a number comes twice the later one stays."""
    if schema_of(path) == 1:
        with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)) as old, suppress(sqlite3.Error):
            for table, rows in rows_of_1(old).items():
                for row in rows:  # up to what SQLite cannot read
                    if table != "events" or _decodes(row[4]):
                        db.execute(INSERT[table], checked(table, *row))
    else:
        for table, row in find_rows(path):
            db.execute(INSERT[table].replace("INSERT", "INSERT OR REPLACE", 1), row)
    db.execute("CREATE INDEX by_debate ON events(debate, seq)")


def _decodes(body: bytes) -> bool:
    try:
        _DECODER.decode(body)
    except msgspec.MsgspecError:
        return False
    return True


def _saved(db: sqlite3.Connection, usable: Usable, opening: Opening, repaired: Repaired) -> Iterator[Entry]:
    """The entries of the new journal; what cannot be kept is told in ``repaired``."""
    ids = dict(db.execute("SELECT num, id FROM debates"))
    graphs = dict(db.execute("SELECT debate, num FROM graphs"))
    nums = {num for (num,) in db.execute("SELECT DISTINCT debate FROM events")}
    for num in sorted({*ids, *graphs, *nums}):
        rows = db.execute("SELECT * FROM events WHERE debate = ? ORDER BY seq, num", (num,)).fetchall()
        closing_row = db.execute("SELECT * FROM graphs WHERE num = ?", (graphs.get(num, 0),)).fetchone()
        events = {row[2]: (row[3], _DECODER.decode(row[4])) for row in rows}
        if 0 not in events and (opened := _opened(ids.get(num, ""), closing_row, opening)) is not None:
            events[0] = (min((at for at, _ in events.values()), default=0.0), opened)
        yield from _saved_debate(ids.get(num, ""), num, events, closing_row, usable, repaired)
    for _, debate, kind, at, text, _ in db.execute("SELECT * FROM notes ORDER BY num"):
        yield NoteEntry(debate, at, kind, text)
    for table in ("events", "notes"):
        last, count = db.execute(f"SELECT max(num), count(*) FROM {table}").fetchone()
        if count and last > count:
            repaired.lost.append(f"{last - count} of its first {last} {table} in all")


def _opened(debate_id: str, closing_row: Row | None, opening: Opening) -> Opened | None:
    """An opening that is lost stands in the debate's graph too, and follows from the recipe."""
    if closing_row is not None:
        with suppress(GraphError):  # of a newer moot: the recipe is left
            debate = decode_debate(closing_row[3])
            return Opened(debate_id=debate.id, task=debate.task, seed=debate.seed)
    return opening(debate_id) if debate_id else None


def _saved_debate(
    debate_id: str,
    num: int,
    events: dict[int, tuple[float, Event]],
    closing_row: Row | None,
    usable: Usable,
    repaired: Repaired,
) -> Iterator[Entry]:
    before: list[tuple[float, Event]] = []
    while len(before) in events:
        before.append(events.pop(len(before)))
    if not before:
        name = debate_id or f"number {num}"
        repaired.lost.append(
            f"the opening of debate {name}: it is held anew; {len(events)} events behind it are of no use"
        )
        yield from _unused(debate_id, list(events.values()))
        return
    first = before[0][1]
    debate_id = debate_id or (first.debate_id if isinstance(first, Opened) else f"number {num}")
    after = [events[seq] for seq in sorted(events)]
    kept: list[Event] = []
    if after:
        kept = [] if closing_row else usable([event for _, event in before], [event for _, event in after])
        dropped = len(after) - len(kept)
        repaired.lost.append(
            f"event {len(before)} of debate {debate_id}"
            + (
                "; its graph is whole"
                if closing_row
                else f"; {dropped} events behind it are of no use without it" * (dropped > 0)
            )
        )
    chosen = [*before, *(item for item in after if any(item[1] is event for event in kept))]
    repaired.debates += 1
    repaired.events += len(chosen)
    yield from (EventEntry(debate_id, seq, at, event) for seq, (at, event) in enumerate(chosen))
    yield from _unused(debate_id, [item for item in after if all(item[1] is not event for event in kept)])
    if closing_row is not None:
        repaired.closed += 1
        yield CloseEntry(debate_id, closing_row[2], closing_row[3])


def _unused(debate_id: str, events: Sequence[tuple[float, Event]]) -> Iterator[NoteEntry]:
    """Outcomes that no machine takes any more were paid for all the same."""
    for at, event in events:
        if isinstance(event, Replied | AgentFailed):
            yield NoteEntry(debate_id, at, "late", _ENCODER.encode(event).hex())


def compact_journal(path: Path, fingerprint: str, *, drop_events: bool) -> tuple[int, int]:
    """Give back the space that nothing needs.

    Args:
        drop_events: also leave out what happened in debates that are closed, but for how each was opened. What they
            cost is kept. They cannot be replayed any more, nor a damaged graph be made again from them.
    Returns: the file's size before and after, in bytes. Raises: JournalError: a run holds it, or it is damaged.
    """
    with _held(path):
        before = _size(path)
        if check_journal(path, fingerprint).damage:
            raise JournalError(f"journal {path}: is damaged; `moot journal repair` comes first")
        with closing(sqlite3.connect(path, isolation_level=None)) as db:
            db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            if not drop_events:
                db.execute("VACUUM")
                db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        if drop_events:
            _write(path, fingerprint, _without_events(path))
            repaired_path(path).replace(path)  # the old one has no WAL any more: this one step is all
            _sync_folder(path.parent)
        return before, _size(path)


def _without_events(path: Path) -> Iterator[Entry]:
    dropped: list[Amount] = []
    for recorded in read_journal(path):
        kept = recorded.events if recorded.graph is None else recorded.events[:1]
        yield from (EventEntry(recorded.debate_id, seq, at, event) for seq, (at, event) in enumerate(kept))
        if recorded.graph is not None:
            yield CloseEntry(recorded.debate_id, recorded.closed_at or 0.0, recorded.graph)
            dropped.append(total(spent_on(event) for _, event in recorded.events[1:]))
    yield from read_notes(path)
    if dropped:
        yield spent_note(dropped, time.time())


def _write(path: Path, fingerprint: str, entries: Iterable[Entry]) -> None:
    """A journal of these entries where a finished repair waits: it is there whole or not at all."""
    draft = path.with_name(f"{path.stem}-new.draft")
    try:
        _remove(draft)
        journal = Journal(draft, fingerprint=fingerprint)
        try:
            entries = iter(entries)
            while batch := list(islice(entries, BATCH)):
                journal.commit(batch)
        finally:
            journal.close()  # the last one to close it brings its WAL into the file
        draft.replace(repaired_path(path))
        _sync_folder(path.parent)
    finally:
        _remove(draft)
        draft.with_suffix(".lock").unlink(missing_ok=True)


def _take_place(path: Path) -> Path:
    """Put a finished repair in the journal's place. Returns: what the damaged file is called now.

    The WAL goes first: beside the new file it would be taken for that one's. The file itself goes last, so that whoever
    takes this up again finds the same name free.
    """
    number = 1
    while (aside := path.with_name(f"{path.name}.damaged-{number}")).exists():
        number += 1
    for end in ("-wal", "-shm", ""):
        with suppress(FileNotFoundError):
            path.with_name(f"{path.name}{end}").rename(aside.with_name(f"{aside.name}{end}"))
    _sync_folder(path.parent)
    repaired_path(path).replace(path)
    _sync_folder(path.parent)
    return aside


@contextmanager
def _held(path: Path) -> Iterator[None]:
    """Nobody else writes to the journal meanwhile."""
    fd = take_lock(path)
    try:
        yield
    except (sqlite3.Error, OSError, msgspec.MsgspecError) as err:
        raise JournalError(f"journal {path}: cannot be rewritten: {err}; it is left as it is") from err
    finally:
        os.close(fd)


@contextmanager
def _scratch(path: Path) -> Iterator[sqlite3.Connection]:
    """A database for rows as they are found; nothing in it needs to survive."""
    _remove(path)
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute("PRAGMA journal_mode=OFF")
        db.execute("PRAGMA synchronous=OFF")
        db.execute("BEGIN")
        create(db)
        yield db


def _remove(path: Path) -> None:
    for file in (path, path.with_name(f"{path.name}-wal"), path.with_name(f"{path.name}-shm")):
        file.unlink(missing_ok=True)


def _size(path: Path) -> int:
    return sum(file.stat().st_size for file in path.parent.glob(f"{path.name}*") if ".damaged" not in file.name)


def _sync_folder(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
