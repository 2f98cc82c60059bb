"""A model that is asked through its service's batches: half the price, an answer within a day.

Every debate goes on as soon as its own replies are there: asks gather as they come, batches leave as they fill, and
each is looked at by itself. ``batch_book``, beside this file, decides, ``batch_service`` tells what services do, and
``batch_ledger`` remembers; here the three meet. Translation is that of the backend inside.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import time
from collections import Counter
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import NamedTuple
from uuid import uuid4

import msgspec

from actors.limits.policy import POLICIES
from actors.models.backend import AdapterRef, Backend, BackendInfo
from actors.models.images import ReadImage
from actors.post.waiting import happens
from actors.services.anthropic_batches import AnthropicBatches
from actors.services.anthropic_messages import AnthropicBackend, AnthropicSettings
from actors.services.api_backend import ApiBackend
from actors.services.batch_book import BatchSettings, Book, Cancel, Find, Look, Step, Submit
from actors.services.batch_ledger import Entry, Ledger, Made, Meant, Void
from actors.services.batch_service import BatchService, Result, Row
from actors.services.openai_batches import OpenAIBatches
from actors.services.openai_chat import AzureSettings, ChatBackend, OpenAISettings
from protocols.errors import RETRYABLE, AgentError, ReplyError
from protocols.message import Ask, Reply

log = logging.getLogger("moot.batch")

LEDGER = "batches.jsonl"
LOCK_WAIT_S = 120.0  # for the host of a driver that was killed a moment ago, or of a machine that died (NFS: 90 s)
CLOSE_S = 10.0  # that steps under way are let finish: a batch that was just submitted gets its id on record
ROW_BYTES = 200  # what stands around a request in its batch, at most
KEY_LENGTH = 40  # of the 64 letters that services take


class _Asked(NamedTuple):
    body: Callable[[], bytes]  # made again when its batch leaves: thousands with images would fill the memory
    result: asyncio.Future[Result]


class BatchedBackend:
    """The ``Backend`` of one model. ``folder`` must be set before it is started: its ledger lies there."""

    def __init__(self, inner: ApiBackend, service: BatchService, settings: BatchSettings) -> None:
        self.folder: Path | None = None
        self._inner, self._service, self._settings = inner, service, settings
        self._asked: dict[str, _Asked] = {}
        self._passed: set[str] = set()  # keys that went past the budget, as their batch is paid for
        self._ids: set[str] = set()  # of batches on record
        self._ledger: Ledger | None = None
        self._book = self._new_book()
        self._wake = asyncio.Event()
        self._tending: asyncio.Task[None] | None = None
        self._closing = False
        self._counts = Counter[str]()

    def _new_book(self) -> Book:
        known = self._ledger.known if self._ledger else ()
        return Book(self._settings, max_bytes=self._service.max_bytes, new_tag=lambda: uuid4().hex, known=known)

    @property
    def read_image(self) -> ReadImage | None:
        return self._inner.read_image

    @read_image.setter
    def read_image(self, read_image: ReadImage | None) -> None:
        self._inner.read_image = read_image

    async def start(self) -> BackendInfo:
        """Raises: AgentError: see the backend inside; the service has no batches; the ledger cannot be used."""
        info = await self._inner.start()
        if self._tending is None:
            try:
                await self._check(info.model)
                await self._open(info.model)
            except BaseException:
                await self._inner.close()
                raise
            self._tending = asyncio.get_running_loop().create_task(self._tend())
        return msgspec.structs.replace(info, max_concurrency=self._settings.max_requests * self._settings.max_open)

    async def _check(self, model: str) -> None:
        try:
            await self._service.check()
        except ReplyError as err:
            if err.kind not in RETRYABLE:
                raise AgentError(f"model {model!r} cannot be asked in batches: {err}") from err

    async def _open(self, model: str) -> None:
        if self.folder is None:
            raise AgentError(f"model {model!r} is asked in batches, which needs a run's folder to keep its ledger in")
        self._ledger = await asyncio.to_thread(Ledger, self.folder / LEDGER, lock_wait_s=LOCK_WAIT_S)
        self._ids = {batch.id for batch in self._ledger.known if batch.id}
        self._book = self._new_book()

    def bought(self, ask: Ask) -> bool:
        """Whether it is in a batch already, of an earlier process perhaps."""
        try:
            key = row_key(ask, self._inner.encode(ask, None))
        except ReplyError:  # it cannot be sent, as ``generate`` will say
            return False
        if held := self._book.holds(key):
            self._passed.add(key)
        return held

    async def generate(self, ask: Ask, adapter: AdapterRef | None) -> Reply:
        if self._tending is None or self._tending.done():
            raise ReplyError("batches are not tended: the backend is not started, or has stopped", "quota")
        body = self._inner.encode(ask, adapter)
        key = row_key(ask, body)
        if key in self._asked:
            raise ReplyError(f"ask {ask.id} is under way already", "malformed")
        began = time.monotonic()
        again = partial(self._inner.encode, ask, adapter)
        asked = self._asked[key] = _Asked(again, asyncio.get_running_loop().create_future())
        self._book.ask(key, len(body) + ROW_BYTES, time.time())
        self._wake.set()
        try:
            result = await asked.result
        finally:
            del self._asked[key]
            self._passed.discard(key)
            self._book.drop(key)
        if isinstance(result, ReplyError):
            raise result
        return self._inner.decode(result, ask, adapter, time.monotonic() - began)

    async def load_adapter(self, adapter: AdapterRef) -> None:
        """Raises: AgentError: see the backend inside; or its service trained it, and a batch is for one model."""
        if adapter.model:
            raise AgentError(f"adapter {adapter.name!r} is a model of its own, and a batch is for one; leave out batch")
        await self._inner.load_adapter(adapter)

    async def unload_adapter(self, adapter: AdapterRef) -> None:
        await self._inner.unload_adapter(adapter)

    def metrics(self) -> dict[str, float]:
        """Those of the backend inside, and ``batches`` sent; now ``gathered`` asks and ``open_batches``."""
        now = {"gathered": float(self._book.num_gathered), "open_batches": float(self._book.num_open)}
        return self._inner.metrics() | now | {name: float(self._counts[name]) for name in ("batches", "requests")}

    async def close(self) -> None:
        self._closing = True
        self._wake.set()
        if self._tending is not None:
            await asyncio.wait([self._tending], timeout=CLOSE_S)
            self._tending.cancel()
            await asyncio.wait([self._tending])
        if self._ledger is not None:
            self._ledger.close()
        await self._inner.close()

    async def _tend(self) -> None:
        """Take the steps that the book decides on, side by side, until closed."""
        try:
            async with asyncio.TaskGroup() as steps:
                while not self._closing:
                    self._wake.clear()
                    for step in self._book.decide(time.time()):
                        steps.create_task(self._take(step, self._rows(step) if isinstance(step, Submit) else []))
                    due_s = self._book.next_s()
                    await happens(self._wake, None if due_s is None else max(0.0, due_s - time.time()))
        except BaseExceptionGroup as errors:  # a disk that is full, or a bug: no ask would fare better
            log.error("batches are not tended any more", exc_info=errors)
            first = errors.exceptions[0]
            self._deliver(list(self._asked), ReplyError(f"batches cannot be kept: {first!r}", "quota"))

    def _rows(self, step: Submit) -> list[Row]:
        """What the batch is made of; an ask that cannot be sent any more, as its image is gone, fails alone."""
        rows: list[Row] = []
        for key in step.keys:
            try:
                rows.append((key, self._asked[key].body()))
            except ReplyError as err:
                self._book.leave_out(step.tag, key)
                self._deliver([key], err)
        return rows

    async def _take(self, step: Step, rows: list[Row]) -> None:
        match step:
            case Submit():
                await self._submit(step, rows)
            case Find():
                await self._find(step)
            case Look():
                await self._look(step)
            case Cancel():
                await self._cancel(step)
        self._wake.set()

    async def _submit(self, step: Submit, rows: list[Row]) -> None:
        if not rows:
            self._book.forget(step.tag)
            return
        await self._note(Meant(step.tag, time.time(), tuple(key for key, _ in rows)))
        try:
            uploaded = await self._service.upload(rows)
        except ReplyError as err:
            await self._not_taken(step.tag, err)
            return
        try:
            batch_id = await self._service.create(step.tag, uploaded)
        except ReplyError as err:
            if err.kind == "transient":
                log.warning("nobody knows whether a batch of %d was begun: %s", len(rows), err)
                self._book.unsure(step.tag, time.time())
            else:
                await self._not_taken(step.tag, err)
            return
        self._counts["batches"] += 1
        self._counts["requests"] += len(rows)
        await self._begun(step.tag, batch_id)

    async def _begun(self, tag: str, batch_id: str) -> None:
        await self._note(Made(tag, batch_id))
        self._ids.add(batch_id)
        self._book.submitted(tag, batch_id, time.time())

    async def _not_taken(self, tag: str, err: ReplyError) -> None:
        """It is not at the service, for sure."""
        await self._note(Void(tag))
        for key in self._book.waiting(tag) & self._passed:  # not paid for after all: the budget is asked
            self._book.drop(key)
            self._deliver([key], ReplyError(f"its batch was not taken: {err}"))
        if err.kind in RETRYABLE:
            log.warning("a batch waits: %s", err)
            full = err.kind == "rate_limited"
            self._book.unsent(tag, time.time(), full=full, pause_s=err.retry_after_s or 0.0)
        else:
            self._deliver(self._book.forget(tag), err)

    async def _find(self, step: Find) -> None:
        try:
            batch_id = await self._service.find(step.tag, step.keys, step.at_s, self._ids)
        except ReplyError as err:
            self._not_looked_at(step.tag, err)
            return
        if batch_id:
            await self._begun(step.tag, batch_id)
        else:
            await self._note(Void(step.tag))
            self._book.unsent(step.tag, time.time())

    async def _look(self, step: Look) -> None:
        try:
            found = await self._service.look(step.id, step.keys)
        except ReplyError as err:
            self._not_looked_at(step.tag, err)
            return
        if isinstance(found, dict):
            lost = ReplyError(f"batch {step.id} is over, without a result for this ask")
            for key in self._book.over(step.tag):
                self._deliver([key], found.get(key, lost))
        elif found == "gone":
            await self._note(Void(step.tag))
            self._deliver(self._book.forget(step.tag), ReplyError(f"the service has no batch {step.id} any more"))
        elif found == "full":
            await self._not_taken(step.tag, ReplyError("the account's queue is full", "rate_limited"))
        else:
            self._wait_on(step.tag)

    def _not_looked_at(self, tag: str, err: ReplyError) -> None:
        """What was submitted stays known whatever the service says now."""
        log.warning("a batch could not be looked at: %s", err)
        if POLICIES[err.kind].ending == "stop":
            self._deliver(self._book.waiting(tag), err)
        self._wait_on(tag)

    def _wait_on(self, tag: str) -> None:
        given_up = self._book.still(tag, time.time())
        self._deliver(given_up, ReplyError("its batch did not end though it was cancelled"))

    async def _cancel(self, step: Cancel) -> None:
        log.warning("batch %s has taken more than batch.max_wait_s=%g; cancelling", step.id, self._settings.max_wait_s)
        try:
            await self._service.cancel(step.id)
        except ReplyError as err:
            log.warning("batch %s cannot be cancelled, perhaps it is ending: %s", step.id, err)
        self._book.cancelled(step.tag, time.time())

    def _deliver(self, keys: Iterable[str], result: Result) -> None:
        for key in keys:
            if (asked := self._asked.get(key)) is not None and not asked.result.done():
                asked.result.set_result(result)

    async def _note(self, entry: Entry) -> None:
        assert self._ledger is not None  # opened before anything is asked
        await asyncio.to_thread(self._ledger.add, entry)


def row_key(ask: Ask, body: bytes) -> str:
    """The same for the same ask and request in any process: a resumed run finds its rows by it."""
    return hashlib.sha256(b"%s\0%s" % (ask.id.encode(), body)).hexdigest()[:KEY_LENGTH]


def chat_backend(settings: OpenAISettings | AzureSettings) -> Backend:
    backend = ChatBackend(settings)
    if settings.batch is None or isinstance(settings, AzureSettings):
        return backend
    return BatchedBackend(backend, OpenAIBatches(backend, settings.base_url.rstrip("/")), settings.batch)


def anthropic_backend(settings: AnthropicSettings) -> Backend:
    backend = AnthropicBackend(settings)
    if settings.batch is None:
        return backend
    return BatchedBackend(backend, AnthropicBatches(backend, settings.url), settings.batch)
