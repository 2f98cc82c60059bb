"""Who may write to a journal: one process at a time, and nobody while a repair is about to take its place."""

from __future__ import annotations

import fcntl
import os
import time
from pathlib import Path

from protocols.errors import JournalError


def take_lock(path: Path, wait_s: float = 0.0) -> int:
    """The lock of a journal, as a file descriptor to close.

    Raises: JournalError: another process holds it, or the folder cannot be written.
    """
    lock = path.with_suffix(".lock")
    try:
        fd = os.open(lock, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as err:
        raise JournalError(f"journal folder {lock.parent}: cannot be written: {err.strerror}") from err
    deadline = time.monotonic() + wait_s
    while not _locked(fd):
        if time.monotonic() >= deadline:
            os.close(fd)
            raise JournalError(
                f"{lock.parent} is in use by another run that is still going; wait for it, or choose another --run-dir"
            )
        time.sleep(0.1)
    return fd


def _locked(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def repaired_path(path: Path) -> Path:
    """Where a finished repair waits to take the journal's place."""
    return path.with_suffix(".repaired")


def refuse_half_repaired(path: Path) -> None:
    """Raises: JournalError: what lies there is about to be replaced."""
    if repaired_path(path).exists():
        raise JournalError("its repair was interrupted; `moot journal repair` finishes it")
