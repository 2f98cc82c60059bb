"""The watch reads totals, keeps a window of them, and harms no run."""

from __future__ import annotations

import asyncio
import logging
from typing import ClassVar

import pytest

from actors.agent import HostStats
from engine.debates.control import Control
from engine.live import watch as module
from engine.live.arena_stats import ArenaStats
from engine.live.snapshot import Reading, Snapshot
from engine.live.watch import Watch
from protocols.message import Usage

pytestmark = pytest.mark.asyncio


class Hosts:
    """Two hosts of which one answers, after ``wait_s``."""

    models: ClassVar = {"a": "m", "b": "m"}
    restarts: ClassVar = {"a": 1, "b": 0}
    wait_s = 0.0

    async def stats(self, max_age_s: float = 0.0) -> dict[str, HostStats]:
        await asyncio.sleep(self.wait_s)
        return {
            "a": HostStats(host="a", queued=3, running=0, replies=0, failures={}, retries=0, usage=Usage(), backend={})
        }


async def test_rates_are_taken_over_the_last_seconds() -> None:
    now_s, hosts = 0.0, Hosts()
    seen: list[tuple[Reading, Snapshot]] = []
    watch = Watch(
        hosts, "debate", total=100, max_open=lambda: 10, tell=[lambda *told: seen.append(told)], clock=lambda: now_s
    )
    for now_s in range(40):  # the clock reads it
        watch.took("x", ArenaStats(open=5, replies=10 * max(0, int(now_s) - 20)), closed=int(now_s), set_aside=1)
        await watch.look()
    reading, shown = seen[-1]
    assert len(seen) == 40 and reading.at_s == 39
    assert (shown.replies_per_s, shown.debates_per_s, shown.set_aside) == (10.0, 1.0, 1)
    assert seen[25][1].replies_per_s == 50 / 10, "half of its window was before the first reply"
    assert (shown.models[0].up, shown.models[0].replicas, shown.models[0].restarts) == (1, 2, 1)


async def test_hosts_that_do_not_answer_in_time_are_told_as_they_were(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "STATS_S", 0.02)
    hosts = Hosts()
    watch = Watch(hosts, "debate", total=1)
    assert (await watch.look()).queued == 3
    hosts.wait_s = 60.0
    assert (await watch.look()).queued == 3


async def test_what_somebody_wanted_is_what_holds_it_up() -> None:
    control = Control()
    watch = Watch(Hosts(), "debate", total=1, wish=lambda: control.wish)
    assert "paused" not in (await watch.look()).holdup
    control.paused = True
    assert (await watch.look()).holdup.startswith("paused by `moot ctl pause`")
    control.paused, control.draining = False, True
    assert (await watch.look()).holdup.startswith("draining")


async def test_one_who_watches_and_fails_harms_nobody(caplog: pytest.LogCaptureFixture) -> None:
    seen: list[Snapshot] = []

    def broken(reading: Reading, shown: Snapshot) -> None:
        raise ZeroDivisionError("a bug")

    with caplog.at_level(logging.ERROR):
        await Watch(Hosts(), "debate", total=1, tell=[broken, lambda _, shown: seen.append(shown)]).look()
    assert len(seen) == 1 and "the run goes on" in caplog.text and "ZeroDivisionError" in caplog.text
