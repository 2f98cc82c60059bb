"""The contract: tables are checked, illegal events change nothing, seeds are separate streams."""

from __future__ import annotations

import msgspec
import pytest

from protocols.catalogue import PROTOCOLS
from protocols.errors import IllegalEventError
from protocols.machine import (
    AgentFailed,
    BudgetSpent,
    Command,
    DeadlinePassed,
    Event,
    Machine,
    Opened,
    Phase,
    Replied,
    Transitions,
    derive_seed,
    mermaid,
    table_problems,
)
from protocols.message import Failure, Reply
from protocols.task import Task


class P(Phase):
    START = "start"
    TALK = "talk"
    REST = "rest"
    END = "end"


Table = dict[tuple[Phase, type[Event]], frozenset[Phase]]


def every(phase: P, *targets: P) -> Table:
    """All that can befall a phase."""
    kinds: tuple[type[Event], ...] = (Replied, AgentFailed, DeadlinePassed, BudgetSpent)
    return {(phase, kind): frozenset(targets) for kind in kinds}


TALKING: Table = {
    (P.START, Opened): frozenset({P.TALK}),
    **every(P.TALK, P.END),
    (P.TALK, Replied): frozenset({P.TALK, P.END}),
}


def machine_of(table: Transitions) -> type[Machine]:
    class Talk(Machine):
        NAME, SOURCE, START, END, TRANSITIONS = "talk", "none", P.START, P.END, table

        def _handle(self, event: Event) -> list[Command]:
            self._enter({Opened: P.TALK, Replied: P.REST, DeadlinePassed: P.END}[type(event)])
            return []

    return Talk


def test_a_sound_table_has_no_problems() -> None:
    assert table_problems(machine_of(TALKING)) == []


@pytest.mark.parametrize(
    ("more", "problems"),
    [
        (every(P.REST, P.END), ["phase rest cannot be reached from start"]),
        (
            every(P.TALK, P.REST) | every(P.REST, P.REST),
            [
                "phase end cannot be reached from start",
                *(f"phase {name} is a dead end" for name in ("rest", "start", "talk")),
            ],
        ),
        (
            {(P.TALK, Replied): frozenset({P.REST, P.END}), (P.REST, Replied): frozenset({P.END})},
            [
                "phase rest does not handle AgentFailed",
                "phase rest does not handle BudgetSpent",
                "phase rest has no deadline",
            ],
        ),
        ({(P.END, Replied): frozenset({P.TALK})}, ["phase end is the end, yet something may follow it"]),
        (
            {(P.TALK, Replied): frozenset({P.TALK, P.END, P.START})},
            ["phase start is the start, yet something leads back to it"],
        ),
        ({(P.START, Opened): frozenset({P.START})}, None),
    ],
)
def test_holes_in_a_table_are_found(more: Transitions, problems: list[str] | None) -> None:
    found = table_problems(machine_of({**TALKING, **more}))
    if problems is not None:
        assert found == problems
    else:
        assert "phase start is a dead end" in found
        assert "phase end cannot be reached from start" in found


def test_two_phases_that_lead_to_each_other_alone_are_dead_ends() -> None:
    circle = {(P.START, Opened): frozenset({P.TALK, P.END}), **every(P.TALK, P.REST), **every(P.REST, P.TALK)}
    assert table_problems(machine_of(circle)) == ["phase rest is a dead end", "phase talk is a dead end"]


@pytest.mark.parametrize("name", PROTOCOLS)
def test_every_protocol_has_a_sound_table_and_names_itself(name: str) -> None:
    machine = PROTOCOLS[name]
    assert table_problems(machine) == []
    assert name == machine.NAME
    assert "arXiv" in machine.SOURCE or "github.com/FutureForMe/M2D-DKTL" in machine.SOURCE


def test_the_diagram_is_the_table() -> None:
    assert mermaid(machine_of(TALKING)).splitlines() == [
        "stateDiagram-v2",
        "    [*] --> start",
        "    start --> talk: Opened",
        "    talk --> end: Replied",
        "    talk --> talk: Replied",
        "    talk --> end: AgentFailed",
        "    talk --> end: DeadlinePassed",
        "    talk --> end: BudgetSpent",
        "    end --> [*]",
    ]


OPENED = Opened(debate_id="d", task=Task(id="t", question="q"), seed=1)


@pytest.mark.parametrize(
    "event",
    [
        Replied(Reply(ask_id="d#0", text="", model="m")),
        AgentFailed(Failure(ask_id="d#0", kind="quota", reason="")),
        DeadlinePassed(0),
        DeadlinePassed(2),
        OPENED,
    ],
)
def test_an_illegal_event_raises_and_changes_nothing(event: Event) -> None:
    machine = machine_of(TALKING)()
    machine.receive(OPENED)
    before = repr(vars(machine))
    with pytest.raises(IllegalEventError, match="talk"):
        machine.receive(event)
    assert repr(vars(machine)) == before


def test_a_machine_that_leaves_its_own_table_is_caught() -> None:
    machine = machine_of(TALKING)()
    machine.receive(OPENED)
    machine.outstanding["x"] = msgspec.UNSET  # type: ignore[assignment]
    with pytest.raises(IllegalEventError, match="talk went from talk to rest on Replied"):
        machine.receive(Replied(Reply(ask_id="x", text="", model="m")))


def test_events_survive_the_journal() -> None:
    events: list[Event] = [OPENED, DeadlinePassed(3), BudgetSpent(), Replied(Reply(ask_id="x", text="t", model="m"))]
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(events), type=list[Event]) == events


def test_seeds_are_stable_apart_and_small_enough_for_engines() -> None:
    seeds = {
        derive_seed(seed, *names) for seed in range(50) for names in ((), ("tie",), ("peers", 1, 2), ("peers", 12))
    }
    assert len(seeds) == 200
    assert all(0 <= seed < 2**31 for seed in seeds)
    assert derive_seed(7, "peers", 1, 0) == 1200108658  # a journal of today must replay tomorrow


def test_every_public_name_is_there_and_no_other_is_made_up() -> None:
    import protocols

    assert sorted(protocols._MODULES) == sorted(protocols.__all__)
    assert all(getattr(protocols, name) is not None for name in protocols.__all__) and set(protocols.__all__) <= set(
        dir(protocols)
    )
    with pytest.raises(AttributeError, match="no attribute 'Debat'"):
        protocols.Debat  # noqa: B018
