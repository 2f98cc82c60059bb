"""What rounds in lock-step cost: the same debates with a barrier after each round, and as moot runs them.

    python benchmarks/barrier.py [--debates 200] [--rounds 4] [--seeds 0 1 2] [--median-s 0.1] [--json FILE]

Every ask has its latency from a trace that the seed gives, once lognormal and once Pareto, the median the same, so that
both ways wait for the very same replies. Each of three agents has a host of its own that takes --concurrency asks at
once, as a provider would. The arena with its journal on disk and the hosts are the product's own, in one process; the
barrier is a gate that this benchmark puts before the model: no ask of a round passes before the last reply of the round
before, of all debates. Told is the makespan, from the first debate's opening to the last one's end on record, beside
the least that any order of asks could take: the busiest agent's work, or the longest single debate.

With n replies a round and k at once, a barrier pays for the slowest of all n in each of R rounds, which grows like
exp(sigma * sqrt(2 ln n)) or n ** (1 / alpha) and leaves most of the k places empty meanwhile; without it a slow reply
delays its own debate alone and the tail is paid for once.

Exit status 1: for one of the distributions the makespan is not --limit times shorter, by the median over the seeds.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from actors.agent import AgentHost, Limits  # noqa: E402
from actors.limits.gate import Gate, Hint  # noqa: E402
from actors.models.backend import AdapterRef, BackendInfo  # noqa: E402
from actors.post.router import Tell  # noqa: E402
from engine.debates.arena import Arena, Assignment  # noqa: E402
from protocols.conversation import Player  # noqa: E402
from protocols.errors import ReplyError  # noqa: E402
from protocols.message import Ask, Reply  # noqa: E402
from protocols.prompt import load_prompts  # noqa: E402
from protocols.society import Society, SocietySettings  # noqa: E402
from protocols.task import Task  # noqa: E402

AGENTS = ("ada", "bo", "cy")
SIGMA, ALPHA = 1.0, 1.5  # of the lognormal's logarithm; of the Pareto's tail
KINDS = {"lognormal": f"lognormal, sigma {SIGMA:g}", "pareto": f"Pareto, alpha {ALPHA:g}"}
Trace = dict[str, float]  # ask id -> latency, seconds


def make_trace(kind: str, seed: int, options: argparse.Namespace) -> Trace:
    rng = random.Random(f"{kind} {seed}")

    def draw() -> float:
        """The median is 1."""
        return rng.lognormvariate(0.0, SIGMA) if kind == "lognormal" else 0.5 ** (1 / ALPHA) * rng.paretovariate(ALPHA)

    return {
        f"{debate}#{number}.answer.{seat}": options.median_s * draw()
        for debate in range(options.debates)
        for number in range(options.rounds)
        for seat in range(len(AGENTS))
    }


def round_of(ask_id: str) -> int:
    return int(ask_id.rpartition("#")[2].partition(".")[0])


def least_s(trace: Trace, options: argparse.Namespace) -> float:
    """No order of asks takes less: an agent's work over its places, a debate's slowest replies one after another."""
    works = [0.0] * len(AGENTS)
    slowest: dict[str, float] = {}
    for ask_id, latency_s in trace.items():
        works[int(ask_id[-1])] += latency_s / options.concurrency
        key = ask_id.rpartition(".answer.")[0]
        slowest[key] = max(slowest.get(key, 0.0), latency_s)
    paths: dict[str, float] = {}
    for key, latency_s in slowest.items():
        debate = key.partition("#")[0]
        paths[debate] = paths.get(debate, 0.0) + latency_s
    return max(*works, *paths.values())


class Traced:
    """A model that takes as long for an ask as the trace says."""

    def __init__(self, trace: Trace, concurrency: int) -> None:
        self._trace, self._concurrency = trace, concurrency

    async def start(self) -> BackendInfo:
        return BackendInfo(model="traced", context_tokens=0, max_concurrency=self._concurrency)

    async def generate(self, ask: Ask, adapter: AdapterRef | None) -> Reply:
        await asyncio.sleep(self._trace[ask.id])
        return Reply(ask_id=ask.id, text="It comes to \\boxed{42}.", model="traced")

    async def load_adapter(self, adapter: AdapterRef) -> None:
        raise NotImplementedError

    async def unload_adapter(self, adapter: AdapterRef) -> None:
        raise NotImplementedError

    def metrics(self) -> dict[str, float]:
        return {}

    async def close(self) -> None:
        return None


class Barrier:
    """A gate before every host: a round's asks pass when all replies of the round before have come."""

    def __init__(self, asks_a_round: int, rounds: int) -> None:
        self._left = [asks_a_round] * rounds
        self._open = [asyncio.Event() for _ in range(rounds)]
        self._open[0].set()

    async def enter(self, ask: Ask) -> int:
        number = round_of(ask.id)
        await self._open[number].wait()
        return number

    def leave(self, ticket: int, outcome: Reply | ReplyError | None) -> None:
        self._left[ticket] -= 1
        if not self._left[ticket] and ticket + 1 < len(self._open):
            self._open[ticket + 1].set()

    def hint(self, hint: Hint) -> None:
        return None

    def figures(self) -> dict[str, float]:
        return {}


async def makespan_s(trace: Trace, options: argparse.Namespace, *, lock_step: bool) -> float:
    gates: dict[str, Gate] = {}
    if lock_step:
        gates["barrier"] = Barrier(options.debates * len(AGENTS), options.rounds)
    hosts = {name: AgentHost(name, Traced(trace, options.concurrency), Limits(), gates) for name in AGENTS}
    settings = SocietySettings(rounds=options.rounds)
    cast = {"generator": tuple(Player(name=name) for name in AGENTS)}
    prompts = load_prompts(settings.prompts, Society.SLOTS)
    with tempfile.TemporaryDirectory(prefix="moot-bench-") as temporary:
        arena = Arena(
            "arena",
            Path(temporary) / "arena.sqlite",
            fingerprint="benchmark",
            build=lambda: Society(settings, cast, prompts),
            protocol=Society.NAME,
            cast={"generator": AGENTS},
            deadline_s=settings.deadline_s,
            models={name: name for name in AGENTS},
            hosts={name: {name: _tell(host)} for name, host in hosts.items()},
        )

        async def deliver(packed: bytes) -> None:
            arena.deliver(packed)

        for host in hosts.values():
            await host.start()
            host.connect("arena", deliver)
        await arena.recover()
        try:
            return await _all_closed(arena, options.debates)
        finally:
            for host in hosts.values():
                await host.close()
            await arena.close()


def _tell(host: AgentHost) -> Tell:
    async def tell(packed: bytes) -> None:
        host.tell("arena", packed)

    return tell


async def _all_closed(arena: Arena, debates: int) -> float:
    """Seconds until all debates are closed and on record."""
    began, closed = time.perf_counter(), 0
    tasks = (Task(id=str(number), question="6 * 7", gold=("42",)) for number in range(debates))
    arena.open(Assignment(debate_id=task.id, task=task, seed=0) for task in tasks)
    while closed < debates:
        finished, stats = await arena.collect(1.0)
        if stats.error or stats.failures:
            raise RuntimeError(stats.error or f"{stats.failures} asks failed")
        closed += len(finished)
    return time.perf_counter() - began


def measure(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    for seed in options.seeds:
        for kind in KINDS:
            trace = make_trace(kind, seed, options)
            if options.traces:
                options.traces.mkdir(parents=True, exist_ok=True)
                (options.traces / f"{kind}-{seed}.json").write_text(json.dumps(trace, indent=0) + "\n")
            own_s = asyncio.run(makespan_s(trace, options, lock_step=False))
            lock_step_s = asyncio.run(makespan_s(trace, options, lock_step=True))
            found = {
                "kind": kind,
                "seed": seed,
                "moot_s": own_s,
                "lock_step_s": lock_step_s,
                "times": lock_step_s / own_s,
                "least_s": least_s(trace, options),
            }
            print(json.dumps(found), file=sys.stderr, flush=True)
            yield found


def spread(values: list[float], digits: int) -> str:
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def table(rows: list[dict[str, Any]]) -> Iterator[str]:
    yield "| latency | lock-step, s | moot, s | times shorter | the least, s |"
    yield "|---|---|---|---|---|"
    for kind, shown in KINDS.items():
        mine = [row for row in rows if row["kind"] == kind]
        names = (("lock_step_s", 1), ("moot_s", 1), ("times", 2), ("least_s", 1))
        cells = [spread([row[name] for row in mine], digits) for name, digits in names]
        yield f"| {' | '.join([shown, *cells])} |"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--debates", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=4, help="of a debate, the opening included")
    parser.add_argument("--concurrency", type=int, default=32, help="asks that an agent's provider takes at once")
    parser.add_argument("--median-s", type=float, default=0.1, help="of the latency")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="a trace of each distribution for each")
    parser.add_argument("--limit", type=float, default=1.5, help="times shorter")
    parser.add_argument("--traces", type=Path, help="a folder to write the traces to: ask id -> seconds")
    parser.add_argument("--json", type=Path, help="also write the figures there")
    options = parser.parse_args()
    rows = list(measure(options))
    print("\n".join(table(rows)))
    if options.json:
        machine = {"python": platform.python_version(), "platform": platform.platform(), "cores": os.cpu_count()}
        names = ("debates", "rounds", "concurrency", "median_s")
        told = {"machine": machine, **{name: getattr(options, name) for name in names}, "rows": rows}
        options.json.write_text(json.dumps(told, indent=2) + "\n")
    times = [statistics.median([row["times"] for row in rows if row["kind"] == kind]) for kind in KINDS]
    return int(min(times) < options.limit)


if __name__ == "__main__":
    sys.exit(main())
