"""Generators, critics and the majority's model, against debates whose rows were counted by hand."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from protocols.catalogue import build_machine, load_protocol_prompts
from protocols.conversation import Player
from protocols.graph import Debate
from protocols.message import Ask, assistant
from protocols.society import SocietySettings
from protocols.task import Task
from tests.fakes import failure_of, node_of, play, reply_to
from trainers.selection.example import EarlierReply, Example
from trainers.selection.select import Selection, select

TASK = Task(id="t", question="What is 24 + 19?", gold=("43",))
GENERATORS, CRITICS = ("g0", "g1", "g2", "g3"), ("c0", "c1", "c2", "c3")
MAFT = Selection(rules={"generator": "generator", "critic": "critic"})

#       s0 s1 s2 s3
WORKED = (
    "43 44 43 no",  # openings: two of four are the vote's
    "43 43 44 43",  # seat 0 held on, 1 and 3 corrected themselves, 2 was talked out of it; the vote is 43, by three
)


def society(*rounds: str, critics: tuple[str, ...] = CRITICS, task: Task = TASK, **settings: Any) -> Debate:
    """A society of four seats; answers by round and seat, "-" fails, a trailing "<" hit its limit."""
    table = [texts.split() for texts in rounds]

    def answer(ask: Ask) -> Any:
        number, step, seat = node_of(ask).split("~")[0].split(".")
        if step != "answer":
            return f"summary {node_of(ask)}"
        said = table[int(number)][int(seat)]
        if said == "-":
            return failure_of(ask)
        reply = reply_to(ask, f"{node_of(ask)}: " + rf"\boxed{{{said.rstrip('<')}}}")
        changes = {"token_ids": (7, 8), "finish_reason": "length" if said.endswith("<") else "stop"}
        return msgspec.structs.replace(reply, **changes)

    names = {"generator": GENERATORS, "critic": critics, "summariser": ("sum",)}
    cast = {role: tuple(Player(name=name) for name in names[role]) for role in names if names[role]}
    made = SocietySettings(rounds=len(rounds), **settings)
    played = play(build_machine("society", made, cast, load_protocol_prompts("society", made)), task, answer)
    return msgspec.structs.replace(played.debate, cast=names)


def told(rows: dict[str, list[Example]]) -> dict[str, list[tuple[str, str]]]:
    return {agent: [(row.node_ids[-1], row.pool) for row in found] for agent, found in rows.items()}


def test_generators_and_critics_each_have_rows_of_their_own() -> None:
    debate = society(*WORKED)
    assert debate.verdict is not None and (debate.verdict.answer, debate.verdict.support) == ("43", 3)
    assert told(select(MAFT, debate)) == {
        "g0": [("0.answer.0", "")],
        "g2": [("0.answer.2", "")],
        "c0": [("1.answer.0", "maintained")],
        "c1": [("1.answer.1", "corrected")],
        "c3": [("1.answer.3", "corrected")],
    }
    assert select(msgspec.structs.replace(MAFT, min_support=4), debate) == {}


def test_every_row_belongs_to_the_agent_that_it_trains() -> None:
    """MAFT's released code writes the last agent's set into every agent's file."""
    debate = society(*WORKED)
    rows = select(MAFT, debate)
    assert {debate.utterance(row.node_ids[-1]).agent for found in rows.values() for row in found} == set(rows)
    assert len({row.id for found in rows.values() for row in found}) == 5


def test_a_critic_learns_its_last_reply_and_not_the_wrong_opening_before_it() -> None:
    """MAFT's released trainers learn every reply of the chat, wrong openings too; here that has to be asked for."""
    debate = society(*WORKED)
    (row,) = select(MAFT, debate)["c1"]
    chat = debate.conversation("1.answer.1")
    assert [message.role for message in chat] == ["user", "assistant", "user"]
    assert row == Example(
        id="d:1.answer.1:critic",
        agent="c1",
        rule="critic",
        debate_id="d",
        node_ids=("1.answer.1",),
        prompt=tuple(chat),
        completion=r"1.answer.1: \boxed{43}",
        token_ids=(7, 8),
        pool="corrected",
    )
    (faithful,) = select(msgspec.structs.replace(MAFT, loss="all"), debate)["c1"]
    assert faithful == msgspec.structs.replace(
        row, node_ids=("0.answer.1", "1.answer.1"), earlier=(EarlierReply(1, ended=True),)
    )
    assert faithful.prompt[1] == assistant(r"0.answer.1: \boxed{44}")


def test_of_three_rounds_the_first_and_the_last_decide_and_all_are_learned() -> None:
    debate = society("44 43 43 43", "44< 44 43 43", "43 43 43 43", critics=())
    one = {"generator": ("generator", "critic")}
    rows = select(Selection(rules=one, loss="all"), debate)
    assert [(row.rule, row.pool, row.node_ids) for row in rows["g0"]] == [
        ("critic", "corrected", ("0.answer.0", "1.answer.0", "2.answer.0"))
    ]
    assert rows["g0"][0].earlier == (EarlierReply(1, ended=True), EarlierReply(3, ended=False))
    assert [(row.rule, row.pool) for row in rows["g1"]] == [("generator", ""), ("critic", "maintained")]


def test_what_was_left_out_of_a_chat_for_room_is_not_learned() -> None:
    debate = society("44 43 43 43", "44 43 43 43", "43 43 43 43", critics=(), max_context_tokens=200)
    node = debate.utterance("2.answer.0")
    assert node.elided == 2  # the opening's reply and what followed it
    (row,) = select(Selection(rule="critic", loss="all", agents=("g0",)), debate)["g0"]
    assert row.node_ids == ("1.answer.0", "2.answer.0")
    assert [row.prompt[reply.place].text for reply in row.earlier] == [debate.utterance("1.answer.0").reply.text]


def test_without_a_chat_there_is_nothing_earlier_to_learn() -> None:
    rows = select(msgspec.structs.replace(MAFT, loss="all"), society(*WORKED, memory="stateless"))
    assert [(row.node_ids, row.earlier) for row in rows["c1"]] == [(("1.answer.1",), ())]


def test_who_left_the_debate_or_never_revised_is_no_critic() -> None:
    left = society("43 43 43 43", "43 43 43 43", "43 43 43 -")
    assert sorted(select(Selection(rule="critic"), left)) == ["c0", "c1", "c2"]
    assert select(Selection(rule="critic"), society("43 43 43 43")) == {}


def test_summaries_are_asked_of_the_base_and_teach_nobody() -> None:
    rows = select(MAFT, society(*WORKED, summarize=True))
    assert set(told(rows)) == {"g0", "g2", "c0", "c1", "c3"}
    assert "summary 1.summarise.1" in rows["c1"][0].prompt[-1].text


def test_by_gold_the_same_debate_teaches_otherwise() -> None:
    """STaR's filter is the rule ``generator`` by gold."""
    debate = society(*WORKED, task=msgspec.structs.replace(TASK, gold=("44",)))
    rows = select(msgspec.structs.replace(MAFT, label="gold", min_support=4), debate)
    assert told(rows) == {"g1": [("0.answer.1", "")], "c2": [("1.answer.2", "corrected")]}


def test_the_majoritys_model_learns_from_all_openings_that_agree() -> None:
    debate = society(*WORKED)
    assert told(select(Selection(rule="majority", agents=("g0",)), debate)) == {
        "g0": [("0.answer.0", ""), ("0.answer.2", "")]
    }
    own, other = select(Selection(rule="majority", agents=("g0",)), debate)["g0"]
    assert (own.token_ids, other.token_ids) == ((7, 8), ())  # another's tokens may be another model's


def test_an_agent_that_is_always_wrong_leaves_the_others_their_rows() -> None:
    debates = [society("43 43 43 44", "43 43 43 44") for _ in range(3)]
    assert all(set(select(MAFT, debate)) == {"g0", "g1", "g2", "c0", "c1", "c2"} for debate in debates)


@pytest.mark.parametrize("rules", [{"generator": "generator"}, {"critic": "critic"}])
def test_an_agent_learns_by_the_rules_of_its_roles_alone(rules: dict[str, Any]) -> None:
    (role,) = rules
    cast = {"generator": GENERATORS, "critic": CRITICS}
    assert set(select(Selection(rules=rules), society(*WORKED))) <= set(cast[role])
    assert Selection(rules=rules).rules_of("sum", cast) == ()
