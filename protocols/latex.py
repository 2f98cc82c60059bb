r"""Mathematical answers without algebra: where they stand in a reply, and one spelling for many ways to write them.

The spelling knows notation alone: ``x^{2}`` is ``x^2``, but ``x+1`` is not ``1+x``: for ``engine.data.canonical``.

Source: the normalisation of Hendrycks et al. 2021 (MATH), arXiv:2103.03874, as later graders extend it (units, words
for powers of ten, mixed numbers). Departures: fractions are compared by value, reduced or not (MAFT's grader holds 2/4
and 1/2 apart); a unit must be one we know, or set as text behind a number; nothing is rounded.
"""

from __future__ import annotations

import re
from fractions import Fraction

from protocols.numerals import as_number, numbers, spell
from protocols.places import after_answer_is, after_final_answer, boxed, last_dollars

MAX_LENGTH = 1000  # characters; what is longer is compared as it stands

_SENTENCE = re.compile(r"\.(?=\s|$)")
_DROPPED = re.compile(
    r"\\(?:left|right|bigg?[lr]?|Bigg?[lr]?|displaystyle|limits|quad|qquad)(?![A-Za-z])\.?"
    r"|(?<!\\)\\[!,;: ]|~|\{,\}|\\\$|\$"
    r"|\\%|%|\^\s*(?:\{\s*\\circ\s*\}|\\circ(?![A-Za-z]))|°|\\degree(?![A-Za-z])|(?<!\\)\\[()\[\]]"
)
_WORDS = r"\\(?:text(?:bf|it|rm|sf|tt|normal)?|mathrm|mathbf|mathit|mbox|operatorname)\s*\{([^{}]*)\}"
_UNIT_AS_TEXT = re.compile(r"(?<=[\d})])\s*(?:\\text|\\mbox|\\mathrm)\s*\{\s*[^{}\d\s][^{}\d]*\}(?:\^(?:\d|\{\d\}))?$")
_WRAPPED = re.compile(_WORDS)
_UNIT = re.compile(
    r"(?<=[\d)}])\s*(?:(?:square|cubic|sq\.?|cu\.?)\s*)?(?:(?:milli|centi|deci|kilo)?(?:met(?:er|re)|gram|lit(?:er|re))s?"
    r"|mm|cm|dm|km|kg|mg|ml|inch(?:es)?|foot|feet|ft|yards?|miles?|mph|km/h|m/s|seconds?|sec|minutes?|min|hours?|hrs?"
    r"|days?|weeks?|months?|years?|degrees?|dollars?|cents?|euros?|percent|units?|points?|people|pounds?|ounces?|lbs?|oz)"
    r"(?:\^(?:\d|\{\d\})|[²³])?$",
    re.IGNORECASE,
)
_NAMED = re.compile(r"^[A-Za-z](?:_(?:\w|\{\w+\}))?(?:\([a-z]\))?\s*(?:=|\\in(?![A-Za-z]))\s*(?=\S)")
_POWERS = {"hundred": 10**2, "thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12}
_POWER = re.compile(r"(.+?)\s*(hundred|thousand|million|billion|trillion)", re.IGNORECASE)
_MIXED = re.compile(r"(-?)(\d{1,50}) +(\d{1,50})/(\d{1,50})")
_SHORT_FRACTION = re.compile(
    r"\\(frac|binom)\s*(?:([^\s{}\\])\s*([^\s{}\\])|(\{[^{}]*\})\s*([^\s{}\\])|([^\s{}\\])\s*(\{))"
)
_SHORT_ROOT = re.compile(r"\\sqrt\s*([^\s{}\[\\(])")
_SINGLE = re.compile(r"([\^_])\s*\{\s*([^\s{}\\])\s*\}")
_PLAIN_ROOT = re.compile(r"(?<![A-Za-z\\])sqrt\s*(?:\(([^()]*)\)|([^\s{}\[\\(]))")
_PLAIN_NAME = re.compile(r"(?<![A-Za-z\\])(pi|infinity|infty|inf)(?![A-Za-z])")
_INTEGERS_OVER = re.compile(r"(?<![\w.}])(\d{1,50})/(\d{1,50})(?![\w.])")
_SPACE = re.compile(r"(?<=\S)\s+(?=\S)")


def read_math(text: str) -> tuple[str, str] | None:
    """(raw answer, the rule that found it): the last box, behind "answer is", the last $...$, the last number."""
    if inside := boxed(text):
        return inside, "boxed"
    said = after_final_answer(text) or after_answer_is(text)
    if said and (stated := last_dollars(said) or _without_talk(said)):
        return stated, "answer_is"
    if shown := last_dollars(text):
        return shown, "dollars"
    found = numbers(text)
    return (found[-1], "last_number") if found else None


def _without_talk(said: str) -> str:
    """A line up to the end of its first sentence, without markup around it."""
    return _SENTENCE.split(said, maxsplit=1)[0].strip().strip("*_`\"'").strip()


def normal_form(raw: str) -> str:
    """One spelling for answers that differ in notation alone; numbers as ``spell`` writes them. Case is kept.

    Returns: "" for what is empty or longer than ``MAX_LENGTH``.
    """
    text = raw.strip()
    if not text or len(text) > MAX_LENGTH:
        return ""
    if text.startswith(("\\boxed", "\\fbox")):
        text = boxed(text) or text
    if (number := as_number(text)) is not None:
        return spell(number)
    return _number(text) or _tidied(text)


def _tidied(text: str) -> str:
    text = _DROPPED.sub(lambda match: " " if match.group() in ("~", "\\ ") else "", text.replace("−", "-"))
    text = re.sub(r"\\[dtc]frac(?![A-Za-z])", r"\\frac", text).strip().rstrip(".").rstrip()
    text = _UNIT.sub("", _WRAPPED.sub(r"\1", _UNIT_AS_TEXT.sub("", text)).strip()).strip()
    if text.count("=") <= 1:
        text = _NAMED.sub("", text)
    return _number(text) or _compact(text)


def _number(text: str) -> str:
    """The number that a text is, also as a mixed number or with a word for a power of ten; "" for anything else."""
    power = 1
    if match := _POWER.fullmatch(text):
        text, power = match[1], _POWERS[match[2].lower()]
    if (mixed := _MIXED.fullmatch(text)) and int(mixed[4]):
        value = int(mixed[2]) + Fraction(int(mixed[3]), int(mixed[4]))
        return spell(value * power * (-1 if mixed[1] else 1))
    plain = as_number(text)
    return "" if plain is None else spell(plain * power)


def _compact(text: str) -> str:
    text = _PLAIN_ROOT.sub(lambda match: f"\\sqrt{{{match[1] or match[2]}}}", text)
    text = _PLAIN_NAME.sub(lambda match: "\\pi" if match[1] == "pi" else "\\infty", text)
    text = _SHORT_FRACTION.sub(_full_fraction, text)
    text = _SHORT_ROOT.sub(r"\\sqrt{\1}", text)
    text = _INTEGERS_OVER.sub(r"\\frac{\1}{\2}", text)
    text = _SINGLE.sub(r"\1\2", text)
    text = _SPACE.sub(lambda gap: " " if _keeps_names_apart(text, gap) else "", text)
    return text.strip()


def _full_fraction(match: re.Match[str]) -> str:
    if match[7]:
        return f"\\{match[1]}{{{match[6]}}}{{"  # its denominator has braces already
    above, below = match[2] or match[4][1:-1], match[3] or match[5]
    return f"\\{match[1]}{{{above}}}{{{below}}}"


def _keeps_names_apart(text: str, gap: re.Match[str]) -> bool:
    r"""Whether a gap ends a command's name (``\cdot x``), or lies between words or between numbers."""
    before, behind = text[gap.start() - 1], text[gap.end()]
    return (before.isalpha() and behind.isalpha()) or (before.isdigit() and behind.isdigit())
