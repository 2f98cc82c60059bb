"""Fitting texts: short ones are left alone, long ones lose their middle, and the estimate is on the safe side."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from protocols.context import MARK, cut_middle, estimate_tokens, fit_blocks


def test_what_fits_is_left_alone() -> None:
    assert fit_blocks(["a" * 30, "b"], 12) == ["a" * 30, "b"]
    assert fit_blocks([], 0) == []


def test_the_longest_is_cut_first_and_keeps_both_ends() -> None:
    short, long = "the answer is 4", "begin " + "x" * 600 + " end: 7"
    kept, cut = fit_blocks([short, long], 50)
    assert kept == short
    assert cut.startswith("begin x") and cut.endswith("x end: 7") and MARK in cut
    assert 30 <= estimate_tokens(cut) <= 50 - estimate_tokens(short)


def test_all_are_cut_alike_when_all_are_long() -> None:
    sizes = [estimate_tokens(text) for text in fit_blocks(["a" * 900, "b" * 3000, "c" * 900], 90)]
    assert max(sizes) - min(sizes) <= 1
    assert sum(sizes) <= 90


def test_chinese_counts_a_token_a_character() -> None:
    assert estimate_tokens("春眠不觉晓") == 6
    assert estimate_tokens("") == 1


@given(st.lists(st.text(max_size=400), max_size=8), st.integers(0, 300))
def test_the_texts_fit_unless_even_the_least_is_too_much(texts: list[str], room: int) -> None:
    fitted = fit_blocks(texts, room)
    assert len(fitted) == len(texts)
    least = 8 + estimate_tokens(MARK)
    assert sum(map(estimate_tokens, fitted)) <= max(room, least * len(texts))
    for before, after in zip(texts, fitted, strict=True):
        assert after == before or MARK in after


@given(st.text(min_size=1), st.integers(0, 100))
def test_a_cut_text_is_made_of_its_own_ends(text: str, tokens: int) -> None:
    head, _, tail = cut_middle(text, tokens).partition(MARK)
    assert text.startswith(head)
    assert text.endswith(tail)
