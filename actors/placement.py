"""Where agents live: agent hosts as Ray actors, and what they need of the machine."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import TYPE_CHECKING, Any

import msgspec

from actors.agent import AgentHost, HostStats, Limits
from actors.backend import AdapterRef, BackendInfo
from actors.catalogue import BACKENDS
from protocols.errors import AgentError

if TYPE_CHECKING:
    from collections.abc import Sequence

MAX_CALLS = 10_000  # concurrent calls one host admits: above what any number of arenas keeps open


class HostSpec(msgspec.Struct, frozen=True, kw_only=True):
    """One agent host to start: its model and what it takes of the cluster."""

    name: str
    backend: str
    settings: msgspec.Struct
    limits: Limits = Limits()
    num_cpus: float = 0.0
    num_gpus: float = 0.0


class AgentActor:
    """``AgentHost`` as a Ray actor: the same methods, with handles where it takes functions."""

    def __init__(self, name: str, backend: str, settings: msgspec.Struct, limits: Limits) -> None:
        self._host = AgentHost(name, BACKENDS[backend].build(settings), limits)

    async def start(self) -> BackendInfo:
        return await self._host.start()

    async def connect(self, arena: str, handle: Any) -> None:
        async def send(packed: bytes) -> None:
            await handle.deliver.remote(packed)

        self._host.connect(arena, send)

    async def disconnect(self, arena: str) -> None:
        await self._host.disconnect(arena)

    async def tell(self, arena: str, packed: bytes) -> None:
        self._host.tell(arena, packed)

    async def publish(self, adapter: AdapterRef) -> str:
        return await self._host.publish(adapter)

    async def retire(self, agent: str) -> None:
        await self._host.retire(agent)

    async def stats(self) -> HostStats:
        return self._host.stats()

    async def close(self) -> None:
        await self._host.close()


def place(spec: HostSpec) -> Any:
    """Create the actor. It starts its model when ``start`` is called.

    Restarts are off: a host that dies takes the asks it held with it, the run stops with a sentence, and resuming asks
    those again.
    """
    import ray

    env = dict(BACKENDS[spec.backend].env(spec.settings))
    options: dict[str, Any] = {
        "num_cpus": spec.num_cpus,
        "num_gpus": spec.num_gpus,
        "max_concurrency": MAX_CALLS,
        "max_restarts": 0,
        "max_task_retries": 0,
        "name": None,
    }
    if env:
        options["runtime_env"] = {"env_vars": env}
    return ray.remote(AgentActor).options(**options).remote(spec.name, spec.backend, spec.settings, spec.limits)


async def start_hosts(specs: Sequence[HostSpec]) -> dict[str, Any]:
    """Place and start every host, side by side.

    Returns: host name -> actor handle. Raises: AgentError: one cannot start; those already up are stopped.
    """
    import asyncio

    handles = {spec.name: place(spec) for spec in specs}
    results = await asyncio.gather(*(_started(handle) for handle in handles.values()), return_exceptions=True)
    for name, result in zip(handles, results, strict=True):
        if isinstance(result, BaseException):
            await stop_hosts(handles)
            raise AgentError(f"model {name!r} cannot start: {reason(result)}") from result
    return handles


async def _started(handle: Any) -> BackendInfo:
    info: BackendInfo = await handle.start.remote()
    return info


async def stop_hosts(handles: dict[str, Any]) -> None:
    """Close every model, then end its process."""
    import asyncio

    import ray

    async def stop(handle: Any) -> None:
        closing: Awaitable[None] = handle.close.remote()
        try:
            await asyncio.wait_for(closing, timeout=20.0)
        except (TimeoutError, ray.exceptions.RayError) as err:
            import logging

            logging.getLogger("moot.placement").info("an agent host did not close by itself: %r", err)
        ray.kill(handle)

    await asyncio.gather(*(stop(handle) for handle in handles.values()))


def reason(err: BaseException) -> str:
    """What went wrong in an actor, without Ray's wrapping: the cause's own words, or its first line."""
    cause = getattr(err, "cause", None)
    inner = cause if isinstance(cause, BaseException) else err
    lines = [line for line in str(inner).splitlines() if line.strip()]
    return (lines[-1].strip() if type(inner).__name__ == "RayTaskError" else lines[0].strip()) if lines else repr(inner)
