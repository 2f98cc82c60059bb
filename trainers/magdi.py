"""Distilling whole debates into one student by MAGDi's objective: right answers, wrong ones, and the graph of both.

Importing this module is cheap; torch and PEFT load with the first training.

Source: Chen et al. 2024 (MAGDi), arXiv:2402.01620, as its released code has it (dinobby/MAGDi). Departures, each with
its reason, are in ``docs/training.md``.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any, ClassVar, Literal

import msgspec

from protocols.errors import TrainerError
from protocols.formats.magdi import Edges
from trainers.example import Example
from trainers.feed import update_hash
from trainers.interaction import Interaction
from trainers.sft import OnCheckpoint, Schedule, SFTSettings, check_unwritten, rate_at
from trainers.tokenise import RowTokeniser, TokenRow
from trainers.tree_dpo import read_place


class MAGDiSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How a student learns from whole debates. The defaults are the released code's, but for the size of a step.

    A step has ``gradient_accumulation`` debates, one a pass through the model. Its loss is the sum of three means, each
    over all of the step and with its weight: of the next token's over what right answers say, an answer counting as
    often as a pair names it; of the class's, right or wrong, over all nodes; of the margin's over all pairs.
    """

    SECTION: ClassVar[str] = "magdi"  # of a recipe, where they stand

    language_weight: float = 1.0
    node_weight: float = 1.0
    margin_weight: float = 0.1
    node_features: Literal["student", "base"] = "student"  # base: as released; no node then moves the adapter
    edges: Edges = "causal"
    hidden: int = 512  # width of the graph network between its two layers
    rank: int = 16
    alpha: float = 32.0
    dropout: float = 0.05
    target_modules: str | tuple[str, ...] = ("q_proj", "v_proj")
    learning_rate: float = 5e-6
    schedule: Schedule = "linear"
    warmup: float = 0.03
    epochs: int = 10
    gradient_accumulation: int = 4
    max_length: int = 2048  # tokens of question and answer; a debate with a longer one is refused
    max_grad_norm: float = 1.0
    seed: int = 0
    precision: Literal["float32", "bfloat16"] = "float32"  # of the frozen base

    def __post_init__(self) -> None:
        for name in ("hidden", "rank", "epochs", "gradient_accumulation", "max_length"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1")
        for name in ("alpha", "learning_rate", "max_grad_norm"):
            if not 0.0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name}={getattr(self, name):g} must be above 0")
        for name in ("language_weight", "node_weight", "margin_weight"):
            if not 0.0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name}={getattr(self, name):g} must be at least 0; 0 leaves the term out")
        for name in ("dropout", "warmup"):
            if not 0.0 <= getattr(self, name) < 1.0:
                raise ValueError(f"{name}={getattr(self, name):g} must be at least 0 and below 1")
        if not any(self.weights):
            raise ValueError("language_weight, node_weight and margin_weight are all 0; nothing would be learned")
        SFTSettings(target_modules=self.target_modules)  # refuses what names no layers

    @property
    def weights(self) -> tuple[float, float, float]:
        """Of the next token, the nodes' classes and the pairs' margins."""
        return self.language_weight, self.node_weight, self.margin_weight

    def rate_at(self, progress: float) -> float:
        """The learning rate as a share of the peak, ``progress`` being the share of the training that is done."""
        return rate_at(progress, self.schedule, self.warmup)


class MAGDiResult(msgspec.Struct, frozen=True, kw_only=True):
    """What one training did. Series have one figure a step; times are unix times in seconds."""

    steps: int
    rows: int  # debates trained on
    refused: int  # debates with an answer longer than max_length
    rows_seen: int  # ``rows`` times epochs
    nodes: int  # of all debates; an epoch's
    pairs: int  # of a right node and a wrong one; an epoch's
    losses: tuple[float, ...]  # the sum of the three below, each with its weight
    language_losses: tuple[float, ...]  # nats a token
    node_losses: tuple[float, ...]  # nats a node
    margin_losses: tuple[float, ...]  # from 0 to 3; 0 in a step without a wrong node
    learning_rates: tuple[float, ...]
    step_times: tuple[float, ...]
    started_at: float
    first_step_at: float
    finished_at: float
    data_hash: str

    @property
    def figures(self) -> dict[str, float]:
        """What the registry keeps."""
        terms = {f"final_{name}": figures[-1] for name, figures in self.terms.items()}
        return {"steps": self.steps, "final_loss": self.losses[-1]} | terms

    @property
    def terms(self) -> dict[str, tuple[float, ...]]:
        """The three losses by name, as they are before their weights."""
        return {"language_loss": self.language_losses, "node_loss": self.node_losses, "margin_loss": self.margin_losses}


class TokenGraph(msgspec.Struct, frozen=True):
    """A debate ready for training: ``rows`` and ``right`` have an entry a node, which ``edges`` and ``pairs`` name."""

    rows: tuple[TokenRow, ...]
    right: tuple[bool, ...]
    edges: tuple[tuple[int, int], ...]
    pairs: tuple[tuple[int, int | None], ...]

    @property
    def num_tokens(self) -> int:
        """Of the longest node."""
        return max(row.num_tokens for row in self.rows)

    @property
    def times(self) -> Counter[int]:
        """Right node -> how many pairs name it."""
        return Counter(one for one, _ in self.pairs)

    @property
    def opposed(self) -> list[tuple[int, int]]:
        """The pairs that have a wrong node."""
        return [(one, other) for one, other in self.pairs if other is not None]


class GraphTokeniser:
    """Turns debates into token graphs for one model, as ``RowTokeniser`` does it: one template in all trainings."""

    def __init__(self, tokenizer: Any, *, vocab_size: int) -> None:
        self._tokenise = RowTokeniser(tokenizer, vocab_size=vocab_size)

    def __call__(self, row: Interaction) -> TokenGraph:
        """Raises: TrainerError: the question holds images."""
        nodes = zip(row.node_ids, row.replies, row.finish_reasons, strict=True)
        examples = [
            Example(
                id=f"{row.debate_id}:{node_id}:{row.rule}",
                agent=row.agent,
                rule=row.rule,
                debate_id=row.debate_id,
                node_ids=(node_id,),
                prompt=row.prompt,
                completion=reply,
                finish_reason=reason,
            )
            for node_id, reply, reason in nodes
        ]
        return TokenGraph(tuple(map(self._tokenise, examples)), row.right, row.edges, row.pairs)


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
    from trainers.magdi_loop import Training
    from trainers.sft_loop import adapted

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
