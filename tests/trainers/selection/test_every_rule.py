"""What must hold for the rows of any rule and any debate: whose they are, what is not in them, what they rest on."""

from __future__ import annotations

import random
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocols.graph import Debate, decode_debate, encode_debate
from protocols.task import Task
from tests.trainers.selection import test_maft, test_retold
from tests.trainers.selection.test_preference import PROMPTER
from trainers.selection.example import Example
from trainers.selection.interaction import Interaction, interaction_of
from trainers.selection.maft import generator_examples
from trainers.selection.preference import TreeSettings, preference_rows
from trainers.selection.preference_row import Preference
from trainers.selection.select import FOR_ONE, RULES, WITHOUT_LABEL, Selection, select

GOLD = "forty-three"  # no agent writes it, so where it stands somebody was told
TASK = Task(id="t", question="What is 24 + 19?", gold=(GOLD, "43"), answer_format="number")
said = st.sampled_from(["43", "44", "no", "-", "43.0"])
tables = st.lists(st.lists(said, min_size=4, max_size=4).map(" ".join), min_size=1, max_size=3)
labels = st.sampled_from(["consensus", "gold"])


def society(rounds: list[str], **settings: Any) -> Debate:
    return test_maft.society(*rounds, task=TASK, **settings)


def reflected(rounds: list[str], **settings: Any) -> Debate:
    return test_retold.reflected(*rounds, task=TASK, **settings)


def selections(label: Any, loss: Any) -> list[Selection]:
    named = [
        Selection(rule=name, label=label, loss=loss, teachers=("teacher", "generator"))
        for name in RULES
        if name not in (*FOR_ONE, *(WITHOUT_LABEL if label == "gold" else ()))
    ]
    pooled = [Selection(rule=name, label=label, agents=("g0",)) for name in FOR_ONE]
    return [*named, *pooled]


def rows_of(debate: Debate, label: Any, loss: Any = "all") -> list[Example]:
    chosen = [select(selection, debate) for selection in selections(label, loss)]
    for rows in chosen:
        assert all(row.agent == agent for agent, found in rows.items() for row in found)
    return sorted((row for rows in chosen for found in rows.values() for row in found), key=_key)


def _key(row: Example) -> tuple[str, str]:
    return row.agent, row.id


def preferences_of(debate: Debate, label: Any, root: Any = "debate") -> list[Preference]:
    options = Selection(label=label)
    prompter = PROMPTER if debate.protocol == "reflect" else None
    return preference_rows(debate, "s", options=options, settings=TreeSettings(root=root), prompter=prompter)


def graphs_of(debate: Debate, label: Any) -> list[Interaction]:
    row = interaction_of(debate, "s", options=Selection(label=label))
    return [] if row is None else [row]


def texts_of(row: Example | Preference | Interaction) -> str:
    match row:
        case Example():
            learned: tuple[str, ...] = (row.completion,)
        case Preference():
            learned = (row.chosen, row.rejected)
        case Interaction():
            learned = row.replies
    return "\n".join([message.text for message in row.prompt] + list(learned))


debates = st.one_of(
    st.builds(society, tables, memory=st.sampled_from(["chat", "stateless"]), summarize=st.booleans()),
    st.builds(society, tables, critics=st.just(())),
    st.builds(reflected, tables),
    st.builds(reflected, tables, oracle=st.just(False), stop=st.just(())),
)


@settings(max_examples=30)
@given(debate=debates, label=labels)
def test_gold_is_in_no_row(debate: Debate, label: Any) -> None:
    rows: list[Example | Preference] = [*rows_of(debate, label), *preferences_of(debate, label)]
    for row in [*rows, *preferences_of(debate, label, "question"), *graphs_of(debate, label)]:
        assert GOLD not in texts_of(row)


@settings(max_examples=30)
@given(debate=debates)
def test_consensus_rows_do_not_know_gold(debate: Debate) -> None:
    """The same debate with other gold, graded the other way round, gives the same rows."""
    other = msgspec.structs.replace(debate, task=msgspec.structs.replace(debate.task, gold=("44",)))
    other.utterances = [
        msgspec.structs.replace(node, correct=None if node.correct is None else not node.correct)
        for node in debate.utterances
    ]
    assert rows_of(other, "consensus") == rows_of(debate, "consensus")
    assert preferences_of(other, "consensus") == preferences_of(debate, "consensus")
    assert graphs_of(other, "consensus") == graphs_of(debate, "consensus")
    if debate.verdict is not None and debate.verdict.oracle:
        assert rows_of(debate, "consensus") == [] == preferences_of(debate, "consensus")
        assert graphs_of(debate, "consensus") == []


@settings(max_examples=30)
@given(debate=debates, label=labels)
def test_every_row_names_nodes_of_its_debate_and_says_what_they_said(debate: Debate, label: Any) -> None:
    for row in rows_of(debate, label):
        nodes = [debate.utterance(node_id) for node_id in row.node_ids]
        assert all(node.answers for node in nodes) and row.completion == nodes[-1].reply.text
        if row.rule in ("generator", "critic"):  # the others are taught by others
            assert nodes[-1].agent == row.agent
            assert len({node.id.rpartition(".")[2] for node in nodes}) == 1  # one seat's chat
        if row.rule != "teacher":
            assert list(row.prompt) == debate.conversation(nodes[-1].id)
        assert row.token_ids == () or nodes[-1].agent == row.agent
        assert [row.prompt[reply.place].text for reply in row.earlier] == [node.reply.text for node in nodes[:-1]]
    for pair in preferences_of(debate, label):
        chosen, rejected = (debate.utterance(node_id) for node_id in pair.node_ids)
        assert (pair.chosen, pair.rejected) == (chosen.reply.text, rejected.reply.text)
        assert chosen.round == rejected.round and chosen.answer.value is not None
    for graph in graphs_of(debate, label):
        nodes = [debate.utterance(node_id) for node_id in graph.node_ids]
        assert sorted(node.id for node in nodes) == sorted(node.id for node in debate.turns())
        assert graph.replies == tuple(node.reply.text for node in nodes)
        assert all(nodes[other].round == nodes[one].round + 1 for one, other in graph.edges)


@settings(max_examples=30)
@given(debate=debates, label=labels)
def test_what_could_not_be_read_is_never_right(debate: Debate, label: Any) -> None:
    """Du et al.'s code grades an unreadable reply as correct."""
    unread = {node.id for node in debate.utterances if node.answer.value is None}
    assert not unread & {row.node_ids[-1] for row in rows_of(debate, label)}
    assert not unread & {row.node_ids[0] for row in preferences_of(debate, label)}
    for graph in graphs_of(debate, label):
        assert not unread & {name for name, right in zip(graph.node_ids, graph.right, strict=True) if right}


@settings(max_examples=30)
@given(debate=debates, label=labels)
def test_rows_depend_on_their_debate_alone(debate: Debate, label: Any) -> None:
    again = decode_debate(encode_debate(debate))
    assert rows_of(again, label) == rows_of(debate, label)
    assert preferences_of(again, label) == preferences_of(debate, label)
    assert graphs_of(again, label) == graphs_of(debate, label)
    rows = rows_of(debate, label)
    assert len(set(map(_key, rows))) == len(rows)


@settings(max_examples=30)
@given(rounds=st.lists(tables, min_size=2, max_size=4), shuffler=st.randoms(use_true_random=False))
def test_the_order_of_debates_changes_no_row(rounds: list[list[str]], shuffler: random.Random) -> None:
    held = [society(table) for table in rounds]
    shuffled = list(range(len(held)))
    shuffler.shuffle(shuffled)
    one = {at: rows_of(held[at], "consensus") for at in range(len(held))}
    assert {at: rows_of(held[at], "consensus") for at in shuffled} == one


@settings(max_examples=30)
@given(debate=debates, label=labels)
def test_held_out_tasks_never_teach(debate: Debate, label: Any) -> None:
    held_out = msgspec.structs.replace(debate, task=msgspec.structs.replace(debate.task, held_out=True))
    assert rows_of(held_out, label) == [] == preferences_of(held_out, label)
    assert graphs_of(held_out, label) == []


@pytest.mark.parametrize("label", ["consensus", "gold"])
def test_the_properties_are_of_rows_that_there_are(label: Any) -> None:
    debate = society(["43 44 43 43", "43 43 44 43"])
    assert {row.rule for row in rows_of(debate, label)} == {"generator", "critic", "majority", "teacher"}
    assert preferences_of(debate, label, "question") and graphs_of(debate, label)
    free = reflected(["43 44 43 43", "43 43 44 43"], oracle=False, stop=())
    assert {row.rule for row in rows_of(free, label)} >= {"teacher"} and preferences_of(free, label)
    assert generator_examples(debate, "g0")
