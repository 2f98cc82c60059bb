"""How differently two replies are worded. Pure counting: no model, so it costs nothing and means what it says."""

from __future__ import annotations

import math
import re
from collections import Counter
from itertools import pairwise

MAX_LETTERS = 8192  # of a reply that are looked at: a model may write without end
_WORD = re.compile(r"\w+|[^\w\s]")

Wording = Counter[str | tuple[str, str]]
"""How often each word, and each pair of neighbouring words, stands in a text."""


def wording(text: str) -> Wording:
    """Count a text's first ``MAX_LETTERS``.

    A word is a run of letters, digits and underscores without regard to case; any other character but a space is a word
    by itself.
    """
    words: list[str] = _WORD.findall(text[:MAX_LETTERS].casefold())
    counts: Wording = Counter(words)
    counts.update(pairwise(words))
    return counts


def wording_distance(one: Wording, other: Wording) -> float:
    """1 - cos of two counts, between 0 (the same words in the same pairs) and 1 (none in common).

    Two texts without a word are alike, and differ wholly from any other.

    Source: the measure's place is that of the embedding dissimilarity of Subramaniam et al. 2025 (MAFT),
    arXiv:2501.05707, sec. 4, who embed replies with a T5 encoder; counts of words instead of an encoder are ours. They
    see other words where an encoder sees the same meaning, so figures compare with each other and not with theirs.
    """
    if not one or not other:
        return float(bool(one) != bool(other))
    product = sum(count * other[gram] for gram, count in one.items())
    squares = sum(count * count for count in one.values()) * sum(count * count for count in other.values())
    return max(0.0, 1.0 - product / math.sqrt(squares))
