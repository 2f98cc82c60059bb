"""Reading objects as models write them: JSON, Python's own notation, and the slips between the two.

One scanner reads them all: either quotation mark, trailing commas, None and null, line breaks inside a string, and a
string's own quotation mark left unescaped where no comma, colon or bracket follows it. Nothing is ever evaluated.
"""

from __future__ import annotations

import json
import re
from typing import Any

MAX_LENGTH = 100_000  # characters of a text that is searched for objects; of a longer one its end
MAX_SCANNED = 20_000  # characters of one object that is not strict JSON
MAX_DEPTH = 20
MAX_FAILURES = 300  # braces that could open an object and open none: LaTeX has many
MAX_WASTED = 10 * MAX_SCANNED  # characters scanned behind such braces: some 0.1 s, in which an arena does nothing else

_OPENS = re.compile(r"\{\s*[\"'}A-Za-z_]")
_GAP = re.compile(r"\s*")
_WORD = re.compile(r"[^,:()\[\]{}\"'\n]{1,200}")
_ENDS = {quote: re.compile(rf"(?:[^{quote}\\]|\\.)*{quote}", re.DOTALL) for quote in ('"', "'")}
_CLOSES = re.compile(r"\s*(?:[,:}\])]|\Z)")
_ESCAPE = re.compile(r"\\(u[0-9A-Fa-f]{4}|U00(?:0[0-9A-Fa-f]|10)[0-9A-Fa-f]{4}|x[0-9A-Fa-f]{2}|.)", re.DOTALL)
_ESCAPED = {"n": "\n", "t": "\t", "r": "\r", '"': '"', "'": "'", "\\": "\\", "/": "/", "\n": ""}
_NAMES = {"true": True, "false": False, "none": None, "null": None}
_DECODER = json.JSONDecoder(strict=False, parse_constant=str, parse_float=str, parse_int=str)


class _UnreadableError(Exception):
    """No object stands here, as was plain after ``scanned`` characters."""

    def __init__(self, scanned: int) -> None:
        super().__init__(scanned)
        self.scanned = scanned


def read_fields(text: str) -> dict[str, Any] | None:
    """The last object in a text that holds anything, wherever it stands: alone, in a fence, amid prose.

    Returns: field -> text, bool, None, or a list or dict of those; numbers as they were written. None where no object
        can be read.
    """
    text = text[-MAX_LENGTH:]
    found, failures, wasted, opening = None, 0, 0, _OPENS.search(text)
    while opening and failures < MAX_FAILURES and wasted < MAX_WASTED:
        try:
            value, end = _object(text, opening.start())
        except _UnreadableError as error:
            failures, wasted, end = failures + 1, wasted + error.scanned, opening.start() + 1
        else:
            found = value or found
        opening = _OPENS.search(text, end)
    return found


def _object(text: str, at: int) -> tuple[dict[str, Any], int]:
    try:
        value, end = _DECODER.raw_decode(text, at)
    except (ValueError, RecursionError):
        value, end = _braces(text[at : at + MAX_SCANNED], 0, 0)
        end += at
    return _whole(value, 0), end


def _whole(value: Any, depth: int) -> Any:
    """A value of whole characters alone: half a surrogate pair, which JSON can spell, could be stored nowhere."""
    if depth > MAX_DEPTH:
        raise _UnreadableError(MAX_SCANNED)
    if isinstance(value, str):
        return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    if isinstance(value, dict):
        return {_whole(key, depth): _whole(held, depth + 1) for key, held in value.items()}
    return [_whole(held, depth + 1) for held in value] if isinstance(value, list) else value


def _skip(text: str, at: int) -> int:
    match = _GAP.match(text, at)
    return match.end() if match else at


def _braces(text: str, at: int, depth: int) -> tuple[dict[str, Any], int]:
    """An object from its opening brace. Raises: _UnreadableError."""
    fields: dict[str, Any] = {}
    at = _skip(text, at + 1)
    while text[at : at + 1] != "}":
        key, at = _key(text, at)
        at = _skip(text, at)
        if text[at : at + 1] != ":":
            raise _UnreadableError(at)
        fields[key], at = _value(text, _skip(text, at + 1), depth)
        at = _comma(text, at, "}")
    return fields, at + 1


def _brackets(text: str, at: int, depth: int) -> tuple[list[Any], int]:
    """A list or tuple from its opening bracket. Raises: _UnreadableError."""
    closing, held = {"[": "]", "(": ")"}[text[at]], []
    at = _skip(text, at + 1)
    while text[at : at + 1] != closing:
        value, at = _value(text, at, depth)
        held.append(value)
        at = _comma(text, at, closing)
    return held, at + 1


def _comma(text: str, at: int, closing: str) -> int:
    """Past the comma behind a value, or at the closing bracket."""
    at = _skip(text, at)
    if text[at : at + 1] == ",":
        return _skip(text, at + 1)
    if text[at : at + 1] != closing:
        raise _UnreadableError(at)
    return at


def _key(text: str, at: int) -> tuple[str, int]:
    return _string(text, at) if text[at : at + 1] in _ENDS else _bare(text, at)


def _value(text: str, at: int, depth: int) -> tuple[Any, int]:
    opening = text[at : at + 1]
    if opening in _ENDS:
        return _string(text, at)
    if opening in ("{", "[", "("):
        if depth >= MAX_DEPTH:
            raise _UnreadableError(at)
        return _braces(text, at, depth + 1) if opening == "{" else _brackets(text, at, depth + 1)
    word, at = _bare(text, at)
    return _NAMES.get(word.lower(), word), at


def _bare(text: str, at: int) -> tuple[str, int]:
    """A word without quotation marks. Raises: _UnreadableError."""
    match = _WORD.match(text, at)
    if match is None or not match.group().strip():
        raise _UnreadableError(at)
    return match.group().strip(), match.end()


def _string(text: str, at: int) -> tuple[str, int]:
    """A string from its opening mark to the first like it behind which it can end. Raises: _UnreadableError."""
    start, ends = at + 1, _ENDS[text[at]]
    at = start
    while match := ends.match(text, at):
        if _CLOSES.match(text, match.end()):
            return _ESCAPE.sub(_unescaped, text[start : match.end() - 1]), match.end()
        at = match.end()
    raise _UnreadableError(len(text))


def _unescaped(match: re.Match[str]) -> str:
    """What an escape stands for; one that stands for nothing (``\\d``) is kept as it is."""
    said = match[1]
    return chr(int(said[1:], 16)) if len(said) > 1 else _ESCAPED.get(said, match.group())
