"""What is read from the replies of affirmative, negative, moderator and judge: verdicts, stated answers, sides."""

from __future__ import annotations

import re
from collections.abc import Mapping

import msgspec

from protocols.answer import Answer, parse_answer, read_gold
from protocols.places import bare
from protocols.structured import verdict_reader
from protocols.task import Task

_MAX_SIDE, _MAX_READ = 200, 20_000  # characters; of a reply its end

_VERDICT = verdict_reader(  # by the keys that our prompts ask for, then by the published ones
    "answer",
    "debate_answer",
    "debate_translation",
    side_keys=("side", "Supported Side"),
    reason_keys=("reason",),
    preference_keys=("preference", "Whether there is a preference"),
)
_STATED = re.compile(
    r"\banswer[*_]{0,3}\s{0,3}(?:is\b[*_]{0,3}\s{0,3}[:：]?|[:：=])"
    r"|\btranslation[*_]{0,3}\s{0,3}(?:is\s{0,3})?[:：]"
    r"|(?:答案|译文)[*_]{0,3}\s{0,3}[是为]?\s{0,3}[:：]",
    re.IGNORECASE,
)

# LaTeX put into JSON as it is: there the \f and \t of \frac and \times would mean a form feed and a tab
_UNESCAPED = re.compile(r"(?<!\\)\\(?=[bfrt][a-z]{2}|n(?:eq|abla)\b)")


def read_verdict(text: str, task: Task) -> Answer:
    """A moderator's or judge's fields, under our names or the published ones; the answer as the task's format has it.

    Returns: value None where the answer is empty, says that there is none, or is none in the task's format; ``details``
        under "side", "reason" and "preference". Never raises.
    """
    text = text[-_MAX_READ:]
    if task.answer_format != "text":
        text = _UNESCAPED.sub(r"\\\\", text)
    read = _VERDICT(text)
    if read.value is None:
        return read
    known = short_answer(read.value, task)
    return msgspec.structs.replace(read, value=known.value, canonical=known.canonical)


def short_answer(text: str, task: Task) -> Answer:
    """An answer that stands alone, without the phrase or the box that the task's format looks for in a reply."""
    if task.answer_format == "text":
        return Answer(bare(text) or None, "fields")
    if task.answer_format in ("choice", "yes_no") and (named := read_gold(text, task)).parsed:
        return named
    forms = (text, f"\\boxed{{{text}}}", f"[{text}]", f"Final answer: {text}")
    known = (parse_answer(form, task.answer_format, task.choices) for form in forms)
    return next((answer for answer in known if answer.parsed), Answer())


def read_stated(text: str) -> Answer:
    """A free text that a debater gives as its answer: behind the last "answer:", on its line or soon below.

    A speech that nowhere says what it answers is not read: its last line may be an argument. Never raises.
    """
    text = text[-_MAX_READ:]
    found = list(_STATED.finditer(text))
    lines = text[found[-1].end() :].splitlines() if found else []
    value = next(filter(None, (bare(line) for line in lines[:3])), "")
    return Answer(value, "stated") if value else Answer()


def side_named(text: str, names: Mapping[str, str]) -> str:
    """The one side that a text names.

    Args: names: what a side may be called -> the side.
    Returns: "" where it names none, or several.
    """
    said = text[:_MAX_SIDE].casefold()
    # "debater 3" is not in "debater 31"
    sides = {side for name, side in names.items() if name and re.search(rf"{re.escape(name.casefold())}(?!\d)", said)}
    return sides.pop() if len(sides) == 1 else ""


def ordinal(number: int) -> str:
    """ "first" to "tenth", then "11th", "12th", "21st", ..."""
    words = ("first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth", "ninth", "tenth")
    if number <= len(words):
        return words[number - 1]
    suffix = "th" if number % 100 in (11, 12, 13) else {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th")
    return f"{number}{suffix}"
