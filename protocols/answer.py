"""What a reply's answer is, and when two answers are the same. An unparsed reply is never right and never votes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from functools import lru_cache
from types import MappingProxyType

import msgspec

from protocols.choice import Read, letter_for, read_choice, read_yes_no, yes_or_no
from protocols.latex import normal_form, read_math
from protocols.numerals import as_number, numbers, spell
from protocols.places import after_answer_is, after_final_answer, bare, boxed, last_brackets, last_dollars
from protocols.task import Task

__all__ = [
    "FORMATS",
    "PARSERS",
    "Answer",
    "as_number",
    "boxed",
    "canonical",
    "equivalent",
    "grade",
    "numbers",
    "parse_answer",
    "read_gold",
    "same",
    "spell",
]


class Answer(msgspec.Struct, frozen=True, gc=False, omit_defaults=True):
    """The answer read from a reply: ``value`` is None where none could be read; ``how`` names the rule that read it.

    A reply can be read and hold no answer (a moderator who sees no winner yet): ``value`` None, ``how`` set.
    ``canonical`` is one spelling for all answers that mean the same, where the format or the machine knows one.
    ``details`` is what else a structured reply said, by name.
    """

    value: str | None = None
    how: str = ""
    canonical: str = ""
    details: dict[str, str] = {}

    @property
    def parsed(self) -> bool:
        return self.value is not None


def _parse_number(text: str, choices: Sequence[str]) -> Read | None:
    """A number, by the first rule that applies: the box, behind "answer is", behind the last "=", the last number."""
    box = boxed(text)
    if box is not None and (inside := numbers(box)):
        return inside[-1], "boxed"
    named = after_answer_is(text)
    if named is not None and (said := numbers(named)):
        # "the answer is 3 + 4 = 7": the result of a written-out sum, not its first term.
        return _first(numbers(named.rsplit("=", 1)[-1])) or said[-1] if "=" in named else said[0], "answer_is"
    if "=" in text and (result := _first(numbers(text.rsplit("=", 1)[-1].lstrip().split("\n", 1)[0]))) is not None:
        return result, "equals"
    if found := numbers(text):
        return found[-1], "last_number"
    return None


def _first(found: list[str]) -> str | None:
    return found[0] if found else None


def _parse_boxed(text: str, choices: Sequence[str]) -> Read | None:
    """Whatever the last box holds; numbers in canonical spelling."""
    box = boxed(text)
    return (_spelled(box), "boxed") if box else None


def _parse_text(text: str, choices: Sequence[str]) -> Read | None:
    """Behind "answer is", else the last line that says anything."""
    if value := bare(after_answer_is(text) or ""):
        return value, "answer_is"
    lines = map(bare, reversed(text.splitlines()))
    return next(((line, "last_line") for line in lines if line), None)


def _parse_math(text: str, choices: Sequence[str]) -> Read | None:
    """See ``read_math``; the value is LaTeX as it was written."""
    return read_math(text)


def _parse_yes_no(text: str, choices: Sequence[str]) -> Read | None:
    """See ``read_yes_no``; "true" is "yes"."""
    return read_yes_no(text)


def _parse_bracket(text: str, choices: Sequence[str]) -> Read | None:
    """What the last [...] holds, as M2D-DKTL asks its debaters to answer."""
    inside = last_brackets(text)
    return (inside, "bracket") if inside else None


def _parse_final(text: str, choices: Sequence[str]) -> Read | None:
    """Behind the last "Final answer:", out of its dollars or box; numbers in canonical spelling.

    Source: Zhou et al. 2025 (D&R), arXiv:2506.03541, whose code takes the first "Final answer:". We take the last:
    a model that corrects itself means what it says in the end.
    """
    said = after_final_answer(text)
    if not said:
        return None
    value = boxed(said) or last_dollars(said) or bare(said)
    return (_spelled(value), "final_answer") if value else None


def _spelled(value: str) -> str:
    number = as_number(value)
    return spell(number) if number is not None else value


PARSERS: Mapping[str, Callable[[str, Sequence[str]], Read | None]] = MappingProxyType(
    {
        "number": _parse_number,
        "boxed": _parse_boxed,
        "text": _parse_text,
        "math": _parse_math,
        "choice": read_choice,
        "yes_no": _parse_yes_no,
        "bracket": _parse_bracket,
        "final": _parse_final,
    }
)
"""Answer format -> parser of (reply, the task's choices). A task names its format; a recipe may override it."""

FORMATS = tuple(PARSERS)


def parse_answer(text: str, answer_format: str, choices: Sequence[str] = ()) -> Answer:
    """Read the answer from a reply. Never raises on any text, however odd.

    Args:
        choices: of the task, in the order of their letters; formats that do not ask for a choice may name one still.
    Raises: KeyError: no such format (recipes are checked before anything runs).
    """
    read = PARSERS[answer_format](text, choices)
    return Answer(read[0], read[1], _settled(read[0], answer_format, choices)) if read else Answer()


def _settled(value: str, answer_format: str, choices: Sequence[str]) -> str:
    """The one spelling that the format knows for a value; "" where the value itself is compared."""
    if answer_format == "math":
        return normal_form(value)
    return letter_for(value, choices) if choices and answer_format in ("bracket", "final") else ""


def read_gold(gold: str, task: Task, known: str = "") -> Answer:
    """An accepted answer as the task's format compares it: a choice's text as its letter, "True" as "yes".

    Args: known: the canonical spelling, where it was found already.
    Returns: value None where the format can make nothing of it; no reply will ever equal it.
    """
    if task.answer_format == "choice":
        return Answer(letter_for(gold, task.choices) or None, "gold")
    if task.answer_format == "yes_no":
        return Answer(yes_or_no(gold) or None, "gold")
    return Answer(gold, "gold", known or _settled(gold, task.answer_format, task.choices))


def equivalent(one: str, other: str, *, tolerance: Fraction = Fraction(0)) -> bool:
    """Whether two parsed answers say the same: equal numbers (within ``tolerance``, absolute), else equal text.

    Text is compared without regard to case, surrounding space and runs of space.
    """
    first, second = as_number(one), as_number(other)
    if first is not None and second is not None:
        return abs(first - second) <= tolerance if tolerance else first == second
    return _folded(one) == _folded(other)


def canonical(value: str) -> str:
    """One spelling for all equivalent answers (at no tolerance), to sort or index them by; not for people to read."""
    number = as_number(value)
    return spell(number) if number is not None else _folded(value)


def _folded(text: str) -> str:
    return " ".join(text.split()).casefold()


def same(one: Answer, other: Answer, *, tolerance: float = 0.0) -> bool:
    """Whether two answers that could be read say the same: by their canonical spellings, else by their values.

    Args: tolerance: of numbers, absolute; 0.3 means three tenths, not the binary number nearest to them.
    """
    if one.value is None or other.value is None:
        return False
    if one.value == other.value or (one.canonical and one.canonical == other.canonical):
        return True
    if not tolerance:
        return _equivalent(one.value, other.value)
    return equivalent(one.value, other.value, tolerance=_exactly(tolerance))


@lru_cache(maxsize=4096)  # votes and grades compare the same few answers again and again
def _equivalent(one: str, other: str) -> bool:
    return equivalent(one, other)


@lru_cache(maxsize=64)
def _exactly(tolerance: float) -> Fraction:
    return Fraction(repr(float(tolerance)))


def grade(answer: Answer, task: Task) -> bool | None:
    """True if the answer equals any accepted one; None where there is nothing to grade against; unparsed is False."""
    if not task.gold:
        return None
    if answer.value is None:
        return False
    if task.answer_format == "number" and answer.value in task.gold:
        return True  # most that are right are spelled as the answer they are compared with
    known = task.canonical_gold or ("",) * len(task.gold)
    return any(
        same(answer, read_gold(gold, task, spelling), tolerance=task.tolerance)
        for gold, spelling in zip(task.gold, known, strict=True)
    )
