"""Our clients and the services' own packages against one real server: vLLM's, with the embedded model.

The same greedy request must bring the same reply through both, in text, tokens, figures and errors; and the same recipe
must run, and open with the same words, whatever backend its models have.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anthropic
import openai
import pytest

from actors.local.embedded import embedded_model_path
from actors.local.vllm_engine import VLLMSettings, required_env
from actors.models.backend import AdapterRef
from actors.models.scripted import ScriptedSettings
from actors.placement import HostSpec
from actors.services.anthropic_messages import AnthropicBackend, AnthropicSettings
from actors.services.openai_chat import ChatBackend, OpenAISettings
from engine.config.recipe import Recipe
from engine.config.recipe_file import build_recipe
from engine.data.tasks import load_split
from engine.debates.cluster import Cluster
from engine.debates.hosts import Hosts
from engine.debates.stage import run_stage
from engine.live.progress import Progress
from engine.record.folder import RunFolder
from engine.run import make_manifest
from protocols.errors import AgentError, ReplyError
from protocols.graph import Debate
from protocols.message import Reply, system, user
from tests.actors.fake_api import KEY, ask

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]

READY_S = 240
HEAD = "Answer in a few words, as a patient teacher of arithmetic would answer a child who asks."
QUESTION = (system(HEAD), user("What is 2 + 3?"))
CHAT: list[Any] = [
    {"role": "system", "content": HEAD},
    {"role": "user", "content": "What is 2 + 3?"},
]


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    arguments = {
        "model": embedded_model_path(),
        "served-model-name": "smol",
        "host": "127.0.0.1",
        "port": port,
        "api-key": KEY,
        "dtype": "float32",
        "max-model-len": 512,
        "kv-cache-memory-bytes": 256 << 20,
        "block-size": 32,
        "max-lora-rank": 8,
        "max-loras": 1,
    }
    flags = ["--enforce-eager", "--enable-prompt-tokens-details", "--enable-lora"]
    told = [part for name, value in arguments.items() for part in (f"--{name}", str(value))]
    env = os.environ | dict(required_env(VLLMSettings())) | {"VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1"}
    log = tmp_path_factory.mktemp("server") / "log"
    with log.open("wb") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "vllm.entrypoints.openai.api_server", *told, *flags],
            env=env,
            stdout=file,
            stderr=subprocess.STDOUT,
        )
    try:
        _wait_until_ready(f"http://127.0.0.1:{port}/health", process, log)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait_until_ready(health: str, process: subprocess.Popen[bytes], log: Path) -> None:
    limit = time.monotonic() + READY_S
    while time.monotonic() < limit and process.poll() is None:
        try:
            with urllib.request.urlopen(health, timeout=5) as response:
                if response.status == 200:
                    return
        except (urllib.error.URLError, OSError):
            time.sleep(0.5)
    pytest.fail(f"the server is not up:\n{log.read_text(errors='replace')[-3000:]}")


@pytest.fixture(autouse=True)
def key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("A_KEY", KEY)


async def chat(url: str, *asks: Any, adapter: AdapterRef | None = None, **settings: Any) -> list[Reply]:
    given = {"model": "smol", "base_url": f"{url}/v1", "api_key_env": "A_KEY"} | settings
    backend = ChatBackend(OpenAISettings(**given))
    info = await backend.start()
    assert info.context_tokens == 512
    try:
        if adapter:
            await backend.load_adapter(adapter)
        return await asyncio.gather(*(backend.generate(one, adapter) for one in asks))
    finally:
        await backend.close()


@pytest.mark.asyncio
async def test_chat_replies_are_those_of_the_openai_package(url: str) -> None:
    drawn: dict[str, Any] = {"temperature": 0.0, "top_p": 1.0, "max_tokens": 12, "seed": 3}
    await chat(url, ask(*QUESTION, **drawn))  # the prompt is in the server's cache from now on
    (ours,) = await chat(url, ask(*QUESTION, **drawn), keep_logprobs=True)
    async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key=KEY, max_retries=0) as client:
        theirs = await client.chat.completions.create(
            model="smol", messages=CHAT, logprobs=True, extra_body={"return_token_ids": True}, **drawn
        )
    choice, usage = theirs.choices[0], theirs.usage
    assert usage is not None and usage.prompt_tokens_details is not None
    assert choice.logprobs is not None and choice.logprobs.content is not None
    assert (ours.text, ours.finish_reason) == (choice.message.content, choice.finish_reason)
    assert ours.token_ids == tuple(choice.model_extra["token_ids"] if choice.model_extra else ())
    assert ours.logprobs == pytest.approx([entry.logprob for entry in choice.logprobs.content], abs=5e-4)
    assert len(ours.token_ids) == len(ours.logprobs) == ours.usage.completion_tokens == usage.completion_tokens
    assert ours.usage.prompt_tokens == usage.prompt_tokens
    assert ours.usage.cached_tokens == usage.prompt_tokens_details.cached_tokens == 32  # one block


@pytest.mark.asyncio
async def test_messages_replies_are_those_of_the_anthropic_package(url: str) -> None:
    backend = AnthropicBackend(AnthropicSettings(model="smol", base_url=url, api_key_env="A_KEY"))
    await backend.start()
    ours = await backend.generate(ask(*QUESTION, temperature=0.0, max_tokens=6), None)
    with pytest.raises(ReplyError) as caught:
        await backend.generate(ask(user("word " * 600)), None)
    assert caught.value.kind == "context_too_long"
    await backend.close()
    async with anthropic.AsyncAnthropic(base_url=url, api_key=KEY, max_retries=0) as client:
        theirs = await client.messages.create(
            model="smol", system=CHAT[0]["content"], messages=CHAT[1:], max_tokens=6, extra_body={"temperature": 0.0}
        )
    assert theirs.content[0].type == "text"
    assert (ours.text, ours.usage.completion_tokens) == (theirs.content[0].text, theirs.usage.output_tokens)
    assert (ours.finish_reason, theirs.stop_reason) == ("length", "max_tokens")
    (same,) = await chat(url, ask(*QUESTION, temperature=0.0, max_tokens=6))
    assert (ours.text, ours.usage.prompt_tokens) == (same.text, same.usage.prompt_tokens)


@pytest.mark.asyncio
async def test_stops_seeds_and_many_at_once(url: str) -> None:
    asks = [ask(user(f"Count: {n}, "), temperature=1.0, max_tokens=8, seed=n) for n in range(24)]
    replies = await chat(url, *asks)
    assert all(0 < reply.usage.completion_tokens <= 8 for reply in replies)
    assert len({reply.text for reply in replies}) > 12
    (whole,) = await chat(url, ask(*QUESTION, temperature=0.0, max_tokens=12))
    mark = whole.text[4:7]
    (cut,) = await chat(url, ask(*QUESTION, temperature=0.0, max_tokens=12, stop=(mark,)))
    assert len(mark) == 3
    assert (cut.text, cut.finish_reason) == (whole.text.partition(mark)[0], "stop")


@pytest.mark.asyncio
async def test_errors_have_their_kind(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for what in (ask(user("word " * 600)), ask(user("hi"), max_tokens=600)):
        with pytest.raises(ReplyError) as caught:
            await chat(url, what)
        assert caught.value.kind == "context_too_long", str(caught.value)
    with pytest.raises(ReplyError, match="status 400") as caught:
        await chat(url, ask(user("hi")), extra_body={"temperature": "hot"})
    assert caught.value.kind == "malformed"
    with pytest.raises(AgentError, match="has no model 'other'; it serves: smol"):
        await chat(url, ask(user("hi")), model="other")
    monkeypatch.setenv("A_KEY", "another")
    with pytest.raises(AgentError, match="check the environment variable A_KEY"):
        await chat(url, ask(user("hi")))


RECIPE: dict[str, Any] = {
    "name": "everywhere",
    "seed": 3,
    "tasks": {"source": "arithmetic", "level": "add49", "train": 2, "test": 0},
    "agents": {name: {"model": name, "temperature": 0.0, "max_tokens": 12} for name in ("ada", "bo", "cy")},
    "protocol": {"name": "society", "rounds": 2, "memory": "stateless", "prompts": "society.sum.en"},
    "cast": {"generator": ["ada", "bo", "cy"]},
}
SERVED = ("openai", "anthropic")
CASTS = {"served": ("openai", "anthropic", "openai"), "mixed": ("transformers", "anthropic", "openai")}


@pytest.fixture(scope="module")
def models(url: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """One model a backend, all of the same weights and in float32."""
    key = tmp_path_factory.mktemp("key") / "key"
    key.write_text(KEY)
    served = {"model": "smol", "api_key_file": str(key)}
    local = {"model": "embedded", "dtype": "float32", "max_model_len": 512, "threads": 1}
    return {
        "openai": {"backend": "openai", "base_url": f"{url}/v1", **served},
        "anthropic": {"backend": "anthropic", "base_url": url, **served},
        "transformers": {"backend": "transformers", **local},
    }


@pytest.fixture(scope="module")
def hosts(local_ray: Any, models: dict[str, dict[str, Any]]) -> Iterator[Hosts]:
    """Every model started once, for all the runs."""
    agents = {name: {"model": name} for name in models}
    recipe = RECIPE | {"models": models, "agents": agents, "cast": {"generator": list(models)}}
    cluster = asyncio.run(Cluster.start(build_recipe(recipe, where="hosts")))
    yield cluster.hosts
    asyncio.run(cluster.stop())


def named(hosts: Hosts, backends: dict[str, str]) -> Hosts:
    """The hosts under the names that a recipe has for its models."""
    specs = [
        HostSpec(name=name, model=name, backend=backend, settings=ScriptedSettings())
        for name, backend in backends.items()
    ]
    handles = {name: hosts.of(backend)[backend] for name, backend in backends.items()}
    return Hosts(specs, handles, dict.fromkeys(backends, 0), pytest.fail)


def debated(recipe: Recipe, hosts: Hosts, folder: Path) -> list[Debate]:
    run = RunFolder.create(folder, make_manifest(folder.name, "run", recipe, folder, None))
    tasks = load_split(recipe.tasks).train
    result = asyncio.run(run_stage(Cluster(recipe, hosts, ours=False), run, "debate", tasks, progress=Progress()))
    run.release()
    return result.debates


@pytest.fixture(scope="module")
def openings() -> dict[str, set[str]]:
    """Task -> what was said to its first prompt, over all tests of this file."""
    return {}


@pytest.mark.parametrize("cast", CASTS)
def test_one_recipe_runs_on_every_backend_and_they_open_with_the_same_words(
    cast: str,
    models: dict[str, dict[str, Any]],
    hosts: Hosts,
    openings: dict[str, set[str]],
    tmp_path: Path,
) -> None:
    backends = dict(zip(RECIPE["agents"], CASTS[cast], strict=True))
    recipe = build_recipe(
        RECIPE | {"models": {name: models[backend] for name, backend in backends.items()}}, where=cast
    )
    debates = debated(recipe, named(hosts, backends), tmp_path / "run")
    assert len(debates) == 2
    for debate in debates:
        assert debate.verdict is not None and debate.verdict.stop_reason == "rounds" and debate.failures == []
        assert len(debate.utterances) == 6
        for node in debate.utterances:
            reply, served = node.reply, backends[node.agent] in SERVED
            assert (reply.model == "smol") is served and reply.model
            assert reply.usage.prompt_tokens > 20 and 0 < reply.usage.completion_tokens <= 12
            assert bool(reply.token_ids) is not served and reply.latency_s > 0.0
            if node.round == 0:
                openings.setdefault(debate.task.id, set()).add(reply.text.strip())
    assert [len(said) for said in openings.values()] == [1, 1], openings  # greedy, so by one prompt and one model


@pytest.mark.asyncio
async def test_an_adapter_is_loaded_while_the_server_runs(url: str, tmp_path: Path) -> None:
    adapter = AdapterRef(name="ada@r-v1", agent="ada", path=str(_adapter(tmp_path / "ada")))
    what = ask(*QUESTION, temperature=0.0, max_tokens=12)
    (tuned,) = await chat(url, what, adapter=adapter, lora=True, keep_logprobs=True)
    (base,) = await chat(url, what, keep_logprobs=True)
    assert (tuned.model, tuned.adapter) == ("smol", adapter.name)
    assert tuned.token_ids != base.token_ids or tuned.logprobs != pytest.approx(base.logprobs, abs=1e-3)
    gone = AdapterRef(name="bo@r-v1", agent="bo", path=str(tmp_path / "none"))
    with pytest.raises(AgentError, match="'bo@r-v1' is not taken"):
        await chat(url, what, adapter=gone, lora=True)
    backend = ChatBackend(OpenAISettings(model="smol", base_url=f"{url}/v1", api_key_env="A_KEY", lora=True))
    await backend.start()
    await backend.unload_adapter(adapter)
    await backend.unload_adapter(adapter)  # it is gone already: nothing to do
    with pytest.raises(ReplyError, match="has no model") as caught:
        await backend.generate(what, adapter)
    assert caught.value.kind == "malformed"
    await backend.close()


def _adapter(folder: Path) -> Path:
    """Random weights, large enough to change what is said."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    base: Any = AutoModelForCausalLM.from_pretrained(embedded_model_path(), dtype=torch.float32)
    config = LoraConfig(r=8, lora_alpha=16, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    get_peft_model(base, config).save_pretrained(str(folder))
    return folder
