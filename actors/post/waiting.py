"""Waiting for something, but not for ever."""

from __future__ import annotations

import asyncio
from contextlib import suppress


async def happens(event: asyncio.Event, within_s: float | None) -> None:
    """Returns when it does, or after so many seconds; None: however long it takes."""
    with suppress(TimeoutError):
        async with asyncio.timeout(within_s):
            await event.wait()
