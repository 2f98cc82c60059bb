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
            def remote(self, *args: Any) -> asyncio.Future[Any]:
                return asyncio.ensure_future(self._called(*args))  # under way whether it is awaited or not

            async def _called(self, *args: Any) -> Any:
                await asyncio.sleep(0.001)
                return await method(*args)

        return Call()
