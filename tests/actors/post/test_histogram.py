"""Durations in buckets."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.post.histogram import NUM_BUCKETS, PER_OCTAVE, SHORTEST_S, Histogram, bound

durations = st.lists(st.floats(0.0, 600.0), min_size=1, max_size=50)


@given(durations, st.floats(0.01, 1.0))
def test_a_quantile_is_the_bound_of_the_bucket_that_holds_it(seconds: list[float], share: float) -> None:
    found = Histogram()
    for value in seconds:
        found.add(value)
    exact = sorted(seconds)[max(0, -int(-share * len(seconds) // 1) - 1)]
    assert found.total == len(seconds)
    assert exact <= found.quantile(share) * (1 + 1e-9)
    assert found.quantile(share) <= max(SHORTEST_S, exact * 2 ** (1 / PER_OCTAVE)) * (1 + 1e-9)


@given(durations, durations)
def test_sums_and_differences(one: list[float], two: list[float]) -> None:
    first, second = Histogram(), Histogram()
    for value in one:
        first.add(value)
    for value in two:
        second.add(value)
    assert ((first + second) - second).counts == first.counts


def test_the_ends() -> None:
    found = Histogram()
    assert found.quantile(0.5) == 0.0 and len(found.counts) == NUM_BUCKETS
    found.add(0.0)
    found.add(1e9, times=3)
    assert found.quantile(0.25) == SHORTEST_S and found.quantile(0.5) == pytest.approx(bound(NUM_BUCKETS - 1))
