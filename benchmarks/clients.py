"""What a call to an API costs the process that makes it: our client beside the openai package and a bare one.

    python benchmarks/clients.py [--rounds 5] [--json FILE] [--litellm PYTHON]

A server in a process of its own answers every chat completion after 50 ms with the same 2.3 KB. Each client, in a fresh
process, makes the same calls with 100 and with 1,000 of them in flight, over kept-alive connections that are opened
before the clock starts; rounds of all clients take turns. Told are medians over the rounds of CPU time (user and
system) a call, the 99th percentile of latency, and calls a second, each with the least and the most.

Exit status 1: our client costs more than --limit-ms, or is not --times cheaper than the openai package as it comes.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec

ROOT = Path(__file__).parents[1]
LATENCY_S = 0.05
PROMPT = "Say what is wrong with the argument below, then answer. " * 64  # 3.6 KB
TEXT = "The second step does not follow from the first. " * 40
CLIENTS = ("moot", "openai", "openai+aiohttp", "aiohttp+msgspec", "litellm")
Call = Callable[[], Awaitable[str]]


class Message(msgspec.Struct):
    content: str


class Choice(msgspec.Struct):
    message: Message


class Completion(msgspec.Struct):
    choices: list[Choice]


def serve() -> None:
    """The server: prints its port, then answers until it is ended."""
    body = completion()
    head = f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n".encode()

    class Answers(asyncio.Protocol):
        """Just enough HTTP to leave the cores to the clients."""

        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            self.transport, self.seen = transport, bytearray()

        def data_received(self, data: bytes) -> None:
            self.seen += data
            head_end = self.seen.find(b"\r\n\r\n")
            if head_end < 0:
                return
            fields = bytes(self.seen[:head_end]).lower().split(b"\r\n")
            length = next((int(f.partition(b":")[2]) for f in fields if f.startswith(b"content-length:")), 0)
            if len(self.seen) >= head_end + 4 + length:
                del self.seen[: head_end + 4 + length]
                asyncio.get_running_loop().call_later(LATENCY_S, self.answer)

        def answer(self) -> None:
            if isinstance(self.transport, asyncio.Transport) and not self.transport.is_closing():
                self.transport.write(head + body)

    async def main() -> None:
        server = await asyncio.get_running_loop().create_server(Answers, "127.0.0.1", 0, backlog=4096)
        print(server.sockets[0].getsockname()[1], flush=True)
        await server.serve_forever()

    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(main())


def completion() -> bytes:
    message = {"role": "assistant", "content": TEXT, "refusal": None}
    usage = {"prompt_tokens": 800, "completion_tokens": 400, "total_tokens": 1200}
    choice = {"index": 0, "message": message, "finish_reason": "stop", "logprobs": None}
    made = {"id": "chatcmpl-1", "object": "chat.completion", "created": 1, "model": "fake", "usage": usage}
    return json.dumps(made | {"choices": [choice]}).encode()


async def caller(client: str, url: str, in_flight: int, stack: contextlib.AsyncExitStack) -> Call:
    """One call with this client; it returns the reply's text."""
    messages: list[Any] = [{"role": "user", "content": PROMPT}]
    if client == "moot":
        return await _moot(url, in_flight, stack)
    if client.startswith("openai"):
        return _openai(url, messages, aiohttp=client.endswith("aiohttp"))
    if client == "litellm":
        return _litellm(url, messages)
    return await _bare(url, messages, stack)


async def _moot(url: str, in_flight: int, stack: contextlib.AsyncExitStack) -> Call:
    from actors.services.openai_chat import ChatBackend, OpenAISettings
    from protocols.message import Ask, Sampling, user

    backend = ChatBackend(OpenAISettings(model="fake", base_url=url, max_concurrency=in_flight))
    await backend.start()
    stack.push_async_callback(backend.close)
    ask = Ask(
        id="d#0", debate_id="d", agent="ada", role="r", messages=(user(PROMPT),), sampling=Sampling(max_tokens=512)
    )

    async def call() -> str:
        return (await backend.generate(ask, None)).text

    return call


def _openai(url: str, messages: list[Any], *, aiohttp: bool) -> Call:
    import openai

    if aiohttp:
        client = openai.AsyncOpenAI(
            base_url=url, api_key="none", max_retries=0, timeout=300, http_client=openai.DefaultAioHttpClient()
        )
    else:
        client = openai.AsyncOpenAI(base_url=url, api_key="none", max_retries=0, timeout=300)

    async def call() -> str:
        done = await client.chat.completions.create(
            model="fake", messages=messages, temperature=1.0, top_p=1.0, max_tokens=512
        )
        return done.choices[0].message.content or ""

    return call


def _litellm(url: str, messages: list[Any]) -> Call:
    import litellm  # type: ignore[import-not-found,unused-ignore]

    async def call() -> str:
        done = await litellm.acompletion(
            model="openai/fake", messages=messages, base_url=url, api_key="none", max_tokens=512, num_retries=0
        )
        return str(done.choices[0].message.content)

    return call


async def _bare(url: str, messages: list[Any], stack: contextlib.AsyncExitStack) -> Call:
    import aiohttp

    encoder, decoder = msgspec.json.Encoder(), msgspec.json.Decoder(Completion)
    session = await stack.enter_async_context(aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)))
    body = {"model": "fake", "messages": messages, "temperature": 1.0, "top_p": 1.0, "max_tokens": 512}
    target = f"{url}/chat/completions"

    async def call() -> str:
        sent = encoder.encode(body)
        async with session.post(target, data=sent, headers={"Content-Type": "application/json"}) as response:
            return decoder.decode(await response.read()).choices[0].message.content

    return call


async def measure(client: str, url: str, in_flight: int, calls: int) -> dict[str, float]:
    """CPU and latency of ``calls`` calls of which ``in_flight`` are always under way."""
    async with contextlib.AsyncExitStack() as stack:
        call = await caller(client, url, in_flight, stack)
        latencies: list[float] = []
        left = iter(range(calls))

        async def worker() -> None:
            for _ in left:
                began = time.perf_counter()
                if len(await call()) != len(TEXT):
                    raise RuntimeError(f"{client} read another text than was sent")
                latencies.append(time.perf_counter() - began)

        await asyncio.gather(*(call() for _ in range(in_flight)))  # opens the connections, imports what is late
        began, cpu_s = time.perf_counter(), _cpu_s()
        await asyncio.gather(*(worker() for _ in range(in_flight)))
        cpu_s, wall_s = _cpu_s() - cpu_s, time.perf_counter() - began
    return {
        "cpu_ms": cpu_s / calls * 1e3,
        "p99_ms": statistics.quantiles(latencies, n=100)[98] * 1e3,
        "calls_per_s": calls / wall_s,
    }


def _cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


@contextlib.contextmanager
def server() -> Iterator[str]:
    process = subprocess.Popen([sys.executable, __file__, "--serve"], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        yield f"http://127.0.0.1:{int(process.stdout.readline())}/v1"
    finally:
        process.terminate()
        process.wait(timeout=10)
        process.stdout.close()


def run_once(python: str, client: str, url: str, in_flight: int, calls: int) -> dict[str, float]:
    env = os.environ | {"PYTHONPATH": str(ROOT), "OPENAI_API_KEY": "none", "LITELLM_LOCAL_MODEL_COST_MAP": "True"}
    arguments = [python, __file__, "--measure", client, url, str(in_flight), str(calls)]
    done = subprocess.run(arguments, env=env, capture_output=True, text=True, timeout=600, check=False)
    if done.returncode:
        raise SystemExit(f"{client} failed:\n{done.stderr[-2000:]}")
    figures: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return figures


def rounds(options: argparse.Namespace) -> dict[str, dict[str, list[float]]]:
    """(client, in flight) -> figure -> one value a round. Clients take turns, so that a busy minute hits all."""
    found: dict[str, dict[str, list[float]]] = {}
    clients = [client for client in CLIENTS if client != "litellm" or options.litellm]
    with server() as url:
        for number in range(options.rounds):
            for in_flight in options.in_flight:
                for client in clients:
                    python = options.litellm if client == "litellm" else sys.executable
                    calls = max(options.calls, 2 * in_flight)
                    figures = run_once(python, client, url, in_flight, calls)
                    for name, value in figures.items():
                        found.setdefault(f"{client} {in_flight}", {}).setdefault(name, []).append(value)
                    print(f"round {number + 1}: {client}, {in_flight} in flight: {figures}", file=sys.stderr)
    return found


def spread(values: list[float], digits: int) -> str:
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def table(found: dict[str, dict[str, list[float]]]) -> Iterator[str]:
    yield "| client | in flight | CPU ms a call | of ours | p99 ms | calls a second |"
    yield "|---|---|---|---|---|---|"
    for row, figures in found.items():
        client, in_flight = row.split()
        ours = found[f"moot {in_flight}"]["cpu_ms"]
        ratios = [value / mine for value, mine in zip(figures["cpu_ms"], ours, strict=True)]  # round by round
        cells = [client, in_flight, spread(figures["cpu_ms"], 2), spread(ratios, 1), spread(figures["p99_ms"], 0)]
        yield f"| {' | '.join(cells)} | {spread(figures['calls_per_s'], 0)} |"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--calls", type=int, default=2000, help="a round and client, at least twice those in flight")
    parser.add_argument("--in-flight", type=int, nargs="+", default=[100, 1000])
    parser.add_argument("--litellm", help="a Python in whose environment litellm is installed")
    parser.add_argument("--limit-ms", type=float, default=0.5)
    parser.add_argument("--times", type=float, default=10.0)
    parser.add_argument("--json", type=Path, help="also write the figures there")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--measure", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        serve()
        return 0
    if options.measure:
        client, url, in_flight, calls = options.measure
        print(json.dumps(asyncio.run(measure(client, url, int(in_flight), int(calls)))))
        return 0
    found = rounds(options)
    print("\n".join(table(found)))
    if options.json:
        machine = {"python": platform.python_version(), "platform": platform.platform(), "cores": os.cpu_count()}
        options.json.write_text(
            json.dumps({"machine": machine, "latency_s": LATENCY_S, "rows": found}, indent=2) + "\n"
        )
    return int(any(_too_dear(found, in_flight, options) for in_flight in options.in_flight))


def _too_dear(found: dict[str, dict[str, list[float]]], in_flight: int, options: argparse.Namespace) -> bool:
    ours, theirs = found[f"moot {in_flight}"]["cpu_ms"], found[f"openai {in_flight}"]["cpu_ms"]
    ratio = statistics.median(value / mine for value, mine in zip(theirs, ours, strict=True))
    return bool(statistics.median(ours) > options.limit_ms or ratio < options.times)


if __name__ == "__main__":
    sys.exit(main())
