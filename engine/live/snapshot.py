"""What a run looks like now: rates, queues, money, the slowest agent, and what holds things up."""

from __future__ import annotations

import msgspec

from actors.agent import HostStats
from engine.live.arena_stats import ArenaStats
from protocols.message import Usage


class Reading(msgspec.Struct, frozen=True, kw_only=True):
    """The totals of a stage at one moment, as its arenas and hosts told them.

    ``at_s``: on any one clock. ``closed`` counts what was on record before. ``models``: host -> its model, hosts that
    are down too, which ``hosts`` lacks. ``max_open``: debates that all arenas together may hold.
    """

    at_s: float
    stage: str = ""
    total: int = 0
    closed: int = 0
    set_aside: int = 0
    max_open: int = 0
    arenas: dict[str, ArenaStats] = {}
    hosts: dict[str, HostStats] = {}
    models: dict[str, str] = {}
    restarts: dict[str, int] = {}  # host -> how often it was started again


class ModelLoad(msgspec.Struct, frozen=True, kw_only=True):
    """A model, its replicas together. ``retries``, ``failures``: of the window. ``gates`` and ``engine``: sums over
    replicas, but for shares and for what the replicas share."""

    name: str
    up: int
    replicas: int
    restarts: int = 0
    queued: int = 0
    running: int = 0
    limit: int = 0
    replies_per_s: float = 0.0
    retries: int = 0
    failures: dict[str, int] = {}
    gates: dict[str, dict[str, float]] = {}
    engine: dict[str, float] = {}


class AgentPace(msgspec.Struct, frozen=True, kw_only=True):
    """An agent, wherever it is served. ``median_s``: of its replies in the window, else of all; None before any."""

    name: str
    model: str
    queued: int = 0
    running: int = 0
    replies: int = 0
    median_s: float | None = None


class JournalPace(msgspec.Struct, frozen=True, kw_only=True):
    """The journals of all arenas in the window. ``busy``: share of the time that the busiest arena spent committing."""

    commit_s: float = 0.0  # of one commit, in the mean
    batch: float = 0.0  # entries in it, in the mean
    busy: float = 0.0
    size_bytes: int = 0


class Snapshot(msgspec.Struct, frozen=True, kw_only=True):
    """See the module. Rates are those of the window between the two readings, counts are since the stage began here;
    ``cost_usd`` is the whole run's where a budget keeps account of it, else since its models were started."""

    stage: str
    total: int
    closed: int
    open: int
    set_aside: int
    left: int  # not yet handed to an arena
    max_open: int
    replies: int
    failures: int
    usage: Usage
    cost_usd: float
    debates_per_s: float
    replies_per_s: float
    tokens_per_s: float  # said, not read
    queued: int
    running: int
    eta_s: float | None
    models: tuple[ModelLoad, ...]
    agents: tuple[AgentPace, ...]
    slowest: AgentPace | None  # of those that were asked, by the median
    journal: JournalPace
    delay_p50_s: float | None  # from the arrival of a reply to the dispatch of what it enables
    delay_p99_s: float | None
    holdup: str = ""  # one sentence
