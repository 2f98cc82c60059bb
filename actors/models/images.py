"""Images on their way to a model: found by their hash in the run's folders, checked, and kept as models take them."""

from __future__ import annotations

import base64
import hashlib
import re
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Generic, Protocol, TypeVar, runtime_checkable

from protocols.errors import ReplyError
from protocols.message import ImagePart

CACHE_BYTES = 256 * 2**20  # a backend keeps: one debate shows the same image in every message
MAX_FILE_BYTES = 64 * 2**20
_HASH = re.compile(r"[0-9a-f]{64}")

ReadImage = Callable[[ImagePart], bytes]

T = TypeVar("T")


@runtime_checkable
class ReadsImages(Protocol):
    """A backend that sends images on. The host sets ``read_image`` before ``start``, to ``ImageFolder.read``."""

    read_image: ReadImage | None


class ImageFolder:
    """Folders of images, each a file named by the SHA-256 of its bytes. The first folder that has one is asked."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self._paths = tuple(paths)

    def read(self, part: ImagePart) -> bytes:
        """The bytes of an image. Raises: ReplyError (malformed): it is not there, or not what its name says."""
        if not _HASH.fullmatch(part.sha256):  # it becomes part of a path
            raise ReplyError(f"{part.sha256[:80]!r} names no image: it must be the SHA-256 of its bytes", "malformed")
        data = self._find(part.sha256)
        if hashlib.sha256(data).hexdigest() != part.sha256:
            raise ReplyError(f"image {part.sha256} is damaged: its bytes have another hash", "malformed")
        return data

    def _find(self, sha256: str) -> bytes:
        for folder in self._paths:
            try:
                with (folder / sha256).open("rb") as file:
                    return file.read(MAX_FILE_BYTES)
            except FileNotFoundError:
                continue
            except OSError as err:
                raise ReplyError(f"image {sha256} cannot be read from {folder}: {err.strerror}", "malformed") from err
        places = ", ".join(map(str, self._paths)) or "any folder: the host was given none"
        raise ReplyError(f"image {sha256} is not in {places}", "malformed")


class KeptImages(Generic[T]):
    """What images were made into for a model, the last ones used kept. May be asked from several threads.

    Args:
        make: from an image's bytes. It may raise ValueError, whose text ends a sentence about the image.
        size_bytes: of what was made, in memory; the whole of what is kept stays within ``max_bytes``.
    """

    def __init__(
        self, make: Callable[[bytes], T], size_bytes: Callable[[T], int], *, max_bytes: int = CACHE_BYTES
    ) -> None:
        self._make, self._size_of, self._max_bytes = make, size_bytes, max_bytes
        self._kept = OrderedDict[str, T]()
        self._size_bytes = 0
        self._lock = threading.Lock()  # held while one is made: whoever wants the same one waits for it

    def get(self, part: ImagePart, read: ReadImage | None) -> T:
        """Raises: ReplyError (malformed): it cannot be made into what is wanted, or see ``ImageFolder.read``."""
        with self._lock:
            if part.sha256 in self._kept:
                self._kept.move_to_end(part.sha256)
                return self._kept[part.sha256]
            if read is None:
                raise ReplyError(
                    f"image {part.sha256} cannot be sent: the host was given no folder of images", "malformed"
                )
            try:
                made = self._make(read(part))
            except ValueError as err:
                raise ReplyError(f"image {part.sha256} {err}", "malformed") from err
            self._keep(part.sha256, made)
            return made

    def _keep(self, sha256: str, made: T) -> None:
        self._kept[sha256] = made
        self._size_bytes += self._size_of(made)
        while self._size_bytes > self._max_bytes:
            _, dropped = self._kept.popitem(last=False)
            self._size_bytes -= self._size_of(dropped)


class Base64Images(KeptImages[str]):
    """Images in base64, for services."""

    def __init__(self, *, max_bytes: int = CACHE_BYTES) -> None:
        super().__init__(lambda data: base64.b64encode(data).decode("ascii"), len, max_bytes=max_bytes)
