"""Preference finetuning of one agent on packed trees: an SFT adapter goes in, an adapter that prefers comes out.

Importing this module is cheap; torch, TRL and PEFT load with the first training.

Source: Zhou et al. 2025 (Debate, Reflect, and Distill), arXiv:2506.03541, sec. 3.3; the loss is that of Rafailov et al.
2023 (DPO), arXiv:2305.18290. That a tree goes through the model in one piece is ours: it changes no figure.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from protocols.errors import TrainerError
from protocols.message import FinishReason
from trainers.record.feed import update_hash
from trainers.selection.example import Example
from trainers.selection.preference_row import Preference
from trainers.tuning.pack import Packing, TokenPair, pack_pairs
from trainers.tuning.pack_steps import read_place
from trainers.tuning.sft import check_unwritten
from trainers.tuning.sft_settings import OnCheckpoint
from trainers.tuning.tokenise import RowTokeniser
from trainers.tuning.tree_dpo_settings import TreeDPOResult, TreeDPOSettings


class PairTokeniser:
    """Turns preferences into token pairs for one model, as ``RowTokeniser`` does it: one template in all trainings."""

    def __init__(self, tokenizer: Any, *, vocab_size: int) -> None:
        self._tokenise = RowTokeniser(tokenizer, vocab_size=vocab_size)

    def __call__(self, row: Preference) -> TokenPair:
        """Raises: TrainerError: the prompt holds images, a reply has no token, or the weight is no weight."""
        if not 0.0 < row.weight < math.inf:
            raise TrainerError(f"preference {row.id!r} has weight={row.weight:g}; a pair's weight must be above 0")
        chosen, rejected = (
            self._tokenise(_example(row, text, reason))
            for text, reason in zip((row.chosen, row.rejected), row.finish_reasons, strict=True)
        )
        if not (chosen.completion_ids and rejected.completion_ids):
            raise TrainerError(f"preference {row.id!r} has a reply without a token; leave the pair out")
        return TokenPair(
            row.debate_id, chosen.prompt_ids, chosen.completion_ids, rejected.completion_ids, weight=row.weight
        )


def _example(row: Preference, text: str, reason: FinishReason) -> Example:
    return Example(
        id=row.id,
        agent=row.agent,
        rule=row.rule,
        debate_id=row.debate_id,
        node_ids=row.node_ids,
        prompt=row.prompt,
        completion=text,
        finish_reason=reason,
    )


def train_preferences(
    model: Any,
    tokenizer: Any,
    rows: Iterable[Preference],
    settings: TreeDPOSettings,
    *,
    agent: str,
    output: Path,
    init_from: Path,
    resume_from: Path | None = None,
    checkpoint_every: int = 0,
    on_checkpoint: OnCheckpoint | None = None,
) -> TreeDPOResult:
    """Train a copy of an SFT adapter on preferences and write it to ``output`` in PEFT layout, whole or not at all.

    The base is given back as it came. The reference is the SFT adapter, frozen beside the one that learns.

    Args:
        model: a causal language model of transformers, in ``settings.precision``, all of whose layers attend.
        rows: the agent's preferences, all of them: which share a pack is known only when the last is there.
        output: a folder that does not exist yet.
        init_from: the SFT adapter's folder.
        resume_from: a checkpoint folder as ``on_checkpoint`` was given it, of a training with the same arguments.
        checkpoint_every: steps between checkpoints; 0 for none.
    Raises: TrainerError: nothing to train on, an adapter of another base, a model that cannot tell a tree's branches
        apart, or a loss that is not a number.
    """
    from trainers.tuning.tree_dpo_loop import Training, check_adapter, check_model, two_adapters

    check_unwritten(output)
    tokenise = PairTokeniser(tokenizer, vocab_size=model.get_input_embeddings().num_embeddings)
    digest, pairs = hashlib.sha256(), list[TokenPair]()
    for row in rows:
        update_hash(digest, row)
        pairs.append(tokenise(row))
    packing = pack_pairs(pairs, token_budget=settings.token_budget)
    _check_packing(packing, agent, settings.token_budget)
    saved = read_place(resume_from, digest.hexdigest(), agent)
    check_adapter(model, init_from)
    check_model(model, packing)
    with two_adapters(model, settings, init_from) as peft_model:
        training = Training(peft_model, tokenizer, packing, settings, saved, checkpoint_every, on_checkpoint)
        return training.run(agent, output, resume_from)


def _check_packing(packing: Packing, agent: str, token_budget: int) -> None:
    if packing.packs:
        return
    if packing.refused:
        raise TrainerError(
            f"all {len(packing.refused)} preferences of {agent!r} are longer than token_budget={token_budget} tokens; "
            "raise token_budget or ask for shorter replies"
        )
    raise TrainerError(f"no debate has a better and a worse reply for {agent!r} under one prompt; nothing to train on")
