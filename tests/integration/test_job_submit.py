"""The same recipe through ``ray job submit``, on a cluster that this test starts and ends."""

from __future__ import annotations

import json
import secrets
import shutil
import socket
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.integration.command import ROOT, Moot, Process, RunOnDisk, moot_in
from tests.test_repository import tracked_files

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

RAY = str(Path(sys.executable).with_name("ray"))


def free_ports(number: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(number)]
        return [listener.getsockname()[1] for listener in sockets]


@pytest.fixture
def moot(tmp_path: Path) -> Iterator[Moot]:
    with moot_in(tmp_path) as moot:
        token = moot.temp / "token"
        token.write_text(secrets.token_hex(32))
        moot.env |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token), "RAY_USAGE_STATS_ENABLED": "0"}
        moot.env["PATH"] = f"{Path(sys.executable).parent}:{moot.env['PATH']}"  # a job's `python` is this one
        del moot.env["PYTHONPATH"]
        yield moot


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """What a checkout holds, without anything that git ignores."""
    for file in tracked_files():
        target = tmp_path / "source" / file.relative_to(ROOT)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, target)
    return tmp_path / "source"


def start_head(moot: Moot) -> tuple[Process, str]:
    """Returns: the head node, and the address that takes jobs."""
    port, jobs, grpc, http, metrics = free_ports(5)
    ports = {
        "port": port,
        "dashboard-port": jobs,
        "dashboard-agent-grpc-port": grpc,
        "dashboard-agent-listen-port": http,
        "metrics-export-port": metrics,
        "ray-client-server-port": 0,
    }
    head = moot.start_command(
        *(RAY, "start", "--head", "--block", "--num-cpus=2", "--node-ip-address=127.0.0.1", "--disable-usage-stats"),
        *(f"--temp-dir={moot.temp}", *(f"--{name}={number}" for name, number in ports.items() if number)),
    )

    def listens() -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", jobs)) == 0

    assert head.running_when(listens, 120.0), head.stdout + head.stderr
    return head, f"http://127.0.0.1:{jobs}"


def test_a_recipe_runs_as_a_job(moot: Moot, source: Path) -> None:
    head, address = start_head(moot)
    run = RunOnDisk(moot.folder / "run")
    entry = ("python", "-m", "engine", "run", "recipes/scripted.yaml", "--limit", "5", "--json")
    for _ in range(20):
        job = moot.start_command(
            *(RAY, "job", "submit", "--address", address, "--working-dir", str(source)),
            *("--", *entry, "--run-dir", str(run.path)),
        )
        if job.wait() == 0 or "No available agent" not in job.stderr:  # the head is not all up yet
            break
    assert job.wait() == 0, job.stdout + job.stderr
    (line,) = [line for line in job.stdout.splitlines() if line.startswith("{")]
    outcome = json.loads(line)
    assert outcome["debates"] == outcome["closed"] == 10  # five of each side
    assert len(run.debates("debate")) == 10
    assert str(moot.temp) in run.json("run.json")["recipe_path"], "the job did not run from its own copy"
    assert "Traceback" not in job.stdout
    assert not job.members()

    head.end()
    assert head.all_gone()
