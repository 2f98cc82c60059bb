"""The thread in which a model of transformers lives: who is answered when, and by which adapter.

What happens inside a batch is in ``transformers_batch``, what an adapter is in ``transformers_adapters``.
"""

from __future__ import annotations

import asyncio
import os
import queue
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, TypeVar

from actors.local.embedded import embedded_model_path
from actors.local.model_config import sees
from actors.local.transformers_adapters import Adapters
from actors.local.transformers_batch import Batch, Row, joins
from actors.local.transformers_prompts import Prompts
from actors.local.transformers_settings import TransformersSettings
from actors.models.backend import EMBEDDED, AdapterRef, check_room
from actors.models.images import ReadImage
from protocols.errors import AgentError, EngineDownError, ReplyError
from protocols.message import Ask

CLOSE_TIMEOUT_S = 30.0  # a step of a large batch on a busy machine takes a few seconds

T = TypeVar("T")


@dataclass(eq=False)
class Waiting:
    """An ask on its way through the thread; ``future`` may be cancelled by whoever waits for it."""

    ask: Ask
    adapter: AdapterRef | None
    row: Row  # its prompt is filled in by the thread
    came_at: float
    future: Future[Row] = field(default_factory=Future)

    @property
    def adapter_name(self) -> str:
        return self.adapter.name if self.adapter else ""


class Engine:
    """The thread that owns model, tokenizer and adapters; nothing else touches them.

    What is sent to it is taken in before every forward pass, so that a prompt that is too long is told at once and not
    after the batch. Batches are made of asks that one adapter answers, in the order they came: the ask that has waited
    longest is always in the next one, so none starves however many come after it.
    """

    def __init__(self, settings: TransformersSettings, name: str, read_image: ReadImage | None = None) -> None:
        self._settings, self._name, self._read_image = settings, name, read_image
        self.context_tokens = 0
        self._inbox: queue.SimpleQueue[Waiting | Callable[[], None] | None] = queue.SimpleQueue()  # None: stop
        self._line: deque[Waiting] = deque()
        self._speaking: list[Waiting] = []
        self._counts = Counter[str]()
        self._model: Any = None
        self._prompts: Prompts
        self._joins = True  # whether prompts with pictures share a batch
        self._ends: frozenset[int] = frozenset()
        self._thread = threading.Thread(target=self._run, name="transformers", daemon=True)
        self._ready: Future[None] = Future()
        self._stopped = False
        self.adapters: Adapters

    # -- the event loop's side ---------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Raises: AgentError: the model cannot be loaded."""
        self._thread.start()
        await asyncio.wrap_future(self._ready)

    async def answer(self, ask: Ask, adapter: AdapterRef | None) -> Row:
        waiting = Waiting(ask, adapter, Row([], ask.sampling), time.monotonic())
        self._send(waiting)
        try:
            return await asyncio.wrap_future(waiting.future)
        finally:
            waiting.row.dropped = True  # means something only where the caller was cancelled

    async def call(self, work: Callable[[], T]) -> T:
        """Do something in the thread, between two forward passes."""
        future: Future[T] = Future()

        def attempt() -> None:
            if future.set_running_or_notify_cancel():
                try:
                    future.set_result(work())
                except Exception as err:
                    future.set_exception(err)

        self._send(attempt)
        return await asyncio.wrap_future(future)

    async def close(self) -> None:
        self._inbox.put(None)
        await asyncio.to_thread(self._thread.join, CLOSE_TIMEOUT_S)

    def figures(self) -> dict[str, float]:
        counts = {name: float(self._counts[name]) for name in ("batches", "passes", "rows")}
        gauges = {"running": len(self._speaking), "waiting": len(self._line), "adapters": len(self.adapters)}
        return counts | {name: float(value) for name, value in gauges.items()}

    def _send(self, what: Waiting | Callable[[], None]) -> None:
        if self._stopped:
            raise ReplyError(f"{self._name} cannot answer: it was closed")
        self._inbox.put(what)

    # -- the thread's side -------------------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            self._load()
        except BaseException as err:
            known = isinstance(err, AgentError)
            self._ready.set_exception(
                err if known else AgentError(f"transformers could not load model={self._settings.model!r}: {err}")
            )
            return
        self._ready.set_result(None)
        try:
            while self._take_in(block=not self._line):
                if self._line and not (self._gather() and self._speak()):
                    break
        finally:
            self._stop()

    def _load(self) -> None:
        import torch
        from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

        settings = self._settings
        path = str(embedded_model_path()) if settings.model == EMBEDDED else settings.model
        device = settings.device if settings.device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"
        torch.set_num_threads(settings.threads or len(os.sched_getaffinity(0)))  # Ray would leave it one
        dtype = "float32" if settings.dtype == "auto" and device == "cpu" else settings.dtype
        self._prompts = Prompts(self._name, path, sees(settings), self._read_image)
        loader: Any = AutoModelForImageTextToText if sees(settings) else AutoModelForCausalLM
        self._model = loader.from_pretrained(path, dtype=dtype).eval().to(device)
        self._joins = not sees(settings) or joins(self._model.config)
        longest = int(getattr(self._model.config.get_text_config(), "max_position_embeddings", 0) or 2**31)
        self.context_tokens = min(longest, settings.max_model_len or longest)
        self._ends = _ends(self._model, self._prompts.tokenizer)
        self.adapters = Adapters(self._model, settings.model, path, settings.max_adapters)

    def _take_in(self, *, block: bool, wait_s: float | None = None) -> bool:
        """Take what was sent, waiting for it only when there is nothing else to do; False to stop."""
        while True:
            try:
                what = self._inbox.get(block=block, timeout=wait_s)
            except queue.Empty:
                return True
            if what is None:
                self._stopped = True
                return False
            if isinstance(what, Waiting):
                self._line_up(what)
            else:
                what()
            block = False

    def _line_up(self, waiting: Waiting) -> None:
        """Into the line, as token ids; or out at once, where it cannot be answered."""
        if not waiting.future.set_running_or_notify_cancel():
            return
        try:
            if waiting.adapter is not None:
                self.adapters.load(waiting.adapter)  # a restarted actor has forgotten it
            self._prompts.fill(waiting.row, waiting.ask)
            check_room(waiting.ask, self._name, self.context_tokens, len(waiting.row.prompt_ids))
            if waiting.row.pictures:  # not every model says what stands for them
                marker: int = getattr(self._model.config, "image_token_id", -1)
                waiting.row.image_tokens = waiting.row.prompt_ids.count(marker)
        except ReplyError as err:
            waiting.future.set_exception(err)
        except AgentError as err:
            waiting.future.set_exception(ReplyError(str(err), "malformed"))
        else:
            self._line.append(waiting)

    def _gather(self) -> bool:
        """Wait a little for those who could share the next batch; False to stop."""
        until = self._line[0].came_at + self._settings.max_wait_ms / 1000
        while len(self._next()) < self._settings.max_batch and (left_s := until - time.monotonic()) > 0:
            if not self._take_in(block=True, wait_s=left_s):
                return False
        return True

    def _next(self) -> list[Waiting]:
        """Whoever came first, and the others that the same adapter answers, in the order they came."""
        if not self._line:
            return []
        first = self._line[0]
        if not self._joins and first.row.pictures:
            return [first]
        return [waiting for waiting in self._line if self._goes_with(waiting, first)][: self._settings.max_batch]

    def _goes_with(self, waiting: Waiting, first: Waiting) -> bool:
        return waiting.adapter_name == first.adapter_name and (self._joins or not waiting.row.pictures)

    def _speak(self) -> bool:
        """Answer one batch, each row as soon as it is done; False to stop."""
        self._line = deque(waiting for waiting in self._line if not waiting.row.dropped)
        self._speaking = self._next()
        chosen = set(self._speaking)
        self._line = deque(waiting for waiting in self._line if waiting not in chosen)
        try:
            return not chosen or self._run_batch(self._speaking[0].adapter)
        except Exception as err:
            self._fail(self._speaking, _translated(err, self._settings.max_batch))
            return True

    def _run_batch(self, adapter: AdapterRef | None) -> bool:
        rows = [waiting.row for waiting in self._speaking]
        batch = Batch(self._model, rows, self._decode, self._ends)
        self._counts["batches"] += 1
        while batch.rows:
            self.adapters.activate(adapter)  # others may have been loaded since
            self._counts["passes"] += 1
            self._counts["rows"] += len(batch.rows)
            self._settle(set(batch.step()))
            if not self._take_in(block=False):
                return False
        return True

    def _settle(self, done: set[Row]) -> None:
        for waiting in self._speaking:
            if waiting.row not in done:
                continue
            if waiting.row.error is not None:
                waiting.future.set_exception(waiting.row.error)
            else:
                waiting.future.set_result(waiting.row)
        self._speaking = [waiting for waiting in self._speaking if not waiting.row.done]

    def _decode(self, ids: list[int]) -> str:
        text: str = self._prompts.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return text

    def _stop(self) -> None:
        """Everybody who still waits is told; whoever asks from now on is refused before the queue."""
        self._stopped = True
        error = ReplyError(f"{self._name} cannot answer: it was closed")
        self._fail([*self._speaking, *self._line], error)
        while not self._inbox.empty():
            if isinstance(left := self._inbox.get(), Waiting) and left.future.set_running_or_notify_cancel():
                left.future.set_exception(error)
        self._speaking, self._line, self._model = [], deque(), None

    def _fail(self, those: Iterable[Waiting], error: ReplyError) -> None:
        for waiting in those:
            if not waiting.future.done():
                waiting.future.set_exception(error)


def _translated(err: Exception, max_batch: int) -> ReplyError:
    """What a whole batch died of. Another try may meet a smaller batch, so a lack of memory is worth one."""
    import torch

    if isinstance(err, torch.OutOfMemoryError):
        return ReplyError(f"there is not enough memory for a batch of max_batch={max_batch} asks; set a lower one")
    if isinstance(err, torch.AcceleratorError):  # this process will get nothing out of its GPU any more
        return EngineDownError(f"the GPU failed: {err}")
    return ReplyError(f"transformers could not answer a batch: {type(err).__name__}: {err}", "malformed")


def _ends(model: Any, tokenizer: Any) -> frozenset[int]:
    """The tokens that end a turn: the tokenizer's, and what the model's own generation settings add."""
    told = getattr(model.generation_config, "eos_token_id", None)
    named = told if isinstance(told, list) else [told]
    return frozenset(int(token) for token in [tokenizer.eos_token_id, *named] if token is not None)
