"""What a run looks like: rates, medians and money by hand, over hosts and arenas that were started again too."""

from __future__ import annotations

import msgspec
import pytest

from actors.agent import HostStats
from actors.post.histogram import Histogram, bound
from actors.post.tally import AgentStats
from engine.live.arena_stats import ArenaStats
from engine.live.snapshot import Reading, Snapshot
from engine.live.summary import snapshot
from protocols.message import Usage

START = Reading(at_s=100.0, stage="debate", total=100, closed=10, max_open=50)


def host(name: str, **told: object) -> HostStats:
    base = HostStats(
        host=name, queued=0, running=0, replies=0, failures={}, retries=0, usage=Usage(), backend={}, concurrency=8
    )
    return msgspec.structs.replace(base, **told)


def durations(*seconds: float) -> tuple[int, ...]:
    histogram = Histogram()
    for duration_s in seconds:
        histogram.add(duration_s)
    return tuple(histogram.counts)


def reading(at_s: float, **told: object) -> Reading:
    return msgspec.structs.replace(START, at_s=at_s, **told)


def test_rates_are_those_of_the_window_and_counts_are_since_the_start() -> None:
    before = reading(110.0, closed=12, arenas={"a": ArenaStats(open=20, replies=40, usage=Usage(900, 100))})
    after = reading(
        120.0,
        closed=14,
        set_aside=1,
        arenas={
            "a": ArenaStats(open=21, replies=60, failures=3, usage=Usage(1000, 160)),
            "b": ArenaStats(open=9, replies=10, usage=Usage(50, 40)),
        },
    )
    shown = snapshot(after, before, START)
    assert (shown.replies_per_s, shown.tokens_per_s, shown.debates_per_s) == (3.0, 10.0, 0.2)
    assert (shown.replies, shown.failures, shown.usage) == (70, 3, Usage(1050, 200))
    assert (shown.open, shown.closed, shown.set_aside, shown.left) == (30, 14, 1, 56)


def test_time_left_goes_by_the_window_where_enough_closed_in_it() -> None:
    slow = reading(200.0, closed=20)
    assert snapshot(slow, reading(190.0, closed=18), START).eta_s == pytest.approx(80 / (10 / 100))
    assert snapshot(slow, reading(190.0, closed=10), START).eta_s == pytest.approx(80 / (10 / 10))
    assert snapshot(reading(200.0, closed=14), START, START).eta_s is None, "too few have closed to tell"
    assert snapshot(reading(200.0, closed=100), START, START).eta_s is None, "nothing is left"


def test_a_model_is_all_its_replicas_that_are_up() -> None:
    models = {"smol/0": "smol", "smol/1": "smol", "gpt": "gpt"}
    before = reading(100.0, models=models, hosts={"smol/0": host("smol/0", replies=90, failures={"timeout": 1})})
    after = reading(
        110.0,
        models=models,
        restarts={"smol/1": 2},
        hosts={
            "smol/0": host(
                "smol/0",
                queued=3,
                running=8,
                replies=100,
                failures={"timeout": 4},
                retries=5,
                backend={"kv_usage": 0.5, "requests": 7.0},
                gates={"engine": {"waiting": 3.0, "limit": 8.0}},
            ),
            "smol/1": host(
                "smol/1",
                queued=1,
                running=2,
                replies=20,
                backend={"kv_usage": 0.9, "requests": 1.0},
                gates={"engine": {"waiting": 1.0, "limit": 8.0}},
            ),
        },
    )
    smol, gpt = snapshot(after, before, START).models
    assert (smol.up, smol.replicas, smol.restarts, smol.queued, smol.running, smol.limit) == (2, 2, 2, 4, 10, 16)
    assert (smol.replies_per_s, smol.failures, smol.retries) == (3.0, {"timeout": 3}, 5)
    assert smol.engine == {"kv_usage": 0.9, "requests": 8.0}
    assert smol.gates == {"engine": {"waiting": 4.0, "limit": 16.0}}
    assert (gpt.up, gpt.replicas) == (0, 1)


def test_a_gate_that_hosts_share_is_told_once() -> None:
    gate = {"admission": {"waiting": 7.0, "running": 3.0}}
    told = {name: host(name, gates=gate) for name in ("a", "b")}
    (model,) = snapshot(reading(110.0, models={"a": "m", "b": "m"}, hosts=told), START, START).models
    assert model.gates == gate


def test_a_host_that_was_started_again_has_counted_from_nothing() -> None:
    def at(at_s: float, replies: int, *seconds: float) -> Reading:
        agents = {"ada": AgentStats(replies=replies, latency=durations(*seconds))}
        return reading(at_s, models={"m": "m"}, hosts={"m": host("m", replies=replies, agents=agents)})

    shown = snapshot(at(110.0, 4, *[2.0] * 4), at(100.0, 90, *[8.0] * 90), START)
    assert shown.models[0].replies_per_s == 0.4
    assert shown.agents[0].median_s == pytest.approx(2.0, rel=0.19)


def test_an_agent_is_as_slow_as_its_median_of_late() -> None:
    def at(at_s: float, ada: tuple[float, ...], bo: tuple[float, ...]) -> Reading:
        agents = {
            "ada": AgentStats(replies=len(ada), running=2, latency=durations(*ada)),
            "bo": AgentStats(replies=len(bo), queued=1, latency=durations(*bo)),
            "cy": AgentStats(queued=5),
        }
        return reading(at_s, models={"m/0": "m"}, hosts={"m/0": host("m/0", agents=agents)})

    shown = snapshot(at(110.0, (9.0, 9.0, 0.1, 0.1), (1.0,)), at(100.0, (9.0, 9.0), (1.0,)), START)
    ada, bo, cy = shown.agents
    assert ada.median_s == pytest.approx(0.1, rel=0.19), "the slow ones were long ago"
    assert bo.median_s == pytest.approx(1.0, rel=0.19), "nothing of late: all there was"
    assert cy.median_s is None
    assert shown.slowest == bo
    assert (ada.model, ada.running, bo.queued, cy.queued) == ("m", 2, 1, 5)


def test_money_is_what_the_purse_says_where_there_is_one() -> None:
    purse = {"budget": {"spent_usd": 4.0}}
    hosts = {"a": host("a", cost_usd=1.0), "b": host("b", cost_usd=2.0)}
    assert snapshot(reading(110.0, hosts=hosts), START, START).cost_usd == 3.0
    hosts["b"] = host("b", cost_usd=2.0, gates=purse)
    assert snapshot(reading(110.0, hosts=hosts), START, START).cost_usd == 4.0


def test_the_journal_and_the_delay_are_those_of_the_window() -> None:
    before = ArenaStats(commits=10, commit_s=9.0, entries=10, delays=durations(*[5.0] * 9))
    after = ArenaStats(
        commits=14, commit_s=10.0, entries=30, journal_bytes=4096, delays=durations(*[5.0] * 9, *[0.01] * 98, 0.2, 0.2)
    )
    shown = snapshot(reading(120.0, arenas={"a": after}), reading(110.0, arenas={"a": before}), START)
    assert (shown.journal.commit_s, shown.journal.batch, shown.journal.busy) == (0.25, 5.0, 0.1)
    assert shown.journal.size_bytes == 4096
    assert shown.delay_p50_s == pytest.approx(0.01, rel=0.19)
    assert shown.delay_p99_s == next(bound(number) for number in range(92) if bound(number) >= 0.2)


def test_a_snapshot_is_json_and_back() -> None:
    shown = snapshot(reading(110.0, models={"a": "a"}, hosts={"a": host("a", queued=1)}), START, START)
    assert msgspec.json.decode(msgspec.json.encode(shown), type=Snapshot) == shown
