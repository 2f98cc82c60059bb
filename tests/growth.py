"""Whether hostile text is read in time that grows as its length does, told apart from how busy the machine is."""

from __future__ import annotations

import time
from collections.abc import Callable

UNTIMED_S = 0.05  # CPU seconds that no reader is asked to account for: too short to time beside other processes


def assert_linear(read: Callable[[str], object], text: str, tries: int = 5) -> None:
    """A text costs at most nine times the CPU time of its first quarter: reading in linear time costs four times as
    much, in quadratic time sixteen times. The best of some tries counts, as other processes can only slow one down."""
    quarter = text[: len(text) // 4]
    found = []
    for _ in range(tries):
        short, whole = cpu_s(read, quarter), cpu_s(read, text)
        if whole <= 9 * short + UNTIMED_S:
            return
        found.append((round(short, 3), round(whole, 3)))
    raise AssertionError(f"CPU seconds of {text[:20]!r}... at a quarter of its length and at the whole: {found}")


def cpu_s(read: Callable[[str], object], text: str) -> float:
    before = time.process_time()
    read(text)
    return time.process_time() - before
