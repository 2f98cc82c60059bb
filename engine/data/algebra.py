"""The other side of ``engine.data.canonical``: a process of its own, which may hang, swell or crash and hurt nobody.

It reads answers from standard input, one JSON string a line, and writes a canonical spelling for each, "" where it
finds none. Nothing it is sent is evaluated: math-verify parses LaTeX by a grammar, and sympy computes with the result.

Two expressions get one spelling when they agree, to 25 digits, at the same few points: equal ones nearly always do,
different ones practically never. Tuples and intervals keep their brackets and order, sets and lists lose theirs.
"""

from __future__ import annotations

import json
import logging
import os
import re
import resource
import signal
import sys
from fractions import Fraction
from typing import Any

import sympy
from math_verify import parse
from math_verify.parser import LatexExtractionConfig

from protocols.latex import normal_form
from protocols.numerals import as_number, spell

MAX_CANONICAL = 2000  # characters
MAX_DEPTH = 8  # of tuples in sets in tuples
MAX_EXPONENT = 10_000
MAX_SYMBOLS = 6
DIGITS = 25  # that must agree
POINTS = ("1.3717421", "-2.7182459", "0.5772157", "3.1415931")  # nowhere special; the other symbols are shifted from it

_WORD = re.compile(r"[^\W\d_]{3,}(?:[ -][^\W\d_]+)*")
_NOT_ALGEBRA = re.compile(r"\d_|:")  # 120_3 is written in base three, 12:30 may be a time: neither is computed with
_RELATIONS = {
    "StrictLessThan": ("<", 1), "LessThan": ("<=", 1), "StrictGreaterThan": ("<", -1), "GreaterThan": ("<=", -1),
    "Equality": ("=", 0), "Unequality": ("!=", 0),
}  # fmt: skip


def main() -> None:
    """Serve until standard input ends. Arguments: seconds an answer may take, bytes of address space."""
    limit_s, max_bytes = float(sys.argv[1]), int(sys.argv[2])
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what a library prints is no answer
    logging.disable()  # the parser warns that it has no time limit of its own; ours is the process's
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_AS, (max_bytes, max_bytes))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # an interrupted run ends us by closing our standard input
    signal.signal(signal.SIGALRM, signal.SIG_DFL)  # it ends this process, whatever Python is doing
    canonical("x+1")  # what the first answer would wait for is done before the clock runs
    _send(out, "ready")
    for line in sys.stdin:
        signal.setitimer(signal.ITIMER_REAL, limit_s)
        try:
            found = canonical(json.loads(line))
        except MemoryError:
            return  # what fills the memory may stay there; the next answer deserves a fresh process
        except Exception:  # whatever a parser or an algebra system may come upon in hostile text
            found = ""
        signal.setitimer(signal.ITIMER_REAL, 0)
        _send(out, found if len(found) <= MAX_CANONICAL else "")


def _send(out: Any, text: str) -> None:
    out.write(json.dumps(text) + "\n")
    out.flush()


def canonical(raw: str) -> str:
    """The canonical spelling of an answer; "" where there is none. May raise anything, hang, or run out of memory."""
    return _spelling(normal_form(raw), 0)


def _spelling(text: str, depth: int) -> str:
    if not text or depth > MAX_DEPTH:
        raise ValueError("nothing to compute with")
    if (number := as_number(text)) is not None:
        return spell(number)
    if _WORD.fullmatch(text):
        return text.casefold()  # a word is no product of its letters
    if _NOT_ALGEBRA.search(text):
        return text
    return _collection(text, depth) or _algebra(text)


def _collection(text: str, depth: int) -> str:
    """Sets, tuples, intervals, unions and bare lists, part by part; "" for anything else."""
    if "\\cup" in text and len(parts := _split(text, "\\cup")) > 1:
        return " u ".join(sorted({_spelling(part, depth + 1) for part in parts}))
    if text.startswith("\\{") and text.endswith("\\}"):
        inside = text[2:-2]
        return _set([_spelling(part, depth + 1) for part in _split(inside, ",")] if inside else [])
    if text[0] in "([" and text[-1] in ")]" and len(parts := _split(text[1:-1], ",")) > 1:
        return text[0] + ", ".join(_spelling(part, depth + 1) for part in parts) + text[-1]
    if len(parts := _split(text, ",")) > 1:
        return _set([_spelling(part, depth + 1) for part in parts])
    return ""


def _set(parts: list[str]) -> str:
    return "{" + ", ".join(sorted(set(parts))) + "}"


def _split(text: str, mark: str) -> list[str]:
    """At the marks outside all brackets; one part where brackets do not pair. Not at the comma of a number."""
    parts, start, level, at = [], 0, 0, 0
    while at < len(text):
        if text[at] in "([{":
            level += 1
        elif text[at] in ")]}":
            level -= 1
            if level < 0:
                return [text]
        elif level == 0 and text.startswith(mark, at) and not (mark == "," and as_number(text) is not None):
            parts.append(text[start:at].strip())
            start = at + len(mark)
        at += 1
    return [text] if level else [*parts, text[start:].strip()]


def _algebra(text: str) -> str:
    parsed = parse(f"${text}$", [LatexExtractionConfig()], parsing_timeout=None)
    if not parsed or isinstance(parsed[0], str):
        return ""
    return _of(parsed[0])


def _of(value: Any) -> str:
    """The spelling of what the parser made: a relation, a set, a matrix or an expression."""
    name = type(value).__name__
    if name in _RELATIONS:
        return _relation(value, *_RELATIONS[name])
    if name == "And":
        return " & ".join(sorted(_of(part) for part in value.args))
    if name == "FiniteSet":
        return _set([_of(part) for part in value.args])
    if isinstance(value, sympy.MatrixBase):
        return str(value.shape) + "[" + ", ".join(_of(part) for part in value) + "]"
    if name == "EmptySet":
        return _set([])
    if isinstance(value, sympy.Set | sympy.Tuple | sympy.logic.boolalg.BooleanAtom):
        return str(sympy.srepr(value))
    return _expression(_plain(value))


def _plain(value: Any) -> Any:
    """With decimals as fractions, sums and integrals done. Raises: ValueError: it would fill the memory."""
    _refuse_towers(value)
    return value.replace(lambda part: part.is_Float, lambda part: sympy.Rational(str(part))).doit()


def _relation(value: Any, sign: str, direction: int) -> str:
    """left - right, up to a factor: positive for an inequality, any for an equation. ``direction`` -1: turned round."""
    difference = _plain(value.rhs - value.lhs if direction < 0 else value.lhs - value.rhs)
    values = _sampled(difference)
    scale = next((number for number in values if abs(number) > 10**-9), 1)
    values = [number / (abs(scale) if direction else scale) for number in values]
    return f"{_names(difference)}: {' '.join(map(_digits, values))} {sign} 0"


def _expression(value: Any) -> str:
    if value.is_Rational:
        return spell(Fraction(int(value.p), int(value.q)))
    if value.has(sympy.oo, -sympy.oo, sympy.zoo, sympy.nan):
        return str(sympy.srepr(value))
    values = _sampled(value)
    figures = [_digits(number) for number in values]
    if len(set(figures)) > 1:
        return f"{_names(value)}: {' '.join(figures)}"
    exact = _exact(values[0])  # the same everywhere: its symbols cancel out
    return figures[0] if exact is None else spell(exact)


def _names(value: Any) -> str:
    return ",".join(sorted(map(str, value.free_symbols)))


def _sampled(value: Any) -> list[Any]:
    """Its value at each of the points; a symbol i is the imaginary unit. Raises: ValueError: it has none there."""
    symbols = sorted(value.free_symbols, key=str)
    if len(symbols) > MAX_SYMBOLS or value.atoms(sympy.core.function.AppliedUndef):
        raise ValueError("more unknowns than can be told apart")
    values = []
    for point in POINTS if symbols else POINTS[:1]:
        first = sympy.Rational(point)
        at = {symbol: first + sympy.Rational(7 * number, 19) for number, symbol in enumerate(symbols)}
        at |= {symbol: sympy.I for symbol in symbols if str(symbol) == "i"}
        found = value.subs(at).evalf(DIGITS + 10, maxn=200)
        if not found.is_number or found.has(sympy.nan, sympy.zoo):
            raise ValueError("it has no value there")
        values.append(found)
    return values


def _refuse_towers(value: Any) -> None:
    """Raises: ValueError: a power whose digits alone would fill the memory."""
    for power in value.atoms(sympy.Pow):
        exponent = power.exp
        if exponent.is_number and (exponent.has(sympy.Pow) or abs(exponent) > MAX_EXPONENT) and power.base.is_number:
            raise ValueError("too large a power")


def _exact(number: Any) -> Fraction | None:
    """The plain fraction that a value is, where it is one."""
    real, imaginary = number.as_real_imag()
    if abs(imaginary) > 10**-DIGITS:
        return None
    near = Fraction(str(real)) if "e" not in str(real).lower() else Fraction(float(real))
    plain = near.limit_denominator(1000)
    return plain if abs(near - plain) * 10**DIGITS < max(1, abs(plain)) else None


def _digits(number: Any) -> str:
    """A complex number to ``DIGITS`` figures; what is too small to tell from zero is zero."""
    return "/".join(_figures(part) for part in number.as_real_imag())


def _figures(number: Any) -> str:
    return "0" if abs(number) < 10**-DIGITS else sympy.Float(number, DIGITS).__str__().rstrip("0").rstrip(".")


if __name__ == "__main__":
    main()
