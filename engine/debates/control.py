"""What somebody outside wants of a run that is under way. Stages look here; ``engine.debates.attendant`` puts it here.

Nothing is awaited and no file is read: a stage can look as often as it likes.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

from engine.debates.desk import Desk
from protocols.errors import PausedError, TerminatedError

State = Literal["running", "paused", "draining", "stopping"]

DRAINED = "drained: no debate is open any more; go on with `moot resume RUN`"
TERMINATED = "told to end by SIGTERM; what is on record stays: go on with `moot resume RUN`"


class Control:
    """The wishes. ``paused``: hosts send nothing, and no task is handed out. ``draining``: what is open ends, then the
    run stops. ``stopping``: the run stops as soon as what is in the models has come in."""

    def __init__(self) -> None:
        self.paused = self.draining = self.stopping = False
        self.desk: Desk | None = None  # of the stage at work
        self.latest: Desk | None = None  # of that stage, or the one before

    @property
    def state(self) -> State:
        if self.stopping:
            return "stopping"
        return "paused" if self.paused else "draining" if self.draining else "running"

    @property
    def wish(self) -> str:
        """What holds the run up because somebody wanted it so; "" for nothing."""
        words = {
            "paused": "paused by `moot ctl pause`; `moot ctl resume` goes on",
            "draining": "draining: no more debates are opened",
            "stopping": "stopping: what is in the models may still come in",
        }
        return words.get(self.state, "")

    @property
    def hands_out(self) -> bool:
        """Whether tasks that wait may be opened."""
        return not (self.paused or self.draining or self.stopping)

    @contextmanager
    def at(self, desk: Desk) -> Iterator[None]:
        """A stage is at work. Raises: PausedError: it is not to begin, or has ended before its time."""
        self.check()
        if self.draining:
            raise PausedError(DRAINED)
        self.desk = self.latest = desk
        try:
            yield
        finally:
            self.desk = None
        if desk.waiting:
            raise PausedError(DRAINED)

    def check(self) -> None:
        """Raises: TerminatedError: the run is to stop now."""
        if self.stopping:
            raise TerminatedError(TERMINATED)
