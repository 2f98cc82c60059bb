"""A keeper of limits as hosts see it on Ray, without Ray."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from actors.shared_gate import Keeper


class Remote:
    """A keeper as an actor's handle, in this process; every call takes a moment, as on Ray."""

    def __init__(self, keeper: Keeper) -> None:
        self._keeper = keeper

    def __getattr__(self, name: str) -> Any:
        method: Callable[..., Any] = getattr(self._keeper, name)

        class Call:
            async def remote(self, *args: Any) -> Any:
                await asyncio.sleep(0.001)
                return await method(*args)

        return Call()
