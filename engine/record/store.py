"""A place for copies: any folder or object store that fsspec reaches, and a thread that keeps copying to it."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import Any

from protocols.errors import ConfigError

log = logging.getLogger("moot.mirror")

MAX_PAUSE_S = 60.0  # between tries while the store fails
CLOSE_S = 30.0  # how long the end of a run waits for what is left


class Store:
    """One folder of a store. Its errors are whatever the store's client raises.

    Raises: ConfigError: the URL cannot be used.
    """

    def __init__(self, url: str) -> None:
        from fsspec.core import url_to_fs

        self.url = url.rstrip("/")
        try:
            self._fs, self._root = url_to_fs(self.url)
        except ImportError as err:
            raise ConfigError(f"run.mirror={url!r}: {err}; for S3: pip install 'moot[s3]'") from err
        except ValueError as err:
            raise ConfigError(f"run.mirror={url!r}: {err}; give a URL such as s3://bucket/runs") from err

    def put(self, name: str, data: bytes) -> None:
        path = f"{self._root}/{name}"
        if "file" in self._fs.protocol:  # an object store has no folders to make
            self._fs.makedirs(path.rpartition("/")[0], exist_ok=True)
        self._fs.pipe_file(path, data)

    def upload(self, name: str, path: str) -> None:
        target = f"{self._root}/{name}"
        if "file" in self._fs.protocol:
            self._fs.makedirs(target.rpartition("/")[0], exist_ok=True)
        self._fs.put_file(path, target)

    def get(self, name: str) -> bytes:
        data: bytes = self._fs.cat_file(f"{self._root}/{name}")
        return data

    def download(self, name: str, path: str) -> None:
        self._fs.get_file(f"{self._root}/{name}", path)

    def names(self, folder: str = "") -> list[str]:
        """All files below a folder, by their path from here, sorted; none where the folder is missing."""
        self._fs.invalidate_cache()
        root = self._fs._strip_protocol(self._root).rstrip("/")
        found: list[Any] = self._fs.find(f"{root}/{folder}" if folder else root)
        return sorted(str(path)[len(root) + 1 :] for path in found)


class Copier:
    """Copies again and again in a thread of its own, until it is closed. A store that fails is told once and retried.

    Args:
        what: is copied, for the log.
        copy: copies all that is new; whatever it raises is a failure of the store.
        every_s: between the end of one and the start of the next.
    """

    def __init__(self, what: str, copy: Callable[[], None], *, every_s: float) -> None:
        self.error = ""  # why the last try failed; "" while all is well
        self.complete_at = time.monotonic()  # the start of the last one that left nothing behind
        self._what, self._copy, self._every_s = what, copy, every_s
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="mirror", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        pause_s = self._every_s
        while True:
            closing = self._closing.wait(pause_s)
            began = time.monotonic()
            try:
                self._copy()
            except Exception as err:  # a client of any store, with errors of its own
                pause_s = min(2 * pause_s, MAX_PAUSE_S)
                if not self.error or closing:
                    log.warning("%s is not copied: %s: %s; it is tried again", self._what, type(err).__name__, err)
                self.error = f"{type(err).__name__}: {err}"
            else:
                if self.error:
                    log.warning("%s is copied again", self._what)
                self.error, self.complete_at, pause_s = "", began, self._every_s
            if closing:
                return

    def close(self, wait_s: float = CLOSE_S) -> bool:
        """Copy what is left, and stop. Returns: whether all of it is copied."""
        self._closing.set()
        self._thread.join(wait_s)
        return not self._thread.is_alive() and not self.error
