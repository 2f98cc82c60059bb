"""A journal's copy: what was committed is in it soon, a store that fails holds nothing up, and a run comes back."""

from __future__ import annotations

import shutil
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

import engine.record.mirror
from engine.config.recipe import RunSettings
from engine.record.folder import Manifest, RunFolder
from engine.record.journal import CloseEntry, EventEntry, Journal, NoteEntry, read_journal, read_notes
from engine.record.journal_check import check_journal
from engine.record.journal_repair import compact_journal
from engine.record.mirror import Mirror, place_of, restore_journal
from engine.record.mirror_folder import fetch_missing, mirrored, restore_folder
from engine.record.store import Store
from protocols.errors import ConfigError, JournalError
from protocols.graph import Debate, Verdict, encode_debate
from protocols.machine import Opened, Replied
from protocols.message import Reply
from protocols.task import Task
from tests.engine.helpers import Host, assignment, debates, make_arena, make_tasks, run_arena

NEVER_S = 3600.0  # copied when told to, or in the end


def entries(debate_id: str, *, close: bool = True) -> list[EventEntry | CloseEntry]:
    task = Task(id=debate_id, question="q")
    reply = Replied(Reply(ask_id=f"{debate_id}#0", text="x" * 500, model="m"))
    debate = Debate(id=debate_id, task=task, protocol="p", seed=1, cast={})
    debate.close(Verdict(answer="1", stop_reason="rounds", aggregator="vote"))
    found: list[EventEntry | CloseEntry] = [
        EventEntry(debate_id, 0, 1.0, Opened(debate_id=debate_id, task=task, seed=1)),
        EventEntry(debate_id, 1, 2.0, reply),
    ]
    return [*found, CloseEntry(debate_id, 3.0, encode_debate(debate))] if close else found


def journal(path: Path) -> Journal:
    path.parent.mkdir(parents=True, exist_ok=True)
    return Journal(path, fingerprint="f", sync="normal")


def same(one: Path, other: Path) -> bool:
    return list(read_journal(one)) == list(read_journal(other)) and read_notes(one) == read_notes(other)


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"file://{tmp_path}/store"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "runs" / "r" / "journal" / "debate" / "arena-000.sqlite"


def test_what_was_committed_comes_back_byte_for_byte(path: Path, url: str, tmp_path: Path) -> None:
    ours = journal(path)
    mirror = Mirror(path, url, every_s=NEVER_S)
    for number in range(5):
        ours.commit(entries(f"d{number}", close=number != 3))
        mirror._copy()  # a segment each
    ours.commit([NoteEntry("d1", 4.0, "late", "00")])
    assert (ours.num_events, mirror.num_events) == (10, 10)
    assert mirror.close()
    ours.close()
    copy = tmp_path / "copy" / "arena.sqlite"
    assert restore_journal(url, copy) == 10
    assert same(path, copy) and check_journal(copy, "f").damage == []
    assert len(Store(url).names()) == 6
    assert restore_journal(f"{url}/nothing", tmp_path / "none.sqlite") == 0
    assert not (tmp_path / "none.sqlite").exists()


def test_every_beginning_of_a_copy_can_be_resumed(
    path: Path, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However small the segments: no debate without its opening, no graph before its events."""
    monkeypatch.setattr(engine.record.mirror, "SEGMENT_BYTES", 900)
    ours = journal(path)
    for number in range(6):
        ours.commit(entries(f"d{number}"))
    Mirror(path, url, every_s=NEVER_S).close()
    ours.close()
    segments = Store(url).names()
    assert len(segments) > 3
    for left in range(len(segments), 0, -1):
        copy = tmp_path / f"{left}.sqlite"
        restore_journal(url, copy)
        assert check_journal(copy, "f").damage == []
        (tmp_path / "store" / segments[left - 1]).unlink()


def test_a_copy_goes_on_where_it_stood_and_follows_the_journal_alone(path: Path, url: str, tmp_path: Path) -> None:
    ours = journal(path)
    ours.commit(entries("d0"))
    stale = Mirror(path, url, every_s=NEVER_S)
    stale._copy()
    second = Mirror(path, url, every_s=NEVER_S)  # of the process that came after
    assert second.num_events == 2
    ours.commit(entries("d1"))
    second._copy()
    stale._copy()  # one that was thought dead writes on: nobody follows it
    ours.commit(entries("d2"))
    assert second.close()
    ours.close()
    copy = tmp_path / "copy.sqlite"
    restore_journal(url, copy)
    assert same(path, copy)


def test_a_journal_behind_its_copy_is_made_whole(path: Path, url: str, tmp_path: Path) -> None:
    """What SQLite cannot notice: a file that is whole, and misses its last commits."""
    ours = journal(path)
    ours.commit(entries("d0"))
    ours.close()
    shutil.copy(path, tmp_path / "old.sqlite")
    ours = journal(path)
    ours.commit(entries("d1"))
    assert Mirror(path, url, every_s=NEVER_S).close()
    ours.close()
    whole = list(read_journal(path))
    shutil.copy(tmp_path / "old.sqlite", path)
    with pytest.raises(JournalError, match="holds another row 2 of its debates; `moot journal restore`"):
        Mirror(path, url, every_s=NEVER_S)
    assert (restore_journal(url, path), restore_journal(url, path)) == (2, 0)
    assert list(read_journal(path)) == whole
    Mirror(path, url, every_s=NEVER_S).close()


def test_a_journal_that_went_another_way_than_its_copy_is_refused(path: Path, url: str, tmp_path: Path) -> None:
    ours = journal(path)
    ours.commit(entries("d0"))
    ours.close()
    shutil.copy(path, tmp_path / "old.sqlite")
    ours = journal(path)
    for number in range(2):
        ours.commit(entries(f"d{1 + number}"))
    assert Mirror(path, url, every_s=NEVER_S).close()
    with pytest.raises(JournalError, match="is in use by another run"):
        restore_journal(url, path)
    ours.close()
    shutil.copy(tmp_path / "old.sqlite", path)
    ours = journal(path)
    ours.commit(entries("other"))
    ours.close()
    before = list(read_journal(path))
    with pytest.raises(JournalError, match="is another in the file"):
        restore_journal(url, path)
    assert list(read_journal(path)) == before


def test_a_store_that_cannot_be_read_stops_only_who_has_nothing(
    path: Path, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def names(store: Store, folder: str = "") -> list[str]:
        raise OSError("no route")

    monkeypatch.setattr(Store, "names", names)
    path.parent.mkdir(parents=True)
    with pytest.raises(JournalError, match="cannot be read: OSError: no route"):
        restore_journal(url, path)
    journal(path).close()
    assert restore_journal(url, path) == 0


def test_a_journal_that_was_written_anew_is_copied_anew(path: Path, url: str, tmp_path: Path) -> None:
    ours = journal(path)
    ours.commit(entries("d0"))
    assert Mirror(path, url, every_s=NEVER_S).close()
    ours.close()
    compact_journal(path, "f", drop_events=True)
    assert Mirror(path, url, every_s=NEVER_S).close()
    copy = tmp_path / "copy.sqlite"
    restore_journal(url, copy)
    assert same(path, copy)


def test_a_segment_that_is_missing_or_damaged_is_told_and_a_torn_last_one_is_left_out(
    path: Path, url: str, tmp_path: Path
) -> None:
    ours = journal(path)
    mirror = Mirror(path, url, every_s=NEVER_S)
    for number in range(3):
        ours.commit(entries(f"d{number}"))
        mirror._copy()
    mirror.close()
    ours.close()
    _, middle, last = (tmp_path / "store" / name for name in Store(url).names())
    last.write_bytes(last.read_bytes()[:-5])
    assert restore_journal(url, tmp_path / "a.sqlite") == 4
    assert Mirror(path, url, every_s=NEVER_S).close()  # and is written again
    assert restore_journal(url, tmp_path / "b.sqlite") == 6
    whole = middle.read_bytes()
    middle.write_bytes(whole.replace(b"x" * 100, b"y" * 100, 1))
    with pytest.raises(JournalError, match="segment 000000-000001 is damaged: row 4 of its events"):
        restore_journal(url, tmp_path / "c.sqlite")
    middle.unlink()
    with pytest.raises(JournalError, match="segment 000000-000001 is missing"):
        restore_journal(url, tmp_path / "c.sqlite")
    assert list(read_journal(tmp_path / "c.sqlite")) == []


def test_a_store_that_fails_is_told_once_and_retried(
    path: Path, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    real, failing, tries = Store.put, threading.Event(), threading.Semaphore(0)
    failing.set()

    def put(store: Store, name: str, data: bytes) -> None:
        tries.release()
        if failing.is_set():
            raise OSError("no route to the store")
        real(store, name, data)

    monkeypatch.setattr(Store, "put", put)
    ours = journal(path)
    mirror = Mirror(path, url, every_s=0.01)
    ours.commit(entries("d0"))
    for _ in range(3):
        assert tries.acquire(timeout=10)
    ours.commit(entries("d1"))  # nothing waits for the store
    assert mirror.num_events == 0 and "no route" in mirror.error and mirror.age_s > 0
    failing.clear()
    assert mirror.close()
    assert mirror.num_events == 4 and mirror.error == ""
    ours.close()
    assert [record.getMessage().partition(" is ")[2] for record in caplog.records] == [
        "not copied: OSError: no route to the store; it is tried again",
        "copied again",
    ]


@pytest.mark.asyncio
async def test_an_arena_says_how_far_its_copy_is_and_comes_back_from_it(path: Path, url: str, tmp_path: Path) -> None:
    path.parent.mkdir(parents=True)
    whole, _ = await run_arena(tmp_path / "whole.sqlite", make_tasks(10), Host(seed=1))
    host = Host(seed=1, stop_after=30)
    arena = make_arena(path, host, mirror=url, mirror_every_s=NEVER_S)
    await arena.recover()
    arena.open([assignment(task) for task in make_tasks(10)])
    await host.stopped.wait()
    await arena.settle()
    _, stats = await arena.collect(0.0)
    assert stats.uncopied == 40 and stats.copy_error == ""
    await arena.close()
    path.unlink()
    assert restore_journal(url, path) == 40
    again = Host(seed=2)
    finished, _ = await run_arena(path, make_tasks(10), again)
    assert debates(finished) == debates(whole)
    assert not {ask for ask in again.asked if host.asked[ask] and ask in delivered(path, 40)}


def delivered(path: Path, first: int) -> set[str]:
    with closing(sqlite3.connect(path)) as db:
        assert db.execute("SELECT count(*) FROM events").fetchone()[0] > first
    return {
        event.reply.ask_id
        for item in read_journal(path)
        for number, (_, event) in enumerate(item.events)
        if isinstance(event, Replied) and number < 2
    }


def manifest(name: str = "r", started_at: float = 1.0) -> Manifest:
    return Manifest(
        id=name, kind="run", name=name, fingerprint="f", num_arenas=1, recipe={}, recipe_path="", started_at=started_at
    )


def run_folder(path: Path) -> RunFolder:
    """A run's folder with a journal and other files."""
    folder = RunFolder.create(path.parents[2], manifest())
    (folder.path / "media").mkdir()
    (folder.path / "media" / "abc.png").write_bytes(b"\x89PNG")
    (folder.path / "train").mkdir()
    (folder.path / "train" / "feed").write_bytes(b"made again")
    return folder


def comes_back(path: Path, url: str, tmp_path: Path) -> None:
    """A run and its mirror; then the run's folder is gone."""
    folder = run_folder(path)
    ours = journal(path)
    with mirrored(folder, RunSettings(mirror=url, mirror_every_s=NEVER_S), pytest.fail):
        mirror = Mirror(path, place_of(url, path), every_s=NEVER_S)
        ours.commit(entries("d0"))
        assert mirror.close()
    folder.release()
    ours.close()
    kept = tmp_path / "kept"
    folder.path.rename(kept)

    back, events = restore_folder(f"{url}/r", path.parents[2])
    assert events == 2
    assert same(path, kept / path.relative_to(folder.path))
    assert RunFolder.open(back).manifest == folder.manifest
    assert (back / "media" / "abc.png").read_bytes() == b"\x89PNG" and not (back / "train").exists()
    path.unlink()
    assert fetch_missing(folder, url) == [path] and fetch_missing(folder, url) == []
    with pytest.raises(ConfigError, match="is there already; choose another"):
        restore_folder(f"{url}/r", back)
    with pytest.raises(ConfigError, match="holds no run"):
        restore_folder(f"{url}/other", tmp_path / "other")
    stranger = RunFolder(folder.path, manifest(started_at=2.0))
    with (
        pytest.raises(ConfigError, match="holds another run of this name"),
        mirrored(stranger, RunSettings(mirror=url), pytest.fail),
    ):
        pass


def test_a_run_comes_back_from_a_folder(path: Path, url: str, tmp_path: Path) -> None:
    comes_back(path, url, tmp_path)


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A bucket of a real S3 server."""
    import fsspec
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    for name, value in {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{server.get_host_and_port()[1]}",
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",
        "AWS_DEFAULT_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(name, value)
    fsspec.filesystem("s3", skip_instance_cache=True).call_s3("create_bucket", Bucket="debates")
    yield "s3://debates/runs"
    server.stop()


@pytest.mark.slow  # the server takes seconds to be imported
def test_a_run_comes_back_from_s3(path: Path, bucket: str, tmp_path: Path) -> None:
    comes_back(path, bucket, tmp_path)


def test_a_mirror_that_cannot_be_used_is_one_sentence(path: Path, tmp_path: Path) -> None:
    folder = run_folder(path)
    with (
        pytest.raises(ConfigError, match=r"run\.mirror='nowhere://x/r': Protocol not known"),
        mirrored(folder, RunSettings(mirror="nowhere://x"), pytest.fail),
    ):
        pass
    folder.release()


def test_a_store_leads_nowhere_out_of_the_folder(path: Path, url: str, tmp_path: Path, monkeypatch: Any) -> None:
    store = Store(f"{url}/r")
    store.put("files/run.json", b"{}")
    monkeypatch.setattr(Store, "names", lambda *_: ["files/../../x", "files/run.json"])
    with pytest.raises(ConfigError, match="which is no file of a run"):
        restore_folder(f"{url}/r", path.parents[2])
    assert not path.parents[2].exists()
