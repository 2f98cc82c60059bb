"""The journal: what was committed stays, whatever happens next; what was not leaves no trace."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import textwrap
from contextlib import closing
from pathlib import Path

import msgspec
import pytest

from engine.record.journal import (
    CloseEntry,
    Entry,
    EventEntry,
    Journal,
    NoteEntry,
    read_closed,
    read_events,
    read_journal,
    read_notes,
)
from engine.record.journal_check import check_journal
from engine.record.journal_repair import repair_journal
from protocols.errors import JournalError
from protocols.machine import DeadlinePassed, Opened, Replied
from protocols.message import Reply
from protocols.task import Task

ROOT = Path(__file__).resolve().parents[3]


def opened(debate_id: str) -> EventEntry:
    task = Task(id="t", question="What is 1 + 1?")
    return EventEntry(debate_id, 0, 1.0, Opened(debate_id=debate_id, task=task, seed=3))


def replied(debate_id: str, seq: int, text: str = "2") -> EventEntry:
    return EventEntry(debate_id, seq, 2.0, Replied(Reply(ask_id=f"{debate_id}#{seq}", text=text, model="m")))


def journal(path: Path, **options: int) -> Journal:
    return Journal(path, fingerprint="f", sync="normal", **options)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "arena.sqlite"


def one_sentence(error: pytest.ExceptionInfo[JournalError]) -> str:
    assert "\n" not in str(error.value)
    return str(error.value)


def test_what_was_committed_is_read_back_in_order(path: Path) -> None:
    first = journal(path)
    first.commit([opened("a"), opened("b"), replied("a", 1)])
    first.commit([EventEntry("a", 2, 3.0, DeadlinePassed(1)), NoteEntry("a", 4.0, "late", "0a")])
    first.close()
    second = journal(path)  # opened again, it goes on
    second.commit([replied("b", 1), CloseEntry("b", 5.0, b"graph")])
    second.close()
    a, b = read_journal(path)
    assert (a.debate_id, a.graph, a.closed_at) == ("a", None, None)
    assert [event for _, event in a.events] == [opened("a").event, replied("a", 1).event, DeadlinePassed(1)]
    assert [at for at, _ in a.events] == [1.0, 2.0, 3.0]
    assert (b.debate_id, b.graph, b.closed_at, len(b.events)) == ("b", b"graph", 5.0, 2)
    assert [item.debate_id for item in read_journal(path, only_open=True)] == ["a"]
    assert read_notes(path) == [NoteEntry("a", 4.0, "late", "0a")]


def test_some_of_the_closed_debates_are_read_alone(path: Path) -> None:
    ours = journal(path)
    for name in "abc":
        ours.commit([opened(name)])
    ours.commit([CloseEntry("c", 5.0, b"3"), CloseEntry("a", 6.0, b"1")])
    ours.close()
    assert list(read_closed(path)) == [CloseEntry("a", 6.0, b"1"), CloseEntry("c", 5.0, b"3")]
    assert list(read_closed(path, {"c", "b"})) == [CloseEntry("c", 5.0, b"3")]
    assert list(read_closed(path, ())) == []


def test_it_knows_which_debates_it_holds(path: Path) -> None:
    first = journal(path)
    first.commit([opened("a")])
    assert first.holds("a") and not first.holds("b")
    first.close()
    second = journal(path)
    assert second.holds("a") and not second.holds("b")
    second.close()


def test_a_batch_is_written_whole_or_not_at_all(path: Path) -> None:
    ours = journal(path)
    ours.commit([opened("a")])
    with pytest.raises(JournalError, match="cannot write") as error:
        ours.commit([opened("b"), replied("b", 1), opened("a")])  # "a" has an event 0 already
    one_sentence(error)
    assert [(item.debate_id, len(item.events)) for item in read_journal(path)] == [("a", 1)]
    assert not ours.holds("b")
    ours.commit([opened("b")])  # and it can still be written
    ours.close()
    assert [item.debate_id for item in read_journal(path)] == ["a", "b"]


def test_a_journal_of_another_run_is_refused(path: Path) -> None:
    journal(path).close()
    with pytest.raises(JournalError, match="its fingerprint is f, this run's is g; resume with") as error:
        Journal(path, fingerprint="g")
    one_sentence(error)
    journal(path).close()  # refusing it let go of its lock


def test_a_second_writer_is_refused(path: Path) -> None:
    ours = journal(path)
    with pytest.raises(JournalError, match="is in use by another run") as error:
        journal(path)
    one_sentence(error)
    ours.close()
    ours.close()  # twice is fine
    journal(path).close()


def test_a_closed_journal_takes_nothing(path: Path) -> None:
    ours = journal(path)
    ours.close()
    with pytest.raises(JournalError, match="cannot write"):
        ours.commit([opened("a")])


def test_a_full_journal_is_an_error_and_keeps_what_it_held(path: Path) -> None:
    ours = journal(path, max_size_mb=1)
    ours.commit([opened("a")])
    seq = 0
    with pytest.raises(JournalError, match="full; free some space, then go on") as error:  # noqa: PT012
        for seq in range(1, 40):
            ours.commit([replied("a", seq, "x" * 100_000)])
    one_sentence(error)
    assert seq > 5
    assert [len(item.events) for item in read_journal(path)] == [seq]  # the opening, and those before the last
    ours.close()
    roomier = journal(path)
    roomier.commit([replied("a", seq)])
    roomier.close()
    assert [len(item.events) for item in read_journal(path)] == [seq + 1]


def in_child(path: Path, code: str) -> subprocess.Popen[str]:
    """A process that has a journal open as ``ours``; what it acknowledges it prints."""
    head = """
        import resource, sys
        from engine.record.journal import *
        from protocols.errors import JournalError
        from protocols.machine import *
        from protocols.message import Reply
        from protocols.task import Task
        from pathlib import Path
        ours = Journal(Path(sys.argv[1]), fingerprint="f", sync="normal")
        def event(seq, size=100):
            reply = Replied(Reply(ask_id=str(seq), text="x" * size, model="m"))
            task = Task(id="t", question="q")
            return EventEntry("a", seq, 1.0, reply if seq else Opened(debate_id="a", task=task, seed=0))
    """
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(head) + textwrap.dedent(code), str(path)],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize("room_mb", [1, 6])
def test_a_file_that_may_not_grow_is_an_error_and_keeps_what_it_held(path: Path, room_mb: int) -> None:
    """With more room the WAL fits, and it is when its pages are brought into the file that there is none."""
    child = in_child(
        path,
        f"""
        resource.setrlimit(resource.RLIMIT_FSIZE, ({room_mb} << 20, resource.RLIM_INFINITY))
        try:
            for seq in range(1000):
                ours.commit([event(seq, 50_000)])
                print(seq, flush=True)
        except JournalError as err:
            print(err)
        """,
    )
    out, err = child.communicate(timeout=60)
    *acknowledged, last = out.splitlines()
    assert last.startswith(f"journal {path}: cannot write: "), err
    assert len(acknowledged) >= 5
    if room_mb > 1:
        sizes = [file.stat().st_size for file in (path, path.with_name(f"{path.name}-wal"))]
        assert min(sizes) > 5 << 20, "it was not the checkpoint that had no room"
    (found,) = read_journal(path)
    assert len(found.events) == len(acknowledged)
    again = journal(path)  # with room it goes on
    again.commit([replied("a", len(acknowledged))])
    again.close()
    assert check_journal(path, "f").damage == []


def test_a_killed_writer_loses_nothing_that_it_acknowledged(path: Path) -> None:
    child = in_child(
        path,
        """
        for seq in range(1_000_000):
            ours.commit([event(seq)])
            print(seq, flush=True)
        """,
    )
    assert child.stdout is not None and child.stderr is not None
    lines = [child.stdout.readline() for _ in range(200)]
    child.send_signal(signal.SIGKILL)
    lines += child.stdout.read().splitlines()
    child.wait(timeout=30)
    child.stdout.close()
    child.stderr.close()
    acknowledged = len(lines)
    (found,) = read_journal(path)
    assert len(found.events) in (acknowledged, acknowledged + 1)  # one more: written, killed before it could say so
    again = journal(path)  # its lock died with it
    again.commit([replied("a", len(found.events))])
    again.close()


def test_a_reader_beside_the_writer_sees_whole_batches(path: Path) -> None:
    ours = journal(path)
    for number in range(20):
        ours.commit([opened(f"d{number}"), replied(f"d{number}", 1)])
        found = list(read_journal(path))
        assert [len(item.events) for item in found] == [2] * (number + 1)
    ours.close()


@pytest.mark.parametrize("content", [b"not a database, but long enough to look at" * 50, b"SQLite format 3\x00torn"])
def test_a_file_that_is_no_journal_is_one_sentence(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    with pytest.raises(JournalError, match="cannot be read") as error:
        list(read_journal(path))
    one_sentence(error)
    with pytest.raises(JournalError, match="cannot be opened for writing") as error:
        journal(path)
    one_sentence(error)
    assert path.read_bytes() == content


def test_a_torn_journal_is_one_sentence(path: Path) -> None:
    ours = journal(path)
    ours.commit([opened("a"), *(replied("a", seq, "x" * 3000) for seq in range(1, 60))])
    ours.close()
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2] + b"\xff" * 4096)
    with pytest.raises(JournalError, match="cannot be read") as error:
        list(read_journal(path))
    one_sentence(error)


def test_an_event_that_cannot_be_decoded_is_one_sentence(path: Path) -> None:
    ours = journal(path)
    ours.commit([opened("a")])
    ours.close()
    db = sqlite3.connect(path)
    db.execute("UPDATE events SET body = ?", (b"\xc1\x00",))
    db.commit()
    db.close()
    with pytest.raises(JournalError, match="cannot be read") as error:
        list(read_journal(path))
    one_sentence(error)


def test_a_journal_whose_writer_died_at_birth_holds_nothing(path: Path) -> None:
    path.touch()
    assert list(read_journal(path)) == []
    ours = journal(path)
    ours.commit([opened("a")])
    ours.close()
    assert len(list(read_journal(path))) == 1


@pytest.mark.parametrize("folder", ["a#1", "50%", "why?", "ä ö", "a&mode=memory"])
def test_a_folder_may_have_any_name(tmp_path: Path, folder: str) -> None:
    path = tmp_path / folder / "arena.sqlite"
    path.parent.mkdir()
    ours = journal(path)
    ours.commit([opened("a")])
    ours.close()
    assert [item.debate_id for item in read_journal(path)] == ["a"]
    assert read_notes(path) == []


def test_missing_folders_and_files_are_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(JournalError, match="cannot be written: No such file") as error:
        journal(tmp_path / "nowhere" / "arena.sqlite")
    one_sentence(error)
    with pytest.raises(JournalError, match="cannot be read"):
        list(read_journal(tmp_path / "none.sqlite"))


def test_a_folder_that_cannot_be_written_is_one_sentence() -> None:
    with pytest.raises(JournalError, match="journal folder /sys: cannot be written: ") as error:
        journal(Path("/sys/arena.sqlite"))  # nobody can, whoever runs this
    one_sentence(error)


def test_an_event_out_of_turn_is_refused(path: Path) -> None:
    ours = journal(path)
    ours.commit([opened("a")])
    with pytest.raises(JournalError, match="event 2 of 'a' came where 1 is due"):
        ours.commit([replied("a", 2)])
    with pytest.raises(JournalError, match="'b' is to be closed and was never opened"):
        ours.commit([CloseEntry("b", 1.0, b"graph")])
    ours.commit([replied("a", 1)])
    ours.close()


@pytest.fixture
def of_schema_1(path: Path) -> Path:
    """A journal as the first moot wrote it."""
    with closing(sqlite3.connect(path)) as db:
        db.executescript("""
            PRAGMA journal_mode=WAL;
            CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
            CREATE TABLE debates (num INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, graph BLOB, closed_at REAL);
            CREATE TABLE events (
                num INTEGER NOT NULL, seq INTEGER NOT NULL, at REAL NOT NULL, body BLOB NOT NULL, PRIMARY KEY (num, seq)
            ) WITHOUT ROWID;
            CREATE TABLE notes (at REAL NOT NULL, debate TEXT NOT NULL, kind TEXT NOT NULL, text TEXT NOT NULL);
            INSERT INTO meta VALUES ('schema_version', '1'), ('fingerprint', 'f');
            INSERT INTO debates VALUES (1, 'a', NULL, NULL), (2, 'b', x'67', 5.0);
                    """)
        late = msgspec.msgpack.encode(replied("a", 7).event).hex()
        db.execute("INSERT INTO notes VALUES (4.0, 'a', 'late', ?)", (late,))
        for entry in (opened("a"), opened("b"), replied("b", 1), replied("a", 1), replied("a", 2)):
            num, body = " ab".index(entry.debate_id), msgspec.msgpack.encode(entry.event)
            db.execute("INSERT INTO events VALUES (?, ?, ?, ?)", (num, entry.seq, entry.at, body))
        db.commit()
    return path


def test_a_journal_of_schema_1_is_read_and_brought_up_to_date(of_schema_1: Path) -> None:
    def everything() -> list[object]:
        return [
            list(read_journal(of_schema_1)),
            list(read_journal(of_schema_1, only_open=True)),
            list(read_closed(of_schema_1)),
            list(read_events(of_schema_1)),
            read_notes(of_schema_1),
        ]

    assert check_journal(of_schema_1, "f").damage == []
    before = everything()
    assert [event for _, event in read_journal(of_schema_1).__next__().events] == [
        opened("a").event,
        replied("a", 1).event,
        replied("a", 2).event,
    ]
    with pytest.raises(JournalError, match="its fingerprint is f, this run's is g"):
        Journal(of_schema_1, fingerprint="g")
    journal(of_schema_1).close()
    found = check_journal(of_schema_1, "f")
    assert (found.schema_version, found.debates, found.closed, found.events, found.notes) == (2, 2, 1, 5, 1)
    assert found.damage == ["the graph of debate b cannot be decoded: " + UNREADABLE_GRAPH]
    assert everything() == before
    ours = journal(of_schema_1)
    assert ours.holds("a") and ours.answered("a") == {"a#1", "a#2", "a#7"}
    ours.commit([replied("a", 3), opened("c")])
    ours.close()
    assert [len(item.events) for item in read_journal(of_schema_1)] == [4, 2, 1]


def test_a_damaged_journal_of_schema_1_is_repaired(of_schema_1: Path) -> None:
    with closing(sqlite3.connect(of_schema_1)) as db:
        db.execute("UPDATE events SET body = x'c1' WHERE num = 1 AND seq = 1")
        db.commit()
    assert check_journal(of_schema_1, "f").damage[0].startswith("event 1 of debate a cannot be decoded")
    done = repair_journal(of_schema_1, "f", lambda before, after: list(after))
    assert done is not None and done.lost[0] == "event 1 of debate a"
    assert [len(item.events) for item in read_journal(of_schema_1)] == [2, 2]


UNREADABLE_GRAPH = "these 1 bytes are not a debate: Expected `object`, got `int`"


def test_a_journal_of_a_newer_schema_is_refused(path: Path) -> None:
    journal(path).close()
    with closing(sqlite3.connect(path)) as db:
        db.execute("UPDATE meta SET value = '3' WHERE key = 'schema_version'")
        db.commit()
    for work in (lambda: journal(path), lambda: list(read_journal(path)), lambda: read_notes(path)):
        with pytest.raises(JournalError, match="its schema_version is 3, this moot"):
            work()


def test_entries_are_a_closed_set() -> None:
    assert Entry == EventEntry | CloseEntry | NoteEntry
