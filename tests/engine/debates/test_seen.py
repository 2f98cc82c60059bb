"""An arena and a host in one process, seen from outside: their figures agree, and each ask's span has its debate's."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from actors.agent import AgentHost, Limits
from actors.models.scripted import ScriptedBackend, ScriptedSettings
from actors.traces import Traces
from engine.debates.arena import Arena
from engine.live.arena_stats import ArenaStats
from engine.live.snapshot import Reading
from engine.live.summary import snapshot
from tests.engine.helpers import AGENTS, CAST, assignment, build, make_tasks

pytestmark = pytest.mark.asyncio

FLAKY = ScriptedSettings(faults={"refused": 0.2, "transient": 0.2}, latency_s=0.03)


async def run(path: Path, num_tasks: int, traces: Traces | None, *, stop_after: int = 1000) -> Reading:
    """Debates until all have closed, or so many replies are in. Returns: how things stand then."""
    host = AgentHost("m", ScriptedBackend(FLAKY), Limits(backoff_s=0.0), traces=traces)
    await host.start()

    async def tell(packed: bytes) -> None:
        host.tell("a", packed)

    async def send(packed: bytes) -> None:
        arena.deliver(packed)

    arena = Arena(
        "a",
        path,
        fingerprint="f",
        build=build,
        protocol="society",
        cast=CAST,
        deadline_s=60.0,
        models=dict.fromkeys(AGENTS, "m"),
        hosts={"m": {"m": tell}},
        sync="normal",
        traces=traces,
    )
    host.connect("a", send)
    closed, known = await arena.recover()
    num_closed = len(closed)
    done = {*known, *(item.debate_id for item in closed)}
    arena.open([given for task in make_tasks(num_tasks) if (given := assignment(task)).debate_id not in done])
    stats = ArenaStats()
    async with asyncio.timeout(30):
        while num_closed < num_tasks and stats.replies < stop_after:
            finished, stats = await arena.collect(0.01)
            num_closed += len(finished)
    await host.halt("enough")
    await arena.settle()
    await arena.close()
    told = host.stats()
    await host.close()
    return Reading(at_s=1.0, total=num_tasks, arenas={"a": stats}, hosts={"m": told}, models={"m": "m"})


async def test_what_arenas_and_hosts_count_agrees(tmp_path: Path) -> None:
    reading = await run(tmp_path / "a.sqlite", 20, None)
    host, arena = reading.hosts["m"], reading.arenas["a"]
    assert sum(agent.replies for agent in host.agents.values()) == host.replies == arena.replies
    assert sum(agent.failures for agent in host.agents.values()) == sum(host.failures.values()) == arena.failures > 0
    assert sum(agent.completion_tokens for agent in host.agents.values()) == arena.usage.completion_tokens
    assert sum(sum(agent.latency) for agent in host.agents.values()) == host.replies
    assert arena.entries > arena.replies + arena.failures and 0 < arena.commits < arena.entries
    assert arena.commit_s > 0 and arena.journal_bytes > 10_000
    shown = snapshot(reading, reading, reading)
    assert (shown.queued, shown.running, shown.open, shown.holdup) == (0, 0, 0, "no debate is open yet")
    assert [pace.name for pace in shown.agents] == sorted(AGENTS)


async def test_a_debate_that_is_resumed_has_one_span_with_the_asks_of_both_processes(tmp_path: Path) -> None:
    asks: list[ReadableSpan] = []
    debates: list[ReadableSpan] = []
    asked: list[set[int]] = []  # traces, of each process
    for stop_after in (20, 1000):
        exporter = InMemorySpanExporter()
        await run(tmp_path / "a.sqlite", 12, Traces("r1", exporter=exporter), stop_after=stop_after)
        for span in exporter.get_finished_spans():
            (debates if span.name == "invoke_workflow society" else asks).append(span)
        asked.append({span.context.trace_id for span in exporter.get_finished_spans() if span.context is not None})
    ids = {span.context.span_id: span.context.trace_id for span in debates if span.context is not None}
    assert len(debates) == len(ids) == len(set(ids.values())) == 12
    assert asked[0] & asked[1], "no debate was interrupted: this test would show nothing"
    assert all(ask.parent is not None and ids[ask.parent.span_id] == ask.parent.trace_id for ask in asks)
    began = {(span.attributes or {})["gen_ai.conversation.id"]: span.start_time or 0 for span in debates}
    assert all(began[(ask.attributes or {})["gen_ai.conversation.id"]] <= (ask.start_time or 0) for ask in asks)
