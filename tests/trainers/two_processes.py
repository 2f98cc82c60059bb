"""Trainings by two processes that share a model: what each of them runs, and how they are started."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import socket
from pathlib import Path
from typing import Any

import msgspec
from safetensors import SafetensorError

from protocols.errors import TrainerError
from tests.trainers.tuning.test_sft import ListSource
from trainers.selection.example import Example
from trainers.tuning.full import train_model
from trainers.tuning.sft import load_base
from trainers.tuning.sft_settings import SFTResult, SFTSettings

SIZE = 2


class Order(msgspec.Struct, frozen=True, kw_only=True):
    """A training: what it writes is called ``name``, and so are its checkpoints, ``<name>-<step>``."""

    name: str
    settings: SFTSettings
    resume_from: str = ""
    checkpoint_every: int = 0


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """What one process says of a training. ``num_kept``: numbers it keeps, of ``num_weights`` in all."""

    result: SFTResult | None = None
    error: str = ""
    num_kept: int = 0
    num_weights: int = 0


def train_together(base: Path, rows: list[Example], orders: list[Order], work: Path) -> list[dict[str, Outcome]]:
    """Carry out all orders, one after another. Returns: by process, what it says of each."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    context = multiprocessing.get_context("spawn")
    processes = [
        context.Process(target=_run, args=(rank, port, base, rows, orders, work), daemon=True) for rank in range(SIZE)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(timeout=500)
    codes = [process.exitcode for process in processes]
    for process in processes:
        process.kill()
    assert codes == [0] * SIZE
    return [msgspec.json.decode((work / f"said-{rank}").read_bytes(), type=dict[str, Outcome]) for rank in range(SIZE)]


def _run(rank: int, port: int, base: Path, rows: list[Example], orders: list[Order], work: Path) -> None:
    os.environ["CUDA_VISIBLE_DEVICES"] = ""  # two processes of NCCL cannot share a GPU, and gloo shards on CPUs alone
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": SIZE, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ |= {name: str(value) for name, value in names.items()}
    dist.init_process_group("gloo")
    said = {order.name: _carry_out(base, rows, order, work) for order in orders}
    (work / f"said-{rank}").write_bytes(msgspec.json.encode(said))
    dist.destroy_process_group()


def _carry_out(base: Path, rows: list[Example], order: Order, work: Path) -> Outcome:
    def keep(folder: Path, figures: dict[str, Any]) -> None:
        shutil.copytree(folder, work / f"{order.name}-{figures['step']}", dirs_exist_ok=True)

    model, tokenizer = load_base(str(base), order.settings.precision, method="full")
    num_weights = model.num_parameters()
    if order.name == "full-disk":
        model.save_pretrained = _full
    try:
        result = train_model(
            model,
            tokenizer,
            ListSource(rows),
            order.settings,
            agent="ada",
            output=work / order.name,
            resume_from=Path(order.resume_from) if order.resume_from else None,
            checkpoint_every=order.checkpoint_every,
            on_checkpoint=keep,
        )
    except TrainerError as err:
        return Outcome(error=str(err))
    kept: list[Any] = [weight.to_local() for weight in model.parameters()]
    return Outcome(result=result, num_kept=sum(part.numel() for part in kept), num_weights=num_weights)


def _full(folder: str, **how: Any) -> None:
    raise SafetensorError("Error while serializing: I/O error: No space left on device")  # as it says it
