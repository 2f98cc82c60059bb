"""What every peer debates, and the clock they are measured with. Standard library alone: it runs in any environment.

Three agents open, then each revises its answer in the same chat, having seen the other two: six asks a debate, in the
very words of moot's own prompt set.
"""

from __future__ import annotations

import asyncio
import os
import random
import re
import time
import tomllib
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path
from string import Template
from typing import Any

ROOT = Path(__file__).parents[1]
PROMPT_SET = "society.number.en"
AGENTS = ("ada", "bo", "cy")
ASKS = 2 * len(AGENTS)  # of a debate
MODEL, MAX_TOKENS = "fake", 512
SAID = "Worked out step by step, this comes to \\boxed{42}."  # by a model in the process

Chat = list[dict[str, str]]
Ask = Callable[[Chat], Awaitable[str]]

_PARTS = tomllib.loads((ROOT / "protocols" / "prompts" / f"{PROMPT_SET}.toml").read_text(encoding="utf-8"))
_OPENING, _REVISE, _PEER = (Template(_PARTS[part].strip()) for part in ("opening", "revise", "peer"))
_TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Setup:
    """``url``: of the server; "" for a model in the process. ``in_flight``: asks at once, for every peer the same."""

    url: str
    in_flight: int


class Clock:
    """Wall and CPU time of this process and all that it has started, from ``start`` to ``stop``."""

    def __init__(self) -> None:
        self.wall_s = self.cpu_s = 0.0
        self.start()

    def start(self) -> None:
        self._cpu_s, self._at, self.stopped = tree_cpu_s(), time.perf_counter(), False

    def stop(self) -> None:
        if not self.stopped:
            self.wall_s, self.cpu_s = time.perf_counter() - self._at, tree_cpu_s() - self._cpu_s
            self.stopped = True


Debates = Callable[[Sequence[str], Clock], Awaitable[list[str]]]
"""Debates all questions; returns the verdicts. May start the clock anew when it is ready, and stop it."""

Client = Callable[[Setup], AbstractAsyncContextManager[Debates]]


def questions(number: int, seed: int) -> list[str]:
    rng = random.Random(seed)
    drawn = ([rng.randint(1, 30) for _ in range(6)] for _ in range(number))
    return [f"{a} + {b}*{c} + {d} - {e}*{f}" for a, b, c, d, e, f in drawn]


def opening(question: str) -> Chat:
    return [{"role": "user", "content": _OPENING.substitute(question=question)}]


def revision(question: str, own: str, others: Sequence[str]) -> Chat:
    """The chat of an agent that goes on after it has opened."""
    shown = "\n".join(_PEER.substitute(number=number, reply=reply) for number, reply in enumerate(others, 1))
    asked = {"role": "user", "content": _REVISE.substitute(question=question, peers=shown)}
    return [*opening(question), {"role": "assistant", "content": own}, asked]


def verdict(replies: Sequence[str]) -> str:
    """The answer that most gave."""
    boxed = [found[-1] for reply in replies if (found := re.findall(r"\\boxed\{([^}]*)\}", reply))]
    return Counter(boxed).most_common(1)[0][0] if boxed else ""


async def debate(ask: Ask, question: str) -> str:
    """One debate as plain asyncio has it."""
    opened = await asyncio.gather(*(ask(opening(question)) for _ in AGENTS))
    chats = [revision(question, own, [*opened[:seat], *opened[seat + 1 :]]) for seat, own in enumerate(opened)]
    return verdict(await asyncio.gather(*map(ask, chats)))


async def scripted(chat: Chat) -> str:
    """The model in the process: it yields once, as a model would."""
    await asyncio.sleep(0)
    return SAID


def tree_cpu_s() -> float:
    """User and system time of this process, its living descendants, and those of their children that are gone."""
    parents: dict[int, int] = {}
    used: dict[int, int] = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                fields = (folder / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue  # it has ended since
            parents[int(folder.name)] = int(fields[1])
            used[int(folder.name)] = sum(map(int, fields[11:15]))
    return sum(ticks for pid, ticks in used.items() if _descends(pid, os.getpid(), parents)) / _TICKS


def _descends(pid: int, ancestor: int, parents: Mapping[int, int]) -> bool:
    while pid not in (ancestor, 0):
        pid = parents.get(pid, 0)
    return pid == ancestor


def openai_http(setup: Setup, *, aiohttp: bool = True) -> Any:
    """The openai package's HTTP with room for all that may be in flight; on aiohttp, as its README advises for many."""
    import openai

    limits = type(openai.DEFAULT_CONNECTION_LIMITS)(
        max_connections=setup.in_flight, max_keepalive_connections=setup.in_flight
    )
    return (openai.DefaultAioHttpClient if aiohttp else openai.DefaultAsyncHttpxClient)(limits=limits, timeout=600)
