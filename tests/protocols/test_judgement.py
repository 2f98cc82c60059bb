"""What judges say, read and counted, against cases worked by hand."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocols.answer import Answer
from protocols.judgement import Decision, Judgement, decide, read_score, read_side
from protocols.sides import Side

NAMES = ("Debater A", "Debater B")
ANSWERS = ("under the stairs", "on the roof")


@pytest.mark.parametrize(
    ("text", "side", "confidence"),
    [
        ("Answer: (A)\nConfidence: 80%", "A", "0.8"),
        ("**Answer:** (B)\n**Confidence:** 95 %", "B", "0.95"),
        ("A", "A", None),
        ("B.", "B", None),
        ("Debater B", "B", None),
        ("Answer: debater b", "B", None),
        ("on the roof", "B", None),
        ("Winner: Debater B", "B", None),
        ('{"answer": "A", "confidence": 0.7}', "A", "0.7"),
        ("Debater A has quotes, but (B) holds.\nAnswer: (B)\nConfidence: 60", "B", "0.6"),
        ("Answer: (A)\nConfidence: 1", "A", "1"),
        ("Answer: (A)\nConfidence: 250", "A", None),
        ("Answer: (A)\nConfidence: N%", "A", None),
        ("Answer: (A) or (B)", None, None),
        ("Answer: A / B", None, None),
        ("Answer: (X)", None, None),  # the form itself, echoed
        ("A strong case was made by both.", None, None),
        ("Answer: (C)", None, None),
        ("", None, None),
    ],
)
def test_sides_read_from_replies(text: str, side: str | None, confidence: str | None) -> None:
    read = read_side(text, ANSWERS, NAMES)
    assert read.value == side
    assert bool(read.how) == (side is not None)
    if side is not None:
        assert read.details == ({} if confidence is None else {"confidence": confidence})


@pytest.mark.parametrize(
    ("text", "score"),
    [
        ("Score: 7", "7"),
        ("**Score: 6.5**", "6.5"),
        ("Score: 0", "0"),
        ("Rating: 3. No, score: 4 of 10", "4"),
        ("8", "8"),
        ("8/10", "8"),
        ("Score: 11", None),
        ("-3", None),
        ("Score: N", None),
        ("I counted 7 quotes.", None),
        ("", None),
    ],
)
def test_scores_read_from_replies(text: str, score: str | None) -> None:
    assert read_score(text).value == score


@given(st.text(), st.sampled_from([NAMES, ("", "")]))
def test_no_text_raises(text: str, names: tuple[str, str]) -> None:
    assert read_side(text, ANSWERS, names).value in ("A", "B", None)
    assert read_score(text).parsed == bool(read_score(text).how)


def judged(*said: tuple[str, Side, bool, float | None]) -> Decision | None:
    return decide([Judgement(*one) for one in said], tie_break="seeded", seed=1)


def test_nothing_is_decided_without_a_judgement() -> None:
    assert judged() is None


def test_both_orders_agree() -> None:
    assert judged(("0", "a", True, 0.8), ("0", "a", False, 0.6)) == Decision(
        "a", "agreement", 2, 2, False, {"chose_a": "1 of 2", "both_orders": "1 of 1", "confidence": "0.7"}
    )


def test_the_majority_of_three_judges_in_both_orders() -> None:
    decision = judged(
        ("0", "a", True, None),
        ("0", "b", True, None),  # this one always takes whoever is called A
        ("1", "b", False, None),
        ("1", "b", True, None),
        ("2", "b", False, 0.9),
    )
    details = {"chose_a": "3 of 5", "both_orders": "1 of 2"}  # not all of b's tell a confidence
    assert decision == Decision("b", "majority", 4, 5, False, details)


def test_equal_sides_are_decided_by_confidence() -> None:
    decision = judged(("0", "a", True, 0.6), ("0", "b", True, 0.9))
    details = {"chose_a": "2 of 2", "both_orders": "0 of 1", "confidence": "0.9"}
    assert decision == Decision("b", "confidence", 1, 2, True, details)


@pytest.mark.parametrize("sure", [None, 0.6])
def test_equal_sides_without_a_surer_one_are_drawn_by_the_seed(sure: float | None) -> None:
    judgements = [Judgement("0", "a", True, 0.6), Judgement("0", "b", True, sure)]
    drawn = [decide(judgements, tie_break="seeded", seed=seed) for seed in range(20)]
    assert {decision.by for decision in drawn if decision} == {"tie_break"}
    assert {decision.side for decision in drawn if decision} == {"a", "b"}
    assert drawn == [decide(judgements[::-1], tie_break="seeded", seed=seed) for seed in range(20)]
    first = decide(judgements, tie_break="first", seed=0)
    assert first and first.side == "a"


def test_a_side_that_was_not_read_is_no_answer() -> None:
    assert read_side("no idea", ANSWERS, NAMES) == Answer()
