"""Calls to actors, Ray's errors put into moot's."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from actors.post.mailbox import AGAIN_S
from protocols.errors import AgentError, HostLostError, MootError, UnreachableError


async def of_actor(call: Awaitable[Any]) -> Any:
    """Await a call.

    Raises: HostLostError: the actor's process died. UnreachableError: it may live. What the actor itself raised, if it
        is moot's.
    """
    import ray

    try:
        return await call
    except ray.exceptions.RayTaskError as err:
        cause = err.cause
        if isinstance(cause, MootError):
            raise cause from err
        raise
    except ray.exceptions.ActorUnavailableError as err:
        raise UnreachableError("a process of the run cannot be reached; go on with `moot resume`") from err
    except ray.exceptions.RayError as err:  # it died, of a lack of memory perhaps, or never came to live
        raise HostLostError(f"a process of the run died: {reason(err)}; go on with `moot resume`") from err


async def of_reachable(call: Callable[[], Awaitable[Any]]) -> Any:
    """The same for a call that does no harm twice: an actor that cannot be reached is called again, unless it died."""
    while True:
        try:
            return await of_actor(call())
        except UnreachableError:
            await asyncio.sleep(AGAIN_S)


def reason(err: BaseException) -> str:
    """What went wrong in an actor, without Ray's wrapping: the cause's own words, or its first line."""
    cause = getattr(err, "cause", None)
    inner = cause if isinstance(cause, BaseException) else err
    lines = [line for line in str(inner).splitlines() if line.strip()]
    return (lines[-1].strip() if type(inner).__name__ == "RayTaskError" else lines[0].strip()) if lines else repr(inner)


def what_happened(err: AgentError) -> str:
    """Of an error that is being mended: without the way out."""
    return str(err).partition("; go on")[0].rstrip(".")
