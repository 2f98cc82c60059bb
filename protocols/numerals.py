"""Numbers in text: finding them, their exact value, one spelling for each."""

from __future__ import annotations

import re
from fractions import Fraction
from functools import lru_cache

MAX_DIGITS = 400  # model output is hostile: a million digits would make exact arithmetic a way to hang us

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


def numbers(text: str) -> list[str]:
    """All numbers in reading order, in canonical spelling: no thousands separators, no plus, no trailing zeros.

    A minus counts as a sign unless it stands behind an operand: "7-5" and "7 -5" hold 7 and 5, "x-5" and "GPT-5" hold
    5, "= -5" holds -5.
    """
    if text.isascii() and text.isdigit() and len(text) <= MAX_DIGITS:
        return [text.lstrip("0") or "0"]  # what boxes mostly hold
    found = []
    text = _without_latex(text)
    for match in _NUMBER.finditer(text):
        spelling = match.group()
        if spelling[0] in "-+−" and _operand_before(text, match.start()):
            spelling = spelling[1:]
        if spelling.isascii() and spelling.isdigit() and len(spelling) <= MAX_DIGITS:
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


@lru_cache(maxsize=4096)  # votes and grades compare the same few answers again and again
def as_number(text: str) -> Fraction | None:
    """The exact value of a plain number or a fraction of two, None for anything else. Units: those of the text.

    Commas count only as thousands separators: "1,000" is a number, "1,2" is a pair.
    """
    plain = text.strip()
    if len(plain) > 2 * MAX_DIGITS:
        return None
    plain = _without_latex(plain).replace("\\$", "$").replace("\\%", "%").replace("−", "-").strip().strip("$").strip()
    match = _PLAIN.fullmatch(plain)
    if match is None or len(plain) > MAX_DIGITS or (match[3] and int(match[3]) == 0):
        return None
    value = Fraction(match[1] + match[2].replace(",", "")) / Fraction(match[3] or 1)
    # What spell makes of a value must be readable again. Only a long text can grow past the limit.
    return None if len(plain) > MAX_DIGITS // 3 and len(spell(value)) > MAX_DIGITS else value


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
        if len(decimal) <= MAX_DIGITS:
            return decimal
    return f"{value.numerator}/{value.denominator}"
