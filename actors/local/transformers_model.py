"""A local model answered by plain transformers, on CPU or GPU: slower than vLLM, exact, and at home wherever torch is.

Owns the translation between asks and replies. Every ask's tokens follow from its own seed; at temperature 0 they are
those of ``generate``. Who is answered when is in ``transformers_engine``.
"""

from __future__ import annotations

import time
from collections import Counter

from actors.local.embedded import EMBEDDED_NAME
from actors.local.model_config import sees
from actors.local.transformers_engine import Engine
from actors.local.transformers_settings import TransformersSettings
from actors.models.backend import EMBEDDED, AdapterRef, BackendInfo
from actors.models.images import ReadImage
from protocols.errors import ReplyError
from protocols.message import Ask, Reply, Usage

__all__ = ["TransformersBackend", "TransformersSettings"]


class TransformersBackend:
    """The ``Backend`` of one model of transformers; any number of asks wait, the oldest is in the next batch."""

    def __init__(self, settings: TransformersSettings) -> None:
        self.read_image: ReadImage | None = None
        self._settings = settings
        self._engine: Engine | None = None
        self._counts = Counter[str]()

    @property
    def name(self) -> str:
        """The name replies carry."""
        settings = self._settings
        return settings.served_name or (EMBEDDED_NAME if settings.model == EMBEDDED else settings.model)

    async def start(self) -> BackendInfo:
        if self._engine is None:
            engine = Engine(self._settings, self.name, self.read_image)
            await engine.start()
            self._engine = engine
        return BackendInfo(
            model=self.name,
            context_tokens=self._engine.context_tokens,
            max_concurrency=2 * self._settings.max_batch,  # the next batch waits while one speaks
            takes_images=sees(self._settings),
            takes_adapters=self._settings.max_adapters > 0,
        )

    async def generate(self, ask: Ask, adapter: AdapterRef | None) -> Reply:
        began = time.monotonic()
        self._counts["requests"] += 1
        if ask.schema:
            raise ReplyError(f"ask {ask.id} has a schema, to which transformers holds no reply; use vllm", "malformed")
        row = await self._running().answer(ask, adapter)
        usage = Usage(
            prompt_tokens=len(row.prompt_ids), completion_tokens=len(row.token_ids), image_tokens=row.image_tokens
        )
        self._counts["replies"] += 1
        self._counts["tokens_generated"] += usage.completion_tokens
        return Reply(
            ask_id=ask.id,
            text=row.text,
            model=self.name,
            adapter=adapter.name if adapter else "",
            finish_reason=row.finish_reason or "other",
            usage=usage,
            token_ids=tuple(row.token_ids),
            logprobs=tuple(row.logprobs) if self._settings.keep_logprobs else (),
            latency_s=time.monotonic() - began,
        )

    async def load_adapter(self, adapter: AdapterRef) -> None:
        engine = self._running()
        await engine.call(lambda: engine.adapters.load(adapter))

    async def unload_adapter(self, adapter: AdapterRef) -> None:
        engine = self._running()
        await engine.call(lambda: engine.adapters.unload(adapter))

    def metrics(self) -> dict[str, float]:
        """``requests``, ``replies``, ``tokens_generated``; ``batches``, ``passes`` and ``rows`` summed over passes;
        ``running`` and ``waiting`` asks; ``adapters``."""
        figures = {name: float(self._counts[name]) for name in ("requests", "replies", "tokens_generated")}
        return figures | (self._engine.figures() if self._engine else {})

    async def close(self) -> None:
        engine, self._engine = self._engine, None
        if engine is not None:
            await engine.close()

    def _running(self) -> Engine:
        if self._engine is None:
            raise ReplyError(f"the backend of {self.name} is not started, or closed already")
        return self._engine
