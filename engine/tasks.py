"""Task sources: where questions come from, and how they are split into those learned from and those held out."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import random
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import msgspec

from protocols.answer import PARSERS
from protocols.errors import ConfigError, TaskError
from protocols.task import Task, stable_id

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
        _check_counts(self.train, self.test)

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


class FileSource(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The user's own tasks: a JSON list, JSON lines, CSV or TSV.

    ``question``, ``answer``, ``choices`` and ``id`` name the fields to read. Without ``id`` a task's id is made from
    what it asks. Without ``test_path`` the file is split by a seeded hash of the ids, whatever the file's order.
    """

    path: str
    test_path: str = ""
    question: str = "question"
    answer: str = "answer"
    choices: str = ""
    id: str = ""
    answer_after: str = ""  # gold is what follows this mark, e.g. "####" in GSM8K
    answer_format: str = "number"
    train: int = 0  # 0: all
    test: int = 0  # 0: all of test_path, or a fifth of path
    seed: int = 0

    def __post_init__(self) -> None:
        _check_counts(self.train, self.test)
        if self.answer_format not in PARSERS:
            raise ValueError(f"answer_format={self.answer_format!r} must be one of {', '.join(PARSERS)}")

    def load(self) -> Split:
        """Raises: TaskError: a file is missing or broken (the text names file and line), or the sides overlap."""
        tasks = _by_hash(self._read(self.path), self.seed)
        if self.test_path:
            test = _by_hash(self._read(self.test_path), self.seed)[: self.test or None]
            return checked_split(tasks[: self.train or None], test)
        count = self.test or max(1, len(tasks) // 5)
        if count + max(1, self.train) > len(tasks):
            raise TaskError(
                f"tasks: {self.path} holds {len(tasks)} tasks, train={self.train or 1} and test={count} ask for more; "
                "lower one of them"
            )
        rest = tasks[count:]
        return checked_split(rest[: self.train or None], tasks[:count])

    def digest(self) -> str:
        """SHA-256 of what the files hold; a file that is not there is for ``load`` to tell."""
        digest = hashlib.sha256()
        for path in filter(None, (self.path, self.test_path)):
            if Path(path).is_file():
                digest.update(Path(path).read_bytes() + b"\0")
        return digest.hexdigest()

    def _read(self, path: str) -> list[Task]:
        found: dict[str, Task] = {}
        for place, row in _rows(Path(path)):
            task = self._task(place, row)
            if task.id in found and self.id:
                raise TaskError(f"{place}: id {task.id!r} was used before; ids must be unique")
            found[task.id] = task
        if not found:
            raise TaskError(f"{path}: holds no tasks")
        return list(found.values())

    def _task(self, place: str, row: Mapping[str, Any]) -> Task:
        question = row.get(self.question)
        if not isinstance(question, str) or not question.strip():
            have = ", ".join(map(str, row)) or "nothing"
            raise TaskError(
                f"{place}: no text under {self.question!r} (it has: {have}); set tasks.question to its field"
            )
        dataset = Path(self.path).stem
        for key, setting in ((self.id, "id"), (self.choices, "choices")):
            if key and row.get(key) in (None, ""):
                raise TaskError(f"{place}: nothing under {key!r}; mend it, or leave tasks.{setting} out")
        task_id = str(row[self.id]) if self.id else stable_id(dataset, question)
        choices = row[self.choices] if self.choices else []
        if not isinstance(choices, list):
            raise TaskError(f"{place}: {self.choices!r} must be a list, not {type(choices).__name__}: {choices!r}")
        return Task(
            id=task_id,
            question=question,
            gold=self._gold(place, row),
            choices=tuple(map(str, choices)),
            dataset=dataset,
            answer_format=self.answer_format,
        )

    def _gold(self, place: str, row: Mapping[str, Any]) -> tuple[str, ...]:
        """The accepted answers; none where the file knows none: such tasks can be debated, not graded."""
        value = row.get(self.answer)
        if value is None or value == "":
            return ()
        accepted = [str(item) for item in value] if isinstance(value, list) else [str(value)]
        if not self.answer_after:
            return tuple(accepted)
        if any(self.answer_after not in item for item in accepted):
            raise TaskError(f"{place}: {self.answer!r} holds no {self.answer_after!r}; mend it or tasks.answer_after")
        return tuple(item.rpartition(self.answer_after)[2].strip() for item in accepted)


TaskSource = ArithmeticSource | FileSource
SOURCES: dict[str, type[ArithmeticSource] | type[FileSource]] = {"arithmetic": ArithmeticSource, "file": FileSource}
"""Name in a recipe -> source. A new one adds its line here."""


class Split(msgspec.Struct, frozen=True):
    """Tasks to learn from and tasks held out; no id is on both sides."""

    train: list[Task]
    test: list[Task]


def checked_split(train: list[Task], test: list[Task]) -> Split:
    """Raises: TaskError: a task is on both sides."""
    if both := {task.id for task in train} & {task.id for task in test}:
        raise TaskError(
            f"tasks: {len(both)} tasks are both learned from and held out, {sorted(both)[0]!r} among them; "
            "take them out of one side"
        )
    return Split(train, test)


def _check_counts(train: int, test: int) -> None:
    for name, value in (("train", train), ("test", test)):
        if value < 0:
            raise ValueError(f"{name}={value} must not be below 0")


def _by_hash(tasks: Iterable[Task], seed: int) -> list[Task]:
    """In an order that depends on ids and seed alone."""
    return sorted(tasks, key=lambda task: hashlib.blake2b(f"{seed}\x1f{task.id}".encode(), digest_size=8).digest())


def _rows(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """(place for errors, row) of a file. Raises: TaskError."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as err:
        raise TaskError(f"tasks: cannot read {path}: {err.strerror}; give the path from where moot is started") from err
    except UnicodeDecodeError as err:
        raise TaskError(f"tasks: {path} is not UTF-8 text (byte {err.start}); save it as UTF-8") from err
    suffix = path.suffix.lower()
    if suffix in (".csv", ".tsv"):
        reader = csv.DictReader(io.StringIO(text, newline=""), delimiter="\t" if suffix == ".tsv" else ",")
        try:
            yield from ((f"{path}, line {reader.line_num}", row) for row in reader)
        except csv.Error as err:
            raise TaskError(f"{path}, line {reader.reader.line_num}: is not valid {suffix[1:].upper()}: {err}") from err
        return
    if suffix == ".json":
        parsed = _json(text, str(path))
        if not isinstance(parsed, list):
            raise TaskError(f"{path}: must hold a JSON list of tasks, not {type(parsed).__name__}")
        rows = [(f"{path}, item {number}", row) for number, row in enumerate(parsed, 1)]
    elif suffix == ".jsonl":
        lines = [(f"{path}, line {number}", line) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
        rows = [(place, _json(line, place)) for place, line in lines]
    else:
        raise TaskError(f"tasks: {path} must end in .jsonl, .json, .csv or .tsv")
    for place, row in rows:
        if not isinstance(row, dict):
            raise TaskError(f"{place}: must be an object with fields, not {type(row).__name__}")
        yield place, row


def _json(text: str, place: str) -> Any:
    try:
        parsed = json.loads(text)
    except json.JSONDecodeError as err:
        line = f" of line {err.lineno}" if "\n" in text else ""
        raise TaskError(f"{place}: is not valid JSON: {err.msg} at column {err.colno}{line}") from err
    except (ValueError, RecursionError) as err:  # a number of thousands of digits; lists in lists in lists
        raise TaskError(f"{place}: is JSON that cannot be read: {err}") from err
    if "\\u" in text:  # JSON can spell half a surrogate pair, which is no text and can be stored nowhere
        try:
            json.dumps(parsed, ensure_ascii=False).encode()
        except UnicodeEncodeError as err:
            raise TaskError(f"{place}: holds a \\u escape that is half a character; mend it") from err
    return parsed


def load_split(source: TaskSource) -> Split:
    """Raises: TaskError: see the sources."""
    if isinstance(source, FileSource) and not source.path:
        raise ConfigError("tasks.path is empty; give the file that holds the tasks")
    return source.load()
