"""Kills as a plan, and what each cost: asks in flight and asked again, seconds until all are on record. Pure."""

from __future__ import annotations

import math
import random
import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Literal, get_args

import msgspec

Kind = Literal["arena", "agent host", "keeper", "driver", "raylet", "node", "head", "trainer", "feed"]
"""What is killed: one process; a node's raylet, which its other processes follow; all of a node; head and driver."""

WEIGHTS: Mapping[Kind, int] = {
    "arena": 5, "agent host": 5, "keeper": 1, "driver": 2, "raylet": 3, "node": 3, "head": 1,
}  # fmt: skip
LOOP_KINDS: Sequence[Kind] = ("trainer", "trainer", "feed")
POINTS_A_RUN = 5  # more, and a run may be over before the last
APART = (40, 120)  # events between two kills, at least and at most
APART_IN_LOOP = (10, 40)


class Point(msgspec.Struct, frozen=True):
    """A kill to come: of what, so many events after the one before it, and which where there are several."""

    kind: Kind
    after: int
    which: float  # from 0 to 1


class Strike(msgspec.Struct):
    """A kill that was done. Times are those of the machine's clock."""

    point: Point
    at: float
    over: float  # when all that died with it was gone
    on_record: dict[str, str]  # ask -> reply, just before
    resubmissions: int = 0

    @property
    def since(self) -> float:
        """From when on what it had in flight can be asked again: of a run that ended, once that is over."""
        return self.over if self.resubmissions else self.at


class Figures(msgspec.Struct, frozen=True, kw_only=True):
    """What a kill cost. ``recovery_s``: until all that was in flight at the kill is on record."""

    kind: Kind
    run: str
    in_flight: int
    asked_again: int
    resubmissions: int
    recovery_s: float


class Account(msgspec.Struct, frozen=True):
    """Of one run: each kill's figures, what should not be, a sentence each, and the kills it was over before."""

    figures: list[Figures]
    faults: list[str]
    missed: Sequence[Point] = ()


def plan(seed: int, points: int) -> list[list[Point]]:
    """The kills of each run. Kinds come as often as their weights say, in a drawn order."""
    draw = random.Random(seed)
    deck = [kind for kind, weight in WEIGHTS.items() for _ in range(weight)]
    kinds: list[Kind] = []
    while len(kinds) < points:
        kinds += draw.sample(deck, len(deck))
    drawn = [Point(kind, draw.randint(*APART), draw.random()) for kind in kinds[:points]]
    return [drawn[start : start + POINTS_A_RUN] for start in range(0, points, POINTS_A_RUN)]


def plan_loop(seed: int) -> list[Point]:
    """The kills of one loop, in a drawn order."""
    draw = random.Random(seed)
    kinds = draw.sample(LOOP_KINDS, len(LOOP_KINDS))
    return [Point(kind, draw.randint(*APART_IN_LOOP), draw.random()) for kind in kinds]


def tally(
    run: str, tries: Mapping[str, Sequence[float]], recorded: dict[str, float], strikes: Sequence[Strike]
) -> Account:
    """Attribute every further try of an ask to a kill that had it in flight: each of them allows one, the first first.

    Args:
        tries: ask -> when each was begun, in order.
        recorded: ask -> when its outcome was put on record.
    """
    again: dict[int, list[str]] = defaultdict(list)
    faults = [f"{run}: {ask} is on record and was never asked" for ask in recorded.keys() - tries.keys()]
    faults += [f"{run}: {ask} was asked and is not on record" for ask in tries.keys() - recorded.keys()]
    recorded = dict.fromkeys(tries, math.inf) | recorded
    for ask, begun in tries.items():
        for before, at in pairwise(begun):
            allow = [
                number
                for number, strike in enumerate(strikes)
                if before <= strike.over and strike.since <= at and strike.since < recorded[ask]
            ]
            left = [number for number in allow if ask not in again[number]]
            if left:
                again[left[0]].append(ask)
            elif allow:
                faults.append(f"{run}: {ask} was asked again twice after one kill, the second time at {at:.3f}")
            else:
                faults.append(f"{run}: {ask} was asked again at {at:.3f}, and no kill had it in flight")
    figures = []
    for number, strike in enumerate(strikes):
        in_flight = [ask for ask, begun in tries.items() if begun[0] <= strike.over and recorded[ask] > strike.since]
        figures.append(
            Figures(
                kind=strike.point.kind,
                run=run,
                in_flight=len(in_flight),
                asked_again=len(again[number]),
                resubmissions=strike.resubmissions,
                recovery_s=max((recorded[ask] - strike.at for ask in in_flight), default=0.0),
            )
        )
    return Account(figures, faults)


def table(figures: Sequence[Figures]) -> str:
    """A line a kind of process; of several kills the sum, and of seconds the median and the most."""
    lines = [f"{'killed':<12}{'kills':>6}{'resubmitted':>13}{'asked again':>13}{'in flight':>11}{'recovery s':>18}"]
    for kind in (kind for kind in get_args(Kind) if any(item.kind == kind for item in figures)):
        of = [item for item in figures if item.kind == kind]
        seconds = [item.recovery_s for item in of]
        lines.append(
            f"{kind:<12}{len(of):>6}{sum(item.resubmissions > 0 for item in of):>13}"
            f"{sum(item.asked_again for item in of):>13}{sum(item.in_flight for item in of):>11}"
            f"{statistics.median(seconds):>9.1f}, {max(seconds):>7.1f}"
        )
    return "\n".join(lines)
