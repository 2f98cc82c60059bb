"""A wire from one actor to another: a connection of its own for packed batches, which Ray's calls would be dear for.

A call of Ray's takes some two milliseconds of both processes' time, whatever it carries, and a batch over an open
connection a tenth of that. So what actors tell each other many times a second goes by a wire. Who lives where, and who
has died, is Ray's to know: a wire is looked for by a call, and when one breaks the next batch goes by a call, which
says what has happened. Of a batch that was under way it is not known then whether it was taken; its teller, who knows
what of it is still to be told, tells that again.

On the wire: a greeting, then batches, each a length (eight bytes, big-endian) and so many bytes; each batch that was
taken is answered with one byte. Nothing is encrypted: where Ray encrypts, there are no wires.
"""

from __future__ import annotations

import asyncio
import hmac
import logging
import os
import secrets
import socket
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any, cast

import msgspec

from actors.post.remote import of_actor
from protocols.errors import HostLostError, UnreachableError

log = logging.getLogger("moot.wire")

DIAL_S = 30.0  # to greet the other end; a busy one takes its time, and nobody waits for it
FIRST_PAUSE_S, LONGEST_PAUSE_S = 10.0, 3600.0  # before an end that was not reached is called again: ever longer
LENGTH = 8  # bytes that say how long a batch is
GREETING = 1024  # bytes, at most, from whom nobody knows yet
BUFFER = 1 << 20  # bytes that a batch may come in at once
GONE_S = 30  # without a sign of the other machine, until it counts as gone
TAKEN = b"\x06"

Call = Callable[[bytes], Awaitable[None]]
"""Tells a batch by a call of Ray's; raises as ``actors.post.remote.of_actor``."""


class Address(msgspec.Struct, frozen=True):
    """Where an actor listens, and what a caller must show to be listened to."""

    host: str
    port: int
    token: str


class _Greeting(msgspec.Struct, frozen=True):
    token: str
    caller: str


_ENCODER = msgspec.msgpack.Encoder()
_GREETINGS = msgspec.msgpack.Decoder(_Greeting)


class Listener:
    """The end of an actor's wires at which batches arrive. Nothing is opened before somebody asks for its address.

    Args:
        take: is handed each batch, and who tells it. What it raises breaks the wire: the caller learns why by a call.
        host: the address to listen at; "": by which Ray knows this machine.
    """

    def __init__(self, take: Callable[[str, bytes], None], host: str = "") -> None:
        self._take, self.host = take, host
        self._token = secrets.token_hex(32)
        self._server: asyncio.Server | None = None
        self._opening = asyncio.Lock()
        self._closed = False
        self._callers: set[asyncio.StreamWriter] = set()

    async def address(self) -> Address | None:
        """At a port that is free on this machine. None: there are no wires: Ray encrypts, or there is no such port."""
        if os.environ.get("RAY_USE_TLS", "0").lower() in ("1", "true"):
            return None
        async with self._opening:
            if self._server is None and not self._closed:
                try:
                    self._server = await asyncio.start_server(self._serve, self._own_host(), 0, limit=BUFFER)
                except (OSError, ValueError) as err:  # of a name that can be none, too
                    log.warning("no wire can lead here, which costs more: %r", err)
        if self._server is None:
            return None
        if self._closed:  # meanwhile
            self._server.close()
            return None
        return Address(self.host, self._server.sockets[0].getsockname()[1], self._token)

    def _own_host(self) -> str:
        if not self.host:
            import ray

            self.host = ray.util.get_node_ip_address()
        return self.host

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._callers.add(writer)
        try:
            if (caller := await self._greeted(reader)) is None:
                return
            _notice_loss(writer.transport)
            writer.write(TAKEN)
            while True:
                self._take(caller, await _batch(reader))
                writer.write(TAKEN)
        except (asyncio.IncompleteReadError, ConnectionError):
            return  # the caller has hung up, or is gone
        except Exception as err:
            log.info("a batch was not taken, its wire is closed: %r", err)
        finally:
            self._callers.discard(writer)
            writer.close()

    async def _greeted(self, reader: asyncio.StreamReader) -> str | None:
        """Who calls; None: nobody who may."""
        try:
            async with asyncio.timeout(DIAL_S):
                greeting = _GREETINGS.decode(await _batch(reader, at_most=GREETING))
        except (TimeoutError, msgspec.MsgspecError, ValueError):
            return None
        return greeting.caller if hmac.compare_digest(greeting.token.encode(), self._token.encode()) else None

    def close(self) -> None:
        """Listen no more, to those who have called either."""
        self._closed = True
        if self._server is not None:
            self._server.close()
        for writer in self._callers:
            writer.transport.abort()


async def _batch(reader: asyncio.StreamReader, at_most: int = 0) -> bytes:
    size = int.from_bytes(await reader.readexactly(LENGTH), "big")
    if at_most and size > at_most:
        raise ValueError(f"{size} bytes where {at_most} are the most")
    return await reader.readexactly(size)


class Wire:
    """An actor's way of telling another one: by a connection where there is one, else by calls. One batch at a time.

    Args:
        caller: what the other end knows this one by.
        call: tells a batch without a connection.
        find: where the other end listens, a call of Ray's, too.
    """

    def __init__(self, caller: str, call: Call, find: Callable[[], Awaitable[Address | None]]) -> None:
        self._caller, self._call, self._find = caller, call, find
        self._end: _CallersEnd | None = None
        self._dialling: asyncio.Task[None] | None = None
        self._may_dial = True
        self._pause_s, self._not_before_s = FIRST_PAUSE_S, 0.0  # of the loop's clock

    def prepare(self) -> None:
        """Look for the other end already. Whatever is told meanwhile goes by calls."""
        loop = asyncio.get_running_loop()
        if self._may_dial and self._end is None and self._dialling is None and loop.time() >= self._not_before_s:
            self._dialling = loop.create_task(self._dial())

    async def tell(self, batch: bytes) -> None:
        """Returns once it has been taken.

        Raises: UnreachableError: the wire has broken, and it may have been. Others: see ``Call``.
        """
        if self._end is not None:
            try:
                await self._end.tell(batch)
                return
            except ConnectionError as err:
                log.info("the wire from %s has broken, a call says why: %r", self._caller, err)
                self._end = None
                raise UnreachableError("a wire has broken; it is not known whether what it carried was taken") from err
        self.prepare()
        await self._call(batch)

    def close(self) -> None:
        self._may_dial = False
        if self._dialling is not None:
            self._dialling.cancel()
        if self._end is not None:
            self._end.hang_up()
            self._end = None

    async def _dial(self) -> None:
        try:
            address = await self._find()  # as long as it takes to come up: Ray says when it never will
            if address is None:
                self._may_dial = False
                return
            async with asyncio.timeout(DIAL_S):
                self._end = await self._greet(address)
            self._pause_s = FIRST_PAUSE_S
        except HostLostError as err:  # or cannot be reached for now
            log.info("%s found nobody to wire: %r", self._caller, err)
        except Exception as err:  # a port that is closed, a time that is over, or what the other end failed with
            self._not_before_s = asyncio.get_running_loop().time() + self._pause_s
            self._pause_s = min(4 * self._pause_s, LONGEST_PAUSE_S)
            log.warning("%s reaches an actor by Ray's calls alone, which cost more: no wire: %r", self._caller, err)
        finally:
            self._dialling = None

    async def _greet(self, address: Address) -> _CallersEnd:
        loop = asyncio.get_running_loop()
        _, end = await loop.create_connection(_CallersEnd, address.host, address.port)
        try:
            await end.tell(_ENCODER.encode(_Greeting(address.token, self._caller)))
        except BaseException:
            end.hang_up()
            raise
        return end


class Wires:
    """An actor's wires to others, one to each name.

    Args: call: tells a batch to an actor, given its handle, without a connection.
    """

    def __init__(self, caller: str, call: Callable[[Any, bytes], Awaitable[None]]) -> None:
        self._caller, self._call = caller, call
        self._to: dict[str, Wire] = {}

    def to(self, name: str, handle: Any) -> Wire:
        """A wire to this actor, in place of that to the one of its name before, which is broken off."""
        self.drop(name)
        wire = self._to[name] = Wire(
            self._caller, lambda batch: self._call(handle, batch), lambda: of_actor(handle.address.remote())
        )
        return wire

    def drop(self, name: str) -> None:
        if (wire := self._to.pop(name, None)) is not None:
            wire.close()

    def prepare(self) -> None:
        for wire in self._to.values():
            wire.prepare()

    def close(self) -> None:
        for name in list(self._to):
            self.drop(name)


class _CallersEnd(asyncio.Protocol):
    """Of an open wire. Closes itself when the other end does."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._taken: asyncio.Future[None] | None = None

    async def tell(self, batch: bytes) -> None:
        """Raises: ConnectionError: it is not known whether it was taken."""
        if self._transport is None or self._transport.is_closing():
            raise ConnectionError("it is closed")
        taken = self._taken = asyncio.get_running_loop().create_future()
        try:
            self._transport.writelines((len(batch).to_bytes(LENGTH, "big"), batch))
            await taken
        except BaseException:  # cancelled, too: an answer to this batch must not count as one to the next
            self.hang_up()
            raise
        finally:
            self._taken = None

    def hang_up(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        _notice_loss(transport)
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is none by its class

    def data_received(self, data: bytes) -> None:
        if self._taken is not None and not self._taken.done():
            self._taken.set_result(None)

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        if self._taken is not None and not self._taken.done():
            self._taken.set_exception(exc if isinstance(exc, ConnectionError) else ConnectionResetError(f"{exc}"))


def _notice_loss(transport: asyncio.BaseTransport) -> None:
    """Let the kernel break the connection when the other machine is gone without a word."""
    found = transport.get_extra_info("socket")
    with suppress(OSError):  # not on this system: then a batch waits until Ray says that the actor has died
        found.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        found.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, value in (("TCP_KEEPIDLE", GONE_S // 3), ("TCP_KEEPINTVL", GONE_S // 3), ("TCP_KEEPCNT", 2)):
            if hasattr(socket, name):
                found.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
        if hasattr(socket, "TCP_USER_TIMEOUT"):
            found.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, GONE_S * 1000)
