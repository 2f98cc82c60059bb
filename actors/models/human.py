"""A person as an agent. The host asks a desk; somebody serves the desk: the terminal of the driver, or a page.

Hosts run in processes without a terminal, on other machines perhaps, so a desk is a Ray actor that both sides know by
name. Neither the backend nor the desk knows how a person is shown what is asked.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from typing import Any, Protocol
from uuid import uuid4

import msgspec

from actors.models.backend import AdapterRef, BackendInfo
from actors.post.waiting import happens
from protocols.errors import AgentError, ReplyError
from protocols.message import Ask, Reply

DESK = "moot-desk"  # the actor's name, in the run's own namespace
LIMITS = {"timeout_s": 86_400.0, "max_tries": 1}  # a person has a day, and is not asked the same thing again
MAX_CHARS = 100_000  # of a reply: what a terminal or a page may put on record


class HumanSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One person. Agents that share this model are played by the same one."""

    person: str = ""  # the name that is called when there is something to answer; replies carry it

    def __post_init__(self) -> None:
        if not self.person.isprintable() or len(self.person) > 80:
            raise ValueError(f"person={self.person[:80]!r} must be a name of up to 80 printable letters")


class Desk(Protocol):
    """Where a person is asked."""

    async def ask(self, person: str, ask: Ask) -> str:
        """The person's reply; cancelling the caller takes the question back. Raises: ReplyError: nobody serves."""
        ...


class HumanBackend:
    """See the module. One ask at a time: a person's attention has no batches.

    Args:
        desk: default: the one of this run, which is looked for when the first ask comes.
    """

    def __init__(self, settings: HumanSettings, desk: Desk | None = None) -> None:
        self._name = f"human:{settings.person}" if settings.person else "human"
        self._person, self._desk = settings.person, desk or RayDesk()
        self._asked = self._answered = 0

    async def start(self) -> BackendInfo:
        return BackendInfo(model=self._name, context_tokens=2**31, max_concurrency=1, takes_images=True)

    async def generate(self, ask: Ask, adapter: AdapterRef | None) -> Reply:
        began = time.monotonic()
        self._asked += 1
        text = await self._desk.ask(self._person, ask)
        self._answered += 1
        return Reply(ask_id=ask.id, text=text[:MAX_CHARS], model=self._name, latency_s=time.monotonic() - began)

    async def load_adapter(self, adapter: AdapterRef) -> None:
        raise AgentError(
            f"adapter {adapter.name!r} is for a model, and {self._name} is a person; leave it out of train"
        )

    async def unload_adapter(self, adapter: AdapterRef) -> None:
        return None

    def metrics(self) -> dict[str, float]:
        """``asked``, ``answered``."""
        return {"asked": float(self._asked), "answered": float(self._answered)}

    async def close(self) -> None:
        return None


class Question(msgspec.Struct, frozen=True):
    """One ask on its way to a person."""

    ticket: str
    person: str
    ask: Ask


class FrontDesk:
    """The desk itself: questions in, texts out, in the order they came. A Ray actor; nothing here is Ray's.

    ``ask`` and ``withdraw`` are for backends; ``take`` and ``answer`` for whoever serves, one or several.
    """

    def __init__(self) -> None:
        self._line: deque[Question] = deque()
        self._waiting: dict[str, asyncio.Future[str]] = {}
        self._came = asyncio.Event()

    async def ask(self, ticket: str, person: str, ask: Ask) -> str:
        """Returns: the text, once somebody has written it. Raises: CancelledError: it was withdrawn."""
        answered = self._waiting[ticket] = asyncio.get_running_loop().create_future()
        self._line.append(Question(ticket, person, ask))
        self._came.set()
        try:
            text: str = await answered
            return text
        finally:
            await self.withdraw(ticket)

    async def withdraw(self, ticket: str) -> None:
        """Nobody waits for this any more."""
        if (waiting := self._waiting.pop(ticket, None)) is not None:
            waiting.cancel()
        self._line = deque(question for question in self._line if question.ticket != ticket)

    async def take(self, wait_s: float) -> Question | None:
        """The next question, which is then the taker's to answer; None where none came in time."""
        if not self._line:
            self._came.clear()
            await happens(self._came, wait_s)
        return self._line.popleft() if self._line else None

    async def answer(self, ticket: str, text: str) -> bool:
        """Returns: whether somebody still waited for it."""
        waiting = self._waiting.get(ticket)
        if waiting is None or waiting.done():
            return False
        waiting.set_result(text)
        return True


class RayDesk:
    """The run's desk as backends see it."""

    async def ask(self, person: str, ask: Ask) -> str:
        import ray

        ticket = uuid4().hex
        try:
            handle: Any = ray.get_actor(DESK)
            text: str = await handle.ask.remote(ticket, person, ask)
        except asyncio.CancelledError:
            handle.withdraw.remote(ticket)  # a call that is not waited for runs on otherwise
            raise
        except (ValueError, ray.exceptions.RayError) as err:
            raise ReplyError(f"nobody serves the desk where {person or 'a person'} would answer: {err}") from err
        return text
