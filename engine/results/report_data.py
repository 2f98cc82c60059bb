"""What a report is made from: the plain record of a run, filled by whoever ran it. Times are unix times in seconds."""

from __future__ import annotations

import msgspec

from engine.results.evaluate import Comparison, Evaluation, compare
from protocols.graph import Debate
from protocols.statistics import Statistics
from trainers.tuning.likelihood import Likelihood

PLAIN_DEBATES = "debates"  # label of an evaluation over all of a run's tasks, none of them held out


class Stage(msgspec.Struct, frozen=True):
    """A stretch of the run and how long it took."""

    name: str
    wall_s: float


class TrainingPoint(msgspec.Struct, frozen=True, kw_only=True):
    """One optimiser step as logged; ``num_rows`` counts the examples seen so far."""

    time_unix_s: float
    step: int
    loss: float
    num_rows: int = 0


class Training(msgspec.Struct, frozen=True, kw_only=True):
    """One adapter's training in one iteration."""

    agent: str
    points: tuple[TrainingPoint, ...]
    iteration: int = 1
    role: str = ""


class Iteration(msgspec.Struct, frozen=True, kw_only=True):
    """When the debates of one iteration closed, and when its first optimiser step was taken."""

    iteration: int
    closed_unix_s: tuple[float, ...] = ()
    started_unix_s: float | None = None  # default: the first thing known to have happened
    first_step_unix_s: float | None = None
    last_close_unix_s: float | None = None  # default: the last of ``closed_unix_s``
    stale_share: float = 0.0  # see ``engine.learning.staleness``
    most_behind: int = 0

    @property
    def last_close(self) -> float | None:
        return max(self.closed_unix_s, default=None) if self.last_close_unix_s is None else self.last_close_unix_s

    @property
    def lead_s(self) -> float | None:
        """From the first optimiser step to the last close; above 0 where training began while debates were open."""
        last, first = self.last_close, self.first_step_unix_s
        return None if last is None or first is None else last - first


class AdapterEntry(msgspec.Struct, frozen=True, kw_only=True):
    """One adapter with its lineage."""

    name: str
    agent: str
    base: str
    parent: str = ""  # the adapter it went on from, "" for the base model
    num_rows: int = 0
    data_hash: str = ""
    metrics: dict[str, float] = {}


class UsageTotals(msgspec.Struct, frozen=True, kw_only=True):
    """Tokens and replies of the whole run; rates are per second of generation."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0
    num_replies: int = 0
    tokens_per_s: float | None = None  # completion tokens
    replies_per_s: float | None = None


class SetAside(msgspec.Struct, frozen=True):
    """A task that kept failing, and why."""

    task_id: str
    reason: str


class ReportData(msgspec.Struct, frozen=True, kw_only=True):
    """All that a report tells. Every field but the name may be left empty; its part of the page then is too."""

    run_name: str
    recipe: str = ""  # as written
    fingerprint: str = ""  # of the recipe and what it ran with
    machine: str = ""
    started_unix_s: float | None = None
    finished_unix_s: float | None = None
    stages: tuple[Stage, ...] = ()
    evaluations: tuple[tuple[str, Evaluation], ...] = ()  # (label, evaluation): the first is "before", the last "after"
    comparison: Comparison | None = None  # default: the first evaluation against the last
    statistics: tuple[tuple[str, Statistics], ...] = ()  # (label, how the debates went), in the order they were held
    likelihoods: dict[str, tuple[Likelihood, ...]] = {}  # label -> of the stages that were scored
    iterations: tuple[Iteration, ...] = ()
    trainings: tuple[Training, ...] = ()
    loss_label: str = "training loss (nats per token)"
    adapters: tuple[AdapterEntry, ...] = ()
    usage: UsageTotals | None = None
    set_aside: tuple[SetAside, ...] = ()
    held_out: bool = True  # whether the figures are of tasks that nobody learns from
    transcripts: tuple[tuple[str, Debate], ...] = ()  # (label, debate), e.g. ("before training", ...)
    warnings: tuple[str, ...] = ()

    @property
    def change(self) -> Comparison | None:
        """The comparison given, or that of the first evaluation with the last; None with fewer than two."""
        if self.comparison is not None or len(self.evaluations) < 2:
            return self.comparison
        return compare(self.evaluations[0][1], self.evaluations[-1][1])
