"""Places in a model, handed out in the order they were asked for; how many there are may change at any time."""

from __future__ import annotations

import asyncio
from collections import deque


class Slots:
    """An ``asyncio.Semaphore`` whose number may change: ``take`` a place or await a ``turn``, then ``leave`` it.

    Nobody is turned out when there are fewer: who holds a place keeps it, and the next waits until enough are free.
    """

    def __init__(self, number: int) -> None:
        self.number, self._taken = number, 0
        self._waiting: deque[asyncio.Future[None]] = deque()

    def resize(self, number: int) -> None:
        self.number = number
        self._let_in()

    def take(self) -> bool:
        """A place at once, if one is free and nobody waits for it."""
        if self._taken >= self.number or self._waiting:
            return False
        self._taken += 1
        return True

    async def turn(self) -> None:
        """Returns with a place."""
        turn = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        self._let_in()  # those before it may all have given up
        try:
            await turn
        except asyncio.CancelledError:
            if not turn.cancelled():  # it had just been let in
                self.leave()
            raise

    def leave(self) -> None:
        self._taken -= 1
        self._let_in()

    def _let_in(self) -> None:
        while self._waiting and self._taken < self.number:
            if not (turn := self._waiting.popleft()).done():  # else it has given up
                self._taken += 1
                turn.set_result(None)
