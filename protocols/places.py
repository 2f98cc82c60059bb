"""Where a reply says its answer: boxes, the words "answer is", brackets, dollars. What stands there is not read here.

Nothing raises on any text, and every search is linear in its length.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

_ANSWER_IS = re.compile(r"\banswer\s*(?:is\b|=|:)\s*:?", re.IGNORECASE)
_FINAL_ANSWER = re.compile(r"\bfinal\s+answer[\s*_]*(?:is\b\s*:?|[:=])", re.IGNORECASE)
_BOX = re.compile(r"\\(?:boxed|fbox)")
_BRACE = re.compile(r"\\(?:boxed|fbox)\s*\{|\\[{}]|[{}]")
_BOX_OF_TEXT = re.compile(r"\\(?:boxed|fbox)\s*\{([^{}\\]*)\}")
_BRACKETS = re.compile(r"(?<!\\)\[([^\[\]]+)\](?!\()")  # neither LaTeX's display mathematics nor a link
_DOLLARS = re.compile(r"(?<!\\)\${1,2}([^$]+)(?<!\\)\${1,2}")


def boxed(text: str) -> str | None:
    r"""What the last closed LaTeX box (``\boxed`` or ``\fbox``) holds, braces balanced; None without one."""
    if (first := _BOX.search(text)) is None:
        return None
    plain = _BOX_OF_TEXT.match(text, max(text.rfind("\\boxed"), text.rfind("\\fbox")))
    if plain is not None:
        return plain[1].strip()  # most boxes: nothing that closes can have begun behind the last one
    opened: list[int] = []  # for each brace still open: where the content of its box starts, -1 for other braces
    last: tuple[int, int] | None = None
    for token in _BRACE.finditer(text, first.start()):  # braces before the first can close nothing in it
        brace = token.group()
        if brace in ("\\{", "\\}"):
            continue  # printed, not grouping
        if brace != "}":
            opened.append(token.end() if len(brace) > 1 else -1)
        elif opened and (start := opened.pop()) >= 0 and (last is None or start > last[0]):
            last = (start, token.start())
    return None if last is None else text[last[0] : last[1]].strip()


def after_answer_is(text: str) -> str | None:
    """The text behind the last "answer is" (or "answer:", "answer =") on its line."""
    return next(answer_phrases(text), None)


def answer_phrases(text: str, *, most: int = 20) -> Iterator[str]:
    """The same for every "answer is", the last first, ``most`` of them."""
    for match in reversed(list(_ANSWER_IS.finditer(text))[-most:]):
        yield _line_from(text, match.end())


def after_final_answer(text: str) -> str | None:
    """The text behind the last "final answer:" (or "final answer is") on its line."""
    matches = list(_FINAL_ANSWER.finditer(text))
    return _line_from(text, matches[-1].end()) if matches else None


def _line_from(text: str, at: int) -> str:
    """The rest of the line, or the next line that says anything."""
    return text[at:].lstrip().split("\n", 1)[0]


def last_brackets(text: str) -> str | None:
    """What the last [...] holds that holds anything; None without one."""
    held = [found for match in _BRACKETS.finditer(text) if (found := match[1].strip())]
    return held[-1] if held else None


def last_dollars(text: str) -> str | None:
    """What the last $...$ or $$...$$ holds that holds anything; None without one."""
    held = [found for match in _DOLLARS.finditer(text) if (found := match[1].strip())]
    return held[-1] if held else None


def bare(line: str) -> str:
    """A line without markup and quotes around it, nor the full stop behind it."""
    return line.strip().lstrip(" *\"'").rstrip(" .*\"'")
