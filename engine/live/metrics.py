"""A run's metrics, set from its running totals once a second; Ray's agents offer them to Prometheus.

All are set in the driver, which has the totals of every host and arena at hand: no process on the way of a message
counts anything for it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from actors.agent import HostStats
from actors.post.histogram import NUM_BUCKETS, PER_OCTAVE, bound
from engine.live.arena_stats import ArenaStats
from engine.live.metric_catalogue import METRICS
from engine.live.snapshot import Reading, Snapshot

Value = tuple[str, dict[str, str], float]
"""Series, labels without the run's, and the running total or the present figure."""


class Metrics:
    """See the module. ``run`` is a label of everything."""

    def __init__(self, run: str) -> None:
        self._run = run
        self._made: dict[str, Any] = {}  # series -> Ray's metric
        self._told: dict[tuple[str, ...], float] = {}  # a counter's series and labels -> the total at last

    def set(self, reading: Reading, shown: Snapshot) -> None:
        """Tell how things stand."""
        metrics = self._made or self._make()
        for name, labels, value in values(reading, shown):
            tags = labels | {"run": self._run}
            if hasattr(metrics[name], "set"):
                metrics[name].set(value, tags)
                continue
            key = (name, *labels.values())
            before = self._told.get(key, 0.0)
            self._told[key] = value
            if (gain := value - before if value >= before else value) > 0:  # a lower total has begun anew
                metrics[name].inc(gain, tags)

    def _make(self) -> dict[str, Any]:
        from ray.util.metrics import Counter, Gauge

        for item in METRICS:
            kind = Counter if item.kind == "counter" else Gauge  # Ray's histogram takes one call a value
            self._made |= {name: kind(name, item.meaning, labels) for name, labels in item.series.items()}
        return self._made


def values(reading: Reading, shown: Snapshot) -> Iterator[Value]:
    """All that there is to tell of a reading."""
    yield "moot_debates", {}, shown.total
    yield "moot_debates_open", {}, shown.open
    yield "moot_debates_left", {}, shown.left
    yield "moot_debates_closed", {}, shown.closed
    yield "moot_debates_set_aside", {}, shown.set_aside
    for model in shown.models:
        yield "moot_hosts_up", {"model": model.name}, model.up
        if "spent_usd" in (purse := model.gates.get("budget", {})):
            yield "moot_budget_spent_usd", {}, purse["spent_usd"]
    for name, times in reading.restarts.items():
        yield "moot_host_restarts", {"model": reading.models[name], "host": name}, times
    for name, host in reading.hosts.items():
        yield from _of_host({"model": reading.models.get(name, name), "host": name}, host)
    for name, arena in reading.arenas.items():
        yield from _of_arena({"arena": name}, arena)


def _of_host(at: dict[str, str], stats: HostStats) -> Iterator[Value]:
    yield "moot_concurrency", at, stats.concurrency
    yield "moot_retries", at, stats.retries
    yield "moot_hedges", at, stats.hedged
    for kind, count in stats.failures.items():
        yield "moot_failures", at | {"kind": kind}, count
    for gate, figures in stats.gates.items():
        yield from _present(
            at | {"gate": gate},
            figures,
            waiting="moot_gate_waiting",
            limit="moot_gate_limit",
            concurrency="moot_gate_limit",
            paused_s="moot_gate_paused_seconds",
        )
    yield from _present(at, stats.cache, hits="moot_reply_cache_hits")
    yield from _present(
        at,
        stats.backend,
        kv_usage="moot_kv_usage",
        prefix_cache_queries="moot_prefix_queries",
        prefix_cache_hits="moot_prefix_hits",
    )
    for agent, told in stats.agents.items():
        mine = at | {"agent": agent}
        yield "moot_asks_queued", mine, told.queued
        yield "moot_asks_running", mine, told.running
        yield "moot_replies", mine, told.replies
        yield "moot_prompt_tokens", mine, told.prompt_tokens
        yield "moot_completion_tokens", mine, told.completion_tokens
        yield "moot_cached_tokens", mine, told.cached_tokens
        yield "moot_cost_usd", mine, told.cost_usd
        yield from _buckets("moot_reply_seconds", mine, told.latency)


def _of_arena(at: dict[str, str], stats: ArenaStats) -> Iterator[Value]:
    yield "moot_arena_debates_open", at, stats.open
    yield "moot_late_replies", at, stats.late
    yield "moot_journal_commits", at, stats.commits
    yield "moot_journal_commit_seconds", at, stats.commit_s
    yield "moot_journal_entries", at, stats.entries
    yield "moot_journal_bytes", at, stats.journal_bytes
    yield from _buckets("moot_dispatch_seconds", at, stats.delays)


def _present(at: dict[str, str], figures: Mapping[str, float], **names: str) -> Iterator[Value]:
    """Those of the figures that there are."""
    for figure, name in names.items():
        if figure in figures:
            yield name, at, figures[figure]


def _buckets(name: str, at: dict[str, str], counts: Sequence[int]) -> Iterator[Value]:
    """A histogram as Prometheus wants it, each bucket with all before it; one an octave is enough for a graph."""
    if not counts:
        return
    for number in range(0, NUM_BUCKETS, PER_OCTAVE):
        yield f"{name}_bucket", at | {"le": f"{bound(number):.4g}"}, sum(counts[: number + 1])
    yield f"{name}_bucket", at | {"le": "+Inf"}, sum(counts)
    yield f"{name}_count", at, sum(counts)
