"""One stage of debates: hand tasks out to arenas as they have room, and take in what closes."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Iterable, Sequence
from pathlib import Path

import msgspec

from engine.arena import ArenaStats, Assignment, Finished, failure_summary
from engine.cluster import Cluster
from engine.folder import RunFolder
from engine.journal import read_journal
from engine.progress import Progress
from engine.shard import Shard, Take
from engine.watch import Watch
from protocols.errors import MootError, PausedError
from protocols.graph import Debate, decode_debate
from protocols.machine import derive_seed
from protocols.message import Usage
from protocols.task import Task

log = logging.getLogger("moot.stage")

MIN_SHARE = 16  # debates for which one more arena is started
SHOWN_REASONS = 5  # why debates were set aside, at most; the report has all

OnClosed = Callable[[list["Closed"]], Awaitable[None]]


class Closed(msgspec.Struct, frozen=True):
    """A debate that is over, and when."""

    debate: Debate
    at: float
    set_aside: str


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


def debate_id(stage: str, task: Task) -> str:
    """The same task has another debate in every stage."""
    return f"{stage}/{task.id}"


def assignments(stage: str, tasks: Iterable[Task], seed: int) -> deque[Assignment]:
    """What is to be debated in a stage, in order."""
    ids = {debate_id(stage, task): task for task in tasks}
    return deque(Assignment(debate_id=key, task=task, seed=derive_seed(seed, key)) for key, task in ids.items())


def recorded(folder: RunFolder, stage: str) -> list[Closed]:
    """The debates of a stage that the journals hold closed. Raises: JournalError: damaged."""
    found = []
    for path in folder.journals(stage):
        if path.exists():
            entries = read_journal(path)
            found += [_closed_of(item.graph, item.closed_at or 0.0) for item in entries if item.graph is not None]
    return found


def _closed_of(graph: bytes, at: float) -> Closed:
    debate = decode_debate(graph)
    return Closed(debate, at, failure_summary(debate))


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
        PausedError: a host stopped it; the replies that were on their way are on record too.
    """
    began = time.monotonic()
    ids = {debate_id(stage, task): task for task in tasks}
    done = {closed.debate.id: closed for closed in await asyncio.to_thread(recorded, folder, stage)}
    done = {key: closed for key, closed in done.items() if key in ids}
    num_recorded = len(done)
    progress.stage(stage, total=len(tasks), closed=num_recorded)
    if on_closed is not None and done:
        await on_closed(list(done.values()))
    stats: dict[str, ArenaStats] = {}
    num_aside = sum(bool(closed.set_aside) for closed in done.values())
    watch = Watch(
        cluster.hosts,
        stage,
        total=len(ids),
        closed=num_recorded,
        set_aside=num_aside,
        max_open=cluster.recipe.run.max_open * folder.manifest.num_arenas,
        tell=(progress.show, cluster.metrics.set),
    )
    if num_recorded < len(ids):
        waiting = assignments(stage, [task for key, task in ids.items() if key not in done], cluster.recipe.seed)

        async def take(arena: str, finished: list[Finished], latest: ArenaStats) -> None:
            nonlocal num_aside
            stats[arena] = latest
            closed = [_closed_of(item.graph, item.closed_at) for item in finished]
            done.update({item.debate.id: item for item in closed})
            for item in filter(lambda item: item.set_aside, closed):
                num_aside += 1
                log.info("set aside: %s", item.set_aside, extra={"stage": stage, "debate": item.debate.id})
            watch.took(arena, latest, closed=len(done), set_aside=num_aside)
            if on_closed is not None and closed:
                await on_closed(closed)

        await _drive(cluster, folder, stage, waiting, take, watch, progress.note)
    return StageResult(
        name=stage,
        closed=[done[key] for key in ids],
        num_new=len(done) - num_recorded,
        replies=sum(item.replies for item in stats.values()),
        usage=sum((item.usage for item in stats.values()), Usage()),
        wall_s=time.monotonic() - began,
    )


async def _drive(
    cluster: Cluster,
    folder: RunFolder,
    stage: str,
    waiting: deque[Assignment],
    take: Take,
    watch: Watch,
    note: Callable[[str], None],
) -> None:
    """Start the stage's arenas, keep them filled until nothing is left, stop them."""
    paths = needed(folder.journals(stage), len(waiting))
    paths[0].parent.mkdir(parents=True, exist_ok=True)
    shards = [Shard(cluster, f"{stage}/{path.stem}", path, waiting, len(paths), take, note) for path in paths]
    try:
        opened = set().union(*await asyncio.gather(*(shard.start() for shard in shards)))
        for _ in range(len(waiting)):
            if (given := waiting.popleft()).debate_id not in opened:
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
            await _bring_in(cluster, shards, str(first))
        raise first from errors
    finally:
        for shard in shards:
            await shard.stop()


def needed(paths: Sequence[Path], num_waiting: int) -> list[Path]:
    """The journals that get an arena: those that hold something, and as many more as the tasks are worth a process."""
    worth = max(1, math.ceil(num_waiting / MIN_SHARE))
    return [path for number, path in enumerate(paths) if number < worth or path.exists()]


async def _bring_in(cluster: Cluster, shards: Sequence[Shard], reason: str) -> None:
    """Send nothing more, and put what was on its way on record: it is paid for."""
    await cluster.hosts.halt(reason)
    for shard in shards:
        await shard.settle()


def _first(errors: BaseExceptionGroup[MootError]) -> MootError:
    """The first error inside, however deep."""
    found: BaseException = errors
    while isinstance(found, BaseExceptionGroup):
        found = found.exceptions[0]
    assert isinstance(found, MootError)
    return found
