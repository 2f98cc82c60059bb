"""An arena: a shard of the debates in flight, with its own journal.

Outcomes come in batches; one pump commits everything that has arrived, then lets the machines see it. While a commit
is under way the next batch gathers, so the busier the arena, the more debates share one write to disk. A debate never
waits for another. Ray is added outside, in ``engine.debates.cluster``.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path

import msgspec

from actors.limits.deadlines import Countdowns
from actors.post.router import Router, Tell
from actors.post.tally import UsageTally
from actors.post.waiting import happens
from actors.traces import Traces
from engine.live.arena_stats import ArenaStats
from engine.record.journal import CloseEntry, Entry, EventEntry, Journal, NoteEntry, Sync, read_closed, read_journal
from engine.record.mirror import Mirror
from protocols.errors import GraphError, IllegalEventError, JournalError
from protocols.graph import Debate, Verdict, encode_debate
from protocols.machine import (
    AgentFailed,
    Close,
    Command,
    DeadlinePassed,
    Event,
    Machine,
    Opened,
    Record,
    Replied,
    Request,
)
from protocols.message import Ask, Outcome, Reply, Stopped
from protocols.task import Task

log = logging.getLogger("moot.arena")

AT_ONCE = 24  # events applied before what they enable may leave, so that hosts have something to do early
LINGER_S = 0.1  # that closed debates' graphs wait for others' events, to be written in one commit with them

_OUTCOMES = msgspec.msgpack.Decoder(list[Outcome | Stopped])
_ENCODER = msgspec.msgpack.Encoder()

Build = Callable[[], Machine]
Canonise = Callable[[str], Awaitable[str]]
"""The canonical spelling of a mathematical answer; "" where none is found in time."""


class Assignment(msgspec.Struct, frozen=True, kw_only=True):
    """A debate to hold: which task, under which id and seed."""

    debate_id: str
    task: Task
    seed: int


class Finished(msgspec.Struct, frozen=True, kw_only=True):
    """A debate that left the arena. ``graph`` is its encoded ``Debate``; ``set_aside`` says why it came to nothing."""

    debate_id: str
    closed_at: float
    graph: bytes
    set_aside: str = ""


class _Open(msgspec.Struct):
    """A debate in flight."""

    debate: Debate
    machine: Machine
    seq: int = 0  # next event's number
    decided: frozenset[str] = frozenset()  # asks answered in this batch, not yet applied
    timed_phase: int = -1  # the one that its deadline is of; -1: none
    began: float = 0.0  # seconds since 1970


class Arena:
    """See the module.

    Args:
        name: unique in the run.
        journal: the file that is this arena's alone.
        fingerprint: identity of the run; see ``Journal``.
        build: makes a fresh machine; called once a debate.
        protocol, cast: recorded on every graph.
        deadline_s: of each phase.
        models: agent -> the model it speaks through.
        hosts: model -> its hosts, and how to tell each: see ``Router``.
        mirror: URL of a folder that the journal is copied to; see ``engine.record.mirror``.
        traces: takes a span for each debate; None: nobody wants any.
        canonise: for replies to tasks with the format "math"; without it they are compared by notation.
    """

    def __init__(
        self,
        name: str,
        journal: Path,
        *,
        fingerprint: str,
        build: Build,
        protocol: str,
        cast: Mapping[str, tuple[str, ...]],
        deadline_s: float,
        models: Mapping[str, str],
        hosts: Mapping[str, Mapping[str, Tell]],
        sync: Sync = "full",
        max_journal_mb: int = 0,
        lock_wait_s: float = 0.0,
        mirror: str = "",
        mirror_every_s: float = 5.0,
        canonise: Canonise | None = None,
        traces: Traces | None = None,
    ) -> None:
        self.name = name
        self._open_journal = partial(
            Journal, journal, fingerprint=fingerprint, sync=sync, max_size_mb=max_journal_mb, lock_wait_s=lock_wait_s
        )
        self._opened: Journal | None = None
        self._mirror_url, self._mirror_every_s = mirror, mirror_every_s
        self._mirror: Mirror | None = None
        self._build, self._protocol, self._cast = build, protocol, dict(cast)
        self._deadlines = Countdowns[str](deadline_s, self._expire)
        self._router = Router(models, hosts, self._waits_for, self._untold)
        self._canonise, self._traces = canonise, traces
        self._settling: set[asyncio.Task[None]] = set()  # replies whose answers are being spelled
        self._open: dict[str, _Open] = {}
        self._early: list[bytes] = []  # outcomes that came before the debates were read
        self._inbound: list[tuple[str, Event, float]] = []  # arrived when (perf_counter), not yet committed
        self._ended: dict[str, tuple[Debate, float]] = {}  # closed, their spans not yet made; and since when they ran
        self._writes: list[Entry] = []  # goes with the next commit
        self._leaving: list[Finished] = []  # closed, and written with the next commit
        self._unreported = 0  # closed, their graphs not yet on record
        self._finished: list[Finished] = []  # closed for good, not yet collected
        self._wake, self._news = asyncio.Event(), asyncio.Event()
        self._pressing = asyncio.Event()  # see _presses
        self._pump: asyncio.Task[None] | None = None
        self._closed = self._replies = self._failures = self._late = 0
        self._usage = UsageTally()
        self._commits, self._entries, self._commit_s = 0, 0, 0.0
        self._error = self._paused = ""
        self._busy = False  # a batch is being committed and applied
        self._held = False  # hosts send nothing for now, so no phase runs out of time

    @property
    def _journal(self) -> Journal:
        assert self._opened is not None, "recover opens it"
        return self._opened

    def _waits_for(self, ask: Ask) -> bool:
        held = self._open.get(ask.debate_id)
        return held is not None and ask.id in held.machine.outstanding

    def _untold(self, err: Exception) -> None:
        self._fail(f"an agent host takes no asks: {type(err).__name__}: {err}")

    def host_lost(self, host: str) -> None:
        """A host has died: what it held is asked of its other replicas, or waits for it."""
        self._router.lost(host)

    def host_back(self, host: str, tell: Tell) -> None:
        """The host lives again, in a new process."""
        self._router.back(host, tell)

    def still_held(self, held: Mapping[str, Iterable[str]]) -> None:
        """Before ``recover``: the asks that hosts hold of an arena before this one. They are asked of the same."""
        for host, ask_ids in held.items():
            self._router.at_home(host, ask_ids)

    def hold(self, held: bool) -> None:
        """Let no phase end of its deadline while hosts send nothing; after that each has its whole time again."""
        self._held = held
        for debate_id, debate in self._open.items():
            debate.timed_phase = -1
            self._time_phase(debate_id, debate)

    async def recover(self, among: Collection[str] | None = None) -> tuple[list[Finished], list[str]]:
        """Start, from what the journal holds: open debates go on from where they stood.

        Args: among: whose graphs are wanted of those that are closed; None: all.
        Returns: the closed ones, and the ids of all others: they are still open, or ended while they were replayed and
        are collected like any that close. Raises: JournalError: see ``Journal``; damaged.
        """
        self._opened = await asyncio.to_thread(self._open_journal)  # a lock may have to be waited for
        if self._mirror_url:
            self._mirror = Mirror(self._journal.path, self._mirror_url, every_s=self._mirror_every_s)
        closed = await asyncio.to_thread(lambda: [_on_record(item) for item in read_closed(self._journal.path, among)])
        for recorded in read_journal(self._journal.path, only_open=True):
            if recorded.events:
                self._replay([event for _, event in recorded.events], recorded.events[0][0])
                await asyncio.sleep(0)  # a long record must not keep the process from answering
        for held in self._open.values():
            self._router.put(held.machine.outstanding.values())
        self._pump = asyncio.get_running_loop().create_task(self._run())
        self._wake.set()
        early, self._early = self._early, []
        for packed in early:  # their asks have not left yet, and now never will
            self.deliver(packed)
        return closed, [*self._open, *(done.debate_id for done in self._leaving)]

    def _replay(self, events: list[Event], began: float) -> None:
        opened = events[0]
        assert isinstance(opened, Opened)  # the first event of a debate is what puts it on record
        held = self._hold(opened)
        held.began = began
        for event in events:
            held.seq += 1
            self._obey(opened.debate_id, self._step(held, event), ask=False)
            if opened.debate_id not in self._open:
                return  # over; what is left was committed together with the event that ended it
        self._time_phase(opened.debate_id, held)

    def open(self, assignments: Iterable[Assignment]) -> None:
        """Take debates on; each is asked about as soon as its opening is on record."""
        now = time.perf_counter()
        for given in assignments:
            opened = Opened(debate_id=given.debate_id, task=given.task, seed=given.seed)
            self._inbound.append((given.debate_id, opened, now))
        if not self._presses:
            self._pressing.clear()
        self._wake.set()

    def deliver(self, packed: bytes) -> None:
        """Take a batch of outcomes from a host: also before ``recover``, of an arena before this one that died."""
        if self._pump is None:
            self._early.append(packed)
            return
        now = time.perf_counter()
        for outcome in _OUTCOMES.decode(packed):
            if isinstance(outcome, Stopped):
                self._paused = self._paused or outcome.reason
                self._tell_news()
                continue
            self._router.over(outcome.ask_id)
            debate_id = outcome.ask_id.rpartition("#")[0]
            if not isinstance(outcome, Reply):
                self._inbound.append((debate_id, AgentFailed(outcome), now))
            elif self._canonise is not None and (answer := self._unsettled(debate_id, outcome)):
                settling = asyncio.get_running_loop().create_task(self._settle(debate_id, outcome, answer))
                self._settling.add(settling)
                settling.add_done_callback(self._settling.discard)
            else:
                self._inbound.append((debate_id, Replied(outcome), now))
        self._wake.set()

    def _unsettled(self, debate_id: str, reply: Reply) -> str:
        """The answer in a reply that an algebra system must see first; "" for all that can go on at once."""
        held = self._open.get(debate_id)
        if held is None or held.debate.task.answer_format != "math":
            return ""
        with suppress(Exception):  # a protocol that cannot read its own reply fails when it is handed it
            return held.machine.unsettled(reply)
        return ""

    async def _settle(self, debate_id: str, reply: Reply, answer: str) -> None:
        assert self._canonise is not None  # or the reply had gone on at once
        try:
            canonical = await self._canonise(answer)
        except Exception as err:
            log.error("debate %s", debate_id, exc_info=err, extra={"debate": debate_id})
            self._fail(f"the answers of {debate_id} cannot be compared: {err}")
            return
        self._inbound.append((debate_id, Replied(reply, canonical), time.perf_counter()))
        self._wake.set()

    async def exchange(
        self, given: Collection[Assignment], wait_s: float, rest_s: float
    ) -> tuple[list[Finished], ArenaStats]:
        """Take debates on, then collect: one call for both, as each costs the two processes a millisecond."""
        if given:
            self.open(given)
        return await self.collect(wait_s, rest_s)

    async def collect(self, wait_s: float, rest_s: float = 0.0) -> tuple[list[Finished], ArenaStats]:
        """What has closed since the last call.

        Args:
            wait_s: how long to wait for something to close.
            rest_s: how long to wait before that, unless nothing is open any more.
        """
        await happens(self._pressing, rest_s)
        if not self._finished and not self._error and not self._paused:
            await happens(self._news, wait_s)  # nothing closed: the stats alone are news enough
        self._news.clear()
        finished, self._finished = self._finished, []
        opening = sum(isinstance(event, Opened) for _, event, _ in self._inbound)
        return finished, ArenaStats(
            open=len(self._open) + opening + self._unreported,
            closed=self._closed,
            replies=self._replies,
            failures=self._failures,
            late=self._late,
            usage=self._usage.total,
            delays=tuple(self._router.delays.counts),
            commits=self._commits,
            commit_s=self._commit_s,
            entries=self._entries,
            journal_bytes=self._journal.size_bytes,
            uncopied=self._journal.num_events - self._mirror.num_events if self._mirror else 0,
            copy_age_s=self._mirror.age_s if self._mirror else 0.0,
            copy_error=self._mirror.error if self._mirror else "",
            error=self._error,
            paused=self._paused,
        )

    async def settle(self) -> None:
        """Returns once all that has arrived is on record and applied; for when nothing more can arrive."""
        while not self._error and (
            self._busy or self._wake.is_set() or self._inbound or self._writes or self._settling
        ):
            await asyncio.sleep(0.01)

    async def close(self) -> None:
        """Stop and let go of the journal; what is on record stays there."""
        if self._pump is not None:
            self._pump.cancel()
            await asyncio.wait([self._pump])
        for settling in self._settling:  # not on record: what they wait for is asked for again
            settling.cancel()
        if self._settling:
            await asyncio.wait(self._settling)
        self._deadlines.close()
        await self._router.close()
        if self._mirror is not None and not await asyncio.to_thread(self._mirror.close):
            left = self._journal.num_events - self._mirror.num_events
            log.warning("arena %s: %d events are not in the mirror: %s", self.name, left, self._mirror.error)
        if self._opened is not None:
            self._opened.close()

    async def _run(self) -> None:
        """The pump: commit what has arrived, apply it, again."""
        lingering: asyncio.TimerHandle | None = None
        try:
            while True:
                self._busy = False
                await self._wake.wait()
                self._wake.clear()
                if lingering is not None:
                    lingering.cancel()
                self._busy = True
                accepted, entries = self._admit()
                leaving, self._leaving = self._leaving, []
                if entries:
                    began = time.perf_counter()
                    await asyncio.to_thread(self._journal.commit, entries)
                    self._commits, self._entries = self._commits + 1, self._entries + len(entries)
                    self._commit_s += time.perf_counter() - began
                self._finish(leaving)
                for number, (debate_id, event, arrived) in enumerate(accepted, 1):
                    self._apply(debate_id, event, arrived)
                    if number % AT_ONCE == 0:
                        await asyncio.sleep(0)
                if self._inbound or (self._writes and not self._open):
                    self._wake.set()
                elif self._writes:
                    lingering = asyncio.get_running_loop().call_later(LINGER_S, self._wake.set)
        except JournalError as err:
            self._fail(str(err))
        except Exception as err:
            log.exception("arena %s stopped", self.name)
            self._fail(f"arena {self.name} stopped on a bug: {type(err).__name__}: {err}")

    def _admit(self) -> tuple[list[tuple[str, Event, float]], list[Entry]]:
        """Which of the arrived events count, and the entries to commit before they do.

        A deadline is alone in its debate's share of a batch: whether it still counts after a reply, and what still
        counts after it, is known once they are applied.
        """
        inbound, self._inbound = self._inbound, []
        entries, self._writes = self._writes, []
        accepted: list[tuple[str, Event, float]] = []
        sealed, told = set[str](), set[str]()  # told: asks whose replies are on record, with this commit
        now = time.time()
        for debate_id, event, arrived in inbound:
            if isinstance(event, Opened):
                if debate_id in self._open or self._journal.holds(debate_id):
                    continue  # handed out twice: the first counts
                self._hold(event).began = now
            held, ask_id = self._open.get(debate_id), _answered(event)
            if held is not None and (debate_id in sealed or (isinstance(event, DeadlinePassed) and held.decided)):
                self._inbound.append((debate_id, event, arrived))
                continue
            if held is None or not _expected(held, event, ask_id):
                if isinstance(event, Replied) and ask_id not in told:
                    told.add(ask_id)
                    if ask_id not in self._journal.answered(debate_id):
                        entries.append(NoteEntry(debate_id, now, "late", _ENCODER.encode(event).hex()))
                        self._late += 1
                continue
            if ask_id:
                held.decided |= {ask_id}
                if isinstance(event, Replied):
                    told.add(ask_id)
            elif isinstance(event, DeadlinePassed):
                sealed.add(debate_id)
            entries.append(EventEntry(debate_id, held.seq, now, event))
            held.seq += 1
            accepted.append((debate_id, event, arrived))
        return accepted, entries

    def _hold(self, opened: Opened) -> _Open:
        debate = Debate(
            id=opened.debate_id, task=opened.task, protocol=self._protocol, seed=opened.seed, cast=self._cast
        )
        held = self._open[opened.debate_id] = _Open(debate, self._build())
        return held

    def _apply(self, debate_id: str, event: Event, arrived: float) -> None:
        held = self._open.get(debate_id)
        if held is None:
            return  # set aside by an event before this one
        held.decided = frozenset()
        self._count(event)
        self._obey(debate_id, self._step(held, event), since=arrived)

    def _step(self, held: _Open, event: Event) -> list[Command]:
        """Let the machine see an event; a machine that fails is set aside and harms no other debate."""
        if isinstance(event, AgentFailed):
            failure = event.failure
            held.debate.failures.append(f"{failure.ask_id.rpartition('#')[2]}: {failure.kind}: {failure.reason}")
        try:
            return held.machine.receive(event)
        except IllegalEventError as err:
            self._set_aside(held, f"the protocol refused an event: {err}")
        except Exception as err:
            self._protocol_failed(held, err)
        return []

    def _protocol_failed(self, held: _Open, err: Exception) -> None:
        log.error("debate %s", held.debate.id, exc_info=err, extra={"debate": held.debate.id})
        if held.debate.id in self._open:
            self._set_aside(held, f"the protocol failed: {type(err).__name__}: {err}")

    def _obey(self, debate_id: str, commands: list[Command], *, since: float = 0.0, ask: bool = True) -> None:
        held = self._open.get(debate_id)
        if held is None:
            return
        asks = []
        try:
            for command in commands:
                if isinstance(command, Record):
                    held.debate.add(command.utterance, command.edges)
                elif isinstance(command, Request):
                    if not self._router.serves(command.ask.agent):
                        raise GraphError(f"it asks {command.ask.agent!r}, who is not in the cast")
                    asks.append(command.ask)
                elif isinstance(command, Close):
                    held.debate.close(command.verdict)
                    self._leave(held)
        except Exception as err:  # commands that cannot be carried out harm no other debate either
            self._protocol_failed(held, err)
            return
        if ask:
            self._router.put(asks, since)
            if debate_id in self._open:
                self._time_phase(debate_id, held)

    def _time_phase(self, debate_id: str, held: _Open) -> None:
        index = held.machine.phase_index
        if self._held:
            self._deadlines.stop(debate_id)
        elif index != held.timed_phase:
            held.timed_phase = index
            self._deadlines.begin(debate_id)

    def _expire(self, debate_id: str) -> None:
        passed = DeadlinePassed(self._open[debate_id].timed_phase)
        self._inbound.append((debate_id, passed, time.perf_counter()))
        self._wake.set()

    def _set_aside(self, held: _Open, reason: str) -> None:
        self._writes.append(NoteEntry(held.debate.id, time.time(), "set_aside", reason))
        held.debate.failures.append(reason)
        self._leave(held)

    def _leave(self, held: _Open) -> None:
        """Out of the arena; reported once its graph is on record."""
        del self._open[held.debate.id]
        self._router.forget(held.debate.id)
        self._deadlines.stop(held.debate.id)
        now = time.time()
        done = _finished(held.debate, now)
        self._writes.append(CloseEntry(held.debate.id, now, done.graph))
        if self._traces is not None:
            self._ended[done.debate_id] = held.debate, held.began
        self._leaving.append(done)
        self._unreported += 1

    def _finish(self, leaving: list[Finished]) -> None:
        if self._traces is not None:
            for done in leaving:
                self._traces.debate(*self._ended.pop(done.debate_id), done.closed_at, done.set_aside)
        if leaving:
            self._finished += leaving
            self._unreported -= len(leaving)
            self._closed += len(leaving)
            self._tell_news()

    def _count(self, event: Event) -> None:
        if isinstance(event, Replied):
            self._replies += 1
            self._usage.add(event.reply.usage)
        elif isinstance(event, AgentFailed):
            self._failures += 1

    @property
    def _presses(self) -> bool:
        """Whether whoever collects need not rest first: nothing is open, or it cannot go on."""
        return not (self._open or self._inbound or self._unreported) or bool(self._error or self._paused)

    def _tell_news(self) -> None:
        self._news.set()
        if self._presses:
            self._pressing.set()

    def _fail(self, reason: str) -> None:
        self._error = self._error or reason
        self._tell_news()


def _answered(event: Event) -> str:
    """The ask that an event brings the outcome of; "" for all other events."""
    if isinstance(event, Replied):
        return event.reply.ask_id
    return event.failure.ask_id if isinstance(event, AgentFailed) else ""


def _expected(held: _Open, event: Event, ask_id: str) -> bool:
    """Whether the machine still waits for this event; what it does not wait for is late, or came twice."""
    if ask_id:
        return ask_id in held.machine.outstanding and ask_id not in held.decided
    if isinstance(event, DeadlinePassed):
        return event.phase_index == held.machine.phase_index
    return True


class _Ending(msgspec.Struct):
    """Of a graph, what says how it ended: all of it is not needed to know that a debate is over."""

    failures: list[str] = []
    verdict: Verdict | None = None


_ENDING_DECODER = msgspec.msgpack.Decoder(_Ending)


def _on_record(closed: CloseEntry) -> Finished:
    why = failure_summary(_ENDING_DECODER.decode(closed.graph))
    return Finished(debate_id=closed.debate_id, closed_at=closed.at, graph=closed.graph, set_aside=why)


def failure_summary(debate: Debate | _Ending) -> str:
    """Why a debate came to nothing; "" for one that did not."""
    if debate.verdict is not None and debate.verdict.stop_reason != "no_replies":
        return ""
    return "; ".join(debate.failures[-3:]) or "no agent replied"


def _finished(debate: Debate, closed_at: float) -> Finished:
    return Finished(
        debate_id=debate.id, closed_at=closed_at, graph=encode_debate(debate), set_aside=failure_summary(debate)
    )
