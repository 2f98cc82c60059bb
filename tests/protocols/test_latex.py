"""Mathematical answers without algebra: where they are found, and which notations are one."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocols.answer import Answer, grade, parse_answer, same
from protocols.latex import MAX_LENGTH, normal_form
from protocols.task import Task
from tests.growth import assert_linear


@pytest.mark.parametrize(
    ("text", "value", "how"),
    [
        (r"so \boxed{ \frac{1}{2} }.", r"\frac{1}{2}", "boxed"),
        (r"\fbox{x^{2}}", "x^{2}", "boxed"),
        (r"\boxed{1}, no: \boxed{\sqrt{2}}", r"\sqrt{2}", "boxed"),
        ("The final answer is $x+1$. I hope it is correct.", "x+1", "answer_is"),
        ("Final answer: [1,2). That is all.", "[1,2)", "answer_is"),
        ("**Final answer:** 0.5", "0.5", "answer_is"),
        (r"We get $1$, hence $\pi$", r"\pi", "dollars"),
        ("it costs 3 and 1,234", "1234", "last_number"),
        (r"\boxed{5", "5", "last_number"),
        ("nothing", None, ""),
        ("", None, ""),
    ],
)
def test_the_answer_is_read_as_it_was_written(text: str, value: str | None, how: str) -> None:
    answer = parse_answer(text, "math")
    assert (answer.value, answer.how) == (value, how)


@pytest.mark.parametrize(
    ("one", "other", "equal"),
    [
        ("1/2", "0.5", True),
        ("2/4", "1/2", True),  # MAFT's grader holds them apart
        ("10,000", "10000", True),
        ("5 cm", "5", True),
        (r"5\text{ cm}^2", "5", True),
        ("x^2", "x^{2}", True),  # D&R's holds them apart
        ("2", "2.005", False),  # D&R's and its 0.333 = 1/3 hold them equal
        ("0.333", "1/3", False),
        ("[1,2)", "(1,2)", False),
        ("(1,2)", "(2,1)", False),
        ("x+1", "1+x", False),  # takes algebra
        (r"\dfrac12", r"\frac{1}{2}", True),
        (r"-\frac{1}{2}", "-0.5", True),
        (r"\frac{x}2", r"\tfrac{x}{2}", True),
        (r"\sqrt2", "sqrt(2)", True),
        (r"\left( 1,\ 2 \right)", "(1,2)", True),
        ("x = 5", "5", True),
        (r"x \in [1,2]", "[1,2]", True),
        ("x=1,y=2", "y=2", False),
        (r"90^\circ", "90", True),
        (r"50\%", "50", True),
        (r"\$1{,}234", "1234", True),
        ("7 3/4", "7.75", True),
        ("5 million", "5000000", True),
        (r"\text{Monday}", "Monday", True),
        ("pi", r"\pi", True),
        (r"3 \cdot x", r"3\cdot x", True),
        (r"2\sqrt{3}", r"2 \sqrt 3", True),
        ("12", "1 2", False),
        (r"\Delta x", r"\Deltax", False),
    ],
)
def test_notations_that_are_one(one: str, other: str, equal: bool) -> None:
    assert (normal_form(one) == normal_form(other)) is equal
    ballots = [Answer(value, "boxed", normal_form(value)) for value in (one, other)]
    assert same(*ballots) is same(*reversed(ballots)) is equal


def test_gold_is_compared_as_replies_are() -> None:
    task = Task(id="t", question="?", gold=(r"$\frac{1}{2}x^{2}$",), answer_format="math")
    assert grade(parse_answer(r"\boxed{\dfrac12 x^2}", "math"), task) is True
    assert grade(parse_answer(r"\boxed{\dfrac13 x^2}", "math"), task) is False
    assert grade(parse_answer("I give up", "math"), task) is False


def test_a_canonical_spelling_that_is_known_decides() -> None:
    task = Task(id="t", question="?", gold=("1+x",), canonical_gold=("k",), answer_format="math")
    assert grade(Answer("x+1", "boxed", "k"), task) is True
    assert grade(Answer("x+2", "boxed", "j"), task) is False
    assert grade(Answer("1+X", "boxed", ""), task) is True  # none was found in time: as text


def test_an_answer_too_long_has_no_spelling_and_is_still_equal_to_itself() -> None:
    long = r"\boxed{" + "x+" * MAX_LENGTH + "}"
    assert normal_form(long) == ""
    assert same(parse_answer(long, "math"), parse_answer(long, "math"))


PIECES = st.sampled_from(
    [
        r"\frac",
        r"\sqrt",
        r"\text{",
        r"\left",
        r"\boxed{",
        "{",
        "}",
        "^",
        "_",
        "=",
        " ",
        "1",
        "2/3",
        "x",
        "%",
        "$",
        "°",
        "\\",
    ]
)


@given(st.one_of(st.text(), st.lists(PIECES, max_size=30).map("".join)))
def test_spelling_never_raises(text: str) -> None:
    assert isinstance(normal_form(text), str)


@pytest.mark.parametrize(
    "piece", [r"\frac", r"\text{", "{", "1/", "x=", " ", "sqrt(", "^{", "5 ", r"\left", "$", "1 million "]
)
def test_hostile_text_is_spelled_in_linear_time(piece: str) -> None:
    assert_linear(normal_form, (piece * MAX_LENGTH)[:MAX_LENGTH])
    assert_linear(lambda text: normal_form(text[:-1] + "!"), ("1" + piece * MAX_LENGTH)[:MAX_LENGTH])
