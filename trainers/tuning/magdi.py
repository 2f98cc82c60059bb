"""Distilling whole debates into one student by MAGDi's objective: right answers, wrong ones, and the graph of both.

Importing this module is cheap; torch and PEFT load with the first training.

Source: Chen et al. 2024 (MAGDi), arXiv:2402.01620, as its released code has it (dinobby/MAGDi). Departures, each with
its reason, are in ``docs/training.md``.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from protocols.errors import TrainerError
from trainers.record.feed import update_hash
from trainers.selection.interaction import Interaction
from trainers.tuning.magdi_settings import MAGDiResult, MAGDiSettings
from trainers.tuning.pack_steps import read_place
from trainers.tuning.sft import check_unwritten
from trainers.tuning.sft_settings import OnCheckpoint
from trainers.tuning.token_graph import GraphTokeniser, TokenGraph


def train_on_graphs(
    model: Any,
    tokenizer: Any,
    rows: Iterable[Interaction],
    settings: MAGDiSettings,
    *,
    agent: str,
    output: Path,
    init_from: Path | None = None,
    resume_from: Path | None = None,
    checkpoint_every: int = 0,
    on_checkpoint: OnCheckpoint | None = None,
) -> MAGDiResult:
    """Train one adapter and write it to ``output`` in PEFT layout, whole or not at all.

    The graph network and the scorer learn beside it, are kept in checkpoints, and are thrown away at the end. The base
    is given back as it came.

    Args:
        model: a causal language model of transformers, in ``settings.precision``.
        rows: the student's debates, all of them: every epoch shuffles them.
        output: a folder that does not exist yet.
        init_from: an adapter folder to start from; fresh weights without one.
        resume_from: a checkpoint folder as ``on_checkpoint`` was given it, of a training with the same arguments.
        checkpoint_every: steps between checkpoints; 0 for none.
    Raises: TrainerError: nothing to train on, a row or a parent that does not fit, or a loss that is not a number.
    """
    from trainers.tuning.magdi_loop import Training
    from trainers.tuning.sft_loop import adapted

    check_unwritten(output)
    tokenise = GraphTokeniser(tokenizer, vocab_size=model.get_input_embeddings().num_embeddings)
    digest, graphs, refused = hashlib.sha256(), list[TokenGraph](), 0
    for row in rows:
        update_hash(digest, row)
        graph = tokenise(row)
        if graph.num_tokens <= settings.max_length:
            graphs.append(graph)
        else:
            refused += 1
    if not graphs and refused:
        raise TrainerError(
            f"all {refused} debates of {agent!r} have an answer longer than magdi.max_length={settings.max_length} "
            "tokens; raise magdi.max_length or ask for shorter replies"
        )
    if not graphs:
        raise TrainerError(
            f"no debate has a right answer for {agent!r} to learn from; debate other tasks, or set train.label"
        )
    saved = read_place(resume_from, digest.hexdigest(), agent)
    with adapted(model, settings, init_from) as peft_model:
        training = Training(peft_model, graphs, refused, settings, saved, checkpoint_every, on_checkpoint)
        return training.run(agent, output, resume_from)
