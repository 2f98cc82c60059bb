"""Wires between actors: batches come in order and once, and whatever breaks, a call says why."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager, suppress

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from actors.post import wire
from actors.post.wire import LENGTH, Address, Listener, Wire
from protocols.errors import HostLostError, UnreachableError

pytestmark = pytest.mark.asyncio

HERE = "127.0.0.1"


class Ends:
    """An actor that takes batches, and a wire to it that tells by calls what cannot go by itself."""

    def __init__(self, host: str = HERE) -> None:
        self.by_wire: list[tuple[str, bytes]] = []
        self.by_call: list[bytes] = []
        self.refuse: Exception | None = None
        self.lost = False
        self.listener = Listener(self._take, host)
        self.wire = Wire("ada", self._call, self.listener.address)

    def _take(self, caller: str, batch: bytes) -> None:
        if self.refuse is not None:
            raise self.refuse
        self.by_wire.append((caller, batch))

    async def _call(self, batch: bytes) -> None:
        if self.lost:
            raise HostLostError("it died")
        self.by_call.append(batch)


@asynccontextmanager
async def ends() -> AsyncIterator[Ends]:
    both = Ends()
    try:
        yield both
    finally:
        both.wire.close()
        both.listener.close()
        await asyncio.sleep(0.01)


async def opened(one: Wire) -> None:
    one.prepare()
    async with asyncio.timeout(10.0):
        while one._end is None:
            await asyncio.sleep(0.001)


async def settled(one: Wire) -> None:
    """Returns once nothing is looked for."""
    async with asyncio.timeout(10.0):
        while one._dialling is not None:
            await asyncio.sleep(0.001)


async def test_what_is_told_before_there_is_a_wire_is_a_call_and_all_else_goes_by_it() -> None:
    async with ends() as both:
        await both.wire.tell(b"one")
        await opened(both.wire)
        for batch in (b"two", b"", b"three"):
            await both.wire.tell(batch)
        assert both.by_call == [b"one"]
        assert both.by_wire == [("ada", b"two"), ("ada", b""), ("ada", b"three")]


@given(st.lists(st.binary(max_size=200) | st.integers(0, 3_000_000).map(bytes), max_size=4))
@settings(max_examples=15, deadline=None)
async def test_batches_of_any_size_come_whole_and_in_order(batches: list[bytes]) -> None:
    async with ends() as both:
        await opened(both.wire)
        for batch in batches:
            await both.wire.tell(batch)
        assert [batch for _, batch in both.by_wire] == batches


async def broken(telling: Awaitable[None]) -> None:
    with pytest.raises(UnreachableError, match="it is not known whether what it carried was taken"):
        await telling


async def test_after_what_the_other_end_does_not_take_the_next_goes_by_a_call() -> None:
    async with ends() as both:
        await opened(both.wire)
        both.refuse = ValueError("not started")
        await broken(both.wire.tell(b"one"))
        await both.wire.tell(b"two")
        both.refuse = None
        assert (both.by_call, both.by_wire) == ([b"two"], [])
        await opened(both.wire)
        await both.wire.tell(b"three")
        assert both.by_wire == [("ada", b"three")]


async def test_of_one_that_has_died_the_call_says_so() -> None:
    async with ends() as both:
        await opened(both.wire)
        both.refuse, both.lost = ConnectionResetError("as when a process ends"), True
        await broken(both.wire.tell(b"one"))
        with pytest.raises(HostLostError, match="it died"):
            await both.wire.tell(b"two")
        assert both.wire._end is None


async def test_a_wire_whose_teller_gave_up_while_waiting_is_not_used_again() -> None:
    """Else the answer to that batch would count as one to the next."""
    held = asyncio.Event()
    taken: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(asyncio.IncompleteReadError):
            for number in range(2):  # a greeting, and one batch
                taken.append(await reader.readexactly(int.from_bytes(await reader.readexactly(LENGTH), "big")))
                if number:
                    await held.wait()
                writer.write(wire.TAKEN)
        writer.close()

    calls: list[bytes] = []

    async def call(batch: bytes) -> None:
        calls.append(batch)

    async def find() -> Address:
        return Address(HERE, server.sockets[0].getsockname()[1], "")

    server = await asyncio.start_server(serve, HERE, 0)
    one = Wire("ada", call, find)
    await opened(one)
    telling = asyncio.ensure_future(one.tell(b"two"))
    while len(taken) < 2:
        await asyncio.sleep(0)
    telling.cancel()
    with pytest.raises(asyncio.CancelledError):
        await telling
    held.set()
    await broken(one.tell(b"three"))
    await one.tell(b"four")
    assert (taken[1], calls) == (b"two", [b"four"])
    one.close()
    server.close()
    await asyncio.sleep(0.01)


async def test_where_no_wire_can_be_had_all_goes_by_calls(caplog: pytest.LogCaptureFixture) -> None:
    async with ends() as both:
        both.listener.host = "203.0.113.1"  # not this machine's
        for batch in (b"one", b"two"):
            await both.wire.tell(batch)
            await settled(both.wire)
        assert (both.by_call, both.by_wire) == ([b"one", b"two"], [])
        assert [record.levelname for record in caplog.records] == ["WARNING"]


async def test_a_port_that_cannot_be_reached_is_tried_again_after_ever_longer_pauses(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wire, "FIRST_PAUSE_S", 0.1)
    async with ends() as both, ends() as others:
        address = await both.listener.address()
        both.listener.close()

        async def find() -> Address | None:
            return address

        one = Wire("ada", both._call, find)
        for pause_s, tries in ((0.0, 1), (0.0, 1), (0.11, 2), (0.0, 2)):
            await asyncio.sleep(pause_s)
            await one.tell(b"one")
            await settled(one)
            assert [record.levelname for record in caplog.records] == ["WARNING"] * tries
        assert "Ray's calls alone" in caplog.text
        address = await others.listener.address()
        await asyncio.sleep(0.41)
        await opened(one)
        await one.tell(b"two")
        assert (both.by_call, others.by_wire) == ([b"one"] * 4, [("ada", b"two")])
        one.close()


async def test_whatever_looking_for_an_end_fails_with_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    async with ends() as both:

        async def find() -> Address | None:
            raise RuntimeError("as from a task of Ray's")

        one = Wire("ada", both._call, find)
        for _ in range(3):
            await one.tell(b"one")
            await settled(one)
        assert both.by_call == [b"one"] * 3
        assert [record.levelname for record in caplog.records] == ["WARNING"]


async def test_an_end_that_takes_long_to_come_up_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wire, "DIAL_S", 0.05)
    async with ends() as both:

        async def find() -> Address | None:
            await asyncio.sleep(0.1)
            return await both.listener.address()

        one = Wire("ada", both._call, find)
        await opened(one)
        one.close()


async def test_a_listener_that_is_closed_opens_no_more() -> None:
    async with ends() as both, ends() as meanwhile:
        both.listener.close()
        assert await both.listener.address() is None
        asking = asyncio.ensure_future(meanwhile.listener.address())
        await asyncio.sleep(0)
        meanwhile.listener.close()
        assert await asking is None


async def test_where_ray_encrypts_there_are_no_wires(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_USE_TLS", "1")
    async with ends() as both:
        assert await both.listener.address() is None
        for batch in (b"one", b"two"):
            await both.wire.tell(batch)
            await settled(both.wire)
        assert both.by_call == [b"one", b"two"]


async def test_one_that_cannot_be_reached_for_a_moment_is_looked_for_again() -> None:
    async with ends() as both:
        away = [True]

        async def find() -> Address | None:
            if away.pop():
                raise UnreachableError("it may live")
            return await both.listener.address()

        one = Wire("ada", both._call, find)
        one.prepare()
        await settled(one)
        assert one._end is None
        away = [False]
        await opened(one)
        await one.tell(b"one")
        assert (both.by_wire, both.by_call) == ([("ada", b"one")], [])
        one.close()


@pytest.mark.parametrize(
    "greeting",
    [
        msgspec.msgpack.encode({"token": "guessed", "caller": "ada"}),
        msgspec.msgpack.encode({"token": "gu\u00e9ssed", "caller": "ada"}),
        b"GET / HTTP/1.1\r\n\r\n",
        b"",
        bytes(5000),
    ],
)
async def test_who_cannot_show_the_token_is_not_listened_to(greeting: bytes) -> None:
    async with ends() as both:
        address = await both.listener.address()
        assert address is not None
        reader, writer = await asyncio.open_connection(address.host, address.port)
        writer.write(len(greeting).to_bytes(LENGTH, "big") + greeting + (3).to_bytes(LENGTH, "big") + b"one")
        assert await reader.read() == b""
        writer.close()
        assert both.by_wire == []


async def test_who_says_nothing_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wire, "DIAL_S", 0.02)
    async with ends() as both:
        address = await both.listener.address()
        assert address is not None
        reader, writer = await asyncio.open_connection(address.host, address.port)
        assert await reader.read() == b""
        writer.close()
