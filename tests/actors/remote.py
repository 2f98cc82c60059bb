"""Actors as others see them on Ray, without Ray."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any


class Remote:
    """An actor's handle, for an object of this process; every call takes a moment, as on Ray."""

    def __init__(self, actor: object) -> None:
        self._actor = actor

    def __getattr__(self, name: str) -> Any:
        method: Callable[..., Any] = getattr(self._actor, name)

        class Call:
            async def remote(self, *args: Any) -> Any:
                await asyncio.sleep(0.001)
                return await method(*args)

        return Call()
