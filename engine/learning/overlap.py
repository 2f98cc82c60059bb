"""What comes after what in a loop: its debates, trainings and evaluations, and how far debates may be ahead.

There are two lines of work. Debates, publishing and evaluations follow each other, so nobody's version changes while
anybody is asked. Trainings follow each other beside them. Where debates may not be ahead, the two lines take turns.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Iterable
from typing import TypeVar

T = TypeVar("T")


async def overlapped(
    iterations: Iterable[T],
    staleness: int,
    debate: Callable[[T], Awaitable[None]],
    learn: Callable[[T], Awaitable[None]],
    arrive: Callable[[T], Awaitable[None]],
) -> None:
    """Go through all iterations.

    The debates of iteration i begin once i - 1 - ``staleness`` has arrived, and never see a newer one, however early it
    is ready: what is said does not depend on how fast anything was, and a run that is taken up again says the same.

    Args:
        staleness: of how many iterations trainings may be under way, at most, when debates begin.
        debate: holds an iteration's debates.
        learn: trains on them. It is called when they begin, or when ``learn`` of the iteration before is over.
        arrive: puts what was learned into the agents, and evaluates them.
    Raises: what one of them raises; of a training once the debates beside it are over. The rest is cancelled.
    """
    learning: deque[tuple[T, asyncio.Task[None]]] = deque()

    async def arrived(ahead: int) -> None:
        while len(learning) > ahead:
            iteration, task = learning[0]
            await task
            learning.popleft()
            await arrive(iteration)

    latest: asyncio.Task[None] | None = None
    try:
        for iteration in iterations:
            latest = asyncio.create_task(_after(latest, learn, iteration))
            learning.append((iteration, latest))
            await debate(iteration)
            for _, task in learning:
                if task.done():
                    task.result()  # raises: no further debates for what could not be learned
            await arrived(staleness)
        await arrived(0)
    finally:
        for _, task in learning:
            task.cancel()
        await asyncio.gather(*(task for _, task in learning), return_exceptions=True)


async def _after(before: asyncio.Task[None] | None, learn: Callable[[T], Awaitable[None]], iteration: T) -> None:
    if before is not None:
        await before  # raises: nothing is learned on top of what could not be
    await learn(iteration)
