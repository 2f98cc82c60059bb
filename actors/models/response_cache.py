"""Replies that need not be asked for again: what decides a reply is hashed, and the hash names what was replied.

It stands before a host's tries and gates, so a hit takes no budget, no rate and no place in the model. Kept are whole
replies alone: no failure, nothing that ended for an unknown reason. Where they lie is ``reply_store``'s.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path

import msgspec

from actors.models.backend import AdapterRef
from actors.models.reply_store import ReplyStore
from protocols.message import Ask, Outcome, Reply

log = logging.getLogger("moot.cache")

KEY_VERSION = 1  # raise it when a key or an entry comes to mean something else: nothing older is found then
INDIFFERENT = frozenset(
    {
        *("api_key_env", "api_key_file", "context_tokens", "images", "max_concurrency"),
        *("lora", "finetune", "max_adapters", "max_rank", "max_batch", "max_wait_ms"),
        *("gpu_memory_utilization", "in_process", "kv_cache_mb", "threads"),
    }
)  # settings that change no reply; a new one counts unless it is named here, which costs misses and no wrong answer
WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")

_ENCODER = msgspec.msgpack.Encoder(order="deterministic")


class CacheSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which replies of a model are kept, and where."""

    path: str = "cache"  # a folder, as seen from where moot is started; models and runs may share one
    sampled: bool = False  # also replies drawn at a temperature, by their seed; else only those at temperature 0
    max_mb: int = 0  # MiB; those not used for longest go; 0: no limit

    def __post_init__(self) -> None:
        if not self.path:
            raise ValueError("path='' must be a folder")
        if self.max_mb < 0:
            raise ValueError(f"max_mb={self.max_mb} must not be below 0; 0 is no limit")

    def absolute(self) -> CacheSettings:
        """The same folder, wherever a host of the cluster starts."""
        return msgspec.structs.replace(self, path=str(Path(self.path).expanduser().absolute()))


class ResponseCache:
    """The replies of one host's model. ``backend`` and ``model``: its name and settings in a recipe."""

    def __init__(self, settings: CacheSettings, backend: str, model: msgspec.Struct) -> None:
        self._store = ReplyStore(Path(settings.path), max_mb=settings.max_mb)
        self._sampled = settings.sampled
        self._model = identity(backend, model)
        # a model that is not told the temperature draws as it likes
        self._obeys = not {"temperature"} & {*getattr(model, "omit", ()), *getattr(model, "extra_body", ())}
        self._weights: dict[str, str] = {"": ""}  # adapter version -> its weights, hashed; "": the base alone
        self._flights: dict[str, asyncio.Future[Reply | None]] = {}  # asks under way, until their replies can be read
        self._writes: set[asyncio.Future[None]] = set()
        self._counts = Counter[str]()

    async def learn(self, adapter: AdapterRef) -> None:
        """Know a version by its weights: another run may use its name, or come to the same weights by another. A
        hosted one is known by its model's id, which its service gives to nothing else. A whole model is the host's own
        then, and known by its folder."""
        if adapter.model or adapter.whole:
            self._weights[adapter.name] = adapter.model
            return
        try:
            self._weights[adapter.name] = await asyncio.to_thread(weights_digest, Path(adapter.path))
        except OSError as err:
            log.warning("adapter %s: its replies are not cached, as its weights cannot be read: %s", adapter.name, err)

    def key(self, ask: Ask, adapter: AdapterRef | None) -> str:
        """What decides the reply, hashed; "" where the reply is not to be kept."""
        drawn, weights = ask.sampling, self._weights.get(adapter.name if adapter else "")
        greedy = drawn.temperature == 0 and self._obeys
        if weights is None or not (greedy or (self._sampled and drawn.seed is not None)):
            return ""
        drawn = msgspec.structs.replace(drawn, seed=None if greedy else drawn.seed, structured=False)
        told = (KEY_VERSION, self._model, weights, ask.messages, drawn, ask.schema)
        return hashlib.sha256(_ENCODER.encode(told)).hexdigest()

    async def answer(self, ask: Ask, adapter: AdapterRef | None, tries: Callable[[], Awaitable[Outcome]]) -> Outcome:
        """The reply on record, or what ``tries`` brings. Of asks that say the same at once, the first is asked.

        Raises: whatever ``tries`` does.
        """
        key, version = self.key(ask, adapter), adapter.name if adapter else ""
        if not key:
            return await tries()
        if (flight := self._flights.get(key)) is not None:
            if (reply := await asyncio.shield(flight)) is None:
                return await tries()  # it came to nothing that can be kept: each for itself, then
            return self._hit(reply, ask, version)
        self._flights[key] = asyncio.get_running_loop().create_future()
        kept: Reply | None = None
        fresh = False
        try:
            if (kept := await asyncio.to_thread(self._store.get, key)) is not None:
                return self._hit(kept, ask, version)
            self._counts["misses"] += 1
            outcome = await tries()
            # a version that was published meanwhile may have spoken
            if isinstance(outcome, Reply) and outcome.finish_reason != "other" and outcome.adapter == version:
                kept, fresh = bare(outcome), True
            return outcome
        finally:
            self._flights[key].set_result(kept)
            self._land(key, kept if fresh else None)

    def _hit(self, reply: Reply, ask: Ask, version: str) -> Reply:
        self._counts["hits"] += 1
        return msgspec.structs.replace(reply, ask_id=ask.id, adapter=version, cached=True)

    def _land(self, key: str, reply: Reply | None) -> None:
        """The flight is over once a new reply can be read. Nobody waits for that: a reply is never held back."""
        if reply is None:
            del self._flights[key]
            return
        write = asyncio.get_running_loop().run_in_executor(None, self._store.put, key, reply)
        self._writes.add(write)

        def written(write: asyncio.Future[None]) -> None:
            self._writes.discard(write)
            del self._flights[key]
            if not write.cancelled() and (err := write.exception()) is not None:
                log.error("a reply could not be kept", exc_info=err)

        write.add_done_callback(written)

    def figures(self) -> dict[str, float]:
        """``hits``; ``misses``, asks that the model was asked though their replies are kept."""
        return {name: float(self._counts[name]) for name in ("hits", "misses")}

    async def close(self) -> None:
        """Returns once everything is written."""
        await asyncio.gather(*self._writes, return_exceptions=True)  # what failed is logged


def bare(reply: Reply) -> Reply:
    """Without what was one ask's own: its id, how long it took, what it cost."""
    return msgspec.structs.replace(reply, ask_id="", latency_s=0.0, tries=1, attempts=(), cost_usd=0.0)


def identity(backend: str, model: msgspec.Struct) -> bytes:
    """What a model is, as far as its settings say. A folder counts with its files' names, sizes and times of change."""
    told = {name: value for name, value in msgspec.to_builtins(model).items() if name not in INDIFFERENT}
    folder = Path(str(told.get("model", ""))).expanduser()
    files = sorted(folder.iterdir()) if told.get("model") and folder.is_dir() else []
    stats = [(path.name, path.stat()) for path in files if path.is_file()]
    return _ENCODER.encode((backend, told, [(name, stat.st_size, stat.st_mtime_ns) for name, stat in stats]))


def weights_digest(folder: Path) -> str:
    """Of an adapter in PEFT layout. Raises: OSError: it cannot be read."""
    digest = hashlib.sha256((folder / "adapter_config.json").read_bytes())
    weights = next((folder / name for name in WEIGHTS if (folder / name).exists()), folder / WEIGHTS[0])
    with weights.open("rb") as file:
        digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()
