"""The terminal as a desk: shows what a person is asked, and reads what they write, in the driver's process.

Whatever is shown may come from a model: letters that would steer the terminal are shown as a mark instead.
"""

from __future__ import annotations

import asyncio
import codecs
import os
import sys
import unicodedata
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar

from actors.models.human import DESK, FrontDesk, HumanSettings, Question
from engine.config.recipe import Recipe
from engine.live.progress import Progress
from protocols.errors import AgentError, ConfigError
from protocols.message import Message, TextPart

MAX_CALLS = 10_000  # concurrent calls the desk admits
TAKE_S = 5.0  # how long the desk may hold a call that has nothing to tell
END = "."  # a line of its own ends a reply

KEPT = "\n\t\u200c\u200d"  # of the letters without a shape: lines, tabs, and the joiners of Persian, Hindi and emoji

T = TypeVar("T")


def people(recipe: Recipe) -> dict[str, str]:
    """The agents in the cast whom a person plays -> the model they speak through."""
    models = {name: recipe.agents[name].model for name in recipe.speakers}
    return {name: model for name, model in models.items() if isinstance(recipe.models[model].settings, HumanSettings)}


def check_people(recipe: Recipe, where: str, *, terminal: bool | None = None) -> None:
    """Whether a person in the cast could answer here, and in time.

    Raises: ConfigError: there is no terminal, several asks at once, or a phase that ends before their time is up.
    """
    for agent, name in people(recipe).items():
        limits, deadline_s = recipe.models[name].limits, recipe.settings.deadline_s
        if not (at_terminal() if terminal is None else terminal):
            raise ConfigError(
                f"{where}: agents.{agent} is played by a person (models.{name}), who needs a terminal, and this is "
                "none; start moot at one, with neither input nor messages redirected"
            )
        if limits.max_concurrency > 1:
            raise ConfigError(
                f"{where}: models.{name}.limits.max_concurrency={limits.max_concurrency}: a person answers one at a "
                "time; set 1, or give each person a model"
            )
        if deadline_s < limits.timeout_s:
            raise ConfigError(
                f"{where}: protocol.deadline_s={deadline_s:g} ends a phase before agents.{agent}, a person, has used "
                f"models.{name}.limits.timeout_s={limits.timeout_s:g}; set protocol.deadline_s >= {limits.timeout_s:g}"
            )


def at_terminal() -> bool:
    """Whether somebody can be shown something and can answer."""
    return sys.stdin is not None and sys.stdin.isatty() and sys.stderr.isatty()


async def with_people(recipe: Recipe, media: Path, progress: Progress, work: Awaitable[T]) -> T:
    """Do the work while the terminal serves the people in the cast; without any, just do it.

    Raises: AgentError: the terminal is gone; what the work itself raises.
    """
    if not people(recipe):
        return await work
    import ray

    desk = ray.remote(FrontDesk).options(name=DESK, num_cpus=0, max_concurrency=MAX_CALLS, max_restarts=0).remote()
    progress.hush()  # a line that moves would run through what is being written
    working = asyncio.ensure_future(work)
    serving = asyncio.ensure_future(Terminal(desk, media).serve())
    try:
        await asyncio.wait([working, serving], return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            serving.result()  # raises: serving ends by itself only where it fails
        return await working
    finally:
        working.cancel()
        serving.cancel()
        await asyncio.gather(working, serving, return_exceptions=True)
        ray.kill(desk)


class Terminal:
    """Serves a desk at the driver's own terminal, one question at a time.

    Args:
        desk: a handle of the ``FrontDesk`` actor.
        media: where the run keeps its images.
        fd: what is read from; say: where to show things.
    """

    def __init__(self, desk: Any, media: Path, fd: int = 0, say: Callable[[str], None] | None = None) -> None:
        self._desk, self._media, self._fd = desk, media, fd
        self._say = say or _to_stderr
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._rest = ""  # of what was typed: not yet a line
        self._served = 0

    async def serve(self) -> None:
        """Until cancelled. Raises: AgentError: the terminal is gone."""
        while True:
            question = await self._desk.take.remote(TAKE_S)
            if question is None:
                continue
            self._served += 1
            self._say(render(question, self._served, self._media))
            text = await self._written()
            if not await self._desk.answer.remote(question.ticket, text):
                self._say("That came too late: its time was up, and the debate has gone on.\n")

    async def _written(self) -> str:
        """What is typed until a line with a dot alone or the end of input, a reply of blanks asked for again."""
        lines: list[str] = []
        while True:
            line = await self._line()
            if line is not None and line != END:
                lines.append(line)
            elif text := "\n".join(lines).strip():
                return text
            else:
                lines.clear()
                self._say("There is nothing to send yet: write a reply first.\n")

    async def _line(self) -> str | None:
        """The next line without its end; None for the end of input."""
        while "\n" not in self._rest:
            data = await self._read()
            if not data and not self._rest:
                return None
            self._rest += self._decoder.decode(data) if data else f"\n{END}\n"  # the end of input ends a half line too
        line, _, self._rest = self._rest.partition("\n")
        return line.rstrip("\r")

    async def _read(self) -> bytes:
        """Whatever comes next; b"" where Ctrl-D was pressed. The loop goes on meanwhile."""
        loop = asyncio.get_running_loop()
        ready = asyncio.Event()
        loop.add_reader(self._fd, ready.set)
        try:
            await ready.wait()
        finally:
            loop.remove_reader(self._fd)
        try:
            data = os.read(self._fd, 65536)
        except OSError as err:
            raise AgentError(f"the terminal is gone ({err.strerror}); go on with `moot resume`") from err
        if not data and not os.isatty(self._fd):  # one that has hung up is at its end for ever
            raise AgentError("the terminal is gone; go on with `moot resume`")
        return data


def _to_stderr(text: str) -> None:
    sys.stderr.write(text)
    sys.stderr.flush()


def render(question: Question, number: int, media: Path) -> str:
    """One question as it is shown: who is asked, every message, and how to answer."""
    ask = question.ask
    called = f" for {question.person}" if question.person else ""
    head = f"--- question {number}{called}: you are {ask.agent}, the {ask.role}, in {ask.debate_id} ---"
    shown = [_shown(message, media) for message in ask.messages]
    foot = f"--- write your reply; a line with only {END!r} (or Ctrl-D) sends it ---"
    return "\n".join(["", harmless(head), *shown, foot, ""])


def _shown(message: Message, media: Path) -> str:
    parts = [part.text if isinstance(part, TextPart) else f"(image {media / part.sha256})" for part in message.parts]
    return harmless(f"[{message.role}]\n" + "\n".join(parts))


def harmless(text: str) -> str:
    """The text with a mark for each letter that steers a terminal or turns the reading direction round."""
    unseen = {"Cc", "Cf", "Cs", "Zl", "Zp"}
    return "".join(
        letter if letter in KEPT or unicodedata.category(letter) not in unseen else "\ufffd"
        for letter in text.replace("\r\n", "\n")
    )
