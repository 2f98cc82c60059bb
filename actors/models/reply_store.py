"""Replies on disk, by key: one small file each, written beside its place and renamed into it.

Many processes, on many machines, may share a folder: there is nothing to lock, a reader sees an entry whole or not at
all, and damage is one entry's own. No failure of the disk reaches whoever asks; it is logged once.
"""

from __future__ import annotations

import hashlib
import logging
import os
import threading
from contextlib import suppress
from pathlib import Path
from uuid import uuid4

import msgspec

from protocols.message import Reply

log = logging.getLogger("moot.cache")

TRIM_AFTER, TRIM_TO = 0.1, 0.9  # shares of the limit: written before the folder is looked over again, left by it then
_DIGEST_BYTES = 32

_ENCODER = msgspec.msgpack.Encoder()
_DECODER = msgspec.msgpack.Decoder(Reply)


class ReplyStore:
    """Entries of one folder. The methods block; any number of threads may be in them.

    Args:
        max_mb: MiB of entries; those not used for longest go. 0: no limit. Each process that writes may pass it by a
            tenth.
    """

    def __init__(self, folder: Path, *, max_mb: int = 0) -> None:
        self._folder, self._max_bytes = folder, max_mb << 20
        self._written = self._max_bytes  # since the folder was last looked over: the first entry has it done
        self._trimming = threading.Lock()
        self._complained = False

    def get(self, key: str) -> Reply | None:
        """None: not there, or damaged, which is logged."""
        path = self._path(key)
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as err:
            self._complain("read", err)
            return None
        reply = _unpacked(key, data)
        if reply is None:
            log.warning("cache entry %s is damaged; the model is asked again, and the entry replaced", path)
        elif self._max_bytes:
            with suppress(OSError):  # in a folder that cannot be written nothing is trimmed either
                os.utime(path)
        return reply

    def put(self, key: str, reply: Reply) -> None:
        """Replaces what is there. Not forced to disk: an entry that a loss of power cut short is found damaged."""
        path, body = self._path(key), _ENCODER.encode(reply)
        part = path.with_name(f"{uuid4().hex}.part")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            part.write_bytes(_digest(key, body) + body)
            part.replace(path)
        except OSError as err:
            with suppress(OSError):
                part.unlink(missing_ok=True)
            self._complain("write", err)
            return
        self._written += len(body)
        if self._max_bytes and self._written >= TRIM_AFTER * self._max_bytes:
            self._trim()

    def _path(self, key: str) -> Path:
        return self._folder / key[:2] / key

    def _trim(self) -> None:
        if not self._trimming.acquire(blocking=False):
            return  # another thread is at it
        try:
            self._written = 0
            entries = [(status.st_mtime, status.st_size, path) for path, status in self._entries()]
            size_bytes = sum(size for _, size, _ in entries)
            if size_bytes <= self._max_bytes:
                return
            for _, size, path in sorted(entries):
                path.unlink(missing_ok=True)
                size_bytes -= size
                if size_bytes <= TRIM_TO * self._max_bytes:
                    break
        except OSError as err:
            self._complain("trim", err)
        finally:
            self._trimming.release()

    def _entries(self) -> list[tuple[Path, os.stat_result]]:
        """With what a writer that was killed has left."""
        found = []
        for path in self._folder.glob("??/*"):
            with suppress(FileNotFoundError):  # another process trims too
                found.append((path, path.stat()))
        return found

    def _complain(self, what: str, err: OSError) -> None:
        if not self._complained:
            self._complained = True
            log.warning("cache %s: cannot %s: %s; the run goes on without what it cannot keep", self._folder, what, err)


def _unpacked(key: str, data: bytes) -> Reply | None:
    """None: not what was written under this key."""
    body = data[_DIGEST_BYTES:]
    if data[:_DIGEST_BYTES] != _digest(key, body):
        return None
    try:
        return _DECODER.decode(body)
    except msgspec.MsgspecError:
        return None


def _digest(key: str, body: bytes) -> bytes:
    return hashlib.sha256(key.encode() + body).digest()
