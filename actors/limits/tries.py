"""One ask, as many tries as it deserves: what failed, what is tried again and when, and a second try beside a slow one.

``actors.limits.policy`` says what is done about which failure. Every try is on the record of the outcome.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec

from actors.limits.policy import stops_run, wait_s
from actors.limits.prices import NOTHING, Amount, Meter
from protocols.bounds import MAX_CONCURRENCY, UP, check_above_0, check_bounds
from protocols.errors import EngineDownError, ReplyError
from protocols.message import MAX_ATTEMPTS, Ask, Attempt, Failure, Outcome, Reply

MAX_REASON_CHARS = 500
MAX_TRIES = 1_000  # they wait a minute each in the end: most of a day


class Limits(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What one host lets through and how long it tries."""

    max_concurrency: int = 0  # asks in the model at once; 0: what the backend says it can use
    timeout_s: float = 300.0  # of one try
    max_tries: int = 4  # per ask, for failures that another try can mend; three times as many for rate limits
    backoff_s: float = 0.5  # before the second try, at most; doubles each time, drawn anew, up to a minute
    hedge_after_s: float = 0.0  # a second try beside one that takes longer; 0: never
    requests_per_minute: float = 0.0  # of the account, all hosts together; 0: as its response headers say
    tokens_per_minute: float = 0.0

    def __post_init__(self) -> None:
        check_bounds(self, max_tries=(1, MAX_TRIES), max_concurrency=(0, MAX_CONCURRENCY), backoff_s=(0, UP))
        check_bounds(self, hedge_after_s=(0, UP), requests_per_minute=(0, UP), tokens_per_minute=(0, UP))
        check_above_0(self, "timeout_s")


class Start:
    """When a try was sent; not before it has passed every limit and gate."""

    __slots__ = ("_at", "_told", "sent")

    def __init__(self, told: asyncio.Event | None = None) -> None:
        """Args: told: is set as well."""
        self.sent, self._at, self._told = False, 0.0, told

    def set(self) -> None:
        self.sent, self._at = True, time.monotonic()
        if self._told is not None:
            self._told.set()

    @property
    def latency_s(self) -> float:
        return time.monotonic() - self._at if self.sent else 0.0


Send = Callable[[Ask, Start], Awaitable[Reply]]
"""One try. Sets the start when it leaves. Raises: ReplyError: and nothing else but cancellation."""


class WithheldError(Exception):
    """The host has stopped: this ask gets no further try and no outcome, so that it can be asked again later."""


class Tries:
    """See the module. ``limits`` may be replaced; ``retries`` and ``hedged`` count over all asks."""

    def __init__(self, limits: Limits, meter: Meter, send: Send, stopped: Callable[[], bool]) -> None:
        self.limits, self._meter, self._send, self._stopped = limits, meter, send, stopped
        self.retries = self.hedged = 0

    async def answer(self, ask: Ask) -> Outcome:
        """Try, and try again where that can help, until ``stopped``.

        Raises: ReplyError: no ask would fare better; the run must stop, or (``EngineDownError``) the model be started
            again. WithheldError: it has stopped.
        """
        began = time.monotonic()
        attempts: list[Attempt] = []
        while True:
            start = Start()
            try:
                tried = self._hedge(ask, attempts) if self.limits.hedge_after_s else self._send(ask, start)
                return _told(await tried, attempts)
            except ReplyError as err:
                error = err
                self._note(ask, err, start, attempts)  # hedged tries have noted themselves
            if isinstance(error, EngineDownError) or stops_run(error):
                raise error
            limits = self.limits
            wait = wait_s(
                error, len(attempts), max_tries=limits.max_tries, backoff_s=limits.backoff_s, drawn=random.random()
            )
            if wait is None:
                return _failure(ask, error, attempts, time.monotonic() - began)
            if self._stopped():
                raise WithheldError
            self.retries += 1
            await asyncio.sleep(wait)

    async def _try(self, ask: Ask, attempts: list[Attempt], start: Start) -> Reply:
        """One of two; if it was sent and fails, or is cut short, it is among the attempts."""
        try:
            return await self._send(ask, start)
        except ReplyError as err:
            self._note(ask, err, start, attempts)
            raise
        except asyncio.CancelledError:
            self._note(ask, ReplyError("hedged", "timeout"), start, attempts)
            raise

    def _note(self, ask: Ask, err: ReplyError, start: Start, attempts: list[Attempt]) -> None:
        if start.sent:
            charged = self._meter.charged(ask, err)
            attempts.append(Attempt(err.kind, clean(str(err)), start.latency_s, charged.usd, charged.tokens))

    async def _hedge(self, ask: Ask, attempts: list[Attempt]) -> Reply:
        """A try, and a second beside it when the first is slow; the first reply counts, the other try is dropped.

        Raises: ReplyError: no reply from either; what says that the run must stop comes first.
        """
        sent = asyncio.Event()
        first = asyncio.ensure_future(self._try(ask, attempts, Start(sent)))
        tasks: set[asyncio.Future[Reply]] = {first}
        try:
            if await _slow(first, sent, self.limits.hedge_after_s):
                self.hedged += 1
                tasks.add(asyncio.ensure_future(self._try(ask, attempts, Start())))
            pending = set(tasks)
            while pending:
                done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
                if replies := [task.result() for task in done if task.exception() is None]:
                    attempts += [_too_late(reply) for reply in replies[1:]]
                    return replies[0]
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        errors = [err for task in tasks if isinstance(err := task.exception(), ReplyError)]
        raise max(errors, key=lambda err: isinstance(err, EngineDownError) or stops_run(err))


async def _slow(first: asyncio.Future[Reply], sent: asyncio.Event, hedge_after_s: float) -> bool:
    """Wait for the first try; whether it is still under way so long after it was sent."""
    leaving = asyncio.ensure_future(sent.wait())
    try:
        both: set[asyncio.Future[Any]] = {first, leaving}
        await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
    finally:
        leaving.cancel()
    await asyncio.wait({first}, timeout=hedge_after_s)
    return not first.done()


def _too_late(reply: Reply) -> Attempt:
    """The second of two replies that came together: paid for all the same."""
    return Attempt("timeout", "hedged", reply.latency_s, reply.cost_usd, reply.usage.total_tokens)


def _told(reply: Reply, attempts: list[Attempt]) -> Reply:
    if not attempts:
        return reply
    return msgspec.structs.replace(reply, tries=len(attempts) + 1, attempts=kept(attempts))


def _failure(ask: Ask, err: ReplyError, attempts: list[Attempt], latency_s: float) -> Failure:
    reason, tries = clean(str(err)), len(attempts)
    return Failure(
        ask_id=ask.id, kind=err.kind, reason=reason, tries=tries, latency_s=latency_s, attempts=kept(attempts)
    )


def kept(attempts: list[Attempt]) -> tuple[Attempt, ...]:
    """The last ones; what the others cost is put on the first that is kept, so that sums stay right."""
    if len(attempts) <= MAX_ATTEMPTS:
        return tuple(attempts)
    cut = len(attempts) - MAX_ATTEMPTS + 1
    usd, tokens = (sum(item.cost_usd for item in attempts[:cut]), sum(item.tokens for item in attempts[:cut]))
    return msgspec.structs.replace(attempts[cut - 1], cost_usd=usd, tokens=tokens), *attempts[cut:]


def spent(outcome: Outcome) -> Amount:
    """What an outcome cost, its failed tries with it: what a budget was charged. Nothing where no model was asked."""
    if isinstance(outcome, Reply) and outcome.cached:
        return NOTHING
    usd, tokens = 0.0, 0
    for item in outcome.attempts:  # of nearly every outcome there are none
        usd, tokens = usd + item.cost_usd, tokens + item.tokens
    if isinstance(outcome, Reply):
        return Amount(usd + outcome.cost_usd, tokens + outcome.usage.total_tokens)
    return Amount(usd, tokens)


def clean(text: str) -> str:
    """Bounded, and fit to be encoded: half a surrogate pair, which JSON can hold, would stop a whole batch."""
    return text[:MAX_REASON_CHARS].encode("utf-8", "replace").decode()


def sendable(reply: Reply) -> Reply:
    """JSON from a model can hold half a surrogate pair, which no encoder takes: one would stop a whole batch."""
    if reply.text.isascii():
        return reply  # nearly all, and without a copy
    try:
        reply.text.encode()
    except UnicodeEncodeError:
        return msgspec.structs.replace(reply, text=reply.text.encode("utf-8", "replace").decode())
    return reply
