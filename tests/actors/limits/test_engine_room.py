"""The engine's room: full batches, less while the cache is full, and every ask admitted once."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from actors.limits.engine_room import EngineRoom
from actors.limits.gate import LoadHint
from actors.limits.prices import Amount
from actors.limits.queue_gate import Done, Want


def want(number: int) -> Want:
    return Want(str(number), Amount(), 0)


def load(running: float, waiting: float, kv_usage: float) -> LoadHint:
    return LoadHint(running=running, waiting=waiting, kv_usage=kv_usage)


def filled(most: int, asks: int) -> tuple[EngineRoom, list[str]]:
    room = EngineRoom(most)
    for number in range(asks):
        room.tell(want(number), 0.0)
    return room, [decision.id for decision in room.decide(0.0)]


def test_as_many_are_let_in_as_the_engine_batches_in_the_order_they_came() -> None:
    room, inside = filled(4, 6)
    assert inside == ["0", "1", "2", "3"]
    room.tell(Done("2", "reply"), 0.0)
    assert [decision.id for decision in room.decide(0.0)] == ["4"]
    assert room.figures(0.0) == {"waiting": 1.0, "running": 4.0, "limit": 4.0, "trims": 0.0}


def test_a_full_cache_with_some_waiting_trims_to_what_runs_and_grows_back_by_one_a_reply() -> None:
    room, _ = filled(8, 20)
    room.tell(load(5, 3, 0.97), 0.0)
    assert room.limit == 5
    for number in range(3):  # the three that wait inside are still there
        room.tell(Done(str(number), "reply"), 0.0)
    assert room.limit == 5 and room.decide(0.0) == []
    room.tell(load(5, 0, 0.5), 0.0)
    room.tell(Done("3", "reply"), 0.0)
    assert room.limit == 6 and [decision.id for decision in room.decide(0.0)] == ["8", "9"]


def test_what_is_told_late_still_makes_room() -> None:
    """The last word while something waited is of a full cache; the drives go on telling."""
    room, _ = filled(8, 20)
    room.tell(load(5, 3, 0.97), 0.0)
    room.tell(load(5, 0, 0.85), 0.0)
    for number in range(4):
        room.tell(Done(str(number), "reply"), 0.0)
    assert room.limit == 5
    room.tell(load(4, 0, 0.1), 0.0)
    room.tell(Done("4", "reply"), 0.0)
    assert room.limit == 6


def test_what_waits_for_its_turn_in_an_empty_cache_changes_nothing() -> None:
    room, _ = filled(8, 8)
    room.tell(load(2, 6, 0.3), 0.0)  # prompts are read in portions
    assert room.limit == 8


def test_one_is_always_let_in() -> None:
    room, _ = filled(8, 8)
    room.tell(load(0, 8, 1.0), 0.0)
    assert room.limit == 1


Moves = st.lists(
    st.one_of(
        st.tuples(st.just("want"), st.integers(0, 0), st.just(0.0)),
        st.tuples(st.just("done"), st.integers(0, 50), st.just(0.0)),
        st.tuples(st.just("load"), st.integers(0, 12), st.floats(0.0, 1.0)),
    ),
    max_size=120,
)


@given(Moves, st.integers(1, 8))
def test_no_more_than_the_most_are_inside_and_nobody_is_forgotten(
    moves: list[tuple[str, int, float]], most: int
) -> None:
    room, asked, inside, over = EngineRoom(most), 0, list[str](), set[str]()
    for name, number, usage in moves:
        if name == "want":
            room.tell(want(asked), 0.0)
            asked += 1
        elif name == "done" and inside:
            gone = inside.pop(number % len(inside))
            over.add(gone)
            room.tell(Done(gone, "reply"), 0.0)
        elif name == "load":
            room.tell(load(number, number % 3, usage), 0.0)
        inside += [decision.id for decision in room.decide(0.0)]
        assert len(set(inside)) == len(inside) <= most
        assert room.figures(0.0)["running"] == len(inside)
        assert room.figures(0.0)["waiting"] == asked - len(inside) - len(over)
    while inside:
        room.tell(Done(inside.pop(), "reply"), 0.0)
        inside += [decision.id for decision in room.decide(0.0)]
    assert room.figures(0.0)["waiting"] == 0.0


def test_a_room_may_become_larger_or_smaller() -> None:
    room, _ = filled(4, 9)
    room.resize(6)
    assert room.limit == 6 and len(room.decide(0.0)) == 2
    room.resize(3)
    assert room.limit == 3 and room.decide(0.0) == []  # nobody is turned out
    room.tell(LoadHint(running=1, waiting=2, kv_usage=0.95), 0.0)
    room.resize(8)
    assert room.limit == 1  # what the engine has room for counts
