"""What can be set about a model of transformers. Imports nothing heavy: a driver without torch reads settings too."""

from __future__ import annotations

from typing import Literal

import msgspec

from actors.models.backend import EMBEDDED
from protocols.bounds import MAX_CONCURRENCY, check_bounds


class TransformersSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One model. ``auto`` leaves a choice to the machine."""

    model: str = EMBEDDED  # or a folder, or a name on the Hugging Face hub
    served_name: str = ""  # the name replies carry; "" is the model's own
    images: bool | None = None  # whether the model sees; None is as the config.json in its folder says
    device: str = "auto"  # cuda where the model is given one, else cpu; or any of torch's names
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"  # float32 on CPU, the model's own elsewhere
    max_model_len: int | None = None  # tokens of prompt and reply together; None is the model's own limit
    max_batch: int = 16  # asks in one forward pass
    max_wait_ms: float = 5.0  # how long an ask waits for others when the model is idle
    max_adapters: int = 0  # loaded at once; 0 serves the base model only
    threads: int | None = None  # torch's on CPU; None is one per core
    keep_logprobs: bool = True

    def __post_init__(self) -> None:
        for name in ("max_model_len", "threads"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name}={value} must be at least 1")
        check_bounds(self, max_batch=(1, MAX_CONCURRENCY), max_wait_ms=(0, 60_000))
        if self.max_adapters < 0:
            raise ValueError(f"max_adapters={self.max_adapters} must not be negative; 0 serves the base model only")


def required_env(settings: TransformersSettings) -> dict[str, str]:
    """Environment variables that the model's process must start with: its threads sleep while they wait, as other
    processes share the cores."""
    return {"OMP_WAIT_POLICY": "PASSIVE", "TOKENIZERS_PARALLELISM": "false"}
