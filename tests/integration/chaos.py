"""Runs whose processes are killed again and again, and an account of what that cost.

A run of 200 debates on a local cluster of three nodes is struck at seeded moments, counted in events on record, so that
a seed means the same on any machine. What was asked is known from outside: from the log of a service that no kill
reaches, whose replies depend on the ask alone and are signed with its name.
"""

from __future__ import annotations

import os
import signal
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from engine.journal import read_journal
from protocols.machine import AgentFailed, Replied
from tests.integration.chaos_account import Account, Point, Strike, tally
from tests.integration.command import Moot, Process, RunOnDisk, check_clean, moot_in, timeless, waited
from tests.integration.fault_server import fault_server, read_log, signature
from tests.integration.local_cluster import LocalCluster, local_cluster, sessions

TITLES: Mapping[str, str] = {"arena": "ray::ArenaActor", "agent host": "ray::AgentActor", "keeper": "ray::Keeper"}
RAYLET = "raylet/raylet "
DEBATES, ASKS, EVENTS = 200, 1200, 1400  # three agents in two rounds; each debate's opening is an event too
GONE_S, UP_S, END_S = 90.0, 120.0, 240.0
MAX_RESUBMISSIONS = 3  # of a run after one kill
RECIPE = f"""
name: society
seed: 7
tasks: {{source: arithmetic, level: mixed10, train: {DEBATES}, test: 0}}
models:
  twin: {{backend: openai, model: twin, base_url: URL, replicas: 2, max_restarts: 50, limits: {{max_concurrency: 8}}}}
  lone: {{backend: openai, model: lone, base_url: URL, max_restarts: 50, limits: {{max_concurrency: 8}}}}
agents:
  ada: {{model: twin}}
  bo: {{model: twin}}
  cy: {{model: lone}}
protocol: {{name: society, rounds: 2}}
cast: {{generator: [ada, bo, cy]}}
run: {{num_arenas: 2, max_open: 40}}
"""


class Chaos:
    """See the module. Use ``chaos_in``."""

    def __init__(self, moot: Moot, cluster: LocalCluster, log: Path) -> None:
        self._moot, self._cluster, self._log = moot, cluster, log
        self._whole: dict[str, Any] = {}

    def untouched(self) -> None:
        """The run that all others must come to."""
        process = self._moot("run", "society.yaml", "--run-dir", "untouched", "--json")
        assert process.wait(END_S) == 0, process.stderr
        run = RunOnDisk(self._moot.folder / "untouched")
        assert len(run.outcomes("debate")) == ASKS and run.num_events("debate") == EVENTS
        self._whole = {key: timeless(debate) for key, debate in run.debates("debate").items()}
        assert len(self._whole) == DEBATES

    def run(self, name: str, points: Sequence[Point]) -> Account:
        """A run that is struck at these points, to its end."""
        began = time.time()
        one = _Struck(self._moot, self._cluster, name)
        for point in points:
            one.strike(point)
        process = one.end()
        return self._account(one, process, began)

    def _account(self, one: _Struck, process: Process, began: float) -> Account:
        tries: dict[str, list[float]] = defaultdict(list)
        for seen in read_log(self._log):
            if seen.at >= began:
                tries[seen.ask].append(seen.at)
        outcomes = one.outcomes()
        found = tally(one.name, tries, {signature(text): at for _, text, at in outcomes}, one.strikes)
        said, faults, run = {ask: text for ask, text, _ in outcomes}, found.faults, one.run
        times = Counter(ask for ask, _, _ in outcomes)
        faults += [f"{one.name}: {ask} is on record {number} times" for ask, number in times.items() if number > 1]
        faults += [
            f"{one.name}: the reply to {ask} was on record and is lost"
            for strike in one.strikes
            for ask, text in strike.on_record.items()
            if said.get(ask) != text
        ]
        faults += [f"{one.name}: {note}" for note in run.notes("debate")]
        graphs = {key: timeless(debate) for key, debate in run.debates("debate").items()}
        faults += [
            f"{one.name}: {key} is not as in the untouched run"
            for key in self._whole.keys() | graphs.keys()
            if self._whole.get(key) != graphs.get(key)
        ]
        if len(said) != ASKS or process.outcome()["closed"] != DEBATES:
            faults.append(f"{one.name}: {len(said)} asks of {ASKS} came to something")
        return found


class _Struck:
    """One run under its strikes, submitted again whenever it has ended without being done."""

    def __init__(self, moot: Moot, cluster: LocalCluster, name: str) -> None:
        self.name, self.run = name, RunOnDisk(moot.folder / name)
        self.strikes: list[Strike] = []
        self._moot, self._cluster = moot, cluster
        self._process = moot.start("run", "society.yaml", "--run-dir", name, "--json")
        self._events = 0  # on record at the last strike

    def outcomes(self) -> list[tuple[str, str, float]]:
        """Ask, reply, and when it was put on record; a failure counts as a reply of its own words."""
        found = []
        for file in sorted((self.run.path / "journal" / "debate").glob("*.sqlite")):
            for at, event in (item for recorded in read_journal(file) for item in recorded.events):
                if isinstance(event, Replied):
                    found.append((event.reply.ask_id, event.reply.text, at))
                elif isinstance(event, AgentFailed):
                    found.append((event.failure.ask_id, event.failure.reason, at))
        return found

    def strike(self, point: Point) -> None:
        target = self._events + point.after
        self._until(lambda: self.run.num_events("debate") >= target)
        title = TITLES.get(point.kind, TITLES["agent host"])
        self._until(lambda: bool(self._cluster.members(title)))
        self._events = self.run.num_events("debate")
        on_record = {ask: text for ask, text, _ in self.outcomes()}
        at = time.time()
        self._kill(point)
        self.strikes.append(Strike(point, at, time.time(), on_record))

    def _kill(self, point: Point) -> None:
        """Returns once all that dies with it is gone, but for what follows the driver."""

        def one_of(found: Sequence[Any]) -> Any:
            return found[int(point.which * len(found))]

        cluster, process = self._cluster, self._process
        if point.kind in TITLES:
            _kill_all([one_of(cluster.members(TITLES[point.kind]))])
        elif point.kind == "raylet":
            worker = one_of(cluster.workers)
            actors = sessions([worker.pid], "ray::")
            _kill_all(sessions([worker.pid], RAYLET))
            assert waited(lambda: not set(sessions([worker.pid], "ray::")) & set(actors), GONE_S)
            cluster.replace(worker)
        elif point.kind == "node":
            worker = one_of(cluster.workers)
            cluster.lose(worker)
            cluster.replace(worker)
        else:
            process.signal(signal.SIGKILL)
            process.wait()
            if point.kind == "head":
                cluster.lose(cluster.head)

    def end(self) -> Process:
        """Returns: the command that ended it."""
        self._until(lambda: False)
        return self._process

    def _until(self, ready: Any) -> None:
        """Wait until it is so, or, where it never is, until the run is done."""
        while not self._process.running_when(ready, END_S):
            code = self._process.wait()
            if code == 0:
                check_clean(self._process.stderr)
                return
            assert self.strikes, self._process.stderr
            self._submit_again(self.strikes[-1], code)

    def _submit_again(self, strike: Strike, code: int) -> None:
        assert code in (2, 3, -signal.SIGKILL), self._process.stderr
        check_clean(self._process.stderr)
        strike.resubmissions += 1
        assert strike.resubmissions <= MAX_RESUBMISSIONS, self._process.stderr
        cluster = self._cluster
        assert waited(lambda: not any(map(cluster.members, TITLES.values())), GONE_S), "actors outlived their driver"
        strike.over = time.time()
        if not cluster.head.running:
            for worker in cluster.workers:
                cluster.lose(worker)
            cluster.start()
        self._process = self._moot.start("resume", self.name, "--json")


def _kill_all(pids: Sequence[int]) -> None:
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    assert waited(lambda: not any(map(_alive, pids)), GONE_S)


def _alive(pid: int) -> bool:
    with suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


@contextmanager
def chaos_in(folder: Path) -> Iterator[Chaos]:
    """A cluster and a service, up, and the untouched run done."""
    log = folder / "asked"
    with (
        fault_server(log, 0.0, "--latency-s", "0.1", "--sign") as url,
        moot_in(folder) as moot,
        local_cluster(moot) as cluster,
    ):
        (folder / "society.yaml").write_text(RECIPE.replace("URL", f"{url}/v1"))
        chaos = Chaos(moot, cluster, log)
        chaos.untouched()
        yield chaos
