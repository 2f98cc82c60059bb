"""Supervised finetuning of all weights: what comes out is a model by itself, not an adapter of its base.

Importing this module is cheap; torch and TRL load with the first training.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from trainers.tuning.sft import check_recomputable, check_unwritten, read_cursor, row_stream
from trainers.tuning.sft_settings import OnCheckpoint, SFTResult, SFTSettings
from trainers.tuning.stream import RowSource, check_trainable


def train_model(
    model: Any,
    tokenizer: Any,
    source: RowSource,
    settings: SFTSettings,
    *,
    agent: str,
    output: Path,
    resume_from: Path | None = None,
    checkpoint_every: int = 0,
    on_checkpoint: OnCheckpoint | None = None,
) -> SFTResult:
    """Train every weight of a model and write it to ``output`` in Hugging Face layout, whole or not at all.

    Rows, steps and rate are those of ``train_adapter``. Where torch.distributed joins several processes, each of them
    calls with the same arguments: they share weights, gradients and the optimiser's moments (FSDP2), deal each step's
    rows out among themselves, and come to what one process comes to. The model is used up: it is not as it came.

    Args:
        model: as ``load_base`` gives it for ``method="full"``: in float32.
        output: a folder that does not exist yet, which the first process writes.
        resume_from: a checkpoint folder with what ``on_checkpoint`` was given in every process; of another number of
            processes, too.
        checkpoint_every: steps between checkpoints; 0 for none.
        on_checkpoint: called in every process, with a folder that has its part.
    Raises: TrainerError: in every process alike: nothing to train on, a row that does not fit, a model that cannot be
        sharded, or a loss that is not a number.
    """
    from trainers.tuning.full_loop import FullTraining, save_model, shard

    check_unwritten(output)
    check_recomputable(model, settings)
    saved = read_cursor(resume_from)
    stream = row_stream(model, tokenizer, source, settings, saved)
    shard(model, settings.precision)
    training = FullTraining(model, tokenizer, stream, settings, saved, checkpoint_every, on_checkpoint)
    result = training.run(agent, resume_from)
    check_trainable(stream, agent=agent, max_length=settings.max_length)
    save_model(model, tokenizer, output, result, agent, settings.precision)
    return result
