"""Every row that can still be found in a damaged journal, whatever SQLite thinks of the file.

SQLite finds rows by way of inner pages: where one of those is damaged, all below it is lost to it. Here every page of
the file and of its WAL is looked at by itself, and each row's own check says whether it is one. Layout of the pages:
https://www.sqlite.org/fileformat2.html, sections 1.6, 2.1 and 4.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from engine.record.journal_rows import COLUMNS, Row, is_whole

LEAF = 0x0D  # a page that holds rows of a table
WAL_HEADER, FRAME_HEADER = 32, 24
DEFAULT_PAGE = 4096
MAX_ROW = 2**28  # bytes; a length beyond it is damage, and must not be followed

_WIDTH = {table: columns.count(",") + 1 for table, columns in COLUMNS.items()}
_AT = {"events": 3, "graphs": 2, "notes": 3}  # where a time stands, which SQLite may have kept as a whole number
_INTEGERS = {1: 1, 2: 2, 3: 3, 4: 4, 5: 6, 6: 8}  # serial type -> bytes
_UNREADABLE = (IndexError, ValueError, struct.error, OverflowError, TypeError)

Page = Callable[[int], bytes]
"""A page's bytes by its number, which counts from 1."""


def find_rows(path: Path) -> Iterator[tuple[str, Row]]:
    """Whole rows with their tables: those of the file, then those of the WAL; a later one takes an earlier one's place.

    A commit that was under way may be among them. Its replies had come, so nothing is wrong with them.
    """
    with ExitStack() as stack:
        data = _mapped(stack, path)
        wal = _mapped(stack, path.with_name(f"{path.name}-wal"))
        size = _page_size(data, wal)
        frames = range(WAL_HEADER, len(wal) - FRAME_HEADER - size + 1, FRAME_HEADER + size)
        newest = {int.from_bytes(wal[at : at + 4], "big"): at + FRAME_HEADER for at in frames}

        def of_file(number: int) -> bytes:
            return data[(number - 1) * size : number * size]

        def of_wal(number: int) -> bytes:
            at = newest.get(number)
            return of_file(number) if at is None else wal[at : at + size]

        for at in range(0, len(data) - size + 1, size):
            yield from _rows(data[at : at + size], of_file)
        for at in frames:
            yield from _rows(wal[at + FRAME_HEADER : at + FRAME_HEADER + size], of_wal)


def _mapped(stack: ExitStack, path: Path) -> bytes | mmap.mmap:
    if not path.exists() or not path.stat().st_size:
        return b""
    file = stack.enter_context(path.open("rb"))
    return stack.enter_context(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))


def _page_size(data: bytes | mmap.mmap, wal: bytes | mmap.mmap) -> int:
    """As the file says, or its WAL; what journals have unless told otherwise where neither can be believed."""
    told = (int.from_bytes(data[16:18], "big"), int.from_bytes(wal[8:12], "big"))
    return next((size for size in told if size in (2**power for power in range(9, 16))), DEFAULT_PAGE)


def _rows(page: bytes, page_of: Page) -> Iterator[tuple[str, Row]]:
    if page[0] != LEAF:
        return
    for number in range(int.from_bytes(page[3:5], "big")):
        pointer = 8 + 2 * number
        try:
            num, values = _cell(page, int.from_bytes(page[pointer : pointer + 2], "big"), page_of)
        except _UNREADABLE:
            continue  # not a row, or not any more: every other one is judged by itself
        for table, width in _WIDTH.items():
            if len(values) == width:
                at = _AT.get(table, 0)
                row = (num, *(float(v) if i == at and isinstance(v, int) else v for i, v in enumerate(values[1:], 1)))
                if is_whole(table, row):
                    yield table, row


def _cell(page: bytes, at: int, page_of: Page) -> tuple[int, list[Any]]:
    """A row's number and its values; the first of them stands for the number and is empty."""
    length, at = _varint(page, at)
    num, at = _varint(page, at)
    if not 0 < length <= MAX_ROW:
        raise ValueError("no row is that long")
    usable = len(page)
    most, least = usable - 35, (usable - 12) * 32 // 255 - 23
    if length <= most:
        return num, _values(page[at : at + length])
    local = least + (length - least) % (usable - 4)
    local = local if local <= most else least
    parts, left = [page[at : at + local]], length - local
    following = int.from_bytes(page[at + local : at + local + 4], "big")
    while left > 0:
        more = page_of(following)
        parts.append(more[4 : 4 + left])
        if len(parts[-1]) == 0:
            raise ValueError("the rest is not there")
        left -= len(parts[-1])
        following = int.from_bytes(more[:4], "big")
    return num, _values(b"".join(parts))


def _values(payload: bytes) -> list[Any]:
    end, at = _varint(payload, 0)
    kinds = []
    while at < end:
        kind, at = _varint(payload, at)
        kinds.append(kind)
    values = []
    for kind in kinds:
        value, at = _value(payload, kind, at)
        values.append(value)
    if at != len(payload):
        raise ValueError("not a record")
    return values


def _value(payload: bytes, kind: int, at: int) -> tuple[Any, int]:
    if kind == 0:
        return None, at
    if kind in _INTEGERS:
        end = at + _INTEGERS[kind]
        return int.from_bytes(payload[at:end], "big", signed=True), end
    if kind == 7:
        return struct.unpack(">d", payload[at : at + 8])[0], at + 8
    if kind in (8, 9):
        return kind - 8, at
    if kind < 12:
        raise ValueError("no such kind")
    end = at + (kind - 12) // 2
    return (payload[at:end].decode() if kind % 2 else payload[at:end]), end


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """SQLite's: seven bits a byte, high ones first; a ninth byte has eight. Returns: it, and where it ends."""
    value = 0
    for number in range(9):
        byte = data[at + number]
        if number == 8:
            value = value << 8 | byte
            return (value - 2**64 if value >= 2**63 else value), at + 9
        value = value << 7 | byte & 0x7F
        if byte < 0x80:
            return value, at + number + 1
    raise AssertionError("unreachable")
