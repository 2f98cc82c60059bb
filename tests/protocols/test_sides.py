"""Who defends what: drawn without gold, or a right answer against a wrong one."""

from __future__ import annotations

import random

import pytest

from protocols.errors import TaskError
from protocols.sides import Assign, Position, exchange_names, positions_of
from protocols.task import Task

CAT = Task(id="t", question="Where is the cat?", choices=("stairs", "roof"), gold=("B",), answer_format="choice")


def drawn(task: Task, assign: Assign) -> set[tuple[Position, Position]]:
    return {positions_of(task, assign, random.Random(seed)) for seed in range(60)}


def test_two_choices_are_defended_in_either_order_by_letter_or_by_text() -> None:
    stairs, roof = Position("stairs", "A"), Position("roof", "B")
    assert drawn(CAT, "seeded") == {(stairs, roof), (roof, stairs)}
    assert drawn(CAT, "gold") == {(stairs, roof), (roof, stairs)}
    text = Task(id="t", question="?", choices=("2", "3"), answer_format="number")
    assert drawn(text, "seeded") == {
        (Position("2", "2"), Position("3", "3")),
        (Position("3", "3"), Position("2", "2")),
    }


def test_gold_plays_no_part_in_the_draw() -> None:
    for seed in range(20):
        known, unknown = (Task(id="t", question="?", choices=("2", "3"), gold=gold) for gold in (("3",), ()))
        assert positions_of(known, "seeded", random.Random(seed)) == positions_of(
            unknown, "seeded", random.Random(seed)
        )


def test_the_right_choice_meets_any_wrong_one() -> None:
    task = Task(id="t", question="?", choices=("w", "x", "y", "z"), gold=("C",), answer_format="choice")
    pairs = drawn(task, "gold")
    assert {frozenset((a.value, b.value)) for a, b in pairs} == {frozenset("CA"), frozenset("CB"), frozenset("CD")}
    assert {a.value == "C" for a, _ in pairs} == {True, False}


@pytest.mark.parametrize("named", ["x", "B", "(B)"])
def test_the_wrong_answer_may_be_named(named: str) -> None:
    task = Task(
        id="t",
        question="?",
        choices=("w", "x", "y"),
        gold=("C",),
        answer_format="choice",
        details={"incorrect_answer": named},
    )
    assert {frozenset((a.value, b.value)) for a, b in drawn(task, "gold")} == {frozenset("CB")}


def test_without_choices_the_first_gold_meets_the_named_wrong_answer() -> None:
    task = Task(
        id="t", question="?", gold=("Paris", "Lutetia"), answer_format="text", details={"incorrect_answer": "Rome"}
    )
    assert {a.text for a, _ in drawn(task, "gold")} == {"Paris", "Rome"}


@pytest.mark.parametrize(
    ("assign", "fields", "says"),
    [
        ("seeded", {}, "it has none"),
        ("seeded", {"choices": ("1",)}, "it has '1'"),
        ("seeded", {"choices": ("1", "2", "3")}, "set protocol.assign: gold"),
        ("seeded", {"choices": ("1", "1.0")}, "two different ones"),
        ("seeded", {"choices": ("1", " ")}, "two different ones"),
        ("gold", {"choices": ("1", "2")}, "has no gold answer"),
        ("gold", {"choices": ("1", "2"), "gold": ("3",)}, "a right and a wrong answer"),
        ("gold", {"gold": ("3",)}, "incorrect_answer"),
        ("gold", {"gold": ("3", "5"), "details": {"incorrect_answer": "5"}}, "a right and a wrong answer"),
        ("gold", {"choices": ("1", "2"), "gold": ("1",), "details": {"incorrect_answer": "9"}}, "incorrect_answer"),
    ],
)
def test_a_task_without_two_sides_is_refused_by_name(assign: Assign, fields: dict[str, object], says: str) -> None:
    with pytest.raises(TaskError, match=f"^task 't'.*{says}"):
        positions_of(Task(id="t", question="?", **fields), assign, random.Random(0))  # type: ignore[arg-type]


def test_names_are_exchanged_wherever_they_stand() -> None:
    names = ("Debater A", "Debater B")
    told = "Debater A: debater b's (A) is not (B), nor is Debater AB. A"
    assert exchange_names(told, names) == "Debater B: Debater A's (B) is not (A), nor is Debater AB. A"
    assert exchange_names(exchange_names("Debater A, Debater B", names), names) == "Debater A, Debater B"
    assert exchange_names("no (A)", ("", "")) == "no (B)"
