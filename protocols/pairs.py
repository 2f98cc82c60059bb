"""What came of rewriting items: the pairs that were kept, how many the filter removed, and their mix with originals.

Source: Guo et al. 2024 (MAmmoTH-VL), arXiv:2412.05237, sec. 2. The protocol that makes the pairs is ``rewrite``.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from fractions import Fraction
from typing import TypeVar

import msgspec

from protocols.errors import ConfigError
from protocols.graph import Debate

T = TypeVar("T")

CATEGORIES = ("general", "chart", "math", "caption", "ocr")


class Pair(msgspec.Struct, frozen=True):
    """One exchange to train on: what is asked, and what is answered."""

    instruction: str
    response: str


def kept_pairs(debate: Debate) -> list[Pair]:
    """What the self-filter kept of an item, in the order it was written; [] for any other debate."""
    if debate.verdict is None or "kept" not in debate.verdict.details:
        return []
    return msgspec.json.decode(debate.verdict.details["kept"], type=list[Pair])


class FilterRate(msgspec.Struct, frozen=True):
    """Pairs before the filter and after it."""

    produced: int
    kept: int

    @property
    def removed_percent(self) -> float:
        return 100 * (self.produced - self.kept) / self.produced if self.produced else 0.0


def filter_rates(debates: Iterable[Debate]) -> dict[str, FilterRate]:
    """Category -> what the filter left of it, as in the paper's table of the filter, the categories in our order."""
    counts = {category: [0, 0] for category in CATEGORIES}
    for debate in debates:
        details = debate.verdict.details if debate.verdict else {}
        if "kept" in details and details.get("category") in counts:
            count = counts[details["category"]]
            count[0] += int(details["produced"])
            count[1] += len(kept_pairs(debate))
    return {category: FilterRate(*count) for category, count in counts.items() if any(count)}


def mix(rewritten: Sequence[T], originals: Sequence[T], *, share: float = 0.7, seed: int = 0) -> list[T]:
    """As many of both as keep the share, drawn without repetition and shuffled.

    Args:
        share: of the rewritten in the mix, 0 to 1; the paper's best was 0.7.
    Raises: ConfigError: share is none.
    """
    if not 0 <= share <= 1:
        raise ConfigError(f"share={share} of rewritten items must be from 0 to 1")
    part = Fraction(str(share))
    room = [len(items) / of for items, of in ((rewritten, part), (originals, 1 - part)) if of]
    total = int(min(room))
    rng, first = random.Random(seed), round(total * part)
    drawn = [*rng.sample(list(rewritten), first), *rng.sample(list(originals), total - first)]
    rng.shuffle(drawn)
    return drawn
