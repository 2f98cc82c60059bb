"""Reading answers: every quirk that replies are known for, hostile text included."""

from __future__ import annotations

from fractions import Fraction
from functools import partial

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from protocols.answer import (
    FORMATS,
    PARSERS,
    Answer,
    as_number,
    boxed,
    canonical,
    equivalent,
    grade,
    numbers,
    parse_answer,
    same,
    spell,
)
from protocols.task import Task
from tests.growth import assert_linear


@pytest.mark.parametrize(
    ("text", "value", "how"),
    [
        (r"so \boxed{43}.", "43", "boxed"),
        (r"\boxed{1}, no: \boxed{2}", "2", "boxed"),
        (r"\boxed{x = 5}", "5", "boxed"),
        (r"\boxed{\text{about } 12}", "12", "boxed"),
        (r"\fbox{8}", "8", "boxed"),
        (r"\boxed {8}", "8", "boxed"),
        (r"\boxed{\$1,234.50}", "1234.5", "boxed"),
        (r"\boxed{\frac{1}{2}}", "0.5", "boxed"),
        (r"\boxed{3} but then \boxed{4", "3", "boxed"),
        (r"Put it in \boxed{}. The answer is 6", "6", "answer_is"),
        ("The answer is 7, because 3 + 4 makes 7 and 9 does not.", "7", "answer_is"),
        ("The answer is 3 + 4 = 7", "7", "answer_is"),
        ("**Answer:** 12", "12", "answer_is"),
        ("the answer is 1\nno, the ANSWER IS: 2", "2", "answer_is"),
        ("answer =\n\n 9", "9", "answer_is"),
        ("The answer isn't 5 = 5; 2+2 = 4", "4", "equals"),
        ("2+2 = 4\nthat is 4 of 9\n", "4", "equals"),
        ("24 + 13 = 37 (see 2)", "37", "equals"),
        ("1 = 1 = -12", "-12", "equals"),
        ("first 3, then 14", "14", "last_number"),
        ("I got 10.", "10", "last_number"),
        ("it costs $1,234,567.", "1234567", "last_number"),
        ("about 50%", "50", "last_number"),
        ("let me think...5", "5", "last_number"),
        ("", None, ""),
        ("no idea", None, ""),
        ("1/0", None, ""),
        ("\x00", None, ""),
    ],
)
def test_numbers_are_read_by_the_first_rule_that_applies(text: str, value: str | None, how: str) -> None:
    assert parse_answer(text, "number") == Answer(value, how)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("7-5", ["7", "5"]),
        ("7 -5", ["7", "5"]),
        ("7 - 5", ["7", "5"]),
        ("= -5", ["-5"]),
        ("3, -5", ["3", "-5"]),
        ("(2)-5", ["2", "5"]),
        ("x-5", ["5"]),
        ("GPT-4", ["4"]),
        ("x²-5", ["5"]),
        (r"3 \times-5", ["3", "-5"]),
        ("7\n-5", ["7", "-5"]),
        ("**-5**", ["-5"]),
        ("−5", ["-5"]),
        ("+5", ["5"]),
        ("$-5$", ["-5"]),
        ("-$5", ["-5"]),
        (r"-\$5", ["-5"]),
        ("1,234", ["1234"]),
        ("1, 234", ["1", "234"]),
        ("1,23", ["1", "23"]),
        ("1,2345", ["1", "2345"]),
        ("12,345,678.50", ["12345678.5"]),
        (r"1{,}000 10,\!000 10\,000", ["1000", "10000", "10000"]),
        ("0.50 .5, -.5 007", ["0.5", "0.5", "-0.5", "7"]),
        ("1/2 2/4 1/3, -4/2", ["0.5", "0.5", "1/3", "-2"]),
        (r"\frac{1}{2} \dfrac{2}{3}, -\tfrac{1}{4}, \frac{-1}{8} \frac12", ["0.5", "2/3", "-0.25", "-0.125", "0.5"]),
        (r"2\frac{1}{2} and -2 \frac{1}{2}", ["2.5", "-2.5"]),
        (r"\frac{1}{0} 3", ["3"]),
        ("٤٣", ["43"]),
    ],
)
def test_all_numbers_in_reading_order(text: str, found: list[str]) -> None:
    assert numbers(text) == found


@pytest.mark.parametrize(
    ("text", "inside"),
    [
        (r"\boxed{\frac{1}{\sqrt{2}}}", r"\frac{1}{\sqrt{2}}"),
        (r"\boxed{\boxed{5} apples}", "5"),
        (r"\boxed{\left\{1, 2\right\}}", r"\left\{1, 2\right\}"),
        (r"\boxed{\{}", r"\{"),
        (r"\fbox{a} \boxed{b} }", "b"),
        (r"\boxed{b} \fbox{a}", "a"),
        (r"}} \boxed{ a }", "a"),
        (r"{\boxed{a", None),
        (r"\boxed{}", ""),
        (r"\boxer{1} \framebox{2} boxed{3}", None),
        ("\\boxed{a\nb}", "a\nb"),
        ("\\boxed{" + "{" * 50_000 + "x" + "}" * 50_001, "{" * 50_000 + "x" + "}" * 50_000),
    ],
)
def test_boxes_are_taken_with_their_braces_balanced(text: str, inside: str | None) -> None:
    assert boxed(text) == inside


@pytest.mark.parametrize(
    ("text", "value"),
    [
        (r"\boxed{x+1}", "x+1"),
        (r"\boxed{1,2}", "1,2"),
        (r"\boxed{1,000}", "1000"),
        (r"\boxed{50\%}", "50"),
        (r"\boxed{2\frac{1}{2}}", "2.5"),
        (r"\boxed{ }", None),
        (r"\boxed{5", None),
        ("the answer is 5", None),
    ],
)
def test_the_boxed_format_takes_the_box_and_nothing_else(text: str, value: str | None) -> None:
    assert parse_answer(text, "boxed").value == value


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("The answer is **Paris**.", Answer("Paris", "answer_is")),
        ("Well.\nParis\n\n", Answer("Paris", "last_line")),
        ("Answer: **\nParis\n***", Answer("Paris", "last_line")),
        ("answer is .5.", Answer(".5", "answer_is")),
        ("Answer: 'a \"b\" c'", Answer('a "b" c', "answer_is")),
        ("a\x00b", Answer("a\x00b", "last_line")),
        ("***", Answer()),
        (' "" . ', Answer()),
        ("", Answer()),
    ],
)
def test_the_text_format_takes_what_is_said_without_its_markup(text: str, answer: Answer) -> None:
    assert parse_answer(text, "text") == answer


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("Final answer: -5", "-5"),
        ("Final answer: 1,234", "1234"),
        ("Final answer: $\\frac{1}{2}$.", "0.5"),
        (r"Final answer: \boxed{x+1}", "x+1"),
        ("**Final Answer:** Paris", "Paris"),
        ("Final answer: 3\nNo.\nFinal answer: 4", "4"),  # D&R's takes the first
        ("### Answer\nIt is so.\n\nFinal answer:\n 3", "3"),
        ("the final answer is 7.", "7"),
        ("final answer: ", None),
        ("The answer is 3", None),
    ],
)
def test_the_final_format_takes_what_is_behind_the_last_final_answer(text: str, value: str | None) -> None:
    assert parse_answer(text, "final").value == value


def test_a_final_answer_may_name_a_choice() -> None:
    task = Task(id="t", question="?", gold=("B",), choices=("10", "20"), answer_format="final")
    assert grade(parse_answer("Final answer: $20.0$", "final", task.choices), task) is True
    assert grade(parse_answer("Final answer: (A) 10", "final", task.choices), task) is False


@pytest.mark.parametrize("answer_format", FORMATS)
@pytest.mark.parametrize("gold", ["", "yes", "A", "43", "None", "no answer"])
def test_a_reply_that_cannot_be_read_is_wrong_and_never_left_out(answer_format: str, gold: str) -> None:
    task = Task(id="t", question="?", gold=(gold,), choices=("43", "44"), answer_format=answer_format)
    for text in ("", "   ", "*** ..."):
        assert grade(parse_answer(text, answer_format, task.choices), task) is False


def test_an_unknown_format_is_our_own_mistake() -> None:
    with pytest.raises(KeyError):
        parse_answer("1", "poem")


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("1/2", "0.5", True),
        ("2/4", "1/2", True),
        ("10,000", "10000", True),
        ("$5", "5.00", True),
        ("50%", "50", True),
        (r"\frac{1}{3}", "1/3", True),
        ("1,2", "12", False),
        ("1,2,3", "123", False),
        ("-5", "5", False),
        ("0.333", "1/3", False),
        ("  New   York", "new york", True),
        ("STRASSE", "straße", True),
        ("A", "B", False),
        ("1/0", "1/0", True),
        ("1/0", "0", False),
        ("x+1", "1+x", False),
    ],
)
def test_answers_are_equal_as_numbers_or_else_as_text(one: str, other: str, same: bool) -> None:
    assert equivalent(one, other) is equivalent(other, one) is same


def test_the_tolerance_is_absolute_and_closed() -> None:
    assert equivalent("1.01", "1", tolerance=Fraction(1, 100))
    assert not equivalent("1.0100001", "1", tolerance=Fraction(1, 100))
    assert not equivalent("a", "b", tolerance=Fraction(100))


@pytest.mark.parametrize(("tolerance", "right"), [(0.0, False), (0.29, False), (0.3, True), (1e-9, False), (1, True)])
def test_a_tolerance_is_the_decimal_that_was_written(tolerance: float, right: bool) -> None:
    """0.3 as a binary number is a little less than the three tenths between 1 and 1.3."""
    assert same(Answer("1.3"), Answer("1"), tolerance=tolerance) is right
    task = Task(id="t", question="?", gold=("1",), tolerance=tolerance)
    assert grade(Answer("1.3"), task) is right


def golden(*gold: str) -> Task:
    return Task(id="t", question="?", gold=gold)


def test_an_unparsed_answer_is_never_right() -> None:
    assert grade(Answer(), golden("43")) is False
    assert grade(Answer(), golden("")) is False
    assert grade(Answer("43"), golden("1", "43.0")) is True
    assert grade(Answer("43"), golden("1")) is False
    assert grade(Answer("43"), golden()) is None
    assert grade(Answer(), golden()) is None


@pytest.mark.parametrize("text", ["1" * 401, "1/" + "7" * 400, "0." + "1" * 400, "9" * 1_000_000, "1," * 200_000])
def test_numbers_too_long_to_compute_with_are_not_numbers(text: str) -> None:
    assert as_number(text) is None
    assert equivalent(text, text)
    assert parse_answer(f"the answer is {text}", "number").value in (None, "1")


ADVERSARIAL = {
    "boxes": r"\boxed{" * 5_000,
    "nested boxes": r"\boxed{" * 5_000 + "}" * 5_000,
    "open braces": r"\boxed{" + "{" * 50_000,
    "digits": "1" * 250_000,
    "commas": "1," * 25_000,
    "thousands": "1" + ",111" * 12_500 + "1",
    "minuses": "-" * 50_000,
    "subtractions": "-1" * 25_000,
    "wide subtractions": ("1" + " " * 50 + "-1") * 1_000,
    "one wide gap": "1" + " " * 50_000 + "-1",
    "mixed": "1 " * 25_000 + r"\frac",
    "open fractions": r"\frac{1" * 7_500,
    "fractions": r"\frac{1}{2}" * 5_000,
    "long fractions": ("7" * 190 + "/" + "3" * 190 + " ") * 500,
    "endless halves": ("1/" + str(2**600) + " ") * 250,
    "long decimals": ("." + "7" * 390 + " ") * 500,
    "slashes": "1/1" * 15_000,
    "dollars": "-$" * 25_000,
    "answers": "answer is " * 5_000,
    "answer, and nothing": "answer" + " " * 50_000,
    "equals": "=" * 50_000,
    "lines": "\n" * 50_000,
    "stars": "* " * 25_000,
    "words": "a-1" * 15_000,
    "commands": r"\a-1" * 12_500,
    "nul": "\x00" * 50_000,
    "open brackets": "[" * 50_000,
    "brackets": "[a]" * 15_000,
    "wide brackets": ("(" + " " * 50) * 1_000,
    "letters": "A) a\n" * 10_000,
    "bracketed letters": "(B) " * 12_500,
    "dollar pairs": "$1$" * 15_000,
    "escaped dollars": r"$\$" * 15_000,
    "final answers": "final answer: " * 3_750,
    "final, and nothing": "final" + " " * 50_000 + "answer" + "*" * 50_000,
    "beliefs": "it's B " * 7_500,
    "it is": ("it" + " " * 100) * 500,
    "yes": "yes " * 12_500,
    "yes or no": "yes or no" + " " * 50_000,
    "boxed words": r"\boxed{" + r"\text{" * 7_500 + "}" * 7_501,
    "one long line": "B) " + "x" * 50_000,
    "full stops": "." * 50_000,
}


@pytest.mark.parametrize("name", ADVERSARIAL)
def test_hostile_text_is_read_in_linear_time(name: str) -> None:
    for answer_format in PARSERS:
        assert_linear(partial(parse_answer, answer_format=answer_format, choices=("Rome", "Paris")), ADVERSARIAL[name])


PIECES = st.sampled_from(
    [
        *r"0123456789.,/-−+=$%{}\ ",
        "\n",
        "\x00",
        "answer is",
        r"\boxed{",
        r"\fbox{",
        r"\frac{1}{2}",
        r"\frac",
        "٣",
        "1,000",
        "{,}",
        *"[]()ABC",
        "Final answer:",
        r"\text{",
        "yes",
        "it is ",
    ]
)


@given(
    st.one_of(st.text(), st.lists(PIECES, max_size=40).map("".join)),
    st.sampled_from(sorted(PARSERS)),
    st.sampled_from([(), ("Rome", "Paris"), ("1", "2", "")]),
)
def test_parsing_never_raises_and_never_reads_nothing_as_an_answer(
    text: str, answer_format: str, choices: tuple[str, ...]
) -> None:
    answer = parse_answer(text, answer_format, choices)
    assert answer.value is None or answer.value.strip()
    assert answer.parsed == bool(answer.how)
    if answer_format == "number" and answer.value is not None:
        value = as_number(answer.value)
        assert value is not None
        assert spell(value) == answer.value


@given(
    st.one_of(
        st.from_regex(r"[-+]?\$?[0-9]{1,180}(\.[0-9]{0,180})?(/[0-9]{1,180})?", fullmatch=True), st.text(max_size=20)
    )
)
@example("1/" + str(2**600))
@example("0." + "0" * 396 + "1/3")
@example("1.50/2.5")
def test_spelling_is_read_back_as_the_same_number(text: str) -> None:
    value = as_number(text)
    if value is not None:
        assert as_number(spell(value)) == value
        assert canonical(spell(value)) == canonical(text) == spell(value)


@given(st.fractions(max_denominator=10**6))
def test_one_value_has_one_spelling(value: Fraction) -> None:
    assert as_number(spell(value)) == value
    assert as_number(f"{value.numerator * 3}/{value.denominator * 3}") == value


@given(
    *[
        st.one_of(
            st.sampled_from(["1/2", "0.5", ".50", "5", "5%", "a", " A", "a  b", "ß", "ss", "1,2", "12"]),
            st.text(max_size=6),
        )
    ]
    * 3
)
def test_equivalence_is_an_equivalence(one: str, two: str, three: str) -> None:
    assert equivalent(one, one)
    assert equivalent(one, two) == equivalent(two, one) == (canonical(one) == canonical(two))
    if equivalent(one, two) and equivalent(two, three):
        assert equivalent(one, three)
