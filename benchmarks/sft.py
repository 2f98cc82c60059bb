"""What supervised finetuning costs through moot, beside the same rows in TRL's own SFTTrainer.

    python benchmarks/sft.py [--model small|embedded] [--rounds 3] [--steps 12] [--batch 8] [--threads 1] [--json FILE]
    python benchmarks/sft.py --model large --precision bfloat16 --steps 8 --batch 24 --budget 8192          # on a GPU

The rows are what a selection takes from debates of three seats and three rounds, held here with the scripted model:
openings, and last replies under the whole chat, so their lengths differ as they do in a run; before each reply stand up
to 20 sums, since that model says little. ``trl`` is given them as token ids in a data set. With moot they go through a
feed on disk to a Ray Train worker, which makes tokens of them: ``padded`` in the batches that TRL has, ``packed`` end
to end without padding.

All train the same LoRA adapter on the same rows in the same steps; each in a fresh process in the environment of a
training worker, ``--rounds`` times in turns, on the GPU where there is one. The losses of the steps must be the same.
Timed are the steps behind the first. Tokens a second are those of prompts and completions; padding counts for nothing.

Exit status 1: moot makes less than 0.95 of TRL's tokens a second, padded or packed, or the losses differ.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import msgspec

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.tree_dpo import CLOSE, SHAPES, held, on_gpu, spread  # noqa: E402
from trainers.selection.example import Example  # noqa: E402
from trainers.tuning.batches import deal  # noqa: E402

LIMIT = 0.95
VARIANTS = ("trl", "padded", "packed")
VOCAB = 4096  # of the small model
RATE, RANK, ALPHA = 1e-4, 16, 32
SELECTION: dict[str, Any] = {"rules": {"generator": ["generator", "critic"]}}
RECIPE: dict[str, Any] = {
    "name": "rows",
    "seed": 1,
    "tasks": {"source": "arithmetic", "level": "mixed10", "train": 60, "test": 1},
    "models": {"simulated": {"backend": "scripted", "skill": 0.6, "conformity": 0.4}},
    "agents": {"ada": {"model": "simulated"}},
    "protocol": {"name": "society", "rounds": 3, "memory": "chat", "prompts": "society.math.en"},
    "cast": {"generator": ["ada", "ada", "ada"]},
}


class Work(msgspec.Struct):
    """What a variant is given: a model folder, rows of a step, the rows in feed order."""

    model: str
    precision: Literal["float32", "bfloat16"]
    batch: int
    budget: int
    threads: int
    rows: list[Example]


def selected(count: int) -> list[Example]:
    """So many rows of the recipe's debates."""
    from trainers.selection.select import Selection, select

    selection = msgspec.convert(SELECTION, Selection)
    rows = [row for debate in asyncio.run(held(RECIPE)) for row in select(selection, debate).get("ada", [])]
    if len(rows) < count:
        raise SystemExit(f"the debates give {len(rows)} rows, and {count} are asked for; lower --steps or --batch")
    draw = random.Random(1)
    return [msgspec.structs.replace(row, completion=working(draw) + row.completion) for row in rows[:count]]


def working(draw: random.Random) -> str:
    pairs = [(draw.randrange(100), draw.randrange(100)) for _ in range(draw.randrange(20))]
    return "".join(f"{one} + {other} = {one + other}. " for one, other in pairs)


def random_model(shape: str, folder: Path, rows: Sequence[Example]) -> Path:
    """A random Llama with a vocabulary made of the rows."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, PreTrainedTokenizerFast

    from actors.local.embedded import embedded_model_path

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    marks = ["<|im_start|>", "<|im_end|>"]
    learn = trainers.BpeTrainer(vocab_size=VOCAB, special_tokens=marks, initial_alphabet=alphabet)
    texts = [message.text for row in rows for message in row.prompt] + [row.completion for row in rows]
    tokenizer.train_from_iterator(texts, learn)
    make_fast: Any = PreTrainedTokenizerFast  # untyped
    fast = make_fast(tokenizer_object=tokenizer, eos_token=marks[1], pad_token=marks[1])
    fast.chat_template = AutoTokenizer.from_pretrained(embedded_model_path()).chat_template
    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=VOCAB, **SHAPES[shape])
    with torch.device("cuda" if on_gpu() else "cpu"):
        AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(folder)
    fast.save_pretrained(folder)
    return folder


def tokenised(work: Work) -> list[dict[str, list[int]]]:
    """The rows as TRL takes them."""
    from transformers import AutoConfig, AutoTokenizer

    from trainers.tuning.tokenise import RowTokeniser

    tokenizer = AutoTokenizer.from_pretrained(work.model)
    tokenise = RowTokeniser(tokenizer, vocab_size=AutoConfig.from_pretrained(work.model).vocab_size)
    return [{"input_ids": row.input_ids, "labels": row.labels} for row in map(tokenise, work.rows)]


def trl(work: Work, folder: Path) -> dict[str, list[float]]:
    """TRL's trainer as its documents have it, but for the order of rows, which it would shuffle."""
    import torch
    from datasets import Dataset
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback, set_seed
    from trl.trainer.sft_config import SFTConfig
    from trl.trainer.sft_trainer import SFTTrainer

    times, losses = list[float](), list[float]()

    class Clock(TrainerCallback):
        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
            if "loss" in logs:
                times.append(time.time())
                losses.append(logs["loss"])

    model: Any = AutoModelForCausalLM.from_pretrained(work.model, dtype=getattr(torch, work.precision))
    set_seed(0)
    lora: Any = LoraConfig
    peft_model = get_peft_model(
        model, lora(r=RANK, lora_alpha=ALPHA, target_modules="all-linear", task_type="CAUSAL_LM")
    )
    config = SFTConfig(
        output_dir=str(folder), num_train_epochs=1, per_device_train_batch_size=work.batch, learning_rate=RATE,
        lr_scheduler_type="constant", weight_decay=0.0, seed=0, use_cpu=not on_gpu(), bf16=work.precision == "bfloat16",
        gradient_checkpointing=False,
        max_length=None, train_sampling_strategy="sequential", logging_steps=1, save_strategy="no", report_to="none",
        disable_tqdm=True, dataset_kwargs={"skip_prepare_dataset": True},
    )  # fmt: skip
    trainer: Any = SFTTrainer(
        model=peft_model,
        args=config,
        processing_class=AutoTokenizer.from_pretrained(work.model),
        train_dataset=Dataset.from_list(tokenised(work)),
        callbacks=[Clock()],
    )
    trainer.train()
    return {"times": times, "losses": losses}


def moot(work: Work, batching: Any, folder: Path) -> dict[str, list[float]]:
    """What ``moot train`` does with the same rows."""
    from engine.debates.cluster import join_ray
    from trainers.jobs.job import TrainingJob
    from trainers.jobs.lanes import LanePlace, fit_lanes
    from trainers.record.feed import Addition, make_feed_actor
    from trainers.selection.mix import Mix
    from trainers.tuning.sft_settings import SFTResult, SFTSettings

    join_ray()  # before anything imports Ray
    import ray

    feed = make_feed_actor(folder / "feed", mix=Mix(how="all"))  # in the order that TRL has
    debates: dict[str, list[Example]] = {}
    for row in work.rows:
        debates.setdefault(row.debate_id, []).append(row)
    additions = [
        Addition(debate_id=debate, examples={"ada": rows}, progress=number / len(debates))
        for number, (debate, rows) in enumerate(debates.items(), 1)
    ]
    ray.get(feed.add_many.remote(additions))
    ray.get(feed.finish.remote())
    settings = SFTSettings(
        rank=RANK, alpha=ALPHA, learning_rate=RATE, schedule="constant", warmup=0.0, epochs=1, batch_size=work.batch,
        batching=batching, token_budget=work.budget, seed=0, precision=work.precision,
    )  # fmt: skip
    job = TrainingJob(agent="ada", name="ada@bench-v1", output=str(folder / "ada"))
    (trained,) = fit_lanes(
        [job], settings=settings, base_model=work.model, feed=feed, storage_path=folder / "storage", name="bench",
        place=LanePlace(cpus=work.threads, use_gpu=on_gpu()),
    )  # fmt: skip
    ray.shutdown()
    assert isinstance(trained.result, SFTResult)
    return {"times": list(trained.result.step_times), "losses": list(trained.result.losses)}


def run_apart(variant: str, file: Path, threads: int) -> dict[str, Any]:
    from trainers.jobs.lanes import worker_env

    env = os.environ | (worker_env(threads, use_gpu=on_gpu()) if variant == "trl" else {})
    command = [sys.executable, __file__, "--variant", variant, str(file)]
    began = time.time()
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=3600, check=False)
    if done.returncode:
        raise SystemExit(f"{variant} failed:\n{done.stderr[-3000:]}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found | {"variant": variant, "first_step_s": found["times"][0] - began}


def figures(
    variant: str, lengths: Sequence[int], batch: int, budget: int, runs: Sequence[dict[str, Any]]
) -> dict[str, Any]:
    """What all rounds say of a variant, beside TRL's run of the same round."""
    mine, plain = ([run for run in runs if run["variant"] == name] for name in (variant, "trl"))
    tokens = sum(lengths[batch:])  # behind the first step
    speeds = [[tokens / (run["times"][-1] - run["times"][0]) for run in found] for found in (mine, plain)]
    ratios = [one / other for one, other in zip(*speeds, strict=True)]
    pairs = [(one["losses"], other["losses"]) for one, other in zip(mine, plain, strict=True)]
    return {
        "variant": variant,
        "steps": len(mine[0]["times"]),
        "tokens_per_s": speeds[0],
        "of_trl": ratios,
        "first_step_s": [run["first_step_s"] for run in mine],
        "filled": filled(variant, lengths, batch, budget),
        "loss_difference": max(
            abs(left - right) / right for ours, theirs in pairs for left, right in zip(ours, theirs, strict=True)
        ),
    }


def filled(variant: str, lengths: Sequence[int], batch: int, budget: int) -> float:
    """The share of what goes through the model that is no padding."""
    if variant == "packed":
        return 1.0
    steps = [lengths[at : at + batch] for at in range(0, len(lengths), batch)]
    passes = [
        [step[index] for index in indices]
        for step in steps
        for indices in deal(step, "padded", batch_size=batch, token_budget=budget)
    ]
    return sum(lengths) / sum(len(rows) * max(rows) for rows in passes)


def table(rows: Sequence[dict[str, Any]]) -> Iterator[str]:
    yield "| | tokens/s | of TRL's | no padding | s to the first step |"
    yield f"|{'---|' * 5}"
    for row in rows:
        cells = [
            row["variant"] if row["variant"] == "trl" else f"moot, {row['variant']}", spread(row["tokens_per_s"], 0),
            spread(row["of_trl"], 2), f"{row['filled']:.2f}", spread(row["first_step_s"], 0),
        ]  # fmt: skip
        yield f"| {' | '.join(cells)} |"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--model", choices=(*SHAPES, "embedded"), default="small")
    parser.add_argument("--precision", choices=tuple(CLOSE), default="float32")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--batch", type=int, default=8, help="rows of a step")
    parser.add_argument("--budget", type=int, default=2048, help="tokens that go through the model at once, packed")
    parser.add_argument("--threads", type=int, default=1, help="of the process that trains, and CPUs of its worker")
    parser.add_argument("--json", type=Path, help="also write the figures there")
    parser.add_argument("--variant", nargs=2, metavar=("NAME", "WORK"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="moot-bench-") as temporary:
        folder = Path(temporary)
        if options.variant:
            variant, file = options.variant
            work = msgspec.json.decode(Path(file).read_bytes(), type=Work)
            print(json.dumps(trl(work, folder) if variant == "trl" else moot(work, variant, folder)))
            return 0
        from actors.local.embedded import embedded_model_path

        examples = selected(options.steps * options.batch)
        model = (
            embedded_model_path()
            if options.model == "embedded"
            else random_model(options.model, folder / "model", examples)
        )
        work = Work(str(model), options.precision, options.batch, options.budget, options.threads, examples)
        (folder / "work.json").write_bytes(msgspec.json.encode(work))
        lengths = [len(row["input_ids"]) for row in tokenised(work)]
        runs = list[dict[str, Any]]()
        for number in range(options.rounds):
            for variant in VARIANTS if number % 2 else VARIANTS[::-1]:
                runs.append(run_apart(variant, folder / "work.json", options.threads))
    rows = [figures(variant, lengths, options.batch, options.budget, runs) for variant in VARIANTS]
    print(f"{len(lengths)} rows of {min(lengths)} to {max(lengths)} tokens, {sum(lengths)} in all")
    print("\n".join(table(rows)))
    if options.json:
        from engine.record.folder import machine_description, versions

        told = {"machine": machine_description(), "versions": versions(), "model": options.model, "rows": rows}
        options.json.write_text(json.dumps(told, indent=2) + "\n")
    return int(
        any(
            statistics.median(row["of_trl"]) < LIMIT or row["loss_difference"] > CLOSE[options.precision]
            for row in rows
        )
    )


if __name__ == "__main__":
    sys.exit(main())
