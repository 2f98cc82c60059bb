"""Which openings become rows: hand-worked debates, and what must hold for any."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocols.answer import equivalent
from protocols.graph import Debate, Edge, Utterance, decode_debate, encode_debate
from protocols.message import Message, Reply, assistant, user
from tests.fakes import Answering, play, reply_to
from tests.protocols import test_dialectic, test_rewrite
from trainers.selection.example import Example
from trainers.selection.maft import generator_examples
from trainers.selection.select import Selection, select

MakeDebate = Callable[..., Debate]
OPENINGS = [("ada", "The answer is 42"), ("bo", "I say 41"), ("cy", "so 6 * 7 = 42.0")]


def chosen(rule: str, debate: Debate, **options: Any) -> dict[str, list[Example]]:
    return select(Selection(rule=rule, **options), debate)


def test_an_opening_that_agrees_with_the_verdict_becomes_a_row(make_debate: MakeDebate) -> None:
    debate = make_debate(OPENINGS, "42", id="t1")
    assert generator_examples(debate, "ada") == [
        Example(
            id="t1:0.answer.0:generator",
            agent="ada",
            rule="generator",
            debate_id="t1",
            node_ids=("0.answer.0",),
            prompt=(user("6 * 7?"),),
            completion="The answer is 42",
            token_ids=(7, 8),
            logprobs=(-0.5, -0.25),
        )
    ]
    assert generator_examples(debate, "bo") == []
    assert [row.completion for row in generator_examples(debate, "cy")] == [
        "so 6 * 7 = 42.0"
    ]  # equal, not the same text


def test_the_vote_decides_even_where_gold_says_otherwise(make_debate: MakeDebate) -> None:
    debate = make_debate(OPENINGS, "41", gold=("42",), correct=False)
    assert {agent: len(rows) for agent, rows in chosen("generator", debate).items()} == {"bo": 1}


def test_later_turns_are_not_taken(make_debate: MakeDebate) -> None:
    debate = make_debate([("ada", "It is 41")], "open")
    revised = Utterance(
        id="1.answer.0",
        agent="ada",
        role="critic",
        round=1,
        phase="answer",
        prompt=(user("Again?"),),
        reply=Reply(ask_id="d#1.answer.0", text="It is 42", model="m"),
    )
    debate.add(revised, [Edge("0.answer.0", "1.answer.0", "memory")])
    debate.close(make_debate([("ada", "It is 42")], "42").verdict)  # type: ignore[arg-type]
    assert debate.conversation("1.answer.0") == [user("6 * 7?"), assistant("It is 41"), user("Again?")]
    assert generator_examples(debate, "ada") == []


@pytest.mark.parametrize(
    ("answer", "changes"), [(None, {}), ("open", {}), ("42", {"oracle": True}), ("42", {"support": 1})]
)
def test_a_debate_teaches_nothing_without_a_vote_that_counts(
    make_debate: MakeDebate, answer: str | None, changes: dict[str, Any]
) -> None:
    assert chosen("generator", make_debate(OPENINGS, answer, **changes), min_support=2) == {}


def test_an_agent_in_two_seats_has_two_openings(make_debate: MakeDebate) -> None:
    debate = make_debate([("ada", "42"), ("ada", "It is 42")], "42")
    assert [row.node_ids for row in generator_examples(debate, "ada")] == [("0.answer.0",), ("0.answer.1",)]


def test_a_rule_nobody_knows_is_refused(make_debate: MakeDebate) -> None:
    debate = make_debate(OPENINGS, "42")
    with pytest.raises(ValueError, match=r"^rule='x' is not known; use one of: generator, critic, majority, teacher, "):
        chosen("x", debate)
    with pytest.raises(ValueError, match=r"^min_support=0 must be at least 1"):
        chosen("generator", debate, min_support=0)


# Chains of debate


def condensed(chain: str, **settings: Any) -> Debate:
    """Three rounds that end on 43, with this chain of them; both debaters' last answers are that."""
    machine = test_dialectic.dialectic(condenser=True, **settings)
    answer = test_dialectic.saying(test_dialectic.WORKED | {"2.condense.0": chain})
    played = play(machine, test_dialectic.TASK, answer)
    cast = {"debater": ("d0", "d1"), "judge": ("jo",), "summariser": ("sum",), "condenser": ("con",)}
    return msgspec.structs.replace(played.debate, cast=cast)


def test_a_chain_is_learned_under_the_question_alone_with_its_images() -> None:
    assert chosen("chain", condensed("1. units\n2. tens\n[43.0]")) == {
        "con": [
            Example(
                id="d:2.condense.0:chain",
                agent="con",
                rule="chain",
                debate_id="d",
                node_ids=("2.condense.0",),
                prompt=(user("What is 24 + 19?", [test_dialectic.IMAGE]),),
                completion="1. units\n2. tens\n[43.0]",
            )
        ]
    }


@pytest.mark.parametrize("chain", ["so [44]", "so 43", "[43], or rather [44]", ""])
def test_a_chain_that_does_not_end_on_the_verdict_is_left_out(chain: str) -> None:
    assert chosen("chain", condensed(chain)) == {}


def test_a_chain_teaches_nothing_where_its_debate_would_not() -> None:
    debate = condensed("[43]")
    assert debate.verdict is not None and debate.verdict.support == 2
    assert chosen("chain", debate, min_support=2) and chosen("chain", debate, min_support=3) == {}
    for change in ({"oracle": True}, {"answer": None}):
        changed = msgspec.structs.replace(debate, verdict=msgspec.structs.replace(debate.verdict, **change))
        assert chosen("chain", changed) == {}


def test_gold_has_no_part_in_a_chain() -> None:
    debate = condensed("[43]")
    wrong = msgspec.structs.replace(debate, task=msgspec.structs.replace(debate.task, gold=("44",)))
    assert chosen("chain", wrong) == chosen("chain", debate) != {}


# Rewritten items


def rewritten(category: str, answer: Answering, *, cut: bool = False, **settings: Any) -> Debate:
    def reply(ask: Any) -> Any:
        said = answer(ask)
        return msgspec.structs.replace(reply_to(ask, str(said)), finish_reason="length") if cut else said

    task = msgspec.structs.replace(test_rewrite.item(category), gold=("a cup",))
    played = play(test_rewrite.rewrite(**settings), task, reply)
    return msgspec.structs.replace(played.debate, cast={"rewriter": ("rewriter",), "judge": ("judge",)})


def taught(debate: Debate) -> list[tuple[str, list[Message], str]]:
    return [(row.id, list(row.prompt), row.completion) for row in chosen("rewritten", debate).get("rewriter", [])]


def test_each_pair_that_the_judge_kept_is_a_row() -> None:
    debate = rewritten("general", test_rewrite.saying(_0_judge_1="No."))
    images = [test_rewrite.IMAGE]
    assert taught(debate) == [
        ("d:0.rewrite.0:rewritten:0", [user("ask a", images)], "say a"),
        ("d:0.rewrite.0:rewritten:1", [user("ask c", images)], "say c"),
    ]
    assert list(chosen("rewritten", debate)) == ["rewriter"]


def test_the_rounds_of_a_dialogue_follow_each_other_and_show_the_images_once() -> None:
    debate = rewritten("ocr", test_rewrite.saying(_0_judge_1="No."))
    first = user("ask a", [test_rewrite.IMAGE])
    assert taught(debate) == [
        ("d:0.rewrite.0:rewritten:0", [first], "say a"),
        ("d:0.rewrite.0:rewritten:1", [first, assistant("say a"), user("ask c")], "say c"),
    ]


def test_an_item_whose_rewriter_was_told_gold_gives_nothing() -> None:
    assert taught(rewritten("general", test_rewrite.saying(), answer_from="gold")) == []
    assert len(taught(rewritten("general", test_rewrite.saying()))) == 3


def test_where_a_reply_was_cut_off_its_last_pair_has_no_end_to_learn() -> None:
    reply = "##Instruction## ask a\n##Response## say a\n##Instruction## ask b\n##Response## say"
    debate = rewritten("general", test_rewrite.saying(_0_rewrite_0=reply), cut=True)
    rows = chosen("rewritten", debate)["rewriter"]
    assert [(row.completion, row.finish_reason) for row in rows] == [("say a", "stop"), ("say", "length")]


@pytest.mark.parametrize("rule", ["chain", "rewritten"])
def test_other_debates_have_neither_chains_nor_pairs(make_debate: MakeDebate, rule: str) -> None:
    assert chosen(rule, make_debate(OPENINGS, "42")) == {}


agents = st.sampled_from(["ada", "bo", "cy"])
texts = st.sampled_from(["42", "The answer is 41", "42.0", "no idea", "", "6*7=42", "\\boxed{-1}"])
answers = st.sampled_from(["42", "41", "-1", None])


@given(
    openings=st.lists(st.tuples(agents, texts), max_size=6),
    answer=answers,
    gold=st.lists(st.sampled_from(["42", "41", "7"]), max_size=2).map(tuple),
    correct=st.sampled_from([None, True, False]),
)
def test_rows_follow_the_vote_alone(
    make_debate: MakeDebate,
    openings: list[tuple[str, str]],
    answer: str | None,
    gold: tuple[str, ...],
    correct: bool | None,
) -> None:
    debate = make_debate(openings, answer, gold=gold, correct=correct)
    found = chosen("generator", debate)
    rows = [row for agent_rows in found.values() for row in agent_rows]
    taken = {row.node_ids[0] for row in rows}
    for node in debate.utterances:
        agrees = node.answer.value is not None and answer is not None and equivalent(node.answer.value, answer)
        assert (node.id in taken) == agrees
    assert len({row.id for row in rows}) == len(rows)
    assert all(row.agent == agent for agent, agent_rows in found.items() for row in agent_rows)
    assert found == chosen("generator", make_debate(openings, answer, gold=(), correct=None))
    assert found == chosen("generator", decode_debate(encode_debate(debate)))
    assert msgspec.json.decode(msgspec.json.encode(rows), type=list[Example]) == rows
