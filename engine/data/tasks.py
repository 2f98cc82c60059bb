"""Task sources: where questions come from, and how they are split into those learned from and those held out."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Literal

import msgspec

from engine.data.canonical import canonise_gold
from engine.data.datasets_hub import HubSource
from engine.data.media import Hygiene
from engine.data.split import Cut, Split, check_counts, checked_split
from engine.data.task_files import FileFormat, rows
from engine.data.task_rows import Fields, Scalar, TaskReader, check_format, selected
from protocols.answer import read_gold
from protocols.errors import ConfigError, TaskError
from protocols.task import Task, stable_id

__all__ = [
    "LEVELS",
    "SOURCES",
    "ArithmeticSource",
    "FileSource",
    "HubSource",
    "Level",
    "Split",
    "TaskSource",
    "checked_split",
    "load_split",
]

MAX_MISSES = 2000  # draws in a row that were there already: the level is as good as exhausted

Level = Literal["add20", "add30", "add49", "add99", "add3", "mixed10", "mixed30"]


def _sum_of_two(low: int, high: int) -> Callable[[random.Random], tuple[str, int]]:
    def draw(rng: random.Random) -> tuple[str, int]:
        a, b = sorted((rng.randint(low, high), rng.randint(low, high)))
        first, second = (a, b) if rng.random() < 0.5 else (b, a)
        return f"{first} + {second}", a + b

    return draw


def _sum_of_three(rng: random.Random) -> tuple[str, int]:
    a, b, c = (rng.randint(1, 9) for _ in range(3))
    return f"{a} + {b} + {c}", a + b + c


def _mixed(high: int) -> Callable[[random.Random], tuple[str, int]]:
    """a + b*c + d - e*f, the arithmetic of Du et al. 2023, sec. 3.1; MAFT draws up to 30."""

    def draw(rng: random.Random) -> tuple[str, int]:
        a, b, c, d, e, f = (rng.randint(1, high) for _ in range(6))
        return f"{a} + {b}*{c} + {d} - {e}*{f}", a + b * c + d - e * f

    return draw


LEVELS: Mapping[Level, Callable[[random.Random], tuple[str, int]]] = {
    "add20": _sum_of_two(2, 20),
    "add30": _sum_of_two(2, 30),
    "add49": _sum_of_two(10, 49),
    "add99": _sum_of_two(10, 99),
    "add3": _sum_of_three,
    "mixed10": _mixed(10),
    "mixed30": _mixed(30),
}


class ArithmeticSource(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Generated sums. Two tasks are the same, and never on both sides of the split, if they hold the same numbers."""

    level: Level = "add30"
    train: int = 100  # debates to learn from
    test: int = 200  # held out
    seed: int = 0

    def __post_init__(self) -> None:
        check_counts(self.train, self.test)

    def load(self) -> Split:
        """Raises: TaskError: the level has fewer different tasks than asked for."""
        rng = random.Random(self.seed)
        wanted, tasks, misses = self.train + self.test, dict[str, Task](), 0
        while len(tasks) < wanted:
            question, value = LEVELS[self.level](rng)
            task_id = stable_id(f"arithmetic-{self.level}", _same_numbers(question))
            misses = misses + 1 if task_id in tasks else 0
            tasks.setdefault(
                task_id, Task(id=task_id, question=question, gold=(str(value),), dataset=f"arithmetic-{self.level}")
            )
            if misses > MAX_MISSES:
                raise TaskError(
                    f"tasks: level {self.level!r} has only about {len(tasks)} different tasks, train + test asks for "
                    f"{wanted}; lower tasks.train or tasks.test, or take a harder level"
                )
        drawn = list(tasks.values())
        return checked_split(drawn[: self.train], drawn[self.train :])


def _same_numbers(question: str) -> str:
    """ "3 + 12" and "12 + 3" are one task; products keep their places."""
    terms = question.split(" ")
    return " ".join(sorted(terms)) if set(terms[1::2]) == {"+"} else question


class FileSource(Fields, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The user's own tasks: a JSON list, JSON lines, CSV, TSV, Parquet, or pairs of text.

    The settings of ``Fields`` name what to read. Without ``id`` a task's id is made from what it asks. Without
    ``test_path`` the file is split by a seeded hash of the ids, whatever the file's order.
    """

    path: str
    test_path: str = ""
    reference_path: str = ""  # the file whose lines are the references of the lines of path
    format: FileFormat = ""  # "": by the name's ending
    items: str = ""  # where in a JSON object the list of tasks is
    image_folder: str = ""  # "": the file's own
    image_hygiene: Hygiene = "keep"
    where: dict[str, Scalar | list[Scalar]] = msgspec.field(default_factory=dict)  # field -> value, or values, wanted
    train: int = 0  # 0: all
    test: int = 0  # 0: all of test_path, or a fifth of path
    seed: int = 0
    only: Literal["", "train", "test"] = ""
    overlap: Literal["refuse", "drop"] = "refuse"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_counts(self.train, self.test)
        check_format(self.answer_format)
        if self.reference_path and self.test_path:
            raise ValueError("reference_path goes with path alone; leave test_path out, or use format: pairs")

    def load(self) -> Split:
        """Raises: TaskError: a file is missing or broken (the text names file and line), or the sides overlap."""
        cut = Cut(train=self.train, test=self.test, seed=self.seed, only=self.only, overlap=self.overlap)
        return cut.split(self.path, self._read(self.path), self._read(self.test_path) if self.test_path else None)

    def digest(self) -> str:
        """SHA-256 of what the files hold; a file that is not there is for ``load`` to tell."""
        digest = hashlib.sha256()
        for path in filter(None, (self.path, self.test_path, self.reference_path)):
            if Path(path).is_file():
                digest.update(Path(path).read_bytes() + b"\0")
                if self.images and path != self.reference_path:
                    digest.update("".join(image.sha256 for task in self._read(path) for image in task.images).encode())
        return digest.hexdigest()

    def _read(self, path: str) -> list[Task]:
        reference = Path(self.reference_path) if self.reference_path else None
        found = rows(Path(path), file_format=self.format, items=self.items, reference=reference)
        reader = TaskReader(
            self,
            Path(self.path).stem,
            image_folder=Path(self.image_folder) if self.image_folder else Path(path).parent,
            hygiene=self.image_hygiene,
        )
        pairs = reference is not None or self.format == "pairs"  # one source may have several references
        tasks = reader.read(selected(found, self.where, path), several_answers=pairs)
        if not tasks:
            raise TaskError(f"{path}: holds no tasks")
        return tasks


TaskSource = ArithmeticSource | FileSource | HubSource
SOURCES: dict[str, type[ArithmeticSource] | type[FileSource] | type[HubSource]] = {
    "arithmetic": ArithmeticSource,
    "file": FileSource,
    "hub": HubSource,
}
"""Name in a recipe -> source. A new one adds its line here."""


def load_split(source: TaskSource) -> Split:
    """Raises: TaskError: see the sources. ConfigError: the answer format needs a package that is not there."""
    if isinstance(source, FileSource) and not source.path:
        raise ConfigError("tasks.path is empty; give the file that holds the tasks")
    split = source.load()
    tasks = canonise_gold([*split.train, *split.test])
    for task in tasks:
        _check_gold(task)
    test = [msgspec.structs.replace(task, held_out=True) for task in tasks[len(split.train) :]]
    return Split(tasks[: len(split.train)], test)


def _check_gold(task: Task) -> None:
    """Raises: TaskError: no reply could ever be right: the answer is a choice's text, and the choices are not known."""
    if task.gold and all(read_gold(gold, task).value is None for gold in task.gold):
        raise TaskError(
            f"tasks: the accepted answer {task.gold[0]!r} of task {task.id!r} is neither a letter nor the text of one "
            f"of its {len(task.choices)} choices; set tasks.choices to their field, or take another tasks.answer_format"
        )
