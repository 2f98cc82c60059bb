"""A shard whose arena dies under it, in one process: the journal is real, the process is not."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from engine.debates.arena import Arena, Finished
from engine.debates.cluster import Cluster
from engine.debates.control import Control
from engine.debates.shard import MAX_DEATHS, MAX_REST_S, REST_S, Shard, _rest_s
from engine.live.arena_stats import ArenaStats
from protocols.errors import AgentError, HostLostError
from tests.engine.helpers import Host, assignment, make_arena, make_tasks

pytestmark = pytest.mark.asyncio


class Handle:
    """An arena as an actor's handle shows it; once it is killed no call comes through, and its memory is gone."""

    def __init__(self, arena: Arena) -> None:
        self.arena, self.alive, self.calls = arena, True, 0

    def __getattr__(self, method: str) -> Any:
        async def remote(*args: Any) -> Any:
            self.calls += 1
            if not self.alive:
                raise HostLostError("a process of the run died: killed")
            found = getattr(self.arena, method)(*args)
            return await found if isinstance(found, Awaitable) else found

        return SimpleNamespace(remote=remote)

    async def kill(self) -> None:
        self.alive = False
        await self.arena.close()


class Machines:
    """Stands for the cluster: places arenas on the one journal, and kills those it is told to."""

    def __init__(self, path: Path, host: Host, *, max_open: int) -> None:
        self.recipe = SimpleNamespace(run=SimpleNamespace(max_open=max_open))
        self.control = Control()
        self.handles: list[Handle] = []
        self.stillborn = self.stillborn_first = 0
        self._path, self._host = path, host

    async def start_arena(self, name: str, journal: Path, *, instead_of: Handle | None = None) -> Handle:
        assert instead_of is None or not instead_of.alive
        handle = Handle(make_arena(journal, self._host))
        self.handles.append(handle)
        if self.stillborn > 0 and instead_of is not None:
            self.stillborn -= 1
            await handle.kill()
        elif self.stillborn_first > 0:
            self.stillborn_first -= 1
            await handle.kill()
        return handle

    async def stop_arena(self, name: str, handle: Handle) -> None:
        if handle.alive:
            await handle.arena.close()


class Stage:
    """Feeds one shard, and keeps what it was told."""

    def __init__(self, path: Path, *, tasks: int, max_open: int = 8) -> None:
        self.machines = Machines(path, Host(), max_open=max_open)
        self.waiting = deque(assignment(task) for task in make_tasks(tasks))
        self.closed: list[str] = []
        self.notes: list[str] = []
        self.on_take: Callable[[], Awaitable[None]] | None = None
        cluster = cast(Cluster, self.machines)
        self.shard = Shard(cluster, "s/a", path, self.waiting, 1, self.take, self.notes.append)

    async def take(self, name: str, finished: list[Finished], stats: ArenaStats) -> None:
        self.closed += [item.debate_id for item in finished]
        self.stats = stats
        if self.on_take is not None:
            await self.on_take()


async def test_nothing_is_waited_for_once_all_have_closed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("engine.debates.shard.COLLECT_S", 3600.0)
    monkeypatch.setattr("engine.debates.shard.REST_S", 3600.0)
    monkeypatch.setattr("engine.debates.shard.MAX_REST_S", 3600.0)
    stage = Stage(tmp_path / "a.sqlite", tasks=20)
    await stage.shard.start()
    await asyncio.wait_for(stage.shard.feed(), 60.0)
    await stage.shard.stop()
    assert len(stage.closed) == 20


async def test_a_shard_whose_arena_dies_goes_on_with_the_next(tmp_path: Path) -> None:
    stage = Stage(tmp_path / "a.sqlite", tasks=60)
    deaths = [4, 20, 45]

    async def kill() -> None:
        if deaths and len(stage.closed) >= deaths[0]:
            deaths.pop(0)
            await stage.machines.handles[-1].kill()

    stage.on_take = kill
    assert await stage.shard.start() == set()
    await stage.shard.feed()
    await stage.shard.stop()
    assert not deaths and len(stage.notes) == 3 and len(stage.machines.handles) == 4
    assert sorted(stage.closed) == sorted(f"s/t{number}" for number in range(60))  # each once
    assert not stage.waiting and stage.stats.closed <= 60


async def test_an_arena_that_dies_before_it_is_up_is_started_once_more(tmp_path: Path) -> None:
    stage = Stage(tmp_path / "a.sqlite", tasks=5)
    await stage.shard.start()
    stage.machines.stillborn = 2
    await stage.machines.handles[0].kill()
    await stage.shard.feed()
    await stage.shard.stop()
    assert len(stage.closed) == 5 and len(stage.notes) == 3


async def test_what_a_killed_run_left_open_or_closed_at_the_last_moment_is_told_once(tmp_path: Path) -> None:
    path, host = tmp_path / "a.sqlite", Host(stop_after=22)
    left = make_arena(path, host)
    await left.recover()
    left.open([assignment(task) for task in make_tasks(5)])
    await host.stopped.wait()
    await left.settle()
    await left.close()

    stage = Stage(path, tasks=5)  # it looked before the last ones closed: all five wait
    stage.machines.stillborn_first = 2
    on_record = await stage.shard.start()
    closed_late = set(stage.closed)
    assert on_record == {item.debate_id for item in stage.waiting} > closed_late > set()
    assert len(stage.notes) == 2
    stage.waiting.clear()
    (*_, handle) = stage.machines.handles
    while len(handle.arena._finished) + len(closed_late) < 5:
        await asyncio.sleep(0.01)
    await handle.kill()  # with what nobody has collected
    await stage.shard.feed()
    await stage.shard.stop()
    assert sorted(stage.closed) == sorted(on_record)


async def test_a_dead_arena_has_settled(tmp_path: Path) -> None:
    stage = Stage(tmp_path / "a.sqlite", tasks=1)
    await stage.shard.settle()
    await stage.shard.start()
    await stage.machines.handles[0].kill()
    await stage.shard.settle()
    await stage.shard.stop()
    assert stage.notes == []


async def test_an_arena_that_dies_again_and_again_ends_the_stage(tmp_path: Path) -> None:
    stage = Stage(tmp_path / "a.sqlite", tasks=5)
    await stage.shard.start()
    stage.machines.stillborn = 1000
    await stage.machines.handles[0].kill()
    with pytest.raises(
        AgentError, match=rf"died {MAX_DEATHS + 1} times in a row, the last time: a process .* lower run"
    ):
        await stage.shard.feed()
    await stage.shard.stop()
    assert len(stage.waiting) == 5


async def test_shards_take_their_share_and_no_more(tmp_path: Path) -> None:
    stage = Stage(tmp_path / "a.sqlite", tasks=10, max_open=100)
    stage.shard._num_shards = 4
    assert [len(stage.shard._next(room)) for room in (100, 1, 0, -3, 100)] == [3, 1, 0, 0, 2]


@pytest.mark.parametrize(
    ("rested_s", "num_open", "num_closed", "passed_s", "rest_s"),
    [
        (0.3, 10_000, 5, 0.02, 0.4),  # then a hundred places are free
        (0.1, 10_000, 5, 0.02, 0.2),  # how fast they close may change
        (0.2, 4_000, 20, 0.05, 0.1),
        (0.2, 32, 2, 0.02, REST_S),  # every place counts
        (0.4, 10_000, 0, 1.0, MAX_REST_S),
        (0.0, 10_000, 0, 1.0, REST_S),
        (0.2, 0, 0, 1.0, REST_S),
        (0.2, 0, 7, 0.0, REST_S),
    ],
)
async def test_an_arena_is_left_alone_until_a_hundredth_of_its_places_is_free(
    rested_s: float, num_open: int, num_closed: int, passed_s: float, rest_s: float
) -> None:
    assert _rest_s(rested_s, num_open, num_closed, passed_s) == pytest.approx(rest_s)
