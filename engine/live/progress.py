"""What a running command shows: a panel of a few lines at a terminal, one plain line an interval elsewhere; or, where
it is to be read by machines, JSON lines. Always on stderr."""

from __future__ import annotations

import logging
import sys
import time
from types import TracebackType
from typing import TYPE_CHECKING

import msgspec

from actors.logs import log_to_stderr
from engine.live.units import about, counted, duration, money

if TYPE_CHECKING:
    from rich.live import Live

    from engine.live.snapshot import ModelLoad, Reading, Snapshot

log = logging.getLogger("moot.run")

INTERVAL_S = 5.0  # between plain lines
MAX_MODELS = 6  # that have a line of their own in the panel: those with the most to do


def _say(line: str) -> None:
    sys.stderr.write(line + "\n")
    sys.stderr.flush()


class Progress:
    """Use as a context manager; ``note`` prints a line that stays, ``show`` refreshes what moves.

    Args:
        live: whether a person watches at a terminal; None: find out.
        as_json: everything is told as JSON lines, warnings that are logged with it.
    """

    def __init__(self, *, live: bool | None = None, as_json: bool = False) -> None:
        self._at_terminal = not as_json and (sys.stderr.isatty() if live is None else live)
        self._as_json = as_json
        if as_json:
            log_to_stderr()
        self._live: Live | None = None
        self._hushed = False
        self.run = ""  # the folder of the run under way, for those who must tell how to go on
        self._printed = time.monotonic()

    def __enter__(self) -> Progress:
        if self._at_terminal:
            from rich.console import Console
            from rich.live import Live
            from rich.spinner import Spinner

            starting = Spinner("dots", "starting")
            self._live = Live(starting, console=Console(stderr=True), refresh_per_second=4, transient=True)
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, err: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()

    def hush(self) -> None:
        """From now on only notes: somebody writes at the same terminal."""
        self._hushed = True
        if self._live is not None:
            self._live.stop()
            self._live = None

    def note(self, text: str) -> None:
        """One line that stays, in the run's log too."""
        log.info(text)
        if self._as_json:
            return
        if self._live is not None:
            from rich.markup import escape

            self._live.console.print(escape(text), highlight=False)
        else:
            _say(text)

    def last(self, text: str) -> None:
        """Why a command ends before its time."""
        log.log(logging.ERROR if self._as_json else logging.INFO, text)
        if not self._as_json:
            _say(text)

    def stage(self, name: str, *, total: int, closed: int) -> None:
        """A stage of debates begins; ``closed`` of them were on record."""
        self._printed = time.monotonic()
        self.note(f"{name}: {total} debates" + (f", {closed} on record already" if closed else ""))

    def show(self, reading: Reading, shown: Snapshot) -> None:
        """How the stage stands."""
        if self._hushed:
            return
        if self._live is not None:
            from rich.spinner import Spinner
            from rich.text import Text

            over = not (shown.open or shown.left)  # what comes next may take long, and shows no figures
            drawn = Text("\n".join(panel(shown)), no_wrap=True, overflow="ellipsis")
            self._live.update(Spinner("dots", f"{shown.stage}: all closed") if over else drawn)
        elif time.monotonic() - self._printed >= INTERVAL_S:
            self._printed = time.monotonic()
            if self._as_json:
                log.info(line(shown), extra={"figures": {"progress": msgspec.to_builtins(shown)}})
            else:
                _say(line(shown))


def line(now: Snapshot) -> str:
    """All in one line, for a log."""
    parts = [*_debates(now), *_pace(now)]
    if now.queued:
        parts.append(f"{counted(now.queued, 'ask')} queued")
    if now.failures:
        parts.append(counted(now.failures, "failed ask"))
    if now.eta_s is not None:
        parts.append(f"about {about(now.eta_s)} left")
    return f"{now.stage}: " + ", ".join(parts) + (f"; {now.holdup}" if now.holdup else "")


def panel(now: Snapshot) -> list[str]:
    """A few lines: the stage, its pace, each model, and what holds it up."""
    done = now.closed / now.total if now.total else 1.0
    eta = f"  about {about(now.eta_s)} left" if now.eta_s is not None else ""
    busiest = sorted(now.models, key=lambda model: -(model.queued + model.running))[:MAX_MODELS]
    models = [model for model in now.models if model in busiest]  # in their own order: lines that move are hard to read
    width = max((len(model.name) for model in models), default=0)
    return [
        f"{now.stage}  {_bar(done)} {int(100 * done)}%{eta}",
        "  " + ", ".join(_debates(now)),
        "  " + ", ".join(_pace(now) + ([counted(now.failures, "failed ask")] if now.failures else [])),
        *(f"  {model.name:{width}}  {_load(model, now)}" for model in models),
        *([f"  > {now.holdup}"] if now.holdup else []),
    ]


def _debates(now: Snapshot) -> list[str]:
    aside = [f"{now.set_aside} set aside"] if now.set_aside else []
    return [f"{now.closed}/{now.total} closed", f"{now.open} open", *aside]


def _pace(now: Snapshot) -> list[str]:
    cost = [money(now.cost_usd)] if now.cost_usd else []
    return [f"{now.replies_per_s:.1f} replies/s", f"{now.tokens_per_s:.0f} tokens/s", *cost]


def _load(model: ModelLoad, now: Snapshot) -> str:
    paces = [pace for pace in now.agents if pace.model == model.name and pace.median_s]
    slowest = max(paces, key=lambda pace: pace.median_s or 0.0, default=None)
    parts = [f"{model.running} running", f"{model.queued} queued", f"{model.replies_per_s:.1f} replies/s"]
    if slowest is not None:
        parts.append(f"{slowest.name} {duration(slowest.median_s or 0.0)}")
    if "kv_usage" in model.engine:
        parts.append(f"KV {model.engine['kv_usage']:.0%}")
    if model.up < model.replicas:
        parts.append(f"{model.up} of {model.replicas} up")
    return ", ".join(parts)


def _bar(share: float, width: int = 30) -> str:
    full = int(min(1.0, share) * width)
    return "█" * full + "░" * (width - full)
