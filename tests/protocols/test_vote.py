"""Voting: classes of equivalent answers, explicit tie-breaks, winners that do not depend on who came first."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocols.answer import Answer, equivalent, same
from protocols.vote import TieBreak, VoteResult, majority_vote


def ballots(*values: str | None) -> list[Answer]:
    return [Answer(value) for value in values]


def test_equivalent_spellings_vote_together_under_the_first_one_seen() -> None:
    result = VoteResult(Answer("1/2"), 2, 3, False)
    assert majority_vote(ballots("7", "1/2", "0.5"), tie_break="first", seed=0) == result
    assert majority_vote(ballots("Paris", "Rome", " paris "), tie_break="first", seed=0).answer.value == "Paris"


def test_unparsed_replies_do_not_vote() -> None:
    assert majority_vote(ballots(None, "7", None), tie_break="seeded", seed=0) == VoteResult(Answer("7"), 1, 1, False)


def test_a_tolerance_is_from_the_first_of_a_class_however_many_lie_between() -> None:
    near = majority_vote(ballots("1", "1.2", "1.4", "1.6", "0.8"), tie_break="first", seed=0, tolerance=0.2)
    assert near == VoteResult(Answer("1"), 3, 5, False)  # 1, 1.2 and 0.8; then 1.4 and 1.6
    assert majority_vote(ballots("1", "1.2", "1.2"), tie_break="first", seed=0).answer == Answer("1.2")


@pytest.mark.parametrize("answers", [(), (None,), (None, None)])
def test_nothing_is_decided_when_no_reply_could_be_read(answers: tuple[None, ...]) -> None:
    assert majority_vote(ballots(*answers), tie_break="seeded", seed=0) == VoteResult(Answer(), 0, 0, False)


@pytest.mark.parametrize(("tie_break", "winner"), [("first", "10"), ("lexicographic", "9")])
def test_ties_go_where_the_rule_says(tie_break: TieBreak, winner: str) -> None:
    expected = VoteResult(Answer(winner), 1, 3, True)
    assert majority_vote(ballots("10", "9", "100"), tie_break=tie_break, seed=0) == expected


def test_the_seeded_tie_break_is_reproducible_and_reaches_every_tied_answer() -> None:
    drawn = [majority_vote(ballots("10", "9", "100", "10", "9"), tie_break="seeded", seed=seed) for seed in range(40)]
    assert {result.answer.value for result in drawn} == {"10", "9"}  # 100 has fewer votes
    assert drawn == [majority_vote(ballots("10", "9", "100", "10", "9"), tie_break="seeded", seed=s) for s in range(40)]


def test_the_global_generator_is_left_alone() -> None:
    random.seed(1)
    before = random.getstate()
    majority_vote(ballots("1", "2"), tie_break="seeded", seed=3)
    assert random.getstate() == before


SPELLINGS = st.sampled_from(["1/2", "0.5", "2", "2.0", "b", "B", "C", "c", "a", "A", None])


@given(st.lists(SPELLINGS, max_size=8), st.integers(0, 2**31 - 1), st.randoms(use_true_random=False))
def test_the_seeded_winner_does_not_depend_on_the_order_of_arrival(
    values: list[str | None], seed: int, rng: random.Random
) -> None:
    shuffled = rng.sample(values, len(values))
    one = majority_vote(ballots(*values), tie_break="seeded", seed=seed)
    other = majority_vote(ballots(*shuffled), tie_break="seeded", seed=seed)
    assert (one.support, one.votes, one.tie) == (other.support, other.votes, other.tie)
    if one.answer.value is None or other.answer.value is None:
        assert one.answer == other.answer == Answer()
    else:
        assert same(one.answer, other.answer)


@given(st.lists(SPELLINGS, max_size=8), st.sampled_from(["seeded", "first", "lexicographic"]))
def test_the_winner_was_voted_for_and_nothing_has_more_votes(values: list[str | None], tie_break: TieBreak) -> None:
    result = majority_vote(ballots(*values), tie_break=tie_break, seed=1)
    said = [value for value in values if value is not None]
    support = [sum(equivalent(value, other) for other in said) for value in said]
    assert result.votes == len(said)
    assert result.support == max(support, default=0)
    if result.answer.value is not None:
        assert support[said.index(result.answer.value)] == result.support
