"""A hostile service in a process of its own, which speaks OpenAI's chat completions and Anthropic's messages.

``python -m tests.integration.fault_server --log FILE`` prints its port. An ask is known by its content. It draws each
of ten faults with a chance of its own; what it has drawn strikes one a try, first what another try can mend; then the
ask is answered. So every fault strikes its share of the asks, in whatever order they come, and a run is repeatable.

Replies add sums up rightly. As services do, errors repeat the key they were sent; with ``--echo`` replies do too. With
``--revoke-after N`` no key is good any more after so many requests, until somebody asks for the list of models. With
``--latency-s S`` a reply takes half of that to one and a half times as long, drawn by the ask; with ``--sign`` it ends
with the name that its ask has in the log.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import random
import re
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
from aiohttp import web

from actors.models.scripted import evaluate

PASSING = ("limit_named", "limit", "error", "hang", "cut", "malformed", "html", "drip")
LASTING = ("overflow", "refusal")  # another try would end the same way
FAULTS = PASSING + LASTING

PAUSE_MS = 30  # that a limit asks for
DRIP_S = 0.05  # a byte
_SUM = re.compile(r"\d+(?: *[-+*] *\d+)+")


class Seen(msgspec.Struct, frozen=True):
    """One request, as the log has it. ``fault`` is "" for one that was answered."""

    api: str
    ask: str
    number: int  # of the try, from 1
    fault: str
    at: float


def read_log(path: Path) -> list[Seen]:
    return [msgspec.json.decode(line, type=Seen) for line in path.read_bytes().splitlines()]


@contextmanager
def fault_server(log: Path, chance: float, *flags: str) -> Iterator[str]:
    """The server, running. Yields: its address."""
    command = [sys.executable, "-m", __name__, "--log", str(log), "--chance", str(chance), *flags]
    with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=Path(__file__).parents[2], text=True) as process:
        try:
            assert process.stdout is not None
            yield f"http://127.0.0.1:{int(process.stdout.readline())}"
        finally:
            process.terminate()


def plan(ask: str, chance: float) -> list[str]:
    """The faults that strike an ask, one a try."""
    draw = random.Random(ask)
    drawn = {fault for fault in FAULTS if draw.random() < chance}
    passing, lasting = ([fault for fault in kinds if fault in drawn] for kinds in (PASSING, LASTING))
    draw.shuffle(passing)
    draw.shuffle(lasting)
    return passing + lasting[:1]


class FaultServer:
    """See the module."""

    def __init__(
        self, log: Path, chance: float, *, echo: bool, revoke_after: int, latency_s: float, sign: bool
    ) -> None:
        self._log = log.open("wb", buffering=0)
        self._chance, self._echo, self._revoke_after = chance, echo, revoke_after
        self._latency_s, self._sign = latency_s, sign
        self._tries: Counter[str] = Counter()

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        key = request.headers.get("x-api-key", request.headers.get("Authorization", ""))
        revoked = 0 < self._revoke_after <= self._tries.total()
        if "wrong" in key or (revoked and request.method == "POST"):
            return _error(401, f"Incorrect API key provided: {key}.", "invalid_api_key")
        if request.method == "GET":
            self._revoke_after *= not revoked
            return web.json_response({"data": []})
        api = "anthropic" if request.path.endswith("/messages") else "openai"
        body = json.loads(await request.read())
        ask = hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()[:20]
        number = self._tries[ask] = self._tries[ask] + 1
        strikes = plan(ask, self._chance)
        lasts = bool(strikes) and strikes[-1] in LASTING
        fault = strikes[number - 1] if number <= len(strikes) else strikes[-1] if lasts else ""
        self._log.write(msgspec.json.encode(Seen(api, ask, number, fault, time.time())) + b"\n")
        if fault in REFUSALS:
            return REFUSALS[fault](api, key)
        if self._latency_s:
            await asyncio.sleep(self._latency_s * random.Random(ask).uniform(0.5, 1.5))
        good = _reply(api, body, self._say(body, key, ask), refused=fault == "refusal")
        return await BROKEN[fault](request, good) if fault in BROKEN else web.json_response(good)

    def _say(self, body: dict[str, Any], key: str, ask: str) -> str:
        value = evaluate(_SUM.findall(_first_question(body))[0])
        said = f" I was called with {key}." if self._echo else ""
        signed = f" Signed, {ask}" if self._sign else ""
        return f"Added up, that is \\boxed{{{value}}}.{said}{signed}"


def signature(text: str) -> str:
    """The name in the log of the ask that a signed reply answers."""
    return text.rpartition("Signed, ")[2]


def _first_question(body: dict[str, Any]) -> str:
    content = next(message["content"] for message in body["messages"] if message["role"] == "user")
    return content if isinstance(content, str) else "".join(block["text"] for block in content)


def _reply(api: str, body: dict[str, Any], text: str, *, refused: bool) -> dict[str, Any]:
    prompt_tokens, said_tokens = len(json.dumps(body["messages"])) // 4, len(text.split())
    if api == "anthropic":
        return {
            "type": "message",
            "role": "assistant",
            "content": [] if refused else [{"type": "text", "text": text}],
            "stop_reason": "refusal" if refused else "end_turn",
            "usage": {"input_tokens": prompt_tokens, "output_tokens": said_tokens},
        }
    message = {"role": "assistant", "content": None if refused else text}
    choice = {"index": 0, "message": message, "finish_reason": "content_filter" if refused else "stop"}
    usage = {"prompt_tokens": prompt_tokens, "completion_tokens": said_tokens}
    return {"object": "chat.completion", "choices": [choice], "usage": usage}


def _error(status: int, message: str, code: str, **headers: str) -> web.Response:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    error = {"message": message, "type": code, "code": code}
    return web.json_response({"type": "error", "error": error}, status=status, headers=named)


def _overflow(api: str, key: str) -> web.Response:
    if api == "anthropic":
        return _error(400, "prompt is too long: 209512 tokens > 200000 maximum", "invalid_request_error")
    said = "This model's maximum context length is 8192 tokens. However, your messages resulted in 9001 tokens."
    return _error(400, f"{said} Please reduce the length of the messages.", "context_length_exceeded")


def _limit(api: str, key: str, **headers: str) -> web.Response:
    return _error(429, f"Rate limit reached for the key {key}", "rate_limit_error", **headers)


def _limit_named(api: str, key: str) -> web.Response:
    """OpenAI names the wait in milliseconds too."""
    if api == "anthropic":
        return _limit(api, key, retry_after=str(PAUSE_MS / 1000))
    return _limit(api, key, retry_after_ms=str(PAUSE_MS), retry_after="1")


REFUSALS: dict[str, Callable[[str, str], web.Response]] = {
    "limit_named": _limit_named,
    "limit": _limit,
    "error": lambda api, key: _error(500, f"The server had an error (Authorization: {key})", "server_error"),
    "malformed": lambda api, key: web.Response(body=b'{"choices": [{"mess', content_type="application/json"),
    "html": lambda api, key: web.Response(text="<html><h1>Sign in</h1></html>", content_type="text/html"),
    "overflow": _overflow,
}


async def _hang(request: web.BaseRequest, good: dict[str, Any]) -> web.StreamResponse:
    await asyncio.Event().wait()  # until the caller goes
    raise AssertionError


async def _begin(request: web.BaseRequest, size_bytes: int) -> web.StreamResponse:
    response = web.StreamResponse(headers={"Content-Type": "application/json", "Content-Length": str(size_bytes)})
    await response.prepare(request)
    return response


async def _cut(request: web.BaseRequest, good: dict[str, Any]) -> web.StreamResponse:
    text = json.dumps(good).encode()
    response = await _begin(request, len(text))
    await response.write(text[: len(text) // 2])
    if request.transport is not None:
        request.transport.close()
    return response


async def _drip(request: web.BaseRequest, good: dict[str, Any]) -> web.StreamResponse:
    text = json.dumps(good).encode()
    response = await _begin(request, len(text))
    for byte in text:
        await response.write(bytes([byte]))
        await asyncio.sleep(DRIP_S)
    return response


BROKEN: dict[str, Callable[[web.BaseRequest, dict[str, Any]], Awaitable[web.StreamResponse]]] = {
    "hang": _hang,
    "cut": _cut,
    "drip": _drip,
}


async def serve(server: FaultServer) -> None:
    runner = web.ServerRunner(web.Server(server.handle, handler_cancellation=True, access_log=None))
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0, backlog=1024).start()
    print(runner.addresses[0][1], flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    told = argparse.ArgumentParser()
    told.add_argument("--log", type=Path, required=True)
    told.add_argument("--chance", type=float, default=0.1)
    told.add_argument("--echo", action="store_true")
    told.add_argument("--revoke-after", type=int, default=0)
    told.add_argument("--latency-s", type=float, default=0.0)
    told.add_argument("--sign", action="store_true")
    asyncio.run(serve(FaultServer(**vars(told.parse_args()))))
