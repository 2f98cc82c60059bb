"""Figures as they are shown to people."""

from __future__ import annotations


def money(usd: float) -> str:
    """To the cent; below a dollar to the hundredth of one."""
    return f"${usd:.2f}" if usd >= 1 else f"${usd:.4f}"


def counted(number: int, noun: str) -> str:
    """``1 ask``, ``2 asks``."""
    return f"{number} {noun}{'s' * (number != 1)}"


def about(seconds: float) -> str:
    """A time that is guessed: in whole seconds."""
    return f"{max(1, round(seconds))} s" if seconds < 120 else duration(seconds)


def duration(seconds: float) -> str:
    """In the unit that suits it: 180 ms, 2.4 s, 14 s, 3 min, 2 h 05 min."""
    if seconds < 1:
        return f"{1000 * seconds:.0f} ms"
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < 120:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"
