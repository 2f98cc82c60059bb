"""What the journal costs when it is written, and how long a million recorded replies take to be replayed.

    python benchmarks/journal.py [--replies 1000000] [--debates 10000] [--folder FOLDER] [--json FILE]

Writing: replies of some 800 bytes to ``--debates`` open debates in turn, in batches of 1, 10, 100 and 1,000; commits a
second, and user and system time of the process an event. Both ways to sync; the disk is that of ``--folder``.

Replaying, in one process of its own each: ``read_journal`` over all of it; an arena's ``recover`` where every reply is
one of an open debate, so that each is checked, decoded and handed to its machine, 8 of 9 of a debate of three agents
and two rounds; and where all debates but the last ``--debates`` are closed, as when a long run is resumed.

Exit status 1: more than 60 s until a run of a million replies, all but its last debates closed, is taken up.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from engine.record.journal import CloseEntry, Entry, EventEntry, Journal, read_journal  # noqa: E402
from protocols.catalogue import load_protocol_prompts  # noqa: E402
from protocols.conversation import Player  # noqa: E402
from protocols.graph import Debate, encode_debate  # noqa: E402
from protocols.machine import Close, Event, Machine, Opened, Record, Replied, Request  # noqa: E402
from protocols.message import Ask, Reply, Usage  # noqa: E402
from protocols.society import Society, SocietySettings  # noqa: E402
from protocols.task import Task  # noqa: E402

MAX_REPLAY_S, PER_REPLIES = 60.0, 1_000_000
AGENTS = ("ada", "bo", "cy")
ROUNDS, TURNS = 3, 9
LEFT_OPEN = 1  # replies that an open debate still waits for
SECONDS = 5.0  # of writing, at most, in each way
TEXT = "Let us count again, step by step, and see where the two of us part ways. " * 10
SETTINGS = SocietySettings(rounds=ROUNDS)
PROMPTS = load_protocol_prompts("society", SETTINGS)
PLAYERS = {"generator": tuple(Player(name=name) for name in AGENTS)}


def build() -> Machine:
    return Society(SETTINGS, PLAYERS, PROMPTS)


def reply_to(ask_id: str) -> Replied:
    text = f"{TEXT}The answer is \\boxed{{{len(ask_id) % 3}}}."
    usage = Usage(prompt_tokens=900, completion_tokens=180)
    return Replied(Reply(ask_id=ask_id, text=text, model="m", usage=usage, latency_s=1.5))


def opened(number: int) -> Opened:
    debate_id = f"debate/t{number:07d}"
    task = Task(id=f"t{number:07d}", question=f"What is {number} + {number} * 3 - 2?", gold=(str(4 * number - 2),))
    return Opened(debate_id=debate_id, task=task, seed=number)


def nodes() -> tuple[list[str], Debate]:
    """What is asked in a debate, in order, without its id; and the debate that comes of it."""
    first, machine = opened(0), build()
    debate = Debate(id=first.debate_id, task=first.task, protocol="society", seed=0, cast={"generator": AGENTS})
    waiting, found = list[Ask](), []
    event: Event = first
    while not machine.closed:
        for command in machine.receive(event):
            if isinstance(command, Request):
                waiting.append(command.ask)
            elif isinstance(command, Record):
                debate.add(command.utterance, command.edges)
            elif isinstance(command, Close):
                debate.close(command.verdict)
        if waiting:
            found.append(waiting[0].id.partition("#")[2])
            event = reply_to(waiting.pop(0).id)
    assert len(found) == TURNS
    return found, debate


def entries(number: int, asked: list[str], count: int) -> Iterator[Entry]:
    first = opened(number)
    yield EventEntry(first.debate_id, 0, 1.0, first)
    for seq, node in enumerate(asked[:count], 1):
        yield EventEntry(first.debate_id, seq, 1.0 + seq, reply_to(f"{first.debate_id}#{node}"))


def write(folder: Path, debates: int, batch: int, sync: str) -> dict[str, Any]:
    """Batches of replies, each of another debate than the one before it."""
    journal = Journal(folder / "write.sqlite", fingerprint="f", sync=sync)  # type: ignore[arg-type]
    journal.commit(EventEntry(f"d{number}", 0, 1.0, opened(number)) for number in range(debates))
    events = [reply_to(f"d{number}#0") for number in range(1000)]
    num_commits = seq = number = 0
    began, cpu = time.perf_counter(), time.process_time()
    while time.perf_counter() - began < SECONDS and num_commits * batch < 50 * debates:
        rows = []
        for _ in range(batch):
            if number % debates == 0:
                seq += 1
            rows.append(EventEntry(f"d{number % debates}", seq, 1.0, events[number % 1000]))
            number += 1
        journal.commit(rows)
        num_commits += 1
    wall_s, cpu_s = time.perf_counter() - began, time.process_time() - cpu
    journal.close()
    (folder / "write.sqlite").unlink()
    return {
        "sync": sync,
        "batch": batch,
        "commits_per_s": num_commits / wall_s,
        "events_per_s": num_commits * batch / wall_s,
        "cpu_us_per_event": 1e6 * cpu_s / (num_commits * batch),
    }


def make_journal(path: Path, replies: int, open_debates: int | None) -> int:
    """A journal of so many replies. ``open_debates``: the last so many are open, and the rest closed; None: all open.

    Returns: how many replies it holds.
    """
    asked, debate = nodes()
    journal, held = Journal(path, fingerprint="f", sync="normal"), 0
    total = -(-replies // (TURNS - LEFT_OPEN if open_debates is None else TURNS))
    batch: list[Entry] = []
    for number in range(total):
        is_open = open_debates is None or number >= total - open_debates
        count = TURNS - LEFT_OPEN if is_open else TURNS
        batch += entries(number, asked, count)
        held += count
        if not is_open:
            debate.id = f"debate/t{number:07d}"
            batch.append(CloseEntry(debate.id, 20.0, encode_debate(debate)))
        if len(batch) >= 5000 or number == total - 1:
            journal.commit(batch)
            batch = []
    journal.close()
    return held


async def tell(packed: bytes) -> None:
    """A host that answers nothing."""


async def recover(path: Path) -> int:
    """Returns: how many debates are open."""
    from actors.post.collector import calm_collector
    from engine.debates.arena import Arena

    calm_collector()
    arena = Arena(
        "a",
        path,
        fingerprint="f",
        build=build,
        protocol="society",
        cast={"generator": AGENTS},
        deadline_s=3600.0,
        models=dict.fromkeys(AGENTS, "m"),
        hosts={"m": {"m": tell}},
    )
    _, still_open = await arena.recover(())  # as a stage does, which has read what is closed
    await arena.close()
    return len(still_open)


def replay(what: str, path: Path) -> dict[str, Any]:
    """In this process."""
    began, cpu = time.perf_counter(), time.process_time()
    debates = sum(1 for _ in read_journal(path)) if what == "read" else asyncio.run(recover(path))
    return {
        "wall_s": time.perf_counter() - began,
        "cpu_s": time.process_time() - cpu,
        "debates": debates,
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


def replay_apart(what: str, path: Path) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, __file__, "--replay", what, str(path)], cwd=ROOT, capture_output=True, text=True, check=True
    )
    told: dict[str, Any] = json.loads(done.stdout)
    return told


def replays(folder: Path, replies: int, debates: int) -> list[dict[str, Any]]:
    rows = []
    for open_debates, works in ((None, ("read", "recover")), (debates, ("recover",))):
        path = folder / "replay.sqlite"
        held = make_journal(path, replies, open_debates)
        for work in works:
            which = "all debates open" if open_debates is None else f"all closed but {debates}"
            row = {"what": f"{work}, {which}", "replies": held, "mb": path.stat().st_size / 2**20}
            rows.append(row | replay_apart(work, path))
        path.unlink()
    return rows


def shown(written: list[dict[str, Any]], replayed: list[dict[str, Any]]) -> None:
    print("| sync | batch | commits/s | events/s | CPU us an event |\n|---|---|---|---|---|")
    for row in written:
        print(
            f"| {row['sync']} | {row['batch']} | {row['commits_per_s']:,.0f} | {row['events_per_s']:,.0f} "
            f"| {row['cpu_us_per_event']:.1f} |"
        )
    print("\n| replay | replies | file MiB | seconds | CPU s | us a reply | peak MiB |\n|---|---|---|---|---|---|---|")
    for row in replayed:
        print(
            f"| {row['what']} | {row['replies']:,} | {row['mb']:,.0f} | {row['wall_s']:.1f} | {row['cpu_s']:.1f} "
            f"| {1e6 * row['wall_s'] / row['replies']:.1f} | {row['peak_mb']:,.0f} |"
        )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--replies", type=int, default=1_000_000)
    parser.add_argument("--debates", type=int, default=10_000, help="open at once")
    parser.add_argument("--folder", type=Path, help="where to write; default: a temporary folder")
    parser.add_argument("--json", type=Path, help="also write the figures there")
    parser.add_argument("--replay", nargs=2, metavar=("WHAT", "JOURNAL"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.replay:
        print(json.dumps(replay(options.replay[0], Path(options.replay[1]))))
        return 0
    folder = Path(tempfile.mkdtemp(dir=options.folder))
    try:
        written = [
            write(folder, options.debates, batch, sync) for sync in ("full", "normal") for batch in (1, 10, 100, 1000)
        ]
        replayed = replays(folder, options.replies, options.debates)
    finally:
        shutil.rmtree(folder)
    shown(written, replayed)
    if options.json:
        options.json.write_text(json.dumps({"written": written, "replayed": replayed}, indent=2) + "\n")
    resumed = replayed[-1]
    return int(resumed["wall_s"] / resumed["replies"] * PER_REPLIES > MAX_REPLAY_S)


if __name__ == "__main__":
    sys.exit(main())
