"""The outbox: what is ready leaves together, in order, one batch at a time."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from itertools import repeat

import pytest

from actors.post.mailbox import LEAST_WORTH, MAX_BATCH, WORTH, Outbox, worth_of
from protocols.errors import UnreachableError

pytestmark = pytest.mark.asyncio


@pytest.fixture(autouse=True)
def without_pace(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("actors.post.mailbox.PACE_S", 0.0)
    monkeypatch.setattr("actors.post.mailbox.PATIENCE_S", 0.0)


class Receiver:
    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.errors: list[Exception] = []
        self.gate = asyncio.Event()
        self.gate.set()
        self.failing = False
        self.inside = 0

    async def send(self, batch: list[int]) -> None:
        self.inside += 1
        assert self.inside == 1, "two batches are under way at once"
        self.batches.append(batch)
        await self.gate.wait()
        self.inside -= 1
        if self.failing:
            raise ConnectionError("gone")

    def box(self) -> Outbox[int]:
        return Outbox(self.send, self.errors.append)


async def settle() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


async def test_what_is_put_in_one_tick_leaves_as_one_batch() -> None:
    receiver = Receiver()
    box = receiver.box()
    box.put([1])
    box.put([2, 3])
    asyncio.get_running_loop().call_soon(box.put, [4])  # ready in the same tick
    await settle()
    assert receiver.batches == [[1, 2, 3, 4]]
    assert len(box) == 0


async def test_a_receiver_that_cannot_be_reached_for_a_moment_is_sent_the_same_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("actors.post.mailbox.AGAIN_S", 0.0)
    batches: list[list[int]] = []

    async def send(batch: list[int]) -> None:
        batches.append(batch)
        if len(batches) < 3:
            raise UnreachableError("the network")

    errors: list[Exception] = []
    box = Outbox(send, errors.append)
    box.put([1, 2])
    await box.drain()
    assert batches == [[1, 2]] * 3 and errors == []


async def test_what_is_put_while_a_batch_is_under_way_leaves_with_the_next() -> None:
    receiver = Receiver()
    receiver.gate.clear()
    box = receiver.box()
    box.put([1])
    await settle()
    for number in range(2, 6):
        box.put([number])
        await settle()
    assert receiver.batches == [[1]]
    assert len(box) == 4
    receiver.gate.set()
    await settle()
    assert receiver.batches == [[1], [2, 3, 4, 5]]
    box.put([6])  # and it starts again by itself
    await settle()
    assert receiver.batches[2:] == [[6]]


async def test_batches_are_bounded_and_keep_their_order() -> None:
    receiver = Receiver()
    receiver.box().put(range(2 * MAX_BATCH + 5))
    await settle()
    assert [len(batch) for batch in receiver.batches] == [MAX_BATCH, MAX_BATCH, 5]
    assert [item for batch in receiver.batches for item in batch] == list(range(2 * MAX_BATCH + 5))


async def test_nothing_put_is_nothing_sent() -> None:
    receiver = Receiver()
    receiver.box().put([])
    await settle()
    assert receiver.batches == []


async def test_an_error_is_told_once_and_ends_sending() -> None:
    receiver = Receiver()
    receiver.failing = True
    box = receiver.box()
    box.put([1])
    await settle()
    box.put([2])
    box.put([3])
    await settle()
    assert [str(err) for err in receiver.errors] == ["gone"]
    assert receiver.batches == [[1]]
    assert len(box) == 2


async def test_closing_drops_what_is_queued() -> None:
    receiver = Receiver()
    receiver.gate.clear()
    box = receiver.box()
    box.put([1])
    await settle()
    box.put([2])
    await box.close()
    receiver.gate.set()
    box.put([3])
    await settle()
    assert receiver.batches == [[1]]
    assert receiver.errors == []


async def test_what_was_not_known_to_be_taken_is_given_back() -> None:
    receiver = Receiver()
    receiver.gate.clear()
    box = receiver.box()
    box.put([1, 2])
    await settle()
    box.put([3])
    assert box.take_back() == [1, 2, 3]
    box.put([4])
    await settle()
    assert receiver.batches == [[1, 2]] and not receiver.errors
    assert box.take_back() == [4]


@pytest.mark.parametrize("closed", [True, False])
async def test_one_that_ends_before_it_has_begun_is_drained(closed: bool) -> None:
    receiver = Receiver()
    box = receiver.box()
    box.put([1])
    if closed:
        await box.close()
    else:
        assert box.take_back() == [1]
    async with asyncio.timeout(5.0):
        await box.drain()
    assert receiver.batches == []


async def test_a_batch_that_could_not_be_delivered_is_given_back() -> None:
    receiver = Receiver()
    receiver.failing = True
    box = receiver.box()
    box.put([1, 2])
    await settle()
    box.put([3])
    assert len(receiver.errors) == 1
    assert box.take_back() == [1, 2, 3]


async def test_the_first_leaves_at_once_and_what_comes_thick_and_fast_at_a_pace(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("actors.post.mailbox.PACE_S", 0.2)
    receiver = Receiver()
    box = receiver.box()
    box.put([1])
    await settle()
    assert receiver.batches == [[1]]
    for number in (2, 3):
        box.put([number])
        await settle()
    assert receiver.batches == [[1]], "the pace is not kept"
    await box.drain()
    assert receiver.batches == [[1], [2, 3]]


LOOK_S = 0.25  # told apart from all other sleeps by its length


class Arrivals:
    """What joins an outbox from one of its looks to the next; none takes any time."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, box: Outbox[int]) -> None:
        self.left: Iterator[list[int]] = iter(())
        self._really = asyncio.sleep

        async def sleep(seconds: float) -> None:
            if seconds == LOOK_S:
                box.put(next(self.left, []))
            await self._really(0)

        monkeypatch.setattr("actors.post.mailbox.asyncio.sleep", sleep)
        monkeypatch.setattr("actors.post.mailbox.PACE_S", LOOK_S)

    async def since_the_last(self) -> None:
        """Time passes, less than a look takes."""
        await self._really(0.002)


async def after_one(monkeypatch: pytest.MonkeyPatch) -> tuple[Receiver, Outbox[int], Arrivals]:
    """An outbox that has just sent its first item."""
    receiver = Receiver()
    box = receiver.box()
    box.put([0])
    await box.drain()
    arrivals = Arrivals(monkeypatch, box)
    await arrivals.since_the_last()
    return receiver, box, arrivals


async def test_what_keeps_coming_gathers_and_leaves_when_no_more_comes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("actors.post.mailbox.PATIENCE_S", 60.0)
    receiver, box, arrivals = await after_one(monkeypatch)
    arrivals.left = iter([[2], [3, 4], [5], [], [6]])
    box.put([1])
    await box.drain()
    assert receiver.batches == [[0], [1, 2, 3, 4, 5]]
    assert next(arrivals.left) == [6]


async def test_what_is_worth_it_waits_for_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("actors.post.mailbox.PATIENCE_S", 60.0)
    receiver, box, arrivals = await after_one(monkeypatch)
    arrivals.left = iter([list(range(2, WORTH)), [WORTH], [WORTH + 1]])
    box.put([1])
    await box.drain()
    assert receiver.batches == [[0], list(range(1, WORTH + 1))]
    await arrivals.since_the_last()
    box.put(range(WORTH))
    await box.drain()
    assert receiver.batches[2] == list(range(WORTH))
    assert next(arrivals.left) == [WORTH + 1]


async def test_what_a_batch_is_worth_may_change_with_what_is_in_flight() -> None:
    assert [worth_of(in_flight) for in_flight in (0, 300, 3_000, 30_000)] == [LEAST_WORTH, LEAST_WORTH, 15, 150]


async def test_nothing_waits_longer_than_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("actors.post.mailbox.PATIENCE_S", 0.02)
    monkeypatch.setattr("actors.post.mailbox.WORTH", 10**9)
    receiver, box, arrivals = await after_one(monkeypatch)
    arrivals.left = repeat([2])
    box.put([1])
    while len(receiver.batches) < 2:
        await asyncio.sleep(0)
    assert receiver.batches[1][0] == 1
    arrivals.left = iter(())
    await box.drain()
