"""How many asks a local engine holds: as many as it batches, but fewer while its cache is full and some wait inside.

An engine without room for a prompt lets it wait, or pushes out what it was answering and computes that again later.
Outside the engine the ask keeps its turn, costs nothing, and can still be dropped or go elsewhere. Pure: see
``actors.limits.queue_gate``.
"""

from __future__ import annotations

from collections import OrderedDict

from actors.limits.gate import LoadHint
from actors.limits.queue_gate import Decision, Done, Told, Want

FULL = 0.9  # share of the cache in use, from which on what waits is held to wait for room
ROOMY = 0.8  # below it there is room for one more


class EngineRoom:
    """One engine's room, first come, first served. A core.

    The limit falls to what the engine runs when its cache is full and something waits, and grows by one with every
    reply while there is room.
    """

    def __init__(self, most: int) -> None:
        self._most, self.limit = most, most
        self._load = LoadHint(running=0, waiting=0, kv_usage=0.0)
        self._queue: OrderedDict[str, None] = OrderedDict()
        self._inside: set[str] = set()
        self.trims = 0

    def resize(self, most: int) -> None:
        """Let in more or fewer, as the user now says; an engine that has had no room keeps the limit it has found."""
        self.limit = most if self.limit == self._most else min(self.limit, most)
        self._most = most

    @property
    def waiting(self) -> int:
        return len(self._queue)

    @property
    def running(self) -> int:
        return len(self._inside)

    def tell(self, told: Told, now_s: float) -> None:
        if isinstance(told, Want):
            self._queue[told.id] = None
        elif isinstance(told, LoadHint):
            self._learn(told)
        elif isinstance(told, Done):
            self._queue.pop(told.id, None)
            if told.id in self._inside:
                self._inside.remove(told.id)
                if told.ending == "reply" and self._load.kv_usage < ROOMY and not self._load.waiting:
                    self.limit = min(self._most, self.limit + 1)

    def _learn(self, load: LoadHint) -> None:
        self._load = load
        if load.waiting and load.kv_usage >= FULL and load.running < self.limit:
            self.limit = max(1, int(load.running))
            self.trims += 1

    def decide(self, now_s: float) -> list[Decision]:
        admitted = []
        while self._queue and len(self._inside) < self.limit:
            name, _ = self._queue.popitem(last=False)
            self._inside.add(name)
            admitted.append(Decision(name))
        return admitted

    def next_s(self, now_s: float) -> float | None:
        return None  # only what leaves makes room

    def figures(self, now_s: float) -> dict[str, float]:
        return {
            "waiting": float(self.waiting),
            "running": float(self.running),
            "limit": float(self.limit),
            "trims": float(self.trims),
        }
