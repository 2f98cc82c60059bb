"""Debates in plain asyncio: on the openai package, on aiohttp (the floor), one after another, one Ray call an ask.

``gather`` over all debates, a semaphore for what may be in flight, nothing on record, no error turned into anything.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import msgspec

from benchmarks.peers_work import (
    MAX_TOKENS,
    MODEL,
    Ask,
    Chat,
    Clock,
    Debates,
    Setup,
    debate,
    openai_http,
    opening,
    revision,
    scripted,
    verdict,
)


class Message(msgspec.Struct):
    content: str


class Choice(msgspec.Struct):
    message: Message


class Completion(msgspec.Struct):
    choices: list[Choice]


@asynccontextmanager
async def floor(setup: Setup) -> AsyncIterator[Debates]:
    """aiohttp and msgspec: about the least that can be written. It would lose everything with its process."""
    import aiohttp

    encode, decode = msgspec.json.Encoder().encode, msgspec.json.Decoder(Completion).decode
    target, slots = f"{setup.url}/chat/completions", asyncio.Semaphore(setup.in_flight)
    headers = {"Content-Type": "application/json"}
    connector = aiohttp.TCPConnector(limit=0)
    timeout = aiohttp.ClientTimeout(total=None)
    async with aiohttp.ClientSession(
        connector=connector, timeout=timeout, cookie_jar=aiohttp.DummyCookieJar(), headers=headers
    ) as session:

        async def ask(chat: Chat) -> str:
            body = encode({"model": MODEL, "messages": chat, "temperature": 1.0, "max_tokens": MAX_TOKENS})
            async with slots, session.post(target, data=body) as response:
                return decode(await response.read()).choices[0].message.content

        yield _together(ask)


@asynccontextmanager
async def with_openai(setup: Setup) -> AsyncIterator[Debates]:
    """The package on its own transport."""
    async with _openai(setup, aiohttp=False) as client:
        yield _together(_ask(client, setup))


@asynccontextmanager
async def with_openai_aiohttp(setup: Setup) -> AsyncIterator[Debates]:
    async with _openai(setup, aiohttp=True) as client:
        yield _together(_ask(client, setup))


@asynccontextmanager
async def sequential(setup: Setup) -> AsyncIterator[Debates]:
    """One ask after another, as the codes released with the papers have it."""
    async with _openai(setup, aiohttp=False) as client:
        ask = _ask(client, setup)

        async def debates(questions: Sequence[str], clock: Clock) -> list[str]:
            return [await _one_by_one(ask, question) for question in questions]

        yield debates


async def _one_by_one(ask: Ask, question: str) -> str:
    opened = [await ask(opening(question)) for _ in range(3)]
    chats = [revision(question, own, [*opened[:seat], *opened[seat + 1 :]]) for seat, own in enumerate(opened)]
    return verdict([await ask(chat) for chat in chats])


@asynccontextmanager
async def ray_calls(setup: Setup) -> AsyncIterator[Debates]:
    """One Ray call an ask: each agent is an async actor of its own, asked by the driver."""
    from engine.debates.cluster import join_ray

    join_ray()
    import ray

    class Agent:
        async def say(self, chat: Chat) -> str:
            return await scripted(chat)

    remote: Any = ray.remote(Agent).options(num_cpus=0, max_concurrency=10_000)
    agents = [remote.remote() for _ in range(3)]
    turn = iter(range(2**62))

    async def ask(chat: Chat) -> str:
        said: str = await agents[next(turn) % 3].say.remote(chat)
        return said

    try:
        yield _together(ask)
    finally:
        ray.shutdown()


def _openai(setup: Setup, *, aiohttp: bool) -> Any:
    import openai

    http = openai_http(setup, aiohttp=aiohttp)
    return openai.AsyncOpenAI(base_url=setup.url, api_key="none", max_retries=0, timeout=600, http_client=http)


def _ask(client: Any, setup: Setup) -> Ask:
    slots = asyncio.Semaphore(setup.in_flight)

    async def ask(chat: Chat) -> str:
        async with slots:
            done = await client.chat.completions.create(
                model=MODEL, messages=chat, temperature=1.0, max_tokens=MAX_TOKENS
            )
        return done.choices[0].message.content or ""

    return ask


def _together(ask: Ask) -> Debates:
    async def debates(questions: Sequence[str], clock: Clock) -> list[str]:
        return list(await asyncio.gather(*(debate(ask, question) for question in questions)))

    return debates
