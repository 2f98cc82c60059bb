"""Reading which choice a reply takes, and whether it says yes or no.

A letter counts where it is meant as one: in a box, behind an answer phrase, in brackets, alone on a line. The article
"A" and the pronoun "I" of ordinary prose never do. Nothing raises on any text, and every search is linear.
"""

from __future__ import annotations

import re
import string
from collections.abc import Sequence

from protocols.numerals import as_number
from protocols.places import answer_phrases, bare, boxed, last_brackets

Read = tuple[str, str]
"""What was read, and the name of the rule that read it."""

_MAX_LINE = 2000  # characters; a longer line is prose, no answer line

_WRAPPER = re.compile(
    r"\\(?:text(?:bf|it|rm|sf|tt)?|math(?:rm|bf|it|sf|tt)|mbox|boxed|fbox)\s*\{|[*_`$\"{}]|\\[!,;: ()]"
)
_LETTER = re.compile(
    r"(?:(?i:the|option|choice|letter|answer)\s+){0,3}(?:([(\[]{1,2})\s*)?([A-Za-z])(?![\w'’+#]|-\w)\s*([)\]]{1,2})?"
)
# What may follow a letter that is meant as an answer. "and B" or ", C" would make it one of several.
_END = re.compile(
    r"\s*(?:$|[.,:;!?)\]–—-]|/(?!\w)|\b(?:because|since|over|rather|here|as|for|with|which|due|given|but|not|is|if|and|while)\b)"
)
_MORE = re.compile(r"\s*(?:,|/|&|\b(?:or|and)\b)\s*[(\[]?[B-HJ-Z](?![\w'’])")
_LISTED = re.compile(r"[(\[]?([A-Z])[).\]]\s*\S")  # no colon: "A:" opens an answer
_IN_BRACKETS = re.compile(r"(?<!\w)[(\[]\s*([A-Z])\s*[)\]]")
_BELIEF = re.compile(
    r"\b(?:it['’]?s|it\s+is|i(?:['’]d)?\s+(?:choose|pick|select|say)|go(?:ing)?\s+with|(?:choose|pick|select)"
    r"|(?:option|choice)(?:\s+is|\s*:)?)\s+(?=[(\[*\"]{0,4}[A-Z])"
)
_LAST_WORD = re.compile(
    r"(?:[,:;=>–—-]|\b(?:is|be|choose|pick|select|option|choice|with|say|therefore|so|thus|hence))\s*"
    r"[*\"(\[]{0,4}([A-Z])[*\")\]]{0,4}[.!]?\s*\Z"
)


def letter_for(text: str, choices: Sequence[str]) -> str:
    """The letter of the choice that a short text names, by letter or by wording; "" where it names none.

    A lone letter is a letter, even where some choice reads like it. Without choices any letter from A to Z will do.
    """
    plain = bare(_WRAPPER.sub("", text[:_MAX_LINE]))
    alone = plain.strip("()[]. \t")
    if len(alone) == 1 and alone.isascii() and alone.isalpha():
        return _allowed(alone.upper(), choices)
    return _by_wording(plain, choices) or _by_letter(plain, choices)


def _allowed(letter: str, choices: Sequence[str]) -> str:
    return letter if not choices or string.ascii_uppercase.index(letter) < len(choices) else ""


def _by_wording(plain: str, choices: Sequence[str]) -> str:
    wording = _folded(plain)
    value = as_number(wording)
    for letter, choice in zip(string.ascii_uppercase, choices, strict=False):
        if wording and wording == _folded(choice):
            return letter
        if value is not None and value == as_number(choice):
            return letter
    return ""


def _folded(text: str) -> str:
    return " ".join(bare(_WRAPPER.sub("", text)).split()).casefold()


def _by_letter(plain: str, choices: Sequence[str]) -> str:
    """The letter that a text begins with, in brackets or followed by what may follow an answer."""
    match = _LETTER.match(plain)
    if match is None or not (match[2].isupper() or (match[1] and match[3])):
        return ""
    rest = plain[match.end() :]
    if not match[3] and (_END.match(rest) is None or _MORE.match(rest)):
        return ""
    return _allowed(match[2].upper(), choices)


def read_choice(text: str, choices: Sequence[str]) -> Read | None:
    """The letter of the choice a reply takes.

    By the first rule that applies: the last box; the last "answer is" that names a choice; a last or first line that is
    a choice or its letter; the last letter in brackets; "it's B" and the like; a letter at the very end.
    """
    if (box := boxed(text)) and (letter := letter_for(box, choices)):
        return letter, "boxed"
    for said in answer_phrases(text):
        if letter := letter_for(said, choices):
            return letter, "answer_is"
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    lines = _without_list(lines)
    if not lines:
        return None
    for line, how in ((lines[-1], "last_line"), (lines[0], "first_line")):
        if letter := _line(line, choices):
            return letter, how
    return _in_prose("\n".join(lines), choices)


def _without_list(lines: list[str]) -> list[str]:
    """Without a recital of the choices: several lines that open with different letters say which there are."""
    opened = [match[1] if (match := _LISTED.match(line)) else "" for line in lines]
    if len({letter for letter in opened if letter}) < 2:
        return lines
    return [line for line, letter in zip(lines, opened, strict=True) if not letter]


def _line(line: str, choices: Sequence[str]) -> str:
    """The letter of a line that is a choice, its letter, or both; "A train leaves" is neither."""
    if len(line) > _MAX_LINE:
        return ""
    plain = bare(_WRAPPER.sub("", line))
    match = _LETTER.match(plain)
    lone = match is not None and not plain[match.end() :].strip(" .!")
    if lone or _LISTED.match(plain):
        return letter_for(plain, choices)
    return _by_wording(plain, choices)


def _in_prose(text: str, choices: Sequence[str]) -> Read | None:
    bracketed = [letter for match in _IN_BRACKETS.finditer(text) if (letter := _allowed(match[1], choices))]
    if bracketed:
        return bracketed[-1], "bracket"
    for match in reversed(list(_BELIEF.finditer(text))[-20:]):
        if letter := _by_letter(bare(_WRAPPER.sub("", text[match.end() : match.end() + 200])), choices):
            return letter, "belief"
    last = _LAST_WORD.search(text, max(0, len(text) - 200))
    if last and (letter := _allowed(last[1], choices)):
        return letter, "last_word"
    return None


_YES_NO = {"yes": "yes", "true": "yes", "no": "no", "false": "no"}
_QUALIFIED = re.compile(
    r"(?:(?:an?|definitely|clearly|simply|probably|likely|definite|clear|most|therefore)\s+){0,3}(yes|no|true|false)\b(?!-\w)",
    re.IGNORECASE,
)
_BOTH = re.compile(r"\s*(?:/|\bor\b|\band\b)\s*(?:yes|no|true|false)\b", re.IGNORECASE)
_NO_GOES_ON = re.compile(
    r"\s*(?:$|[^\w\s]|\b(?:it|he|she|they|this|that|there|you|we|i|because|since)\b)", re.IGNORECASE
)


def yes_or_no(text: str) -> str:
    """ "yes" or "no" where a text begins by saying so (or true, or false); "" for all else, "No one knows" included."""
    plain = bare(_WRAPPER.sub("", text[:_MAX_LINE])).lstrip("([ ")
    match = _QUALIFIED.match(plain)
    if match is None:
        return ""
    rest, said = plain[match.end() :], match[1].lower()
    if _BOTH.match(rest) or (said == "no" and _NO_GOES_ON.match(rest) is None):
        return ""
    return _YES_NO[said]


def read_yes_no(text: str) -> Read | None:
    """By the first rule that applies: the last box, the last "answer is" that says either, the last [Yes] or [No], a
    last line of that one word, the first word. "I do not know" says neither."""
    if (box := boxed(text)) and (word := yes_or_no(box)):
        return word, "boxed"
    for said in answer_phrases(text):
        if word := yes_or_no(said):
            return word, "answer_is"
    if (inside := last_brackets(text)) and (word := _YES_NO.get(inside.lower(), "")):
        return word, "bracket"
    last = text.rstrip()[-_MAX_LINE:].rpartition("\n")[2]
    if word := _YES_NO.get(bare(last).rstrip("!").lower(), ""):
        return word, "last_line"
    word = yes_or_no(text.lstrip())
    return (word, "first_word") if word else None
