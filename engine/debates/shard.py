"""One shard of a stage: an arena on its journal, kept full of tasks, and started again when its process dies.

What a dead arena had on record is read again by its successor; what was on its way to it is delivered to the successor;
only asks whose outcome the dead one had not committed yet are asked again.
"""

from __future__ import annotations

import logging
import math
import time
from collections import deque
from collections.abc import Awaitable, Callable, Collection
from pathlib import Path
from typing import Any

import msgspec

from actors.post.histogram import Histogram
from actors.post.remote import of_actor, what_happened
from engine.debates.arena import Assignment, Finished
from engine.debates.cluster import Cluster
from engine.live.arena_stats import ArenaStats
from protocols.errors import AgentError, HostLostError, JournalError, PausedError

log = logging.getLogger("moot.shard")

COLLECT_S = 1.0  # how long an arena may hold a call that has nothing to tell
MAX_GIVEN = 512  # tasks handed out in one call: the other arenas get theirs meanwhile
REST_S, MAX_REST_S = 0.02, 0.5  # between two calls to an arena: until about one in a hundred of its places is free
FREE = 0.01
MAX_DEATHS = 5  # of an arena in a row, no debate closing in between: then something kills it each time

Take = Callable[[str, list[Finished], ArenaStats], Awaitable[None]]
"""Is told by each arena what has closed, and its running totals."""


class Shard:
    """See the module.

    Args:
        waiting: the stage's tasks that no arena has yet; all its shards take from it.
        num_shards: of the stage: none takes more than its share at once.
    """

    def __init__(
        self,
        cluster: Cluster,
        name: str,
        journal: Path,
        waiting: deque[Assignment],
        num_shards: int,
        take: Take,
        note: Callable[[str], None],
    ) -> None:
        self.name = name
        self._cluster, self._journal, self._take, self._note = cluster, journal, take, note
        self._waiting, self._num_shards = waiting, num_shards
        self._arena: Any = None
        self._handed: dict[str, Assignment | None] = {}  # not known to be over; None: it is on record, open
        self._before = ArenaStats()  # totals of the arenas before this one
        self._latest = ArenaStats()
        self._deaths = 0

    async def start(self) -> set[str]:
        """Returns: the debates that the journal holds: they go on, or are over.

        Among them may be some that closed after the stage had looked: an arena ends a moment after the driver that was
        killed. Raises: JournalError: it cannot be used. AgentError: no arena stays alive on it.
        """
        waiting = {item.debate_id for item in self._waiting}
        try:
            closed, still_open = await self._place(waiting)
        except HostLostError as err:
            closed, still_open = await self._place_again(what_happened(err), waiting)
        self._handed = dict.fromkeys(still_open)
        await self._told(closed, ArenaStats(open=len(still_open)))
        return {item.debate_id for item in closed}.union(still_open)

    async def feed(self) -> None:
        """Keep the arena filled until nothing is left. Tasks are handed out on demand: an arena with slow debates is
        simply given fewer.

        Raises: JournalError, AgentError: the arena cannot go on. PausedError: a host, or somebody, has stopped the run.
        """
        control, wait_s, rest_s, looked = self._cluster.control, 0.0, 0.0, time.monotonic()
        given: list[Assignment] = []
        while True:
            finished, stats = await self._call("exchange", given, wait_s, rest_s)
            passed_s, looked = time.monotonic() - looked, time.monotonic()
            await self._told(finished, stats)
            if stats.error:
                raise (JournalError if stats.error.startswith("journal") else AgentError)(stats.error)
            if stats.paused:
                raise PausedError(stats.paused)
            control.check()
            given = self._next(self._cluster.recipe.run.max_open - stats.open) if control.hands_out else []
            if given:
                self._handed |= {item.debate_id: item for item in given}
            elif stats.open == 0 and (control.draining or not self._waiting):
                return
            more = len(given) == MAX_GIVEN
            wait_s = 0.0 if more else COLLECT_S
            rest_s = 0.0 if more else _rest_s(rest_s, stats.open, len(finished), passed_s)

    async def settle(self) -> None:
        """Returns once all that came is on record. A dead arena has nothing more to put there."""
        if self._arena is None:
            return
        try:
            await of_actor(self._arena.settle.remote())
        except HostLostError as err:
            log.info("arena %s was gone when it should settle: %s", self.name, err)

    async def stop(self) -> None:
        """Stopping must not hide why a stage ended: an arena that is dead already has stopped."""
        import ray

        if self._arena is None:
            return
        try:
            await self._cluster.stop_arena(self.name, self._arena)
        except ray.exceptions.RayError as err:
            log.info("arena %s was gone when it was stopped: %r", self.name, err)

    def _next(self, room: int) -> list[Assignment]:
        share = math.ceil(len(self._waiting) / self._num_shards)
        return [self._waiting.popleft() for _ in range(max(0, min(room, share, MAX_GIVEN)))]

    async def _told(self, finished: list[Finished], stats: ArenaStats) -> None:
        for item in finished:
            self._handed.pop(item.debate_id, None)
        if finished:
            self._deaths = 0
        self._latest = stats
        await self._take(self.name, finished, _sum(self._before, stats))

    async def _call(self, method: str, *args: Any) -> Any:
        """Of the arena, or of its successor when it dies; nothing called here does harm twice."""
        while True:
            try:
                return await of_actor(getattr(self._arena, method).remote(*args))
            except HostLostError as err:
                await self._start_again(what_happened(err))

    async def _start_again(self, why: str) -> None:
        while True:
            closed, still_open = await self._place_again(why, self._handed.keys())
            known = {item.debate_id for item in closed}.union(still_open)
            # Those that are not on record died before their first commit.
            lost = [item for key, item in self._handed.items() if item is not None and key not in known]
            try:
                await of_actor(self._arena.open.remote(lost))
            except HostLostError as err:
                why = what_happened(err)
                continue
            await self._told(closed, ArenaStats())
            return

    async def _place(self, among: Collection[str]) -> tuple[list[Finished], list[str]]:
        """An arena in the place of the one before, if there was any.

        Returns: which of these debates its journal holds closed, and all that it holds open.
        Raises: HostLostError: it died, or never came to live.
        """
        self._arena = await self._cluster.start_arena(self.name, self._journal, instead_of=self._arena)
        closed, still_open = await of_actor(self._arena.recover.remote(set(among)))
        return closed, still_open

    async def _place_again(self, why: str, among: Collection[str]) -> tuple[list[Finished], list[str]]:
        """The same, until one lives. Raises: AgentError: too many have died."""
        while True:
            self._deaths += 1
            if self._deaths > MAX_DEATHS:
                raise AgentError(
                    f"arena {self.name} died {self._deaths} times in a row, the last time: {why}; the "
                    "machine may be short of memory: lower run.max_open, then go on with `moot resume RUN`"
                )
            self._note(f"arena {self.name} went down, starting it again: {why}")
            self._before, self._latest = _sum(self._before, self._latest), ArenaStats()
            try:
                return await self._place(among)
            except HostLostError as err:
                why = what_happened(err)


def _rest_s(rested_s: float, num_open: int, num_closed: int, passed_s: float) -> float:
    """How long to leave an arena alone where debates close all the time: a call for each would cost more than it does.

    Args:
        rested_s: before the last call; at most twice that, as how fast they close is not known at first.
        num_closed: in the time that has passed since the call before.
    """
    wanted_s = passed_s * FREE * num_open / max(1, num_closed)
    return max(REST_S, min(MAX_REST_S, 2 * rested_s, wanted_s))


def _sum(before: ArenaStats, latest: ArenaStats) -> ArenaStats:
    """Running totals over an arena and those before it; what is no total is the latest's."""
    return msgspec.structs.replace(
        latest,
        closed=before.closed + latest.closed,
        replies=before.replies + latest.replies,
        failures=before.failures + latest.failures,
        late=before.late + latest.late,
        delays=tuple((Histogram(before.delays) + Histogram(latest.delays)).counts),
        usage=before.usage + latest.usage,
        commits=before.commits + latest.commits,
        commit_s=before.commit_s + latest.commit_s,
        entries=before.entries + latest.entries,
    )
