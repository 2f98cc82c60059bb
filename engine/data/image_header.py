"""What an image file says of itself: PNG, JPEG, GIF and WebP, read without decoding a pixel.

The bytes may be hostile: every length is checked against what is there, nothing is decompressed, and each reader goes
through the file once. A file that breaks off before its end is refused.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from typing import NamedTuple

MAX_PIXELS = 2**28  # a decoder would need a gigabyte and more
_JPEG_FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}  # SOF0 to SOF15, less tables, extension and conditioning
_JPEG_BARE = {0x01, *range(0xD0, 0xD9)}  # markers without a length


class Header(NamedTuple):
    media_type: str
    width_px: int
    height_px: int


def read_header(data: bytes) -> Header:
    """Raises: ValueError: not an image of the four kinds, or a damaged one; the text ends a sentence about it."""
    for magic, reader in _READERS:
        if data.startswith(magic):
            try:
                header = reader(data)
            except (struct.error, IndexError) as err:
                raise ValueError("breaks off before its end") from err
            if not (header.width_px > 0 and header.height_px > 0):
                raise ValueError(f"says it measures {header.width_px} x {header.height_px} pixels")
            if header.width_px * header.height_px > MAX_PIXELS:
                raise ValueError(
                    f"measures {header.width_px} x {header.height_px} pixels, more than the {MAX_PIXELS} allowed"
                )
            return header
    raise ValueError("is not a PNG, JPEG, GIF or WebP image")


def _png(data: bytes) -> Header:
    """Source: W3C PNG, sec. 5: chunks of length, type, data, CRC-32; IHDR first, IEND last."""
    at, size = 8, (0, 0)
    while True:
        length, kind = struct.unpack_from(">I4s", data, at)
        body = data[at + 8 : at + 8 + length]
        (crc,) = struct.unpack_from(">I", data, at + 8 + length)
        if zlib.crc32(kind + body) != crc:
            raise ValueError(f"is a PNG whose chunk {kind!r} is damaged")
        if at == 8:
            if kind != b"IHDR" or length != 13:
                raise ValueError("is a PNG without its header chunk")
            size = struct.unpack_from(">II", body)
        if kind == b"IEND":
            return Header("image/png", *size)
        at += 12 + length


def _jpeg(data: bytes) -> Header:
    """Source: ITU-T T.81, annex B: marker segments up to the first scan, whose end is the marker EOI."""
    at, size = 2, None
    while True:
        if data[at] != 0xFF:
            raise ValueError("is a damaged JPEG: a marker is missing")
        marker = data[at + 1]
        if marker == 0xFF:  # a fill byte
            at += 1
            continue
        if marker in _JPEG_BARE:
            at += 2
            continue
        if marker == 0xD9:
            raise ValueError("is a JPEG without a picture")
        (length,) = struct.unpack_from(">H", data, at + 2)
        if length < 2:
            raise ValueError("is a damaged JPEG: a segment has no length")
        if marker in _JPEG_FRAMES:
            height_px, width_px = struct.unpack_from(">HH", data, at + 5)
            size = (width_px, height_px)
        if marker == 0xDA:
            break
        at += 2 + length
    if size is None:
        raise ValueError("is a JPEG without a frame before its scan")
    if data.find(b"\xff\xd9", at) < 0:
        raise ValueError("breaks off before its end")
    return Header("image/jpeg", *size)


def _gif(data: bytes) -> Header:
    """Source: GIF89a, sec. 17 to 27: the screen's size, then blocks up to the trailer."""
    width_px, height_px, flags = struct.unpack_from("<HHB", data, 6)
    at = 13 + (3 << ((flags & 7) + 1) if flags & 0x80 else 0)
    seen = False
    while data[at] != 0x3B:
        if data[at] == 0x2C:
            (local,) = struct.unpack_from("<B", data, at + 9)
            at += 10 + (3 << ((local & 7) + 1) if local & 0x80 else 0) + 1  # and the smallest code's size
            seen = True
        elif data[at] == 0x21:
            at += 2
        else:
            raise ValueError("is a damaged GIF: a block is of no known kind")
        while data[at]:
            at += data[at] + 1
        at += 1
    if not seen:
        raise ValueError("is a GIF without a picture")
    return Header("image/gif", width_px, height_px)


def _webp(data: bytes) -> Header:
    """Source: RFC 9649, sec. 2.3 to 2.7: a RIFF container whose first chunk is VP8, VP8L or VP8X."""
    size, form, kind = struct.unpack_from("<I4s4s", data, 4)
    if form != b"WEBP":
        raise ValueError("is not a PNG, JPEG, GIF or WebP image")
    if len(data) < size + 8:
        raise ValueError("breaks off before its end")
    if kind == b"VP8X":
        low = struct.unpack_from("<HBHB", data, 24)
        return Header("image/webp", 1 + low[0] + (low[1] << 16), 1 + low[2] + (low[3] << 16))
    if kind == b"VP8L":
        signature, bits = struct.unpack_from("<BI", data, 20)
        if signature != 0x2F:
            raise ValueError("is a damaged WebP: its lossless chunk has no signature")
        return Header("image/webp", 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF))
    if kind == b"VP8 ":
        start, width_px, height_px = struct.unpack_from("<3sHH", data, 23)
        if start != b"\x9d\x01\x2a":
            raise ValueError("is a damaged WebP: its first frame is no key frame")
        return Header("image/webp", width_px & 0x3FFF, height_px & 0x3FFF)
    raise ValueError("is a damaged WebP: it starts with no known chunk")


_READERS: tuple[tuple[bytes, Callable[[bytes], Header]], ...] = (
    (b"\x89PNG\r\n\x1a\n", _png),
    (b"\xff\xd8", _jpeg),
    (b"GIF87a", _gif),
    (b"GIF89a", _gif),
    (b"RIFF", _webp),
)
