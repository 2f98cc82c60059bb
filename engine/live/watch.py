"""A stage as it goes: the totals of its arenas and hosts, read once a second and told to whoever watches.

Nothing on the way of a message knows of it: whoever is asked for totals has them at hand.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Protocol

import msgspec

from actors.agent import HostStats
from engine.live.arena_stats import ArenaStats
from engine.live.snapshot import Reading, Snapshot
from engine.live.summary import snapshot

log = logging.getLogger("moot.watch")

INTERVAL_S = 1.0
WINDOW_S = 10.0  # over which rates and medians are taken
STATS_S = 2.0  # that hosts are waited for; what they said last is told again

Tell = Callable[[Reading, Snapshot], None]


class Watched(Protocol):
    """What is asked of ``engine.debates.hosts.Hosts``."""

    @property
    def models(self) -> dict[str, str]: ...

    @property
    def restarts(self) -> dict[str, int]: ...

    async def stats(self, max_age_s: float = 0.0) -> dict[str, HostStats]: ...


class Watch:
    """See the module. ``took`` brings what arenas say, ``run`` asks hosts and tells.

    Args:
        total, closed, set_aside: debates of the stage, and those on record already.
        max_open: debates that all arenas together may hold for now.
        wish: what somebody has asked of the run that holds it up, in a sentence; "" for nothing.
        tell: each is told of every reading. One that fails is logged and does not harm the run.
    """

    def __init__(
        self,
        hosts: Watched,
        stage: str,
        *,
        total: int,
        closed: int = 0,
        set_aside: int = 0,
        max_open: Callable[[], int] = int,
        wish: Callable[[], str] = str,
        tell: Sequence[Tell] = (),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._hosts, self._max_open, self._wish = hosts, max_open, wish
        self._tell, self._clock = tuple(tell), clock
        self._now = Reading(at_s=clock(), stage=stage, total=total, closed=closed, set_aside=set_aside)
        self._began: Reading | None = None
        self._seen: deque[Reading] = deque()  # those of the window, and the one before

    def took(self, arena: str, stats: ArenaStats, *, closed: int, set_aside: int) -> None:
        """What an arena said, and how many debates of the stage are over by now, on record or of late."""
        arenas = self._now.arenas | {arena: stats}
        self._now = msgspec.structs.replace(self._now, arenas=arenas, closed=closed, set_aside=set_aside)

    async def run(self) -> None:
        """Until it is cancelled."""
        while True:
            await self.look(INTERVAL_S / 2)  # somebody else may have asked the hosts just now
            await asyncio.sleep(INTERVAL_S)

    async def look(self, max_age_s: float = 0.0) -> Snapshot:
        """Read the hosts, and tell."""
        hosts = self._now.hosts
        try:
            async with asyncio.timeout(STATS_S):
                hosts = await self._hosts.stats(max_age_s)
        except TimeoutError:
            log.info("the hosts have not said how they stand within %g s", STATS_S)
        now = self._now = msgspec.structs.replace(
            self._now,
            at_s=self._clock(),
            hosts=hosts,
            models=self._hosts.models,
            restarts=self._hosts.restarts,
            max_open=self._max_open(),
        )
        self._began = self._began or now
        self._seen.append(now)
        while len(self._seen) > 2 and now.at_s - self._seen[1].at_s >= WINDOW_S:
            self._seen.popleft()
        shown = snapshot(now, self._seen[0], self._began)
        if wish := self._wish():
            shown = msgspec.structs.replace(shown, holdup=wish)
        for tell in self._tell:
            try:
                tell(now, shown)
            except Exception:
                log.exception("what watches the run failed; the run goes on")
        return shown
