"""Images as tasks name them: bytes kept once, under their SHA-256, and linked into the folder of the run.

Tasks are read before a run has a folder, so images are first kept in the user's cache. When the folder is made, the
run takes what it uses: nothing a run needs lies outside of it.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import io
import os
import shutil
import tempfile
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

from actors.local.embedded import cache_folder
from engine.data.image_header import read_header
from protocols.errors import ConfigError, TaskError
from protocols.message import ImagePart
from protocols.task import Task

MIN_SIDE_PX, MAX_SIDE_PX, MAX_ASPECT = 224, 4096, 7  # what vision encoders take without losing most of the picture
MAX_FILE_BYTES = 64 * 2**20

Hygiene = Literal["keep", "refuse", "resize"]


class MediaStore:
    """A folder of images, each a file named by the SHA-256 of its bytes. Several processes may put at once."""

    def __init__(self, folder: Path | None = None) -> None:
        """``folder``: default: ``media`` in the user's cache. It is made when the first image is put."""
        self.folder = folder or cache_folder() / "media"

    def put(self, data: bytes, *, where: str, hygiene: Hygiene = "keep") -> ImagePart:
        """Keep an image; the same bytes are kept once.

        Args:
            where: names the image in errors.
            hygiene: ``refuse`` an image with a side below 224 or above 4096 px, or longer than seven times its width;
                ``resize`` one with a side out of range, as PNG; ``keep`` all as they are.
        Raises: TaskError: not a whole PNG, JPEG, GIF or WebP, or refused. ConfigError: the folder cannot be written.
        """
        part = _part(data, where)
        if hygiene != "keep" and (problem := hygiene_problem(part)):
            if hygiene == "refuse" or _aspect(part) > MAX_ASPECT:
                raise TaskError(f"{where}: {problem}; mend it, or set tasks.image_hygiene: keep")
            data = _resized(data, part, where)
            part = _part(data, where)
        self._write(part.sha256, data)
        return part

    def path(self, sha256: str) -> Path:
        return self.folder / sha256

    def _write(self, sha256: str, data: bytes) -> None:
        target = self.path(sha256)
        try:
            if target.is_file() and target.stat().st_size == len(data):
                return
            self.folder.mkdir(parents=True, exist_ok=True)
            handle, temporary = tempfile.mkstemp(prefix=".new-", dir=self.folder)
            try:
                with open(handle, "wb") as file:
                    file.write(data)
                os.chmod(temporary, 0o444)
                os.replace(temporary, target)
            finally:
                with suppress(FileNotFoundError):  # it was renamed: all went well
                    os.unlink(temporary)
        except OSError as err:
            raise ConfigError(
                f"{self.folder}: images cannot be kept there: {err.strerror}; set MOOT_CACHE to a folder that can be "
                "written"
            ) from err


def read_image(value: Any, *, folder: Path, where: str) -> tuple[bytes, str]:
    """The bytes of one image of a row, and its name for errors.

    Args:
        value: a path inside ``folder``, a ``data:`` address, or what datasets keep: a mapping of bytes and path.
    Raises: TaskError: no such file, one outside of the folder, or something else.
    """
    if isinstance(value, Mapping):
        value = value.get("path") if value.get("bytes") is None else value["bytes"]
    if isinstance(value, bytes):
        return _limited(value, where), where
    if not isinstance(value, str) or not value:
        raise TaskError(f"{where}: an image must be a path or bytes, not {type(value).__name__}")
    if value.startswith("data:"):
        return _limited(_inline(value, where), where), where
    if "://" in value[:12]:
        raise TaskError(f"{where}: {value[:80]!r} is an address; fetch the image and give its path")
    return _file(value, folder, where)


def collect_media(tasks: Iterable[Task], folder: Path, store: MediaStore | None = None) -> list[str]:
    """Link, or copy, every image of the tasks into ``folder / "media"``.

    Returns: one line on images that a vision model may not see well; none, no line.
    Raises: ConfigError: an image is gone from the store, or the folder cannot be written.
    """
    store, images = store or MediaStore(), {image.sha256: image for task in tasks for image in task.images}
    target = folder / "media"
    try:
        if images:
            target.mkdir(exist_ok=True)
        for sha256 in images:
            _link(store.path(sha256), target / sha256)
    except OSError as err:
        raise ConfigError(f"{err.filename}: the run's images cannot be taken from there: {err.strerror}") from err
    odd = sorted(filter(None, map(hygiene_problem, images.values())))
    if not odd:
        return []
    return [f"{len(odd)} of {len(images)} images may be seen badly, for instance one that {odd[0]}"]


def hygiene_problem(image: ImagePart) -> str:
    """What is wrong with an image's size, as the end of a sentence; "" where nothing is."""
    size = f"measures {image.width_px} x {image.height_px} pixels"
    if min(image.width_px, image.height_px) < MIN_SIDE_PX:
        return f"{size}, a side below {MIN_SIDE_PX}"
    if max(image.width_px, image.height_px) > MAX_SIDE_PX:
        return f"{size}, a side above {MAX_SIDE_PX}"
    if _aspect(image) > MAX_ASPECT:
        return f"{size}, more than {MAX_ASPECT} to 1"
    return ""


def _aspect(image: ImagePart) -> float:
    return max(image.width_px, image.height_px) / min(image.width_px, image.height_px)


def _part(data: bytes, where: str) -> ImagePart:
    try:
        header = read_header(data)
    except ValueError as err:
        raise TaskError(f"{where}: {err}; put a whole image there") from err
    return ImagePart(sha256=hashlib.sha256(data).hexdigest(), **header._asdict())


def _resized(data: bytes, part: ImagePart, where: str) -> bytes:
    """The nearest size with both sides in range, as PNG. Up to 7 to 1 there is one: 224 x 1568 at least."""
    try:
        from PIL import Image, ImageOps
    except ImportError as err:
        raise ConfigError(
            f"{where}: resizing needs the package Pillow; install it, or keep the image as it is"
        ) from err
    scale = MAX_SIDE_PX / max(part.width_px, part.height_px)
    if scale >= 1:
        scale = MIN_SIDE_PX / min(part.width_px, part.height_px)
    out = io.BytesIO()
    try:
        with Image.open(io.BytesIO(data), formats=("PNG", "JPEG", "GIF", "WEBP")) as image:
            alpha = "A" in image.getbands() or "transparency" in image.info
            upright = ImageOps.exif_transpose(image).convert("RGBA" if alpha else "RGB")
        width_px, height_px = (min(MAX_SIDE_PX, max(MIN_SIDE_PX, round(side * scale))) for side in upright.size)
        upright.resize((width_px, height_px), Image.Resampling.LANCZOS).save(out, "PNG")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as err:
        raise TaskError(f"{where}: cannot be decoded: {str(err).partition(chr(10))[0]}") from err
    return out.getvalue()


def _limited(data: bytes, where: str) -> bytes:
    if len(data) > MAX_FILE_BYTES:
        raise TaskError(f"{where}: an image of {len(data)} bytes, more than the {MAX_FILE_BYTES} allowed")
    return data


def _inline(value: str, where: str) -> bytes:
    head, comma, body = value.partition(",")
    if not comma or not head.endswith(";base64"):
        raise TaskError(f"{where}: {head[:60]!r} must be an image in base64")
    try:
        return base64.b64decode(body, validate=True)
    except (binascii.Error, ValueError) as err:
        raise TaskError(f"{where}: is not valid base64: {err}") from err


def _file(value: str, folder: Path, where: str) -> tuple[bytes, str]:
    """Only from inside ``folder``: a file of tasks from elsewhere must not send out what else lies on the disk."""
    try:
        path = (folder / value).resolve()
        if not path.is_relative_to(folder.resolve()):
            raise TaskError(f"{where}: image {value!r} is not inside {folder}; set tasks.image_folder to one it is in")
        with path.open("rb") as file:
            data = file.read(MAX_FILE_BYTES + 1)
    except (OSError, ValueError) as err:  # ValueError: a null character in the name
        said = getattr(err, "strerror", None) or str(err)
        raise TaskError(
            f"{where}: image {value!r} cannot be read from {folder}: {said}; set tasks.image_folder to where it is"
        ) from err
    return _limited(data, f"{where}: {path}"), f"{where}: {path}"


def _link(source: Path, target: Path) -> None:
    if target.exists():
        return
    try:
        os.link(source, target)
    except FileExistsError:
        return  # another process was faster
    except FileNotFoundError:
        raise
    except OSError:  # another file system, or one without links
        temporary = target.with_name(f".{target.name}.{os.getpid()}")
        shutil.copyfile(source, temporary)
        temporary.replace(target)
