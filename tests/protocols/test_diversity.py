"""Wording against numbers worked by hand, and what must hold of any two texts."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocols.diversity import MAX_LETTERS, wording, wording_distance


def test_words_pairs_and_signs_count() -> None:
    assert wording("So 4 + 4,\n SO!") == {
        "so": 2,
        "4": 2,
        "+": 1,
        ",": 1,
        "!": 1,
        ("so", "4"): 1,
        ("4", "+"): 1,
        ("+", "4"): 1,
        ("4", ","): 1,
        (",", "so"): 1,
        ("so", "!"): 1,
    }


def test_distances_by_hand() -> None:
    # a b: {a, b, ab}; a c: {a, c, ac}: one of three in common
    assert wording_distance(wording("a b"), wording("a c")) == pytest.approx(2 / 3)
    # a a: a twice, and the pair; a: once. cos = 2 / sqrt(5)
    assert wording_distance(wording("a a"), wording("a")) == pytest.approx(1 - 2 / 5**0.5)
    assert wording_distance(wording("a b"), wording("c d")) == 1.0
    assert wording_distance(wording("the order"), wording("order the")) == pytest.approx(1 / 3)  # other pairs
    assert wording_distance(wording(""), wording(" ")) == 0.0
    assert wording_distance(wording(""), wording("a")) == 1.0


def test_an_endless_reply_is_looked_at_to_a_point() -> None:
    assert wording("a " * (MAX_LETTERS // 2) + "b " * 9) == wording("a " * (MAX_LETTERS // 2))


@given(st.text(), st.text())
def test_any_two_texts(one: str, other: str) -> None:
    first, second = wording(one), wording(other)
    assert 0.0 <= wording_distance(first, second) <= 1.0
    assert wording_distance(first, second) == wording_distance(second, first)
    assert wording_distance(first, first) == pytest.approx(0.0, abs=1e-12)
