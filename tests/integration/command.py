"""The real command line in processes of its own, and what its runs leave behind."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import msgspec
from click.testing import CliRunner

from engine.cli import main
from engine.live.progress import Progress
from engine.record.journal import read_journal, read_notes
from engine.run import Outcome, start
from protocols.errors import JournalError
from protocols.graph import Debate, decode_debate
from protocols.machine import AgentFailed, Event, Replied

ROOT = Path(__file__).parents[2]
GONE_S = 30.0  # Ray's processes follow their driver within this
SOON_S = 2.0  # that a process may take to end by itself when nobody looks at how it ends
NOT_STARTED = "Ray cannot be started"  # on a machine so busy that Ray gives up after its 30 s


class Process:
    """One command in a session of its own, so that everything it starts can be found and ended by it.

    Output goes to files: a pipe would stay open as long as any of Ray's processes holds it.
    """

    def __init__(self, command: Sequence[str], folder: Path, env: dict[str, str], cwd: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        number = len(list(folder.glob("*.out")))
        self._out, self._err = folder / f"{number}.out", folder / f"{number}.err"
        with open(self._out, "wb") as out, open(self._err, "wb") as err:
            self._popen = subprocess.Popen(command, stdout=out, stderr=err, env=env, cwd=cwd, start_new_session=True)
        self.pid = self._popen.pid

    @property
    def stdout(self) -> str:
        return self._out.read_text()

    @property
    def stderr(self) -> str:
        return self._err.read_text()

    @property
    def running(self) -> bool:
        return self._popen.poll() is None

    def wait(self, timeout_s: float = 600.0) -> int:
        return self._popen.wait(timeout_s)

    def running_when(self, ready: Callable[[], bool], timeout_s: float = 600.0) -> bool:
        """Poll until it is so or the command has ended. Returns: whether it is so and the command still runs."""
        return waited(lambda: ready() or not self.running, timeout_s) and self.running

    def signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def signal_group(self, number: int) -> None:
        os.killpg(self.pid, number)

    def members(self, title: str = "") -> list[int]:
        """The live processes of this session whose command line contains ``title``."""
        listed = subprocess.run(
            ["ps", "-e", "-ww", "-o", "pid=,sess=,stat=,args="], capture_output=True, text=True, check=True, timeout=60
        )
        rows = [line.split(None, 3) for line in listed.stdout.splitlines()]
        return [
            int(row[0])
            for row in rows
            if len(row) == 4 and row[1] == str(self.pid) and not row[2].startswith("Z") and title in row[3]
        ]

    def all_gone(self) -> bool:
        return waited(lambda: not self.members(), GONE_S)

    def kill(self) -> None:
        """All of it at once, the hosts too, which would go on for a moment."""
        self.signal_group(signal.SIGKILL)
        self.wait()
        self._kill_members()

    def _kill_members(self) -> None:
        for pid in self.members():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def end(self) -> None:
        """Whatever of it still runs is killed; these are all processes that the test started."""
        if self.running:
            self.signal_group(signal.SIGKILL)
            self.wait()
        waited(lambda: not self.members(), SOON_S)
        self._kill_members()

    def outcome(self) -> dict[str, Any]:
        """The one JSON object on stdout."""
        lines = self.stdout.splitlines()
        assert len(lines) == 1, f"stdout is not one line: {self.stdout!r}; stderr: {self.stderr}"
        found: dict[str, Any] = json.loads(lines[0])
        return found

    def sentence(self) -> str:
        """The last line on stderr, after checking that nothing there is a traceback or Ray's own talk."""
        check_clean(self.stderr)
        return self.stderr.strip().splitlines()[-1]


def check_clean(stderr: str) -> None:
    for ugly in ("Traceback", "Error:", "(pid=", "core_worker", "WARNING", "ray::", "\x1b["):
        assert ugly not in stderr, stderr


class Moot:
    """``moot`` as somebody calls it in ``folder``, with home and temporary folders of its own and no Ray settings."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.home = folder, folder / "home"
        self.temp = Path(tempfile.mkdtemp(prefix="moot-"))  # short: Ray's sockets lie in it
        self.home.mkdir(parents=True, exist_ok=True)
        self._processes: list[Process] = []
        self.env = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
        self.env |= {"PYTHONPATH": str(ROOT), "HOME": str(self.home), "TMPDIR": str(self.temp)}

    def start(self, *args: str) -> Process:
        return self.start_command(sys.executable, "-m", "engine", *args)

    def start_command(self, *command: str) -> Process:
        process = Process(command, self.folder / "output", self.env, self.folder)
        self._processes.append(process)
        return process

    def __call__(self, *args: str) -> Process:
        """Run to the end."""
        return self._until(Process.wait, args)

    def start_until(self, *args: str, ready: Callable[[Process], bool]) -> Process:
        """Start, and return while the command runs, once ``ready`` says so."""
        process = self._until(lambda process: process.running_when(lambda: ready(process)), args)
        assert process.running and ready(process), process.stderr
        return process

    def _until(self, wait: Callable[[Process], object], args: Sequence[str]) -> Process:
        """Start and wait; what fails for a busy machine alone is taken up again, as its message says."""
        process = self.start(*args)
        wait(process)
        for _ in range(2):
            if process.running or NOT_STARTED not in process.stderr:
                break
            process = self.start("resume", process.stderr.splitlines()[0].removeprefix("run "), "--json")
            wait(process)
        return process

    def end(self) -> None:
        for process in self._processes:
            process.end()
        shutil.rmtree(self.temp, ignore_errors=True)


@contextmanager
def moot_in(folder: Path) -> Iterator[Moot]:
    moot = Moot(folder)
    try:
        yield moot
    finally:
        moot.end()


def command_here(*arguments: str | Path) -> dict[str, Any]:
    """A command that ends well, in this process: one that starts no Ray, or joins the one that is there."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        done = CliRunner().invoke(main, [*map(str, arguments), "--json"])
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    assert done.exit_code == 0, done.output
    check_clean(done.stderr)
    outcome: dict[str, Any] = json.loads(done.stdout)
    return outcome


def run_here(recipe: Path, run_dir: Path, *overrides: str) -> Outcome:
    """``moot run`` in this process, on the Ray that it has joined: for what only the run's end is looked at."""
    return start("run", recipe, overrides, run_dir=run_dir, limit=None, progress=Progress(live=False))


def waited(ready: Callable[[], bool], timeout_s: float) -> bool:
    """Poll until it is so, for a fifth of the time at most: who looks slows what it waits for.

    Returns: whether it came to be.
    """
    deadline = time.monotonic() + timeout_s
    while True:
        began = time.monotonic()
        done = ready()
        now = time.monotonic()
        if done or now >= deadline:
            return done
        time.sleep(max(0.1, 4 * (now - began)))


class RunOnDisk:
    """What a run's folder holds, read as anybody could while it runs."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def _journals(self, stage: str) -> list[Path]:
        return sorted((self.path / "journal" / stage).glob("*.sqlite"))

    def events(self, stage: str) -> list[Event]:
        """Every event on record; none while a journal is being made."""
        found: list[Event] = []
        for file in self._journals(stage):
            with suppress(JournalError):
                found += [event for recorded in read_journal(file) for _, event in recorded.events]
        return found

    def num_events(self, stage: str) -> int:
        """How many are on record: cheap enough to be asked again and again."""
        found = 0
        for file in self._journals(stage):
            with suppress(sqlite3.Error), closing(sqlite3.connect(f"{file.as_uri()}?mode=ro", uri=True)) as db:
                found += db.execute("SELECT count(*) FROM events").fetchone()[0]  # none while it is being made
        return found

    def replies(self, stage: str) -> list[str]:
        """The asks whose reply is on record."""
        return [event.reply.ask_id for event in self.events(stage) if isinstance(event, Replied)]

    def outcomes(self, stage: str) -> list[str]:
        """The asks that have been decided, either way."""
        failed = [event.failure.ask_id for event in self.events(stage) if isinstance(event, AgentFailed)]
        return self.replies(stage) + failed

    def notes(self, stage: str) -> list[str]:
        return [f"{note.kind} {note.debate_id}" for file in self._journals(stage) for note in read_notes(file)]

    def debates(self, stage: str) -> dict[str, Debate]:
        graphs = [item.graph for file in self._journals(stage) for item in read_journal(file)]
        debates = [decode_debate(graph) for graph in graphs if graph is not None]
        return {debate.id: debate for debate in debates}

    def closed_at(self, stage: str) -> list[float]:
        return [item.closed_at or 0.0 for file in self._journals(stage) for item in read_journal(file) if item.graph]

    def num_open(self, stage: str) -> int:
        return sum(item.graph is None for file in self._journals(stage) for item in read_journal(file))

    def json(self, name: str) -> Any:
        return json.loads((self.path / name).read_bytes())


def timeless(debate: Debate) -> Any:
    """A graph without what may differ between two runs: how long things took, and so what came first."""
    nodes = [
        msgspec.structs.replace(node, reply=msgspec.structs.replace(node.reply, latency_s=0.0, tries=1, attempts=()))
        for node in sorted(debate.utterances, key=lambda node: node.id)
    ]
    edges = sorted(debate.edges, key=lambda edge: (edge.source, edge.target, edge.kind))
    same = msgspec.structs.replace(debate, utterances=nodes, edges=edges, failures=sorted(debate.failures))
    return msgspec.to_builtins(same)
