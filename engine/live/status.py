"""How a run stands, as ``status.json`` in its folder: written by the driver about once a second, read by anybody."""

from __future__ import annotations

import fcntl
import os
import time
from pathlib import Path

import msgspec

from engine.live.command_files import put
from engine.record.folder import LOCK
from protocols.errors import ConfigError

FILE = "status.json"
STALE_S = 60.0  # without a sign of life: a driver that is only busy, or stops its models, is faster


class ModelStatus(msgspec.Struct, frozen=True, kw_only=True):
    """One model, its hosts together, since they were last started. ``concurrency``: asks at once, at most."""

    hosts: int
    queued: int
    running: int
    concurrency: int
    replies: int
    failures: int
    cost_usd: float


class Aside(msgspec.Struct, frozen=True, kw_only=True):
    """A task that was set aside. ``times``: so often."""

    task: str
    times: int
    reason: str


class Status(msgspec.Struct, frozen=True, kw_only=True):
    """``state``: starting, running, paused, draining, stopping, or at its end done or stopped.

    ``at``: seconds since 1970 of the driver's clock. ``replies``, ``tokens`` and ``cost_usd`` count since the run was
    last started or resumed; rates are over the last seconds. ``total`` and the counts after it are the stage's.
    """

    run: str
    id: str
    kind: str
    state: str
    host: str
    pid: int
    at: float
    started_at: float
    reason: str = ""
    stage: str = ""
    total: int = 0
    closed: int = 0
    open: int = 0
    waiting: int = 0
    set_aside: int = 0
    replies: int = 0
    replies_per_s: float = 0.0
    tokens: int = 0
    tokens_per_s: float = 0.0
    cost_usd: float = 0.0
    models: dict[str, ModelStatus] = {}
    aside: tuple[Aside, ...] = ()  # the latest; ``set_aside`` counts all of the stage's
    changes: tuple[str, ...] = ()  # what was set since the run was started

    @property
    def over(self) -> bool:
        return self.state in ("done", "stopped")


def write_status(run: Path, status: Status) -> None:
    """Raises: OSError: it cannot be written."""
    put(run / FILE, msgspec.json.format(msgspec.json.encode(status), indent=2))


def read_status(run: Path) -> Status | None:
    """None where no driver has written any. Raises: ConfigError: it is damaged."""
    try:
        return msgspec.json.decode((run / FILE).read_bytes(), type=Status)
    except FileNotFoundError:
        return None
    except (OSError, msgspec.MsgspecError) as err:
        raise ConfigError(f"{run / FILE}: cannot be read: {err}") from err


def driven(run: Path, status: Status | None, now: float | None = None) -> bool:
    """Whether a driver is at work on this run.

    Its lock says so wherever locks are seen; on another machine, whose file system may not share them, a fresh sign of
    life does. Clocks may differ by less than ``STALE_S``.
    """
    if _held(run / LOCK):
        return True
    if status is None or status.over or status.host == os.uname().nodename:
        return False
    return abs((time.time() if now is None else now) - status.at) < STALE_S


def _held(lock: Path) -> bool:
    """Whether another process holds the lock. It is asked for shared, for an instant: see ``RunFolder.lock``."""
    try:
        fd = os.open(lock, os.O_RDONLY)
    except OSError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(fd)
    return False
