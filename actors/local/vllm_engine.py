"""A local model served by vLLM: on CPUs in this process, on GPUs in vLLM's own.

Owns the translation between asks and vLLM requests, and which adapter version is which. How the engine is turned is in
``vllm_drive``. The process must have been started with the environment of ``required_env``: Ray's
``runtime_env={"env_vars": required_env(settings)}`` sees to that.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections import Counter
from collections.abc import Awaitable
from typing import TYPE_CHECKING, Any

from actors.limits.gate import LoadHint, OnLoad
from actors.local.embedded import EMBEDDED_NAME, embedded_model_path
from actors.local.model_config import sees
from actors.local.vllm_adapters import AdapterTable
from actors.local.vllm_drive import Drive, ProcessDrive, ThreadDrive
from actors.local.vllm_prompts import Prompts, TextPrompts, VisionPrompts, image_tokens
from actors.local.vllm_settings import VLLMSettings, engine_arguments, required_env, runs_on_cpu
from actors.models.backend import EMBEDDED, AdapterRef, BackendInfo, check_room
from actors.models.images import ReadImage
from protocols.errors import AgentError, ReplyError
from protocols.message import Ask, FinishReason, Reply, Usage

if TYPE_CHECKING:
    from vllm.lora.request import LoRARequest
    from vllm.outputs import RequestOutput
    from vllm.sampling_params import SamplingParams

__all__ = ["VLLMBackend", "VLLMSettings", "required_env"]

FINISH: dict[str | None, FinishReason] = {"stop": "stop", "length": "length"}


class VLLMBackend:
    """The ``Backend`` of a vLLM engine; one engine serves a base model and any number of adapter versions."""

    def __init__(self, settings: VLLMSettings) -> None:
        self.on_load: OnLoad | None = None
        self.read_image: ReadImage | None = None
        self.may_sleep = False
        self._settings = settings
        self._drive: Drive | None = None
        self._prompts: Prompts
        self._model_path = ""
        self._context_tokens = 0
        self._request_ids = itertools.count()
        self._adapters = AdapterTable()
        self._counts = Counter[str]()

    @property
    def name(self) -> str:
        """The name replies carry."""
        settings = self._settings
        if settings.served_name:
            return settings.served_name
        return EMBEDDED_NAME if settings.model == EMBEDDED else settings.model

    async def start(self) -> BackendInfo:
        settings, on_cpu = self._settings, runs_on_cpu()
        in_process = on_cpu if settings.in_process is None else settings.in_process
        if on_cpu and settings.max_adapters:
            await asyncio.to_thread(_use_fast_cpu_lora, in_process)
        self._model_path = settings.model
        if settings.model == EMBEDDED:
            self._model_path = str(await asyncio.to_thread(embedded_model_path))
        arguments = engine_arguments(settings, self._model_path, on_cpu)
        if self.may_sleep:
            arguments["enable_sleep_mode"] = True
        drive: Drive = ThreadDrive(arguments, self._tell) if in_process else ProcessDrive(arguments, self._tell)
        try:
            if not sees(settings):
                self._prompts = await asyncio.to_thread(TextPrompts, self.name, self._model_path)
            self._context_tokens = await drive.start()
        except AgentError:
            raise
        except Exception as err:
            raise AgentError(f"vLLM could not load model={settings.model!r}: {err}") from err
        self._drive = drive
        if sees(settings):
            self._prompts = VisionPrompts(self.name, drive.renderer, self.read_image)
        return BackendInfo(
            model=self.name,
            context_tokens=self._context_tokens,
            max_concurrency=settings.max_concurrency,
            takes_images=sees(settings),
            takes_adapters=settings.max_adapters > 0,
        )

    def _tell(self, load: LoadHint) -> None:
        if self.on_load is not None:
            self.on_load(load)

    async def generate(self, ask: Ask, adapter: AdapterRef | None) -> Reply:
        started = time.monotonic()
        drive = self._running()
        prompt = await self._prompts.of(ask)
        check_room(ask, self.name, self._context_tokens, len(prompt["prompt_token_ids"]))
        request_id = f"{next(self._request_ids)}:{ask.id}"
        self._counts["requests"] += 1
        try:
            lora = None if adapter is None else await self._loaded(adapter)  # a restarted actor has forgotten it
            output = await drive.complete(request_id, prompt, self._params(ask), lora)
        except ReplyError:
            raise
        except AgentError as err:
            raise ReplyError(str(err), "malformed") from err
        except Exception as err:
            raise ReplyError(f"vLLM refused ask {ask.id}: {err}", "malformed") from err
        return self._reply(ask, adapter, output, image_tokens(prompt), time.monotonic() - started)

    async def load_adapter(self, adapter: AdapterRef) -> None:
        await self._loaded(adapter)

    async def unload_adapter(self, adapter: AdapterRef) -> None:
        request = await self._adapters.forget(adapter)
        if request is not None:
            await self._running().remove_lora(request.lora_int_id)

    async def sleep(self) -> None:
        await self._turned("sleep", self._running().sleep())

    async def wake(self) -> None:
        await self._turned("wake", self._running().wake())

    async def _turned(self, what: str, call: Awaitable[None]) -> None:
        try:
            await call
        except AgentError:
            raise
        except Exception as err:  # when it wakes, most likely a device that others have not left
            raise AgentError(f"the vLLM engine of {self.name} cannot {what}: {err}") from err

    def metrics(self) -> dict[str, float]:
        """``tokens_generated``, ``requests``, ``replies``; ``prefix_cache_queries`` and ``prefix_cache_hits`` in
        tokens; ``running`` and ``waiting`` requests; ``kv_usage`` from 0 to 1; ``adapters``; ``broken`` 0 or 1."""
        names = ("requests", "replies", "tokens_generated", "prefix_cache_queries", "prefix_cache_hits")
        figures = {name: float(self._counts[name]) for name in names}
        if self._drive is not None:
            figures |= self._drive.gauges() | {"broken": float(bool(self._drive.failure))}
        return figures | {"adapters": float(len(self._adapters))}

    async def close(self) -> None:
        drive, self._drive = self._drive, None
        if drive is not None:
            await drive.close()

    def _running(self) -> Drive:
        if self._drive is None:
            raise ReplyError(f"the backend of {self.name} is not started, or closed already")
        return self._drive

    async def _loaded(self, adapter: AdapterRef) -> LoRARequest:
        if self._settings.max_adapters == 0:
            raise AgentError(f"adapter {adapter.name!r} cannot be served with max_adapters=0; set max_adapters")
        drive = self._running()
        return await self._adapters.load(adapter, drive, self._settings, self._model_path)

    def _params(self, ask: Ask) -> SamplingParams:
        from vllm.sampling_params import RequestOutputKind, SamplingParams, StructuredOutputsParams

        sampling = ask.sampling
        return SamplingParams(
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            max_tokens=sampling.max_tokens,
            stop=list(sampling.stop) or None,
            seed=sampling.seed if self._settings.per_request_seed else None,
            logprobs=0 if self._settings.keep_logprobs else None,  # 0: the sampled token's own and no others
            flat_logprobs=True,
            structured_outputs=StructuredOutputsParams(json=ask.schema) if ask.schema else None,
            output_kind=RequestOutputKind.FINAL_ONLY,
            skip_clone=True,
        )

    def _reply(
        self, ask: Ask, adapter: AdapterRef | None, output: RequestOutput, image_tokens: int, latency_s: float
    ) -> Reply:
        said = output.outputs[0]
        if said.finish_reason not in FINISH and not said.token_ids:
            raise ReplyError(f"vLLM ended ask {ask.id} with finish_reason={said.finish_reason!r} and no text")
        usage = Usage(
            prompt_tokens=len(output.prompt_token_ids or ()),
            completion_tokens=len(said.token_ids),
            cached_tokens=output.num_cached_tokens or 0,
            image_tokens=image_tokens,
        )
        self._counts["replies"] += 1
        self._counts["tokens_generated"] += usage.completion_tokens
        self._counts["prefix_cache_queries"] += usage.prompt_tokens
        self._counts["prefix_cache_hits"] += usage.cached_tokens
        return Reply(
            ask_id=ask.id,
            text=said.text,
            model=self.name,
            adapter=adapter.name if adapter else "",
            finish_reason=FINISH.get(said.finish_reason, "other"),
            usage=usage,
            token_ids=tuple(said.token_ids),
            logprobs=_own_logprobs(said.logprobs),
            latency_s=latency_s,
        )


def _use_fast_cpu_lora(in_process: bool) -> None:
    if not in_process:
        raise AgentError("in_process=false cannot serve adapters on CPU; set in_process=true or max_adapters=0")
    from actors.local.vllm_cpu_lora import install

    install()


def _own_logprobs(flat: Any) -> tuple[float, ...]:
    """[T], from vLLM's flat layout, in which the sampled token comes first at its position."""
    return () if flat is None else tuple(flat.logprobs[start] for start in flat.start_indices)
