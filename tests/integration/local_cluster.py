"""A Ray cluster on this machine: a head and workers, each in a session of its own, so that a node can be lost whole."""

from __future__ import annotations

import os
import secrets
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from tests.integration.command import Moot, Process, waited

RAY = str(Path(sys.executable).with_name("ray"))
START_S = 120.0
SOON = {
    # A node whose raylet is gone counts as dead after two looks; its processes end soon after their head.
    "RAY_health_check_initial_delay_ms": "1000",
    "RAY_health_check_period_ms": "500",
    "RAY_health_check_failure_threshold": "2",
    "RAY_gcs_rpc_server_reconnect_timeout_s": "3",
}


def free_ports(number: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(number)]
        return [listener.getsockname()[1] for listener in sockets]


def sessions(pids: Sequence[int], title: str = "") -> list[int]:
    """The live processes of several sessions whose command line contains ``title``."""
    command = ["ps", "-s", ",".join(map(str, pids)), "-o", "pid=,stat=,args="]
    listed = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)  # 1: there are none
    rows = [line.split(None, 2) for line in listed.stdout.splitlines()]
    return [int(row[0]) for row in rows if len(row) == 3 and row[1][0] != "Z" and title in row[2]]


class LocalCluster:
    """See the module. ``moot``'s commands join it from ``start`` on. Every wait has a limit."""

    def __init__(self, moot: Moot, *, num_workers: int = 2) -> None:
        self._moot, self._num_workers = moot, num_workers
        token = moot.temp / "token"
        token.write_text(secrets.token_hex(32))
        moot.env |= SOON | {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token), "RAY_USAGE_STATS_ENABLED": "0"}
        self.head: Process
        self.workers: list[Process] = []

    @property
    def nodes(self) -> list[Process]:
        return [self.head, *self.workers]

    def start(self) -> None:
        """A new head with new workers; returns once all have joined."""
        port, client = free_ports(2)
        address = f"127.0.0.1:{port}"
        self.head = self._node(
            *("--head", f"--port={port}", f"--ray-client-server-port={client}", "--include-dashboard=false")
        )
        self._up(self.head)
        self._moot.env["RAY_ADDRESS"] = address
        self.workers = [self._worker() for _ in range(self._num_workers)]
        for worker in self.workers:
            self._up(worker)

    def replace(self, worker: Process) -> None:
        """Another takes its place, and joins by and by."""
        self.workers[self.workers.index(worker)] = self._worker()

    def _worker(self) -> Process:
        return self._node(f"--address={self._moot.env['RAY_ADDRESS']}")

    def _node(self, *options: str) -> Process:
        """All nodes have one address, so none may count on a port of its choice."""
        names = ("dashboard-agent-listen-port", "dashboard-agent-grpc-port", "metrics-export-port", "min-worker-port")
        ports = dict(zip((*names, "max-worker-port"), (*free_ports(3), 0, 0), strict=True))
        return self._moot.start_command(
            *(RAY, "start", "--block", "--node-ip-address=127.0.0.1", "--num-cpus=2", "--disable-usage-stats"),
            *("--object-store-memory=80000000", "--include-log-monitor=false", *options),
            *(f"--{name}={port}" for name, port in ports.items()),
            *([f"--temp-dir={self._moot.temp}"] if "--head" in options else []),
        )

    def _up(self, node: Process) -> None:
        assert node.running_when(lambda: "Ray runtime started" in node.stdout, START_S), node.stdout + node.stderr

    def members(self, title: str) -> list[int]:
        """The processes of all nodes with this in their command line."""
        return sessions([node.pid for node in self.nodes], title)

    def lose(self, node: Process) -> None:
        """Its machine is gone: all of its processes at once."""
        while left := sessions([node.pid]):
            for pid in left:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            node.wait()

    def end(self) -> None:
        for node in self.nodes:
            self.lose(node)
        assert waited(lambda: not sessions([node.pid for node in self.nodes]), START_S)


@contextmanager
def local_cluster(moot: Moot, *, num_workers: int = 2) -> Iterator[LocalCluster]:
    cluster = LocalCluster(moot, num_workers=num_workers)
    cluster.start()
    try:
        yield cluster
    finally:
        cluster.end()
