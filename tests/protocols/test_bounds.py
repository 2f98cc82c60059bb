"""Bounds of settings: what is outside of them is one sentence with the setting and its value."""

from __future__ import annotations

import msgspec
import pytest

from protocols.bounds import UP, check_above_0, check_bounds


class Settings(msgspec.Struct):
    rate: float | None = 0.5
    places: int = 3


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (Settings(places=0), "places=0 must be a number from 1 to 2,000"),
        (Settings(places=10**17), "places=100000000000000000 must be a number from 1 to 2,000"),
        (Settings(rate=-0.5), "rate=-0.5 must be a number from 0 up"),
        (Settings(rate=float("nan")), "rate=nan must be a finite number from 0 up"),
        (Settings(rate=float("inf")), "rate=inf must be a finite number from 0 up"),
    ],
)
def test_what_is_out_of_bounds_is_named_with_its_value(settings: Settings, said: str) -> None:
    with pytest.raises(ValueError, match=f"^{said}$"):
        check_bounds(settings, rate=(0, UP), places=(1, 2_000))


def test_the_bounds_themselves_are_allowed_and_what_is_not_set() -> None:
    for settings in (Settings(rate=0, places=1), Settings(rate=None, places=2_000), Settings(rate=1e300)):
        check_bounds(settings, rate=(0, UP), places=(1, 2_000))


@pytest.mark.parametrize(("rate", "said"), [(0.0, "a number"), (-1.0, "a number"), (float("inf"), "a finite number")])
def test_what_must_be_above_0_is(rate: float, said: str) -> None:
    check_above_0(Settings(), "rate", "places")
    with pytest.raises(ValueError, match=f"^rate={rate:g} must be {said} above 0$"):
        check_above_0(Settings(rate=rate), "places", "rate")
