"""The teachers' set, counted by hand; chains and rewritten items are in test_select."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from protocols.catalogue import build_machine, load_protocol_prompts
from protocols.conversation import Player
from protocols.graph import Debate
from protocols.message import Ask, user
from protocols.reflect import ReflectSettings
from protocols.task import Task
from tests.fakes import failure_of, node_of, play
from trainers.selection.select import Selection, select

TASK = Task(id="t", question="What is 24 + 19?", gold=("43",), answer_format="number")
CAST = {"teacher": ("t0", "t1", "t2"), "student": ("s",)}
TEACHER = Selection(rules={"student": "teacher"}, label="gold")

#       t0 t1 t2 s    teachers right
WORKED = (
    "43 44 43 45",  # 2
    "43 43 44 44",  # 2
    "43 43 43 44",  # 3
    "43 43 - 43",  #  2
)


def reflected(*rounds: str, persona: str = "", task: Task = TASK, **settings: Any) -> Debate:
    """Three teachers and a student; answers by round and seat, "-" fails. ``persona`` is the first teacher's."""
    table = [texts.split() for texts in rounds]

    def answer(ask: Ask) -> Any:
        number, step, seat = node_of(ask).partition("~")[0].split(".")
        if step != "answer":
            return f"remark {node_of(ask)}"
        said = table[int(number)][int(seat)]
        return failure_of(ask) if said == "-" else f"### Answer\n{node_of(ask)} adds up.\nFinal answer: {said}"

    cast = {role: tuple(Player(name=name) for name in names) for role, names in CAST.items()}
    if persona:
        cast["teacher"] = (Player(name="t0", persona=persona), *cast["teacher"][1:])
    made = ReflectSettings(**({"rounds": len(rounds), "samples": 1} | settings))
    played = play(build_machine("reflect", made, cast, load_protocol_prompts("reflect", made)), task, answer)
    return msgspec.structs.replace(played.debate, cast=CAST)


def test_the_student_learns_the_teachers_right_answers_of_every_round() -> None:
    rows = select(TEACHER, reflected(*WORKED))
    assert list(rows) == ["s"]
    assert [row.node_ids for row in rows["s"]] == [
        *(("0.answer.0",), ("0.answer.2",)),
        *(("1.answer.0",), ("1.answer.1",)),
        *(("2.answer.0",), ("2.answer.1",), ("2.answer.2",)),
        *(("3.answer.0",), ("3.answer.1",)),
    ]
    assert all((row.agent, row.rule, row.token_ids) == ("s", "teacher", ()) for row in rows["s"])


def test_the_prompt_is_the_question_as_the_student_is_asked_it() -> None:
    debate = reflected(*WORKED, persona="You are a professor.")
    rows = select(TEACHER, debate)["s"]
    assert {row.prompt for row in rows} == {tuple(debate.conversation("0.answer.3"))}
    assert "professor" not in rows[0].prompt[0].text and TASK.question in rows[0].prompt[0].text
    assert rows[-1].completion == "### Answer\n3.answer.1 adds up.\nFinal answer: 43"


def test_gold_and_what_was_said_with_it_in_view_stay_out_of_consensus_rows() -> None:
    assert select(msgspec.structs.replace(TEACHER, label="consensus"), reflected(*WORKED)) == {}
    free = reflected(*WORKED, oracle=False, stop=())
    by_vote = select(msgspec.structs.replace(TEACHER, label="consensus"), free)["s"]
    assert [row.node_ids[0] for row in by_vote] == [row.node_ids[0] for row in select(TEACHER, free)["s"]]


def test_teachers_learn_from_each_other_only_where_they_are_named() -> None:
    debate = reflected(*WORKED)
    assert list(select(Selection(rule="teacher", label="gold"), debate)) == ["s"]
    named = select(Selection(rule="teacher", label="gold", agents=("t2",)), debate)["t2"]
    assert "0.answer.2" not in {row.node_ids[0] for row in named} and len(named) == 7


def test_a_form_is_the_same_however_the_teacher_wrote() -> None:
    debate = reflected(*WORKED)
    rows = select(msgspec.structs.replace(TEACHER, form="sections"), debate)["s"]
    assert rows[0].completion == "### Answer\n0.answer.0 adds up.\nFinal answer: 43"
    plain = msgspec.structs.replace(
        debate.utterances[0], reply=msgspec.structs.replace(debate.utterances[0].reply, text="I make it 43")
    )
    debate.utterances[0] = plain
    rows = select(msgspec.structs.replace(TEACHER, form="sections"), debate)["s"]
    assert rows[0].completion == "### Answer\nI make it 43\nFinal answer: 43"


@pytest.mark.parametrize("rounds", [("- - - -",), ("44 44 44 43",)])
def test_teachers_who_are_never_right_teach_nothing(rounds: tuple[str, ...]) -> None:
    assert select(TEACHER, reflected(*rounds)) == {}


def test_a_student_that_did_not_open_is_asked_as_the_first_who_did() -> None:
    rows = select(TEACHER, reflected("43 44 43 -"))["s"]
    assert [message.role for message in rows[0].prompt] == ["user"] and isinstance(rows[0].prompt[0], type(user("")))
