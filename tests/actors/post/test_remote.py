"""Calls to actors: what Ray raises of a process that is no more is one error, what the actor raises is its own."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import pytest
import ray

from actors.post import remote
from actors.post.remote import of_actor, of_reachable
from protocols.errors import AgentError, HostLostError

pytestmark = pytest.mark.asyncio


async def raising(err: Exception) -> None:
    raise err


@pytest.mark.parametrize(
    "err",
    [
        ray.exceptions.ActorDiedError(),
        ray.exceptions.OutOfMemoryError("killed by the memory monitor"),
        ray.exceptions.ActorUnschedulableError("no such GPU"),
        ray.exceptions.RuntimeEnvSetupError("no such folder"),
    ],
    ids=lambda err: type(err).__name__,
)
async def test_however_a_process_ended_it_is_lost(err: Exception) -> None:
    with pytest.raises(HostLostError, match="a process of the run died"):
        await of_actor(raising(err))


async def test_what_the_actor_itself_raised_comes_through() -> None:
    ours = ray.exceptions.RayTaskError("f", "traceback", AgentError("the model is down"))
    with pytest.raises(AgentError, match="the model is down") as caught:
        await of_actor(raising(ours))
    assert type(caught.value) is AgentError
    bug = ray.exceptions.RayTaskError("f", "traceback", ValueError("a bug"))
    with pytest.raises(ray.exceptions.RayTaskError):
        await of_actor(raising(bug))


async def test_an_actor_that_cannot_be_reached_is_called_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "AGAIN_S", 0.0)
    away = ray.exceptions.ActorUnavailableError("a cable", b"0" * 16)
    calls: list[Callable[[], Awaitable[str]]] = []

    def call() -> Awaitable[str]:
        calls.append(call)
        return raising(away) if len(calls) < 3 else answer()  # type: ignore[return-value]

    async def answer() -> str:
        return "here"

    assert await of_reachable(call) == "here"
    assert len(calls) == 3
