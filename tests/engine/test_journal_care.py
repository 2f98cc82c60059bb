"""A journal's damage is found and told, what is whole is saved, and nothing that was paid for is asked again."""

from __future__ import annotations

import json
import random
import shutil
import sqlite3
from contextlib import closing
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from engine.cli import main
from engine.record.folder import Manifest, RunFolder
from engine.record.journal import (
    CloseEntry,
    EventEntry,
    Journal,
    NoteEntry,
    read_events,
    read_journal,
    read_notes,
)
from engine.record.journal_check import check_journal
from engine.record.journal_lock import repaired_path
from engine.record.journal_pages import find_rows
from engine.record.journal_repair import compact_journal, repair_journal, usable_after
from engine.record.journal_rows import TABLES
from protocols.errors import JournalError
from protocols.graph import Debate, Verdict, encode_debate
from protocols.machine import DeadlinePassed, Event, Opened, Replied
from protocols.message import Reply
from protocols.task import Task
from tests.engine.helpers import Host, build, debates, make_tasks, run_arena

FINGERPRINT = "f"


def opened(debate_id: str) -> Opened:
    return Opened(debate_id=debate_id, task=Task(id=debate_id, question="q" * 50), seed=1)


def entries(debate_id: str, replies: int, *, close: bool = True, size: int = 300) -> list[EventEntry | CloseEntry]:
    """An opening, replies, and a graph as big as theirs."""
    events: list[Event] = [opened(debate_id)]
    events += [Replied(Reply(ask_id=f"{debate_id}#{n}", text=str(n) * size, model="m")) for n in range(replies)]
    found: list[EventEntry | CloseEntry] = [EventEntry(debate_id, seq, 1.0, event) for seq, event in enumerate(events)]
    if close:
        debate = Debate(id=debate_id, task=Task(id=debate_id, question="q" * 9000), protocol="p", seed=1, cast={})
        debate.close(Verdict(answer="1", stop_reason="rounds", aggregator="vote"))
        found.append(CloseEntry(debate_id, 2.0, encode_debate(debate)))
    return found


def none_usable(before: object, after: object) -> list[Event]:
    return []


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A journal of twelve debates, two of them open, closed cleanly."""
    ours = Journal(tmp_path / "arena-000.sqlite", fingerprint=FINGERPRINT, sync="normal")
    for number in range(12):
        ours.commit(entries(f"d{number}", 6, close=number < 10))
    ours.commit([NoteEntry("d1", 3.0, "set_aside", "why")])
    ours.close()
    return ours.path


def spoil(path: Path, text: bytes) -> None:
    """Change a byte of the first place that holds ``text``, as a disk would."""
    data = bytearray(path.read_bytes())
    at = data.index(text) + len(text) // 2
    data[at] ^= 0x20
    path.write_bytes(data)


def test_a_whole_journal_is_told_to_be(path: Path) -> None:
    found = check_journal(path, FINGERPRINT)
    assert (found.debates, found.closed, found.events, found.notes, found.damage) == (12, 10, 84, 1, [])
    assert repair_journal(path, FINGERPRINT, none_usable) is None


def test_one_changed_byte_is_found_and_located(path: Path) -> None:
    spoil(path, b"4" * 300)
    assert check_journal(path, FINGERPRINT).damage == [
        "event 5 of debate d0 is damaged",
        "of debate d0 events are missing: 5",
    ]
    with pytest.raises(JournalError, match="row 6 of its events is damaged; `moot journal repair RUN` saves the rest"):
        list(read_journal(path))


def test_a_row_in_anothers_place_is_found(path: Path) -> None:
    with closing(sqlite3.connect(path)) as db:
        db.execute("UPDATE events SET body = (SELECT body FROM events WHERE num = 12) WHERE num = 11")
        db.commit()
    assert "event 3 of debate d1 is damaged" in check_journal(path, FINGERPRINT).damage


def test_rows_that_are_gone_are_found(path: Path) -> None:
    with closing(sqlite3.connect(path)) as db:
        db.execute("DELETE FROM events WHERE num BETWEEN 9 AND 10")
        db.execute("DELETE FROM debates WHERE num = 4")
        db.commit()
    damage = check_journal(path, FINGERPRINT).damage
    assert "events 9 to 10 are missing" in damage and "debates 4 to 4 are missing" in damage
    assert "of debate d1 events are missing: 1-2" in damage
    with pytest.raises(JournalError, match="events 9 to 10 are missing"):
        list(read_journal(path))


def test_every_row_is_found_without_sqlite(path: Path) -> None:
    with closing(sqlite3.connect(path)) as db:
        wanted = {(table, row) for table in TABLES for row in db.execute(f"SELECT * FROM {table}")}
    assert set(find_rows(path)) == wanted


def test_rows_of_a_wal_are_found(tmp_path: Path) -> None:
    ours = Journal(tmp_path / "a.sqlite", fingerprint=FINGERPRINT, sync="normal")
    ours.commit(entries("d0", 6))
    copy = tmp_path / "b.sqlite"
    for end in ("", "-wal"):
        shutil.copy(f"{ours.path}{end}", f"{copy}{end}")
    ours.close()
    assert [table for table, _ in find_rows(copy)].count("events") >= 7


def test_a_file_whose_head_is_gone_is_saved_whole(path: Path) -> None:
    before = [(item.debate_id, item.events, item.graph) for item in read_journal(path)]
    data = bytearray(path.read_bytes())
    data[: 4096 * 2] = bytes(4096 * 2)  # SQLite knows nothing any more; rows lie behind
    path.write_bytes(data)
    assert check_journal(path, FINGERPRINT).damage
    done = repair_journal(path, FINGERPRINT, none_usable)
    assert done is not None and done.kept_as == "arena-000.sqlite.damaged-1"
    assert check_journal(path, FINGERPRINT).damage == []
    assert [(item.debate_id, item.events, item.graph) for item in read_journal(path)] == before
    assert path.with_name(done.kept_as).read_bytes() == data
    assert not list(path.parent.glob("*.draft*")) + list(path.parent.glob("*.salvage"))
    Journal(path, fingerprint=FINGERPRINT).close()


def test_what_a_repair_loses_is_told(path: Path) -> None:
    spoil(path, b"2" * 300)  # event 3 of d1, whose graph is whole
    with closing(sqlite3.connect(path)) as db:  # and event 2 of d11, which is open
        db.execute("UPDATE events SET body = x'00' WHERE debate = 12 AND seq = 2")
        db.commit()
    done = repair_journal(path, FINGERPRINT, none_usable)
    assert done is not None
    assert done.lost == [
        "event 3 of debate d1; its graph is whole",
        "event 2 of debate d11; 4 events behind it are of no use without it",
        "2 of its first 84 events in all",
    ]
    assert check_journal(path, FINGERPRINT).damage == []
    found = {item.debate_id: item for item in read_journal(path)}
    assert len(found["d1"].events) == 3 and found["d1"].graph is not None
    assert len(found["d11"].events) == 2 and found["d11"].graph is None
    assert sum(note.kind == "late" for note in read_notes(path)) == 3 + 4  # paid for: their cost still counts


def test_a_repair_that_was_interrupted_is_finished(path: Path) -> None:
    whole = path.read_bytes()
    repaired_path(path).write_bytes(whole)
    with pytest.raises(JournalError, match="its repair was interrupted; `moot journal repair` finishes it"):
        list(read_journal(path))
    with pytest.raises(JournalError, match="its repair was interrupted"):
        Journal(path, fingerprint=FINGERPRINT)
    path.unlink()  # so far had it come
    assert repair_journal(path, FINGERPRINT, none_usable) is not None
    assert path.read_bytes() == whole and not repaired_path(path).exists()


def test_a_journal_that_a_run_holds_is_left_alone(path: Path) -> None:
    ours = Journal(path, fingerprint=FINGERPRINT)
    for work in (
        lambda: repair_journal(path, FINGERPRINT, none_usable),
        lambda: compact_journal(path, FINGERPRINT, drop_events=True),
    ):
        with pytest.raises(JournalError, match="is in use by another run"):
            work()
    ours.close()


@pytest.mark.asyncio
async def test_after_a_repair_only_what_is_missing_is_asked(tmp_path: Path) -> None:
    """Twenty debates stop half way, two replies are lost: those are asked again, and all ends as if untouched."""
    path, whole = tmp_path / "arena-000.sqlite", tmp_path / "whole.sqlite"
    untouched, _ = await run_arena(whole, make_tasks(20), Host(seed=1))
    await run_arena(path, make_tasks(20), Host(seed=1, stop_after=100))
    with closing(sqlite3.connect(path)) as db:
        open_debates = [item.debate_id for item in read_journal(path, only_open=True) if len(item.events) > 1]
        lost = [(num,) for (num,) in db.execute(
            "SELECT num FROM events WHERE seq = 1 AND debate IN (SELECT num FROM debates WHERE id IN (?, ?))",
            open_debates[:2],
        )]  # fmt: skip
        db.executemany("UPDATE events SET at = at + 1 WHERE num = ?", lost)
        db.commit()
    on_record = sum(isinstance(event, Replied) for item in read_journal(whole) for _, event in item.events)
    done = repair_journal(path, FINGERPRINT, lambda before, after: usable_after(build(), before, after))
    assert done is not None and len(done.lost) == 3
    kept = sum(len(item.events) - 1 for item in read_journal(path))
    host = Host(seed=2)
    finished, _ = await run_arena(path, make_tasks(20), host)
    assert debates(finished) == debates(untouched)
    assert on_record and max(host.asked.values()) == 1
    assert sum(host.asked.values()) == sum(len(item.events) - 1 for item in read_journal(path)) - kept


def test_an_opening_that_is_lost_follows_from_the_graph_or_the_recipe(path: Path) -> None:
    before = [item.events for item in read_journal(path)]
    with closing(sqlite3.connect(path)) as db:
        db.execute("UPDATE events SET at = 9 WHERE seq = 0 AND debate IN (1, 11, 12)")
        db.commit()
    done = repair_journal(path, FINGERPRINT, none_usable, {"d10": opened("d10")}.get)
    assert done is not None
    assert done.lost == [
        "the opening of debate d11: it is held anew; 6 events behind it are of no use",
        "3 of its first 84 events in all",
    ]
    assert [[event for _, event in item.events[1:]] for item in read_journal(path)] == [
        [event for _, event in events[1:]] for events in before[:11]
    ]
    assert [item.events[0][1] for item in read_journal(path)][10] == opened("d10")


def test_what_was_asked_from_what_is_lost_is_not_kept() -> None:
    machine = build()
    asks = [command.ask for command in machine.receive(opened("d"))]  # type: ignore[union-attr]
    replies = [Replied(Reply(ask_id=ask.id, text=r"\boxed{1}", model="m")) for ask in asks]
    later = Replied(Reply(ask_id="d#1.debate.0", text="x", model="m"))
    after: list[Event] = [replies[1], DeadlinePassed(1), later]  # the first reply is lost
    assert usable_after(build(), [opened("d")], after) == [replies[1]]
    assert usable_after(build(), [opened("d")], [replies[2], replies[2]]) == [replies[2]]
    assert usable_after(build(), [DeadlinePassed(0)], after) == []  # what the protocol refuses ends it


def test_compacting_loses_nothing_unless_told_to(path: Path) -> None:
    before = list(read_journal(path))
    compact_journal(path, FINGERPRINT, drop_events=False)
    assert list(read_journal(path)) == before
    size, smaller = compact_journal(path, FINGERPRINT, drop_events=True)
    assert smaller < size
    after = list(read_journal(path))
    assert [(item.debate_id, item.graph, item.closed_at) for item in after] == [
        (item.debate_id, item.graph, item.closed_at) for item in before
    ]
    assert [item.events for item in after] == [
        item.events if item.graph is None else item.events[:1] for item in before
    ]
    assert [note.kind for note in read_notes(path)] == ["set_aside", "spent"]
    assert check_journal(path, FINGERPRINT).damage == []


def test_a_damaged_journal_is_not_compacted(path: Path) -> None:
    spoil(path, b"4" * 300)
    before = path.read_bytes()
    with pytest.raises(JournalError, match="is damaged; `moot journal repair` comes first"):
        compact_journal(path, FINGERPRINT, drop_events=True)
    assert path.read_bytes() == before


COMMITS = [entries(f"d{number}", 5, close=number % 2 == 0) for number in range(8)]


@pytest.fixture(scope="module")
def torn(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, bytes, bytes]:
    """A journal as its writer's death leaves it: part of it in the file, part in the WAL."""
    folder = tmp_path_factory.mktemp("torn")
    ours = Journal(folder / "whole.sqlite", fingerprint=FINGERPRINT, sync="normal")
    for number, commit in enumerate(COMMITS):
        ours.commit(commit)
        if number == 4:
            with closing(sqlite3.connect(ours.path)) as db:
                db.execute("PRAGMA wal_checkpoint(PASSIVE)")
    data, wal = ours.path.read_bytes(), Path(f"{ours.path}-wal").read_bytes()
    ours.close()
    return folder, data, wal


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 2**32), in_wal=st.booleans(), cut=st.booleans())
def test_a_torn_or_scribbled_journal_is_found_or_told(
    torn: tuple[Path, bytes, bytes], seed: int, in_wal: bool, cut: bool
) -> None:
    """Either what is read is a beginning of what was committed, or the damage is told; and a repair reads true rows."""
    folder, data, wal = torn
    drawn = random.Random(seed)
    hurt = bytearray(wal if in_wal else data)
    at = drawn.randrange(len(hurt))
    if cut:
        del hurt[at:]
    else:
        hurt[at : at + drawn.choice((1, 16, 4096))] = drawn.randbytes(drawn.choice((1, 16, 4096)))
    path = folder / "torn.sqlite"
    for file in folder.glob("torn*"):
        file.unlink()
    path.write_bytes(data if in_wal else hurt)
    Path(f"{path}-wal").write_bytes(hurt if in_wal else wal)

    committed = [[item.event for item in commit if isinstance(item, EventEntry)] for commit in COMMITS]
    beginnings = [list(chain.from_iterable(committed[:number])) for number in range(len(committed) + 1)]
    truth = beginnings[-1]
    if not check_journal(path, FINGERPRINT).damage:
        assert list(read_events(path)) in beginnings
        if not in_wal:
            assert list(read_events(path)) == truth
    else:
        if not list(find_rows(path)):
            with pytest.raises(JournalError, match="nothing in it can be read"):
                repair_journal(path, FINGERPRINT, none_usable)
            return
        assert repair_journal(path, FINGERPRINT, none_usable) is not None
        assert check_journal(path, FINGERPRINT).damage == []
        events = [event for item in read_journal(path) for _, event in item.events]
        assert [event for event in truth if event in events] == events


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run that is done, of two debates."""
    folder = RunFolder.create(
        tmp_path / "run",
        Manifest(id="r", kind="import", name="r", fingerprint="f", num_arenas=1, recipe={}, recipe_path=""),
    )
    (path,) = folder.journals("debate")
    path.parent.mkdir(parents=True)
    ours = Journal(path, fingerprint="f", sync="normal")
    ours.commit([*entries("d0", 3), *entries("d1", 3)])
    ours.close()
    folder.manifest.finished_at = 1.0
    folder.mark_done("debate", {"debates": 2, "replies": 6})
    folder.release()
    return folder.path


def moot(*arguments: object) -> tuple[int, dict[str, Any]]:
    done = CliRunner().invoke(main, ["journal", *map(str, arguments), "--json"])
    assert done.exit_code != 2, done.output
    return done.exit_code, json.loads(done.stdout)


def test_the_commands_say_what_they_found_and_did(run: Path) -> None:
    path = run / "journal" / "debate" / "arena-000.sqlite"
    code, told = moot("check", run)
    assert code == 0 and told["damage"] == []
    assert told["journals"]["journal/debate/arena-000.sqlite"] == {
        "schema_version": 2, "debates": 2, "closed": 2, "events": 8, "notes": 0,
    }  # fmt: skip
    plain = CliRunner().invoke(main, ["journal", "check", str(run)])
    assert plain.stdout.splitlines()[1:] == [
        "journals:",
        "  journal/debate/arena-000.sqlite: schema_version 2, debates 2, closed 2, events 8, notes 0",
    ]
    assert moot("repair", run)[1] == {
        "run": str(run), "found": [], "repaired": {}, "lost": [], "reopened": [],
    }  # fmt: skip
    with closing(sqlite3.connect(path)) as db:
        db.execute("UPDATE graphs SET at = 0 WHERE num = 1")
        db.commit()
    code, told = moot("check", run)
    assert code == 1 and told["damage"] == ["journal/debate/arena-000.sqlite: the graph of debate d0 is damaged"]
    code, told = moot("repair", run)
    assert code == 0 and told["lost"] == [] and told["reopened"] == ["debate"]
    assert told["repaired"]["journal/debate/arena-000.sqlite"] == {
        "kept_as": "arena-000.sqlite.damaged-1", "debates": 2, "closed": 1, "events": 8,
    }  # fmt: skip
    assert RunFolder.open(run).manifest.finished_at is None  # there is something to resume again
    code, told = moot("compact", run, "--drop-events")
    assert code == 0 and told["bytes_after"] <= told["bytes_before"]
    assert [len(item.events) for item in read_journal(path)] == [4, 1]


def test_a_run_that_is_going_is_only_checked(run: Path) -> None:
    folder = RunFolder.open(run)
    folder.lock()
    for command in ("repair", "compact"):
        done = CliRunner().invoke(main, ["journal", command, str(run)])
        assert done.exit_code == 2 and "is in use by another moot" in done.stderr
    assert moot("check", run)[0] == 0
    folder.release()
