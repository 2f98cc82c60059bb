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
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from itertools import takewhile
from pathlib import Path
from typing import Any, TypeVar
from urllib.request import urlopen

import msgspec

from engine.record.journal import read_journal
from protocols.machine import AgentFailed, Replied
from tests.integration.chaos_account import POINTS_A_RUN, Account, Point, Strike, tally
from tests.integration.command import Moot, Process, RunOnDisk, check_clean, moot_in, timeless, waited
from tests.integration.fault_server import fault_server, read_log, signature
from tests.integration.local_cluster import LocalCluster, local_cluster, sessions

T = TypeVar("T")

TITLES: Mapping[str, str] = {
    "arena": "ray::ArenaActor",
    "agent host": "ray::AgentActor",
    "keeper": "ray::Keeper",
    "trainer": "RayTrainWorker",
    "feed": "ray::FeedActor",
}
RAYLET = "raylet/raylet "
DEBATES, ASKS, EVENTS = 200, 1200, 1400  # three agents in two rounds; each debate's opening is an event too
GONE_S, END_S = 90.0, 240.0
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

    def __init__(self, moot: Moot, cluster: LocalCluster, log: Path, url: str) -> None:
        self._moot, self._cluster, self._log, self._url = moot, cluster, log, url
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
        """A run that is struck at these points, to its end: on a busy machine it may come before the last of them."""
        began = time.time()
        one = OnCluster(self._moot, RunOnDisk(self._moot.folder / name), self._cluster, self._url)
        struck = len(list(takewhile(one.strike, points)))
        found = self._account(name, one, one.end(), began)
        return msgspec.structs.replace(found, missed=points[struck:])

    def _account(self, name: str, one: Struck, process: Process, began: float) -> Account:
        tries: dict[str, list[float]] = defaultdict(list)
        for seen in read_log(self._log):
            if seen.at >= began:
                tries[seen.ask].append(seen.at)
        outcomes = one.outcomes()
        found = tally(name, tries, {signature(text): at for _, text, at in outcomes}, one.strikes)
        said, faults, run = {ask: text for ask, text, _ in outcomes}, found.faults, one.run
        times = Counter(ask for ask, _, _ in outcomes)
        faults += [f"{name}: {ask} is on record {number} times" for ask, number in times.items() if number > 1]
        faults += [
            f"{name}: the reply to {ask} was on record and is lost"
            for strike in one.strikes
            for ask, text in strike.on_record.items()
            if said.get(ask) != text
        ]
        faults += [f"{name}: {note}" for note in run.notes("debate")]
        graphs = {key: timeless(debate) for key, debate in run.debates("debate").items()}
        faults += [
            f"{name}: {key} is not as in the untouched run"
            for key in self._whole.keys() | graphs.keys()
            if self._whole.get(key) != graphs.get(key)
        ]
        if len(said) != ASKS or process.outcome()["closed"] != DEBATES:
            faults.append(f"{name}: {len(said)} asks of {ASKS} came to something")
        return found


def accounts(run: Callable[[str, Sequence[Point]], Account], planned: Iterable[Sequence[Point]]) -> Iterator[Account]:
    """A run, or a loop, for each of these lists of points, and further ones for what came too late in them.

    Args: run: makes one of this name, strikes it, and sees to its end.
    """
    missed: list[Point] = []
    number = 0
    for points in planned:
        account = run(f"run-{number}", points)
        yield account
        missed += account.missed
        number += 1
    while missed:
        account = run(f"run-{number}", missed[:POINTS_A_RUN])
        yield account
        assert account.figures, f"{account.missed} cannot be struck"
        missed = [*account.missed, *missed[POINTS_A_RUN:]]
        number += 1


class Struck:
    """One run under its strikes, submitted again whenever it has ended without being done.

    Args:
        command: that starts it.
        stage: whose events count.
    """

    def __init__(self, moot: Moot, run: RunOnDisk, command: Sequence[str], stage: str = "debate") -> None:
        self.run, self.stage, self.strikes = run, stage, list[Strike]()
        self.process = moot.start(*command, "--run-dir", str(run.path), "--json")
        self._moot = moot
        self._events = 0  # on record at the last strike

    def actors(self, title: str) -> list[int]:
        """The run's processes of this title."""
        return self.process.members(title)

    def outcomes(self) -> list[tuple[str, str, float]]:
        """Ask, reply, and when it was put on record; a failure counts as a reply of its own words."""
        found = []
        for file in sorted((self.run.path / "journal" / self.stage).glob("*.sqlite")):
            for at, event in (item for recorded in read_journal(file) for item in recorded.events):
                if isinstance(event, Replied):
                    found.append((event.reply.ask_id, event.reply.text, at))
                elif isinstance(event, AgentFailed):
                    found.append((event.failure.ask_id, event.failure.reason, at))
        return found

    def strike(self, point: Point) -> bool:
        """Kill, once so many more events are on record and the run is up. Returns: whether it was not over before."""
        target = self._events + point.after
        self._until(lambda: self.run.num_events(self.stage) >= target)
        self.until_up(point)
        if not self.process.running:
            return False
        self._events = self.run.num_events(self.stage)
        on_record = {ask: text for ask, text, _ in self.outcomes()}
        at = time.time()
        self.kill(point)
        self.strikes.append(Strike(point, at, self.over(), on_record))
        return True

    def over(self) -> float:
        """The time, once nothing comes any more from what has died."""
        return time.time()

    def until_up(self, point: Point) -> None:
        """Wait until there is a process of the kind to be killed; for a driver, one that it has started."""
        self._until(lambda: bool(self.actors(TITLES.get(point.kind, TITLES["agent host"]))))

    def kill(self, point: Point) -> None:
        """Returns once all that dies with it is gone, but for what follows the driver."""
        if point.kind in TITLES:
            kill_all([one_of(self.actors(TITLES[point.kind]), point)])
        else:
            self.process.signal(signal.SIGKILL)
            self.process.wait()

    def end(self) -> Process:
        """Returns: the command that ended it."""
        self._until(lambda: False)
        return self.process

    def revive(self) -> None:
        """What a run needs to be submitted again is up."""

    def _until(self, ready: Callable[[], bool]) -> None:
        """Wait until it is so, or, where it never is, until the run is done."""
        while not self.process.running_when(ready, END_S):
            assert not self.process.running, f"it hangs: {self.process.stderr}"
            code = self.process.wait()
            check_clean(self.process.stderr)
            if code == 0:
                return
            assert code in (2, 3, -signal.SIGKILL) and self.strikes, self.process.stderr
            self._submit_again(self.strikes[-1])

    def _submit_again(self, strike: Strike) -> None:
        strike.resubmissions += 1
        assert strike.resubmissions <= MAX_RESUBMISSIONS, self.process.stderr
        assert waited(lambda: not any(map(self.actors, TITLES.values())), GONE_S), "actors outlived their driver"
        strike.over = self.over()
        self.revive()
        self.process = self._moot.start("resume", str(self.run.path), "--json")


class OnCluster(Struck):
    """On a cluster, whose nodes may be lost too, with the service at ``url``."""

    def __init__(self, moot: Moot, run: RunOnDisk, cluster: LocalCluster, url: str) -> None:
        self._cluster, self._url = cluster, url
        super().__init__(moot, run, ("run", "society.yaml"))

    def actors(self, title: str) -> list[int]:
        return self._cluster.members(title)

    def over(self) -> float:
        """What was sent before the end waits in the service's sockets, and is logged before a later request is."""
        with urlopen(f"{self._url}/v1/models", timeout=GONE_S) as answer:
            answer.read()
        return super().over()

    def until_up(self, point: Point) -> None:
        super().until_up(point)
        if point.kind in ("raylet", "node"):
            self._until(lambda: bool(self._cluster.joined()))

    def _victims(self) -> list[Process]:
        """Workers on which something of the run lives, if there are any."""
        joined = self._cluster.joined()
        return list(filter(_actors_on, joined)) or joined

    def kill(self, point: Point) -> None:
        cluster = self._cluster
        if point.kind in ("raylet", "node"):
            worker = one_of(self._victims(), point)
            if point.kind == "node":
                cluster.lose(worker)
            else:
                actors = _actors_on(worker)
                # what ps shows of a busy process can be empty for a moment
                assert waited(lambda: bool(sessions([worker.pid], RAYLET)), GONE_S), "it has no raylet"
                kill_all(sessions([worker.pid], RAYLET))
                assert waited(lambda: not any(map(alive, actors)), GONE_S), "actors outlived their raylet"
                worker.wait()
            cluster.fill()
        else:
            super().kill(point)
            if point.kind == "head":
                cluster.lose(cluster.head)

    def revive(self) -> None:
        if not self._cluster.head.running:
            for worker in self._cluster.workers:
                self._cluster.lose(worker)
            self._cluster.start()


def _actors_on(node: Process) -> list[int]:
    return [pid for title in TITLES.values() for pid in sessions([node.pid], title)]


def one_of(found: Sequence[T], point: Point) -> T:
    return found[int(point.which * len(found))]


def kill_all(pids: Sequence[int]) -> None:
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    assert waited(lambda: not any(map(alive, pids)), GONE_S)


def alive(pid: int) -> bool:
    with suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


@contextmanager
def chaos_in(folder: Path) -> Iterator[Chaos]:
    """A cluster and a service, up, and the untouched run done."""
    folder.mkdir(parents=True, exist_ok=True)
    log = folder / "asked"
    with (
        fault_server(log, 0.0, "--latency-s", "0.1", "--sign") as url,
        moot_in(folder) as moot,
        local_cluster(moot) as cluster,
    ):
        (folder / "society.yaml").write_text(RECIPE.replace("URL", f"{url}/v1"))
        chaos = Chaos(moot, cluster, log, url)
        chaos.untouched()
        yield chaos
