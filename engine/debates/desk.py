"""One stage's tasks: which wait, which are done, and which are to be debated again."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence

import msgspec

from engine.debates.arena import Assignment
from engine.live.arena_stats import ArenaStats
from engine.record.attempts import Attempts
from protocols.errors import ConfigError
from protocols.graph import Debate
from protocols.machine import derive_seed
from protocols.task import Task


class Closed(msgspec.Struct, frozen=True):
    """A debate that is over, and when."""

    debate: Debate
    at: float
    set_aside: str


class Desk:
    """A task is done once the attempt of it that counts is closed. Begins with what is on record."""

    def __init__(
        self, stage: str, tasks: Sequence[Task], seed: int, attempts: Attempts, recorded: Iterable[Closed]
    ) -> None:
        self.stage, self._seed, self._attempts = stage, seed, attempts
        self._tasks = {task.id: task for task in tasks}
        found = {item.debate.id: item for item in recorded}
        self._done = {task: item for task in self._tasks if (item := found.get(attempts.id(stage, task))) is not None}
        self.waiting = deque(self._assignment(task) for task in self._tasks if task not in self._done)
        self.stats: dict[str, ArenaStats] = {}  # of each arena, the latest
        self.num_new = 0  # closed since
        self.num_aside = len(self.set_aside)

    def _assignment(self, task: str) -> Assignment:
        name = self._attempts.id(self.stage, task)
        return Assignment(debate_id=name, task=self._tasks[task], seed=derive_seed(self._seed, name))

    def __len__(self) -> int:
        return len(self._tasks)

    @property
    def done(self) -> list[Closed]:
        """In the order of the tasks."""
        return [self._done[task] for task in self._tasks if task in self._done]

    @property
    def num_done(self) -> int:
        return len(self._done)

    @property
    def set_aside(self) -> list[Closed]:
        return [item for item in self._done.values() if item.set_aside]

    def take(self, closed: Iterable[Closed]) -> None:
        for item in closed:
            task = item.debate.task.id
            if task in self._tasks and self._attempts.id(self.stage, task) == item.debate.id:
                self._done[task] = item
                self.num_new += 1
                self.num_aside += bool(item.set_aside)

    def again(self, wanted: Sequence[str]) -> list[str]:
        """Debate tasks again that were set aside: these, by their ids or their debates', or all of them.

        Returns: the debates that take the place of the old ones. Raises: ConfigError: one was not set aside.
        """
        aside = {item.debate.task.id: item.debate.id for item in self.set_aside}
        if wanted:
            aside = {task: aside[task] for task in (self._set_aside(name, aside) for name in wanted)}
        self._attempts.again(aside.values())
        self.num_aside -= len(aside)
        for task in aside:
            del self._done[task]
            self.waiting.append(self._assignment(task))
        return [self._attempts.id(self.stage, task) for task in aside]

    def _set_aside(self, name: str, aside: dict[str, str]) -> str:
        """The task that a user means. Raises: ConfigError: it was not set aside."""
        for task, debate in aside.items():
            if name in (task, debate):
                return task
        known = next((task for task in self._tasks if name in (task, self._attempts.id(self.stage, task))), None)
        if known is None:
            raise ConfigError(f"{name!r} is no task of stage {self.stage}; `moot ctl show RUN` names those set aside")
        state = "has ended well" if known in self._done else "is open, or waits for its turn"
        raise ConfigError(f"task {known!r} {state}: only what was set aside can be debated again")
