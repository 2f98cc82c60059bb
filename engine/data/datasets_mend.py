"""Rows of published datasets, put the way our fields can name them. A row that cannot be asked comes back as None.

Only spelling changes here: which text a question or an answer is stays as the publisher has it.
"""

from __future__ import annotations

import ast
from collections.abc import Mapping
from typing import Any

Row = dict[str, Any]


def as_it_is(row: Row) -> Row | None:
    return row


def math_row(row: Row) -> Row | None:
    """Levels as numbers: "Level 5" is 5. The few without a level keep what they say."""
    return row | {"level": str(row.get("level", "")).removeprefix("Level ").strip()}


def mmmu_row(row: Row) -> Row | None:
    """Options, and the answers of open questions, are Python lists in text; "?" is an answer that is kept secret."""
    answer = _python_list(row.get("answer"))
    return row | {"options": _python_list(row.get("options")) or [], "answer": None if answer == "?" else answer}


def _python_list(value: Any) -> Any:
    if not isinstance(value, str) or not value.startswith("[") or len(value) > 20_000:
        return value
    try:
        return ast.literal_eval(value)  # literals alone: nothing is run
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return value


def mathvista_row(row: Row) -> Row | None:
    """A float counts as right within half a unit of its last place, which ``precision`` counts in decimals."""
    precision, tolerance = row.get("precision"), 0.0
    if row.get("answer_type") == "float" and isinstance(precision, int | float) and 0 <= precision <= 12:
        tolerance = 0.5 * 10.0 ** -int(precision)
    return row | {"choices": row.get("choices") or [], "tolerance": tolerance}


_RIGHT, _WRONG = "对", "错"


def cmmmu_row(row: Row) -> Row | None:
    """Statements to judge become two choices; questions with several right options are left out."""
    answer, options = str(row.get("answer") or "").strip(), [row.get(f"option{number}") for number in range(1, 5)]
    if row.get("type") == "判断":
        options = [_RIGHT, _WRONG]
        answer = {_RIGHT: "A", _WRONG: "B"}.get(answer, answer)
    elif row.get("type") != "选择":
        options = []
    elif len(answer) > 1 and set(answer) <= set("ABCD"):
        return None
    while options and options[-1] in (None, "", "-"):  # at the end alone: letters must not shift
        options.pop()
    question = str(row.get("question", ""))
    for number in range(1, 6):
        if name := row.get(f"image_{number}_filename"):
            question = question.replace(f'<img="{name}">', f"<image {number}>")
    return row | {
        "question": question,
        "answer": answer if answer not in ("", "?") else None,
        "choices": options,
    }


def arc_row(row: Row) -> Row | None:
    """The publisher's own files put the stem and the choices under ``question``."""
    question = row.get("question")
    return (
        row | {"question": question.get("stem"), "choices": question.get("choices")}
        if isinstance(question, Mapping)
        else row
    )


def commonsense_row(row: Row) -> Row | None:
    row = arc_row(row) or row
    return row | {"answerKey": row.get("answerKey") or None}  # the test split keeps its answers secret


def ciar_row(row: Row) -> Row | None:
    """Answers and wrong answers in several spellings; "9.09%" is also the number it says."""
    wrong = row.get("incorrect answer")
    return row | {"incorrect_answers": wrong if isinstance(wrong, list) else [wrong] if wrong else None}


def commonmt_row(row: Row) -> Row | None:
    return row | {"source_language": "Chinese", "target_language": "English"}


def m2d_row(row: Row) -> Row | None:
    """An answer is a choice's text; open questions have an empty list of choices."""
    return row | {"choices": row.get("choices") or []}
