"""What can be said about the vLLM backend without an engine; and the engine itself, in a process of its own."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from actors.local.model_config import sees
from actors.local.vllm_drive import ThreadDrive
from actors.local.vllm_engine import VLLMBackend, VLLMSettings, required_env
from actors.local.vllm_prompts import VisionPrompts
from actors.local.vllm_settings import engine_arguments, on_gpus
from actors.models.backend import AdapterRef
from protocols.errors import AgentError, EngineDownError, ReplyError
from protocols.message import Ask, Sampling, user

ROOT = Path(__file__).parents[3]
LIVE = ("tests/actors/vllm_live_images.py", "tests/actors/vllm_live.py")  # the last of them breaks its engine


@pytest.mark.parametrize(
    "setting",
    ["max_concurrency = 0", "max_rank = 1024", "max_adapters = -1", "gpu_memory_utilization = 1.5", "mdoel = 'x'"],
)
def test_wrong_setting_is_named(setting: str) -> None:
    name = setting.partition(" ")[0]
    with pytest.raises(msgspec.ValidationError, match=name):
        msgspec.toml.decode(setting, type=VLLMSettings)


def test_importing_the_backend_does_not_import_vllm() -> None:
    heavy = "{'vllm', 'torch', 'transformers'}"
    code = f"import sys, actors.local.vllm_engine; assert not {heavy} & set(sys.modules), {heavy} & set(sys.modules)"
    subprocess.run(
        [sys.executable, "-c", code], check=True, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}, timeout=300
    )


def test_required_env_preloads_openmp_before_what_was_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("actors.local.vllm_settings.runs_on_cpu", lambda: True)
    monkeypatch.setattr("actors.local.vllm_settings._intel_openmp", lambda: Path("/venv/lib/libiomp5.so"))
    monkeypatch.setenv("LD_PRELOAD", "/other.so:/venv/lib/libiomp5.so")
    env = required_env(VLLMSettings(threads=3))
    assert env["LD_PRELOAD"] == "/venv/lib/libiomp5.so:/other.so"
    assert env["OMP_NUM_THREADS"] == "3"
    assert env["VLLM_ENABLE_V1_MULTIPROCESSING"] == "0"


def test_gpu_keeps_vllm_s_own_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("actors.local.vllm_settings.runs_on_cpu", lambda: False)
    assert {"LD_PRELOAD", "OMP_NUM_THREADS", "VLLM_ENABLE_V1_MULTIPROCESSING"}.isdisjoint(required_env(VLLMSettings()))


def test_platform_fills_in_what_was_left_open() -> None:
    settings = VLLMSettings(max_adapters=3, max_rank=10, dtype="bfloat16")
    on_cpu, on_gpu = engine_arguments(settings, "/m", True), engine_arguments(settings, "/m", False)
    assert (on_cpu["block_size"], on_cpu["kv_cache_memory_bytes"], on_cpu["enforce_eager"]) == (32, 512 << 20, True)
    assert on_gpu["enforce_eager"] is False
    assert "kv_cache_memory_bytes" not in on_gpu  # gpu_memory_utilization says it
    assert (on_gpu["max_loras"], on_gpu["max_cpu_loras"], on_gpu["max_lora_rank"]) == (3, 6, 16)
    assert "enable_lora" not in engine_arguments(VLLMSettings(dtype="float32"), "/m", True)


@pytest.mark.parametrize(
    ("settings", "num_gpus", "used"),
    [
        (VLLMSettings(), 0, 0.9),
        (VLLMSettings(), 1, 0.9),
        (VLLMSettings(), 0.5, 0.45),  # two such engines leave a tenth of the GPU
        (VLLMSettings(gpu_memory_utilization=0.5), 0.5, 0.5),
        (VLLMSettings(tensor_parallel=4, gpu_memory_utilization=0.8), 4, 0.8),
    ],
)
def test_an_engine_uses_its_share_of_a_gpu(settings: VLLMSettings, num_gpus: float, used: float) -> None:
    assert on_gpus(settings, num_gpus).gpu_memory_utilization == used


@pytest.mark.parametrize(
    ("settings", "num_gpus", "said"),
    [
        (VLLMSettings(), 2, "set both to the same number"),
        (VLLMSettings(tensor_parallel=2), 1, "set both to the same number"),
        (VLLMSettings(tensor_parallel=2), 0.5, "needs as many GPUs"),
        (VLLMSettings(gpu_memory_utilization=0.9), 0.5, "set it to at most 0.5"),
    ],
)
def test_gpus_that_do_not_fit_the_engine_are_refused(settings: VLLMSettings, num_gpus: float, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        on_gpus(settings, num_gpus)


def test_a_model_is_loaded_with_its_eyes_where_it_has_any_and_is_let_look(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"vision_config": {}}')
    seeing = VLLMSettings(model=str(tmp_path), dtype="float32")
    arguments = engine_arguments(msgspec.structs.replace(seeing, max_images=3), str(tmp_path), True)
    assert arguments["limit_mm_per_prompt"] == {"image": 3, "video": 0, "audio": 0}
    assert "image" not in engine_arguments(seeing, str(tmp_path), True)["limit_mm_per_prompt"]
    for blind in (msgspec.structs.replace(seeing, images=False), VLLMSettings(model="some/model", dtype="float32")):
        arguments = engine_arguments(blind, blind.model, True)
        assert arguments["language_model_only"] and "limit_mm_per_prompt" not in arguments
    assert sees(VLLMSettings(model="some/model", images=True))


def test_a_text_model_that_is_said_to_see_is_refused_at_the_start() -> None:
    """As vLLM's renderer of such a model has no processor of images."""
    with pytest.raises(AgentError, match="vLLM knows smol as a model that sees nothing; take the key away"):
        VisionPrompts("smol", SimpleNamespace(mm_processor=None), None)


def test_backend_that_is_not_started_says_so() -> None:
    backend = VLLMBackend(VLLMSettings())
    ask = Ask(id="a", debate_id="d", agent="ada", role="generator", messages=(user("?"),), sampling=Sampling())
    with pytest.raises(ReplyError, match="not started"):
        asyncio.run(backend.generate(ask, None))
    asyncio.run(backend.close())


def test_adapter_without_room_for_one_names_the_setting() -> None:
    backend = VLLMBackend(VLLMSettings(max_adapters=0))
    with pytest.raises(AgentError, match="set max_adapters"):
        asyncio.run(backend.load_adapter(AdapterRef(name="ada@r1-1", agent="ada", path="/nowhere")))


class Hanging:
    """An engine whose first step does not come back."""

    model_config = SimpleNamespace(max_model_len=64)
    stepping, freed = threading.Event(), threading.Event()
    engine_core = SimpleNamespace(
        shutdown=lambda: None,
        engine_core=SimpleNamespace(
            scheduler=SimpleNamespace(get_request_counts=lambda: (1, 0), kv_cache_manager=SimpleNamespace(usage=0.5))
        ),
    )

    def __init__(self) -> None:
        self._requests = 0

    @classmethod
    def from_engine_args(cls, arguments: object) -> Hanging:
        return cls()

    def has_unfinished_requests(self) -> bool:
        return self._requests > 0

    def add_request(self, request_id: str, *args: object, **kwargs: object) -> None:
        self._requests += 1

    def step(self) -> list[object]:
        self.stepping.set()
        assert self.freed.wait(30)
        self._requests = 0
        return []


def test_an_engine_that_hangs_is_down(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, found in {
        "engine.arg_utils": {"EngineArgs": dict},
        "v1.engine.llm_engine": {"LLMEngine": Hanging},
    }.items():
        monkeypatch.setitem(sys.modules, f"vllm.{name}", SimpleNamespace(**found))  # type: ignore[arg-type]
    monkeypatch.setattr("actors.local.vllm_drive.STUCK_S", 0.05)
    monkeypatch.setattr("actors.local.vllm_drive.WATCH_S", 0.01)

    async def ask_it() -> None:
        drive = ThreadDrive({}, lambda load: None)
        assert await drive.start() == 64
        params: Any = None
        with pytest.raises(EngineDownError, match=r"it has not returned from one step for 0\.05 s"):
            await drive.complete("r", {}, params, None)
        assert Hanging.stepping.is_set()
        with pytest.raises(EngineDownError):
            await drive.complete("s", {}, params, None)
        Hanging.freed.set()
        await drive.close()

    asyncio.run(ask_it())


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_real_engines() -> None:
    """``vllm_live_images.py``, then ``vllm_live.py``, in a process started with the environment an engine needs."""
    env = os.environ | required_env(VLLMSettings()) | {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *LIVE]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=1480, check=False)
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
