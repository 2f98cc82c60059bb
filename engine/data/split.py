"""Two sides of a set of tasks, learned from and held out: cut by ids and a seed, never sharing a question."""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Iterable
from typing import Literal

import msgspec

from protocols.errors import TaskError
from protocols.task import Task


class Split(msgspec.Struct, frozen=True):
    """Tasks to learn from and tasks held out; no id and no question is on both sides."""

    train: list[Task]
    test: list[Task]


class Cut(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How tasks are split. Every source that does not make its own tasks has these settings.

    ``overlap: drop`` takes what is on both sides out of the training side, before anything is counted.
    """

    train: int = 0  # 0: all
    test: int = 0  # 0: all of the held-out tasks, or a fifth where there is one set to cut
    seed: int = 0
    only: Literal["", "train", "test"] = ""  # all tasks to one side, the other stays empty
    overlap: Literal["refuse", "drop"] = "refuse"

    def __post_init__(self) -> None:
        check_counts(self.train, self.test)

    def split(self, where: str, first: list[Task], second: list[Task] | None = None) -> Split:
        """Choose the two sides.

        Args:
            where: names the tasks in errors.
            first: the tasks to learn from; where ``second`` is None the held-out ones are cut from them too.
        Raises: TaskError: more are asked for than there are, or the sides overlap.
        """
        tasks, held_out = by_hash(first, self.seed), None if second is None else by_hash(second, self.seed)
        if self.only == "test":
            return Split([], _first(tasks if held_out is None else held_out, self.test, "test", where))
        if self.only == "train":
            return Split(_first(tasks, self.train, "train", where), [])
        if held_out is None:
            return self._cut(where, tasks)
        if self.overlap == "drop":
            ids, asked = {task.id for task in held_out}, {what_it_asks(task) for task in held_out}
            tasks = [task for task in tasks if task.id not in ids and what_it_asks(task) not in asked]
        return checked_split(
            _first(tasks, self.train, "train", where), _first(held_out, self.test, "test", f"the test side of {where}")
        )

    def _cut(self, where: str, tasks: list[Task]) -> Split:
        count = self.test or max(1, len(tasks) // 5)
        if count + max(1, self.train) > len(tasks):
            if not self.train:
                raise TaskError(
                    f"tasks: {where} holds {len(tasks)} tasks, and test={count} leaves none to learn from; lower test"
                )
            raise TaskError(
                f"tasks: {where} holds {len(tasks)} tasks, train={self.train} and test={count} ask for more; "
                "lower one of them"
            )
        held_out, rest = tasks[:count], tasks[count:]
        if self.overlap == "drop":
            asked = {what_it_asks(task) for task in held_out}
            rest = [task for task in rest if what_it_asks(task) not in asked]
        return checked_split(_first(rest, self.train, "train", where), held_out)


def checked_split(train: list[Task], test: list[Task]) -> Split:
    """Raises: TaskError: a task is on both sides, or a question is, under two ids."""
    mend = "take them out of one side, or set tasks.overlap: drop"
    if both := {task.id for task in train} & {task.id for task in test}:
        raise TaskError(
            f"tasks: {len(both)} tasks are both learned from and held out, {sorted(both)[0]!r} among them; {mend}"
        )
    asked = {what_it_asks(task): task for task in test}
    if again := sorted({task.id for task in train if what_it_asks(task) in asked}):
        raise TaskError(
            f"tasks: {len(again)} questions are both learned from and held out under two ids, that of {again[0]!r} "
            f"among them; {mend}"
        )
    return Split(train, test)


def what_it_asks(task: Task) -> tuple[str, ...]:
    """Equal for tasks that ask the same of the same images, whatever the case, spaces and order of the choices."""
    choices = sorted(_plain(choice) for choice in task.choices)
    return (_plain(task.question), *choices, *(image.sha256 for image in task.images))


def _plain(text: str) -> str:
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def _first(tasks: list[Task], count: int, side: str, where: str) -> list[Task]:
    if count > len(tasks):
        raise TaskError(f"tasks: {where} holds {len(tasks)} tasks for tasks.{side}={count}; lower it")
    return tasks[: count or None]


def check_counts(train: int, test: int) -> None:
    for name, value in (("train", train), ("test", test)):
        if value < 0:
            raise ValueError(f"{name}={value} must not be below 0")


def by_hash(tasks: Iterable[Task], seed: int) -> list[Task]:
    """In an order that depends on ids and seed alone."""
    return sorted(tasks, key=lambda task: hashlib.blake2b(f"{seed}\x1f{task.id}".encode(), digest_size=8).digest())
