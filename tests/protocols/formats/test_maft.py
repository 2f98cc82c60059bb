"""The files of Society of Minds and MAFT: rounds, who was shown to whom, questions asked twice."""

from __future__ import annotations

import json

import pytest

from protocols.errors import ConfigError, GraphError
from protocols.formats.maft import maft_entry, read_maft, write_maft
from protocols.message import ImagePart
from protocols.task import Task
from tests.fakes import by_node, play
from tests.protocols.formats.samples import chat, edges, ids, maft
from tests.protocols.test_society import society


def test_contexts_are_rounds_of_a_society() -> None:
    debate, *_ = read_maft(maft(), "gen_3_2.json")
    assert ids(debate) == [f"{number}.answer.{seat}" for number in range(2) for seat in range(3)]
    assert debate.cast == {"generator": ("agent-0", "agent-1", "agent-2")}
    assert debate.task.gold == ("4",)
    assert [node.role for node in debate.utterances] == ["generator"] * 3 + ["critic"] * 3
    assert [node.correct for node in debate.turns(round=0)] == [True, False, True]
    verdict = debate.verdict
    assert verdict is not None
    assert (verdict.answer, verdict.support, verdict.votes, verdict.oracle) == ("4", 3, 3, False)


def test_who_saw_whom_is_read_from_the_prompts() -> None:
    debate, *_ = read_maft(maft(), "f")
    assert edges(debate, "1.answer.0") == [("0.answer.0", "memory"), ("0.answer.1", "saw"), ("0.answer.2", "saw")]
    assert edges(debate, "1.answer.1") == [("0.answer.1", "memory"), ("0.answer.0", "saw")]
    # neither reply stands in the third's prompt: what it read was a summary
    summarised = [("0.answer.2", "memory"), ("0.answer.0", "summary"), ("0.answer.1", "summary")]
    assert edges(debate, "1.answer.2") == summarised


def test_gold_is_the_last_box_else_what_follows_the_mark() -> None:
    assert [debate.task.gold for debate in read_maft(maft(), "f")] == [("4",), ("3",), ()]


def test_votes_that_tie_go_to_the_greatest_string() -> None:
    contexts = [chat("Q", rf"\boxed{{{n}}}") for n in (10, 9, 100)]
    (debate,) = read_maft({"Q": [contexts, ""]}, "f")
    assert debate.verdict is not None
    assert (debate.verdict.answer, debate.verdict.tie) == ("9", True)


def test_a_question_asked_twice_stays_two() -> None:
    one = read_maft({"Q": [[chat("Q", r"\boxed{1}")], r"\boxed{1}"]}, "a")
    two = read_maft({"Q": [[chat("Q", r"\boxed{2}")], r"\boxed{1}"]}, "b")
    written = "".join(write_maft([*one, *two, *two]))
    assert list(json.loads(written)) == ["Q", "Q\n[copy 2]", "Q\n[copy 3]"]
    assert read_maft(written, "c") == [*one, *two, *two]


def test_a_debate_of_ours_has_one_user_message_a_turn() -> None:
    played = play(
        society(2), Task(id="t", question="1 + 1?", gold=("2",)), lambda ask: rf"\boxed{{{len(ask.messages)}}}"
    )
    contexts, solution = maft_entry(played.debate)
    assert solution == r"\boxed{2}"
    assert [[row["role"] for row in rows] for rows in contexts] == [["user", "assistant"] * 2] * 2
    assert contexts[0][0]["content"] == "Be brief.\n\nQ 1 + 1?"
    assert contexts[0][3]["content"] == r"\boxed{4}"


def test_an_agent_that_left_has_a_shorter_context() -> None:
    answers = by_node(_0_answer_0="1", _0_answer_1="2", _1_answer_0="3")
    contexts, _ = maft_entry(play(society(2), Task(id="t", question="Q"), answers).debate)
    assert [len(rows) for rows in contexts] == [4, 2]


def test_an_image_is_a_marker() -> None:
    task = Task(id="t", question="Q", images=(ImagePart(sha256="ab" * 32),))
    contexts, _ = maft_entry(play(society(1), task, lambda _: "1").debate)
    assert "<image>\n" in contexts[0][0]["content"]


def test_a_debate_without_an_answer_is_refused_by_name() -> None:
    debate = play(society(2), Task(id="t", question="Q"), lambda _: None).debate
    with pytest.raises(GraphError, match=r"debate 'd' cannot be written as MAFT's contexts: no agent answered"):
        maft_entry(debate)


@pytest.mark.parametrize(
    "value", [[1], {"Q": 1}, {"Q": [[]]}, {"Q": [[chat("only asked")[:1]], ""]}, {"Q": [[[1]], ""]}]
)
def test_what_is_wrong_is_named(value: object) -> None:
    with pytest.raises(ConfigError, match=r"^f"):
        read_maft(json.dumps(value), "f")
