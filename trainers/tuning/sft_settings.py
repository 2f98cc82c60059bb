"""How supervised finetuning goes, and what came of it: settings, results, and what they must be. Cheap to import."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar, Literal

import msgspec

from protocols.bounds import check_above_0
from protocols.errors import ConfigError
from trainers.tuning.batches import Batching
from trainers.tuning.stream import Cursor

Method = Literal["lora", "qlora", "full"]
Schedule = Literal["constant", "cosine", "linear"]
CURSOR_NAME = "cursor.json"  # in a checkpoint: where the stream stood
RESULT_NAME = "training.json"  # beside what was trained: its SFTResult
MIN_WARMUP = 0.1  # of the full rate: the first step is taken before any progress, and at 0 it would teach nothing


def rate_at(progress: float, schedule: Schedule, warmup: float) -> float:
    """The learning rate as a share of its peak; ``progress`` is the share of the training that is done."""
    if progress < warmup:
        return max(progress / warmup, MIN_WARMUP)
    if schedule == "constant":
        return 1.0
    left = (1.0 - progress) / (1.0 - warmup)
    return left if schedule == "linear" else 0.5 * (1.0 - math.cos(math.pi * left))


class SFTSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How an adapter, or a whole model, is trained.

    ``warmup`` is a share of the whole training, ``learning_rate`` the peak. A step has ``batch_size`` rows
    ``gradient_accumulation`` times, and its loss is the mean over all their completion tokens. ``batching`` is how they
    go through the model, which changes the time and no result: ``batch_size`` at a time, or ``token_budget`` tokens.
    ``precision`` is that of the frozen base; its adapter is float32. With ``qlora`` the linear layers of
    the base are kept in 4 bits and compute in ``precision``, and the adapter is bfloat16. With ``full`` every weight
    is trained: kept in float32, computed with and written in ``precision``; ``rank``, ``alpha``, ``dropout`` and
    ``target_modules`` are LoRA's.
    """

    SECTION: ClassVar[str] = "sft"  # of a recipe, where they stand

    method: Method = "lora"
    rank: int = 16
    alpha: float = 32.0
    dropout: float = 0.0
    target_modules: str | tuple[str, ...] = "all-linear"
    learning_rate: float = 1e-4
    schedule: Schedule = "cosine"
    warmup: float = 0.03
    epochs: int = 2
    batch_size: int = 4
    gradient_accumulation: int = 1
    batching: Batching = "padded"
    token_budget: int = 2048  # grouped: of a pass with its padding; packed: of a pass, which has none
    gradient_checkpointing: bool = False  # computes what lies between layers again instead of keeping it
    max_length: int = 2048  # tokens of prompt and completion; longer rows are refused
    max_grad_norm: float = 1.0
    seed: int = 0
    precision: Literal["float32", "bfloat16"] = "float32"

    def __post_init__(self) -> None:
        for name in ("rank", "epochs", "batch_size", "gradient_accumulation", "token_budget", "max_length"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1")
        check_above_0(self, "alpha", "learning_rate", "max_grad_norm")
        for name in ("dropout", "warmup"):
            if not 0.0 <= getattr(self, name) < 1.0:
                raise ValueError(f"{name}={getattr(self, name):g} must be at least 0 and below 1")
        if not self.target_modules:
            raise ValueError("target_modules is empty; name layers, or use 'all-linear'")
        if isinstance(self.target_modules, str) and self.target_modules != "all-linear":
            raise ValueError(f"target_modules={self.target_modules!r} must be 'all-linear' or a list of layer names")
        if self.method == "qlora" and self.precision != "bfloat16":
            raise ValueError(
                f"precision={self.precision} is not what method=qlora computes in; set precision: bfloat16"
            )

    def rate_at(self, progress: float) -> float:
        """The learning rate as a share of the peak, ``progress`` being the share of the training that is done."""
        return rate_at(progress, self.schedule, self.warmup)


class SFTResult(msgspec.Struct, frozen=True, kw_only=True):
    """What one training did. Counts of rows and tokens are over all epochs; times are unix times in seconds."""

    steps: int
    rows: int  # different rows trained on
    refused: int  # rows longer than max_length
    rows_seen: int  # rows handed to the model: ``rows`` times epochs
    completion_tokens: int  # that carried loss
    losses: tuple[float, ...]  # one a step, nats a completion token
    learning_rates: tuple[float, ...]  # one a step
    step_times: tuple[float, ...] = ()  # one a step, when it was logged
    step_tokens: tuple[int, ...] = ()  # one a step, completion tokens so far
    started_at: float
    first_step_at: float  # when the first optimiser step was over
    finished_at: float
    data_hash: str

    @property
    def figures(self) -> dict[str, float]:
        """What the registry keeps."""
        return {"steps": self.steps, "final_loss": self.losses[-1]}


class SavedCursor(msgspec.Struct, frozen=True, kw_only=True):
    """What a checkpoint keeps beside the trainer's own state."""

    cursor: Cursor
    rows_seen: int = 0
    completion_tokens: int = 0
    started_at: float = 0.0
    first_step_at: float = 0.0


OnCheckpoint = Callable[[Path, dict[str, float]], None]
"""Called with a checkpoint's folder, which is gone when the call is over, and the figures so far."""


def check_gpus(method: Method, gpus: int) -> None:
    """Raises: ConfigError: a base in 4 bits is to be trained without a GPU, or an adapter on several."""
    if method == "qlora" and not gpus:
        raise ConfigError(
            "sft.method=qlora trains on a GPU, and train.gpus_per_lane=0; set train.gpus_per_lane: 1, "
            "or sft.method: lora"
        )
    if method != "full" and gpus > 1:
        raise ConfigError(
            f"train.gpus_per_lane={gpus}: an adapter is trained on one GPU, and sft.method: full alone is spread over "
            "several; set train.gpus_per_lane: 1 and raise train.num_lanes to train several agents side by side"
        )


def check_bitsandbytes() -> None:
    """Raises: ConfigError: the library that keeps a base in 4 bits is not installed."""
    if importlib.util.find_spec("bitsandbytes") is None:
        raise ConfigError(
            "sft.method=qlora needs bitsandbytes, which is not installed; run pip install 'moot[qlora]', "
            "or set sft.method: lora"
        )
