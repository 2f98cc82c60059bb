"""Which choice a reply takes, and whether it says yes or no: letters that are meant, and letters that are prose."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocols.answer import Answer, grade, parse_answer
from protocols.choice import letter_for
from protocols.task import Task

CITIES = ("Rome", "Paris", "A city", "10", "Oslo")


@pytest.mark.parametrize(
    ("text", "letter", "how"),
    [
        (r"so \boxed{C}", "C", "boxed"),
        (r"\boxed{\text{(B)}}", "B", "boxed"),
        (r"\boxed{B) Paris}", "B", "boxed"),
        (r"\boxed{Paris}", "B", "boxed"),
        ("The answer is C", "C", "answer_is"),
        ("The answer is (C) because Rome is older.", "C", "answer_is"),
        ("The answer is C because A is wrong", "C", "answer_is"),
        ("**Final answer:** B", "B", "answer_is"),
        ("Final answer: $\\textbf{(D)}\\ 10$", "D", "answer_is"),
        ("Answer: option B", "B", "answer_is"),
        ("Final Answer: [(B) Paris]", "B", "answer_is"),
        ("Final Answer: [(B) the French one]", "B", "answer_is"),
        ("The answer is A. No: the answer is B.", "B", "answer_is"),
        ("The answer is B. This answer is based on the map.", "B", "answer_is"),
        ("The answer is Paris.", "B", "answer_is"),
        ("The answer is a city", "C", "answer_is"),
        ("The answer is 10.0", "D", "answer_is"),
        ("The answer is c", "C", "answer_is"),
        ("I compared them.\n**C**", "C", "last_line"),
        ("C) A city", "C", "last_line"),
        ("(C)", "C", "last_line"),
        ("[C]", "C", "last_line"),
        ("c", "C", "last_line"),
        ("A", "A", "last_line"),
        ("paris.", "B", "last_line"),
        ("B\nRome is in Italy, so it cannot be that one.", "B", "first_line"),
        ("It could be (A), yet I take (B) after all", "B", "bracket"),
        ("I think it's B because A is wrong", "B", "belief"),
        ("The correct option is B as Rome is older", "B", "belief"),
        ("I choose D over the rest of them", "D", "belief"),
        ("Based on this, C", "C", "last_word"),  # D&R's reads the B of "Based"
        ("Final answer: Based on this, C", "C", "last_word"),
        ("That leaves only one. So the map must be C.", "C", "last_word"),
    ],
)
def test_a_choice_is_read_by_the_first_rule_that_applies(text: str, letter: str, how: str) -> None:
    assert parse_answer(text, "choice", CITIES) == Answer(letter, how)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "A train leaves the station at noon",
        "A city lies on a river",
        "The answer is A train.",
        "The answer is A or B",
        "The answer is A, B and C",
        "The answer is F",
        r"\boxed{Z}",
        "I am not sure. I would have to look it up",
        "Plan B failed and vitamin C helped",
        "A) Rome is old\nB) Paris is big\nC) cities are many",
        "I'd say it is a hard one",
        "The answer is E-mail",
        "C++",
    ],
)
def test_a_letter_that_is_not_meant_as_a_choice_is_none(text: str) -> None:
    assert parse_answer(text, "choice", CITIES) == Answer()


def test_without_choices_any_letter_may_be_meant() -> None:
    assert parse_answer("Final answer: J", "choice").value == "J"
    assert parse_answer("Final answer: Paris", "choice").value is None


@pytest.mark.parametrize(
    ("text", "letter"), [("B", "B"), ("paris", "B"), ("(b)", "B"), ("10.00", "D"), ("A", "A"), ("Madrid", ""), ("", "")]
)
def test_gold_may_be_a_letter_or_the_text_of_a_choice(text: str, letter: str) -> None:
    assert letter_for(text, CITIES) == letter
    task = Task(id="t", question="?", gold=(text,), choices=CITIES, answer_format="choice")
    assert grade(Answer(letter or "A"), task) is bool(letter)


def test_a_letter_stays_a_letter_where_another_choice_reads_like_it() -> None:
    assert letter_for("A", ("B", "A")) == "A"


def test_brackets_agree_by_letter_and_by_text() -> None:
    task = Task(id="t", question="?", gold=("Oslo",), choices=CITIES, answer_format="bracket")
    for text in ("[(E) Oslo]", "so [E]", "[Rome]? No, [oslo]", "[E] "):
        answer = parse_answer(text, "bracket", CITIES)
        assert (grade(answer, task), answer.canonical) == (True, "E")
    assert grade(parse_answer("[Rome]", "bracket", CITIES), task) is False
    assert grade(parse_answer("Oslo", "bracket", CITIES), task) is False


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("[ 1,234 ]", "1,234"),
        ("[a] and [b]", "b"),
        ("[a] []", "a"),
        ("[[a]]", "a"),
        (r"[a] \[ x = 1 \]", "a"),
        ("[a] [link](http://x)", "a"),
        ("[", None),
        ("none", None),
    ],
)
def test_the_last_bracket_counts(text: str, value: str | None) -> None:
    assert parse_answer(text, "bracket").value == value


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (r"\boxed{\text{Yes}}", Answer("yes", "boxed")),
        ("The answer is no.", Answer("no", "answer_is")),
        ("Yes. On reflection the answer is **False**", Answer("no", "answer_is")),
        ("The answer is no. Wait, the answer is definitely yes", Answer("yes", "answer_is")),
        ("The answer is yes. That answer is based on the date", Answer("yes", "answer_is")),
        ("[Yes] or rather [No]", Answer("no", "bracket")),
        ("I thought about it.\nTrue.", Answer("yes", "last_line")),
        ("Yes, because it floats", Answer("yes", "first_word")),
        ("**No**, it sinks", Answer("no", "first_word")),
        ("No it does not", Answer("no", "first_word")),
        ("I do not know", Answer()),
        ("No one knows", Answer()),
        ("None of them", Answer()),
        ("Yes or no? Hard to say", Answer()),
        ("The answer is not clear", Answer()),
        ("Nothing says yes", Answer()),
        ("", Answer()),
    ],
)
def test_yes_and_no_count_as_words_where_they_answer(text: str, answer: Answer) -> None:
    assert parse_answer(text, "yes_no") == answer


@pytest.mark.parametrize(("gold", "right"), [("yes", True), ("True", True), ("No", False), ("false", False)])
def test_gold_may_say_true_for_yes(gold: str, right: bool) -> None:
    task = Task(id="t", question="?", gold=(gold,), answer_format="yes_no")
    assert grade(parse_answer("Answer: yes", "yes_no"), task) is right
    assert grade(parse_answer("I do not know", "yes_no"), task) is False


@given(st.text(), st.lists(st.text(max_size=8), max_size=30))
def test_a_letter_is_always_one_of_the_choices(text: str, choices: list[str]) -> None:
    letter = letter_for(text, choices)
    assert not letter or not choices or "ABCDEFGHIJKLMNOPQRSTUVWXYZ".index(letter) < len(choices)
