"""An agent host: the actor in which one model lives and answers for every agent that speaks through it.

Agents that share a model share its host, each with its own adapter; an agent with a model of its own has a host to
itself. Arenas ``tell`` a host batches of asks, the host tells them batches of outcomes as they finish. A host knows
nothing of protocols. Ray is added outside, in ``actors.placement``.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections import Counter
from collections.abc import Awaitable, Callable

import msgspec

from actors.backend import AdapterRef, Backend, BackendInfo
from actors.mailbox import Outbox
from protocols.errors import RETRYABLE, AgentError, FailureKind, ReplyError
from protocols.message import Ask, Failure, Outcome, Reply, Usage

log = logging.getLogger("moot.agent")

_ASKS = msgspec.msgpack.Decoder(list[Ask])
_ENCODER = msgspec.msgpack.Encoder()

Send = Callable[[bytes], Awaitable[None]]
"""Delivers one packed batch of outcomes to an arena; returns when the arena has taken it."""


class Limits(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What one host lets through and how long it tries."""

    max_concurrency: int = 0  # asks in the model at once; 0: what the backend says it can use
    timeout_s: float = 300.0  # of one try
    max_tries: int = 4  # per ask, for failures that another try can mend
    backoff_s: float = 0.5  # before the second try; doubles each time, with jitter, up to a minute

    def __post_init__(self) -> None:
        if self.max_tries < 1:
            raise ValueError(f"max_tries={self.max_tries} must be at least 1")
        if not (self.timeout_s > 0 and self.backoff_s >= 0 and self.max_concurrency >= 0):  # NaN is refused too
            raise ValueError("timeout_s must be above 0, backoff_s and max_concurrency not below")


class HostStats(msgspec.Struct, frozen=True, kw_only=True):
    """Running totals of a host since its start."""

    host: str
    queued: int  # told, not yet in the model
    running: int
    replies: int
    failures: dict[str, int]
    retries: int
    usage: Usage
    backend: dict[str, float]


class AgentHost:
    """One model, its agents, their adapters, its limits."""

    def __init__(self, name: str, backend: Backend, limits: Limits) -> None:
        self._name, self._backend, self._limits = name, backend, limits
        self._info: BackendInfo | None = None
        self._slots = asyncio.Semaphore(1)
        self._arenas: dict[str, Outbox[Outcome]] = {}
        self._adapters: dict[str, AdapterRef] = {}  # agent -> the version that answers now
        self._speaking: Counter[str] = Counter()  # adapter version -> asks that it is answering
        self._outgoing: dict[str, AdapterRef] = {}  # replaced, but still answering
        self._tasks: set[asyncio.Task[None]] = set()
        self._running = self._replies = self._retries = 0
        self._failures: Counter[str] = Counter()
        self._usage = Usage()

    async def start(self) -> BackendInfo:
        """Start the model. Raises: AgentError: see the backend."""
        if self._info is None:
            info = await self._backend.start()
            self._slots = asyncio.Semaphore(self._limits.max_concurrency or info.max_concurrency)
            self._info = info
        return self._info

    def connect(self, arena: str, send: Send) -> None:
        """From now on ``arena`` may ask, and is told the outcomes through ``send``."""

        async def post(batch: list[Outcome]) -> None:
            await send(_ENCODER.encode(batch))

        def lost(err: Exception) -> None:
            log.warning("%s: arena %s does not take its outcomes any more: %r", self._name, arena, err)

        self._arenas[arena] = Outbox(post, lost)

    async def disconnect(self, arena: str) -> None:
        """Forget an arena that has ended."""
        if (outbox := self._arenas.pop(arena, None)) is not None:
            await outbox.close()

    def tell(self, arena: str, packed: bytes) -> None:
        """Take a batch of asks. Returns at once; every ask brings exactly one outcome to the arena.

        Raises: AgentError: the model was not started; none of the batch was taken.
        """
        if self._info is None:
            raise AgentError(f"agent host {self._name!r} was asked before it was started")
        for ask in _ASKS.decode(packed):
            task = asyncio.get_running_loop().create_task(self._serve(arena, ask))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def publish(self, adapter: AdapterRef) -> str:
        """Load a new version; from the return on, every ask of its agent is answered by it.

        Returns: the version's name. Raises: AgentError: the model cannot take it; the old version stays.
        """
        await self._backend.load_adapter(adapter)
        previous = self._adapters.get(adapter.agent)
        self._adapters[adapter.agent] = adapter
        self._outgoing.pop(adapter.name, None)  # it is back
        if previous is not None and previous.name != adapter.name:
            await self._take_out(previous)
        return adapter.name

    async def retire(self, agent: str) -> None:
        """Back to the base model for this agent."""
        if (previous := self._adapters.pop(agent, None)) is not None:
            await self._take_out(previous)

    async def _take_out(self, adapter: AdapterRef) -> None:
        """Unload a version that was replaced, once the last ask that it is answering is over."""
        if self._speaking[adapter.name]:
            self._outgoing[adapter.name] = adapter
            return
        try:
            await self._backend.unload_adapter(adapter)
        except AgentError as err:  # costs memory; the version in use is served all the same
            log.warning("%s: adapter %s cannot be unloaded: %s", self._name, adapter.name, err)

    def stats(self) -> HostStats:
        return HostStats(
            host=self._name,
            queued=len(self._tasks) - self._running,
            running=self._running,
            replies=self._replies,
            failures=dict(self._failures),
            retries=self._retries,
            usage=self._usage,
            backend=self._backend.metrics() if self._info else {},
        )

    async def close(self) -> None:
        """Drop every ask under way and stop the model."""
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)  # the model is stopped once nobody is in it
        for outbox in self._arenas.values():
            await outbox.close()
        await self._backend.close()

    async def _serve(self, arena: str, ask: Ask) -> None:
        outcome = await self._answer(ask)
        if isinstance(outcome, Reply):
            self._replies += 1
            self._usage += outcome.usage
        else:
            self._failures[outcome.kind] += 1
        if arena in self._arenas:
            self._arenas[arena].put([outcome])

    async def _answer(self, ask: Ask) -> Outcome:
        """Try, and try again where that can help. Parameters never change between tries."""
        began = time.monotonic()
        kind: FailureKind = "transient"
        reason, tries = "", 0
        for tries in range(1, self._limits.max_tries + 1):
            try:
                reply = await self._generate(ask)
                return msgspec.structs.replace(reply, tries=tries) if tries > 1 else reply
            except TimeoutError:
                kind, reason = "timeout", f"no reply within {self._limits.timeout_s:g} s"
            except ReplyError as err:
                kind, reason = err.kind, str(err)
            except asyncio.CancelledError:
                if (task := asyncio.current_task()) is None or task.cancelling():
                    raise  # this host is closing; otherwise the engine dropped the ask by itself
                kind, reason = "transient", "the model dropped the ask"
            except Exception as err:  # a backend's bug must not take the debate with it; it is logged and on the record
                log.exception("%s: ask %s failed", self._name, ask.id)
                kind, reason = "malformed", f"unexpected {type(err).__name__}: {err}"
            if kind not in RETRYABLE or tries == self._limits.max_tries:
                break
            self._retries += 1
            await asyncio.sleep(min(60.0, self._limits.backoff_s * 2 ** (tries - 1)) * random.uniform(0.5, 1.5))
        return _failure(ask, kind, reason, tries, time.monotonic() - began)

    async def _generate(self, ask: Ask) -> Reply:
        """One try, within the limits."""
        async with self._slots:
            adapter = self._adapters.get(ask.agent)
            version = adapter.name if adapter else ""
            self._running += 1
            self._speaking[version] += 1
            try:
                async with asyncio.timeout(self._limits.timeout_s):
                    return _sendable(await self._backend.generate(ask, adapter))
            finally:
                self._running -= 1
                self._speaking[version] -= 1
                if not self._speaking[version]:
                    del self._speaking[version]
                    if (outgoing := self._outgoing.pop(version, None)) is not None:
                        await self._take_out(outgoing)


def _sendable(reply: Reply) -> Reply:
    """JSON from a model can hold half a surrogate pair, which no encoder takes: one would stop a whole batch."""
    try:
        reply.text.encode()
    except UnicodeEncodeError:
        return msgspec.structs.replace(reply, text=_clean(reply.text))
    return reply


def _clean(text: str) -> str:
    return text.encode("utf-8", "replace").decode()


def _failure(ask: Ask, kind: FailureKind, reason: str, tries: int, latency_s: float) -> Failure:
    return Failure(ask_id=ask.id, kind=kind, reason=_clean(reason[:500]), tries=tries, latency_s=latency_s)
