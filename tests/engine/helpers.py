"""What the engine's tests share: small debates, a host that answers in-process, and an arena driven to its end."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec

from engine.debates.arena import Arena, Assignment, Build, Finished
from engine.live.arena_stats import ArenaStats
from protocols.catalogue import load_protocol_prompts
from protocols.conversation import Player
from protocols.graph import Debate, decode_debate
from protocols.machine import Machine, derive_seed
from protocols.message import Ask, Failure, Outcome, Reply, Stopped, Usage
from protocols.society import Society, SocietySettings
from protocols.task import Task

AGENTS = ("ada", "bo", "cy")
CAST = {"generator": AGENTS}
PLAYERS = {"generator": tuple(Player(name=name) for name in AGENTS)}
SETTINGS = SocietySettings(rounds=2)
PROMPTS = load_protocol_prompts("society", SETTINGS)

Answer = Callable[[Ask], Outcome | None]

_ASKS = msgspec.msgpack.Decoder(list[Ask])
_ENCODER = msgspec.msgpack.Encoder()


def build() -> Machine:
    return Society(SETTINGS, PLAYERS, PROMPTS)


def make_tasks(count: int) -> list[Task]:
    return [
        Task(id=f"t{number}", question=f"What is {number} + 1?", gold=(str(number + 1),)) for number in range(count)
    ]


def assignment(task: Task) -> Assignment:
    return Assignment(debate_id=f"s/{task.id}", task=task, seed=derive_seed(3, task.id))


def pack(outcomes: Sequence[Outcome | Stopped]) -> bytes:
    return _ENCODER.encode(outcomes)


def reply(ask_id: str, text: str = r"\boxed{1}") -> Reply:
    return Reply(ask_id=ask_id, text=text, model="fake", usage=Usage(5, 2))


def answer(ask: Ask) -> Outcome:
    """Depends on all that was asked and on nothing else; one ask in twenty fails."""
    drawn = derive_seed(0, ask.id, *(message.text for message in ask.messages))
    if drawn % 20 == 0:
        return Failure(ask_id=ask.id, kind="refused", reason="made to fail")
    return reply(ask.id, rf"I say \boxed{{{drawn % 3}}}.")


class Host:
    """Answers what it is told, some at a time and in an order drawn by ``seed``; counts how often each ask came.

    ``stop_after``: so many outcomes are delivered; then it says nothing more and ``stopped`` is set.
    """

    def __init__(self, answer: Answer = answer, *, seed: int = 0, stop_after: int | None = None) -> None:
        self.asked: Counter[str] = Counter()
        self.stopped = asyncio.Event()
        self.arena: Arena | None = None
        self._answer, self._random, self._left = answer, random.Random(seed), stop_after
        self._waiting: list[Outcome] = []

    async def tell(self, packed: bytes) -> None:
        for ask in _ASKS.decode(packed):
            self.asked[ask.id] += 1
            if (outcome := self._answer(ask)) is not None:
                self._waiting.append(outcome)
        self._random.shuffle(self._waiting)
        if self._waiting and self._left != 0:
            asyncio.get_running_loop().call_soon(self._deliver)

    def _deliver(self) -> None:
        count = self._random.randint(0, len(self._waiting))
        if self._left is not None:
            count = min(count, self._left)
            self._left -= count
        share, self._waiting = self._waiting[:count], self._waiting[count:]
        if share and self.arena is not None:
            self.arena.deliver(pack(share))
        if self._left == 0:
            self._waiting = []
            self.stopped.set()
        if self._waiting:
            asyncio.get_running_loop().call_soon(self._deliver)


def make_arena(path: Path, host: Host, *, build: Build = build, deadline_s: float = 60.0, **options: Any) -> Arena:
    arena = Arena(
        "a",
        path,
        fingerprint="f",
        build=build,
        protocol="society",
        cast=CAST,
        deadline_s=deadline_s,
        models=dict.fromkeys(AGENTS, "model"),
        hosts={"model": {"model": host.tell}},
        sync="normal",
        **options,
    )
    host.arena = arena
    return arena


async def run_arena(
    path: Path, tasks: Sequence[Task], host: Host, *, build: Build = build, deadline_s: float = 60.0
) -> tuple[dict[str, Finished], ArenaStats]:
    """Hold every task's debate as a stage does, until all are over, the arena fails or the host stops."""
    arena = make_arena(path, host, build=build, deadline_s=deadline_s)
    try:
        closed, others = await arena.recover()
        finished = {item.debate_id: item for item in closed}
        known = {*finished, *others}
        arena.open([given for task in tasks if (given := assignment(task)).debate_id not in known])
        stats = ArenaStats()
        async with asyncio.timeout(60):
            while len(finished) < len(tasks) and not stats.error and not host.stopped.is_set():
                got, stats = await arena.collect(0.02)
                finished |= {item.debate_id: item for item in got}
        return finished, stats
    finally:
        await arena.close()


def debates(finished: dict[str, Finished]) -> dict[str, Debate]:
    """Graphs by id. The order in which failures came in is the only thing that time may change."""
    found = {key: decode_debate(item.graph) for key, item in finished.items()}
    for debate in found.values():
        debate.failures.sort()
    return found
