"""How a vLLM engine is turned: by one thread of this process, or by vLLM's own engine process.

A drive owns the engine and the requests in it, and knows nothing of asks, replies or chats. ``ThreadDrive`` is for
CPUs: one process, half the start time of a second one, and no copying between them. ``ProcessDrive`` is for GPUs,
where the engine's loop must not share an interpreter lock with the actor's.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import queue
import threading
import time
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from actors.limits.gate import LoadHint, OnLoad
from protocols.errors import AgentError, EngineDownError, ReplyError

if TYPE_CHECKING:
    from vllm.lora.request import LoRARequest
    from vllm.outputs import RequestOutput
    from vllm.sampling_params import SamplingParams

log = logging.getLogger("moot.vllm")

POLL_S = 0.5  # between looks at what an engine in another process has to do
STUCK_S = 300.0  # a step that takes longer will never end; the longest of a large prompt on a busy CPU takes seconds
WATCH_S = 5.0  # between looks at it
SLEEP_LEVEL = 1  # vLLM's: weights wait in main memory; level 2 throws them away, and nobody would bring them back
CLOSE_TIMEOUT_S = 30.0  # a step of the largest batch on a busy laptop takes a few seconds

T = TypeVar("T")

EngineArguments = dict[str, Any]  # keyword arguments of vllm.EngineArgs
EnginePrompt = dict[str, Any]  # one of vLLM's; holds ``prompt_token_ids``, every token of the prompt


class Drive(Protocol):
    """One engine: started once, asked many times at once, closed once."""

    async def start(self) -> int:
        """Load the engine; returns the length of its context in tokens."""
        ...

    @property
    def renderer(self) -> Any:
        """vLLM's maker of prompts out of chats, once started. Its asynchronous methods may be called from the loop."""
        ...

    async def complete(
        self, request_id: str, prompt: EnginePrompt, params: SamplingParams, lora: LoRARequest | None
    ) -> RequestOutput:
        """One finished request. Cancelling the caller removes it from the engine. Raises: ReplyError: engine down."""
        ...

    async def add_lora(self, request: LoRARequest) -> None:
        """Load the adapter's weights; whatever the engine raises comes through."""
        ...

    async def remove_lora(self, lora_id: int) -> None: ...

    async def sleep(self) -> None:
        """Weights go to main memory, the cache is given up; the engine must have been loaded with sleep mode."""
        ...

    async def wake(self) -> None: ...

    def gauges(self) -> dict[str, float]:
        """Requests ``running`` and ``waiting``, and ``kv_usage``, the share of the cache in use."""
        ...

    @property
    def failure(self) -> str:
        """Why the engine answers nothing any more; empty while it does."""
        ...

    async def close(self) -> None: ...


class ThreadDrive:
    """An in-process ``LLMEngine`` that one thread loads, feeds and steps; the engine is not thread-safe.

    The event loop talks to the thread through ``_inbox`` only, the thread to the loop through ``call_soon_threadsafe``
    only. ``_pending`` belongs to the loop: whoever waits is in there, and is failed from there when the engine breaks.
    """

    def __init__(self, arguments: EngineArguments, on_load: OnLoad) -> None:
        self._arguments, self._on_load = arguments, on_load
        self._inbox: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()  # None: stop
        self._pending: dict[str, asyncio.Future[Any]] = {}
        self._call_ids = itertools.count()
        self._gauges = {"running": 0.0, "waiting": 0.0, "kv_usage": 0.0}
        self._failure = ""
        self._told_s = 0.0  # when the load was last told
        self._busy_since: float | None = None  # with one thing; None: waiting for something to do
        self._watching: asyncio.Task[None] | None = None
        self._loop: asyncio.AbstractEventLoop
        self._thread: threading.Thread | None = None
        self._engine: Any = None

    @property
    def failure(self) -> str:
        return self._failure

    def gauges(self) -> dict[str, float]:
        return self._gauges

    async def start(self) -> int:
        self._loop = asyncio.get_running_loop()
        self._thread = threading.Thread(target=self._run, name="vllm-engine", daemon=True)
        ready = self._expect("start")
        self._thread.start()
        context_tokens = int(await ready)
        self._watching = self._loop.create_task(self._watch())
        return context_tokens

    @property
    def renderer(self) -> Any:
        return self._engine.renderer

    async def complete(
        self, request_id: str, prompt: EnginePrompt, params: SamplingParams, lora: LoRARequest | None
    ) -> RequestOutput:
        answered = self._expect(request_id)
        self._inbox.put(lambda: self._submit(request_id, prompt, params, lora))
        try:
            output: RequestOutput = await answered
            return output
        finally:
            self._pending.pop(request_id, None)
            if answered.cancelled():
                self._inbox.put(lambda: self._engine.abort_request([request_id]))

    async def add_lora(self, request: LoRARequest) -> None:
        await self._call(lambda: self._engine.add_lora(request))

    async def remove_lora(self, lora_id: int) -> None:
        await self._call(lambda: self._engine.remove_lora(lora_id))

    async def sleep(self) -> None:
        await self._call(lambda: self._engine.sleep(SLEEP_LEVEL))

    async def wake(self) -> None:
        await self._call(self._engine.wake_up)

    async def close(self) -> None:
        thread, self._thread = self._thread, None
        if thread is None:
            return
        if self._watching is not None:
            self._watching.cancel()
        self._inbox.put(None)
        await asyncio.to_thread(thread.join, CLOSE_TIMEOUT_S)
        self._fail("it was closed")

    # -- the loop's side ---------------------------------------------------------------------------------------------

    def _expect(self, key: str) -> asyncio.Future[Any]:
        if self._failure:
            raise EngineDownError(f"the vLLM engine cannot answer: {self._failure}")
        return self._pending.setdefault(key, self._loop.create_future())

    async def _watch(self) -> None:
        """A thread that hangs in the engine can say nothing itself."""
        while not self._failure:
            await asyncio.sleep(WATCH_S)
            if (since := self._busy_since) is not None and time.monotonic() - since > STUCK_S:
                self._fail(f"it has not returned from one step for {STUCK_S:g} s")

    async def _call(self, work: Callable[[], object]) -> None:
        key = f"call-{next(self._call_ids)}"
        done = self._expect(key)
        self._inbox.put(lambda: self._attempt(key, work))
        await done

    def _settle(self, results: list[tuple[str, Any]]) -> None:
        for key, result in results:
            waiting = self._pending.pop(key, None)
            if waiting is None or waiting.done():
                continue  # the caller was cancelled while its answer was on the way
            if isinstance(result, BaseException):
                waiting.set_exception(result)
            else:
                waiting.set_result(result)

    def _fail(self, reason: str) -> None:
        self._failure = self._failure or reason
        error = EngineDownError(f"the vLLM engine cannot answer: {self._failure}")
        self._settle([(key, error) for key in self._pending])

    # -- the thread's side -------------------------------------------------------------------------------------------

    def _run(self) -> None:
        logging.getLogger("torch._library.triton").setLevel(logging.ERROR)  # that there is no Triton on a CPU
        try:
            from vllm.engine.arg_utils import EngineArgs
            from vllm.v1.engine.llm_engine import LLMEngine

            self._engine = LLMEngine.from_engine_args(EngineArgs(**self._arguments))
        except BaseException as err:
            self._post(self._settle, [("start", err)])
            return
        self._post(self._settle, [("start", self._engine.model_config.max_model_len)])
        try:
            while self._take_in():
                self._step()
        except Exception as err:
            self._post(self._fail, f"it stopped with {err!r}")
        finally:
            self._engine.engine_core.shutdown()

    def _take_in(self) -> bool:
        """Do what the loop sent, waiting for it only when there is nothing else to do; False to stop."""
        self._busy_since = None
        idle = not self._engine.has_unfinished_requests()
        while True:
            try:
                work = self._inbox.get(block=idle)
            except queue.Empty:
                return True
            if work is None:
                return False
            self._busy_since = time.monotonic()
            work()
            self._busy_since, idle = None, False

    def _step(self) -> None:
        if self._engine.has_unfinished_requests():
            self._busy_since = time.monotonic()
            finished = [(output.request_id, output) for output in self._engine.step() if output.finished]
            if finished:
                self._post(self._settle, finished)
        scheduler = self._engine.engine_core.engine_core.scheduler
        running, waiting = scheduler.get_request_counts()
        usage = float(scheduler.kv_cache_manager.usage)
        waited = self._gauges["waiting"]
        self._gauges = {"running": float(running), "waiting": float(waiting), "kv_usage": usage}
        if waiting or waited or time.monotonic() - self._told_s >= POLL_S:
            self._told_s = time.monotonic()
            self._post(self._on_load, LoadHint(**self._gauges))

    def _submit(self, request_id: str, prompt: Any, params: SamplingParams, lora: LoRARequest | None) -> None:
        try:
            self._engine.add_request(request_id, prompt, params, lora_request=lora)
        except Exception as err:
            self._post(self._settle, [(request_id, err)])

    def _attempt(self, key: str, work: Callable[[], object]) -> None:
        try:
            result = work()
        except Exception as err:
            self._post(self._settle, [(key, err)])
        else:
            self._post(self._settle, [(key, result)])

    def _post(self, deliver: Callable[[Any], None], what: Any) -> None:
        try:
            self._loop.call_soon_threadsafe(deliver, what)
        except RuntimeError:  # the loop is closed: nobody waits any more
            self._inbox.put(None)


class ProcessDrive:
    """``AsyncLLM``: the engine runs in a process of its own, and vLLM carries requests to it and answers back."""

    def __init__(self, arguments: EngineArguments, on_load: OnLoad) -> None:
        self._arguments = arguments | {"disable_log_stats": False}  # the other process tells its gauges that way
        self._on_load = on_load
        self._polling: asyncio.Task[None] | None = None
        self._engine: Any = None
        self._failure = ""

    @property
    def failure(self) -> str:
        return self._failure

    async def start(self) -> int:
        from vllm.engine.arg_utils import AsyncEngineArgs
        from vllm.v1.engine.async_llm import AsyncLLM

        arguments = AsyncEngineArgs(**self._arguments)
        self._engine = await asyncio.to_thread(AsyncLLM.from_engine_args, arguments)
        self._polling = asyncio.get_running_loop().create_task(self._poll())
        self._polling.add_done_callback(_logged)
        return int(self._engine.model_config.max_model_len)

    @property
    def renderer(self) -> Any:
        return self._living().renderer

    async def complete(
        self, request_id: str, prompt: EnginePrompt, params: SamplingParams, lora: LoRARequest | None
    ) -> RequestOutput:
        async def last() -> RequestOutput:
            output: RequestOutput
            async for output in self._living().generate(prompt, params, request_id, lora_request=lora):
                if output.finished:
                    return output
            raise ReplyError(f"vLLM ended request {request_id} without an output")

        return await self._of_living(last())

    async def add_lora(self, request: LoRARequest) -> None:
        await self._of_living(self._living().add_lora(request))

    async def remove_lora(self, lora_id: int) -> None:
        await self._of_living(self._living().remove_lora(lora_id))

    async def sleep(self) -> None:
        await self._of_living(self._living().sleep(SLEEP_LEVEL))

    async def wake(self) -> None:
        await self._of_living(self._living().wake_up())

    async def _of_living(self, call: Awaitable[T]) -> T:
        from vllm.v1.engine.exceptions import EngineDeadError

        try:
            return await call
        except EngineDeadError as err:
            self._failure = f"its process died with {err!r}"
            raise EngineDownError(f"the vLLM engine cannot answer: {self._failure}") from err

    def gauges(self) -> dict[str, float]:
        from vllm.v1.metrics.reader import Gauge, get_metrics_snapshot

        found = {metric.name: metric.value for metric in get_metrics_snapshot() if isinstance(metric, Gauge)}
        names = {
            "running": "num_requests_running",
            "waiting": "num_requests_waiting",
            "kv_usage": "kv_cache_usage_perc",
        }
        return {ours: float(found.get(f"vllm:{theirs}", 0.0)) for ours, theirs in names.items()}

    async def _poll(self) -> None:
        """The other process says nothing by itself."""
        while True:
            await asyncio.sleep(POLL_S)
            self._on_load(LoadHint(**self.gauges()))

    async def close(self) -> None:
        if self._polling is not None:
            self._polling.cancel()
        engine, self._engine = self._engine, None
        if engine is not None:
            await asyncio.to_thread(engine.shutdown)

    def _living(self) -> Any:
        if self._engine is None:
            raise AgentError("the vLLM engine was asked before it was started or after it was closed")
        return self._engine


def _logged(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and (err := task.exception()) is not None:
        log.error("the engine's load is not known any more", exc_info=err)
