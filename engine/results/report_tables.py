"""The tables that reports are made of: all of one kind, so that one macro draws them."""

from __future__ import annotations

import msgspec

from engine.results.findings import count, percent

MAX_NAMES = 14  # rows and columns of a matrix
MAX_ROWS = 60  # of a list


class Cell(msgspec.Struct, frozen=True):
    """A cell: its text, what explains it, and how strongly it is shaded (0 to 1; None: not at all)."""

    text: str
    small: str = ""
    heat: float | None = None


class Table(msgspec.Struct, frozen=True, kw_only=True):
    """A table: ``head`` is [1 + N], a row is its name and [N] cells."""

    title: str
    caption: str
    head: tuple[str, ...]
    rows: tuple[tuple[str, tuple[Cell, ...]], ...]
    left_out: int = 0  # rows and columns that did not fit


def share(part: float, whole: float) -> str:
    """A percentage; a dash of nothing."""
    return percent(part / whole if whole else None)


def share_of(part: int, whole: int) -> Cell:
    """A percentage, and what it is of."""
    return Cell(share(part, whole), f"{count(part)} of {count(whole)}")


def shaded(part: int, whole: int) -> Cell:
    """A percentage that shades its cell."""
    return Cell(share(part, whole), count(part), part / whole if whole else None)
