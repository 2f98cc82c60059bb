"""Rows for trainers: what is right, by whom, against what; and graphs for tools that draw them."""

from __future__ import annotations

import json

import msgspec
import networkx as nx

from protocols.formats.network import graphml, node_link
from protocols.formats.rows import messages_rows, preference_rows, right_turns, sft_row
from protocols.graph import Debate
from protocols.message import ImagePart, user
from protocols.task import Task
from tests.fakes import by_node, play
from tests.protocols.test_society import society

SAID = by_node(
    _0_answer_0=r"\boxed{2}",
    _0_answer_1=r"\boxed{3}",
    _0_answer_2="who knows",
    _1_answer_0=r"so \boxed{3}",
    _1_answer_1=r"so \boxed{3}",
    _1_answer_2=r"so \boxed{2}",
)


def debate(gold: tuple[str, ...] = ("2",)) -> Debate:
    return play(society(3), Task(id="t", question="Q", gold=gold), SAID).debate


def short(rows: object) -> list[tuple[int, str, str]]:
    assert not isinstance(rows, str)
    return [
        (len(row["prompt"]), row["chosen"][0]["content"], row["rejected"][0]["content"])
        for row in rows  # type: ignore[attr-defined]
    ]


def test_by_consensus_every_right_answer_is_paired_with_every_wrong_one_of_its_round() -> None:
    two, three = r"\boxed{2}", r"\boxed{3}"
    assert short(preference_rows(debate(), label="consensus")) == [
        (2, three, two),
        (2, three, "who knows"),
        (2, f"so {three}", f"so {two}"),
        (2, f"so {three}", f"so {two}"),
    ]


def test_by_gold_the_same_debate_teaches_the_opposite() -> None:
    two, three = r"\boxed{2}", r"\boxed{3}"
    assert short(preference_rows(debate(), label="gold")) == [
        (2, two, three),
        (2, two, "who knows"),
        (2, f"so {two}", f"so {three}"),
        (2, f"so {two}", f"so {three}"),
    ]


def test_gold_changes_no_row_that_consensus_labels() -> None:
    known, unknown = debate(), debate(())
    for label in (known, unknown):
        assert [node.id for node in right_turns(label, label="consensus")] == ["0.answer.1", "1.answer.0", "1.answer.1"]
    assert list(preference_rows(known, label="consensus")) == list(preference_rows(unknown, label="consensus"))
    assert list(preference_rows(unknown, label="gold")) == []


def test_the_prompt_of_a_later_round_is_the_opening() -> None:
    rows = list(preference_rows(debate(), label="consensus"))
    assert (
        rows[0]["prompt"]
        == rows[2]["prompt"]
        == [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "Q Q"},
        ]
    )


def test_a_debate_that_used_gold_gives_no_row_by_consensus() -> None:
    oracle = debate()
    assert oracle.verdict is not None
    oracle.verdict = msgspec.structs.replace(oracle.verdict, oracle=True)
    assert list(preference_rows(oracle, label="consensus")) == []
    assert right_turns(oracle, label="consensus") == []
    assert list(messages_rows(oracle)) == []
    assert len(list(messages_rows(oracle, label="gold"))) == 3


def test_messages_are_each_speakers_chat() -> None:
    rows = list(messages_rows(debate()))
    assert [[message["role"] for message in row["messages"]] for row in rows] == [
        ["system", "user", "assistant", "user", "assistant"]
    ] * 3


def test_rows_name_the_images_that_their_markers_stand_for() -> None:
    task = Task(id="t", question="Q", images=(ImagePart(sha256="ab" * 32), ImagePart(sha256="cd" * 32)))
    debate = play(society(2, rounds=1), task, by_node(_0_answer_0=r"\boxed{1}", _0_answer_1="none")).debate
    names = ["ab" * 32, "cd" * 32]
    sft = sft_row(debate.conversation("0.answer.0"), "1")
    assert (sft["images"], sft["prompt"][-1]["content"]) == (names, "<image>\n<image>\nQ Q")
    (pair,) = preference_rows(debate, label="consensus")
    assert pair["images"] == names
    assert [row["images"] for row in messages_rows(debate)] == [names, names]
    assert "images" not in sft_row([user("Q")], "1")


def test_graphml_is_read_by_networkx() -> None:
    graph = nx.parse_graphml(graphml(debate()), force_multigraph=True)
    assert graph.number_of_nodes() == 6 and graph.number_of_edges() == 9
    assert graph.nodes["0.answer.0"]["correct"] is True
    assert "answer" not in graph.nodes["0.answer.2"]  # nothing could be read


def test_node_link_json_is_read_by_networkx() -> None:
    graph = nx.node_link_graph(json.loads(node_link(debate())), edges="edges")
    assert graph.nodes["0.answer.2"]["answer"] is None
    assert graph.graph["answer"] == "3"
