"""Which adapter version has which number in a vLLM engine, and whether it may be loaded at all."""

from __future__ import annotations

import asyncio
import itertools
import json
import re
from pathlib import Path
from typing import TYPE_CHECKING

from actors.local.vllm_drive import Drive
from actors.local.vllm_settings import VLLMSettings
from actors.models.backend import AdapterRef
from protocols.errors import AgentError

if TYPE_CHECKING:
    from vllm.lora.request import LoRARequest

SIGHT = re.compile(r"\.(vision\w*|visual|connector|\w*projector)\.")  # what vision models call their other parts


class AdapterTable:
    """Which version has which number in the engine. A name keeps its folder for as long as the backend lives."""

    def __init__(self) -> None:
        self._paths: dict[str, str] = {}
        self._loading: dict[str, asyncio.Future[LoRARequest]] = {}
        self._ids = itertools.count(1)  # never reused: the engine keeps the old weights of a number it has seen

    def __len__(self) -> int:
        return len(self._loading)

    async def load(self, adapter: AdapterRef, drive: Drive, settings: VLLMSettings, model_path: str) -> LoRARequest:
        path = str(Path(adapter.path).resolve())
        if self._paths.get(adapter.name, path) != path:
            raise AgentError(
                f"adapter {adapter.name!r} was loaded from {self._paths[adapter.name]} and cannot now mean {path}; "
                "give new weights a new version name"
            )
        loading = self._loading.get(adapter.name)
        if loading is None:
            self._paths[adapter.name] = path
            loading = asyncio.ensure_future(self._load(adapter, path, drive, settings, model_path))
            self._loading[adapter.name] = loading
        return await asyncio.shield(loading)  # one cancelled ask must not undo the loading for the others

    async def _load(
        self, adapter: AdapterRef, path: str, drive: Drive, settings: VLLMSettings, model_path: str
    ) -> LoRARequest:
        try:
            await asyncio.to_thread(check_adapter, adapter, settings, model_path)
            await asyncio.to_thread(_check_parts, adapter)
            from vllm.lora.request import LoRARequest

            request = LoRARequest(adapter.name, next(self._ids), path)
            await drive.add_lora(request)
        except BaseException as err:
            self._loading.pop(adapter.name, None)
            self._paths.pop(adapter.name, None)  # nothing was loaded under this name
            if isinstance(err, AgentError) or not isinstance(err, Exception):
                raise
            raise AgentError(f"vLLM could not load adapter {adapter.name!r} from {path}: {err}") from err
        return request

    async def forget(self, adapter: AdapterRef) -> LoRARequest | None:
        loading = self._loading.pop(adapter.name, None)
        return None if loading is None else await loading


def check_adapter(adapter: AdapterRef, settings: VLLMSettings, model_path: str) -> None:
    """Raises: AgentError: no adapter, one for another base model, of too high a rank, or with weights gone to NaN."""
    folder = Path(adapter.path)
    try:
        config = json.loads((folder / "adapter_config.json").read_text())
        rank, base = int(config["r"]), str(config.get("base_model_name_or_path") or "")
    except (OSError, ValueError, KeyError, TypeError) as err:
        raise AgentError(f"adapter {adapter.name!r} has no readable adapter_config.json in {folder}") from err
    if rank > settings.max_rank:
        raise AgentError(
            f"adapter {adapter.name!r} has rank {rank}, above max_rank={settings.max_rank}; set max_rank >= {rank}"
        )
    names = {Path(known).name.lower() for known in (settings.model, settings.served_name, model_path) if known}
    if base and Path(base).name.lower() not in names:  # folders differ between machines, so their last name counts
        raise AgentError(f"adapter {adapter.name!r} was trained on {base!r}, but this agent serves {settings.model!r}")
    _check_weights(adapter, folder / "adapter_model.safetensors")


def _check_parts(adapter: AdapterRef) -> None:
    """vLLM tunes the language model of a vision model and leaves out, without a word, what was learned elsewhere."""
    from safetensors import safe_open

    with safe_open(Path(adapter.path) / "adapter_model.safetensors", framework="pt") as tensors:
        learned = (name for name in tensors.keys() if SIGHT.search(name) and "lora_B" in name)  # noqa: SIM118
        left_out = next((name for name in learned if tensors.get_tensor(name).any()), "")
    if left_out:
        raise AgentError(
            f"adapter {adapter.name!r} has learned to see, as in {left_out}, but vLLM serves adapters of the language "
            "model alone; train it with sft.target_modules that are in the language model, or set backend: transformers"
        )


def _check_weights(adapter: AdapterRef, file: Path) -> None:
    """A training that diverged must not answer; on CPU its NaN would spread to all agents of the batch."""
    if not file.is_file():
        raise AgentError(f"adapter {adapter.name!r} has no adapter_model.safetensors in {file.parent}")
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="pt") as tensors:
            broken = [name for name in tensors.keys() if not tensors.get_tensor(name).isfinite().all()]  # noqa: SIM118
    except SafetensorError as err:
        raise AgentError(f"adapter {adapter.name!r} cannot be read from {file}: {err}") from err
    if broken:
        raise AgentError(f"adapter {adapter.name!r} has weights that are not finite, as in {broken[0]}; train it again")
