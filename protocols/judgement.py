"""What judges of a persuasion debate say, and what their judgements together decide."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Literal

import msgspec

from protocols.answer import Answer
from protocols.choice import read_choice
from protocols.lenient import read_fields
from protocols.sides import SIDES, Side
from protocols.vote import TieBreak, majority_vote

BEST_SCORE = 10  # on the scale that a preference judge is told

_MAX_READ = 4000  # characters, from the end of a reply: where a judge says what it decided
_BOTH = re.compile(
    r"\(?\b(?:A\)?\s{0,3}(?:or|and|/)\s{0,3}\(?B|B\)?\s{0,3}(?:or|and|/)\s{0,3}\(?A)\b\)?"
)  # is no choice
_CONFIDENCE = re.compile(r"(?i:\bconfidence\b)[^0-9\n-]{0,20}(\d{1,3}(?:\.\d{1,4})?)\s?(%?)")
_SCORE = re.compile(r"(?i:\b(?:score|rating)\b)[^0-9\n-]{0,20}(\d{1,3}(?:\.\d{1,2})?)(?!\d)")
_LONE_SCORE = re.compile(r"^[^\w\n-]{0,8}(\d{1,3}(?:\.\d{1,2})?)(?: ?/ ?10)?[^\w\n]{0,8}$", re.MULTILINE)


class Judgement(msgspec.Struct, frozen=True):
    """One decision of one judge."""

    judge: str  # whose decision it is; a judge may decide in both orders
    side: Side  # that it chose
    named_a: bool  # the side was called A where the judge saw it
    confidence: float | None = None  # from 0 to 1


class Decision(msgspec.Struct, frozen=True):
    """What the judgements together say: ``support`` of ``votes`` judgements are for ``side``."""

    side: Side
    by: Literal["agreement", "majority", "confidence", "tie_break"]
    support: int
    votes: int
    tie: bool  # both sides had as many
    details: dict[str, str]


def read_side(text: str, answers: tuple[str, str], names: tuple[str, str]) -> Answer:
    """Whom a judge chose, "A" or "B", by letter, by name or by the answer itself, in prose or in JSON.

    Args: the answers of A and B and their names, as this judge knows them.
    Returns: ``details`` holds its ``confidence``, from 0 to 1, where it says one.
    """
    text = text[-_MAX_READ:]
    said = (read_fields(text) or {}).get("answer")
    said = said if isinstance(said, str) else text
    for letter, name in zip("AB", names, strict=True):
        said = re.sub(rf"\b{re.escape(name)}(?!\w)", letter, said, flags=re.IGNORECASE) if name else said
    found = read_choice(_BOTH.sub("", said), answers)
    return Answer(*found, details=_confidence(text)) if found else Answer()


def _confidence(text: str) -> dict[str, str]:
    found = _CONFIDENCE.findall(text)
    if not found:
        return {}
    number, percent = float(found[-1][0]), bool(found[-1][1])
    share = number / 100 if percent or number > 1 else number
    return {"confidence": f"{share:.4g}"} if share <= 1 else {}


def read_score(text: str) -> Answer:
    """How persuasive a preference judge finds an argument, from 0 to ``BEST_SCORE``."""
    text = text[-_MAX_READ:]
    for how, rule in (("named", _SCORE), ("alone", _LONE_SCORE)):
        found = rule.findall(text)
        if found and float(found[-1]) <= BEST_SCORE:
            return Answer(found[-1], how)
    return Answer()


def decide(judgements: Sequence[Judgement], *, tie_break: TieBreak, seed: int) -> Decision | None:
    """The side that most judgements are for; None without any.

    As many for each are decided by the higher mean confidence where every one of them says it, or else by the vote's
    ``tie_break``. Its details say how far the judges depend on the order in which they see the sides.
    """
    result = majority_vote([Answer(one.side, "judge") for one in judgements], tie_break=tie_break, seed=seed)
    if not result.votes:
        return None
    sure = {side: _mean([one.confidence for one in judgements if one.side == side]) for side in SIDES}
    first, second = sure["a"], sure["b"]
    side: Side = "a" if result.answer.value == "a" else "b"
    by: Literal["agreement", "majority", "confidence", "tie_break"]
    by = "tie_break" if result.tie else "agreement" if result.support == result.votes else "majority"
    if result.tie and first is not None and second is not None and first != second:
        side, by = "a" if first > second else "b", "confidence"
    confidence = sure[side]
    details = _order_effects(judgements) | ({} if confidence is None else {"confidence": f"{confidence:.4g}"})
    return Decision(side, by, result.support, result.votes, result.tie, details)


def _mean(values: Sequence[float | None]) -> float | None:
    """None where a value is missing, or all are."""
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known and len(known) == len(values) else None


def _order_effects(judgements: Sequence[Judgement]) -> dict[str, str]:
    """How many judgements went to the side called A, and how many judges kept to one side in both orders."""
    named_a = sum(one.named_a for one in judgements)
    chosen: dict[str, list[Side]] = {}
    for one in judgements:
        chosen.setdefault(one.judge, []).append(one.side)
    twice = [sides for sides in chosen.values() if len(sides) > 1]
    told = {"chose_a": f"{named_a} of {len(judgements)}"}
    return told | ({"both_orders": f"{sum(len(set(sides)) == 1 for sides in twice)} of {len(twice)}"} if twice else {})
