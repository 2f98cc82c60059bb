"""Python's garbage collector, told that a process holds millions of objects that are not garbage."""

from __future__ import annotations

import gc

YOUNG, MIDDLE, FULL = 500_000, 20, 1_000_000


def calm_collector() -> None:
    """Call once a process is set up. Asks, replies and debates are freed by reference counts, as they hold no cycles.

    A collection looks at all that was made since the one before and still lives, in the end every open debate and ask,
    and stops a process of ten thousand for half a second. Now one comes when half a million more objects were made than
    freed: as many debates are opened, or so much garbage is there that reference counts do not free.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(YOUNG, MIDDLE, FULL)
