"""A service on this machine that answers as it is told, and remembers what it was asked."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, TypeVar

from aiohttp import web

from actors.models.backend import AdapterRef
from actors.services.openai_chat import ChatBackend, OpenAISettings
from protocols.message import Ask, ImagePart, Message, Reply, Sampling, user

S = TypeVar("S")

Body = dict[str, Any] | list[Any] | str | bytes


@dataclass
class FakeApi:
    """``answers``: one a request, the last one for all that follow."""

    url: str = ""
    answers: list[tuple[int, Body, dict[str, str]]] = field(default_factory=list)
    requests: list[dict[str, Any]] = field(default_factory=list)  # bodies
    headers: list[dict[str, str]] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)
    peers: set[Any] = field(default_factory=set)  # one a connection
    latency_s: float = 0.0
    models: tuple[int, Body] = (404, "")
    dropped: int = 0  # requests whose caller went away
    before: Callable[[web.Request], None] | None = None

    def answer(self, body: Body, status: int = 200, **headers: str) -> None:
        self.answers = [(status, body, {name.replace("_", "-"): value for name, value in headers.items()})]

    async def handle(self, request: web.Request) -> web.StreamResponse:
        self.paths.append(str(request.rel_url))
        self.headers.append({name.lower(): value for name, value in request.headers.items()})
        if request.method == "GET":
            return _response(self.models[0], self.models[1], {})
        self.peers.add(request.transport.get_extra_info("peername") if request.transport else None)
        self.requests.append(json.loads(await request.read()))
        try:
            await asyncio.sleep(self.latency_s)
        except asyncio.CancelledError:
            self.dropped += 1
            raise
        if self.before is not None:
            self.before(request)
        status, body, headers = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        return _response(status, body, headers)


def _response(status: int, body: Body, headers: dict[str, str]) -> web.Response:
    if isinstance(body, dict | list):
        headers = {"Content-Type": "application/json"} | headers
        body = json.dumps(body)
    data = body.encode() if isinstance(body, str) else body
    return web.Response(status=status, body=data, headers=headers)


@contextlib.asynccontextmanager
async def served(app: web.Application, **how: Any) -> AsyncIterator[str]:
    """A service on a port of its own. Yields: its address."""
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=1.0, **how)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


@contextlib.contextmanager
def in_a_thread(serving: Callable[[], contextlib.AbstractAsyncContextManager[S]]) -> Iterator[S]:
    """A service for tests whose own processes come and go while it stays."""
    started, found = threading.Event(), list[S]()
    loop = asyncio.new_event_loop()
    over = asyncio.Event()

    async def serve() -> None:
        async with serving() as service:
            found.append(service)
            started.set()
            await over.wait()

    thread = threading.Thread(target=loop.run_until_complete, args=(serve(),))
    thread.start()
    started.wait(20)
    try:
        yield found[0]
    finally:
        loop.call_soon_threadsafe(over.set)
        thread.join(20)
        loop.close()


@contextlib.asynccontextmanager
async def fake_api() -> AsyncIterator[FakeApi]:
    api = FakeApi()
    app = web.Application(client_max_size=2**27)
    app.router.add_route("*", "/{path:.*}", api.handle)
    async with served(app, handler_cancellation=True) as api.url:
        yield api


KEY = "sk-" + "moot-test-0123456789"
IMAGE = b"\x89PNG not really"
PART = ImagePart(sha256=hashlib.sha256(IMAGE).hexdigest(), media_type="image/png")
USAGE = {
    "prompt_tokens": 12,
    "completion_tokens": 7,
    "total_tokens": 19,
    "prompt_tokens_details": {"cached_tokens": 8, "image_tokens": 3, "audio_tokens": 0},
    "completion_tokens_details": {"reasoning_tokens": 4},
}


def said(text: str | None = "Four.", finish: str | None = "stop", **message: Any) -> dict[str, Any]:
    choice = {"index": 0, "message": {"role": "assistant", "content": text} | message, "finish_reason": finish}
    return {"id": "x", "object": "chat.completion", "created": 1, "model": "m", "choices": [choice], "usage": USAGE}


def ask(*messages: Message, **sampling: Any) -> Ask:
    return Ask(
        id="d1#0.open.ada",
        debate_id="d1",
        agent="ada",
        role="generator",
        messages=messages or (user("2 + 2?"),),
        sampling=Sampling(**sampling),
    )


def failed(message: str = "?", **error: Any) -> dict[str, Any]:
    return {"error": {"message": message} | error}


async def asked(api: FakeApi, what: Ask, adapter: AdapterRef | None = None, **settings: Any) -> Reply:
    """One reply, of a backend that lives as long as it takes."""
    backend = ChatBackend(OpenAISettings(**({"model": "m", "base_url": f"{api.url}/v1"} | settings)))
    backend.read_image = lambda part: IMAGE
    await backend.start()
    try:
        return await backend.generate(what, adapter)
    finally:
        await backend.close()
