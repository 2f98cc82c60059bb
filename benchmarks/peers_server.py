"""A chat completions server that leaves the cores to its clients: one process, one fixed reply, a fixed latency.

    python benchmarks/peers_server.py LATENCY_S     prints its port, then answers until it is ended

It reads of a request what HTTP needs and no more. ``GET /stats`` tells how many completions it gave, how many asks it
held at once at most, and its CPU time. ``ceiling`` measures what it can do.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import resource
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from typing import Any

TEXT = "The second step does not follow from the first. " * 47 + "So the answer is \\boxed{42}."  # 2.3 KB
USAGE = {"prompt_tokens": 800, "completion_tokens": 400, "total_tokens": 1200}


def completion() -> bytes:
    message = {"role": "assistant", "content": TEXT, "refusal": None}
    choice = {"index": 0, "message": message, "finish_reason": "stop", "logprobs": None}
    made = {"id": "chatcmpl-1", "object": "chat.completion", "created": 1, "model": "fake", "usage": USAGE}
    return json.dumps(made | {"choices": [choice]}).encode()


def _answer(body: bytes) -> bytes:
    return f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body


class Connection(asyncio.Protocol):
    """One client's connection; requests on it come one after another."""

    latency_s = 0.0
    answered = held = most_held = 0
    reply = _answer(completion())

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport, self._seen, self._size = transport, b"", 0

    def data_received(self, data: bytes) -> None:
        self._seen = self._seen + data if self._seen else data
        if not self._size:
            end = self._seen.find(b"\r\n\r\n")
            if end < 0:
                return
            if self._seen.startswith(b"GET"):
                self._tell()
                return
            head = self._seen[:end].lower()
            at = head.find(b"content-length:")
            self._size = end + 4 + int(head[at + 15 :].split(b"\r\n", 1)[0])
        if len(self._seen) >= self._size:
            self._seen, self._size = self._seen[self._size :], 0
            Connection.held += 1
            Connection.most_held = max(Connection.held, Connection.most_held)
            if self.latency_s:
                asyncio.get_running_loop().call_later(self.latency_s, self._reply)
            else:
                self._reply()

    def _reply(self) -> None:
        Connection.held -= 1
        Connection.answered += 1
        if not self._transport.is_closing():
            self._transport.write(self.reply)

    def _tell(self) -> None:
        self._seen = b""
        told = {"answered": self.answered, "most_held": self.most_held, "cpu_s": cpu_s()}
        Connection.most_held = self.held
        self._transport.write(_answer(json.dumps(told).encode()))


async def serve(latency_s: float) -> None:
    Connection.latency_s = latency_s
    server = await asyncio.get_running_loop().create_server(Connection, "127.0.0.1", 0, backlog=4096)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


def cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


@contextlib.contextmanager
def server(latency_s: float) -> Iterator[str]:
    """The server in a process of its own, by its address."""
    process = subprocess.Popen([sys.executable, __file__, str(latency_s)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        yield f"http://127.0.0.1:{int(process.stdout.readline())}/v1"
    finally:
        process.terminate()
        process.wait(timeout=10)
        process.stdout.close()


def stats(url: str) -> dict[str, Any]:
    with urllib.request.urlopen(f"{url}/stats", timeout=60) as answer:
        told: dict[str, Any] = json.load(answer)
    return told


def ceiling(url: str, *, connections: int = 64, seconds: float = 2.0) -> dict[str, float]:
    """What the server gives a client that does nothing but write one request again and again: calls/s, CPU ms a call.

    The client shares the machine, so the server can do at least this.
    """
    body = json.dumps({"model": "fake", "messages": [{"role": "user", "content": TEXT * 2}]}).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: fake\r\nContent-Length: {len(body)}\r\n\r\n"
    request, size = head.encode() + body, len(Connection.reply)

    class Asking(asyncio.Protocol):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            assert isinstance(transport, asyncio.Transport)
            self._transport, self._got = transport, 0
            transport.write(request)

        def data_received(self, data: bytes) -> None:
            self._got += len(data)
            if self._got == size:
                self._got = 0
                self._transport.write(request)

    async def ask() -> None:
        port = int(url.rpartition(":")[2].partition("/")[0])
        loop = asyncio.get_running_loop()
        opened = [await loop.create_connection(Asking, "127.0.0.1", port) for _ in range(connections)]
        await asyncio.sleep(seconds)
        for transport, _ in opened:
            transport.abort()

    before, began = stats(url), time.perf_counter()
    asyncio.run(ask())
    after, wall_s = stats(url), time.perf_counter() - began
    calls = after["answered"] - before["answered"]
    return {"calls_per_s": calls / wall_s, "cpu_ms": (after["cpu_s"] - before["cpu_s"]) / calls * 1e3}


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(serve(float(sys.argv[1])))
