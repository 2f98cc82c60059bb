"""What a preference tree costs packed, beside the same pairs one by one in TRL's own DPOTrainer.

    python benchmarks/tree_dpo.py [--model embedded] [--rounds 3] [--budget 1024] [--run FOLDER] [--json FILE]
    python benchmarks/tree_dpo.py --model large --precision bfloat16 --scale 8 --budget 8192       # on a GPU

Sets of trees: ``k x k`` has a prompt of 192 tokens with k right and k wrong replies of 64 under it, so k * k pairs (all
--scale times as long);
``reflect`` is made of debates, every right answer of a round over every wrong one: those of ``--run``, or some held now
with the scripted model. Chat template and tokens are those of the embedded model.

Both train the same LoRA adapter on the same pairs in the same steps: the pairs of one pack. TRL gets them ``--batch``
pairs at a time, its default layout: chosen and rejected sequences padded side by side. References are precomputed in
both. Timed are collation, forward, backward and optimiser, after a pass to warm up (flex_attention compiles); each
variant in a fresh process in the environment of a training worker, ``--rounds`` times in turns, on the GPU where there
is one. The losses of the steps must be the same.

Told are tokens of the pairs (each with a prompt of its own) a second, seconds a step, the ratio of the two beside the
ratio of the tokens, and the most memory that the process had while it trained: the GPU's where there is one.

Exit status 1: the speed-up is below 0.85 of the token ratio for a set, or the losses differ.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from array import array
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import accumulate
from pathlib import Path
from typing import Any, Literal

import msgspec

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from protocols.graph import Debate, decode_debate  # noqa: E402
from protocols.machine import Close, Opened, Record, Replied, Request  # noqa: E402
from protocols.message import Ask  # noqa: E402
from protocols.tree import preference_tree  # noqa: E402
from trainers.tuning.pack import Packing, TokenPair, pack_pairs  # noqa: E402

LIMIT, CLOSE = 0.85, {"float32": 1e-3, "bfloat16": 2e-2}
SHAPES: dict[str, dict[str, Any]] = {  # random Llamas
    "small": {"hidden_size": 256, "intermediate_size": 704, "num_hidden_layers": 6, "num_attention_heads": 4},
    "large": {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "num_attention_heads": 32},
}
PROMPT, REPLY, SETS = 192, 64, ((1, 8), (2, 3), (4, 1))  # tokens, tokens, (k, trees)
VOCAB = 8192  # of the random models; token ids above are folded into it, which keeps what is shared
VARIANTS = ("trl", "packed")
BETA, RATE = 0.1, 1e-4
FIRST_LOSS = math.log(2)  # the loss before the first step; what little is left of it later is not compared more closely
RECIPE: dict[str, Any] = {
    "name": "trees",
    "seed": 1,
    "tasks": {"source": "arithmetic", "level": "mixed10", "train": 2, "test": 1},
    "models": {"simulated": {"backend": "scripted", "skill": 0.5, "conformity": 0.2}},
    "agents": {name: {"model": "simulated"} for name in ("ada", "bo", "cy", "pupil")},
    "protocol": {"name": "reflect", "prompts": "reflect.math.en"},
    "cast": {"teacher": ["ada", "bo", "cy"], "student": ["pupil"]},
}


class Row(msgspec.Struct):
    """A ``TokenPair`` that travels between processes."""

    tree: str
    prompt: list[int]
    chosen: list[int]
    rejected: list[int]


class Work(msgspec.Struct):
    """What a variant is given. ``sets``: name -> pairs."""

    model: str
    precision: Literal["float32", "bfloat16"]
    budget: int
    batch: int
    sets: dict[str, list[Row]]


def on_gpu() -> bool:
    import torch

    return bool(torch.cuda.is_available())


def grown(replies: int, trees: int, scale: int) -> list[Row]:
    """Trees with as many right as wrong replies, random tokens."""
    draw = random.Random(replies)

    def tokens(count: int) -> list[int]:
        return [draw.randrange(VOCAB) for _ in range(count)]

    rows = []
    for tree in range(trees):
        prompt = tokens(PROMPT * scale)
        right, wrong = ([tokens(REPLY * scale) for _ in range(replies)] for _ in range(2))
        rows += [Row(str(tree), prompt, chosen, rejected) for chosen in right for rejected in wrong]
    return rows


async def held(plan: dict[str, Any]) -> list[Debate]:
    """A recipe's debates with its scripted model, in this process: machine and model alone, without Ray."""
    from actors.models.scripted import ScriptedBackend, ScriptedSettings
    from engine.config.named_protocol import find_protocol
    from engine.config.recipe_file import build_recipe
    from engine.data.tasks import load_split

    recipe = build_recipe(plan, where="benchmark")
    settings = recipe.models["simulated"].settings
    assert isinstance(settings, ScriptedSettings)  # as the recipe above says
    backend, debates = ScriptedBackend(settings), list[Debate]()
    cast = {role: tuple(player.name for player in players) for role, players in recipe.players.items()}
    for number, task in enumerate(load_split(recipe.tasks).train):
        debate = Debate(id=f"debate/{task.id}", task=task, protocol=recipe.protocol, seed=number, cast=cast)
        machine = find_protocol(recipe.protocol)(recipe.settings, recipe.players, recipe.prompts)
        commands = machine.receive(Opened(debate_id=debate.id, task=task, seed=number))
        waiting = list[Ask]()
        while not machine.closed:
            waiting += [command.ask for command in commands if isinstance(command, Request)]
            commands = machine.receive(Replied(await backend.generate(waiting.pop(0), None)))
            for command in commands:
                if isinstance(command, Record):
                    debate.add(command.utterance, command.edges)
                elif isinstance(command, Close):
                    debate.close(command.verdict)
        debates.append(debate)
    return debates


def recorded(run: Path) -> list[Debate]:
    """The debates of a run on disk."""
    from engine.record.folder import RunFolder
    from engine.record.journal import read_graphs

    return [decode_debate(graph) for file in RunFolder.open(run).journals("debate") for graph in read_graphs(file)]


def preferred(debates: Sequence[Debate]) -> list[Row]:
    """Every right answer of a round over every wrong one, as the tokens of the embedded model."""
    from transformers import AutoTokenizer

    from actors.local.embedded import embedded_model_path
    from trainers.selection.preference_row import Preference
    from trainers.tuning.tree_dpo import PairTokeniser

    tokenizer = AutoTokenizer.from_pretrained(embedded_model_path())
    tokenise, rows = PairTokeniser(tokenizer, vocab_size=len(tokenizer)), list[Row]()
    for debate, root in ((one, root) for one in debates for root in preference_tree(one)):
        for right, wrong in root.pairs:
            row = Preference(
                id=f"{debate.id}:{right.id}>{wrong.id}:same_round",
                agent="pupil",
                rule="same_round",
                debate_id=debate.id,
                node_ids=(right.id, wrong.id),
                prompt=root.prompt,
                chosen=right.reply.text,
                rejected=wrong.reply.text,
            )
            tokens = tokenise(row)
            ids = (tokens.prompt_ids, tokens.chosen_ids, tokens.rejected_ids)
            rows.append(Row(tokens.tree, *([token % VOCAB for token in part] for part in ids)))
    if not rows:
        raise SystemExit("no round of the debates has a right and a wrong answer; give another run")
    return rows


def load(work: Work, folder: Path) -> tuple[Any, Any, Path]:
    """Model, tokenizer, and the folder of an SFT adapter for it."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig

    from actors.local.embedded import embedded_model_path

    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(embedded_model_path())
    dtype = getattr(torch, work.precision)
    if work.model == "embedded":
        model: Any = AutoModelForCausalLM.from_pretrained(embedded_model_path(), dtype=dtype)
    else:
        config = LlamaConfig(vocab_size=VOCAB, **SHAPES[work.model])
        with torch.device("cuda" if on_gpu() else "cpu"):
            model = AutoModelForCausalLM.from_config(config, dtype=dtype)
        tokenizer.pad_token_id = 0  # the id must be one of the model's
    config_of: Any = LoraConfig
    adapter = config_of(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM")
    peft_model: Any = get_peft_model(model, adapter)
    peft_model.save_pretrained(str(folder / "sft"), save_embedding_layers=False)
    peft_model.unload()
    vars(model).pop("peft_config", None)
    return model, tokenizer, folder / "sft"


Take = Callable[[int], float]  # a step's forward and backward: its number -> its loss


@contextmanager
def packed(work: Work, packing: Packing, given: Any, folder: Path) -> Iterator[tuple[Any, Take]]:
    """Our trainer, a pack at a time."""
    import torch

    from trainers.tuning.pack_steps import SavedPlace
    from trainers.tuning.stream import START
    from trainers.tuning.tree_dpo_loop import Training, TreeDPOTrainer, collate, two_adapters
    from trainers.tuning.tree_dpo_settings import TreeDPOSettings

    model, tokenizer, adapter = given
    settings = TreeDPOSettings(beta=BETA, learning_rate=RATE, token_budget=work.budget, precision=work.precision)
    with two_adapters(model, settings, adapter) as peft_model:
        training = Training(peft_model, tokenizer, packing, settings, SavedPlace(cursor=START), 0, None)
        trainer = TreeDPOTrainer(training, "pupil", peft_model, tokenizer, settings, folder)
        trainer.precompute_references(packing.packs)

        def take(step: int) -> float:
            batch = collate(packing.packs[step], step)
            return float(trainer.training_step(peft_model, [batch], torch.tensor(float(len(batch["weights"])))))

        yield trainer, take


@contextmanager
def trl(
    work: Work, packing: Packing, given: Any, folder: Path, pairs: Sequence[TokenPair]
) -> Iterator[tuple[Any, Take]]:
    """TRL's trainer, ``work.batch`` pairs at a time until those of a pack are through."""
    from datasets import Dataset
    from peft import PeftModel
    from trl.trainer.dpo_config import DPOConfig
    from trl.trainer.dpo_trainer import DPOTrainer

    class Tokenised(DPOTrainer):
        def _prepare_dataset(self, dataset: Any, *args: Any) -> Any:
            return dataset

    model, tokenizer, adapter = given
    rows = [
        {"prompt_ids": [*pair.prompt_ids], "chosen_ids": [*pair.chosen_ids], "rejected_ids": [*pair.rejected_ids]}
        for pair in (pairs[item.index] for pack in packing.packs for item in pack.pairs)
    ]
    ends = list(accumulate((len(pack.pairs) for pack in packing.packs), initial=0))
    peft_model: Any = PeftModel.from_pretrained(model, str(adapter), is_trainable=True)
    config: Any = DPOConfig(
        output_dir=str(folder), beta=BETA, learning_rate=RATE, weight_decay=0.0,
        use_cpu=not on_gpu(), bf16=work.precision == "bfloat16",
        gradient_checkpointing=False, max_length=None, precompute_ref_log_probs=True, report_to="none",
        per_device_train_batch_size=work.batch,
    )  # fmt: skip
    trainer = Tokenised(
        model=peft_model, args=config, processing_class=tokenizer, train_dataset=Dataset.from_list(rows)
    )
    told = trainer.train_dataset.to_list()  # with what the reference said

    def take(step: int) -> float:
        mine, loss = told[ends[step] : ends[step + 1]], 0.0
        for at in range(0, len(mine), work.batch):
            part = mine[at : at + work.batch]
            trainer.current_gradient_accumulation_steps = len(mine) / len(part)  # so that pairs count alike
            loss += float(trainer.training_step(peft_model, trainer.data_collator(part)))
        return loss

    yield trainer, take
    peft_model.unload()
    for name in ("forward", "peft_config"):
        vars(model).pop(name, None)


def run(variant: str, work: Work, folder: Path) -> Iterator[dict[str, Any]]:
    """One pass over every set, after one to warm up."""
    given = load(work, folder)
    for name, rows in work.sets.items():
        pairs = [as_pair(row) for row in rows]
        packing = pack_pairs(pairs, token_budget=work.budget)
        making = (
            packed(work, packing, given, folder) if variant == "packed" else trl(work, packing, given, folder, pairs)
        )
        with making as (trainer, take):
            trainer.create_optimizer()
            losses, began = list[float](), 0.0
            for _ in range(2):
                forget_peak()
                began = time.perf_counter()
                for step in range(len(packing.packs)):
                    losses.append(take(step))
                    trainer.optimizer.step()
                    trainer.optimizer.zero_grad()
            peak = peak_mb()  # waits for the GPU
            seconds = time.perf_counter() - began
        yield {"set": name, "variant": variant, "seconds": seconds, "peak_mb": peak, "losses": losses}


def forget_peak() -> None:
    import torch

    if on_gpu():
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
    Path("/proc/self/clear_refs").write_text("5")


def peak_mb() -> float:
    import torch

    if on_gpu():
        torch.cuda.synchronize()
        return float(torch.cuda.max_memory_allocated()) / 2**20
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1024


def as_pair(row: Row) -> TokenPair:
    return TokenPair(row.tree, array("i", row.prompt), array("i", row.chosen), array("i", row.rejected))


def run_apart(variant: str, file: Path) -> list[dict[str, Any]]:
    from trainers.jobs.lanes import worker_env

    env = os.environ | worker_env(os.cpu_count() or 1, use_gpu=on_gpu())
    command = [sys.executable, __file__, "--variant", variant, str(file)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=3600, check=False)
    if done.returncode:
        raise SystemExit(f"{variant} failed:\n{done.stderr[-3000:]}")
    found: list[dict[str, Any]] = json.loads(done.stdout.splitlines()[-1])
    return found


def figures(work: Work, name: str, runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """What all rounds of both variants say of a set."""
    packing = pack_pairs([as_pair(row) for row in work.sets[name]], token_budget=work.budget)
    of = {variant: [item for item in runs if (item["set"], item["variant"]) == (name, variant)] for variant in VARIANTS}
    expanded = sum(pack.num_expanded for pack in packing.packs)
    told: dict[str, Any] = {
        "set": name,
        "pairs": sum(len(pack.pairs) for pack in packing.packs),
        "refused": len(packing.refused),
        "steps": len(packing.packs),
        "expanded_tokens": expanded,
        "token_ratio": packing.token_ratio,
        "speed_up": [one["seconds"] / other["seconds"] for one, other in zip(of["trl"], of["packed"], strict=True)],
        "loss_difference": max(
            abs(left - right) / max(abs(left), FIRST_LOSS)
            for one, other in zip(of["trl"], of["packed"], strict=True)
            for left, right in zip(one["losses"], other["losses"], strict=True)
        ),
    }
    for variant, mine in of.items():
        told[f"{variant}_tokens_per_s"] = [expanded / item["seconds"] for item in mine]
        told[f"{variant}_s_a_step"] = [item["seconds"] / len(packing.packs) for item in mine]
        told[f"{variant}_peak_mb"] = [item["peak_mb"] for item in mine]
    told["of_ratio"] = statistics.median(told["speed_up"]) / told["token_ratio"]
    return told


def spread(values: Sequence[float], digits: int) -> str:
    return f"{statistics.median(values):,.{digits}f} ({min(values):,.{digits}f} to {max(values):,.{digits}f})"


def table(rows: Sequence[dict[str, Any]]) -> Iterator[str]:
    yield (
        "| trees | pairs | token ratio | speed-up | of the ratio | tokens/s, TRL | tokens/s, packed | s a step, TRL "
        "| s a step, packed | peak MiB, TRL | peak MiB, packed |"
    )
    yield f"|{'---|' * 11}"
    for row in rows:
        cells = [
            row["set"], str(row["pairs"]), f"{row['token_ratio']:.2f}", spread(row["speed_up"], 2),
            f"{row['of_ratio']:.2f}", spread(row["trl_tokens_per_s"], 0), spread(row["packed_tokens_per_s"], 0),
            spread(row["trl_s_a_step"], 2), spread(row["packed_s_a_step"], 2),
            f"{max(row['trl_peak_mb']):,.0f}", f"{max(row['packed_peak_mb']):,.0f}",
        ]  # fmt: skip
        yield f"| {' | '.join(cells)} |"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--model", choices=(*SHAPES, "embedded"), default="small")
    parser.add_argument("--precision", choices=tuple(CLOSE), default="float32")
    parser.add_argument("--scale", type=int, default=1, help="how many times as long prompts and replies of k x k are")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--budget", type=int, default=1024, help="tokens of a pack")
    parser.add_argument("--batch", type=int, default=4, help="pairs that TRL gets at a time")
    parser.add_argument("--run", type=Path, help="folder of a run of reflect; default: debates held now")
    parser.add_argument("--json", type=Path, help="also write the figures there")
    parser.add_argument("--variant", nargs=2, metavar=("NAME", "WORK"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="moot-bench-") as temporary:
        folder = Path(temporary)
        if options.variant:
            work = msgspec.json.decode(Path(options.variant[1]).read_bytes(), type=Work)
            print(json.dumps(list(run(options.variant[0], work, folder))))
            return 0
        sets = {f"{replies} x {replies}": grown(replies, trees, options.scale) for replies, trees in SETS}
        sets["reflect"] = preferred(recorded(options.run) if options.run else asyncio.run(held(RECIPE)))
        work = Work(options.model, options.precision, options.budget, options.batch, sets)
        (folder / "work.json").write_bytes(msgspec.json.encode(work))
        runs = list[dict[str, Any]]()
        for number in range(options.rounds):
            for variant in VARIANTS if number % 2 else VARIANTS[::-1]:
                runs += run_apart(variant, folder / "work.json")
    rows = [figures(work, name, runs) for name in sets]
    print("\n".join(table(rows)))
    if options.json:
        from engine.record.folder import machine_description, versions

        told = {"machine": machine_description(), "versions": versions(), "model": options.model, "rows": rows}
        told |= {"precision": options.precision, "scale": options.scale, "budget": options.budget}
        options.json.write_text(json.dumps(told, indent=2) + "\n")
    return int(any(row["of_ratio"] < LIMIT or row["loss_difference"] > CLOSE[options.precision] for row in rows))


if __name__ == "__main__":
    sys.exit(main())
