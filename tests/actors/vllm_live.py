"""A real vLLM engine on the embedded model: run by ``test_vllm_engine.py`` in a process of its own.

The engine's OpenMP must be there when the process starts, so pytest cannot collect this file beside the others:

    export PYTHONPATH=.; env $(python tests/actors/vllm_live.py) pytest tests/actors/vllm_live.py

Everything is computed in float32, on every machine, so that log-probabilities can be compared closely: two correct
implementations then differ by the order of their sums, 1e-5 to 1e-4 nats over 30 layers, where bf16 rounds each
activation to 3 digits and differs by 0.03 on average and by 0.2 at most. The random adapters move a reply by 0.1 to 1.
"""

from __future__ import annotations

import asyncio
import json
import re
import shutil
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any

import jsonschema  # type: ignore[import-untyped]
import msgspec
import pytest
import pytest_asyncio
import torch

from actors.local.embedded import embedded_model_path
from actors.local.vllm_engine import VLLMBackend, VLLMSettings, required_env
from actors.models.backend import AdapterRef
from protocols.errors import AgentError, ReplyError
from protocols.mad import Mad
from protocols.mad_replies import read_verdict
from protocols.message import Ask, ImagePart, Message, Reply, Sampling, system, user
from protocols.prompt import load_prompts
from protocols.task import Task

SETTINGS = VLLMSettings(dtype="float32", kv_cache_mb=512, max_model_len=1024, max_adapters=2, max_rank=8)
TOLERANCE = 5e-4  # nats a token; measured 4e-5 at most
END_OF_TURN = 2

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.filterwarnings("default")]

Score = Callable[[Ask, Reply, str | None], torch.Tensor]


def ask(number: int, text: str | None = None, messages: tuple[Message, ...] = (), **sampling: Any) -> Ask:
    messages = messages or (
        system("Answer in a few words, as a patient teacher of arithmetic would answer."),
        user(text or f"What is {number} + {3 * number}?"),
    )
    drawn = Sampling(**({"max_tokens": 16} | sampling))
    return Ask(
        id=f"d{number}#0", debate_id=f"d{number}", agent="ada", role="generator", messages=messages, sampling=drawn
    )


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def backend() -> AsyncIterator[VLLMBackend]:
    backend = VLLMBackend(SETTINGS)
    info = await backend.start()
    assert (info.context_tokens, info.takes_adapters, info.takes_images) == (1024, True, False)
    yield backend
    await backend.close()
    await backend.close()  # twice does no harm


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory) -> dict[str, AdapterRef]:
    """Three random adapters, as PEFT writes them, by version name."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    base: Any = AutoModelForCausalLM.from_pretrained(embedded_model_path(), dtype=torch.float32)
    config = LoraConfig(r=8, lora_alpha=16, target_modules="all-linear", init_lora_weights=False, task_type="CAUSAL_LM")
    versions: dict[str, AdapterRef] = {}
    for seed, name in enumerate(("ada@r1-1", "bo@r1-1", "ada@r1-2")):
        torch.manual_seed(seed)
        model = get_peft_model(base, config)
        for key, weights in model.named_parameters():
            if "lora_" in key:
                weights.data.mul_(0.5)
        folder = tmp_path_factory.mktemp("adapters") / name
        model.save_pretrained(str(folder))
        base = model.unload()
        versions[name] = AdapterRef(name=name, agent=name.partition("@")[0], path=str(folder))
    return versions


@pytest.fixture(scope="module")
def score(tuned: dict[str, AdapterRef]) -> Score:
    """Log-probabilities [T] of a reply's tokens by transformers and PEFT, under an adapter or (None) without."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = embedded_model_path()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model: Any = None
    for name, adapter in tuned.items():
        if model is None:
            base = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
            model = PeftModel.from_pretrained(base, adapter.path, adapter_name=name.replace(".", "_"))
        else:
            model.load_adapter(adapter.path, adapter_name=name)

    def of(asked: Ask, reply: Reply, name: str | None) -> torch.Tensor:
        chat = [{"role": message.role, "content": message.text} for message in asked.messages]
        prompt = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=False)
        ids = torch.tensor([[*prompt, *reply.token_ids]])
        with torch.no_grad():
            if name is None:
                with model.disable_adapter():
                    logits = model(ids).logits
            else:
                model.set_adapter(name)
                logits = model(ids).logits
        logprobs: torch.Tensor = logits[0, len(prompt) - 1 : -1].log_softmax(-1)
        spoken: torch.Tensor = logprobs.gather(1, ids[0, len(prompt) :, None])[:, 0]
        return spoken

    return of


async def answer(backend: VLLMBackend, asks: Sequence[tuple[Ask, AdapterRef | None]]) -> list[Reply]:
    return await asyncio.gather(*(backend.generate(one, adapter) for one, adapter in asks))


def apart(reply: Reply, logprobs: torch.Tensor) -> float:
    """Largest difference over the tokens, in nats."""
    return float((torch.tensor(reply.logprobs) - logprobs).abs().max())


async def test_32_asks_at_once_come_back_with_their_tokens(backend: VLLMBackend) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(embedded_model_path())
    before = backend.metrics()
    replies = await answer(backend, [(ask(number), None) for number in range(32)])
    assert [reply.ask_id for reply in replies] == [f"d{number}#0" for number in range(32)]
    for reply in replies:
        assert len(reply.token_ids) == len(reply.logprobs) == reply.usage.completion_tokens
        assert max(reply.logprobs) <= 0.0
        assert tokenizer.decode(list(reply.token_ids), skip_special_tokens=True) == reply.text
        assert (reply.token_ids[-1] == END_OF_TURN) == (reply.finish_reason == "stop")
        assert (reply.model, reply.adapter) == ("SmolLM2-135M-Instruct", "")
        assert reply.latency_s > 0
    spent = {name: figure - before[name] for name, figure in backend.metrics().items()}
    assert spent["replies"] == 32
    assert spent["tokens_generated"] == sum(len(reply.token_ids) for reply in replies)
    assert spent["prefix_cache_queries"] == sum(reply.usage.prompt_tokens for reply in replies)


async def test_same_greedy_batch_answers_the_same_and_from_the_cache(backend: VLLMBackend) -> None:
    batch = [(ask(number, temperature=0.0), None) for number in range(8)]
    first, second = await answer(backend, batch), await answer(backend, batch)
    assert [reply.token_ids for reply in first] == [reply.token_ids for reply in second]
    assert {reply.usage.cached_tokens for reply in second} == {32}  # the one full block of each prompt


async def test_an_engine_that_slept_remembers_no_prompt_and_answers_as_before(
    backend: VLLMBackend, tuned: dict[str, AdapterRef]
) -> None:
    """A CPU's engine frees no memory when it sleeps, but stops, forgets and goes on as one on a GPU."""
    asked, adapter = ask(40, temperature=0.0), tuned["ada@r1-1"]
    await backend.generate(asked, adapter)
    before = await backend.generate(asked, adapter)
    assert before.usage.cached_tokens > 0
    await backend.sleep()
    waiting = asyncio.ensure_future(backend.generate(asked, adapter))
    await asyncio.sleep(0.5)
    assert not waiting.done()
    await backend.wake()
    after = await waiting
    assert after.usage.cached_tokens == 0
    assert after.text == before.text
    await backend.unload_adapter(adapter)


async def test_stop_string_ends_the_text_before_it(backend: VLLMBackend) -> None:
    asked = ask(1, "What is the capital of France?", temperature=0.0, stop=("Paris",))
    reply = await backend.generate(asked, None)
    assert "capital" in reply.text
    assert "Paris" not in reply.text
    assert reply.finish_reason == "stop"


async def test_moderators_are_held_to_their_schema_and_nobody_else_is(backend: VLLMBackend) -> None:
    """Unheld, this model writes about one reply in three that is none; the bare question never brings an object.

    A held reply can still run out of tokens within a string: then it says so, and begins as the schema does.
    """
    prompts = load_prompts("mad.sum.en", Mad.SLOTS)
    speeches = "Affirmative: 24 + 19 = 43\nNegative: 24 + 19 = 33"
    question = user(prompts.fill("moderate", question="24 + 19", speeches=speeches))
    messages = (system(prompts.fill("moderator_system")), *prompts.examples("moderate"), question)
    held = [
        msgspec.structs.replace(ask(number, messages=messages, max_tokens=256), schema=prompts.schemas["moderate"])
        for number in range(4)
    ]
    *replies, free = await answer(backend, [(one, None) for one in (*held, ask(5))])
    whole = [reply for reply in replies if reply.finish_reason == "stop"]
    assert len(whole) >= len(replies) / 2
    for reply in whole:
        said = json.loads(reply.text)
        jsonschema.validate(said, json.loads(prompts.schemas["moderate"]))
        assert list(said) == ["reason", "preference", "side", "answer"]
        assert read_verdict(reply.text, Task(id="t", question="?")).how == "fields"
    for reply in replies:
        assert re.match(r'\{\s*"reason"\s*:\s*"', reply.text)
        assert reply.finish_reason in ("stop", "length") and len(reply.token_ids) == len(reply.logprobs)
    assert not free.text.startswith("{")


async def test_cancelling_the_caller_frees_the_engine(backend: VLLMBackend) -> None:
    long = [ask(number, "Write a long story about the sea.", max_tokens=800) for number in range(4)]
    tasks = [asyncio.create_task(backend.generate(one, None)) for one in long]
    async with asyncio.timeout(60):
        while backend.metrics()["running"] < 4:
            await asyncio.sleep(0.02)
        assert backend.metrics()["kv_usage"] > 0
        for task in tasks:
            task.cancel()
        assert all(
            isinstance(end, asyncio.CancelledError) for end in await asyncio.gather(*tasks, return_exceptions=True)
        )
        while backend.metrics()["running"] > 0:
            await asyncio.sleep(0.02)
        assert backend.metrics()["kv_usage"] == 0
        assert (await backend.generate(ask(1), None)).text


async def test_ask_beyond_the_context_is_refused_before_the_engine_sees_it(backend: VLLMBackend) -> None:
    with pytest.raises(ReplyError, match="max_tokens=1024") as caught:
        await backend.generate(ask(1, max_tokens=1024), None)
    assert caught.value.kind == "context_too_long"


async def test_image_is_refused_by_a_text_model(backend: VLLMBackend) -> None:
    with pytest.raises(ReplyError, match="reads only text") as caught:
        await backend.generate(ask(1, messages=(user("What is this?", [ImagePart(sha256="0" * 64)]),)), None)
    assert caught.value.kind == "malformed"


async def test_logprobs_are_those_of_transformers_and_peft(
    backend: VLLMBackend, tuned: dict[str, AdapterRef], score: Score
) -> None:
    for name in (None, "ada@r1-1", "bo@r1-1"):
        adapter = tuned[name] if name else None
        asked = [ask(number) for number in range(4)]
        replies = await answer(backend, [(one, adapter) for one in asked])
        for one, reply in zip(asked, replies, strict=True):
            assert reply.adapter == (name or "")
            assert apart(reply, score(one, reply, name)) < TOLERANCE
        others = {None, "ada@r1-1", "bo@r1-1"} - {name}
        assert min(apart(replies[0], score(asked[0], replies[0], other)) for other in others) > 0.1


async def test_base_and_two_adapters_in_one_batch_answer_as_they_do_alone(
    backend: VLLMBackend, tuned: dict[str, AdapterRef], score: Score
) -> None:
    """Every slot of the engine is taken: vLLM's own CPU operations would give the base model the last one's weights."""
    speakers = [None, tuned["ada@r1-1"], tuned["bo@r1-1"]]
    asks = [(ask(number), speakers[number % 3]) for number in range(12)]
    for (one, adapter), reply in zip(asks, await answer(backend, asks), strict=True):
        assert apart(reply, score(one, reply, adapter.name if adapter else None)) < TOLERANCE


async def test_new_version_answers_with_the_new_weights(
    backend: VLLMBackend, tuned: dict[str, AdapterRef], score: Score
) -> None:
    old, new = tuned["ada@r1-1"], tuned["ada@r1-2"]
    await backend.load_adapter(new)
    for adapter in (old, new, old):  # the same prompt each time: a stale prefix cache would show
        reply = await backend.generate(ask(5), adapter)
        assert apart(reply, score(ask(5), reply, adapter.name)) < TOLERANCE
    with pytest.raises(AgentError, match="new version name"):
        await backend.load_adapter(msgspec.structs.replace(old, path=new.path))
    await backend.unload_adapter(old)
    await backend.unload_adapter(old)  # twice does no harm
    reply = await backend.generate(ask(5), old)  # a late ask loads it again
    assert apart(reply, score(ask(5), reply, old.name)) < TOLERANCE


async def test_adapter_that_does_not_fit_is_refused_with_the_reason(
    backend: VLLMBackend, tuned: dict[str, AdapterRef], tmp_path: Path
) -> None:
    from safetensors.torch import load_file, save_file

    folder = tmp_path / "adapter"
    shutil.copytree(tuned["bo@r1-1"].path, folder)
    bad = AdapterRef(name="bo@r1-9", agent="bo", path=str(folder))
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(config | {"r": 64}))
    with pytest.raises(AgentError, match="rank 64, above max_rank=8"):
        await backend.load_adapter(bad)
    (folder / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": "some/other-model"}))
    with pytest.raises(AgentError, match="'some/other-model'"):
        await backend.load_adapter(bad)
    (folder / "adapter_config.json").write_text(json.dumps(config))
    weights = load_file(folder / "adapter_model.safetensors")
    next(iter(weights.values()))[0, 0] = float("nan")
    save_file(weights, folder / "adapter_model.safetensors")
    with pytest.raises(AgentError, match="not finite"):
        await backend.load_adapter(bad)
    with pytest.raises(ReplyError, match="not finite"):
        await backend.generate(ask(1), bad)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
async def test_fast_operations_equal_the_stock_ones_and_leave_the_base_alone(dtype: torch.dtype) -> None:
    """Sums of 64 products in another order: 1e-5 of the largest in float32; bf16 keeps 8 bits, and stock rounds h."""
    from vllm.lora.layers import LoRAMapping
    from vllm.lora.punica_wrapper.punica_cpu import PunicaWrapperCPU

    from actors.local.vllm_cpu_lora import SideBySideLoRA

    torch.manual_seed(0)
    slots, rank, inputs, outputs = 3, 8, 64, (48, 16, 16)
    of_token = (11, 0, 12, 12, 0, 13, 11)  # adapter numbers; 0 is the base model
    lora_a = tuple(torch.randn(slots, 1, rank, inputs, dtype=dtype) for _ in outputs)
    lora_b = tuple(torch.randn(slots, 1, width, rank, dtype=dtype) for width in outputs)
    x, y = torch.randn(len(of_token), inputs, dtype=dtype), torch.randn(len(of_token), sum(outputs), dtype=dtype)
    results = []
    for operations in (PunicaWrapperCPU, SideBySideLoRA):
        wrapper: Any = operations(64, 8, "cpu")
        wrapper.update_metadata(LoRAMapping(of_token, of_token, is_prefill=True), [11, 12, 13], slots, 100)
        results.append(y.clone())
        wrapper.add_lora_linear(results[-1], x, lora_a, lora_b, 1.0, outputs)
    stock, fast = results
    tuned_rows = torch.tensor([number > 0 for number in of_token])
    largest = float(stock[tuned_rows].abs().max())
    allowed = (1e-5 if dtype is torch.float32 else 2e-2) * largest
    assert float((stock - fast)[tuned_rows].abs().max()) < allowed
    assert torch.equal(fast[~tuned_rows], y[~tuned_rows])
    assert not torch.equal(stock[~tuned_rows], y[~tuned_rows])  # the fault of the stock ones; once mended, drop ours


async def test_fast_operations_follow_weights_written_into_a_slot() -> None:
    from vllm.lora.layers import LoRAMapping

    from actors.local.vllm_cpu_lora import SideBySideLoRA

    wrapper: Any = SideBySideLoRA(8, 8, "cpu")
    lora_a, lora_b = torch.ones(1, 1, 1, 2), torch.zeros(1, 1, 3, 1)
    for number, weight in ((7, 0.0), (8, 5.0), (9, 6.0)):
        lora_b[0] = weight
        wrapper.update_metadata(LoRAMapping((number, 0), (number, 0), is_prefill=True), [number], 1, 100)
        y = torch.zeros(2, 3)
        wrapper.add_lora_linear(y, torch.ones(2, 2), (lora_a,), (lora_b,), 1.0, (3,))
        assert y.tolist() == [[2 * weight] * 3, [0.0] * 3]  # 1 * 1 + 1 * 1, times B


async def test_broken_engine_fails_all_who_wait_and_says_why(
    backend: VLLMBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Last in the file: the engine is of no use afterwards."""
    from vllm.v1.engine.llm_engine import LLMEngine

    def out_of_memory(self: LLMEngine) -> None:
        raise MemoryError("no room for a batch")

    monkeypatch.setattr(LLMEngine, "step", out_of_memory)
    ends = await asyncio.gather(*(backend.generate(ask(number), None) for number in range(3)), return_exceptions=True)
    for end in [*ends, *await asyncio.gather(backend.generate(ask(4), None), return_exceptions=True)]:
        assert isinstance(end, ReplyError)
        assert "no room for a batch" in str(end)
        assert end.kind == "transient"
    assert backend.metrics()["broken"] == 1.0


if __name__ == "__main__":
    print(*(f"{name}={value}" for name, value in required_env(SETTINGS).items()))
