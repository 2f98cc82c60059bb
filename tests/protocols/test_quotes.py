"""Quotes are looked up by their words, and nobody can mark one as verified but us."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocols.quotes import holds, verify_quotes, words_of
from tests.growth import assert_linear

PASSAGE = words_of(
    "“It wasn’t me,” said Dr. Vale — well-known for 3.5 years — on a −5 °C day.\nThey paid 10% of $40. 他说中文很好。"
)


@pytest.mark.parametrize(
    "quote",
    [
        "“It wasn’t me,”",
        "It wasn't me",  # straight quotation marks
        "it wasnt me, said dr vale",  # a lost apostrophe and full stop
        "said Dr. Vale - well known for 3.5 years - on",  # dashes
        "on a -5 °C day. They\n paid",  # spacing, another minus
        "ｐａｉｄ 10% of $40",  # full width letters
        "中文很好",  # no spaces between words
        "me said",  # over a mark, but in one run
    ],
)
def test_a_quote_holds_when_only_the_typography_differs(quote: str) -> None:
    assert holds(PASSAGE, quote)


@pytest.mark.parametrize(
    "quote",
    [
        "It was me",
        "asn't me",  # not whole words
        "for 35 years",
        "5 °C day",  # the sign is part of the number
        "10 of $40",
        "of 40",
        "said Dr. Vale ... on a",  # nothing may be left out
        "很文",
        "...",
        "",
    ],
)
def test_a_quote_does_not_hold_when_the_words_differ(quote: str) -> None:
    assert not holds(PASSAGE, quote)


@pytest.mark.parametrize(
    ("argument", "shown"),
    [
        ("x <quote>the cat</quote> y", "x <v_quote>the cat</v_quote> y"),
        ("<quote>The  cat,</quote>", "<v_quote>The  cat,</v_quote>"),
        ("<quote>the dog</quote>", "<u_quote>the dog</u_quote>"),
        ("<v_quote>the dog</v_quote>", "<u_quote>the dog</u_quote>"),  # forged
        ("< V-Quote >the dog</ v quote>", "<u_quote>the dog</u_quote>"),
        ("<u_quote>the cat</quote>", "<v_quote>the cat</v_quote>"),
        ("<v_quote>the cat", "the cat"),  # never closed
        ("the</quote> cat <quote>", "the cat "),
        ("<quote>a <quote>the cat</quote></quote>", "a <v_quote>the cat</v_quote>"),
        ("<quote></quote>", "<u_quote></u_quote>"),
        ("no quote, 1 < 2 > 0", "no quote, 1 < 2 > 0"),
    ],
)
def test_marks_worked_by_hand(argument: str, shown: str) -> None:
    assert verify_quotes(argument, words_of("The cat sat.")) == shown


def test_without_a_source_no_quote_is_verified() -> None:
    assert verify_quotes("<quote>a</quote>", words_of("")) == "<u_quote>a</u_quote>"


PIECES = st.lists(
    st.sampled_from(["<quote>", "</quote>", "<v_quote>", "</v_quote>", "<u_quote>", "the cat", " ", "dog", "<", ">"])
)


@given(PIECES)
def test_whatever_is_said_marks_come_in_pairs_and_verified_ones_hold(pieces: list[str]) -> None:
    words = words_of("The cat sat.")
    shown = verify_quotes("".join(pieces), words)
    assert re.sub(r"<v_quote>[^<>]*</v_quote>|<u_quote>.*?</u_quote>", "", shown).count("_quote>") == 0
    assert all(holds(words, quote) for quote in re.findall(r"<v_quote>(.*?)</v_quote>", shown))
    assert verify_quotes(shown, words) == shown


@given(st.text(), st.text())
def test_no_text_raises(argument: str, source: str) -> None:
    verify_quotes(f"<quote>{argument}</quote>", words_of(source))


@pytest.mark.parametrize("hostile", ["<quote>", "<quote>the ", "<", "< v", "<quote>the cat</quote>", "\u0301", "ﷺ"])
def test_long_hostile_text_is_read_in_linear_time(hostile: str) -> None:
    words = words_of("The cat sat. " * 2000)
    assert_linear(lambda text: verify_quotes(text, words), hostile * (100_000 // len(hostile)))
