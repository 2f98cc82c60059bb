"""Supervised finetuning of one agent from the rows that stream in: a LoRA adapter, or a whole model.

Importing this module is cheap; torch, TRL and PEFT load with the first training.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from protocols.errors import TrainerError
from trainers.tuning.sft_settings import (
    CURSOR_NAME,
    Method,
    OnCheckpoint,
    SavedCursor,
    SFTResult,
    SFTSettings,
    check_bitsandbytes,
)
from trainers.tuning.stream import Cursor, RowSource, RowStream, check_trainable
from trainers.tuning.tokenise import RowTokeniser


def load_base(base_model: str, precision: str, *, method: Method = "lora") -> tuple[Any, Any]:
    """The base and its tokenizer, from a folder or a name in the local cache.

    Args:
        method: ``qlora`` for linear layers in 4 bits, on the GPU if there is one; ``full`` for weights in float32,
            whatever ``precision`` is.
    Raises: TrainerError: it cannot be loaded. ConfigError: what ``method`` needs is not installed.
    """
    if method == "qlora":
        check_bitsandbytes()
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    dtype = torch.float32 if method == "full" else getattr(torch, precision)
    try:
        tokenizer = AutoTokenizer.from_pretrained(base_model)
        quantised = {"quantization_config": nf4(dtype)} if method == "qlora" else {}
        model = AutoModelForCausalLM.from_pretrained(base_model, dtype=dtype, **quantised)
    except (OSError, ValueError) as err:
        reason = (str(err).strip().splitlines() or [repr(err)])[0]
        raise TrainerError(
            f"train: base model {base_model!r} cannot be loaded: {reason}; give a folder in Hugging Face layout"
        ) from err
    return model, tokenizer


def nf4(compute_dtype: Any) -> Any:
    """How transformers loads a base for QLoRA: NF4, its scales quantised once more.

    Source: Dettmers et al. 2023, arXiv:2305.14314, sec. 3.
    """
    from transformers import BitsAndBytesConfig

    config: Any = BitsAndBytesConfig  # untyped
    return config(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=compute_dtype,
    )


def check_unwritten(output: Path) -> None:
    """Raises: TrainerError: the folder that a training is to write is there already."""
    if output.exists():
        raise TrainerError(f"{output} exists already; an adapter is written once: use a new name or remove the folder")


def check_recomputable(model: Any, settings: SFTSettings) -> None:
    """Raises: TrainerError: gradient checkpointing is asked of a model that has none."""
    if settings.gradient_checkpointing and not model.supports_gradient_checkpointing:
        raise TrainerError(
            f"the base {model.name_or_path!r} has no layers that can be computed again; "
            "set sft.gradient_checkpointing: false"
        )


def train_adapter(
    model: Any,
    tokenizer: Any,
    source: RowSource,
    settings: SFTSettings,
    *,
    agent: str,
    output: Path,
    init_from: Path | None = None,
    resume_from: Path | None = None,
    checkpoint_every: int = 0,
    on_checkpoint: OnCheckpoint | None = None,
) -> SFTResult:
    """Train one adapter and write it to ``output`` in PEFT layout, whole or not at all.

    The base is given back as it came: same weights, no trace of the adapter. Prompts carry no loss, but for earlier
    replies that a row says are learned. The rate follows how far the stream is, since nobody knows
    beforehand how many rows the debates will give.

    Args:
        model: a causal language model of transformers, in ``settings.precision``.
        source: the agent's rows; the first epoch waits for them as long as the feed is not done.
        output: a folder that does not exist yet.
        init_from: an adapter folder to start from; fresh weights without one.
        resume_from: a checkpoint folder as ``on_checkpoint`` was given it.
        checkpoint_every: steps between checkpoints; 0 for none.
    Raises: TrainerError: nothing to train on, a row or a parent that does not fit, or a loss that is not a number.
    """
    from trainers.tuning.sft_loop import Training, adapted
    from trainers.tuning.stepped import save_adapter

    check_unwritten(output)
    check_recomputable(model, settings)
    saved = read_cursor(resume_from)
    stream = row_stream(model, tokenizer, source, settings, saved)
    with adapted(model, settings, init_from) as peft_model:
        training = Training(peft_model, tokenizer, stream, settings, saved, checkpoint_every, on_checkpoint)
        result = training.run(agent, resume_from)
        check_trainable(stream, agent=agent, max_length=settings.max_length)
        save_adapter(peft_model, output, result, agent)
    return result


def row_stream(model: Any, tokenizer: Any, source: RowSource, settings: SFTSettings, saved: SavedCursor) -> RowStream:
    """The rows of a training, from where it stands."""
    return RowStream(
        source,
        RowTokeniser(tokenizer, vocab_size=model.get_input_embeddings().num_embeddings),
        epochs=settings.epochs,
        rows_per_step=settings.batch_size * settings.gradient_accumulation,
        max_length=settings.max_length,
        seed=settings.seed,
        start=saved.cursor,
    )


def read_cursor(checkpoint: Path | None) -> SavedCursor:
    """Where a checkpoint stands; the beginning without one."""
    if checkpoint is None:
        return SavedCursor(cursor=Cursor())
    return msgspec.json.decode((checkpoint / CURSOR_NAME).read_bytes(), type=SavedCursor)
