"""Debates a second and CPU a call: moot, durable and on Ray, beside what debates are usually written with.

    python benchmarks/peers.py [--n 100 1000] [--latency 0 1] [--rounds 3] [--peers PYTHON] [--json FILE]

Three agents open and then revise, having seen each other: six asks a debate, the same words for everybody, all debates
at once, against one local server that answers at once or after a second. The server's own ceiling is told. A second
table does without HTTP: the model is a function in the process (moot: the scripted backend in the agent host).

Every run is a fresh process that first debates --warm-up debates, which imports what is late, opens the connections and
lets moot find out how much the service takes; then the clock starts. For moot it stops when the last debate is closed
and durable, and its CPU is that of all its processes, Ray's daemons among them. Everybody may have the same number of
asks in flight, and has uvloop, on which Ray's actors run too. Rounds of all clients take turns. The peers live in an
environment of their own with pinned versions (benchmarks/peers.txt), which the first run makes in the cache folder
unless --peers names one.

Exit status 1: a peer makes more debates a second than moot (the row of that name), moot less than --limit of the
floor, or, without HTTP, less than --times as many as autogen-core.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib
import json
import os
import platform
import statistics
import subprocess
import sys
import venv
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks import peers_server  # noqa: E402
from benchmarks.peers_work import ASKS, Client, Clock, Setup, questions  # noqa: E402

CLIENTS = {
    "moot": "peers_moot:debates",
    "moot, two hosts": "peers_moot:two_hosts",
    "aiohttp (floor)": "peers_asyncio:floor",
    "autogen-core": "peers_autogen:debates",
    "langgraph": "peers_langgraph:debates",
    "asyncio + openai": "peers_asyncio:with_openai",
    "asyncio + openai[aiohttp]": "peers_asyncio:with_openai_aiohttp",
    "sequential": "peers_asyncio:sequential",
    "a Ray call an ask": "peers_asyncio:ray_calls",
}
FLOOR, RAY_CALLS, SEQUENTIAL = "aiohttp (floor)", "a Ray call an ask", "sequential"
MOOT = ("moot", "moot, two hosts")  # one process that speaks HTTP, or two
OURS = {*MOOT, FLOOR, RAY_CALLS}  # run in moot's own environment
WITHOUT_HTTP = (*MOOT, "autogen-core", "langgraph", RAY_CALLS)
IN_FLIGHT = {0.0: 256}  # latency -> asks at once; else all that the debates have open, as far as files go
MOST_IN_FLIGHT = 6_000
Rows = dict[tuple[str, float | None, int], dict[str, list[float]]]  # client, latency (None: no HTTP), debates


async def measure(client: str, url: str, in_flight: int, number: int, warm_up: int) -> dict[str, float]:
    module, _, name = CLIENTS[client].partition(":")
    enter: Client = getattr(importlib.import_module(f"benchmarks.{module}"), name)
    async with enter(Setup(url, in_flight)) as debates:
        await debates(questions(warm_up, seed=1), Clock())
        clock = Clock()
        verdicts = await debates(questions(number, seed=0), clock)
        clock.stop()
    if len(verdicts) != number or not all(verdicts) or (url and set(verdicts) != {"42"}):
        raise RuntimeError(f"{client}: {number} debates came to {len(verdicts)} verdicts: {sorted(set(verdicts))[:5]}")
    return {"debates_per_s": number / clock.wall_s, "cpu_ms": clock.cpu_s / (number * ASKS) * 1e3}


def run_once(python: str, client: str, url: str, in_flight: int, number: int, warm_up: int) -> dict[str, float]:
    """One run in a fresh process; the server must have been asked as often as the debates need."""
    env = os.environ | {"PYTHONPATH": str(ROOT), "OPENAI_API_KEY": "none", "LANGSMITH_TRACING": "false"}
    arguments = [python, __file__, "--measure", client, url, str(in_flight), str(number), str(warm_up)]
    before = peers_server.stats(url)["answered"] if url else 0
    done = subprocess.run(arguments, env=env, capture_output=True, text=True, timeout=3600, check=False)
    if done.returncode:
        raise SystemExit(f"{client} failed:\n{done.stderr[-3000:]}")
    figures: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    if url:
        asked = int(peers_server.stats(url)["answered"]) - before
        if (missing := (number + warm_up) * ASKS - asked) > 0:
            raise SystemExit(f"{client} asked {missing} times too few")
    return figures


def rounds(options: argparse.Namespace, python: str) -> tuple[Rows, dict[str, float]]:
    rows: Rows = {}

    def run(client: str, latency_s: float | None, number: int, url: str) -> None:
        in_flight = min(3 * number, IN_FLIGHT.get(latency_s or 0.0, MOST_IN_FLIGHT) if url else MOST_IN_FLIGHT)
        warm_up = 1 if client == SEQUENTIAL else min(number, options.warm_up)
        with_python = sys.executable if client in OURS else python
        figures = run_once(with_python, client, url, in_flight, number, warm_up)
        for name, value in figures.items():
            rows.setdefault((client, latency_s, number), {}).setdefault(name, []).append(value)
        print(f"{client}, n={number}, latency={latency_s}: {figures}", file=sys.stderr, flush=True)

    with peers_server.server(0.0) as url:
        ceiling = peers_server.ceiling(url)
    for _ in range(options.rounds):
        for latency_s in options.latency:
            with peers_server.server(latency_s) as url:
                for number in options.n:
                    for client in CLIENTS:
                        if client in options.clients and client not in (SEQUENTIAL, RAY_CALLS):
                            run(client, latency_s, number, url)
                if SEQUENTIAL in options.clients:
                    run(SEQUENTIAL, latency_s, 2 if latency_s else 50, url)
        for number in options.n:
            for client in WITHOUT_HTTP:
                if client in options.clients and not options.only_http:
                    run(client, None, number, "")
    return rows, ceiling


def peers_python() -> str:
    """The Python of the peers' environment, made where it is not there yet."""
    listed = Path(__file__).with_name("peers.txt")
    digest = hashlib.sha256(listed.read_bytes()).hexdigest()[:12]
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = cache / "moot" / f"peers-{digest}"
    python, made = folder / "bin" / "python", folder / "made"
    if not made.exists():
        print(f"making {folder}", file=sys.stderr)
        venv.create(folder, with_pip=True, clear=True)
        subprocess.run([python, "-m", "pip", "install", "-q", "--no-deps", "-r", listed], check=True, timeout=1800)
        made.touch()
    return str(python)


def spread(values: list[float], digits: int) -> str:
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def of_moot(rows: Rows, key: tuple[str, float | None, int], name: str, ours: str = "moot") -> list[float]:
    """A client's figure over moot's, round by round."""
    mine = rows.get((ours, *key[1:]))
    return [value / our for value, our in zip(rows[key][name], mine[name], strict=True)] if mine else []


def table(rows: Rows, *, http: bool) -> Iterator[str]:
    yield "| debates | latency | client | debates/s | of moot's | CPU ms a call | of moot's |"
    yield "|---|---|---|---|---|---|---|"
    for key, figures in rows.items():
        client, latency_s, number = key
        if (latency_s is not None) == http:
            shown = "none" if latency_s is None else f"{latency_s:g} s"
            cells = [str(number), shown, client]
            for name, digits in (("debates_per_s", 1), ("cpu_ms", 2)):
                ratios = of_moot(rows, key, name)
                cells += [spread(figures[name], digits), spread(ratios, 2) if ratios else ""]
            yield f"| {' | '.join(cells)} |"


def failings(rows: Rows, options: argparse.Namespace) -> Iterator[str]:
    """Where moot, with one host as a recipe has it by itself, is not fast enough."""
    for key in rows:
        client, latency_s, number = key
        ratios = of_moot(rows, key, "debates_per_s")
        if client in MOOT or not ratios:
            continue
        ratio = statistics.median(ratios)
        most = 1 / options.limit if client == FLOOR else 1.0
        if latency_s is None and client == "autogen-core":
            most = 1 / options.times
        if ratio > most:
            where = f"{number} debates, latency {latency_s}"
            yield f"{where}: {client} has {ratio:.2f} of moot's debates/s, the limit is {most:.2f}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--n", type=int, nargs="+", default=[100, 1000], help="debates; 5000 takes its time")
    parser.add_argument("--latency", type=float, nargs="+", default=[0.0, 1.0], help="of the server, seconds")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--warm-up", type=int, default=1000, help="debates before the clock starts, at most --n")
    parser.add_argument("--clients", nargs="+", choices=CLIENTS, default=list(CLIENTS), metavar="CLIENT")
    parser.add_argument("--only-http", action="store_true", help="leave the second table out")
    parser.add_argument("--peers", help="a Python in whose environment benchmarks/peers.txt is installed")
    parser.add_argument("--limit", type=float, default=0.8, help="moot's debates/s, of the floor's")
    parser.add_argument("--times", type=float, default=2.0, help="moot's debates/s without HTTP, of autogen-core's")
    parser.add_argument("--json", type=Path, help="also write the figures there")
    parser.add_argument("--measure", nargs=5, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        import uvloop

        client, url, *numbers = options.measure
        print(json.dumps(uvloop.run(measure(client, url, *map(int, numbers)))))
        return 0
    rows, ceiling = rounds(options, options.peers or peers_python())
    print("\n".join(table(rows, http=True)))
    print(f"\nThe server alone: {ceiling['calls_per_s']:.0f} calls/s, {ceiling['cpu_ms']:.3f} ms of its CPU a call\n")
    print("\n".join(table(rows, http=False)))
    if options.json:
        machine = {"python": platform.python_version(), "platform": platform.platform(), "cores": os.cpu_count()}
        told = [{"client": key[0], "latency_s": key[1], "debates": key[2], **found} for key, found in rows.items()]
        text = json.dumps({"machine": machine, "server": ceiling, "rows": told}, indent=2)
        options.json.write_text(text + "\n")
    failed = list(failings(rows, options))
    print("\n".join(failed), file=sys.stderr)
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
