"""Images are found by their hash, checked, and kept in base64 within a bound."""

from __future__ import annotations

import base64
import hashlib
from pathlib import Path

import pytest

from actors.images import Base64Images, ImageFolder
from protocols.errors import ReplyError
from protocols.message import ImagePart


def put(folder: Path, data: bytes) -> ImagePart:
    part = ImagePart(sha256=hashlib.sha256(data).hexdigest())
    folder.mkdir(exist_ok=True)
    (folder / part.sha256).write_bytes(data)
    return part


def test_an_image_is_read_from_the_first_folder_that_has_it(tmp_path: Path) -> None:
    part = put(tmp_path / "two", b"an image")
    folder = ImageFolder([tmp_path / "one", tmp_path / "two"])
    assert folder.read(part) == b"an image"


@pytest.mark.parametrize("name", ["../secret", "/etc/passwd", "", "a" * 63, "A" * 64, "a" * 64 + "\n"])
def test_a_name_that_is_no_hash_is_not_made_a_path(tmp_path: Path, name: str) -> None:
    (tmp_path / "secret").write_bytes(b"secret")
    with pytest.raises(ReplyError, match="names no image") as caught:
        ImageFolder([tmp_path / "media"]).read(ImagePart(sha256=name))
    assert caught.value.kind == "malformed"


def test_an_image_that_is_missing_or_damaged_is_named(tmp_path: Path) -> None:
    part = put(tmp_path, b"an image")
    (tmp_path / part.sha256).write_bytes(b"an imagf")
    with pytest.raises(ReplyError, match=f"{part.sha256} is damaged"):
        ImageFolder([tmp_path]).read(part)
    (tmp_path / part.sha256).unlink()
    with pytest.raises(ReplyError, match=f"{part.sha256} is not in {tmp_path}") as caught:
        ImageFolder([tmp_path]).read(part)
    assert caught.value.kind == "malformed"
    with pytest.raises(ReplyError, match="the host was given none"):
        ImageFolder([]).read(part)


def test_base64_is_made_once_and_the_oldest_leaves_first() -> None:
    reads: list[str] = []

    def read(part: ImagePart) -> bytes:
        reads.append(part.sha256)
        return part.sha256.encode()  # three bytes, so four of base64

    images = Base64Images(max_bytes=8)
    one, two, three = (ImagePart(sha256=name) for name in ("one", "two", "six"))
    for part in (one, two, one, three, one, two):  # three pushes two out, as one was used since
        assert base64.b64decode(images.get(part, read)).decode() == part.sha256
    assert reads == ["one", "two", "six", "two"]


def test_an_image_larger_than_the_cache_is_sent_and_not_kept() -> None:
    images = Base64Images(max_bytes=3)
    part = ImagePart(sha256="x")
    assert images.get(part, lambda part: b"abc") == images.get(part, lambda part: b"abc") == "YWJj"
    assert images.get(part, lambda part: b"xyz") == "eHl6"


def test_without_a_folder_the_sentence_says_so() -> None:
    with pytest.raises(ReplyError, match="given no folder of images"):
        Base64Images().get(ImagePart(sha256="0" * 64), None)
