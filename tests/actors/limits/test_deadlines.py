"""One timer for many limits: each passes at its own time, and nothing else that befalls a task is mistaken for it."""

from __future__ import annotations

import asyncio

import pytest

from actors.limits.deadlines import Countdowns, Deadlines

pytestmark = pytest.mark.asyncio


async def waits(deadlines: Deadlines, seconds: float) -> str:
    try:
        with deadlines.one():
            await asyncio.sleep(seconds)
            return "done"
    except TimeoutError:
        return "late"


async def test_what_takes_longer_than_the_limit_is_late_and_nothing_else() -> None:
    deadlines = Deadlines(0.03)
    assert await asyncio.gather(*(waits(deadlines, seconds) for seconds in (0.0, 60.0, 0.001, 60.0))) == [
        "done", "late", "done", "late",
    ]  # fmt: skip
    task = asyncio.current_task()
    assert task is not None and not task.cancelling()


async def test_a_limit_that_begins_later_passes_later() -> None:
    deadlines, loop = Deadlines(0.05), asyncio.get_running_loop()
    first = loop.create_task(waits(deadlines, 60.0))
    await asyncio.sleep(0.02)
    began = loop.time()
    assert await waits(deadlines, 60.0) == "late" and loop.time() - began >= 0.05
    assert first.done() and first.result() == "late"
    assert await waits(deadlines, 60.0) == "late"  # the timer is set again after nobody was waiting


async def test_a_cancelled_await_is_cancelled_not_late() -> None:
    deadlines = Deadlines(60.0)
    task = asyncio.get_running_loop().create_task(waits(deadlines, 60.0))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    deadlines.close()


async def test_one_cancelled_from_elsewhere_just_when_it_is_late_stays_cancelled() -> None:
    deadlines = Deadlines(0.01)
    task = asyncio.get_running_loop().create_task(waits(deadlines, 60.0))
    await asyncio.sleep(0)
    (limit,) = deadlines._running._due
    limit.pass_by()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    deadlines.close()


async def test_an_error_in_time_is_told_as_it_is() -> None:
    deadlines = Deadlines(60.0)
    with pytest.raises(KeyError), deadlines.one():
        raise KeyError
    assert not deadlines._running._due
    deadlines.close()


async def test_whoever_is_told_of_an_end_may_begin_and_stop_others() -> None:
    told: list[int] = []

    def over(key: int) -> None:
        told.append(key)
        if key == 1:
            countdowns.stop(2)
            countdowns.begin(3)  # anew
        if key == 4:
            raise ValueError("a bug of the one who is told")

    countdowns = Countdowns[int](0.02, over)
    for key in (1, 2, 3, 4, 5):
        countdowns.begin(key)
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: None)
    for _ in range(200):
        if len(told) == 4:
            break
        await asyncio.sleep(0.005)
    assert told == [1, 4, 5, 3]
    countdowns.close()
