"""Runs through ``ray job submit`` on a head and two workers of this test's own: watched, killed, submitted again.

The second time another run goes beside it, under the same name: in the end both have come to the same.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import signal
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tests.integration.command import ROOT, Moot, Process, RunOnDisk, moot_in, timeless, waited
from tests.integration.local_cluster import free_ports
from tests.test_repository import tracked_files

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]

RAY = str(Path(sys.executable).with_name("ray"))
ADDRESS = "127.0.0.2"  # nobody else reaches it; 127.0.0.1 would be replaced by the machine's own in workers' commands
ANY_PORT = ("--min-worker-port=0", "--max-worker-port=0")  # nodes of one machine have no range each
DEBATES, ASKS = 40, 240  # three agents in two rounds
AT_ONCE = 8
OVERRIDES = (
    "models.simulated.latency_s=0.3",
    f"models.simulated.limits.max_concurrency={AT_ONCE}",
    "run.num_arenas=2",
    "run.budget.tokens=10000000",  # so that each run has a keeper of its own
)
ACTORS = ("ray::ArenaActor", "ray::AgentActor", "ray::Keeper")


class Nodes(msgspec.Struct, frozen=True):
    """A cluster on this machine, each node in a session of its own, and the address that takes jobs."""

    head: Process
    workers: list[Process]
    address: str

    def where(self, actor: str) -> list[int]:
        """How many such actors live on the head and on each worker."""
        return [len(node.members(actor)) for node in (self.head, *self.workers)]

    @property
    def empty(self) -> bool:
        return not any(sum(self.where(actor)) for actor in ACTORS)


def joined(node: Process) -> bool:
    return "Ray runtime started" in node.stdout + node.stderr


def answers(url: str) -> bool:
    """Whether a server is up, whatever it says."""
    try:
        urllib.request.urlopen(url, timeout=5.0).close()
    except urllib.error.HTTPError as err:
        err.close()
    except OSError:
        return False
    return True


def taken(job: Process) -> bool:
    return "submitted successfully" in job.stdout + job.stderr


@pytest.fixture(scope="module")
def moot(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Moot]:
    with moot_in(tmp_path_factory.mktemp("jobs")) as moot:
        token = moot.temp / "token"
        token.write_text(secrets.token_hex(32))
        moot.env |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token), "RAY_USAGE_STATS_ENABLED": "0"}
        moot.env["PATH"] = f"{Path(sys.executable).parent}:{moot.env['PATH']}"  # a job's `python` is this one
        del moot.env["PYTHONPATH"]
        yield moot


@pytest.fixture(scope="module")
def source(moot: Moot) -> Path:
    """What a checkout holds, without anything that git ignores."""
    for file in tracked_files():
        target = moot.folder / "source" / file.relative_to(ROOT)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, target)
    return moot.folder / "source"


@pytest.fixture(scope="module")
def nodes(moot: Moot) -> Iterator[Nodes]:
    gcs, jobs, *ports = free_ports(38)

    def start(*options: str) -> Process:
        agent = {"dashboard-agent-grpc-port": ports.pop(), "dashboard-agent-listen-port": ports.pop()}
        return moot.start_command(
            *(RAY, "start", "--block", f"--node-ip-address={ADDRESS}", "--object-store-memory=80000000"),
            *("--disable-usage-stats", *ANY_PORT, *options, *(f"--{name}={port}" for name, port in agent.items())),
        )

    def up(ready: Callable[[Process], bool], *options: str) -> Process:
        """Started again where it has not come up: Ray gives a node 30 s, which a busy machine can miss."""
        for _ in range(6):
            node = start(*options)
            if node.running_when(partial(ready, node), 120.0):
                return node
            node.end()
        raise AssertionError(node.stdout + node.stderr)

    ours = (f"--temp-dir={moot.temp}", f"--dashboard-port={jobs}", f"--port={gcs}")
    asked = f"http://127.0.0.1:{jobs}/api/version"
    head = up(lambda node: joined(node) and answers(asked), "--head", "--num-cpus=0", *ours)
    room = ("--num-cpus=1", '--resources={"moot_arenas": 5}')
    workers = [up(joined, f"--address={ADDRESS}:{gcs}", *room) for _ in range(2)]
    yield Nodes(head, workers, f"http://127.0.0.1:{jobs}")
    for pid in [pid for node in (*workers, head) for pid in node.members()]:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    assert all(node.all_gone() for node in (*workers, head))


def submit(moot: Moot, nodes: Nodes, source: Path, run: RunOnDisk) -> Process:
    """The command of the README; returns once the job is taken, and goes on to show its log."""
    for _ in range(20):
        job = moot.start_command(
            *(RAY, "job", "submit", "--address", nodes.address, "--working-dir", str(source), "--"),
            *("python", "-m", "engine", "run", "recipes/scripted.yaml", "--limit", str(DEBATES // 2), "--json"),
            *("--run-dir", str(run.path), "--or-resume", *OVERRIDES),
        )
        if job.running_when(partial(taken, job), 120.0):
            return job
        assert "No available agent" in job.stderr, job.stdout + job.stderr  # the head is not all up yet
    raise AssertionError(job.stderr)


def driver_of(run: RunOnDisk) -> int:
    """The process that drives a run, wherever the cluster has put it."""
    return int(run.json("status.json")["pid"])


def outcome_of(job: Process) -> dict[str, Any]:
    assert job.wait() == 0, job.stdout + job.stderr
    assert "Traceback" not in job.stdout
    (line,) = [line for line in job.stdout.splitlines() if line.startswith("{")]
    found: dict[str, Any] = json.loads(line)
    return found


def state_of(moot: Moot, run: RunOnDisk) -> str:
    """What `moot list` tells of a run, from outside the cluster."""
    moot.env["PYTHONPATH"] = str(ROOT)
    listed = moot("list", "--json", "--runs-dir", str(run.path.parent))
    del moot.env["PYTHONPATH"]
    (line,) = listed.outcome()["runs"]
    return str(line).removeprefix(str(run.path)).strip()


def test_a_killed_job_goes_on_when_it_is_submitted_again_and_disturbs_no_other(
    moot: Moot, nodes: Nodes, source: Path
) -> None:
    killed, other = RunOnDisk(moot.folder / "ada" / "run"), RunOnDisk(moot.folder / "bo" / "run")

    job = submit(moot, nodes, source, killed)
    assert job.running_when(lambda: len(killed.replies("debate")) > 0), job.stdout + job.stderr
    assert nodes.where("ray::ArenaActor") == [0, 1, 1]  # spread over the nodes that are set apart for them
    assert nodes.where("ray::AgentActor")[0] == 0
    assert sum(nodes.where("ray::Keeper")) == 1
    assert state_of(moot, killed) == "run  resumable after its start"
    assert job.running_when(lambda: len(killed.replies("debate")) >= ASKS // 4), job.stdout + job.stderr
    os.kill(driver_of(killed), signal.SIGKILL)
    assert job.wait() != 0 and "failed" in job.stdout + job.stderr
    assert f"run {killed.path}" in job.stdout and "debate: " in job.stdout  # its log comes a little late
    assert waited(lambda: nodes.empty, 60.0), "actors outlived their driver"
    on_record = killed.replies("debate")
    assert ASKS // 4 <= len(on_record) < ASKS, "the run was over before it could be killed"

    jobs = [submit(moot, nodes, source, run) for run in (killed, other)]
    again, beside = (outcome_of(job) for job in jobs)
    assert waited(lambda: nodes.empty, 60.0), "actors outlived their run"

    replies = killed.replies("debate")
    assert len(replies) == len(set(replies)) == ASKS and set(on_record) <= set(replies)
    asked_again = again["hosts"]["simulated"]["replies"]
    assert asked_again == again["new_replies"] == ASKS - len(on_record), "what was on record was asked again"
    assert beside["hosts"]["simulated"]["replies"] == beside["new_replies"] == ASKS
    for outcome, run in ((again, killed), (beside, other)):
        assert outcome["debates"] == outcome["closed"] == DEBATES and outcome["run"] == str(run.path)
        assert state_of(moot, run) == "run  done"
    assert again["tokens"] == beside["tokens"] > 0  # each counts its own
    assert {key: timeless(debate) for key, debate in killed.debates("debate").items()} == {
        key: timeless(debate) for key, debate in other.debates("debate").items()
    }
    recipe = Path(killed.json("run.json")["recipe_path"])
    assert recipe.is_relative_to(moot.temp), "the job did not run from its own copy"
    assert {"engine", "recipes"} <= {path.name for path in recipe.parents[1].iterdir()}
    assert not (recipe.parents[1] / "tests").exists()
