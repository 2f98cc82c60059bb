"""Contexts worked by hand with words for tokens: what is cut, what goes together, what is never lost."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainers.selection.context_pack import Block, Limits, Note, cut_to, pack_blocks


def words(text: str) -> int:
    return len(text.split())


def shown(number: int, block: Block) -> str:
    return " ".join((f"#{number}", block.reply, *(note.text for note in block.notes)))


def pack(blocks: list[Block], **limits: int) -> list[tuple[str, ...]]:
    return pack_blocks(blocks, Limits(**limits), render=shown, count=words)


def said(length: int, *notes: int) -> Block:
    """A reply of so many words, and notes of so many."""
    return Block(
        " ".join(f"w{length}.{at}" for at in range(length)),
        tuple(Note("feedback", " ".join(f"n{at}" for at in range(size))) for size in notes),
    )


def test_blocks_go_in_by_length_and_an_overflow_opens_the_next_context() -> None:
    contexts = pack([said(7), said(2), said(4), said(3)], block=20, cut=5, context=12)
    # with their numbers 3, 4, 5 and 8 words: 3 + 4 + 5 fit into 12, 8 more do not
    assert [[words(text) for text in context] for context in contexts] == [[3, 4, 5], [8]]
    assert [[text.split()[0] for text in context] for context in contexts] == [["#1", "#2", "#3"], ["#1"]]


def test_a_long_answer_is_cut_first_and_then_what_was_said_about_it() -> None:
    ((answer,),) = pack([said(20, 3)], block=15, cut=10, context=99)
    assert words(answer) == 1 + 10 + 3 and "n0 n1 n2" in answer  # the notes are whole: it fits now
    ((both,),) = pack([said(20, 9, 9)], block=15, cut=10, context=99)
    assert words(both) == 1 + 10 + 5 + 5
    ((whole,),) = pack([said(10, 3)], block=14, cut=5, context=99)
    assert "[...]" not in whole


def test_a_cut_keeps_how_a_text_begins_and_how_it_ends() -> None:
    assert cut_to("a b c d e f", 9, words) == "a b c d e f"
    cut = cut_to("first second third fourth fifth answer", 4, words)
    assert cut.split("[...]")[0].startswith("first") and cut.endswith("answer") and words(cut) <= 4


def test_no_blocks_are_one_empty_context_and_no_limit_is_one_context() -> None:
    assert pack([]) == [()]
    assert len(pack([said(2000) for _ in range(3)], block=0, context=0)) == 1


@pytest.mark.parametrize(
    ("limits", "told"),
    [
        ({"block": -1}, "block=-1 must not be below 0"),
        ({"block": 9, "cut": 9}, "cut=9 must be above 0 and below block=9"),
    ],
)
def test_limits_that_cannot_be_kept_are_refused(limits: dict[str, int], told: str) -> None:
    with pytest.raises(msgspec.ValidationError, match=told):
        msgspec.convert(limits, Limits)


@given(
    sizes=st.lists(st.tuples(st.integers(0, 40), st.lists(st.integers(0, 20), max_size=2)), min_size=1, max_size=6),
    context=st.integers(0, 60),
)
def test_every_answer_is_shown_once_within_the_limits(sizes: list[tuple[int, list[int]]], context: int) -> None:
    blocks = [Block(f"<{at}> " + "w " * size, tuple(Note("feedback", "n " * n) for n in notes))
              for at, (size, notes) in enumerate(sizes)]  # fmt: skip
    contexts = pack(blocks, block=25, cut=10, context=context)
    texts = [text for shown_together in contexts for text in shown_together]
    assert sorted(text.split()[1] for text in texts) == sorted(f"<{at}>" for at in range(len(blocks)))
    for shown_together in contexts:
        assert len(shown_together) == 1 or not context or words("\n".join(shown_together)) <= context
    assert all(words(text) <= 25 for text in texts)
