"""The contract of a protocol: a pure state machine that takes one event and returns commands.

A machine declares its phases and a transition table. It never reads a clock, a disk or global randomness: the seed
comes with ``Opened`` and deadlines arrive as events. The same events through a fresh machine give the same commands,
byte for byte; resume, tests and debugging all rest on that.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping
from enum import StrEnum
from typing import ClassVar

import msgspec

from protocols.errors import IllegalEventError
from protocols.graph import Edge, Utterance, Verdict
from protocols.message import Ask, Failure, Reply
from protocols.task import Task

Cast = dict[str, tuple[str, ...]]
"""Role -> the agents who play it, in speaking order."""


class Opened(msgspec.Struct, frozen=True, kw_only=True, tag="opened"):
    """A debate begins. ``seed`` is this debate's own."""

    debate_id: str
    task: Task
    seed: int


class Replied(msgspec.Struct, frozen=True, gc=False, tag="replied", omit_defaults=True):
    """``canonical``: one spelling for all answers that mean the same as this reply's, where finding it takes more than
    a pure function may do (a computer algebra system, say). Found once, on record with the reply, never again."""

    reply: Reply
    canonical: str = ""


class AgentFailed(msgspec.Struct, frozen=True, gc=False, tag="agent_failed"):
    failure: Failure


class DeadlinePassed(msgspec.Struct, frozen=True, gc=False, tag="deadline_passed"):
    """The phase entered as number ``phase_index`` of this debate has lasted longer than its deadline."""

    phase_index: int


class BudgetSpent(msgspec.Struct, frozen=True, tag="budget_spent"):
    """No more asks can be paid for: close with what is there."""


Event = Opened | Replied | AgentFailed | DeadlinePassed | BudgetSpent


class Record(msgspec.Struct, frozen=True, gc=False, tag="record"):
    """Add a node and the edges that lead to it to the graph."""

    utterance: Utterance
    edges: tuple[Edge, ...] = ()


class Close(msgspec.Struct, frozen=True, tag="close"):
    """The debate is over."""

    verdict: Verdict


class Request(msgspec.Struct, frozen=True, gc=False, tag="ask"):
    """Put this ask to its agent."""

    ask: Ask


Command = Request | Record | Close


class Phase(StrEnum):
    """Base of every protocol's phases; a protocol's own enum names ``OPEN`` and ``CLOSED`` among them."""


Transitions = Mapping[tuple[Phase, type[Event]], frozenset[Phase]]
"""(phase, event type) -> phases that may follow. A missing pair is an illegal event."""


class Machine:
    """Base of every protocol: checks each event against the table before a handler may change anything.

    A subclass sets ``TRANSITIONS``, ``START`` and ``END``, and writes ``_handle``, which calls ``_enter`` to change
    phase and returns commands in order. ``check`` refuses, before anything changes, what the table cannot: a reply
    nobody waits for, say.
    """

    NAME: ClassVar[str]
    SOURCE: ClassVar[str]
    START: ClassVar[Phase]
    END: ClassVar[Phase]
    TRANSITIONS: ClassVar[Transitions]

    def __init__(self) -> None:
        self.phase: Phase = self.START
        self.phase_index = 0  # how many phases were entered: names a deadline beyond doubt
        self.outstanding: dict[str, Ask] = {}  # asked, not answered, by id

    @property
    def closed(self) -> bool:
        return self.phase == self.END

    def receive(self, event: Event) -> list[Command]:
        """Advance by one event.

        Raises: IllegalEventError: the table or the state does not allow it; nothing was changed.
        """
        allowed = self.TRANSITIONS.get((self.phase, type(event)))
        if allowed is None:
            raise IllegalEventError(f"{self.NAME} is {self.phase.value}, cannot take {type(event).__name__}")
        self.check(event)
        before = self.phase
        commands = self._handle(event)
        if self.phase not in allowed:
            raise IllegalEventError(
                f"{self.NAME} went from {before.value} to {self.phase.value} on {type(event).__name__}, "
                f"the table allows {sorted(phase.value for phase in allowed)}"
            )
        return commands

    def check(self, event: Event) -> None:
        """Raises: IllegalEventError: a reply or failure nobody waits for, or the deadline of a phase already left."""
        if isinstance(event, Replied):
            self._check_awaited(event.reply.ask_id)
        elif isinstance(event, AgentFailed):
            self._check_awaited(event.failure.ask_id)
        elif isinstance(event, DeadlinePassed) and event.phase_index != self.phase_index:
            raise IllegalEventError(f"{self.NAME}: phase {event.phase_index} is over, this is phase {self.phase_index}")

    def _check_awaited(self, ask_id: str) -> None:
        if ask_id not in self.outstanding:
            raise IllegalEventError(f"{self.NAME}: nobody waits for {ask_id!r}")

    def unsettled(self, reply: Reply) -> str:
        """The answer in a reply that is being waited for, to find its canonical spelling; "" where there is none."""
        return ""

    def _handle(self, event: Event) -> list[Command]:
        raise NotImplementedError

    def _enter(self, phase: Phase) -> None:
        self.phase = phase
        self.phase_index += 1


def derive_seed(seed: int, *names: str | int) -> int:
    """A seed for one purpose, from the debate's seed and names: independent streams that no order of events can mix.

    Returns: 0 <= seed < 2**31, as inference engines take it.
    """
    text = f"{seed}"
    for name in names:
        text += f"\x1f{name}"
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=4).digest(), "big") >> 1


def table_problems(machine: type[Machine]) -> list[str]:
    """What is wrong with a table, one sentence each.

    Phases that cannot be reached, dead ends, phases without a deadline, kinds of events that a phase does not handle or
    that nobody ever takes, ways back to the start, and phases that are not among those declared.
    """
    phases = {machine.START, machine.END}
    follows: dict[Phase, set[Phase]] = {}
    for (phase, _), targets in machine.TRANSITIONS.items():
        phases |= {phase, *targets}
        follows.setdefault(phase, set()).update(targets)
    reached, frontier = {machine.START}, [machine.START]
    while frontier:
        for phase in follows.get(frontier.pop(), set()) - reached:
            reached.add(phase)
            frontier.append(phase)
    problems = [f"phase {phase.value} cannot be reached from {machine.START.value}" for phase in phases - reached]
    ending = leading_to(machine.END, follows)
    for phase in sorted(phases - {machine.END}):
        if phase not in ending:  # not even by way of others: two phases that lead to each other alone are one
            problems.append(f"phase {phase.value} is a dead end")
        if phase == machine.START:
            continue
        if (phase, DeadlinePassed) not in machine.TRANSITIONS:
            problems.append(f"phase {phase.value} has no deadline")
        missing = [kind for kind in (Replied, AgentFailed, BudgetSpent) if (phase, kind) not in machine.TRANSITIONS]
        problems += [f"phase {phase.value} does not handle {kind.__name__}" for kind in missing]
    if (machine.START, Opened) not in machine.TRANSITIONS:
        problems.append(f"phase {machine.START.value} does not handle {Opened.__name__}")
    if any(machine.START in targets for targets in machine.TRANSITIONS.values()):
        problems.append(f"phase {machine.START.value} is the start, yet something leads back to it")
    if machine.END in follows:
        problems.append(f"phase {machine.END.value} is the end, yet something may follow it")
    return sorted(problems)


def leading_to(end: Phase, follows: Mapping[Phase, Collection[Phase]]) -> set[Phase]:
    """The end, and the phases from which it can be reached."""
    ending, grown = {end}, True
    while grown:
        found = {phase for phase, targets in follows.items() if ending.intersection(targets)} - ending
        ending, grown = ending | found, bool(found)
    return ending


def mermaid(machine: type[Machine]) -> str:
    """The table as a Mermaid state diagram, for the docs."""
    lines = ["stateDiagram-v2", f"    [*] --> {machine.START.value}"]
    for (phase, event), targets in machine.TRANSITIONS.items():
        lines += [f"    {phase.value} --> {target.value}: {event.__name__}" for target in sorted(targets)]
    return "\n".join([*lines, f"    {machine.END.value} --> [*]"])
