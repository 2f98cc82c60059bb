"""One time limit for many waits: a single timer stands for the oldest of them, so that a wait costs no timer."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Hashable
from types import TracebackType
from typing import Generic, TypeVar

Key = TypeVar("Key", bound=Hashable)


class Countdowns(Generic[Key]):
    """Waits of ``length_s`` seconds each, on one event loop.

    Args: over: is told of each that has come to its end, and may begin and stop others.
    """

    def __init__(self, length_s: float, over: Callable[[Key], None]) -> None:
        self._length_s, self._over = length_s, over
        self._due = OrderedDict[Key, float]()  # of the loop's clock; the oldest first, and so the first to end
        self._timer: asyncio.TimerHandle | None = None

    def begin(self, key: Key) -> None:
        """From now on; one that runs already begins anew."""
        loop = asyncio.get_running_loop()
        self._due.pop(key, None)
        at_s = self._due[key] = loop.time() + self._length_s
        if self._timer is None:
            self._timer = loop.call_at(at_s, self._sweep)

    def stop(self, key: Key) -> None:
        """Safe to call of one that does not run."""
        self._due.pop(key, None)

    def _sweep(self) -> None:
        loop = asyncio.get_running_loop()
        now = loop.time()
        try:
            while self._due and (first := next(iter(self._due.items())))[1] <= now:
                del self._due[first[0]]
                self._over(first[0])
        finally:
            self._timer = loop.call_at(next(iter(self._due.values())), self._sweep) if self._due else None

    def close(self) -> None:
        self._due.clear()
        if self._timer is not None:
            self._timer.cancel()


class Deadlines:
    """Limits of ``limit_s`` seconds each, on one event loop. ``with deadlines.one():`` as with ``asyncio.timeout``."""

    def __init__(self, limit_s: float) -> None:
        self._running = Countdowns[Limit](limit_s, Limit.pass_by)

    def one(self) -> Limit:
        """A limit that begins now, on the current task. Raises TimeoutError on leaving, when it has passed."""
        task = asyncio.current_task()
        assert task is not None  # it is awaited
        limit = Limit(self._running, task)
        self._running.begin(limit)
        return limit

    def close(self) -> None:
        self._running.close()


class Limit:
    """One await's limit; see ``Deadlines``. A cancellation from elsewhere stays one, as with ``asyncio.timeout``."""

    __slots__ = ("_cancelling", "_passed", "_running", "_task")

    def __init__(self, running: Countdowns[Limit], task: asyncio.Task[object]) -> None:
        self._running, self._task = running, task
        self._cancelling = task.cancelling()
        self._passed = False

    def pass_by(self) -> None:
        self._passed = True
        self._task.cancel()

    def __enter__(self) -> None:
        return None

    def __exit__(
        self, kind: type[BaseException] | None, err: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._passed:
            self._running.stop(self)
        elif self._task.uncancel() <= self._cancelling and kind is asyncio.CancelledError:
            raise TimeoutError from err
