"""What a reply's answer is, and when two answers are the same. An unparsed reply is never right and never votes."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from fractions import Fraction
from types import MappingProxyType

import msgspec


class Answer(msgspec.Struct, frozen=True, omit_defaults=True):
    """The answer read from a reply: ``value`` is None where none could be read; ``how`` names the rule that read it."""

    value: str | None = None
    how: str = ""

    @property
    def parsed(self) -> bool:
        return self.value is not None


_MAX_DIGITS = 400  # model output is hostile: a million digits would make exact arithmetic a way to hang us

# A sign belongs to the number only where it touches it; whether it is a minus between operands is decided after.
_NUMBER = re.compile(
    r"[-+−]?(?:\\?\$)?(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?(?:/\d+)?"
    r"|[-+−]?(?<!\.)\.\d+"  # the last of three dots opens no decimal
)
_PLAIN = re.compile(r"([-+]?)\$?((?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d*)?|\.\d+)(?:/(\d+))?\s*%?")
_FRACTION = re.compile(
    r"(?:(?<![\d.,/])(\d{1,9})\s*)?\\[dtc]?frac"
    r"(?:\s*\{\s*([-+−]?\d{1,200})\s*\}\s*\{\s*(\d{1,200})\s*\}|\s*(\d)\s*(\d))"
)
_LATEX_THOUSANDS = re.compile(r"(?<=\d)(?:\{,\}|,?\\!|\\,)(?=\d{3}(?!\d))")
_LATEX_COMMAND = re.compile(r"\\[A-Za-z]+\Z")
_ANSWER_IS = re.compile(r"\banswer\s*(?:is\b|=|:)\s*:?", re.IGNORECASE)
_BRACE = re.compile(r"\\(?:boxed|fbox)\s*\{|\\[{}]|[{}]")


def numbers(text: str) -> list[str]:
    """All numbers in reading order, in canonical spelling: no thousands separators, no plus, no trailing zeros.

    A minus counts as a sign unless it stands behind an operand: "7-5" and "7 -5" hold 7 and 5, "x-5" and "GPT-5" hold
    5, "= -5" holds -5.
    """
    found = []
    text = _without_latex(text)
    for match in _NUMBER.finditer(text):
        spelling = match.group()
        if spelling[0] in "-+−" and _operand_before(text, match.start()):
            spelling = spelling[1:]
        if spelling.isascii() and spelling.isdigit() and len(spelling) <= _MAX_DIGITS:
            found.append(spelling.lstrip("0") or "0")  # most of them, and ten times as fast
        elif (value := as_number(spelling)) is not None:
            found.append(spell(value))
    return found


def _without_latex(text: str) -> str:
    """Fractions as "1/2", mixed numbers as one fraction, thousands unseparated."""
    return _FRACTION.sub(_plain_fraction, _LATEX_THOUSANDS.sub("", text)) if "\\" in text or "{,}" in text else text


def _plain_fraction(match: re.Match[str]) -> str:
    whole, numerator, denominator = match[1], match[2] or match[4], match[3] or match[5]
    if whole and numerator.isdigit():
        return f"{int(whole) * int(denominator) + int(numerator)}/{denominator} "
    before = match.string[match.start() - 1 : match.start()]
    gap = " " if whole or before.isdigit() or before in (".", ",", "/") else ""
    return f"{whole or ''}{gap}{numerator}/{denominator} "


def _operand_before(text: str, at: int) -> bool:
    """Whether what stands before the sign at ``at``, on its line, can be subtracted from."""
    if at and (text[at - 1].isalnum() or text[at - 1] in ")]}%"):
        return not _LATEX_COMMAND.search(text[max(0, at - 16) : at])
    while at and text[at - 1] in " \t":
        at -= 1
    return at > 0 and (text[at - 1].isdigit() or text[at - 1] == ")")


def as_number(text: str) -> Fraction | None:
    """The exact value of a plain number or a fraction of two, None for anything else. Units: those of the text.

    Commas count only as thousands separators: "1,000" is a number, "1,2" is a pair.
    """
    plain = text.strip()
    if len(plain) > 2 * _MAX_DIGITS:
        return None
    plain = _without_latex(plain).replace("\\$", "$").replace("\\%", "%").replace("−", "-").strip().strip("$").strip()
    match = _PLAIN.fullmatch(plain)
    if match is None or len(plain) > _MAX_DIGITS or (match[3] and int(match[3]) == 0):
        return None
    value = Fraction(match[1] + match[2].replace(",", "")) / Fraction(match[3] or 1)
    # What spell makes of a value must be readable again. Only a long text can grow past the limit.
    return None if len(plain) > _MAX_DIGITS // 3 and len(spell(value)) > _MAX_DIGITS else value


def spell(value: Fraction) -> str:
    """One spelling for one value: "43", "-0.5", and "1/3" where the decimals never end, or not before 400 of them."""
    if value.denominator == 1:
        return str(value.numerator)
    rest, digits = value.denominator, 0
    for prime in (2, 5):
        power = 0
        while rest % prime == 0:
            rest //= prime
            power += 1
        digits = max(digits, power)
    if rest == 1:
        whole, decimals = divmod(abs(value.numerator) * 10**digits // value.denominator, 10**digits)
        decimal = f"{'-' if value < 0 else ''}{whole}.{decimals:0{digits}d}"
        if len(decimal) <= _MAX_DIGITS:
            return decimal
    return f"{value.numerator}/{value.denominator}"


def boxed(text: str) -> str | None:
    r"""What the last closed LaTeX box (``\boxed`` or ``\fbox``) holds, braces balanced; None without one."""
    opened: list[int] = []  # for each brace still open: where the content of its box starts, -1 for other braces
    last: tuple[int, int] | None = None
    for token in _BRACE.finditer(text):
        brace = token.group()
        if brace in ("\\{", "\\}"):
            continue  # printed, not grouping
        if brace != "}":
            opened.append(token.end() if len(brace) > 1 else -1)
        elif opened and (start := opened.pop()) >= 0 and (last is None or start > last[0]):
            last = (start, token.start())
    return None if last is None else text[last[0] : last[1]].strip()


def _after_answer_is(text: str) -> str | None:
    """The text behind the last "answer is" (or "answer:", "answer =") on its line."""
    matches = list(_ANSWER_IS.finditer(text))
    if not matches:
        return None
    return text[matches[-1].end() :].lstrip().split("\n", 1)[0]


def _first(found: list[str]) -> str | None:
    return found[0] if found else None


def _parse_number(text: str) -> Answer:
    """A number, by the first rule that applies: the box, behind "answer is", behind the last "=", the last number."""
    box = boxed(text)
    if box is not None and (inside := numbers(box)):
        return Answer(inside[-1], "boxed")
    named = _after_answer_is(text)
    if named is not None and (said := numbers(named)):
        # "the answer is 3 + 4 = 7": the result of a written-out sum, not its first term.
        return Answer(_first(numbers(named.rsplit("=", 1)[-1])) or said[-1] if "=" in named else said[0], "answer_is")
    if "=" in text and (result := _first(numbers(text.rsplit("=", 1)[-1].lstrip().split("\n", 1)[0]))) is not None:
        return Answer(result, "equals")
    if found := numbers(text):
        return Answer(found[-1], "last_number")
    return Answer()


def _parse_boxed(text: str) -> Answer:
    """Whatever the last box holds; numbers in canonical spelling."""
    box = boxed(text)
    if not box:
        return Answer()
    value = as_number(box)
    return Answer(spell(value) if value is not None else box, "boxed")


def _parse_text(text: str) -> Answer:
    """Behind "answer is", else the last line that says anything."""
    if value := _bare(_after_answer_is(text) or ""):
        return Answer(value, "answer_is")
    lines = map(_bare, reversed(text.splitlines()))
    return next((Answer(line, "last_line") for line in lines if line), Answer())


def _bare(line: str) -> str:
    """A line without markup and quotes around it, nor the full stop behind it."""
    return line.strip().lstrip(" *\"'").rstrip(" .*\"'")


PARSERS: Mapping[str, Callable[[str], Answer]] = MappingProxyType(
    {"number": _parse_number, "boxed": _parse_boxed, "text": _parse_text}
)
"""Answer format -> parser. A task names its format; a recipe may override it."""


def parse_answer(text: str, answer_format: str) -> Answer:
    """Read the answer from a reply. Never raises on any text, however odd.

    Raises: KeyError: no such format (recipes are checked before anything runs).
    """
    return PARSERS[answer_format](text)


def equivalent(one: str, other: str, *, tolerance: Fraction = Fraction(0)) -> bool:
    """Whether two parsed answers say the same: equal numbers (within ``tolerance``, absolute), else equal text.

    Text is compared without regard to case, surrounding space and runs of space.
    """
    first, second = as_number(one), as_number(other)
    if first is not None and second is not None:
        return abs(first - second) <= tolerance
    return _folded(one) == _folded(other)


def canonical(value: str) -> str:
    """One spelling for all equivalent answers (at no tolerance), to sort or index them by; not for people to read."""
    number = as_number(value)
    return spell(number) if number is not None else _folded(value)


def _folded(text: str) -> str:
    return " ".join(text.split()).casefold()


def grade(answer: Answer, gold: Iterable[str]) -> bool | None:
    """True if the answer equals any accepted one; None where there is nothing to grade against; unparsed is False."""
    accepted = tuple(gold)
    if not accepted:
        return None
    return answer.value is not None and any(equivalent(answer.value, right) for right in accepted)
