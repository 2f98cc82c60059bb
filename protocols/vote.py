"""Plurality over parsed answers, grouped into classes of equivalent ones, with an explicit tie-break."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Literal

import msgspec

from protocols.answer import Answer, canonical, same

TieBreak = Literal["seeded", "first", "lexicographic"]


class VoteResult(msgspec.Struct, frozen=True):
    """``answer`` is the first seen of the winning class; its value is None where no ballot could be read."""

    answer: Answer
    support: int  # ballots in the winning class
    votes: int  # ballots that could be read
    tie: bool  # more than one class had the most ballots


def majority_vote(answers: Sequence[Answer], *, tie_break: TieBreak, seed: int, tolerance: float = 0.0) -> VoteResult:
    """The answer that most agents gave.

    Args:
        answers: one ballot an agent, in the cast's order; unparsed ones do not vote.
        tie_break: ``seeded`` draws among the tied classes with ``seed``; ``first`` takes the class seen first (Du et
            al. 2023); ``lexicographic`` takes the greatest string, as the code released with MAFT does.
        tolerance: of the task: a number joins the first class whose first number is no further from it than this, so
            that no class is wider than twice the tolerance, however many numbers lie between.
        seed: used by ``seeded`` alone; the same ballots and seed give the same winner.
    Source: Subramaniam et al. 2025 (MAFT), arXiv:2501.05707, sec. 2.1; classes of equivalent answers as in its grader.
    """
    classes: list[list[Answer]] = []
    for answer in answers:
        if answer.value is None:
            continue
        home = next((members for members in classes if same(members[0], answer, tolerance=tolerance)), None)
        if home is None:
            classes.append([answer])
        else:
            home.append(answer)
    if not classes:
        return VoteResult(Answer(), 0, 0, False)
    most = max(len(members) for members in classes)
    tied = [members[0] for members in classes if len(members) == most]
    if tie_break == "first" or len(tied) == 1:
        winner = tied[0]
    elif tie_break == "lexicographic":
        winner = max(tied, key=_spelling)
    else:
        # sorted by what they mean: the draw must not depend on who answered first, nor on how
        winner = random.Random(seed).choice(sorted(tied, key=_meaning))
    return VoteResult(winner, most, sum(len(members) for members in classes), len(tied) > 1)


def _spelling(answer: Answer) -> str:
    return answer.value or ""


def _meaning(answer: Answer) -> str:
    return answer.canonical or canonical(_spelling(answer))
