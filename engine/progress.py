"""What a running command shows: a live line at a terminal, one plain line an interval elsewhere. Always on stderr."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable
from types import TracebackType
from typing import TYPE_CHECKING

from engine.arena import ArenaStats
from protocols.message import Usage

if TYPE_CHECKING:
    from rich.status import Status

INTERVAL_S = 5.0  # between plain lines


def _say(line: str) -> None:
    sys.stderr.write(line + "\n")
    sys.stderr.flush()


class Progress:
    """Use as a context manager; ``note`` prints a line that stays, ``update`` refreshes the one that moves."""

    def __init__(self, *, live: bool | None = None) -> None:
        self._live = sys.stderr.isatty() if live is None else live
        self._status: Status | None = None
        self._hushed = False
        self.run = ""  # the folder of the run under way, for those who must tell how to go on
        self._stage, self._total, self._closed, self._start = "", 0, 0, 0
        self._began = self._printed = time.monotonic()

    def __enter__(self) -> Progress:
        if self._live:
            from rich.console import Console

            self._status = Console(stderr=True).status("starting")
            self._status.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, err: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._status is not None:
            self._status.stop()

    def hush(self) -> None:
        """From now on only notes: somebody writes at the same terminal."""
        self._hushed = True
        if self._status is not None:
            self._status.stop()
            self._status = None

    def note(self, text: str) -> None:
        """One line that stays."""
        if self._status is not None:
            from rich.markup import escape

            self._status.console.print(escape(text), highlight=False)
        else:
            _say(text)

    def stage(self, name: str, *, total: int, closed: int) -> None:
        """A stage of debates begins; ``closed`` of them were on record."""
        self._stage, self._total, self._closed, self._start = name, total, closed, closed
        self._began = self._printed = time.monotonic()
        self.note(f"{name}: {total} debates" + (f", {closed} on record already" if closed else ""))

    def update(self, *, closed: int, stats: Iterable[ArenaStats]) -> None:
        self._closed = closed
        now = time.monotonic()
        if self._hushed:
            return
        if self._status is None and now - self._printed < INTERVAL_S:
            return
        self._printed = now
        line = self._line(list(stats), max(now - self._began, 1e-6))
        if self._status is not None:
            self._status.update(line)
        else:
            _say(line)

    def _line(self, stats: list[ArenaStats], elapsed_s: float) -> str:
        open_now = sum(item.open for item in stats)
        replies = sum(item.replies for item in stats)
        usage = sum((item.usage for item in stats), Usage())
        failures = sum(item.failures for item in stats)
        new = self._closed - self._start
        left = self._total - self._closed
        eta = f", about {elapsed_s * left / new:.0f} s left" if new and left else ""
        failed = f", {failures} failed asks" if failures else ""
        return (
            f"{self._stage}: {self._closed}/{self._total} closed, {open_now} open, "
            f"{replies / elapsed_s:.1f} replies/s, {usage.completion_tokens / elapsed_s:.0f} tokens/s{failed}{eta}"
        )
