"""Two pools of rows mixed into one set in a wanted share, row by row as they come.

A debate gives a row without knowing what the others will give, so what there is too much of waits: it is let go when
rows of the other pool come, and what still waits when the debates are over is not learned from. Everything follows
from the rows in their order, so a feed that reads its log back mixes the same again.
"""

from __future__ import annotations

import hashlib
import heapq
from fractions import Fraction
from typing import Generic, Literal, TypeVar

import msgspec

from trainers.selection.example import Example, Pool

T = TypeVar("T")


class Mix(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How a critic's set is made of what it corrected and what it maintained: D^C = w D^C- + (1 - w) D^C+.

    ``exact`` keeps the share of corrected rows within one row of w at any time, and uses up what is scarcer.
    ``coin_flip`` is the released code's: all corrected rows, and for each a fair coin that adds a maintained one, which
    makes w about two thirds whatever ``corrected`` says. ``all`` mixes nothing.

    Source: Subramaniam et al. 2025 (MAFT), arXiv:2501.05707, sec. 2.2, where w is free.
    """

    how: Literal["exact", "coin_flip", "all"] = "exact"
    corrected: float = 0.5  # w
    seed: int = 0  # of the draw among the rows that wait, without replacement

    def __post_init__(self) -> None:
        if not 0.0 <= self.corrected <= 1.0:
            raise ValueError(f"corrected={self.corrected:g} must be from 0 to 1")


class Mixer(Generic[T]):
    """The state of one agent's mix; ``T`` stands for a row, by whatever the caller knows it."""

    def __init__(self, mix: Mix) -> None:
        self._mix, self._share = mix, Fraction(str(mix.corrected))
        self._waiting: dict[Pool, list[tuple[bytes, T]]] = {"corrected": [], "maintained": []}  # heaps by drawn number
        self._taken: dict[Pool, int] = {"corrected": 0, "maintained": 0}
        self._owed = 0  # coins that came down heads before there was a row to add

    def offer(self, example: Example, row: T) -> list[T]:
        """One more row. Returns: those that may be learned from now, in order; maybe none, maybe others."""
        if not example.pool or self._mix.how == "all":
            return [row]
        heapq.heappush(self._waiting[example.pool], (self._drawn(example), row))
        if self._mix.how == "coin_flip" and example.pool == "corrected":
            self._owed += self._drawn(example)[-1] & 1
        found: list[T] = []
        while (pool := self._next()) is not None:
            found.append(heapq.heappop(self._waiting[pool])[1])
            self._taken[pool] += 1
        return found

    @property
    def num_waiting(self) -> int:
        return sum(map(len, self._waiting.values()))

    def _next(self) -> Pool | None:
        """The pool that may give a row."""
        if self._mix.how == "coin_flip":
            if self._waiting["corrected"]:
                return "corrected"
            return "maintained" if self._waiting["maintained"] and self._taken["maintained"] < self._owed else None
        ahead = self._taken["corrected"] * (1 - self._share) - self._taken["maintained"] * self._share
        if self._waiting["corrected"] and self._share > 0 and ahead <= 0:
            return "corrected"
        return "maintained" if self._waiting["maintained"] and self._share < 1 and ahead >= 0 else None

    def _drawn(self, example: Example) -> bytes:
        """A row's number in the lot: its own, so that the draw does not depend on who came first."""
        return hashlib.blake2b(f"{self._mix.seed}/{example.id}".encode(), digest_size=8).digest()
