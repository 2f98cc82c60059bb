"""The ledger of a batched model: which rows were submitted in which batch, on disk before they can be lost.

A file of JSON lines in the run's folder, only ever added to, each line synced before the next step is taken. A batch
is *meant* before it is submitted and *made* once its id is known, so that one whose answer was lost is looked for.
"""

from __future__ import annotations

import fcntl
import os
import threading
import time
from pathlib import Path

import msgspec

from actors.services.batch_book import Known
from protocols.errors import AgentError

RETRY_S = 0.1


class Meant(msgspec.Struct, frozen=True, tag="meant"):
    """About to be submitted."""

    tag: str
    at_s: float
    keys: tuple[str, ...]


class Made(msgspec.Struct, frozen=True, tag="made"):
    """At the service, under this id."""

    tag: str
    id: str


class Void(msgspec.Struct, frozen=True, tag="void"):
    """Not at the service."""

    tag: str


Entry = Meant | Made | Void

_DECODER = msgspec.json.Decoder(Entry)
_ENCODER = msgspec.json.Encoder()


class Ledger:
    """Open the ledger of one model for writing, making it where it is missing; one process at a time.

    Args:
        lock_wait_s: how long to wait for a holder that is about to go: a host outlives a killed driver for a moment.
    Raises: AgentError: held by another process, not writable, damaged.
    """

    def __init__(self, path: Path, *, lock_wait_s: float = 0.0) -> None:
        self.path, self._adding = path, threading.Lock()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        except OSError as err:
            raise AgentError(f"{path}: cannot be written: {err.strerror}") from err
        try:
            self._lock(lock_wait_s)
            self.known = self._read()
        except BaseException:
            self.close()
            raise

    def _lock(self, wait_s: float) -> None:
        deadline = time.monotonic() + wait_s
        while True:
            try:
                fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except OSError as err:
                if time.monotonic() >= deadline:
                    raise AgentError(f"{self.path}: another process still submits batches of this run") from err
                time.sleep(RETRY_S)

    def _read(self) -> tuple[Known, ...]:
        """The batches that are, or may be, at the service; a last line that was cut short is taken off."""
        data = self.path.read_bytes()
        whole = data.rfind(b"\n") + 1
        if whole < len(data):
            os.ftruncate(self._fd, whole)
        batches: dict[str, Known] = {}
        for number, line in enumerate(data[:whole].splitlines(), 1):
            try:
                entry = _DECODER.decode(line)
                if isinstance(entry, Meant):
                    batches[entry.tag] = Known(tag=entry.tag, keys=entry.keys, at_s=entry.at_s)
                elif isinstance(entry, Made):
                    batches[entry.tag] = msgspec.structs.replace(batches[entry.tag], id=entry.id)
                else:
                    del batches[entry.tag]
            except (msgspec.MsgspecError, KeyError) as err:
                raise AgentError(f"{self.path}, line {number}: is damaged: {err}") from err
        return tuple(batches.values())

    def add(self, entry: Entry) -> None:
        """Returns once it is on disk. Raises: OSError: it is not."""
        data = _ENCODER.encode(entry) + b"\n"
        with self._adding:
            while data:
                data = data[os.write(self._fd, data) :]
            os.fsync(self._fd)

    def close(self) -> None:
        with self._adding:
            if self._fd >= 0:
                os.close(self._fd)
                self._fd = -1
