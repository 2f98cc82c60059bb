"""Choices as files spell them, and which of them an answer names."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from protocols.errors import TaskError
from protocols.task import letter_of

MAX_CHOICES = 26
MAX_STARTS = 64  # of lettered choices that are tried in one text: a text of nothing but "A)" must not keep us long
_MARK = re.compile(r"(?<![A-Za-z0-9])(?:\(([A-Z])\)|([A-Z])\)|([A-Z])[.:](?=\s))")
_HEADING = re.compile(r"(?:options|choices|answer choices)\s*:?\s*\Z", re.IGNORECASE)


class Choices(NamedTuple):
    """The texts in order, and what the file calls each (its letters, "1" to "4", or nothing but our letters)."""

    texts: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()


def read_choices(value: Any, name: str, place: str) -> Choices:
    """A list of texts or of {label, text}; {label: [..], text: [..]}; {A: .., B: ..}; or "A) .. B) ..".

    Raises: TaskError: anything else, or more than 26.
    """
    if value is None or value == "":
        raise TaskError(f"{place}: nothing under {name!r}; mend it, or leave tasks.choices out")
    labels: list[Any] | None = None
    if isinstance(value, str):
        texts = _lettered(value)[1]
        if not texts:
            raise TaskError(f"{place}: {name!r} must be a list, not str: {value[:80]!r}")
    elif isinstance(value, Mapping):
        if isinstance(value.get("text"), list):
            labels, texts = value.get("label"), value["text"]
        else:
            labels, texts = list(value), list(value.values())
    elif isinstance(value, list | tuple):
        texts = list(value)
        if texts and all(isinstance(item, Mapping) and "text" in item for item in texts):
            labels = [item.get("label") for item in texts]
            texts = [item["text"] for item in texts]
    else:
        raise TaskError(f"{place}: {name!r} must be a list, not {type(value).__name__}: {value!r:.80}")
    return _checked(texts, labels, name, place)


def choices_within(question: str, place: str) -> tuple[str, Choices]:
    """A question that ends in lettered choices, taken apart. Raises: TaskError: it does not."""
    head, texts = _lettered(question)
    if not texts or not head:
        raise TaskError(f"{place}: the question does not end in lettered choices; leave tasks.choices_in_question out")
    return head, _checked(texts, None, "question", place)


def gold_choices(value: Any, choices: Choices, answer_is: str, place: str) -> list[str]:
    """The letters of the choices that an answer names: several only where the same text stands twice.

    Args:
        answer_is: ``text``, ``letter`` (or the file's own label), ``index`` from 0, ``index1`` from 1; ``auto`` takes
            a whole number for an index from 0 and text for a text or a letter, where only one of these can be meant.
    Raises: TaskError: it names none, or ``auto`` cannot tell which.
    """
    readings: dict[str, list[int]] = {}
    if answer_is in ("auto", "text"):
        readings["text"] = _by_text(value, choices)
    if answer_is in ("auto", "letter"):
        readings["letter"] = _by_label(value, choices)
    if answer_is in ("index", "index1") or (answer_is == "auto" and isinstance(value, int)):
        readings["index"] = _by_index(value, choices, 1 if answer_is == "index1" else 0)
    meant = {tuple(found) for found in readings.values() if found}
    shown = f"{str(value)[:60]!r}"
    if not meant:
        raise TaskError(
            f"{place}: the answer {shown} names none of the {len(choices.texts)} choices; mend it or tasks.answer_is"
        )
    if len(meant) > 1:
        kinds = " and as ".join(kind for kind, found in readings.items() if found)
        raise TaskError(f"{place}: the answer {shown} names other choices as {kinds}; set tasks.answer_is")
    return [letter_of(number) for number in meant.pop()]


def _checked(texts: list[Any], labels: list[Any] | None, name: str, place: str) -> Choices:
    if len(texts) > MAX_CHOICES:
        raise TaskError(f"{place}: {name!r} holds {len(texts)} choices; a question has at most {MAX_CHOICES}")
    if not isinstance(labels, list) or len(labels) != len(texts):
        labels = [letter_of(number) for number in range(len(texts))]
    return Choices(tuple(map(str, texts)), tuple(map(str, labels)))


def _lettered(text: str) -> tuple[str, list[Any]]:
    """What stands before the last "A) .. B) .." that runs to the end, and its texts; no texts where there is none."""
    marks = [(match.start(), match.end(), next(filter(None, match.groups()))) for match in _MARK.finditer(text)]
    starts = [number for number, mark in enumerate(marks) if mark[2] == "A"]
    for start in reversed(starts[-MAX_STARTS:]):
        run = [marks[start]]
        for mark in marks[start + 1 :]:
            if len(run) < MAX_CHOICES and mark[2] == letter_of(len(run)):
                run.append(mark)
        if len(run) > 1:
            ends = [mark[0] for mark in run[1:]] + [len(text)]
            head = _HEADING.sub("", text[: run[0][0]].rstrip()).rstrip()
            return head, [text[mark[1] : end].strip() for mark, end in zip(run, ends, strict=True)]
    return text, []


def _by_text(value: Any, choices: Choices) -> list[int]:
    wanted = str(value)
    exact = [number for number, text in enumerate(choices.texts) if text == wanted]
    return exact or [number for number, text in enumerate(choices.texts) if _plain(text) == _plain(wanted)]


def _by_label(value: Any, choices: Choices) -> list[int]:
    wanted = str(value).strip().strip("().:").strip()
    own = [number for number, label in enumerate(choices.labels) if label == wanted]
    if own or not (len(wanted) == 1 and "A" <= wanted <= "Z"):
        return own
    number = ord(wanted) - ord("A")
    return [number] if number < len(choices.texts) else []


def _by_index(value: Any, choices: Choices, start: int) -> list[int]:
    if isinstance(value, bool) or (isinstance(value, float) and not value.is_integer()):
        return []
    try:
        number = int(value) - start
    except (TypeError, ValueError):
        return []
    return [number] if 0 <= number < len(choices.texts) else []


def _plain(text: str) -> str:
    return " ".join(text.casefold().split())
