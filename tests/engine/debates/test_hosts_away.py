"""Hosts whose models sleep for a while: what is asked or published meanwhile waits; who does not wake is replaced."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import pytest

from actors.catalogue import BACKENDS
from actors.models.backend import AdapterRef, BackendInfo
from actors.models.scripted import ScriptedBackend, ScriptedSettings
from actors.placement import AgentActor, HostSpec
from engine.debates.hosts import Hosts
from protocols.errors import AgentError, HostLostError
from tests.actors.remote import Remote
from tests.actors.test_agent import Arena, make_ask

pytestmark = pytest.mark.asyncio


class Dozer(ScriptedBackend):
    """Wakes up the first ``wakes`` times."""

    may_sleep = False
    wakes = 1

    async def sleep(self) -> None:
        assert self.may_sleep

    async def wake(self) -> None:
        if not self.wakes:
            raise AgentError("somebody else has its GPU")


class Listening:
    """An arena's actor, as far as hosts know it."""

    def __init__(self) -> None:
        self.arena, self.lost, self.held = Arena(), list[str](), list[bool]()

    async def deliver(self, packed: bytes) -> None:
        await self.arena.send(packed)

    async def hold(self, held: bool) -> None:
        self.held.append(held)

    async def host_lost(self, host: str) -> None:
        self.lost.append(host)

    async def host_back(self, host: str, handle: Any) -> None:
        self.lost.remove(host)


def place_here(monkeypatch: pytest.MonkeyPatch, backend: type[ScriptedBackend]) -> list[AgentActor]:
    """Hosts are objects of this process from here on. Returns: those that were started, the newest last."""
    found: list[AgentActor] = []

    def place(spec: HostSpec) -> Remote:
        found.append(AgentActor(spec))
        return Remote(found[-1])

    monkeypatch.setitem(BACKENDS, "scripted", msgspec.structs.replace(BACKENDS["scripted"], build=backend))
    monkeypatch.setattr("actors.placement.place", place)
    monkeypatch.setattr("engine.debates.hosts.place", place)
    monkeypatch.setattr("ray.kill", lambda handle: None)
    return found


@pytest.fixture
def placed(monkeypatch: pytest.MonkeyPatch) -> list[AgentActor]:
    monkeypatch.setattr("engine.debates.hosts.BACKOFF_S", 0.0)
    return place_here(monkeypatch, Dozer)


async def started(notes: list[str]) -> tuple[Hosts, Listening]:
    spec = HostSpec(name="m", model="m", backend="scripted", settings=ScriptedSettings(), may_sleep=True)
    hosts, listening = await Hosts.start([spec], {"m": 1}, notes.append), Listening()
    await hosts.connect("a", Remote(listening))
    return hosts, listening


async def test_what_is_asked_or_published_of_a_sleeping_host_waits_until_it_is_awake(placed: list[AgentActor]) -> None:
    notes: list[str] = []
    hosts, listening = await started(notes)
    watching = asyncio.ensure_future(hosts.watch())
    await hosts.send_away(["m"], "sleep")
    assert listening.held == [True]
    await placed[0].tell("a", msgspec.msgpack.encode([make_ask()]))
    publishing = asyncio.ensure_future(hosts.publish("m", AdapterRef(name="ada@r-v1", agent="ada", path="x")))
    await hosts.hold(True)
    await hosts.hold(False)  # paused and gone on meanwhile
    await asyncio.sleep(0.05)
    assert listening.arena.outcomes == [] and all(listening.held) and not publishing.done()
    await hosts.call_back("sleep")
    await publishing
    assert [outcome.ask_id for outcome in await listening.arena.wait(1)] == [make_ask().id]
    assert not listening.held[-1] and (await placed[0].stats()).adapters == {"ada": "ada@r-v1"}
    assert len(placed) == 1 and notes == [] and not watching.done()
    await hosts.stop()
    await watching


async def test_a_host_that_does_not_wake_is_replaced_by_one_with_its_adapters(
    placed: list[AgentActor], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Dozer, "wakes", 0)
    notes: list[str] = []
    hosts, listening = await started(notes)
    await hosts.publish("m", AdapterRef(name="ada@r-v1", agent="ada", path="x"))
    await hosts.send_away(["m"], "sleep")
    await hosts.call_back("sleep")
    _, second = placed
    assert (await second.stats()).adapters == {"ada": "ada@r-v1"}
    assert notes == ["model 'm' went down, starting it again (1 of 1): somebody else has its GPU"]
    assert listening.lost == [] and hosts.restarts == {"m": 1}
    await hosts.send_away(["m"], "sleep")
    with pytest.raises(AgentError, match="model 'm' went down 2 times, the last time: somebody else has its GPU"):
        await hosts.call_back("sleep")
    await hosts.stop()


class Slow(Dozer):
    """Starts when it may; counts how often it was put to sleep."""

    may_start = asyncio.Event()
    slept = 0

    async def start(self) -> BackendInfo:
        await self.may_start.wait()
        return await super().start()

    async def sleep(self) -> None:
        self.slept += 1


async def test_a_host_that_is_being_started_again_is_let_start_before_it_leaves(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("engine.debates.hosts.BACKOFF_S", 0.0)
    monkeypatch.setattr(Slow, "may_start", asyncio.Event())
    placed, notes = place_here(monkeypatch, Slow), list[str]()
    Slow.may_start.set()
    hosts, listening = await started(notes)
    Slow.may_start.clear()

    async def killed() -> None:
        raise HostLostError("killed")

    monkeypatch.setattr(placed[0], "watch", killed)
    watching = asyncio.ensure_future(hosts.watch())
    while len(placed) < 2:
        await asyncio.sleep(0.001)
    leaving = asyncio.ensure_future(hosts.send_away(["m"], "sleep"))
    await asyncio.sleep(0.05)
    assert not leaving.done()
    Slow.may_start.set()
    await leaving
    backend = placed[1]._host._backend
    assert isinstance(backend, Slow) and backend.slept == 1  # not the one that is dead
    await hosts.call_back("sleep")
    assert len(placed) == 2 and hosts.restarts == {"m": 1} and listening.lost == []
    await hosts.stop()
    await watching
