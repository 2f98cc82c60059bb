"""Trainings next to each other: blocking ones in threads, and what came of all of them."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeVar

from protocols.errors import TrainerError

R = TypeVar("R")


async def all_fitted(fitting: Sequence[Awaitable[str]]) -> list[str]:
    """The warnings of trainings; one of which nothing came is a warning where something came of another.

    Raises: TrainerError: nobody could be trained. Whatever else one of them raises, at once.
    """
    came = await asyncio.gather(*map(_came_of, fitting))
    failed = [item for item in came if isinstance(item, TrainerError)]
    if failed and len(failed) == len(came):
        raise failed[0] if len(failed) == 1 else TrainerError("; ".join(map(str, failed)))
    return [said for item in came if (said := str(item))]


async def _came_of(fitting: Awaitable[str]) -> str | TrainerError:
    try:
        return await fitting
    except TrainerError as err:
        return err


def in_thread(work: Callable[[], R]) -> asyncio.Task[R]:
    return asyncio.get_running_loop().create_task(_in_daemon(work))


async def _in_daemon(work: Callable[[], R]) -> R:
    """Run in a daemon thread, so that an interrupted driver can leave: its work is resumable, waiting for it is not."""
    loop = asyncio.get_running_loop()
    outcome: asyncio.Future[R] = loop.create_future()

    def settle(result: R | None, err: BaseException | None) -> None:
        if outcome.cancelled():
            return
        if err is not None:
            outcome.set_exception(err)
        else:
            outcome.set_result(result)  # type: ignore[arg-type]  # work returned it

    def body() -> None:
        try:
            result = work()
        except BaseException as err:
            _tell(loop, settle, None, err)
        else:
            _tell(loop, settle, result, None)

    threading.Thread(target=body, name="moot-train", daemon=True).start()
    return await outcome


def _tell(loop: asyncio.AbstractEventLoop, settle: Callable[..., None], *outcome: Any) -> None:
    if not loop.is_closed():  # the driver has left: nobody waits any more
        loop.call_soon_threadsafe(settle, *outcome)
