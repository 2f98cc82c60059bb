"""Places in a model: in the order they were asked for, never more than there are, whoever gives up."""

from __future__ import annotations

import asyncio

import pytest

from actors.limits.slots import Slots

pytestmark = pytest.mark.asyncio


class Guests:
    """Tasks that hold a place each until they are told to leave."""

    def __init__(self, slots: Slots) -> None:
        self.slots, self.inside = slots, list[int]()
        self.leave: dict[int, asyncio.Event] = {}
        self.tasks: dict[int, asyncio.Task[None]] = {}

    async def come(self, *numbers: int) -> None:
        for number in numbers:
            self.leave[number] = asyncio.Event()
            self.tasks[number] = asyncio.create_task(self._stay(number))
        await asyncio.sleep(0.001)

    async def _stay(self, number: int) -> None:
        if not self.slots.take():
            await self.slots.turn()
        try:
            self.inside.append(number)
            await self.leave[number].wait()
            self.inside.remove(number)
        finally:
            self.slots.leave()

    async def go(self, *numbers: int) -> None:
        for number in numbers:
            self.leave[number].set()
        await asyncio.sleep(0.001)


async def test_places_are_handed_out_in_order_and_their_number_may_change() -> None:
    guests = Guests(slots := Slots(2))
    await guests.come(0, 1, 2, 3, 4, 5)
    assert guests.inside == [0, 1]
    await guests.go(1)
    assert guests.inside == [0, 2]
    slots.resize(4)
    await asyncio.sleep(0.001)
    assert guests.inside == [0, 2, 3, 4]
    slots.resize(1)
    await guests.go(0, 2, 3)
    assert guests.inside == [4]  # who has a place keeps it, and nobody comes in until there is room
    await guests.go(4, 5)
    assert guests.inside == []
    await asyncio.gather(*guests.tasks.values())


async def test_who_gives_up_leaves_no_place_taken() -> None:
    guests = Guests(slots := Slots(1))
    await guests.come(0, 1, 2)
    guests.tasks[1].cancel()  # while it waits
    guests.leave[0].set()
    await asyncio.sleep(0)  # 0 leaves, 2 is let in and has not noticed
    guests.tasks[2].cancel()
    await asyncio.sleep(0.001)
    assert slots.take() and guests.inside == []
    await asyncio.gather(*guests.tasks.values(), return_exceptions=True)
