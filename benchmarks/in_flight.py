"""Ten thousand debates in flight at once on one machine: what the engine itself adds, in time, CPU and memory.

    python benchmarks/in_flight.py [--debates 10000] [--seconds 60] [--latency 10] [--json FILE]

Debates of three agents and two rounds, run as a recipe runs them: driver, one arena with its journal on disk, one agent
host with a scripted model whose latency is lognormal (sigma 0.5). Three asks of each debate are open at any time, and a
round is as long as its slowest reply: at a median of 10 s some 1,830 replies come in a second. After a warm-up the
figures are of a window of ``--seconds``:

- delay: from a reply's arrival in the arena until the asks that it enables are handed to Ray, its commit included;
- CPU of a durable turn: user and system time of the arena's and the host's process over the window, by replies, less
  what the simulated model takes to think of a reply and to keep it back for as long as a model would. That is measured
  beside the run, in a process that does nothing else and holds as many asks of as many debates in the same model, at
  the same rate: among so many each takes 1.7 times as long as in a tight loop. The driver and Ray's own processes are
  told beside it.

Memory is measured in a process of its own: an arena that holds as many debates half-way (round 0 recorded, three asks
open each), its resident memory over that of the empty arena, less the text of questions, prompts and replies, UTF-8.

Exit status 1: p99 delay above 100 ms, more than 150 us a turn, or more than 20 KB a debate.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import deque
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from engine.debates.arena import Assignment
    from protocols.message import Ask

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

MAX_DELAY_S, MAX_TURN_US, MAX_DEBATE_BYTES = 0.1, 150.0, 20_000
AGENTS = ("ada", "bo", "cy")
SETTLES = 2.2  # times the mean latency, until replies come evenly though all were asked at once
DEBATE_S = 0.001  # to think up what the model alone is asked, a debate; at most
ROUNDS, TURNS = 2, 6
TICK_HZ = os.sysconf("SC_CLK_TCK")


def recipe_data(debates: int, total: int, latency_s: float) -> dict[str, Any]:
    return {
        "name": "in-flight",
        "tasks": {"source": "arithmetic", "level": "mixed10", "train": total, "test": 0},
        "models": {"m": {"backend": "scripted", "latency_s": latency_s, "latency_sigma": 0.5}},
        "agents": {name: {"model": "m"} for name in AGENTS},
        "protocol": {"name": "society", "rounds": ROUNDS},
        "cast": {"generator": list(AGENTS)},
        "run": {"max_open": debates},
    }


def cpu_s(pid: int) -> float:
    """User and system time that a process has taken."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICK_HZ


def reference_ms() -> float:
    """How long this machine takes for a million additions in Python: a time of another machine is read by it."""
    began, total = time.process_time(), 0
    for number in range(1_000_000):
        total += number
    return (time.process_time() - began) * 1000


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def children(pid: int) -> dict[int, str]:
    """All processes below one, with their command lines."""
    listed = subprocess.run(
        ["ps", "-e", "-ww", "-o", "pid=,ppid=,args="], capture_output=True, text=True, check=True
    ).stdout
    rows = [line.split(None, 2) for line in listed.splitlines()]
    found, frontier = dict[int, str](), {pid}
    while frontier:
        below = {int(row[0]): row[2] for row in rows if int(row[1]) in frontier and len(row) == 3}
        found |= below
        frontier = set(below)
    return found


class Sample:
    """CPU of every process, and the arena's totals, at one moment."""

    def __init__(self, stats: Any, but_for: int) -> None:
        self.at, self.stats = time.monotonic(), stats
        self.cpu: dict[str, float] = {"driver": cpu_s(os.getpid()), "arena": 0.0, "host": 0.0, "ray": 0.0}
        for pid, args in children(os.getpid()).items():
            if pid == but_for:
                continue
            kind = "arena" if "ray::ArenaActor" in args else "host" if "ray::AgentActor" in args else "ray"
            try:
                self.cpu[kind] += cpu_s(pid)
            except FileNotFoundError:  # ps itself
                continue


def waiting_of(recipe: Any) -> deque[Assignment]:
    """The debates of a recipe that has no run."""
    from engine.data.tasks import load_split
    from engine.debates.desk import Desk
    from engine.record.attempts import Attempts

    return Desk("debate", load_split(recipe.tasks).train, recipe.seed, Attempts(Path("nowhere")), ()).waiting


async def asks_of(recipe: Any) -> list[Ask]:
    """All that its debates ask."""
    from actors.models.scripted import ScriptedBackend, ScriptedSettings
    from engine.config.named_protocol import find_protocol
    from engine.debates.cluster import ArenaPlan
    from protocols.machine import Opened, Replied, Request

    plan, model = ArenaPlan.of(recipe), ScriptedBackend(ScriptedSettings())
    asks: list[Ask] = []
    for given in waiting_of(recipe):
        machine = find_protocol(plan.protocol)(plan.settings, plan.cast, recipe.prompts)
        commands = machine.receive(Opened(debate_id=given.debate_id, task=given.task, seed=given.seed))
        while asked := [command.ask for command in commands if isinstance(command, Request)]:
            asks += asked
            replies = [await model.generate(ask, None) for ask in asked]
            commands = [command for reply in replies for command in machine.receive(Replied(reply))]
    return asks


async def model_alone(options: argparse.Namespace) -> dict[str, float]:
    """CPU that the simulated model takes for a reply, with nothing else in this process.

    Of the three asks of a debate's round two are in the model at any moment: the round is as long as its slowest. No
    debate's are asked twice before all others', so that nothing of them is still in a cache.
    """
    import msgspec

    from actors.models.scripted import ScriptedBackend, ScriptedSettings
    from actors.post.collector import calm_collector
    from engine.config.recipe_file import build_recipe

    recipe = build_recipe(recipe_data(options.debates, options.debates, 0.0), where="benchmark")
    asks = itertools.cycle(await asks_of(recipe))
    model = ScriptedBackend(ScriptedSettings(latency_s=options.latency, latency_sigma=0.5))
    told = 0

    async def ask_on() -> None:
        nonlocal told
        while True:
            await model.generate(msgspec.structs.replace(next(asks), id=f"a{told}.{id(asyncio.current_task())}"), None)
            told += 1

    calm_collector()  # as hosts do
    asking = [asyncio.ensure_future(ask_on()) for _ in range(2 * options.debates)]
    await asyncio.sleep(SETTLES * mean_s(options.latency))
    before_s, before = time.process_time(), told
    await asyncio.sleep(options.seconds)
    found = {"model_us": (time.process_time() - before_s) / (told - before) * 1e6}
    for task in asking:
        task.cancel()
    return found


def mean_s(latency_s: float) -> float:
    """Of a lognormal with this median and sigma 0.5."""
    return latency_s * 1.133


async def in_flight(options: argparse.Namespace) -> dict[str, Any]:
    """Hold the debates in flight, and sample the window's two ends."""
    from actors.post.histogram import Histogram
    from engine.config.recipe_file import build_recipe
    from engine.data.tasks import load_split
    from engine.debates.arena import Finished
    from engine.debates.cluster import Cluster
    from engine.debates.desk import Desk
    from engine.debates.shard import Shard
    from engine.live.arena_stats import ArenaStats
    from engine.record.attempts import Attempts
    from engine.record.folder import Manifest, RunFolder

    length_s = ROUNDS * mean_s(options.latency) * 1.5  # of a debate: the slowest of three, twice
    window = options.warm_up or 2.5 * length_s, options.seconds
    total = int(options.debates * (1 + sum(window) / length_s) * 1.3)
    recipe = build_recipe(recipe_data(options.debates, total, options.latency), where="benchmark")
    samples: list[Sample] = []
    reference: list[float] = []
    alone: list[subprocess.Popen[bytes]] = []
    began = time.monotonic()

    class OverError(Exception):
        """The window is over; what is still open is of no interest."""

    async def take(name: str, finished: list[Finished], stats: ArenaStats) -> None:
        passed = time.monotonic() - began
        if not alone and passed > window[0] - (SETTLES * mean_s(options.latency) + DEBATE_S * options.debates):
            alone.append(subprocess.Popen([*by_itself(options), "--model"], stdout=subprocess.PIPE))
        if not samples and passed > window[0]:
            samples.append(Sample(stats, alone[0].pid))
            reference.append(reference_ms())  # while everything else is at work
        elif samples and time.monotonic() - samples[0].at > window[1]:
            samples.append(Sample(stats, alone[0].pid))
            raise OverError

    with tempfile.TemporaryDirectory(prefix="moot-bench-") as temporary:
        manifest = Manifest(
            id="r", kind="run", name="in-flight", fingerprint=recipe.fingerprint, num_arenas=1, recipe=recipe.source,
            recipe_path="",
        )  # fmt: skip
        folder = RunFolder.create(Path(temporary) / "run", manifest)
        waiting = Desk("debate", load_split(recipe.tasks).train, recipe.seed, Attempts(folder.path), ()).waiting
        cluster = await Cluster.start(recipe)
        (journal,) = folder.journals("debate")
        journal.parent.mkdir(parents=True)
        shard = Shard(cluster, "debate/a", journal, waiting, 1, take, print)
        try:
            await shard.start()
            began = time.monotonic()
            try:
                await shard.feed()
                raise SystemExit("the debates were over before the window was; ask for fewer seconds")
            except OverError:
                pass
            model = json.loads(alone[0].communicate()[0])
            size = sum(file.stat().st_size for file in journal.parent.iterdir())
        finally:
            for process in alone:
                process.kill()
            await shard.stop()
            await cluster.stop()
            folder.release()
    first, last = samples
    seconds, replies = last.at - first.at, last.stats.replies - first.stats.replies
    delays = Histogram(last.stats.delays) - Histogram(first.stats.delays)
    us = {name: (last.cpu[name] - first.cpu[name]) / replies * 1e6 for name in last.cpu}
    return {
        "reference_ms": reference[0],
        **model,
        "open": last.stats.open,
        "window_s": seconds,
        "replies": replies,
        "replies_per_s": replies / seconds,
        "closed_per_s": (last.stats.closed - first.stats.closed) / seconds,
        "commits_per_s": (last.stats.commits - first.stats.commits) / seconds,
        "delay_p50_s": delays.quantile(0.5),
        "delay_p99_s": delays.quantile(0.99),
        "delay_p999_s": delays.quantile(0.999),
        **{f"{name}_us": value for name, value in us.items()},
        "journal_bytes_per_reply": size / last.stats.replies,
    }


def by_itself(options: argparse.Namespace) -> list[str]:
    """The command that measures a part of it in a process of its own, but for which."""
    told = ("debates", "seconds", "latency")
    return [sys.executable, __file__, *(word for name in told for word in (f"--{name}", str(getattr(options, name))))]


async def memory(debates: int) -> dict[str, Any]:
    """Hold debates half-way in this very process, and weigh them."""
    import msgspec

    from engine.config.named_protocol import find_protocol
    from engine.config.recipe_file import build_recipe
    from engine.debates.arena import Arena
    from engine.debates.cluster import ArenaPlan
    from protocols.message import Ask, Reply, Usage

    recipe = build_recipe(recipe_data(debates, debates, 0.0), where="benchmark")
    plan = ArenaPlan.of(recipe)
    machine = find_protocol(plan.protocol)
    waiting = waiting_of(recipe)
    decoder, encoder = msgspec.msgpack.Decoder(list[Ask]), msgspec.msgpack.Encoder()
    text, told = 0, 0

    async def tell(packed: bytes) -> None:
        nonlocal text, told
        asks = decoder.decode(packed)
        told += len(asks)
        text += sum(len(message.text.encode()) for ask in asks for message in ask.messages[-1:])  # new in this ask
        opening = [ask for ask in asks if "#0." in ask.id]
        said = f"Step by step: {'first this, then that, ' * 12}so it comes to \\boxed{{7}}."
        text += len(said) * len(opening)
        replies = [
            Reply(ask_id=ask.id, text=said + " ", model="m", usage=Usage(90, 60), latency_s=9.5) for ask in opening
        ]
        if replies:
            arena.deliver(encoder.encode(replies))

    with tempfile.TemporaryDirectory(prefix="moot-bench-") as temporary:
        arena = Arena(
            "a", Path(temporary) / "a.sqlite", fingerprint="f",
            build=lambda: machine(plan.settings, plan.cast, recipe.prompts), protocol=plan.protocol,
            cast={"generator": AGENTS}, deadline_s=3600.0, models=dict.fromkeys(AGENTS, "m"),
            hosts={"m": {"m": tell}}, sync="normal",
        )  # fmt: skip
        await arena.recover()
        gc.collect()
        empty = resident_bytes()

        while waiting:
            arena.open([waiting.popleft() for _ in range(min(100, len(waiting)))])
            await asyncio.sleep(0.01)
        while told < debates * TURNS:
            await asyncio.sleep(0.05)
        await arena.settle()
        gc.collect()
        held = resident_bytes() - empty
        await arena.close()
    return {
        "debate_bytes": held / debates,
        "text_bytes": text / debates,
        "beyond_text_bytes": (held - text) / debates,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--debates", type=int, default=10_000)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--warm-up", type=float, default=0.0, help="seconds; default: two and a half debates")
    parser.add_argument("--latency", type=float, default=10.0, help="median, seconds")
    parser.add_argument("--json", type=Path, help="also write the figures there")
    parser.add_argument("--memory", action="store_true", help="the memory alone, as JSON")
    parser.add_argument("--model", action="store_true", help="the simulated model alone, as JSON")
    options = parser.parse_args()
    if options.memory:
        print(json.dumps(asyncio.run(memory(options.debates))))
        return 0
    if options.model:
        import uvloop  # as in Ray's actors

        print(json.dumps(uvloop.run(model_alone(options))))
        return 0
    from engine.record.folder import machine_description, versions

    weighed = subprocess.run([*by_itself(options), "--memory"], stdout=subprocess.PIPE, check=True)
    found: dict[str, Any] = json.loads(weighed.stdout)
    found |= asyncio.run(in_flight(options))
    found["turn_us"] = found["arena_us"] + found["host_us"] - found["model_us"]
    shown = {
        "open": f"{found['open']}", "replies/s": f"{found['replies_per_s']:.0f}",
        "delay p50, ms": f"{1000 * found['delay_p50_s']:.0f}", "p99, ms": f"{1000 * found['delay_p99_s']:.0f}",
        "CPU a turn, us": f"{found['turn_us']:.0f}", "arena": f"{found['arena_us']:.0f}",
        "host": f"{found['host_us']:.0f}", "model": f"{found['model_us']:.0f}",
        "driver": f"{found['driver_us']:.0f}", "Ray": f"{found['ray_us']:.0f}",
        "KB a debate beyond its text": f"{found['beyond_text_bytes'] / 1000:.1f}",
        "a million additions, ms": f"{found['reference_ms']:.0f}",
    }  # fmt: skip
    print("\n".join(f"| {' | '.join(row)} |" for row in (shown, ["---"] * len(shown), shown.values())))
    if options.json:
        told = {"machine": machine_description(), "versions": versions(), **vars(options), "json": None, "found": found}
        options.json.write_text(json.dumps(told, indent=2, default=str) + "\n")
    slow = found["delay_p99_s"] > MAX_DELAY_S or found["turn_us"] > MAX_TURN_US
    return int(slow or found["beyond_text_bytes"] > MAX_DEBATE_BYTES)


if __name__ == "__main__":
    sys.exit(main())
