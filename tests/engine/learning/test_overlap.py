"""What comes after what in a loop, on a clock of its own: the bound on staleness, the time it saves, and failures."""

from __future__ import annotations

import asyncio
import heapq
import itertools
from collections.abc import Awaitable

import pytest

from engine.learning.overlap import overlapped
from protocols.errors import TrainerError


class Clock:
    """Time that passes when everybody waits for it."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self._waiting: list[tuple[float, int, asyncio.Event]] = []
        self._numbers = itertools.count()  # who waits until the same moment goes on in turn

    async def sleep(self, seconds: float) -> None:
        heapq.heappush(self._waiting, (self.now_s + seconds, next(self._numbers), over := asyncio.Event()))
        await over.wait()

    async def run(self, work: Awaitable[None]) -> None:
        working = asyncio.ensure_future(work)
        while not working.done():
            for _ in range(20):  # until nobody has anything to do
                await asyncio.sleep(0)
            if self._waiting and not working.done():
                self.now_s, _, over = heapq.heappop(self._waiting)
                over.set()
        await working


class Loop:
    """Iterations of stages that take so long; ``began`` tells when each begins."""

    def __init__(self, *, debate_s: float = 4, train_s: float = 3, evaluate_s: float = 1, fails: int = 0) -> None:
        self.clock = Clock()
        self.began: dict[str, float] = {}
        self.published = 0
        self.spoke: dict[int, int] = {}  # iteration -> the version that its debates were spoken with
        self.open: set[str] = set()  # what is under way
        self._debate_s, self._train_s, self._evaluate_s, self._fails = debate_s, train_s, evaluate_s, fails
        self._closed = {number: asyncio.Event() for number in range(1, 10)}

    async def debate(self, number: int) -> None:
        self.spoke[number] = self.published
        await self._take(f"debate-{number}", self._debate_s)
        assert self.spoke[number] == self.published
        self._closed[number].set()

    async def learn(self, number: int) -> None:
        await self._closed[number].wait()  # nothing streams: the bare order
        await self._take(f"train-{number}", self._train_s)
        if number == self._fails:
            raise TrainerError("the loss is not a number")

    async def arrive(self, number: int) -> None:
        assert number == self.published + 1
        self.published = number
        await self._take(f"eval-{number}", self._evaluate_s)

    async def _take(self, stage: str, seconds: float) -> None:
        assert stage not in self.began
        self.began[stage] = self.clock.now_s
        self.open.add(stage)
        assert sum(not name.startswith("train") for name in self.open) <= 1, self.open
        assert sum(name.startswith("train") for name in self.open) <= 1, self.open
        try:
            await self.clock.sleep(seconds)
        finally:
            self.open.discard(stage)

    def go(self, iterations: int, staleness: int) -> float:
        """Returns: how long it took, in seconds of the clock."""
        numbers = range(1, iterations + 1)
        asyncio.run(self.clock.run(overlapped(numbers, staleness, self.debate, self.learn, self.arrive)))
        return self.clock.now_s


def test_without_staleness_all_follow_each_other() -> None:
    loop = Loop()
    assert loop.go(2, 0) == 2 * (4 + 3 + 1)
    assert loop.began == {"debate-1": 0, "train-1": 4, "eval-1": 7, "debate-2": 8, "train-2": 12, "eval-2": 15}
    assert loop.spoke == {1: 0, 2: 1}


def test_debates_are_ahead_by_no_more_than_they_may_and_versions_change_between_them() -> None:
    loop = Loop()
    assert loop.go(4, 1) == 22
    serving = {"debate-1": 0, "debate-2": 4, "eval-1": 8, "debate-3": 9, "eval-2": 13, "debate-4": 14, "eval-3": 18}
    training = {"train-1": 4, "train-2": 8, "train-3": 13, "train-4": 18}
    assert loop.began == serving | training | {"eval-4": 21}
    assert loop.spoke == {1: 0, 2: 0, 3: 1, 4: 2}


@pytest.mark.parametrize("train_s", [0.0, 1.0, 50.0])
@pytest.mark.parametrize("staleness", [0, 1, 2, 3])
def test_who_speaks_depends_on_nothing_that_takes_time(train_s: float, staleness: int) -> None:
    loop = Loop(train_s=train_s)
    loop.go(6, staleness)
    assert loop.spoke == {number: max(0, number - 1 - staleness) for number in range(1, 7)}
    assert [stage for stage in loop.began if stage.startswith("train")] == [f"train-{number}" for number in range(1, 7)]
    assert loop.published == 6


@pytest.mark.parametrize(
    ("debate_s", "train_s"),
    [(4.0, 5.0), (4.0, 9.0), (8.0, 3.0)],  # alike, training slower, debating slower
)
def test_an_iteration_takes_as_long_as_its_longer_side(debate_s: float, train_s: float) -> None:
    took = {
        (staleness, number): Loop(debate_s=debate_s, train_s=train_s, evaluate_s=1).go(number, staleness)
        for staleness in (0, 1, 2)
        for number in (5, 6)
    }
    another = {staleness: took[staleness, 6] - took[staleness, 5] for staleness in (0, 1, 2)}
    assert another[0] == debate_s + train_s + 1
    assert another[1] == another[2] == max(debate_s + 1, train_s)  # more than one iteration ahead saves nothing more


def test_a_training_that_fails_ends_the_loop_once_the_debates_beside_it_are_over() -> None:
    loop = Loop(fails=1)
    with pytest.raises(TrainerError, match="the loss is not a number"):
        loop.go(3, 1)
    assert list(loop.began) == ["debate-1", "debate-2", "train-1"]  # nothing is trained on top, nobody is evaluated
    assert loop.clock.now_s == 8 and loop.open == set()


def test_where_a_training_has_failed_no_further_debates_begin() -> None:
    loop = Loop()

    async def failing(number: int) -> None:
        await loop.clock.sleep(1)
        raise TrainerError("there is no base")

    loop.learn = failing  # type: ignore[method-assign]
    with pytest.raises(TrainerError, match="there is no base"):
        loop.go(4, 2)
    assert list(loop.began) == ["debate-1"]


def test_debates_that_fail_take_the_trainings_with_them() -> None:
    loop = Loop(train_s=100)
    debate = loop.debate

    async def failing(number: int) -> None:
        await debate(number)
        if number == 2:
            raise RuntimeError("no disk")

    loop.debate = failing  # type: ignore[method-assign]
    with pytest.raises(RuntimeError, match="no disk"):
        loop.go(3, 1)
    assert list(loop.began) == ["debate-1", "debate-2", "train-1"] and loop.open == set()


def test_an_interrupted_loop_leaves_no_training_behind() -> None:
    loop = Loop(train_s=100)

    async def interrupted() -> None:
        numbers: range = range(1, 4)
        working = asyncio.ensure_future(overlapped(numbers, 1, loop.debate, loop.learn, loop.arrive))
        await loop.clock.sleep(9)
        assert loop.open == {"train-1"}
        working.cancel()
        with pytest.raises(asyncio.CancelledError):
            await working

    asyncio.run(loop.clock.run(interrupted()))
    assert loop.open == set()
