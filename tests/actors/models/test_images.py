"""Images are found by their hash, checked, and kept in base64 within a bound."""

from __future__ import annotations

import base64
import hashlib
import io
import struct
import zlib
from pathlib import Path

import pytest
from PIL import Image

from actors.local.pictures import Pictures, decode, unmarked
from actors.models.images import Base64Images, ImageFolder
from protocols.errors import ReplyError
from protocols.message import ImagePart
from tests.tiny_vision_model import picture


def bomb(width_px: int, height_px: int) -> bytes:
    """A PNG of a few bytes that says it measures that much."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width_px, height_px, 8, 0, 0, 0, 0)
    rows = zlib.compress(b"\0" * (width_px + 1) * min(height_px, 8))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


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


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "WEBP"])
def test_a_picture_is_decoded_in_rgb(kind: str) -> None:
    out = io.BytesIO()
    Image.new("RGB", (4, 2), "white").save(out, kind)
    decoded = decode(out.getvalue())
    assert (decoded.mode, decoded.size, decoded.getpixel((3, 1))) == ("RGB", (4, 2), (255, 255, 255))


def test_a_picture_is_turned_as_its_camera_says_and_white_where_it_is_transparent() -> None:
    turned, clear = io.BytesIO(), io.BytesIO()
    exif = Image.Exif()
    exif[274] = 6  # the camera was turned to the left
    Image.new("RGB", (4, 2)).save(turned, "PNG", exif=exif)
    assert decode(turned.getvalue()).size == (2, 4)
    Image.new("RGBA", (1, 1), (255, 0, 0, 0)).save(clear, "PNG")
    assert decode(clear.getvalue()).getpixel((0, 0)) == (255, 255, 255)


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (bomb(20_000, 20_000), "decompression bomb"),  # Pillow's own limit comes first
        (bomb(9_000, 9_000), r"measures 9000 x 9000 pixels, more than the 67108864 that are decoded"),
        (b"%!PS-Adobe-3.0 EPSF-3.0", "cannot be decoded: cannot identify image file"),
        (bomb(8, 8)[:45], "cannot be decoded: "),
    ],
    ids=["bomb", "large", "other", "cut"],
)
def test_a_picture_that_is_too_large_or_none_is_refused_before_it_takes_room(data: bytes, says: str) -> None:
    part = ImagePart(sha256="0" * 64)
    with pytest.raises(ReplyError, match=f"image {part.sha256} .*{says}") as caught:
        Pictures().get(part, lambda part: data)
    assert caught.value.kind == "malformed"


def test_pictures_are_decoded_once_and_kept_within_their_bound() -> None:
    reads: list[str] = []

    def read(part: ImagePart) -> bytes:
        reads.append(part.sha256)
        return picture(1, 2, 3, width_px=2, height_px=2)

    pictures = Pictures(max_bytes=24)  # two of 12 bytes in RGB
    for name in ("a", "b", "a", "c", "a", "b"):
        assert pictures.get(ImagePart(sha256=name), read).size == (2, 2)
    assert reads == ["a", "b", "c", "b"]


def test_a_text_in_which_an_image_is_spoken_of_shows_none() -> None:
    assert unmarked("<image> and <image>", "<image>") == "[image] and [image]"
    assert unmarked("<image>", None) == "<image>"


def test_without_a_folder_the_sentence_says_so() -> None:
    with pytest.raises(ReplyError, match="given no folder of images"):
        Base64Images().get(ImagePart(sha256="0" * 64), None)
