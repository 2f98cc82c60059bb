"""From a row to a task: which field is what, how gold is taken out of it, and which choice it names."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import msgspec

from engine.data.choices import Choices, choices_within, gold_choices, read_choices
from engine.data.media import Hygiene, MediaStore, read_image
from engine.data.split import what_it_asks
from engine.data.task_files import Placed, Row, find
from protocols.answer import FORMATS, as_number, boxed, canonical
from protocols.errors import TaskError
from protocols.message import ImagePart
from protocols.task import Task, letter_of, stable_id

Scalar = str | int | float | bool
AnswerIs = Literal["auto", "text", "letter", "index", "index1"]
AnswerIn = Literal["", "boxed"]
_OPEN_BOX = re.compile(r"\\boxed\s+([^\s$]{1,200})")  # MATH writes some boxes without braces
_YES_NO = {"yes": "yes", "true": "yes", "1": "yes", "no": "no", "false": "no", "0": "no"}


class Fields(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which field of a row is what. A name may lead inside with dots, as in ``turns.0.value``.

    ``answer_format: auto`` is choice where a row has choices, number or yes_no where all its answers are, else text.
    """

    question: str = "question"
    answer: str = "answer"
    choices: str | tuple[str, ...] = ""  # a list, a mapping of labels and texts, "A) .. B) ..", or a field for each
    choices_in_question: bool = False  # they stand at the end of the question, lettered
    id: str = ""
    images: str | tuple[str, ...] = ""
    details: dict[str, str] = {}  # name in the task -> field
    answer_after: str = ""  # gold is what follows this mark, e.g. "####" in GSM8K
    answer_in: AnswerIn = ""  # boxed: gold is what the last box holds
    answer_is: AnswerIs = "auto"  # of a choice: its text, its letter or label, its number from 0, or from 1
    answer_format: str = "number"
    tolerance: float | str = 0.0  # a number, or the field that holds it

    def __post_init__(self) -> None:
        if isinstance(self.tolerance, float) and not 0 <= self.tolerance < float("inf"):
            raise ValueError(f"tolerance={self.tolerance} must be a number from 0 up")


def check_format(name: str) -> None:
    """Raises: ValueError: no such answer format."""
    if name != "auto" and name not in FORMATS:
        raise ValueError(f"answer_format={name!r} must be one of {', '.join(FORMATS)} or auto")


class TaskReader:
    """Makes tasks of the rows of one file or dataset. Errors are sentences that name the row's place."""

    def __init__(self, fields: Fields, dataset: str, *, image_folder: Path, hygiene: Hygiene = "keep") -> None:
        self._fields, self._dataset = fields, dataset
        self._image_folder, self._hygiene, self._store = image_folder, hygiene, MediaStore()

    def read(self, found: Iterable[Placed], *, several_answers: bool = False) -> list[Task]:
        """All rows as tasks. Rows that ask the same are one task, unless ids tell them apart.

        Args:
            several_answers: rows that ask the same may know other answers, all accepted; else that is an error.
        Raises: TaskError: see ``task``; an id is used twice; one question has two answers.
        """
        tasks: dict[str | tuple[str, ...], tuple[str, Task]] = {}
        place, known = self._dataset, dict[str, None]()
        try:
            for place, row in found:
                known |= dict.fromkeys(map(str, row))
                self._add(tasks, place, self.task(place, row), several_answers)
        except RecursionError as err:
            raise TaskError(f"{place}: is nested too deeply; take such fields out") from err
        if tasks:
            self._check_answers(known, any(task.gold for _, task in tasks.values()))
        return [task for _, task in tasks.values()]

    def _check_answers(self, known: Collection[str], are_there: bool) -> None:
        """A field that was named, and that no row has, is a slip; without answers a task can be debated, not graded.

        Raises: TaskError: as it says.
        """
        name = self._fields.answer
        if not are_there and name not in ("", Fields().answer, *known):
            raise TaskError(
                f"{self._dataset}: no row has anything under {name!r} (they have: {', '.join(known)}); set "
                "tasks.answer to its field, or leave it out where there are no answers"
            )

    def _add(
        self, tasks: dict[str | tuple[str, ...], tuple[str, Task]], place: str, task: Task, several_answers: bool
    ) -> None:
        key = task.id if self._fields.id else what_it_asks(task)
        if key not in tasks:
            tasks[key] = (place, task)
            return
        if self._fields.id:
            raise TaskError(f"{place}: id {task.id!r} was used before; ids must be unique")
        before, other = tasks[key]
        if not several_answers and _accepted(task) != _accepted(other):
            raise TaskError(f"{place}: asks what {before} asks, with another answer; mend one of them")
        tasks[key] = (before, _merged(task, other))

    def task(self, place: str, row: Row) -> Task:
        """Raises: TaskError: a field is missing, or holds what it should not."""
        fields = self._fields
        question = find(row, fields.question)
        if not isinstance(question, str) or not question.strip():
            have = ", ".join(map(str, row)) or "nothing"
            raise TaskError(
                f"{place}: no text under {fields.question!r} (it has: {have}); set tasks.question to its field"
            )
        if fields.id and find(row, fields.id) in (None, ""):
            raise TaskError(f"{place}: nothing under {fields.id!r}; mend it, or leave tasks.id out")
        question, choices = self._choices(place, row, question)
        images, digests = self._images(place, row)
        answer_format, gold = self._gold(place, row, choices)
        content = (question, *choices.texts, *digests)
        return Task(
            id=str(find(row, fields.id)) if fields.id else stable_id(self._dataset, *content),
            question=question,
            gold=gold,
            choices=choices.texts,
            images=images,
            dataset=self._dataset,
            answer_format=answer_format,
            tolerance=self._tolerance(place, row),
            details={
                name: plain_text(value)
                for name, field in fields.details.items()
                if (value := find(row, field)) is not None
            },
        )

    def _choices(self, place: str, row: Row, question: str) -> tuple[str, Choices]:
        if self._fields.choices_in_question:
            return choices_within(question, place)
        names = self._fields.choices
        if isinstance(names, str):
            return question, read_choices(find(row, names), names, place) if names else Choices()
        texts = [find(row, name) for name in names]
        while texts and texts[-1] in (None, ""):  # at the end alone: letters must not shift
            texts.pop()
        return question, read_choices(["" if text is None else text for text in texts], ", ".join(names), place)

    def _images(self, place: str, row: Row) -> tuple[tuple[ImagePart, ...], list[str]]:
        """The images, and the SHA-256 of each as it came: an id does not depend on how an image was resized."""
        names = [self._fields.images] if isinstance(self._fields.images, str) else self._fields.images
        images, digests = [], []
        for name in filter(None, names):
            value = find(row, name)
            for item in [] if value is None or value == "" else _several(value):
                data, where = read_image(item, folder=self._image_folder, where=f"{place}: {name!r}")
                digests.append(hashlib.sha256(data).hexdigest())
                images.append(self._store.put(data, where=where, hygiene=self._hygiene))
        return tuple(images), digests

    def _gold(self, place: str, row: Row, choices: Choices) -> tuple[str, tuple[str, ...]]:
        """The format, and the accepted answers: without any a task can be debated, not graded."""
        value, wanted = find(row, self._fields.answer), self._fields.answer_format
        found = [] if value is None or value == "" else _several(value)
        if choices.texts and (wanted in ("auto", "choice") or self._fields.answer_is != "auto"):
            letters = tuple(
                letter
                for item in found
                for letter in gold_choices(self._within(place, item), choices, self._fields.answer_is, place)
            )
            if wanted in ("auto", "choice"):
                return "choice", tuple(dict.fromkeys(letters))
            return wanted, tuple(choices.texts[ord(letter) - ord("A")] for letter in letters)
        golds = [str(self._within(place, item)) for item in found]
        if wanted == "auto":
            wanted = _format_of(found, golds)
        if wanted == "yes_no":
            golds = [_yes_no(gold, place) for gold in golds]
        if wanted == "number" and golds and all(as_number(gold) is None for gold in golds):
            raise TaskError(
                f"{place}: the answer {golds[0][:60]!r} is no number; mend it, or set tasks.answer_format: text or auto"
            )
        return wanted, tuple(golds)

    def _within(self, place: str, value: Any) -> Any:
        """What of a value is the answer: behind the mark, or in the box."""
        fields = self._fields
        if fields.answer_after:
            if fields.answer_after not in str(value):
                raise TaskError(
                    f"{place}: {fields.answer!r} holds no {fields.answer_after!r}; mend it or tasks.answer_after"
                )
            return str(value).rpartition(fields.answer_after)[2].strip()
        if fields.answer_in == "boxed":
            bare = _OPEN_BOX.findall(str(value))
            inside = boxed(str(value)) or (bare[-1].rstrip(".,") if bare else "")
            if not inside:
                raise TaskError(f"{place}: {fields.answer!r} holds no \\boxed{{..}}; mend it or tasks.answer_in")
            return inside
        return value

    def _tolerance(self, place: str, row: Row) -> float:
        told = self._fields.tolerance
        if not isinstance(told, str):
            return told
        value = find(row, told)
        try:
            tolerance = 0.0 if value is None or value == "" else float(value)
        except (TypeError, ValueError):
            tolerance = -1.0
        if not 0 <= tolerance < float("inf"):
            raise TaskError(f"{place}: {told!r} must be a number from 0 up, not {value!r}; set tasks.tolerance")
        return tolerance


def selected(found: Iterable[Placed], where: Mapping[str, Scalar | list[Scalar]], source: str) -> Iterator[Placed]:
    """The rows whose fields hold one of the values asked for, one by one: images make rows large.

    Raises: TaskError: no row has such a field, or none is left; told when the rows are at their end.
    """
    allowed = {name: {_same(item) for item in _several(value)} for name, value in where.items()}
    unknown, num_seen, num_left, fields = set(allowed), 0, 0, ""
    for place, row in found:
        num_seen, fields = num_seen + 1, fields or ", ".join(map(str, row))
        unknown -= {name for name in unknown if find(row, name) is not None}
        if all(_holds(row, name, values) for name, values in allowed.items()):
            num_left += 1
            yield place, row
    if num_seen and unknown:
        raise TaskError(f"{source}: no row has {min(unknown)!r}, which tasks.where asks for; they have: {fields}")
    if num_seen and not num_left:
        raise TaskError(f"{source}: tasks.where leaves none of its {num_seen} rows; ask for less")


def plain_text(value: Any) -> str:
    """A detail as text; lists and mappings as JSON."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def _holds(row: Row, name: str, values: set[str]) -> bool:
    return any(_same(item) in values for item in _several(find(row, name)))


def _several(value: Any) -> Sequence[Any]:
    return value if isinstance(value, list | tuple) else [value]


def _same(value: Any) -> str:
    """1, "1" and 1.0 are the same; so are true and "True"."""
    return canonical(str(value))


def _accepted(task: Task) -> set[str]:
    """The answers whatever their spelling; a choice by its text: another row may have the choices in another order."""
    if task.choices and task.answer_format == "choice":
        return {canonical(task.choices[ord(letter) - ord("A")]) for letter in task.gold}
    return {*map(canonical, task.gold)}


def _merged(one: Task, other: Task) -> Task:
    """One task of two that ask the same, accepting what either does; the same whatever came first."""
    first, second = sorted((one, other), key=lambda task: (task.question, msgspec.json.encode(task)))
    if first.choices and first.answer_format == second.answer_format == "choice":
        both = _accepted(first) | _accepted(second)
        letters = tuple(letter_of(n) for n, text in enumerate(first.choices) if canonical(text) in both)
        return msgspec.structs.replace(first, gold=letters)
    if one.gold == other.gold:
        return first
    return msgspec.structs.replace(first, gold=tuple(sorted({*one.gold, *other.gold})))


def _format_of(found: Iterable[Any], golds: list[str]) -> str:
    if not golds:
        return "text"
    if all(isinstance(item, bool) or str(item).strip().lower() in ("yes", "no") for item in found):
        return "yes_no"
    return "number" if all(as_number(gold) is not None for gold in golds) else "text"


def _yes_no(gold: str, place: str) -> str:
    found = _YES_NO.get(gold.strip().lower())
    if found is None:
        raise TaskError(f"{place}: the answer must be yes or no, true or false, not {gold[:60]!r}")
    return found
