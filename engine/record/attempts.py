"""Attempts: a task that was set aside is debated again under another id, beside the attempt that stays on record.

The first attempt of a task is ``<stage>/<task>``, the second ``<stage>~2/<task>``: an id that no other task can have,
whatever it is called. ``retries.json`` in the run's folder says which attempt of a task counts, where not the first.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import msgspec

from engine.record.folder import write_atomically
from protocols.errors import ConfigError

FILE = "retries.json"


def debate_id(stage: str, task: str, attempt: int = 1) -> str:
    """The same task has another debate in every stage and attempt."""
    return f"{stage}/{task}" if attempt == 1 else f"{stage}~{attempt}/{task}"


def split_id(debate: str) -> tuple[str, str, int]:
    """Stage, task and attempt."""
    place, _, task = debate.partition("/")
    stage, _, number = place.partition("~")
    return stage, task, int(number) if number.isdigit() else 1


class Attempts:
    """Which attempt of each task counts. Raises: ConfigError: the file is damaged, or cannot be written."""

    def __init__(self, folder: Path) -> None:
        self._file = folder / FILE
        self._of: dict[str, dict[str, int]] = {}  # stage -> task -> attempt
        try:
            if self._file.exists():
                self._of = msgspec.json.decode(self._file.read_bytes(), type=dict[str, dict[str, int]])
        except (OSError, msgspec.MsgspecError) as err:
            raise ConfigError(f"{self._file}: cannot be read: {err}") from err

    def id(self, stage: str, task: str) -> str:
        """Of the debate of this task that counts."""
        return debate_id(stage, task, self._of.get(stage, {}).get(task, 1))

    def counts(self, debate: str) -> bool:
        """Whether it is the attempt of its task that counts."""
        stage, task, _ = split_id(debate)
        return self.id(stage, task) == debate

    def again(self, debates: Iterable[str]) -> None:
        """Another attempt of each of these counts from now on; durable on return."""
        made = {stage: dict(tasks) for stage, tasks in self._of.items()}
        for stage, task, attempt in map(split_id, debates):
            made.setdefault(stage, {})[task] = attempt + 1
        self._write(made)

    def take_over(self, debates: Iterable[str]) -> None:
        """These attempts count."""
        made: dict[str, dict[str, int]] = {}
        for stage, task, attempt in map(split_id, debates):
            if attempt > 1:
                made.setdefault(stage, {})[task] = attempt
        self._write(made)

    def _write(self, made: dict[str, dict[str, int]]) -> None:
        if made == self._of:
            return
        try:
            write_atomically(self._file, msgspec.json.format(msgspec.json.encode(made), indent=2))
        except OSError as err:
            raise ConfigError(f"{self._file}: cannot be written: {err.strerror}") from err
        self._of = made
