"""Post between actors: what is put in one tick, or while a batch is under way, leaves as one batch.

It is the batch that costs, not the item: a batch of a hundred takes hardly longer than one, and a process that wakes up
for each has its caches cold every time. So post that keeps coming is let gather, until a batch is worth it; where no
more comes, it leaves.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from typing import Generic, TypeVar

from protocols.errors import UnreachableError

T = TypeVar("T")

AGAIN_S = 1.0  # before what could not be delivered, twice, is sent once more
PACE_S = 0.005  # between two batches at least; what comes after a pause leaves at once
PATIENCE_S = 0.08  # how long after a batch the next one gathers at most, if in every PACE_S something joins it
WORTH = 64  # items that need not wait for more
SHARE, LEAST_WORTH = 200, 8  # see worth_of
MAX_BATCH = 1024  # messages; keeps one call's payload in the low megabytes


def worth_of(in_flight: int) -> int:
    """What a batch is worth sending at where a batch costs little, as by a wire: a small share of what is in flight.

    By Little's law it takes the same share of the time that an item is in flight until so many have gathered: a
    hundredth of what replies take, there and back.
    """
    return max(LEAST_WORTH, in_flight // SHARE)


class Outbox(Generic[T]):
    """Sends items in order, one batch at a time: the next leaves when the one before was taken.

    Args:
        send: delivers one batch; it has been taken when this returns. Called again where it raises UnreachableError,
            so it must do no harm twice.
        on_error: told once of a delivery that failed; the outbox then keeps what is left and sends no more. The owner
            decides what a dead receiver means.
        worth: how many items need not wait for more, at this moment.
    """

    def __init__(
        self,
        send: Callable[[list[T]], Awaitable[None]],
        on_error: Callable[[Exception], None],
        worth: Callable[[], int] = lambda: WORTH,
    ) -> None:
        self._send, self._on_error, self._worth = send, on_error, worth
        self._items: list[T] = []
        self._leaving: list[T] = []  # the batch under way
        self._task: asyncio.Task[None] | None = None
        self._left_s = -PATIENCE_S  # when the last batch left, of the loop's clock
        self._broken = False

    def __len__(self) -> int:
        """Items not yet taken by a batch."""
        return len(self._items)

    def put(self, items: Iterable[T]) -> None:
        """Queue items, also when broken; call from the event loop. Whoever holds the asks bounds how many they are."""
        self._items.extend(items)
        if self._items and self._task is None and not self._broken:
            self._task = asyncio.get_running_loop().create_task(self._flush())

    async def _flush(self) -> None:
        try:
            while self._items:
                await self._due()
                self._left_s = asyncio.get_running_loop().time()
                self._leaving, self._items = self._items[:MAX_BATCH], self._items[MAX_BATCH:]
                pause_s = 0.0  # a wire that breaks leaves the way by a call
                while not await self._reached():
                    await asyncio.sleep(pause_s)
                    pause_s = AGAIN_S
                self._leaving = []
        except Exception as err:
            self._broken = True
            self._on_error(err)
        finally:
            self._task = None

    async def _due(self) -> None:
        clock = asyncio.get_running_loop().time
        await asyncio.sleep(max(0.0, self._left_s + PACE_S - clock()))  # what is ready in this tick joins, at least
        before, worth = 0, self._worth()
        while before < len(self._items) < worth and clock() < self._left_s + PATIENCE_S:
            before = len(self._items)
            await asyncio.sleep(PACE_S)

    async def _reached(self) -> bool:
        try:
            await self._send(self._leaving)
        except UnreachableError:
            return False
        return True

    async def drain(self) -> None:
        """Wait until everything put so far was taken, or never will be."""
        while self._task is not None:
            await asyncio.wait([self._task])

    def take_back(self) -> list[T]:
        """Stop, and give back what is not known to have been taken: a receiver's successor must have all of it."""
        left, self._items, self._leaving = [*self._leaving, *self._items], [], []
        self._stop()
        return left

    async def close(self) -> None:
        """Drop what is queued and stop."""
        self._items.clear()
        self._stop()

    def _stop(self) -> None:
        self._broken = True
        if self._task is not None:
            self._task.cancel()
            self._task = None  # one that has not begun would not say so itself
