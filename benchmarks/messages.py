"""Messages a second between an arena and an agent in different processes, none lost or doubled.

    python benchmarks/messages.py [--asks 200000] [--in-flight 4000] [--rounds 3] [--json FILE]

One actor has what an arena sends with (``actors.post.router``), another is an agent host (``actors.agent``) with a
model that answers at once; both are Ray actors in processes of their own, with a wire each way (``actors.post.wire``).
Asks have a prompt of some 500 characters, replies 100. An ask and its reply are two messages; each must come exactly
once. Beside it the same as plain Ray calls, one an ask, its return value the reply, a thousand in flight.

Exit status 1: fewer than 20,000 messages a second, or one that was lost or came twice.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from actors.agent import AgentHost, Limits  # noqa: E402
from actors.models.backend import AdapterRef, BackendInfo  # noqa: E402
from actors.post.router import Router  # noqa: E402
from actors.post.wire import Address, Listener, Wire  # noqa: E402
from protocols.message import Ask, Reply, Sampling, Usage, user  # noqa: E402

MIN_PER_S = 20_000.0
PROMPT = "What is left when all but one have said the same? " * 10
SAID = "All said, it comes to \\boxed{12}. " * 3


def ask_of(number: int) -> Ask:
    return Ask(
        id=f"d{number // 3}#0.answer.{number % 3}",
        debate_id=f"d{number // 3}",
        agent="ada",
        role="generator",
        messages=(user(PROMPT),),
        sampling=Sampling(seed=number),
    )


class Instant:
    """A model that answers at once."""

    async def start(self) -> BackendInfo:
        return BackendInfo(model="instant", context_tokens=1000, max_concurrency=1_000_000)

    async def generate(self, ask: Ask, adapter: AdapterRef | None) -> Reply:
        return Reply(ask_id=ask.id, text=SAID, model="instant", usage=Usage(120, 30))

    async def load_adapter(self, adapter: AdapterRef) -> None: ...

    async def unload_adapter(self, adapter: AdapterRef) -> None: ...

    def metrics(self) -> dict[str, float]:
        return {}

    async def close(self) -> None: ...


class HostActor:
    """An agent host as ``actors.placement`` places it, with the instant model; and one plain call a message."""

    async def start(self) -> None:
        self._host = AgentHost("m", Instant(), Limits())
        await self._host.start()

        self._listener = Listener(self._host.tell)

    async def connect(self, arena: Any) -> None:
        self._host.connect("a", Wire("m", arena.deliver.remote, arena.address.remote).tell)

    async def address(self) -> Address | None:
        return await self._listener.address()

    async def tell(self, packed: bytes) -> None:
        self._host.tell("a", packed)

    async def answer(self, packed: bytes) -> bytes:
        ask = msgspec.msgpack.decode(packed, type=Ask)
        return msgspec.msgpack.encode(Reply(ask_id=ask.id, text=SAID, model="instant", usage=Usage(120, 30)))


class ArenaActor:
    """Keeps so many asks on their way, and counts what comes back."""

    def __init__(self, host: Any) -> None:
        self._host_actor = host
        self._decoder = msgspec.msgpack.Decoder(list[Reply])
        self._came = bytearray()
        self._left: list[Ask] = []
        self._over = asyncio.Event()

        tell = Wire("a", host.tell.remote, host.address.remote).tell
        self._router = Router({"ada": "m"}, {"m": {"m": tell}}, lambda ask: True, self._failed)
        self._listener = Listener(lambda caller, packed: self._take(packed))

    def _failed(self, err: Exception) -> None:
        raise err

    async def ready(self) -> int:
        return os.getpid()

    async def address(self) -> Address | None:
        return await self._listener.address()

    async def deliver(self, packed: bytes) -> None:
        self._take(packed)

    def _take(self, packed: bytes) -> None:
        replies = self._decoder.decode(packed)
        for reply in replies:
            self._router.over(reply.ask_id)
            debate, _, seat = reply.ask_id.partition("#0.answer.")
            self._came[int(debate[1:]) * 3 + int(seat)] += 1
        self._router.put(self._left[: len(replies)])
        del self._left[: len(replies)]
        self._pending -= len(replies)
        if not self._pending:
            self._over.set()

    async def messages(self, asks: int, in_flight: int) -> tuple[float, int]:
        """Returns: seconds, and how many came not exactly once."""
        self._came, self._pending = bytearray(asks), asks
        made = [ask_of(number) for number in range(asks)]
        self._left = made[in_flight:]
        self._over.clear()
        began = time.perf_counter()
        self._router.put(made[:in_flight])
        await self._over.wait()
        return time.perf_counter() - began, sum(count != 1 for count in self._came)

    async def calls(self, asks: int, in_flight: int) -> float:
        """The same as one call a message. Returns: seconds."""
        made = iter([msgspec.msgpack.encode(ask_of(number)) for number in range(asks)])

        async def one_after_another() -> None:
            for packed in made:
                msgspec.msgpack.decode(await self._host_actor.answer.remote(packed), type=Reply)

        began = time.perf_counter()
        await asyncio.gather(*(one_after_another() for _ in range(in_flight)))
        return time.perf_counter() - began


def measure(asks: int, in_flight: int, rounds: int) -> list[dict[str, float]]:
    from engine.debates.cluster import join_ray

    join_ray()
    import ray  # not before: it reads the environment that joining sets

    try:
        place = {"num_cpus": 0, "max_concurrency": 10_000}
        host = ray.remote(HostActor).options(**place).remote()
        arena = ray.remote(ArenaActor).options(**place).remote(host)
        ray.get([host.start.remote(), arena.ready.remote()])
        ray.get(host.connect.remote(arena))
        ray.get(arena.messages.remote(in_flight, in_flight))  # warm
        found = []
        for _ in range(rounds):
            seconds, wrong = ray.get(arena.messages.remote(asks, in_flight))
            plain = ray.get(arena.calls.remote(asks // 20, min(in_flight, 1000)))
            found.append(
                {"messages_per_s": 2 * asks / seconds, "wrong": wrong, "plain_per_s": 2 * (asks // 20) / plain}
            )
        return found
    finally:
        ray.shutdown()


def spread(values: Sequence[float]) -> str:
    return f"{statistics.median(values):,.0f} ({min(values):,.0f} to {max(values):,.0f})"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--asks", type=int, default=200_000)
    parser.add_argument("--in-flight", type=int, default=4000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path, help="also write the figures there")
    options = parser.parse_args()
    from engine.record.folder import machine_description, versions

    rows = measure(options.asks, options.in_flight, options.rounds)
    print("| way | messages a second | not exactly once |")
    print("|---|---|---|")
    print(f"| batches (moot) | {spread([row['messages_per_s'] for row in rows])} | {sum(r['wrong'] for r in rows)} |")
    print(f"| one call a message | {spread([row['plain_per_s'] for row in rows])} | |")
    if options.json:
        told = {"machine": machine_description(), "versions": versions(), "asks": options.asks, "rows": rows}
        options.json.write_text(json.dumps(told, indent=2) + "\n")
    slow = statistics.median(row["messages_per_s"] for row in rows) < MIN_PER_S
    return int(slow or any(row["wrong"] for row in rows))


if __name__ == "__main__":
    sys.exit(main())
