"""Metrics: one catalogue, and what is set, shown and explained is in it, both ways; totals become counters rightly."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from actors.agent import HostStats
from actors.post.histogram import Histogram
from actors.post.tally import AgentStats
from engine.live.arena_stats import ArenaStats
from engine.live.metric_catalogue import METRICS, table
from engine.live.metrics import Metrics, values
from engine.live.snapshot import Reading
from engine.live.summary import snapshot
from protocols.message import Usage
from trainers.jobs.gauges import NAMES as OF_TRAINING

ROOT = Path(__file__).resolve().parents[3]
SERIES = {name: labels for item in METRICS for name, labels in item.series.items()}


def full(replies: int = 3, *seconds: float) -> Reading:
    """A reading with a figure for everything."""
    latency = Histogram()
    for duration_s in seconds or (0.3, 0.3, 20.0):
        latency.add(duration_s)
    agent = AgentStats(replies=replies, prompt_tokens=9, completion_tokens=5, latency=tuple(latency.counts))
    gates = {"admission": {"waiting": 1.0, "concurrency": 8.0, "paused_s": 0.0}, "budget": {"spent_usd": 1.5}}
    host = HostStats(
        host="gpt",
        queued=0,
        running=0,
        replies=replies,
        failures={"timeout": 1},
        retries=2,
        usage=Usage(),
        backend={"kv_usage": 0.5, "prefix_cache_queries": 8.0, "prefix_cache_hits": 4.0},
        gates=gates,
        cache={"hits": 1.0, "misses": 2.0},
        agents={"ada": agent},
    )
    arena = ArenaStats(open=2, delays=tuple(latency.counts))
    return Reading(
        at_s=1.0, total=9, arenas={"debate/a": arena}, hosts={"gpt": host}, models={"gpt": "gpt"}, restarts={"gpt": 1}
    )


def told(reading: Reading) -> list[tuple[str, dict[str, str], float]]:
    return list(values(reading, snapshot(reading, reading, reading)))


def test_what_is_set_is_in_the_catalogue_with_its_labels_and_the_other_way_round() -> None:
    for name, labels, _ in told(full()):
        assert {"run", *labels} == set(SERIES[name]), name
    assert {name for name, *_ in told(full())} | OF_TRAINING.keys() == SERIES.keys()
    assert all(SERIES[name] == ("run", "agent") for name in OF_TRAINING)


def test_a_histogram_counts_each_bucket_with_all_before_it() -> None:
    buckets = {labels["le"]: value for name, labels, value in told(full()) if name == "moot_reply_seconds_bucket"}
    assert (buckets["0.2048"], buckets["0.4096"], buckets["13.11"], buckets["26.21"], buckets["+Inf"]) == (
        0,
        2,
        2,
        3,
        3,
    )
    assert list(buckets.values()) == sorted(buckets.values())
    assert ("moot_reply_seconds_count", {"model": "gpt", "host": "gpt", "agent": "ada"}, 3) in told(full())


class Recorded:
    """Stands for Ray's counter or gauge: what it was told."""

    def __init__(self) -> None:
        self.seen: list[tuple[float, dict[str, str]]] = []


class Counter(Recorded):
    def inc(self, value: float, tags: dict[str, str]) -> None:
        self.seen.append((value, tags))


class Gauge(Recorded):
    def set(self, value: float, tags: dict[str, str]) -> None:
        self.seen.append((value, tags))


def test_a_counter_grows_by_what_a_total_rose_and_by_all_of_one_that_began_anew() -> None:
    metrics = Metrics("r1")
    made: dict[str, Any] = {
        name: Counter() if item.kind == "counter" else Gauge() for item in METRICS for name in item.series
    }
    metrics._made = made
    for replies in (3, 10, 10, 4):
        reading = full(replies)
        metrics.set(reading, snapshot(reading, reading, reading))
    tags = {"run": "r1", "model": "gpt", "host": "gpt", "agent": "ada"}
    assert made["moot_replies"].seen == [(3, tags), (7, tags), (4, tags)]
    assert made["moot_concurrency"].seen == [(0, {"run": "r1", "model": "gpt", "host": "gpt"})] * 4


def test_the_docs_have_the_catalogue() -> None:
    page = (ROOT / "docs" / "observability.md").read_text(encoding="utf-8")
    assert table() in page, "put the text of `python -m engine.live.metric_catalogue` into docs/observability.md"


@pytest.mark.parametrize("item", METRICS, ids=lambda item: item.name)
def test_a_metric_is_named_with_its_unit_and_explained(item: Any) -> None:
    assert item.name.startswith("moot_") and item.meaning and item.unit
    assert "seconds" not in item.unit or "seconds" in item.name
