"""Plurality over parsed answers, grouped into classes of equivalent ones, with an explicit tie-break."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Literal

import msgspec

from protocols.answer import Answer, canonical, equivalent

TieBreak = Literal["seeded", "first", "lexicographic"]


class VoteResult(msgspec.Struct, frozen=True):
    """``answer`` is the class's first-seen spelling; None where no ballot could be read."""

    answer: str | None
    support: int  # ballots in the winning class
    votes: int  # ballots that could be read
    tie: bool  # more than one class had the most ballots


def majority_vote(answers: Sequence[Answer], *, tie_break: TieBreak, seed: int) -> VoteResult:
    """The answer that most agents gave.

    Args:
        answers: one ballot an agent, in the cast's order; unparsed ones do not vote.
        tie_break: ``seeded`` draws among the tied classes with ``seed``; ``first`` takes the class seen first (Du et
            al. 2023); ``lexicographic`` takes the greatest string, as the code released with MAFT does.
        seed: used by ``seeded`` alone; the same ballots and seed give the same winner.
    Source: Subramaniam et al. 2025 (MAFT), arXiv:2501.05707, sec. 2.1; classes of equivalent answers as in its grader.
    """
    classes: list[list[str]] = []
    for answer in answers:
        if answer.value is None:
            continue
        home = next((members for members in classes if equivalent(members[0], answer.value)), None)
        if home is None:
            classes.append([answer.value])
        else:
            home.append(answer.value)
    if not classes:
        return VoteResult(None, 0, 0, False)
    most = max(len(members) for members in classes)
    tied = [members[0] for members in classes if len(members) == most]
    if tie_break == "first":
        winner = tied[0]
    elif tie_break == "lexicographic":
        winner = max(tied)
    else:
        # sorted by what they mean: the draw must not depend on who answered first, nor on how
        winner = random.Random(seed).choice(sorted(tied, key=canonical))
    return VoteResult(winner, most, sum(len(members) for members in classes), len(tied) > 1)
