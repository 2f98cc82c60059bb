"""One time limit for many awaits: a single timer stands for the oldest of them, so that an await costs no timer."""

from __future__ import annotations

import asyncio
from types import TracebackType


class Deadlines:
    """Limits of ``limit_s`` seconds each, on one event loop. ``with deadlines.one():`` as with ``asyncio.timeout``."""

    def __init__(self, limit_s: float) -> None:
        self._limit_s = limit_s
        self._running: dict[Limit, None] = {}  # the oldest first, and so the first to pass
        self._timer: asyncio.TimerHandle | None = None

    def one(self) -> Limit:
        """A limit that begins now, on the current task. Raises TimeoutError on leaving, when it has passed."""
        loop = asyncio.get_running_loop()
        task = asyncio.current_task()
        assert task is not None  # it is awaited
        limit = Limit(self._running, task, loop.time() + self._limit_s)
        self._running[limit] = None
        if self._timer is None:
            self._timer = loop.call_at(limit.at_s, self._sweep)
        return limit

    def _sweep(self) -> None:
        loop, self._timer = asyncio.get_running_loop(), None
        now = loop.time()
        for limit in list(self._running):
            if limit.at_s > now:
                self._timer = loop.call_at(limit.at_s, self._sweep)
                return
            limit.pass_by()

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()


class Limit:
    """One await's limit; see ``Deadlines``. A cancellation from elsewhere stays one, as with ``asyncio.timeout``."""

    __slots__ = ("_cancelling", "_passed", "_running", "_task", "at_s")

    def __init__(self, running: dict[Limit, None], task: asyncio.Task[object], at_s: float) -> None:
        self.at_s = at_s
        self._running, self._task = running, task
        self._cancelling = task.cancelling()
        self._passed = False

    def pass_by(self) -> None:
        del self._running[self]
        self._passed = True
        self._task.cancel()

    def __enter__(self) -> None:
        return None

    def __exit__(
        self, kind: type[BaseException] | None, err: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._passed:
            del self._running[self]
        elif self._task.uncancel() <= self._cancelling and kind is asyncio.CancelledError:
            raise TimeoutError from err
