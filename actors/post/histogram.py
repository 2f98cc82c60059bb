"""How long something takes, as counts in buckets: cheap to add to, exact to sum over processes, good for quantiles."""

from __future__ import annotations

import math
from collections.abc import Sequence

PER_OCTAVE = 4  # a bucket is 19 % wide
SHORTEST_S = 0.0001
NUM_BUCKETS = 92  # up to some twelve minutes; what is longer counts as that


class Histogram:
    """Durations in seconds. ``counts``: [NUM_BUCKETS], of those up to ``bound(number)``, and beyond the one before."""

    def __init__(self, counts: Sequence[int] = ()) -> None:
        self.counts = list(counts) or [0] * NUM_BUCKETS

    def add(self, seconds: float, times: int = 1) -> None:
        number = math.ceil(math.log2(seconds / SHORTEST_S) * PER_OCTAVE) if seconds > SHORTEST_S else 0
        self.counts[min(number, NUM_BUCKETS - 1)] += times

    def __add__(self, other: Histogram) -> Histogram:
        return Histogram([one + two for one, two in zip(self.counts, other.counts, strict=True)])

    def __sub__(self, earlier: Histogram) -> Histogram:
        """What was added since."""
        return Histogram([now - then for now, then in zip(self.counts, earlier.counts, strict=True)])

    @property
    def total(self) -> int:
        return sum(self.counts)

    def quantile(self, share: float) -> float:
        """The duration, rounded up to its bucket's bound, that so large a share does not pass; 0 without any."""
        left = share * self.total
        for number, count in enumerate(self.counts):
            left -= count
            if count and left <= 1e-9:
                return bound(number)
        return 0.0


def bound(number: int) -> float:
    """The longest duration, in seconds, that a bucket counts."""
    return float(SHORTEST_S * 2 ** (number / PER_OCTAVE))
