"""What a number in settings may be: outside of it, one sentence names the setting, its value and its bounds."""

from __future__ import annotations

import math

import msgspec

UP = math.inf  # no upper bound, yet finite
MAX_CONCURRENCY = 1_000_000  # asks in one model
MAX_ROUNDS, MAX_SAMPLES = 1_000, 10_000  # of a debate; beyond what anybody pays for, and a slip of the pen in a recipe


def check_bounds(settings: msgspec.Struct, **bounds: tuple[float, float]) -> None:
    """Args: bounds: setting -> the least and the most that it may be.

    Raises: ValueError: one is neither None nor between them, or is not finite.
    """
    for name, (least, most) in bounds.items():
        value = getattr(settings, name)
        if value is not None and not (least <= value <= most and math.isfinite(value)):
            shown = value if isinstance(value, int) else f"{value:g}"
            number = "number" if math.isfinite(value) else "finite number"
            up_to = f"to {most:,}" if most < UP else "up"
            raise ValueError(f"{name}={shown} must be a {number} from {least:,} {up_to}")


def check_above_0(settings: msgspec.Struct, *names: str) -> None:
    """Raises: ValueError: one of the settings is not above 0, or not finite."""
    for name in names:
        if not 0 < (value := getattr(settings, name)) < UP:
            raise ValueError(f"{name}={value:g} must be a {'' if math.isfinite(value) else 'finite '}number above 0")
