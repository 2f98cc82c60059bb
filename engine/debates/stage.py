"""One stage of debates: hand tasks out to arenas as they have room, and take in what closes."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

import msgspec

from actors.agent import DRAIN_S
from engine.debates.arena import Finished, failure_summary
from engine.debates.cluster import Cluster
from engine.debates.desk import Closed, Desk
from engine.debates.shard import Shard, Take
from engine.live.arena_stats import ArenaStats
from engine.live.progress import Progress
from engine.live.watch import Watch
from engine.record.attempts import Attempts, split_id
from engine.record.folder import RunFolder
from engine.record.journal import read_closed
from protocols.errors import MootError, PausedError, TerminatedError
from protocols.graph import Debate, decode_debate
from protocols.message import Usage
from protocols.task import Task

log = logging.getLogger("moot.stage")

MIN_SHARE = 16  # debates for which one more arena is started
SHOWN_REASONS = 5  # why debates were set aside, at most; the report has all

OnClosed = Callable[[list["Closed"]], Awaitable[None]]


class StageResult(msgspec.Struct, frozen=True, kw_only=True):
    """What came of a stage; ``closed`` is in the order of the tasks."""

    name: str
    closed: list[Closed]
    num_new: int  # closed now, not found on record
    replies: int  # taken in now
    usage: Usage
    wall_s: float

    @property
    def set_aside(self) -> list[Closed]:
        return [closed for closed in self.closed if closed.set_aside]

    @property
    def debates(self) -> list[Debate]:
        return [closed.debate for closed in self.closed]

    @property
    def graded(self) -> list[Debate]:
        """Those that came to something: what was set aside is in no figure."""
        return [closed.debate for closed in self.closed if not closed.set_aside]

    def reasons(self) -> list[str]:
        """Why debates were set aside, the most frequent reason first, one sentence each."""
        counted = Counter(closed.set_aside for closed in self.set_aside)
        return [f"{number} set aside: {reason}" for reason, number in counted.most_common()]

    def tell_reasons(self, progress: Progress) -> None:
        """The most frequent reasons, for whoever watches."""
        for reason in self.reasons()[:SHOWN_REASONS]:
            progress.note(f"{self.name}: {reason}")


def recorded(folder: RunFolder, stage: str) -> list[Closed]:
    """The debates of a stage that the journals hold closed, of each task the attempt that counts.

    Raises: JournalError: damaged.
    """
    found, attempts = [], Attempts(folder.path)
    for path in folder.journals(stage):
        if path.exists():
            found += [_closed_of(item.graph, item.at) for item in read_closed(path) if attempts.counts(item.debate_id)]
    return found


def _closed_of(graph: bytes, at: float) -> Closed:
    debate = decode_debate(graph)
    why, attempt = failure_summary(debate), split_id(debate.id)[2]
    return Closed(debate, at, f"set aside {attempt} times, the last time: {why}" if why and attempt > 1 else why)


async def run_stage(
    cluster: Cluster,
    folder: RunFolder,
    stage: str,
    tasks: Sequence[Task],
    *,
    on_closed: OnClosed | None = None,
    progress: Progress,
) -> StageResult:
    """Debate every task once; what the journals hold already is not asked again.

    Args:
        on_closed: told of debates as they close, those on record first; it slows the stage down when it is slow itself.
    Raises: JournalError, AgentError: the stage stopped; what is on record stays, and running it again goes on.
        PausedError: it was to stop, or a host stopped it; the replies that were on their way are on record too.
    """
    began = time.monotonic()
    on_record = await asyncio.to_thread(recorded, folder, stage)
    desk = Desk(stage, tasks, cluster.recipe.seed, Attempts(folder.path), on_record)
    progress.stage(stage, total=len(desk), closed=desk.num_done)
    if on_closed is not None and desk.done:
        await on_closed(desk.done)
    if desk.waiting:
        watch = Watch(
            cluster.hosts,
            stage,
            total=len(desk),
            closed=desk.num_done,
            set_aside=desk.num_aside,
            max_open=lambda: cluster.recipe.run.max_open * folder.manifest.num_arenas,
            wish=lambda: cluster.control.wish,
            tell=(progress.show, cluster.metrics.set),
        )

        async def take(arena: str, finished: list[Finished], latest: ArenaStats) -> None:
            before = desk.stats.get(arena)
            if latest.copy_error and not (before and before.copy_error):
                progress.note(f"{arena}: {latest.uncopied} events are in no copy, tried again: {latest.copy_error}")
            desk.stats[arena] = latest
            closed = [_closed_of(item.graph, item.closed_at) for item in finished]
            desk.take(closed)
            for item in filter(lambda item: item.set_aside, closed):
                log.info("set aside: %s", item.set_aside, extra={"stage": stage, "debate": item.debate.id})
            watch.took(arena, latest, closed=desk.num_done, set_aside=desk.num_aside)
            if on_closed is not None and closed:
                await on_closed(closed)

        with cluster.control.at(desk):
            await _drive(cluster, folder, desk, take, watch, progress.note)
    return StageResult(
        name=stage,
        closed=desk.done,
        num_new=desk.num_new,
        replies=sum(item.replies for item in desk.stats.values()),
        usage=sum((item.usage for item in desk.stats.values()), Usage()),
        wall_s=time.monotonic() - began,
    )


async def _drive(
    cluster: Cluster, folder: RunFolder, desk: Desk, take: Take, watch: Watch, note: Callable[[str], None]
) -> None:
    """Start the stage's arenas, keep them filled until nothing is left, stop them."""
    waiting = desk.waiting
    paths = needed(folder.journals(desk.stage), len(waiting))
    paths[0].parent.mkdir(parents=True, exist_ok=True)
    shards = [Shard(cluster, f"{desk.stage}/{path.stem}", path, waiting, len(paths), take, note) for path in paths]
    try:
        on_record = set().union(*await asyncio.gather(*(shard.start() for shard in shards)))
        for _ in range(len(waiting)):
            if (given := waiting.popleft()).debate_id not in on_record:
                waiting.append(given)
        async with asyncio.TaskGroup() as group:
            watching = [group.create_task(cluster.hosts.watch()), group.create_task(watch.run())]
            await asyncio.wait([group.create_task(shard.feed()) for shard in shards])
            for task in watching:
                task.cancel()
        await watch.look()  # how it ended
    except BaseExceptionGroup as errors:
        ours = errors.subgroup(MootError)
        if ours is None:
            raise
        first = _first(ours)
        if isinstance(first, PausedError):
            within_s = cluster.recipe.run.drain_s if isinstance(first, TerminatedError) else DRAIN_S
            await _bring_in(cluster, shards, str(first), within_s)
        raise first from errors
    finally:
        for shard in shards:
            await shard.stop()


def needed(paths: Sequence[Path], num_waiting: int) -> list[Path]:
    """The journals that get an arena: those that hold something, and as many more as the tasks are worth a process."""
    worth = max(1, math.ceil(num_waiting / MIN_SHARE))
    return [path for number, path in enumerate(paths) if number < worth or path.exists()]


async def _bring_in(cluster: Cluster, shards: Sequence[Shard], reason: str, within_s: float) -> None:
    """Send nothing more, and put what was on its way on record: it is paid for."""
    await cluster.hosts.halt(reason, within_s)
    for shard in shards:
        await shard.settle()


def _first(errors: BaseExceptionGroup[MootError]) -> MootError:
    """The first error inside, however deep."""
    found: BaseException = errors
    while isinstance(found, BaseExceptionGroup):
        found = found.exceptions[0]
    assert isinstance(found, MootError)
    return found
