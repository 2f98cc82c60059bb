"""What every protocol keeps, whatever the cast, the settings, the replies, the failures and their order of arrival."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from protocols.catalogue import PROTOCOLS, build_machine, load_protocol_prompts
from protocols.errors import IllegalEventError
from protocols.graph import decode_debate, encode_debate
from protocols.machine import DeadlinePassed, Event, Machine, Replied, derive_seed
from protocols.message import Ask, Failure, Sampling
from protocols.society import Player, SocietySettings
from protocols.task import Task
from tests.fakes import failure_of, node_of, play, replay, reply_to, told

EVENTS = msgspec.msgpack.Decoder(list[Event])
FEW = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@dataclass(frozen=True)
class Setup:
    """One way to hold a debate. ``max_events`` is worked out from the settings: the bound every debate must keep."""

    protocol: str
    settings: Any
    cast: dict[str, tuple[Player, ...]]
    max_events: int

    def machine(self) -> Machine:
        return build_machine(
            self.protocol, self.settings, self.cast, load_protocol_prompts(self.protocol, self.settings)
        )


@st.composite
def societies(draw: st.DrawFn) -> Setup:
    size, rounds, summarize = draw(st.integers(1, 4)), draw(st.integers(1, 4)), draw(st.booleans())

    def cast_of(role: str, count: int) -> tuple[Player, ...]:
        return tuple(
            Player(
                name=f"{role}{draw(st.integers(0, 2))}",
                persona=draw(st.sampled_from(["", "You are terse."])),
                sampling=Sampling(temperature=draw(st.sampled_from([0.0, 1.0]))),
            )
            for _ in range(count)
        )

    cast = {"generator": cast_of("g", size)}
    if draw(st.booleans()):
        cast["critic"] = cast_of("c", size)
    if summarize:
        cast["summariser"] = cast_of("s", 1)
    chosen = SocietySettings(
        rounds=rounds,
        summarize=summarize,
        memory=draw(st.sampled_from(["chat", "stateless"])),
        max_peers=draw(st.integers(1, 4)),
        tie_break=draw(st.sampled_from(["seeded", "first", "lexicographic"])),
    )
    phases = 2 * rounds - 1 if summarize else rounds
    return Setup("society", chosen, cast, 1 + phases * (size + 1))


SETUPS: dict[str, st.SearchStrategy[Setup]] = {"society": societies()}
"""Protocol -> the ways to hold it. A new protocol adds its line."""

ANY_SETUP = st.one_of(*SETUPS.values())
TASKS = st.builds(
    Task,
    id=st.just("t"),
    question=st.sampled_from(["1 + 1", "${question} $", "", "x" * 50, "\x00"]),
    gold=st.sampled_from([(), ("2",), ("GOLD-TOKEN", "3")]),
    answer_format=st.sampled_from(["number", "boxed", "text"]),
)
ORDERS = st.integers(0, 2**32)
SEEDS = st.integers(0, 2**63)


def marked(ask: Ask) -> str:
    """A mark that no other reply has."""
    return f"⟦{node_of(ask)}⟧"


def wild(seed: int) -> Callable[[Ask], str | Failure | None]:
    """Replies, failures and silence by the ask's id alone, so that no order of arrival can change them."""

    def answer(ask: Ask) -> str | Failure | None:
        rng = random.Random(derive_seed(seed, "fake", ask.id))
        kind = rng.random()
        if kind < 0.1:
            return failure_of(ask, "timeout")
        if kind < 0.2:
            return None
        body = rng.choice(
            [r"\boxed{2}", "the answer is 3", "2", "", "no idea", r"\boxed{${peers}", "=" * 9, "answer: 1/2\x00"]
        )
        return f"{marked(ask)} {body}"

    return answer


def drawn(order: int) -> Callable[[Sequence[Event]], Event]:
    return random.Random(order).choice


def test_every_protocol_is_held_to_this() -> None:
    assert SETUPS.keys() == PROTOCOLS.keys()


@FEW
@given(
    ANY_SETUP, TASKS, SEEDS, ORDERS, st.sets(st.integers(1, 30), max_size=3), st.one_of(st.none(), st.integers(1, 30))
)
def test_a_replay_commands_the_same_byte_for_byte(
    setup: Setup, task: Task, seed: int, order: int, deadlines: set[int], budget_at: int | None
) -> None:
    played = play(
        setup.machine(),
        task,
        wild(seed),
        seed=seed,
        choose=drawn(order),
        deadline_at=sorted(deadlines),
        budget_at=budget_at,
    )
    recorded = EVENTS.decode(msgspec.msgpack.encode(played.events))
    random.seed(order)  # the global generator plays no part
    again = replay(setup.machine(), recorded)
    assert [msgspec.msgpack.encode(step) for step in again] == [msgspec.msgpack.encode(step) for step in played.steps]


@FEW
@given(ANY_SETUP, TASKS, SEEDS, ORDERS)
def test_the_order_of_arrival_within_a_phase_leaves_no_trace(setup: Setup, task: Task, seed: int, order: int) -> None:
    one = play(setup.machine(), task, wild(seed), seed=seed)
    other = play(setup.machine(), task, wild(seed), seed=seed, choose=drawn(order))
    assert encode_debate(one.debate) == encode_debate(other.debate)
    assert one.asks == other.asks


@FEW
@given(ANY_SETUP, TASKS, SEEDS, ORDERS, st.sets(st.integers(1, 30), max_size=3))
def test_nothing_said_in_a_round_is_seen_in_it(
    setup: Setup, task: Task, seed: int, order: int, deadlines: set[int]
) -> None:
    played = play(setup.machine(), task, wild(seed), seed=seed, choose=drawn(order), deadline_at=sorted(deadlines))
    for ask in played.asks:
        round_number, phase, member = node_of(ask).split(".")
        for seen_round, seen_phase, seen_member in re.findall(r"⟦(\d+)\.(\w+)\.(\d+)⟧", told(ask)):
            own_summary = (seen_round, seen_phase, phase, seen_member) == (round_number, "summarise", "answer", member)
            assert int(seen_round) < int(round_number) or own_summary
        assert "GOLD-TOKEN" not in told(ask)


@FEW
@given(
    ANY_SETUP, TASKS, SEEDS, ORDERS, st.sets(st.integers(1, 60), max_size=8), st.one_of(st.none(), st.integers(1, 60))
)
def test_every_debate_closes_in_time_with_a_whole_graph(
    setup: Setup, task: Task, seed: int, order: int, deadlines: set[int], budget_at: int | None
) -> None:
    played = play(
        setup.machine(),
        task,
        wild(seed),
        seed=seed,
        choose=drawn(order),
        deadline_at=sorted(deadlines),
        budget_at=budget_at,
        max_events=setup.max_events,
    )
    debate = played.debate
    replied = {event.reply.ask_id for event in played.events if isinstance(event, Replied)}
    assert {node.reply.ask_id for node in debate.utterances} == replied
    assert played.machine.outstanding == {}
    assert len({ask.id for ask in played.asks}) == len(played.asks)
    assert decode_debate(encode_debate(debate)) == debate
    for ask in played.asks:
        if ask.id in replied:
            assert tuple(debate.conversation(node_of(ask))) == ask.messages
    assert played.verdict.votes <= len(setup.cast["generator"])
    assert (played.verdict.correct is None) == (not task.gold)
    if played.verdict.answer is None:
        assert not played.verdict.correct


@FEW
@given(ANY_SETUP, TASKS, SEEDS, ORDERS, st.integers(1, 20))
def test_illegal_events_at_any_point_change_nothing(setup: Setup, task: Task, seed: int, order: int, cut: int) -> None:
    played = play(setup.machine(), task, wild(seed), seed=seed, choose=drawn(order))
    machine = setup.machine()
    replay(machine, played.events[:cut])
    stale: list[Event] = [
        played.events[0],
        DeadlinePassed(machine.phase_index + 1),
        DeadlinePassed(machine.phase_index - 1),
    ]
    stale += [Replied(reply_to(ask, "again")) for ask in played.asks if ask.id not in machine.outstanding]
    before = repr(vars(machine))
    for event in stale:
        with pytest.raises(IllegalEventError):
            machine.receive(event)
        assert repr(vars(machine)) == before
    rest = replay(machine, played.events[cut:])
    assert rest == played.steps[cut:]
