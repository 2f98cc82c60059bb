"""Preference finetuning of one agent on packed trees: an SFT adapter goes in, an adapter that prefers comes out.

Importing this module is cheap; torch, TRL and PEFT load with the first training.

Source: Zhou et al. 2025 (Debate, Reflect, and Distill), arXiv:2506.03541, sec. 3.3; the loss is that of Rafailov et al.
2023 (DPO), arXiv:2305.18290. That a tree goes through the model in one piece is ours: it changes no figure.
"""

from __future__ import annotations

import hashlib
import math
import random
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol

import msgspec

from protocols.errors import TrainerError
from protocols.message import FinishReason
from trainers.example import Example
from trainers.feed import update_hash
from trainers.pack import Packing, TokenPair, pack_pairs
from trainers.preference_row import Preference
from trainers.sft import CURSOR_NAME, OnCheckpoint, SavedCursor, Schedule, check_unwritten, rate_at
from trainers.stream import START, Cursor
from trainers.tokenise import RowTokeniser

LossType = Literal[
    "sigmoid", "hinge", "ipo", "exo_pair", "nca_pair", "robust", "bco_pair", "sppo_hard", "apo_zero", "apo_down",
    "discopop", "sigmoid_norm",
]  # fmt: skip
"""TRL's names of the losses that ask for nothing but the log-probabilities of a pair's two completions."""
SMOOTHED = {"robust": (0.0, 0.5), "exo_pair": (1e-9, 1.0)}  # loss -> least label_smoothing, and what it stays below


class TreeDPOSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How an adapter learns from preferences. The defaults are the paper's, but for the size of a step.

    ``beta``, ``loss_type`` and ``label_smoothing`` are TRL's. The loss of a step is the mean over all pairs in its
    ``gradient_accumulation`` packs, each pair counting as its weight says. Rank, alpha and layers: the SFT adapter's.
    """

    SECTION: ClassVar[str] = "tree_dpo"  # of a recipe, where they stand

    beta: float = 0.1
    loss_type: LossType = "sigmoid"
    label_smoothing: float = 0.0  # robust: share of labels that are wrong; exo_pair: its epsilon; no other loss has one
    reference: Literal["precomputed", "in_place"] = "precomputed"  # once for all packs, or anew with every step
    token_budget: int = 2048  # tokens of a pack: of one pass through the model
    attention: Literal["auto", "sdpa", "flex_attention"] = "auto"  # auto: flex_attention on a GPU, sdpa on a CPU
    learning_rate: float = 5e-6
    schedule: Schedule = "cosine"
    warmup: float = 0.1
    epochs: int = 3
    gradient_accumulation: int = 1
    max_grad_norm: float = 1.0
    seed: int = 0
    precision: Literal["float32", "bfloat16"] = "float32"

    def __post_init__(self) -> None:
        for name in ("token_budget", "epochs", "gradient_accumulation"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1")
        for name in ("beta", "learning_rate", "max_grad_norm"):
            if not 0.0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name}={getattr(self, name):g} must be above 0")
        if not 0.0 <= self.warmup < 1.0:
            raise ValueError(f"warmup={self.warmup:g} must be at least 0 and below 1")
        if self.loss_type not in SMOOTHED and self.label_smoothing:
            raise ValueError(
                f"label_smoothing={self.label_smoothing:g} has no part in loss_type={self.loss_type}; "
                f"use one of {', '.join(SMOOTHED)}, or 0"
            )
        least, below = SMOOTHED.get(self.loss_type, (0.0, math.inf))
        if not least <= self.label_smoothing < below:
            raise ValueError(
                f"label_smoothing={self.label_smoothing:g} must be {'above' if least else 'at least'} 0 and below "
                f"{below:g} with loss_type={self.loss_type}"
            )

    def rate_at(self, progress: float) -> float:
        """The learning rate as a share of the peak, ``progress`` being the share of the training that is done."""
        return rate_at(progress, self.schedule, self.warmup)


class TreeDPOResult(msgspec.Struct, frozen=True, kw_only=True):
    """What one training did. Series have one figure a step; times are unix times in seconds.

    ``losses``, ``margins``, ``accuracies`` and the two rewards are means over the step's pairs: a reward is beta times
    the log-ratio of policy and reference, a margin the chosen one's less the rejected one's, an accuracy the share of
    pairs whose margin is above 0.
    """

    steps: int
    pairs: int  # different pairs trained on
    refused: int  # pairs above token_budget
    packs: int
    pairs_seen: int  # ``pairs`` times epochs
    pack_tokens: int  # of all packs; an epoch's
    expanded_tokens: int  # that the same pairs have one by one
    losses: tuple[float, ...]
    margins: tuple[float, ...]
    accuracies: tuple[float, ...]
    chosen_rewards: tuple[float, ...]
    rejected_rewards: tuple[float, ...]
    learning_rates: tuple[float, ...]
    step_times: tuple[float, ...]
    started_at: float
    first_step_at: float
    finished_at: float
    data_hash: str

    @property
    def figures(self) -> dict[str, float]:
        """What the registry keeps."""
        margins = {"first_margin": self.margins[0], "final_margin": self.margins[-1]}
        return {"steps": self.steps, "final_loss": self.losses[-1]} | margins

    @property
    def rows(self) -> int:
        return self.pairs

    @property
    def rows_seen(self) -> int:
        return self.pairs_seen


class SavedPlace(SavedCursor, frozen=True, kw_only=True):
    """What a checkpoint keeps beside the trainer's own state: its cursor counts packs, its rows are pairs."""

    data_hash: str = ""


class PackStep(msgspec.Struct, frozen=True):
    """The packs of one optimiser step by their index, and where the training stands after it."""

    packs: tuple[int, ...]
    cursor: Cursor
    progress: float  # 0..1 of the whole training


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
    from trainers.tree_dpo_loop import Training, check_adapter, check_model, two_adapters

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
