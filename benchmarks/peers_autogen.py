"""Debates on autogen-core, after its own multi-agent debate pattern: agents publish, subscriptions deliver.

An agent of each type lives for each topic source, which is the debate. Runtime tracing is off.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from autogen_core import (
    MessageContext,
    RoutedAgent,
    SingleThreadedAgentRuntime,
    TopicId,
    TypeSubscription,
    message_handler,
)
from opentelemetry.trace import NoOpTracerProvider

from benchmarks.peers_work import (
    AGENTS,
    MAX_TOKENS,
    MODEL,
    Ask,
    Chat,
    Clock,
    Debates,
    Setup,
    openai_http,
    opening,
    revision,
    scripted,
    verdict,
)


@dataclass
class Question:
    text: str


@dataclass
class Opened:
    seat: int
    text: str


@dataclass
class Revised:
    text: str


class Solver(RoutedAgent):
    """Opens, waits for the other two, revises."""

    def __init__(self, seat: int, ask: Ask) -> None:
        super().__init__(AGENTS[seat])
        self._seat, self._ask = seat, ask
        self._question, self._own = "", ""
        self._others: dict[int, str] = {}

    @message_handler  # type: ignore[untyped-decorator]
    async def on_question(self, message: Question, ctx: MessageContext) -> None:
        self._question = message.text
        self._own = await self._ask(opening(message.text))
        await self.publish_message(Opened(self._seat, self._own), TopicId("openings", self.id.key))
        await self._revise()

    @message_handler  # type: ignore[untyped-decorator]
    async def on_opened(self, message: Opened, ctx: MessageContext) -> None:
        self._others[message.seat] = message.text
        await self._revise()

    async def _revise(self) -> None:
        if self._own and len(self._others) == len(AGENTS) - 1:
            others, self._others = [self._others[seat] for seat in sorted(self._others)], {}
            said = await self._ask(revision(self._question, self._own, others))
            await self.publish_message(Revised(said), TopicId("revisions", self.id.key))


class Judge(RoutedAgent):
    """Counts the votes."""

    def __init__(self, verdicts: dict[str, str]) -> None:
        super().__init__("judge")
        self._verdicts, self._replies = verdicts, list[str]()

    @message_handler  # type: ignore[untyped-decorator]
    async def on_revised(self, message: Revised, ctx: MessageContext) -> None:
        self._replies.append(message.text)
        if len(self._replies) == len(AGENTS):
            self._verdicts[self.id.key] = verdict(self._replies)


@asynccontextmanager
async def debates(setup: Setup) -> AsyncIterator[Debates]:
    model = _model(setup) if setup.url else None
    ask = _asking(model, setup) if model is not None else scripted
    names, found = itertools.count(), dict[str, str]()

    async def run(questions: Sequence[str], clock: Clock) -> list[str]:
        # A runtime keeps its agents for good, so that each batch of debates is given a fresh one.
        runtime = SingleThreadedAgentRuntime(tracer_provider=NoOpTracerProvider(), ignore_unhandled_exceptions=False)
        for seat, name in enumerate(AGENTS):
            await Solver.register(runtime, name, lambda seat=seat: Solver(seat, ask))
            for topic in ("questions", "openings"):
                await runtime.add_subscription(TypeSubscription(topic, name))
        await Judge.register(runtime, "judge", lambda: Judge(found))
        await runtime.add_subscription(TypeSubscription("revisions", "judge"))
        keys = [f"debate{next(names)}" for _ in questions]
        runtime.start()
        for key, question in zip(keys, questions, strict=True):
            await runtime.publish_message(Question(question), TopicId("questions", key))
        await runtime.stop_when_idle()
        clock.stop()
        return [found.pop(key, "") for key in keys]

    try:
        yield run
    finally:
        if model is not None:
            await model.close()


def _model(setup: Setup) -> Any:
    from autogen_ext.models.openai import OpenAIChatCompletionClient

    info: Any = {
        "vision": False, "function_calling": False, "json_output": False, "structured_output": False,
        "family": "unknown",
    }  # fmt: skip
    return OpenAIChatCompletionClient(
        model=MODEL, base_url=setup.url, api_key="none", max_retries=0, timeout=600, http_client=openai_http(setup),
        model_info=info, temperature=1.0, max_tokens=MAX_TOKENS,
    )  # fmt: skip


def _asking(model: Any, setup: Setup) -> Ask:
    from autogen_core.models import AssistantMessage, UserMessage

    slots = asyncio.Semaphore(setup.in_flight)

    async def ask(chat: Chat) -> str:
        messages = [
            UserMessage(content=item["content"], source="user")
            if item["role"] == "user"
            else AssistantMessage(content=item["content"], source="self")
            for item in chat
        ]
        async with slots:
            return str((await model.create(messages)).content)

    return ask
