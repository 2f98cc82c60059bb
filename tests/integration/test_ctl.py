"""A real run controlled from another process: listed, paused, retuned, resumed, retried, drained, told to end."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from engine.debates.arena import failure_summary
from engine.record.journal import read_journal
from protocols.graph import decode_debate
from protocols.machine import Opened
from tests.integration.command import Moot, Process, RunOnDisk, check_clean, moot_in, waited

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]

# one ask in three is refused; where both are, nobody has said anything, and the debate is set aside
TASKS = 300
RECIPE = f"""
name: society
seed: 5
tasks: {{source: arithmetic, level: mixed10, train: {TASKS}, test: 0}}
models:
  simulated:
    backend: scripted
    latency_s: 1.0
    latency_sigma: 0.1
    faults: {{refused: 0.35}}
    limits: {{max_concurrency: 4}}
agents:
  ada: {{model: simulated}}
  bo: {{model: simulated}}
protocol: {{name: society, rounds: 1, deadline_s: 5}}
cast: {{generator: [ada, bo]}}
run: {{max_open: 4, drain_s: 10}}
"""


@pytest.fixture(scope="module")
def moot(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Moot]:
    folder = tmp_path_factory.mktemp("ctl")
    (folder / "society.yaml").write_text(RECIPE)
    with moot_in(folder) as moot:
        yield moot


class Driven:
    """A run and whoever controls it, each in a process of its own."""

    def __init__(self, moot: Moot, name: str) -> None:
        self.moot, self.name, self.run = moot, name, RunOnDisk(moot.folder / name)

    def ctl(self, verb: str, *args: str, code: int = 0) -> Any:
        process = self.moot.start("ctl", verb, self.name, *args, "--json")
        assert process.wait(300) == code, process.stderr
        return process.outcome() if code == 0 else process.sentence()

    @property
    def status(self) -> dict[str, Any]:
        found: dict[str, Any] = self.ctl("show")["status"]
        return found

    def outcomes(self) -> int:
        return len(self.run.outcomes("debate"))


def started(moot: Moot, driven: Driven, *args: str, more: int = 0) -> Process:
    return moot.start_until(*args, "--json", ready=lambda process: driven.outcomes() > more + 5)


def test_a_run_is_controlled_from_another_process(moot: Moot) -> None:
    driven = Driven(moot, "runs/r")
    process = started(moot, driven, "run", "society.yaml", "--run-dir", "runs/r")

    listed = moot.start("ctl", "list", "--json")
    assert listed.wait() == 0 and list(listed.outcome()["runs"]) == ["runs/r"]
    status = driven.status
    assert (status["state"], status["driven"], status["pid"]) == ("running", True, process.pid)
    assert status["total"] == TASKS and status["open"] + status["waiting"] + status["closed"] == TASKS
    assert status["models"]["simulated"]["concurrency"] == 4

    assert driven.ctl("pause")["state"] == "paused"
    assert waited(lambda: driven.status["models"]["simulated"]["running"] == 0, 120)
    time.sleep(1)  # until what came last is on record
    on_record, open_debates = driven.outcomes(), driven.run.num_open("debate")
    time.sleep(5.5)  # longer than a phase may take: no deadline passes while nothing is sent
    assert driven.outcomes() == on_record and driven.run.num_open("debate") == open_debates > 0
    assert process.running and driven.status["state"] == "paused"

    told = driven.ctl("set", "simulated.concurrency=32", "run.max_open=16")
    assert told["changed"] == ["models.simulated.limits.max_concurrency: 4 -> 32", "run.max_open: 4 -> 16"]
    assert "did you mean 'concurrency'" in driven.ctl("set", "simulated.concurency=3", code=2)
    assert "max_concurrency=-1 must be a number from 0" in driven.ctl("set", "simulated.concurrency=-1", code=2)
    assert "without a budget" in driven.ctl("set", "run.budget.usd=3", code=2)
    assert driven.ctl("resume")["state"] == "running"
    assert waited(lambda: driven.status["models"]["simulated"]["running"] > 4, 120)

    assert waited(lambda: driven.status["set_aside"] > 0, 60)
    aside = driven.status["aside"][0]
    assert aside["times"] == 1 and "refused" in aside["reason"]
    assert driven.ctl("retry", aside["task"])["debates"] == [f"debate~2/{aside['task']}"]
    assert "is no task" in driven.ctl("retry", "nobody", code=2)

    driven.ctl("drain")
    assert process.wait(120) == 3, process.stderr
    assert "drained" in process.sentence() and "go on with `moot resume runs/r`" in process.sentence()
    assert driven.run.num_open("debate") == 0, "a drained run has no open debates"
    assert driven.status["state"] == "stopped" and not driven.status["driven"]
    assert "it has stopped; go on with `moot resume runs/r`" in driven.ctl("pause", code=2)

    check_attempts(driven, aside["task"])


def check_attempts(driven: Driven, retried: str) -> None:
    """Offline, what was set aside is debated again when the run is resumed; what ended well stays as it is."""
    before = driven.run.debates("debate")
    told = driven.ctl("retry", "all")
    assert told["state"] == "not running" and len(told["debates"]) > 0
    assert driven.ctl("set", "ada.concurrency=128", "run.max_open=60")["state"] == "not running"
    process = driven.moot("resume", driven.name, "--json")
    assert process.wait() in (0, 1), process.stderr
    check_clean(process.stderr)
    assert "changed since it was started: models.simulated.limits.max_concurrency: 4 -> 32" in process.stderr
    assert "changed since it was started: models.simulated.limits.max_concurrency: 32 -> 128" in process.stderr
    now, outcome = driven.run.debates("debate"), process.outcome()
    assert set(now) >= {*before, *told["debates"]} and {key: now[key] for key in before} == before
    assert f"debate~2/{retried}" in now and outcome["set_aside"] > 0
    assert outcome["debates"] == TASKS == outcome["closed"] + outcome["set_aside"]
    opened = [event.debate_id for event in driven.run.events("debate") if isinstance(event, Opened)]
    assert len(opened) == len(set(opened)) == TASKS + 1 + len(told["debates"])
    kept = {file: file.read_bytes() for file in driven.run.path.rglob("*.sqlite")}
    idle = driven.moot.start("resume", driven.name, "--json")
    assert idle.wait() == process.wait() and "nothing to resume" in idle.stderr
    assert "starting" not in idle.stderr and {file: file.read_bytes() for file in kept} == kept


def test_sigterm_brings_in_what_is_in_the_models_and_seals_the_journals(moot: Moot) -> None:
    driven, slow = Driven(moot, "t"), ("models.simulated.latency_s=2", "protocol.deadline_s=60")
    process = started(moot, driven, "run", "society.yaml", *slow, "--run-dir", "t")
    assert waited(lambda: driven.status["models"]["simulated"]["running"] == 4, 120)
    before = driven.outcomes()
    process.signal(signal.SIGTERM)
    assert process.wait(60) == 130, process.stderr
    assert "told to end by SIGTERM" in process.sentence() and "`moot resume t`" in process.sentence()
    assert process.all_gone(), "Ray's processes outlived a run that was told to end"
    left = sorted(file.name for file in (driven.run.path / "journal" / "debate").iterdir())
    assert left == ["arena-000.lock", "arena-000.sqlite"], "a journal was left unsealed"
    assert driven.outcomes() >= before + 4, "what was in the model is not on record"
    assert driven.run.num_open("debate") > 0

    forked, kept = moot.folder / "f", events(driven.run.path)
    change = "models.simulated.limits.max_concurrency=8"
    given = ("fork", "t", "--run-dir", "f", change, "run.drain_s=300")
    process = started(moot, Driven(moot, "f"), *given, more=len(driven.run.outcomes("debate")))
    assert "open ones" in process.stderr and "closed debates of t are taken over" in process.stderr
    process.signal(signal.SIGTERM)
    assert waited(lambda: "SIGTERM" in process.stderr, 10)
    process.signal(signal.SIGTERM)  # the second one waits for nobody: least of all for what run.drain_s allows
    assert process.wait(120) == 130 and "interrupted" in process.sentence()
    found = events(forked)
    assert kept and {key: found[key][: len(kept[key])] for key in kept} == kept
    asked = RunOnDisk(forked).outcomes("debate")
    assert len(asked) == len(set(asked)), "what was taken over was asked again"


def events(run: Path) -> dict[str, list[str]]:
    """Of the debates that go on, or have ended well."""
    return {
        item.debate_id: [repr(event) for _, event in item.events]
        for item in read_journal(run / "journal" / "debate" / "arena-000.sqlite")
        if item.graph is None or not failure_summary(decode_debate(item.graph))
    }
