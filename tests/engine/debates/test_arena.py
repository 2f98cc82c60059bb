"""The arena, driven in one process: many debates at once, and everything that can go wrong around them."""

from __future__ import annotations

import asyncio
import itertools
import random
import shutil
import sqlite3
from collections import defaultdict
from collections.abc import Callable, Iterable
from contextlib import closing
from pathlib import Path
from typing import ClassVar

import msgspec
import pytest

from engine.debates.arena import Arena, Assignment
from engine.record.journal import CloseEntry, Entry, EventEntry, Journal, read_journal, read_notes
from protocols.errors import JournalError
from protocols.graph import Edge
from protocols.machine import AgentFailed, Command, DeadlinePassed, Event, Opened, Record, Replied, Request
from protocols.message import Ask, Failure, Outcome, Stopped
from protocols.society import Society
from protocols.task import Task
from tests.engine.helpers import (
    PLAYERS,
    PROMPTS,
    SETTINGS,
    Host,
    answer,
    assignment,
    build,
    debates,
    make_arena,
    make_tasks,
    pack,
    reply,
    run_arena,
)

pytestmark = pytest.mark.asyncio


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "arena.sqlite"


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.001)


def ask_id(event: Event) -> str | None:
    if isinstance(event, Replied):
        return event.reply.ask_id
    return event.failure.ask_id if isinstance(event, AgentFailed) else None


def on_record(path: Path) -> set[str]:
    """The asks whose outcome the journal holds."""
    return {found for item in read_journal(path) for _, event in item.events if (found := ask_id(event)) is not None}


class Watched(Society):
    """Society that keeps what it commanded, by debate."""

    commanded: ClassVar[dict[str, list[bytes]]]

    def __init__(self) -> None:
        super().__init__(SETTINGS, PLAYERS, PROMPTS)

    def receive(self, event: Event) -> list[Command]:
        commands = super().receive(event)
        self.commanded[self.debate_id].append(msgspec.msgpack.encode(commands))
        return commands


async def test_all_debates_close(path: Path) -> None:
    host = Host()
    finished, stats = await run_arena(path, make_tasks(50), host)
    assert len(finished) == 50 and not stats.error
    assert stats.replies + stats.failures == len(host.asked) == sum(host.asked.values())
    assert stats.failures > 0
    assert stats.usage.completion_tokens == 2 * stats.replies
    assert stats.open == 0 and stats.closed == 50 and stats.late == 0
    for debate in debates(finished).values():
        assert debate.verdict is not None and debate.verdict.stop_reason in ("rounds", "no_replies")
    stored = {item.debate_id: item.graph for item in read_journal(path)}
    assert stored == {key: item.graph for key, item in finished.items()}


async def test_two_thousand_debates(path: Path) -> None:
    host = Host()
    finished, stats = await run_arena(path, make_tasks(2000), host)
    assert len(finished) == 2000 and not stats.error and stats.late == 0
    assert set(host.asked.values()) == {1}
    assert on_record(path) == set(host.asked)
    alone, _ = await run_arena(path.with_name("one.sqlite"), make_tasks(2000)[1234:1235], Host(seed=9))
    assert debates(alone)["s/t1234"] == debates(finished)["s/t1234"]  # the others made no difference


async def test_a_reply_is_on_record_before_the_machine_sees_it(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    committed: set[str] = set()
    seen: list[str] = []
    commit = Journal.commit

    def spy(self: Journal, entries: Iterable[Entry]) -> None:
        entries = list(entries)
        commit(self, entries)
        committed.update(found for item in entries if isinstance(item, EventEntry) and (found := ask_id(item.event)))

    class Suspicious(Society):
        def receive(self, event: Event) -> list[Command]:
            if (found := ask_id(event)) is not None:
                assert found in committed
                seen.append(found)
            return super().receive(event)

    monkeypatch.setattr(Journal, "commit", spy)
    finished, _ = await run_arena(path, make_tasks(20), Host(), build=lambda: Suspicious(SETTINGS, PLAYERS, PROMPTS))
    assert len(finished) == 20 and not any("assert" in item.set_aside for item in finished.values())
    assert set(seen) == committed and len(seen) > 60


async def test_graphs_are_written_with_the_next_events_and_the_last_one_at_once(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("engine.debates.arena.LINGER_S", 60.0)
    commits: list[list[Entry]] = []
    commit = Journal.commit

    def spy(self: Journal, entries: Iterable[Entry]) -> None:
        commits.append(list(entries))
        commit(self, commits[-1])

    monkeypatch.setattr(Journal, "commit", spy)
    host = Host(lambda ask: reply(ask.id) if ask.debate_id != "s/t1" else None)
    arena = make_arena(path, host)
    await arena.recover()
    first, slow, third = make_tasks(3)

    def recorded(kind: type[Entry], task: Task) -> list[int]:
        """The commits that hold such an entry of the task's debate."""
        name = assignment(task).debate_id
        return [
            number
            for number, held in enumerate(commits)
            for item in held
            if isinstance(item, kind) and item.debate_id == name
        ]

    arena.open([assignment(first), assignment(slow)])
    await until(lambda: len(recorded(EventEntry, first)) == 7)  # opened, and six replies
    await asyncio.sleep(0.05)
    assert not recorded(CloseEntry, first), "a graph was written by itself"
    arena.open([assignment(third)])
    await until(lambda: len(recorded(EventEntry, third)) == 7)
    assert recorded(CloseEntry, first) == recorded(EventEntry, third)[:1]
    arena.deliver(pack([reply(f"s/t1#0.answer.{seat}") for seat in range(3)]))
    await until(lambda: host.asked["s/t1#1.answer.2"] == 1)
    arena.deliver(pack([reply(f"s/t1#1.answer.{seat}") for seat in range(3)]))
    await until(lambda: bool(recorded(CloseEntry, slow)))  # nobody is left to wait for
    await arena.settle()
    finished, stats = await arena.collect(1.0)
    assert stats.closed == 3 and len(finished) == 3
    await arena.close()


@pytest.mark.parametrize("seed", [1, 2, 3])
async def test_the_order_of_outcomes_changes_no_graph(tmp_path: Path, seed: int) -> None:
    tasks = make_tasks(30)
    first, _ = await run_arena(tmp_path / "a.sqlite", tasks, Host(seed=0))
    other, _ = await run_arena(tmp_path / "b.sqlite", list(reversed(tasks)), Host(seed=seed))
    assert debates(first) == debates(other)


async def test_duplicates_and_strangers_change_nothing(tmp_path: Path) -> None:
    class Repeating(Host):
        async def tell(self, packed: bytes) -> None:
            await super().tell(packed)
            assert self.arena is not None
            twice: list[Outcome] = [item for item in self._waiting for _ in range(2)]
            self.arena.deliver(pack([*twice, reply("nobody#0.answer.0"), reply("no debate at all")]))
            self.arena.deliver(pack(twice))

    tasks = make_tasks(20)
    plain, _ = await run_arena(tmp_path / "a.sqlite", tasks, Host())
    noisy, stats = await run_arena(tmp_path / "b.sqlite", tasks, Repeating())
    assert debates(plain) == debates(noisy)
    assert not stats.error and stats.late > 0
    assert {note.kind for note in read_notes(tmp_path / "b.sqlite")} == {"late"}


async def test_a_task_handed_out_twice_is_held_once(path: Path) -> None:
    host = Host()
    arena = make_arena(path, host)
    await arena.recover()
    (task,) = make_tasks(1)
    arena.open([assignment(task), assignment(task)])
    finished, stats = await arena.collect(5.0)
    assert len(finished) == 1
    arena.open([assignment(task)])  # closed by now
    again, stats = await arena.collect(0.1)
    assert (again, stats.error, stats.open) == ([], "", 0)
    await arena.close()
    assert set(host.asked.values()) == {1}


async def test_a_host_that_hangs_is_left_at_the_deadline(path: Path) -> None:
    def silent(ask: Ask) -> Outcome | None:
        return None if ask.agent == "bo" else reply(ask.id)

    finished, stats = await run_arena(path, make_tasks(10), Host(silent), deadline_s=0.05)
    assert len(finished) == 10 and not stats.error
    for debate in debates(finished).values():
        assert {node.agent for node in debate.utterances} == {"ada", "cy"}
        assert debate.verdict is not None and debate.verdict.votes == 2


async def test_a_host_that_never_answers_sets_every_debate_aside(path: Path) -> None:
    finished, stats = await run_arena(path, make_tasks(5), Host(lambda ask: None), deadline_s=0.05)
    assert len(finished) == 5 and not stats.error
    assert all(item.set_aside == "no agent replied" for item in finished.values())


async def test_a_reply_after_the_deadline_is_noted_and_changes_nothing(path: Path) -> None:
    def silent(ask: Ask) -> Outcome | None:
        return None if ask.agent == "bo" else reply(ask.id)

    host = Host(silent)
    arena = make_arena(path, host, deadline_s=0.05)
    await arena.recover()
    arena.open([assignment(task) for task in make_tasks(1)])
    (done,), _ = await arena.collect(5.0)
    late = pack([reply("s/t0#0.answer.1")])
    arena.deliver(late)
    arena.deliver(late)  # a host that does not know whether it was heard tells it again: at once,
    await until(lambda: arena._late > 0)
    arena.deliver(late)  # later,
    await arena.settle()
    _, stats = await arena.collect(0.0)
    await arena.close()
    successor = make_arena(path, host, deadline_s=0.05)
    await successor.recover()
    successor.deliver(late)  # and to whoever comes after
    await successor.settle()
    await successor.close()
    assert stats.late == 1
    (note,) = read_notes(path)
    assert (note.debate_id, note.kind) == ("s/t0", "late")
    assert "0.answer.1" not in {node.id for node in debates({"d": done})["d"].utterances}
    (found,) = read_journal(path)
    assert found.graph == done.graph


async def waiting_for_replies(path: Path, count: int) -> tuple[Arena, Host]:
    """An arena with so many debates, and the host that was asked and answers nothing."""
    host = Host(lambda ask: None)
    arena = make_arena(path, host)
    await arena.recover()
    arena.open([assignment(task) for task in make_tasks(count)])
    await until(lambda: len(host.asked) >= 3 * count)
    return arena, host


async def test_a_reply_that_is_told_twice_is_no_late_one(path: Path) -> None:
    arena, host = await waiting_for_replies(path, 1)
    twice = pack([reply(f"s/t0#0.answer.{member}") for member in range(3)])
    arena.deliver(twice)
    arena.deliver(twice)
    await until(lambda: len(host.asked) >= 6)
    _, stats = await arena.collect(0.0)
    await arena.close()
    assert (stats.replies, stats.late, read_notes(path)) == (3, 0, [])


async def test_a_reply_after_a_failure_of_the_same_ask_was_paid_for(path: Path) -> None:
    arena, _ = await waiting_for_replies(path, 1)
    arena.deliver(pack([Failure(ask_id="s/t0#0.answer.0", kind="timeout", reason="slow"), reply("s/t0#0.answer.0")]))
    await arena.settle()
    _, stats = await arena.collect(0.0)
    await arena.close()
    assert (stats.failures, stats.replies, stats.late) == (1, 0, 1)


async def test_replies_and_a_deadline_in_one_batch(path: Path) -> None:
    """The last reply ends the phase, so the deadline behind it is stale; the other way round the reply is late."""
    arena, host = await waiting_for_replies(path, 2)
    first, second = (assignment(task) for task in make_tasks(2))
    ones, twos = ([reply(f"{it.debate_id}#0.answer.{member}") for member in range(3)] for it in (first, second))
    arena.deliver(pack(twos[:2]))
    await until(lambda: arena._replies >= 2)
    arena.deliver(pack(ones))
    arena._expire(first.debate_id)
    arena._expire(second.debate_id)
    arena.deliver(pack(twos[2:]))
    await until(lambda: len(host.asked) >= 11)  # all three of the first go on, two of the second
    _, stats = await arena.collect(0.0)
    await arena.close()
    assert (stats.late, stats.error, stats.open) == (1, "", 2)
    one, two = read_journal(path)
    assert not any(isinstance(event, DeadlinePassed) for _, event in one.events)
    assert [type(event) for _, event in two.events] == [Opened, Replied, Replied, DeadlinePassed]
    assert not [note for note in read_notes(path) if note.kind == "set_aside"]


class Broken(Society):
    """Society with a fault that one task brings out."""

    def __init__(self, fault: str) -> None:
        super().__init__(SETTINGS, PLAYERS, PROMPTS)
        self._fault = fault

    def receive(self, event: Event) -> list[Command]:
        if self.debate_id != "s/t3" or not isinstance(event, Replied):
            return super().receive(event)
        if self._fault == "raises":
            raise ZeroDivisionError("a bug")
        commands = super().receive(event)
        if self._fault == "asks a stranger":
            ask = next(iter(self.outstanding.values()), None)
            return [*commands, *([Request(msgspec.structs.replace(ask, agent="zed"))] if ask else [])]
        return [
            Record(item.utterance, (Edge("nowhere", item.utterance.id, "saw"),)) if isinstance(item, Record) else item
            for item in commands
        ]


@pytest.mark.parametrize("fault", ["raises", "asks a stranger", "draws a wrong edge"])
async def test_a_machine_that_fails_is_set_aside_alone(path: Path, fault: str) -> None:
    finished, stats = await run_arena(
        path, make_tasks(10), Host(lambda ask: reply(ask.id)), build=lambda: Broken(fault)
    )
    assert len(finished) == 10 and not stats.error
    aside = {key: item.set_aside for key, item in finished.items() if item.set_aside}
    assert list(aside) == ["s/t3"] and "the protocol failed" in aside["s/t3"]
    assert [(note.debate_id, note.kind) for note in read_notes(path) if note.kind == "set_aside"] == [
        ("s/t3", "set_aside")
    ]
    closed, others = await recovered(path)
    assert closed == finished.keys() and others == []


async def recovered(path: Path) -> tuple[set[str], list[str]]:
    arena = make_arena(path, Host())
    closed, others = await arena.recover()
    await arena.close()
    return {item.debate_id for item in closed}, others


async def events_of(path: Path) -> list[EventEntry]:
    """All events of one debate, as an undisturbed run leaves them."""
    await run_arena(path, make_tasks(1), Host(lambda ask: reply(ask.id)))
    (item,) = read_journal(path)
    return [EventEntry("s/t0", seq, at, event) for seq, (at, event) in enumerate(item.events)]


def write(path: Path, entries: list[EventEntry]) -> None:
    journal = Journal(path, fingerprint="f", sync="normal")
    journal.commit(entries)
    journal.close()


async def test_a_debate_whose_end_was_not_yet_written_ends_on_resume(tmp_path: Path) -> None:
    """Killed between a debate's last reply and its graph: the caller must not hand the task out again."""
    entries = await events_of(tmp_path / "whole.sqlite")
    path = tmp_path / "cut.sqlite"
    write(path, entries)
    host = Host()
    arena = make_arena(path, host)
    closed, others = await arena.recover()
    assert (closed, others) == ([], ["s/t0"])
    arena.open([assignment(task) for task in make_tasks(1)])  # even if it is
    (done,), stats = await arena.collect(5.0)
    await arena.close()
    assert not stats.error and not host.asked
    (whole,) = read_journal(tmp_path / "whole.sqlite")
    (now,) = read_journal(path)
    assert whole.graph == now.graph == done.graph


async def test_events_behind_the_one_that_ended_a_debate_do_not_stop_a_resume(tmp_path: Path) -> None:
    """A batch is committed before any of it is applied, so more can be on record than the machine ever took."""
    entries = await events_of(tmp_path / "whole.sqlite")
    path = tmp_path / "cut.sqlite"
    write(path, [*entries, EventEntry("s/t0", len(entries), 1.0, DeadlinePassed(2))])
    finished, stats = await run_arena(path, make_tasks(1), Host())
    assert not stats.error and not finished["s/t0"].set_aside

    task = make_tasks(4)[3]
    path = tmp_path / "twice.sqlite"
    write(
        path,
        [
            EventEntry("s/t3", 0, 1.0, Opened(debate_id="s/t3", task=task, seed=0)),
            EventEntry("s/t3", 1, 1.0, Replied(reply("s/t3#0.answer.0"))),
            EventEntry("s/t3", 2, 1.0, Replied(reply("s/t3#0.answer.1"))),
        ],
    )
    finished, stats = await run_arena(path, [task], Host(), build=lambda: Broken("raises"))
    assert not stats.error and "a bug" in finished["s/t3"].set_aside


@pytest.mark.parametrize("seed", range(10))
async def test_a_run_that_is_stopped_and_resumed_ends_as_one_that_was_not(tmp_path: Path, seed: int) -> None:
    tasks = make_tasks(25)
    whole, _ = await run_arena(tmp_path / "whole.sqlite", tasks, Host())
    path = tmp_path / "cut.sqlite"
    draw = random.Random(seed)
    stops = sorted(draw.randint(1, 140) for _ in range(2))
    for stop in (stops[0], max(1, stops[1] - stops[0]), None):
        known = on_record(path) if path.exists() else set()
        host = Host(seed=draw.randint(0, 99), stop_after=stop)
        finished, stats = await run_arena(path, tasks, host)
        assert not stats.error
        assert not known & host.asked.keys()  # what is on record is not asked again
        assert set(host.asked.values()) <= {1}
    assert debates(finished) == debates(whole)


async def test_a_journal_that_fails_stops_the_arena_and_loses_nothing(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tasks = make_tasks(20)
    left = 5
    commit = Journal.commit

    def failing(self: Journal, entries: Iterable[Entry]) -> None:
        nonlocal left
        left -= 1
        if left < 0:
            raise JournalError("journal: cannot write: disk full")
        commit(self, entries)

    with monkeypatch.context() as patch:
        patch.setattr(Journal, "commit", failing)
        _, stats = await run_arena(path, tasks, Host())
    assert stats.error == "journal: cannot write: disk full"
    known = on_record(path)
    assert known
    host = Host()
    finished, stats = await run_arena(path, tasks, host)
    assert len(finished) == 20 and not stats.error
    assert not known & host.asked.keys()


async def test_a_host_that_is_gone_stops_the_arena_with_a_sentence(path: Path) -> None:
    class Gone(Host):
        async def tell(self, packed: bytes) -> None:
            raise ConnectionError("no such actor")

    _, stats = await run_arena(path, make_tasks(3), Gone())
    assert stats.error == "an agent host takes no asks: ConnectionError: no such actor"


async def test_closing_waits_for_the_commit_under_way(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commit = Journal.commit
    started = asyncio.Event()
    loop = asyncio.get_running_loop()

    def slow(self: Journal, entries: Iterable[Entry]) -> None:
        def slowly() -> Iterable[Entry]:
            for entry in list(entries):
                loop.call_soon_threadsafe(started.set)
                yield entry

        commit(self, slowly())

    monkeypatch.setattr(Journal, "commit", slow)
    arena = make_arena(path, Host())
    await arena.recover()
    arena.open([assignment(task) for task in make_tasks(200)])
    await asyncio.wait_for(started.wait(), 5)
    await arena.close()
    assert len(list(read_journal(path))) in (0, 200)  # whole, or nothing
    Journal(path, fingerprint="f").close()


async def test_what_is_on_record_gives_the_same_commands_and_graphs_again(tmp_path: Path) -> None:
    """The one property on which resuming rests."""

    class Noted(Watched):
        commanded: ClassVar[dict[str, list[bytes]]] = defaultdict(list)

    path = tmp_path / "arena.sqlite"
    finished, _ = await run_arena(path, make_tasks(60), Host(silent_at_times), build=Noted, deadline_s=0.1)
    assert len(finished) == 60
    kinds = set()
    for item in read_journal(path):
        machine = build()
        again = [msgspec.msgpack.encode(machine.receive(event)) for _, event in item.events]
        assert again == Noted.commanded[item.debate_id]
        assert machine.closed
        kinds |= {type(event) for _, event in item.events}
    assert kinds == {Opened, Replied, AgentFailed, DeadlinePassed}

    copy = tmp_path / "copy.sqlite"
    shutil.copy(path, copy)
    with closing(sqlite3.connect(copy)) as db:
        db.execute("DELETE FROM graphs")
        db.commit()
    host = Host()
    replayed, _ = await run_arena(copy, make_tasks(60), host)
    assert not host.asked
    assert {key: item.graph for key, item in replayed.items()} == {key: item.graph for key, item in finished.items()}


async def test_a_clock_that_is_set_back_changes_nothing(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, _ = await run_arena(path.with_name("whole.sqlite"), make_tasks(30), Host(seed=1))
    clock = itertools.count(2_000_000_000, -3600)
    monkeypatch.setattr("engine.debates.arena.time.time", lambda: float(next(clock)))
    await run_arena(path, make_tasks(30), Host(seed=2, stop_after=60))
    finished, _ = await run_arena(path, make_tasks(30), Host(seed=3))
    assert debates(finished) == debates(whole)
    times = [at for item in read_journal(path) for at, _ in item.events]
    assert times != sorted(times)


def silent_at_times(ask: Ask) -> Outcome | None:
    return None if ask.id.endswith("7#0.answer.1") else answer(ask)


async def test_the_arena_counts_what_it_holds(path: Path) -> None:
    host = Host(lambda ask: None)
    arena = make_arena(path, host)
    await arena.recover()
    arena.open([assignment(task) for task in make_tasks(4)])
    _, stats = await arena.collect(0.0)
    assert stats.open == 4  # before a single one is on record
    await until(lambda: len(host.asked) >= 12)
    _, stats = await arena.collect(0.0)
    assert (stats.open, stats.closed) == (4, 0)
    await arena.close()


FOR_EVER_S = 3600.0


async def test_who_collects_rests_until_nothing_is_open(path: Path) -> None:
    arena = make_arena(path, Host())
    await arena.recover()
    arena.open([assignment(task) for task in make_tasks(20)])
    finished, stats = await asyncio.wait_for(arena.collect(FOR_EVER_S, FOR_EVER_S), 60.0)
    assert (len(finished), stats.open) == (20, 0)
    arena.open([assignment(task) for task in make_tasks(21)[20:]])  # it has something to rest for again
    finished, stats = await asyncio.wait_for(arena.collect(FOR_EVER_S, FOR_EVER_S), 60.0)
    assert (len(finished), stats.open) == (1, 0)
    await arena.close()


async def test_who_collects_rests_though_one_has_closed(path: Path) -> None:
    tasks = make_tasks(2)
    arena = make_arena(path, Host(lambda ask: None if ask.id.startswith(f"s/{tasks[1].id}#") else answer(ask)))
    await arena.recover()
    arena.open([assignment(task) for task in tasks])
    resting = asyncio.ensure_future(arena.collect(0.0, FOR_EVER_S))
    await until(lambda: len(arena._finished) == 1)
    assert not resting.done()
    arena.deliver(pack([Stopped("h", "enough")]))
    finished, stats = await asyncio.wait_for(resting, 60.0)
    assert (len(finished), stats.open, stats.paused) == (1, 1, "enough")
    await arena.close()


async def test_ids_may_hold_the_mark_that_asks_are_built_with(path: Path) -> None:
    arena = make_arena(path, Host())
    await arena.recover()
    task = msgspec.structs.replace(make_tasks(1)[0], id="a#b/c")
    arena.open([Assignment(debate_id="s/a#b/c", task=task, seed=1)])
    (done,), _ = await arena.collect(5.0)
    await arena.close()
    assert done.debate_id == "s/a#b/c"


async def test_a_debate_is_reported_once_its_graph_is_on_record(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written: set[str] = set()
    commit = Journal.commit

    def spy(self: Journal, entries: Iterable[Entry]) -> None:
        entries = list(entries)
        commit(self, entries)
        written.update(entry.debate_id for entry in entries if isinstance(entry, CloseEntry))

    monkeypatch.setattr(Journal, "commit", spy)
    arena = make_arena(path, Host())
    await arena.recover()
    arena.open([assignment(task) for task in make_tasks(30)])
    total = 0
    while total < 30:
        finished, _ = await arena.collect(1.0)
        assert {item.debate_id for item in finished} <= written
        total += len(finished)
    await arena.close()


async def test_outcomes_that_come_before_the_debates_are_read_count(path: Path) -> None:
    silent = Host(lambda ask: None)
    first = make_arena(path, silent)
    await first.recover()
    first.open([assignment(task) for task in make_tasks(3)])
    await until(lambda: len(silent.asked) == 9)
    await first.close()

    host = Host(reply_to)
    second = make_arena(path, host)
    early = sorted(silent.asked)[:4]
    second.deliver(pack([reply(ask_id) for ask_id in early]))
    await second.recover()
    done: list[str] = []
    while len(done) < 3:
        finished, _ = await second.collect(1.0)
        done += [item.debate_id for item in finished]
    second.deliver(pack([reply(early[0])]))  # delivered twice: an acknowledgement was lost
    await second.settle()
    await second.close()
    assert not set(early) & set(host.asked) and set(host.asked.values()) == {1}
    assert len(host.asked) == 18 - 4 and read_notes(path) == []


def reply_to(ask: Ask) -> Outcome:
    return reply(ask.id)


async def test_a_journal_in_use_is_told_when_the_arena_starts(tmp_path: Path) -> None:
    first, second = (make_arena(tmp_path / "a.sqlite", Host()) for _ in range(2))
    await first.recover()
    with pytest.raises(JournalError, match="is in use by another run"):
        await second.recover()
    await second.close()
    await first.close()
