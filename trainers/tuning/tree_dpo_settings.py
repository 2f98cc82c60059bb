"""How Tree-DPO goes, and what came of it: settings and results. Cheap to import."""

from __future__ import annotations

import math
from typing import ClassVar, Literal

import msgspec

from protocols.bounds import check_above_0
from trainers.tuning.sft_settings import Schedule, rate_at

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
        check_above_0(self, "beta", "learning_rate", "max_grad_norm")
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
