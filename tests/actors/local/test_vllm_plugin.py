"""An engine's process ends with the one it works for, whatever ended that one."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from importlib.metadata import entry_points
from pathlib import Path

import pytest

from actors.local.vllm_plugin import MARK, follow_parent

ROOT = Path(__file__).parents[3]
PARENT = """
import multiprocessing, os, time
from actors.local.vllm_plugin import follow_parent

def child():
    follow_parent()
    print(os.getpid(), flush=True)
    time.sleep(60)

if __name__ == "__main__":
    process = multiprocessing.get_context("spawn").Process(target=child)
    process.start()
    time.sleep(60)
"""


def runs(pid: int) -> bool:
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2]
    except OSError:
        return False


@pytest.mark.parametrize("ours", [True, False])
def test_a_child_ends_with_its_parent_where_it_is_ours(ours: bool, tmp_path: Path) -> None:
    script = tmp_path / "parent.py"
    script.write_text(PARENT)
    env = {key: value for key, value in os.environ.items() if key != MARK} | {"PYTHONPATH": str(ROOT)}
    parent = subprocess.Popen(
        [sys.executable, str(script)], stdout=subprocess.PIPE, text=True, env=env | ({MARK: "1"} if ours else {})
    )
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    assert runs(child)
    parent.kill()
    parent.wait()
    parent.stdout.close()
    limit = time.monotonic() + (20.0 if ours else 1.0)
    while runs(child) and time.monotonic() < limit:
        time.sleep(0.05)
    assert runs(child) is not ours
    if not ours:
        os.kill(child, signal.SIGKILL)


def test_a_process_without_a_parent_of_its_kind_follows_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(MARK, "1")
    follow_parent()  # this process goes on


def test_vllm_is_told_of_it() -> None:
    (found,) = [entry for entry in entry_points(group="vllm.general_plugins") if entry.name == "moot"]
    assert found.load() is follow_parent
