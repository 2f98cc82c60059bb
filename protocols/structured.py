"""Readers of structured replies: a moderator's fields, a judge's [Yes], sections, instruction pairs, scores.

A reader takes a reply and returns an ``Answer``; one whose ``how`` is empty says that the reply could not be read.
Readers are pure, raise on no text, and look at no more than the bounds below.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

from protocols.answer import Answer
from protocols.choice import read_yes_no
from protocols.lenient import MAX_LENGTH, read_fields

Reader = Callable[[str], Answer]

MAX_PAIRS = 64

_NOTHING = {"", "none", "null", "n/a", "na", "unknown", "undecided"}
_HEADING = re.compile(r"^[ \t]*(#{1,6})(.*)$", re.MULTILINE)
_ASKS = "instruction|question|query|prompt|human|user"
_REPLIES = "response|answer|output|assistant|gpt"
_MARK = re.compile(
    rf"</[A-Za-z]{{1,20}}[ _]?\d{{0,3}}>"
    rf"|<(?:(?P<ask>{_ASKS})|(?P<reply>{_REPLIES}))[ _]?\d{{0,3}}>"
    rf"|#{{2,4}}[ ]?(?:(?P<ask2>{_ASKS})|(?P<reply2>{_REPLIES}))[ _]?\d{{0,3}}[ ]?(?:#{{2,4}}:?|:)"
    rf"|^[ \t]{{0,8}}\*{{0,2}}(?:(?P<ask3>human|user)|(?P<reply3>assistant|gpt))[ _]?\d{{0,3}}\*{{0,2}}:\*{{0,2}}",
    re.IGNORECASE | re.MULTILINE,
)


def verdict_reader(
    *answer_keys: str,
    side_keys: Sequence[str] = (),
    reason_keys: Sequence[str] = (),
    preference_keys: Sequence[str] = (),
) -> Callable[[str], Answer]:
    """A reader of a moderator's or judge's fields.

    Args: keys as prompts name them, of each the first that is there counts; replies are matched without regard to
        case, spaces, underscores and marks.
    Returns: a reader that gives the answer's text, or None where the field is empty or says none (no winner yet), with
        ``details`` under "side", "reason" and "preference" where they were said. A reply without the answer's field
        cannot be read.
    Source: Liang et al. 2023 (MAD), arXiv:2305.19118, sec. 2; whatever the preference says, an answer that is not
        empty counts, as in the released code. That a field says "None" in words is no answer is ours.
    """
    wanted = {"side": side_keys, "reason": reason_keys, "preference": preference_keys}

    def read(text: str) -> Answer:
        fields = {_key(name): value for name, value in (read_fields(text) or {}).items()}
        stated = [fields[_key(key)] for key in answer_keys if _key(key) in fields]
        if not stated:
            return Answer()
        answer = _said(stated[0])
        details = {
            name: next(filter(None, (_said(fields.get(_key(key))) for key in keys)), "")
            for name, keys in wanted.items()
        }
        return Answer(
            None if answer.strip(" .").casefold() in _NOTHING else answer,
            "fields",
            details={name: said for name, said in details.items() if said},
        )

    return read


def _key(name: str) -> str:
    return "".join(letter for letter in name.casefold() if letter.isalnum())


def _said(value: Any) -> str:
    """A field as text; a list's items joined."""
    if isinstance(value, list):
        return ", ".join(filter(None, map(_said, value)))
    if isinstance(value, bool):
        return "Yes" if value else "No"
    return "" if value is None or isinstance(value, dict) else str(value).strip()


def read_judge(text: str) -> Answer:
    """What a judge who was asked for [Yes] or [No] says: the last of them, else yes or no in so many words."""
    bracketed = re.findall(r"\[\s{0,8}(yes|no|true|false)\s{0,8}\]", text, re.IGNORECASE)
    if bracketed:
        return Answer("yes" if bracketed[-1].lower() in ("yes", "true") else "no", "bracket")
    read = read_yes_no(text)
    return Answer(*read) if read else Answer()


def section(text: str, heading: str) -> str | None:
    """What stands under the last heading of that name ("### Feedback"), up to the next heading of its rank or above.

    Returns: None where there is no such heading, or nothing under it.
    """
    rank, name = len(heading) - len(heading.lstrip("#")), _key(heading)
    headings = [(len(match[1]), _key(match[2]), match.start(), match.end()) for match in _HEADING.finditer(text)]
    for number, (_, found, _, end) in reversed(list(enumerate(headings))):
        if found == name:
            after = (start for level, _, start, _ in headings[number + 1 :] if level <= max(rank, 1))
            return text[end : next(after, len(text))].strip() or None
    return None


def section_reader(heading: str) -> Reader:
    """A reader of the text under a heading."""

    def read(text: str) -> Answer:
        found = section(text, heading)
        return Answer(found, "section") if found else Answer()

    return read


def read_pairs(text: str) -> list[tuple[str, str]]:
    """(instruction, response) pairs in reading order, ``MAX_PAIRS`` at most; a question without its answer is left out.

    They may be marked ``<question>..</question>``, ``##Instruction## ..``, or by lines that begin ``Human:``.
    Source: Guo et al. 2024 (MAmmoTH-VL), arXiv:2412.05237, sec. 2, whose rewriters answer in these forms.
    """
    text = text[:MAX_LENGTH]
    marks = list(_MARK.finditer(text))
    pairs, asked = [], ""
    for number, mark in enumerate(marks, 1):
        said = text[mark.end() : marks[number].start() if number < len(marks) else len(text)].strip()
        kind = mark.lastgroup or ""
        if kind.startswith("ask"):
            asked = said
        elif kind.startswith("reply") and asked and said:
            pairs.append((asked, said))
            asked = ""
        if len(pairs) == MAX_PAIRS:
            break
    return pairs


def scores_reader(*names: str, low: float = 1.0, high: float = 5.0) -> Reader:
    """A reader of scores, from fields or prose: "information: 4, relevance 5".

    Returns: a reader whose ``details`` hold each name's score as written, the last one said; ``value`` is None. A reply
        that lacks one, or gives one outside ``low`` to ``high``, cannot be read.
    """
    patterns = {
        name: re.compile(
            rf"\b{re.escape(name)}\b[\"'*_]{{0,4}}(?:[ ](?:score|rating))?[\"'*_]{{0,4}}"
            rf"(?:\s?\(\d{{1,3}}\s?(?:-|–|to)\s?\d{{1,3}}\)[*_]{{0,2}})?(?:\s{{0,4}}(?:[:=(-]|is|of))?"
            r"[\s\"'*_]{0,6}(\d{1,3}(?:\.\d{1,3})?)(?![\d.]\d)",
            re.IGNORECASE,
        )
        for name in names
    }

    def read(text: str) -> Answer:
        found = {name: pattern.findall(text[-MAX_LENGTH:]) for name, pattern in patterns.items()}
        if not all(scores and low <= float(scores[-1]) <= high for scores in found.values()):
            return Answer()
        return Answer(None, "scores", details={name: scores[-1] for name, scores in found.items()})

    return read
