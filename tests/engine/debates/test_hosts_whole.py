"""A host whose model is replaced by what its agent learned: started again with it, and every reply says so."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from actors.models.backend import AdapterRef
from actors.models.scripted import ScriptedBackend, ScriptedSettings
from actors.placement import AgentActor, HostSpec
from engine.debates.hosts import Hosts
from protocols.message import Ask, Reply
from tests.actors.remote import Remote
from tests.actors.test_agent import make_ask
from tests.engine.debates.test_hosts_away import Listening, place_here


class OnDisk(msgspec.Struct, frozen=True, kw_only=True):
    """Settings of a backend that takes a folder."""

    model: str


class Folder(ScriptedBackend):
    """Says which folder it was started with, and has no use for adapters."""

    def __init__(self, settings: Any) -> None:
        super().__init__(ScriptedSettings())
        self._folder = settings.model

    async def generate(self, ask: Ask, adapter: AdapterRef | None) -> Reply:
        assert adapter is None
        return msgspec.structs.replace(await super().generate(ask, adapter), text=self._folder)

    async def load_adapter(self, adapter: AdapterRef) -> None:
        raise AssertionError("a whole model is not put into another")


@pytest.fixture
def placed(monkeypatch: pytest.MonkeyPatch) -> list[AgentActor]:
    async def ended(self: Hosts, host: str, handle: Any) -> None:
        """Nothing here is a process."""

    monkeypatch.setattr(Hosts, "_ended", ended)
    return place_here(monkeypatch, Folder)


async def said(host: AgentActor, listening: Listening, number: int) -> tuple[str, str]:
    await host.tell("a", msgspec.msgpack.encode([make_ask(number)]))
    reply = (await listening.arena.wait(number))[-1]
    assert isinstance(reply, Reply)
    return reply.text, reply.adapter


@pytest.mark.asyncio
async def test_replicas_start_again_with_what_was_learned_once_or_come_back_with_it(placed: list[AgentActor]) -> None:
    specs = [HostSpec(name=name, model="m", backend="scripted", settings=OnDisk(model="base")) for name in ("m", "m~2")]
    hosts, listening = await Hosts.start(specs, {"m": 1}, lambda note: None), Listening()
    await hosts.connect("a", Remote(listening))
    assert await said(placed[0], listening, 1) == ("base", "")
    first, second = (AdapterRef(name=f"ada@r-v{n}", agent="ada", path=f"v{n}", whole=True) for n in (1, 2))
    await hosts.publish("m", first)
    await hosts.publish("m", first)  # as a loop does that is taken up again
    assert len(placed) == 4 and not listening.lost and not listening.held[-1]
    assert await said(placed[2], listening, 2) == ("v1", "ada@r-v1")
    await hosts.send_away(["m", "m~2"], "release")
    await hosts.publish("m", second)
    assert len(placed) == 4
    await hosts.call_back("release")
    assert len(placed) == 6 and not listening.lost
    assert await said(placed[5], listening, 3) == ("v2", "ada@r-v2")
    assert (await placed[5].stats()).adapters == {"ada": "ada@r-v2"}
    await hosts.stop()
