"""A step's rows in passes: every row in one of them, and none above what a pass may hold."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainers.tuning.batches import Batching, deal, deal_out

LENGTHS = [9, 2, 3, 8, 4, 4, 30]


@pytest.mark.parametrize(
    ("batching", "passes"),
    [
        ("padded", [[0, 1, 2], [3, 4, 5], [6]]),
        ("grouped", [[6], [0], [3, 4], [5, 2, 1]]),  # 2 x 8 tokens, 3 x 4: padding included
        ("packed", [[6], [0, 4, 2], [3, 5, 1]]),  # 16 and 14 tokens of 16
    ],
)
def test_rows_are_dealt_out_as_by_hand(batching: Batching, passes: list[list[int]]) -> None:
    assert deal(LENGTHS, batching, batch_size=3, token_budget=16) == passes


@given(
    lengths=st.lists(st.integers(1, 40), max_size=30),
    budget=st.integers(1, 50),
    size=st.integers(1, 7),
)
def test_every_row_is_in_one_pass_that_holds_it(lengths: list[int], budget: int, size: int) -> None:
    dealt = {how: deal(lengths, how, batch_size=size, token_budget=budget) for how in ("padded", "grouped", "packed")}
    for passes in dealt.values():
        assert sorted(index for indices in passes for index in indices) == [*range(len(lengths))]
    assert all(len(indices) <= size for indices in dealt["padded"])
    for how, tokens in (("grouped", lambda rows: len(rows) * max(rows)), ("packed", sum)):
        for indices in dealt[how]:
            assert len(indices) == 1 or tokens([lengths[index] for index in indices]) <= budget


def test_processes_get_equally_many_passes_and_like_shares() -> None:
    """By length: 30, 9, 8, 4, 4, 3, 2; dealt in turn, each share again in its order."""
    first, second = deal_out(LENGTHS, "padded", batch_size=3, token_budget=16, num_ranks=2)
    assert (first, second) == ([[1, 3, 5], [6]], [[0, 2, 4], []])
    first, second = deal_out(LENGTHS, "packed", batch_size=3, token_budget=16, num_ranks=2)
    assert (first, second) == ([[6], [3, 5, 1]], [[0, 4, 2], []])
    assert deal_out([5], "grouped", batch_size=3, token_budget=16, num_ranks=3) == [[[0]], [[]], [[]]]


@pytest.mark.parametrize("batching", ["padded", "grouped", "packed"])
@given(lengths=st.lists(st.integers(1, 40), min_size=1, max_size=30), size=st.integers(1, 7))
def test_one_process_is_dealt_what_it_always_was(batching: Batching, lengths: list[int], size: int) -> None:
    (alone,) = deal_out(lengths, batching, batch_size=size, token_budget=50, num_ranks=1)
    assert alone == deal(lengths, batching, batch_size=size, token_budget=50)
