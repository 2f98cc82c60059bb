"""How much of a local engine's speed debates keep: agents on Ray beside raw vLLM on the very same prompts.

    python benchmarks/local_engine.py [--debates 32] [--rounds 3] [--adapters 0 1 2 6] [--json FILE] [--limit 0.95]

For each number of adapters, round by round: debates of six agents (three open, three revise twice) run as a recipe runs
them, through the arena, its journal on disk, Ray and the agent host. Their prompts, and the number of tokens of each
reply, are then given to raw vLLM in a fresh process, all at once, with the same settings and adapters; it may not stop
early.
Both generate the same number of tokens from the same prompts, after the same warm-up, in processes of their own. Told
are the seconds from the first debate's opening to the last event on record, and those of ``LLM.generate``.

With adapters raw vLLM is run with moot's operations for CPUs, so that the same arithmetic is compared; ``--stock`` adds
vLLM's own, which are slower and give base rows an adapter's weights.

The hit rate is the share of prompt tokens found in the prefix cache, beside the ideal: what an endless cache would
have found had the asks come one after another, in the order in which they were sent.

Exit status 1: debates have less than --limit of raw vLLM's tokens a second, or less than 0.9 of the ideal hit rate.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from protocols.message import Ask, Reply  # noqa: E402

MAX_LEN, MAX_TOKENS, RANK, WARM_UP = 768, 48, 8, 4
GENERATORS, CRITICS = ("g-1", "g-2", "g-3"), ("c-1", "c-2", "c-3")


def recipe_data(debates: int, adapters: int, replicas: int) -> dict[str, Any]:
    model = {
        "backend": "vllm", "model": "embedded", "max_model_len": MAX_LEN, "kv_cache_mb": 3072, "max_adapters": adapters,
        "max_rank": RANK, "replicas": replicas, "num_cpus": 1.0 / replicas,
    }  # fmt: skip
    sampling = {"model": "smol", "temperature": 1.0, "top_p": 0.9, "max_tokens": MAX_TOKENS}
    return {
        "name": "local-engine",
        "tasks": {"source": "arithmetic", "level": "mixed10", "train": debates, "test": WARM_UP},
        "models": {"smol": model},
        "agents": dict.fromkeys((*GENERATORS, *CRITICS), sampling),
        "protocol": {"name": "society", "rounds": 3, "memory": "chat", "prompts": "society.math.en"},
        "cast": {"generator": list(GENERATORS), "critic": list(CRITICS)},
        "run": {"max_open": debates},
    }


class Prompt(msgspec.Struct):
    """One ask as the engine saw it. ``adapter``: the number of its adapter, -1 for the base model."""

    ids: list[int]
    num_tokens: int  # of the reply
    cached: int  # tokens of the prompt that came from the prefix cache
    adapter: int
    at: float  # when its debate's event was on record that made it be asked
    reply_ids: list[int] = []


class Work(msgspec.Struct):
    """What raw vLLM is given, and what the debates took for it."""

    prompts: list[Prompt]
    warm_up: list[Prompt]
    seconds: float
    settings: dict[str, Any]
    adapters: list[str]  # folders
    stock: bool = False


def make_adapters(folder: Path, number: int) -> list[str]:
    """Random adapters, weak enough that replies stay replies."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    from actors.local.embedded import embedded_model_path

    base: Any = AutoModelForCausalLM.from_pretrained(embedded_model_path(), dtype=torch.float32)
    config = LoraConfig(r=RANK, target_modules="all-linear", init_lora_weights=False, task_type="CAUSAL_LM")
    paths = []
    for seed in range(number):
        torch.manual_seed(seed)
        model = get_peft_model(base, config)
        for key, weights in model.named_parameters():
            if "lora_" in key:
                weights.data.mul_(0.1)
        paths.append(str(folder / f"adapter-{seed}"))
        model.save_pretrained(paths[-1])
        base = model.unload()
    return paths


async def debate(folder: Path, debates: int, adapters: Sequence[str], replicas: int) -> Work:
    """Run the debates, and find out what was asked of the engine."""
    from actors.models.backend import AdapterRef
    from engine.config.recipe_file import build_recipe
    from engine.data.tasks import load_split
    from engine.debates.cluster import Cluster
    from engine.debates.stage import run_stage
    from engine.live.progress import Progress
    from engine.record.folder import Manifest, RunFolder

    recipe = build_recipe(recipe_data(debates, len(adapters), replicas), where="benchmark")
    tasks = load_split(recipe.tasks)
    manifest = Manifest(
        id="r", kind="run", name=recipe.name, fingerprint=recipe.fingerprint, num_arenas=1, recipe=recipe.source,
        recipe_path="", limit=None, started_at=time.time(), machine="", versions={},
    )  # fmt: skip
    run = RunFolder.create(folder, manifest)
    cluster = await Cluster.start(recipe)
    try:
        for number, agent in enumerate(recipe.agents if adapters else ()):
            path = adapters[number % len(adapters)]
            await cluster.hosts.publish("smol", AdapterRef(name=f"{Path(path).name}@r-v1", agent=agent, path=path))
        progress = Progress(live=False)
        progress.hush()
        await run_stage(cluster, run, "warm-up", tasks.test, progress=progress)
        await run_stage(cluster, run, "debate", tasks.train, progress=progress)
    finally:
        await cluster.stop()
        run.release()
    names = [f"{Path(path).name}@r-v1" for path in adapters]
    prompts, seconds = asked(run.journals("debate")[0], recipe, names)
    warm_up, _ = asked(run.journals("warm-up")[0], recipe, names)
    settings = msgspec.to_builtins(recipe.models["smol"].settings)
    return Work(prompts, warm_up, seconds, settings, list(adapters))


def asked(journal: Path, recipe: Any, adapters: Sequence[str]) -> tuple[list[Prompt], float]:
    """Every prompt in the order it was asked, from a replay of the journal, and how long all of it took."""
    from transformers import AutoTokenizer

    from actors.local.embedded import embedded_model_path
    from engine.config.named_protocol import find_protocol
    from engine.record.journal import read_journal
    from protocols.machine import Replied, Request

    tokenizer = AutoTokenizer.from_pretrained(embedded_model_path())
    machine_type, prompts, times = find_protocol(recipe.protocol), [], []
    for recorded in read_journal(journal):
        machine = machine_type(recipe.settings, recipe.players, recipe.prompts)
        asks: dict[str, Ask] = {}
        made: dict[str, float] = {}
        for at, event in recorded.events:
            times.append(at)
            if isinstance(event, Replied):
                ask = asks[event.reply.ask_id]
                prompts.append(_prompt(tokenizer, ask, event.reply, adapters, made[ask.id]))
            for command in machine.receive(event):
                if isinstance(command, Request):
                    asks[command.ask.id], made[command.ask.id] = command.ask, at
    prompts.sort(key=lambda prompt: prompt.at)
    return prompts, max(times) - min(times)


def _prompt(tokenizer: Any, ask: Ask, reply: Reply, adapters: Sequence[str], at: float) -> Prompt:
    chat = [{"role": message.role, "content": message.text} for message in ask.messages]
    return Prompt(
        ids=list(tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=False)),
        num_tokens=len(reply.token_ids),
        cached=reply.usage.cached_tokens,
        adapter=adapters.index(reply.adapter) if reply.adapter else -1,
        at=at,
        reply_ids=list(reply.token_ids),
    )


def ideal_cached(prompts: Sequence[Prompt], warm_up: Sequence[Prompt], block: int) -> int:
    """Prompt tokens that an endless cache would have found, asks coming one after another, whole blocks alone."""
    seen: set[tuple[int, int]] = set()
    found = 0
    for number, prompt in enumerate((*warm_up, *prompts)):
        hashed, hits, missed = prompt.adapter, 0, False
        text = [*prompt.ids, *prompt.reply_ids[:-1]]  # the last token said is never read again by its own request
        for start in range(0, len(text) - block + 1, block):
            hashed = hash((hashed, tuple(text[start : start + block])))
            key = (prompt.adapter, hashed)
            missed = missed or key not in seen or start + block > len(prompt.ids) - 1  # one token is always computed
            hits += 0 if missed else block
            seen.add(key)
        found += hits if number >= len(warm_up) else 0
    return found


def raw(file: Path) -> None:
    """Generate what a file says with ``vllm.LLM`` and print the seconds it took."""
    from actors.local.embedded import embedded_model_path
    from actors.local.vllm_settings import VLLMSettings, engine_arguments, runs_on_cpu

    work = msgspec.json.decode(file.read_bytes(), type=Work)
    settings = msgspec.convert(work.settings, VLLMSettings)
    if work.adapters and runs_on_cpu() and not work.stock:
        from actors.local.vllm_cpu_lora import install

        install()
    from vllm import LLM, SamplingParams
    from vllm.lora.request import LoRARequest

    llm = LLM(**engine_arguments(settings, str(embedded_model_path()), runs_on_cpu()))
    loras = [LoRARequest(Path(path).name, number, path) for number, path in enumerate(work.adapters, 1)]
    for lora in loras:
        llm.llm_engine.add_lora(lora)

    def generate(prompts: Sequence[Prompt]) -> float:
        params = [
            SamplingParams(
                temperature=1.0,
                top_p=0.9,
                max_tokens=prompt.num_tokens,
                ignore_eos=True,
                logprobs=0,
                flat_logprobs=True,
            )
            for prompt in prompts
        ]
        given: list[Any] = [{"prompt_token_ids": prompt.ids} for prompt in prompts]
        adapters = [loras[prompt.adapter] if prompt.adapter >= 0 else None for prompt in prompts]
        began = time.perf_counter()
        done = llm.generate(given, params, lora_request=adapters if loras else None, use_tqdm=False)
        seconds = time.perf_counter() - began
        made = [len(item.outputs[0].token_ids) for item in done]
        assert made == [prompt.num_tokens for prompt in prompts], "raw vLLM generated another number of tokens"
        return seconds

    generate(work.warm_up)
    print(generate(work.prompts))
    llm.llm_engine.engine_core.shutdown()


def run_raw(work: Work, folder: Path, *, stock: bool = False) -> float:
    from actors.local.vllm_settings import VLLMSettings, required_env

    file = folder / "work.json"
    file.write_bytes(msgspec.json.encode(msgspec.structs.replace(work, stock=stock)))
    env = os.environ | required_env(msgspec.convert(work.settings, VLLMSettings)) | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, __file__, "--raw", str(file)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=3600, check=False)
    if done.returncode:
        raise SystemExit(f"raw vLLM failed:\n{done.stderr[-3000:]}")
    return float(done.stdout.splitlines()[-1])


def measure(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    with tempfile.TemporaryDirectory(prefix="moot-bench-") as temporary:
        folder = Path(temporary)
        adapters = make_adapters(folder, max(options.adapters))
        for number in range(options.rounds):
            for count in options.adapters:
                for replicas in (1, options.replicas) if count == 0 and options.replicas > 1 else (1,):
                    here = folder / f"{number}-{count}-{replicas}"
                    work = asyncio.run(debate(here, options.debates, adapters[:count], replicas))
                    yield row(work, folder, count, replicas, options)


def row(work: Work, folder: Path, count: int, replicas: int, options: argparse.Namespace) -> dict[str, Any]:
    from actors.local.vllm_settings import CPU_BLOCK_SIZE

    tokens, prompt_tokens = (
        sum(prompt.num_tokens for prompt in work.prompts),
        sum(len(prompt.ids) for prompt in work.prompts),
    )
    cached, ideal = (
        sum(prompt.cached for prompt in work.prompts),
        ideal_cached(work.prompts, work.warm_up, CPU_BLOCK_SIZE),
    )
    found: dict[str, Any] = {
        "adapters": count,
        "replicas": replicas,
        "asks": len(work.prompts),
        "tokens": tokens,
        "prompt_tokens": prompt_tokens,
        "debates_tokens_per_s": tokens / work.seconds,
        "hit_rate": cached / prompt_tokens,
        "ideal_hit_rate": ideal / prompt_tokens,
        "of_ideal": cached / ideal if ideal else 1.0,
    }
    if replicas == 1:
        found["raw_tokens_per_s"] = tokens / run_raw(work, folder)
        found["of_raw"] = found["debates_tokens_per_s"] / found["raw_tokens_per_s"]
        if count and options.stock:
            found["stock_tokens_per_s"] = tokens / run_raw(work, folder, stock=True)
    print(json.dumps(found), file=sys.stderr)
    return found


def spread(rows: Sequence[dict[str, Any]], key: str, digits: int) -> str:
    values = [item[key] for item in rows if key in item]
    if not values:
        return ""
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def table(rows: Sequence[dict[str, Any]]) -> Iterator[str]:
    yield "| adapters | replicas | debates, tokens/s | raw vLLM, tokens/s | of raw | hit rate | ideal | of ideal |"
    yield "|---|---|---|---|---|---|---|---|"
    for count, replicas in dict.fromkeys((item["adapters"], item["replicas"]) for item in rows):
        mine = [item for item in rows if (item["adapters"], item["replicas"]) == (count, replicas)]
        cells = [
            str(count), str(replicas), spread(mine, "debates_tokens_per_s", 0), spread(mine, "raw_tokens_per_s", 0),
            spread(mine, "of_raw", 2), spread(mine, "hit_rate", 2), spread(mine, "ideal_hit_rate", 2),
            spread(mine, "of_ideal", 2),
        ]  # fmt: skip
        yield f"| {' | '.join(cells)} |"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--debates", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--adapters", type=int, nargs="+", default=[0, 1, 2, 6])
    parser.add_argument("--replicas", type=int, default=2, help="also measure the hit rate of so many replicas")
    parser.add_argument("--stock", action="store_true", help="also measure vLLM's own adapter operations for CPUs")
    parser.add_argument("--limit", type=float, default=0.95)
    parser.add_argument("--json", type=Path, help="also write the figures there")
    parser.add_argument("--raw", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.raw:
        raw(options.raw)
        return 0
    from engine.record.folder import machine_description, versions

    rows = list(measure(options))
    print("\n".join(table(rows)))
    if options.json:
        told = {"machine": machine_description(), "versions": versions(), "debates": options.debates, "rows": rows}
        options.json.write_text(json.dumps(told, indent=2) + "\n")
    slow = [item for item in rows if item.get("of_raw", 1.0) < options.limit]
    cold = [item for item in rows if item["of_ideal"] < 0.9]
    return int(len(slow) * 2 > sum("of_raw" in item for item in rows) or len(cold) * 2 > len(rows))


if __name__ == "__main__":
    sys.exit(main())
