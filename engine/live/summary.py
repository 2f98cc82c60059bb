"""Two readings of a run's totals in, one snapshot out. Pure.

The live display, the metrics and whoever controls the run from elsewhere show the same one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import reduce

import msgspec

from actors.agent import HostStats
from actors.post.histogram import Histogram
from actors.post.tally import AgentStats
from engine.live.arena_stats import ArenaStats
from engine.live.holdup import holdup
from engine.live.snapshot import AgentPace, JournalPace, ModelLoad, Reading, Snapshot
from protocols.message import Usage

FEW = 5  # closed debates from which on they say how fast the others will
SHARED_GATES = ("budget", "admission")  # every host of an account tells the same figures of them


def snapshot(now: Reading, earlier: Reading, began: Reading) -> Snapshot:
    """What is to be shown of a stage.

    Args:
        earlier: some seconds before, of the same stage; what came since makes the rates.
        began: the stage's first reading.
    """
    passed_s = max(now.at_s - earlier.at_s, 1e-6)
    agents = tuple(_agents(now, earlier))
    usage = _usage(now)
    open_now = sum(item.open for item in now.arenas.values())
    delays = _together(_lately(item.delays, _arena(earlier, name).delays) for name, item in now.arenas.items())
    found = Snapshot(
        stage=now.stage,
        total=now.total,
        closed=now.closed,
        open=open_now,
        set_aside=now.set_aside,
        left=max(0, now.total - now.closed - open_now),
        max_open=now.max_open,
        replies=sum(item.replies for item in now.arenas.values()),
        failures=sum(item.failures for item in now.arenas.values()),
        usage=usage,
        cost_usd=_cost_usd(now),
        debates_per_s=(now.closed - earlier.closed) / passed_s,
        replies_per_s=_gain(now, earlier, lambda stats: stats.replies) / passed_s,
        tokens_per_s=_gain(now, earlier, lambda stats: stats.usage.completion_tokens) / passed_s,
        queued=sum(stats.queued for stats in now.hosts.values()),
        running=sum(stats.running for stats in now.hosts.values()),
        eta_s=_eta_s(now, earlier, began),
        models=tuple(_models(now, earlier, passed_s)),
        agents=agents,
        slowest=max((pace for pace in agents if pace.median_s), key=lambda pace: pace.median_s or 0.0, default=None),
        journal=_journal(now, earlier, passed_s),
        delay_p50_s=delays.quantile(0.5) or None,
        delay_p99_s=delays.quantile(0.99) or None,
    )
    return msgspec.structs.replace(found, holdup=holdup(found))


def _arena(reading: Reading, name: str) -> ArenaStats:
    return reading.arenas.get(name) or ArenaStats()


def _usage(reading: Reading) -> Usage:
    return sum((item.usage for item in reading.arenas.values()), Usage())


def _gain(now: Reading, earlier: Reading, total: Callable[[ArenaStats], float]) -> float:
    """What a running total of the arenas rose by."""
    return sum(_rise(total(item), total(_arena(earlier, name))) for name, item in now.arenas.items())


def _rise(now: float, before: float) -> float:
    """Of a running total; one that is lower than before has begun anew."""
    return now - before if now >= before else now


def _cost_usd(now: Reading) -> float:
    """The purse knows the whole run's, where there is one."""
    purse = [stats.gates["budget"]["spent_usd"] for stats in now.hosts.values() if stats.gates.get("budget")]
    return max(purse) if purse else sum(stats.cost_usd for stats in now.hosts.values())


def _eta_s(now: Reading, earlier: Reading, began: Reading) -> float | None:
    """By the debates that closed in the window; where those are few, by all that closed since the stage began."""
    left = now.total - now.closed
    base = earlier if now.closed - earlier.closed >= FEW else began
    closed, passed_s = now.closed - base.closed, now.at_s - base.at_s
    return passed_s * left / closed if left and closed >= FEW else None


def _models(now: Reading, earlier: Reading, passed_s: float) -> Iterable[ModelLoad]:
    for model in dict.fromkeys(now.models.values()):
        names = [host for host, of in now.models.items() if of == model]
        up = {host: now.hosts[host] for host in names if host in now.hosts}
        pairs = [(stats, earlier.hosts.get(host)) for host, stats in up.items()]
        failures: Counter[str] = Counter()
        for stats, old in pairs:
            failures.update(_rises(stats.failures, old.failures if old else {}))
        yield ModelLoad(
            name=model,
            up=len(up),
            replicas=len(names),
            restarts=sum(now.restarts.get(host, 0) for host in names),
            queued=sum(stats.queued for stats in up.values()),
            running=sum(stats.running for stats in up.values()),
            limit=sum(stats.concurrency for stats in up.values()),
            replies_per_s=sum(_rise(stats.replies, old.replies if old else 0) for stats, old in pairs) / passed_s,
            retries=int(sum(_rise(stats.retries, old.retries if old else 0) for stats, old in pairs)),
            failures=dict(failures),
            gates=_gates(up.values()),
            engine=_engine(stats.backend for stats in up.values()),
        )


def _rises(now: Mapping[str, int], before: Mapping[str, int]) -> dict[str, int]:
    risen = {name: int(_rise(count, before.get(name, 0))) for name, count in now.items()}
    return {name: count for name, count in risen.items() if count}


def _gates(hosts: Iterable[HostStats]) -> dict[str, dict[str, float]]:
    told: dict[str, dict[str, float]] = {}
    for stats in hosts:
        for gate, figures in stats.gates.items():
            mine = told.setdefault(gate, {})
            for name, value in figures.items():
                mine[name] = max(mine.get(name, value), value) if gate in SHARED_GATES else mine.get(name, 0.0) + value
    return told


def _engine(told: Iterable[Mapping[str, float]]) -> dict[str, float]:
    """Counts are added up; of a share the highest is told, as the fullest engine is the one that slows."""
    sums: dict[str, float] = {}
    for figures in told:
        for name, value in figures.items():
            sums[name] = max(sums.get(name, value), value) if name == "kv_usage" else sums.get(name, 0.0) + value
    return sums


def _agents(now: Reading, earlier: Reading) -> Iterable[AgentPace]:
    served: dict[str, list[tuple[AgentStats, AgentStats]]] = {}
    models: dict[str, str] = {}
    for host, stats in now.hosts.items():
        old = earlier.hosts.get(host)
        for agent, mine in stats.agents.items():
            before = old.agents.get(agent) if old else None
            served.setdefault(agent, []).append((mine, before or AgentStats()))
            models[agent] = now.models.get(host, host)
    for agent, pairs in sorted(served.items()):
        lately = _together(_lately(mine.latency, before.latency) for mine, before in pairs)
        ever = _together(Histogram(mine.latency) for mine, _ in pairs)
        yield AgentPace(
            name=agent,
            model=models[agent],
            queued=sum(mine.queued for mine, _ in pairs),
            running=sum(mine.running for mine, _ in pairs),
            replies=sum(mine.replies for mine, _ in pairs),
            median_s=(lately if lately.total else ever).quantile(0.5) or None,
        )


def _lately(now: Sequence[int], before: Sequence[int]) -> Histogram:
    """What was counted between two readings; all of it where the counting began anew."""
    gained = Histogram(now) - Histogram(before)
    return Histogram(now) if min(gained.counts) < 0 else gained


def _together(histograms: Iterable[Histogram]) -> Histogram:
    return reduce(Histogram.__add__, histograms, Histogram())


def _journal(now: Reading, earlier: Reading, passed_s: float) -> JournalPace:
    commits = _gain(now, earlier, lambda stats: stats.commits)
    took_s = [_rise(item.commit_s, _arena(earlier, name).commit_s) for name, item in now.arenas.items()]
    return JournalPace(
        commit_s=sum(took_s) / commits if commits else 0.0,
        batch=_gain(now, earlier, lambda stats: stats.entries) / commits if commits else 0.0,
        busy=max(took_s, default=0.0) / passed_s,
        size_bytes=sum(item.journal_bytes for item in now.arenas.values()),
    )
