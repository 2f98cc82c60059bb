"""Steps over packs that are all there before training begins: their order, and the place among them in a checkpoint."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import msgspec

from protocols.errors import TrainerError
from trainers.tuning.sft_settings import CURSOR_NAME, SavedCursor
from trainers.tuning.stream import START, Cursor


class SavedPlace(SavedCursor, frozen=True, kw_only=True):
    """What a checkpoint keeps beside the trainer's own state: its cursor counts packs, its rows are pairs."""

    data_hash: str = ""


class PackStep(msgspec.Struct, frozen=True):
    """The packs of one optimiser step by their index, and where the training stands after it."""

    packs: tuple[int, ...]
    cursor: Cursor
    progress: float  # 0..1 of the whole training


class Paced(Protocol):
    """Settings of a training whose rows are all there before its first step."""

    @property
    def epochs(self) -> int: ...
    @property
    def gradient_accumulation(self) -> int: ...
    @property
    def seed(self) -> int: ...


def pack_steps(num_packs: int, settings: Paced, start: Cursor = START) -> Iterator[PackStep]:
    """All steps from a cursor on. Every epoch shuffles the packs with a seed of its own; no step spans two epochs."""
    for epoch in range(start.epoch, settings.epochs):
        order = list(range(num_packs))
        random.Random(f"{settings.seed}/{epoch}").shuffle(order)
        for position in range(start.position if epoch == start.epoch else 0, num_packs, settings.gradient_accumulation):
            end = min(position + settings.gradient_accumulation, num_packs)
            progress = (epoch + end / num_packs) / settings.epochs
            yield PackStep(tuple(order[position:end]), Cursor(epoch, end), progress)


def read_place(checkpoint: Path | None, data_hash: str, agent: str) -> SavedPlace:
    """Where a checkpoint stands; the beginning without one. Raises: TrainerError: it is of other rows."""
    if checkpoint is None:
        return SavedPlace(cursor=START, data_hash=data_hash)
    saved = msgspec.json.decode((checkpoint / CURSOR_NAME).read_bytes(), type=SavedPlace)
    if saved.data_hash != data_hash:
        raise TrainerError(
            f"the checkpoint in {checkpoint} is of other rows than those that {agent!r} now has; "
            "give it the same rows, or start anew without it"
        )
    return saved
