"""An append-only file of checksummed frames. What is appended together is kept or lost together; knows no examples."""

from __future__ import annotations

import fcntl
import os
import struct
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, NamedTuple, TypeVar

from protocols.errors import TrainerError

Frame = TypeVar("Frame")

_MAGIC = b"moot rows 1\n"
_HEADER = struct.Struct(">II")  # payload length, CRC-32 of the payload


class Place(NamedTuple):
    """Where a payload lies in the file, in bytes."""

    start: int
    length: int


class RowLog:
    """The file, held by one process at a time. ``recover`` comes first, once.

    Args:
        lock_wait_s: how long to wait for a holder that is about to go.
    Raises: TrainerError: another process holds it.
    """

    def __init__(self, path: Path, *, lock_wait_s: float = 0.0) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path = path
        self._file: BinaryIO = open(path, "a+b", buffering=0)  # noqa: SIM115 - open as long as the log
        self._end = 0
        deadline = time.monotonic() + lock_wait_s
        while not self._locked():
            if time.monotonic() >= deadline:
                self._file.close()
                raise TrainerError(
                    f"the feed in {path.parent} is open in another process; stop that run or use another folder"
                )
            time.sleep(0.1)

    def recover(
        self, decode: Callable[[bytes], Frame], commits: Callable[[Frame], bool]
    ) -> Iterator[tuple[Frame, Place]]:
        """All frames up to the last one that ``commits``; what a crash left behind it is cut off the file.

        Raises: TrainerError: not such a file, or damaged before its end.
        """
        size = self._check_head()
        at = self._end = len(_MAGIC)
        torn_at: int | None = None
        waiting: list[tuple[Frame, Place]] = []
        while (place := self._place_at(at, size)) is not None:
            at = place.start + place.length
            payload = self.read(place)
            if zlib.crc32(payload) != self._checksum(place):
                torn_at = place.start if torn_at is None else torn_at
                continue
            frame = decode(payload)
            waiting.append((frame, place))
            if not commits(frame):
                continue
            if torn_at is not None:  # a crash tears only the end; a whole commit behind a hole means a damaged disk
                raise TrainerError(f"{self._path} is damaged at byte {torn_at}; restore it or select the rows again")
            yield from waiting
            waiting, self._end = [], at
        self._file.truncate(self._end)

    def append(self, payloads: Sequence[bytes]) -> list[Place]:
        """Write payloads and flush them to the disk; the last must commit them. Returns: where each lies.

        Raises: TrainerError: the disk refuses; nothing was added.
        """
        data = bytearray()
        places = []
        for payload in payloads:
            data += _HEADER.pack(len(payload), zlib.crc32(payload))
            places.append(Place(self._end + len(data), len(payload)))
            data += payload
        self._write(bytes(data))
        self._end += len(data)
        return places

    def read(self, place: Place) -> bytes:
        return os.pread(self._file.fileno(), place.length, place.start)

    def close(self) -> None:
        self._file.close()

    def _locked(self) -> bool:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def _check_head(self) -> int:
        """Returns: the file's size."""
        size = os.fstat(self._file.fileno()).st_size
        head = os.pread(self._file.fileno(), len(_MAGIC), 0)
        if size < len(_MAGIC) and _MAGIC.startswith(head):  # new, or its first write was torn
            self._file.truncate(0)
            self._write(_MAGIC)
            sync_folder(self._path.parent)
            return len(_MAGIC)
        if head != _MAGIC:
            raise TrainerError(f"{self._path} is not a log of training rows; move it away and select the rows again")
        return size

    def _place_at(self, at: int, size: int) -> Place | None:
        """Where the frame at ``at`` has its payload; None if no whole frame is there."""
        if at + _HEADER.size > size:
            return None
        length, _ = _HEADER.unpack(os.pread(self._file.fileno(), _HEADER.size, at))
        place = Place(at + _HEADER.size, length)
        # Some file systems fill a torn end with zeros; no payload is empty.
        return place if length and place.start + length <= size else None

    def _checksum(self, place: Place) -> int:
        _, checksum = _HEADER.unpack(os.pread(self._file.fileno(), _HEADER.size, place.start - _HEADER.size))
        return int(checksum)

    def _write(self, data: bytes) -> None:
        before = os.fstat(self._file.fileno()).st_size
        try:
            view = memoryview(data)
            while view:
                view = view[self._file.write(view) :]
            os.fsync(self._file.fileno())
        except OSError as err:
            self._file.truncate(before)  # half a record must not stand before the next one
            raise TrainerError(f"{self._path} cannot be written: {err}; free the disk and resume the run") from err


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable: a new file survives a crash only once its folder is flushed too."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
