"""Python's garbage collector, told that a process holds millions of objects that are not garbage."""

from __future__ import annotations

import gc

YOUNG, MIDDLE, FULL = 50_000, 20, 1_000_000


def calm_collector() -> None:
    """Call once a process is set up. Asks, replies and debates are freed by reference counts, as they hold no cycles;
    a full collection would look at every open debate and stop a process of ten thousand for a second.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(YOUNG, MIDDLE, FULL)
