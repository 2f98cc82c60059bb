"""Images on their way to a model: found by their hash in the run's folders, checked, and kept ready in base64."""

from __future__ import annotations

import base64
import hashlib
import re
from collections import OrderedDict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol, runtime_checkable

from protocols.errors import ReplyError
from protocols.message import ImagePart

CACHE_BYTES = 256 * 2**20  # of base64 a backend keeps: one debate shows the same image in every message
MAX_FILE_BYTES = 64 * 2**20
_HASH = re.compile(r"[0-9a-f]{64}")

ReadImage = Callable[[ImagePart], bytes]


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


class Base64Images:
    """Images in base64, the last ones used kept. ``max_bytes``: of base64 text in memory."""

    def __init__(self, *, max_bytes: int = CACHE_BYTES) -> None:
        self._max_bytes = max_bytes
        self._kept = OrderedDict[str, str]()
        self._size_bytes = 0

    def get(self, part: ImagePart, read: ReadImage | None) -> str:
        """Raises: ReplyError (malformed): see ``ImageFolder.read``."""
        if (text := self._kept.get(part.sha256)) is not None:
            self._kept.move_to_end(part.sha256)
            return text
        if read is None:
            raise ReplyError(f"image {part.sha256} cannot be sent: the host was given no folder of images", "malformed")
        text = base64.b64encode(read(part)).decode("ascii")
        self._keep(part.sha256, text)
        return text

    def _keep(self, sha256: str, text: str) -> None:
        self._kept[sha256] = text
        self._size_bytes += len(text)
        while self._size_bytes > self._max_bytes:
            _, dropped = self._kept.popitem(last=False)
            self._size_bytes -= len(dropped)
