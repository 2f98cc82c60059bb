"""Canonical spellings of mathematical answers, found by a computer algebra system that is kept at arm's length.

The system runs in a process of its own (``engine.data.algebra``): an answer that takes too long costs that process its
life and gets no spelling; the next answer gets a new process. Answers in plain numbers never go there.
"""

from __future__ import annotations

import asyncio
import json
import os
import select
import subprocess
import sys
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path

import msgspec

from protocols.errors import ConfigError
from protocols.latex import normal_form
from protocols.numerals import as_number
from protocols.task import Task

ANSWER_S = 3.0  # of one answer; nearly all take a hundredth of it
START_S = 60.0  # of the process: a cold disk reads sympy slowly
QUEUE_S = 60.0  # of waiting for the answers before it as well
MAX_BYTES = 2 * 2**30  # of address space; sympy alone maps a tenth of it
MAX_KNOWN = 50_000  # spellings remembered

_ROOT = Path(__file__).resolve().parents[2]


class Algebra:
    """Finds canonical spellings, one answer at a time; for one thread. ``close`` it when done.

    Args:
        answer_s: of one answer; what takes longer gets "".
        max_bytes: of the process's address space.
    """

    def __init__(self, *, answer_s: float = ANSWER_S, max_bytes: int = MAX_BYTES) -> None:
        self._answer_s, self._max_bytes = answer_s, max_bytes
        self._process: subprocess.Popen[bytes] | None = None
        self._known: OrderedDict[str, str] = OrderedDict()

    def canonise(self, raw: str) -> str:
        """One spelling for all answers that are mathematically equal; "" where none is found in time.

        Raises: ConfigError: math-verify is not installed.
        """
        plain = normal_form(raw)
        if not plain or as_number(plain) is not None:
            return plain
        if plain not in self._known:
            self._known[plain] = self._ask(plain)
            if len(self._known) > MAX_KNOWN:
                self._known.popitem(last=False)
        return self._known[plain]

    def close(self) -> None:
        """End the process; a later ``canonise`` starts another."""
        process, self._process = self._process, None
        if process is None:
            return
        process.kill()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                with suppress(OSError):  # what was not yet written has nobody left to read it
                    pipe.close()
        process.wait()

    def _ask(self, plain: str) -> str:
        for _ in range(2):  # a process that died idle, killed by its machine say, is no fault of this answer
            alive = self._process is not None
            process = self._process or self._start()
            assert process.stdin is not None
            try:
                process.stdin.write(json.dumps(plain).encode() + b"\n")
                process.stdin.flush()
            except OSError:
                self.close()
                if alive:
                    continue
                return ""
            return self._line(process, self._answer_s) or ""
        return ""

    def _start(self) -> subprocess.Popen[bytes]:
        check_installed()
        environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(_ROOT), os.environ.get("PYTHONPATH", "")])}
        limits = (str(self._answer_s * 2), str(self._max_bytes))  # it ends itself should we be gone
        self._process = subprocess.Popen(
            [sys.executable, "-m", "engine.data.algebra", *limits],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=environment,
        )
        if self._line(self._process, START_S) != "ready":
            raise ConfigError(
                f"the algebra process does not start within {START_S:g} s; run `{sys.executable} -m "
                f"engine.data.algebra 3 {self._max_bytes}` to see why, or reinstall moot with its extra math"
            )
        return self._process

    def _line(self, process: subprocess.Popen[bytes], limit_s: float) -> str | None:
        """The process's next line; None, and the process is ended, where none comes in time."""
        assert process.stdout is not None
        ready, _, _ = select.select([process.stdout], [], [], limit_s)
        line = process.stdout.readline() if ready else b""  # lines are written whole
        if not line.endswith(b"\n"):
            self.close()
            return None
        return str(json.loads(line))


class Canoniser:
    """``Algebra`` for an event loop: answers queue for one thread, so that none delays what else the loop does."""

    def __init__(self, algebra: Algebra | None = None) -> None:
        self._algebra = algebra or Algebra()
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="algebra")

    async def canonise(self, raw: str) -> str:
        """As ``Algebra.canonise``; "" also where the queue is too long. Raises: ConfigError: as there."""
        found = asyncio.get_running_loop().run_in_executor(self._thread, self._algebra.canonise, raw)
        try:
            return await asyncio.wait_for(found, QUEUE_S)
        except TimeoutError:
            return ""

    def close(self) -> None:
        """End thread and process; what is in work is done first, within its limit."""
        self._thread.shutdown(wait=True, cancel_futures=True)
        self._algebra.close()


def check_installed() -> None:
    """Raises: ConfigError: a package that answers in the format "math" need is missing."""
    if find_spec("math_verify") is None:
        raise ConfigError(
            "tasks.answer_format=math needs the package math-verify, which is not installed; install moot with its "
            "extra math"
        )


_GOLD: dict[str, str] = {}  # the tasks of a run are loaded more than once


def canonise_gold(tasks: Sequence[Task]) -> list[Task]:
    """The tasks, ``canonical_gold`` filled in for those with the format "math" that lack it.

    Raises: ConfigError: there are such tasks, and math-verify is not installed.
    """
    lacking = [task for task in tasks if task.answer_format == "math" and task.gold and not task.canonical_gold]
    if not lacking:
        return list(tasks)
    check_installed()
    wanted = {gold for task in lacking for gold in task.gold} - _GOLD.keys()
    algebra = Algebra()
    try:
        _GOLD.update({gold: algebra.canonise(gold) for gold in sorted(wanted)})
    finally:
        algebra.close()
    return [
        msgspec.structs.replace(task, canonical_gold=tuple(_GOLD[gold] for gold in task.gold))
        if task.answer_format == "math" and not task.canonical_gold
        else task
        for task in tasks
    ]
