"""A Ray cluster on this machine: a head and workers, each in a session of its own, so that a node can be lost whole.

``python -m tests.integration.local_cluster ROLE PORT FOLDER`` is one node: what ``ray start`` starts, without the parts
that only people look at, and so in a third of the time.
"""

from __future__ import annotations

import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

from tests.integration.command import Moot, Process, waited

START_S = 120.0
UP = "up\n"
SOON = {
    # A node whose raylet is gone counts as dead after six looks, as a busy machine misses some; processes end soon
    # after their head.
    "RAY_health_check_initial_delay_ms": "1000",
    "RAY_health_check_period_ms": "500",
    "RAY_health_check_failure_threshold": "6",
    "RAY_gcs_rpc_server_reconnect_timeout_s": "12",
}


def free_ports(number: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(number)]
        return [listener.getsockname()[1] for listener in sockets]


def sessions(pids: Sequence[int], title: str = "") -> list[int]:
    """The live processes of several sessions whose command line contains ``title``."""
    command = ["ps", "-ww", "-s", ",".join(map(str, pids)), "-o", "pid=,stat=,args="]
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
        (port,) = free_ports(1)
        self._moot.env["RAY_ADDRESS"] = f"127.0.0.1:{port}"
        self.workers = []
        self.head = self._node("head")
        assert self.head.running_when(lambda: UP in self.head.stdout, START_S), self.head.stderr
        self.fill()
        assert waited(lambda: len(self.joined()) == self._num_workers, START_S), [node.stderr for node in self.workers]

    def fill(self) -> None:
        """Others take the place of workers that are gone, and join by and by."""
        self.workers = [worker for worker in self.workers if worker.running]
        self.workers += [self._node("worker") for _ in range(self._num_workers - len(self.workers))]

    def joined(self) -> list[Process]:
        """The workers that are up. Ray gives one half a minute to come up, which a busy machine may miss."""
        self.fill()
        return [worker for worker in self.workers if UP in worker.stdout]

    def _node(self, role: str) -> Process:
        port = self._moot.env["RAY_ADDRESS"].rpartition(":")[2]
        return self._moot.start_command(sys.executable, "-m", __name__, role, port, str(self._moot.temp))

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


def be_node(role: str, port: int, folder: str) -> None:
    """Start a node's processes and stay with them: they end with this one."""
    from ray._private import services, utils
    from ray._private.node import Node
    from ray._private.parameter import RayParams

    # As where Ray is installed without its dashboard: the agent on every node is a small one then.
    utils.get_dashboard_dependency_error = lambda: ImportError("not wanted here")
    address = services.get_node_ip_address()  # a driver takes a loopback address for this one, too
    place: dict[str, Any] = {"gcs_address": f"{address}:{port}"}
    if role == "head":
        place = {"gcs_server_port": port, "temp_dir": folder, "include_dashboard": False, "no_monitor": True}
    params = RayParams(
        node_ip_address=address,
        num_cpus=0,  # none of ours takes any; Ray would have a process ready for each
        object_store_memory=80_000_000,
        min_worker_port=0,
        max_worker_port=0,
        include_log_monitor=False,
        dashboard_agent_listen_port=0,
        **place,
    )
    node = Node(params, head=role == "head", shutdown_at_exit=True, spawn_reaper=True)
    sys.stdout.write(UP)
    sys.stdout.flush()
    while not node.dead_processes():
        time.sleep(0.5)


if __name__ == "__main__":
    be_node(sys.argv[1], int(sys.argv[2]), sys.argv[3])
