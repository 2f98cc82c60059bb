"""How MAGDi's distillation goes, and what came of it: settings and results. Cheap to import."""

from __future__ import annotations

import math
from typing import ClassVar, Literal

import msgspec

from protocols.bounds import check_above_0
from protocols.formats.magdi import Edges
from trainers.tuning.sft_settings import Schedule, SFTSettings, rate_at


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
        check_above_0(self, "alpha", "learning_rate", "max_grad_norm")
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
