"""The debate graph: it only grows, says exactly what was asked, and survives storage."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import msgspec
import networkx as nx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocols.answer import Answer
from protocols.errors import GraphError
from protocols.graph import (
    SCHEMA_VERSION,
    Debate,
    Edge,
    EdgeKind,
    Utterance,
    Verdict,
    decode_debate,
    encode_debate,
    to_networkx,
)
from protocols.message import Reply, Usage, assistant, system, user
from protocols.task import Task

VERDICT = Verdict(answer="2", stop_reason="rounds", aggregator="majority_vote", support=1, votes=1)


def node(node_id: str, text: str = "2", **fields: Any) -> Utterance:
    round_number, phase, agent = node_id.split(".")
    reply = Reply(ask_id=f"d#{node_id}", text=text, model="m", usage=Usage(5, 2))
    defaults: dict[str, Any] = {
        "agent": agent,
        "role": "generator",
        "round": int(round_number),
        "phase": phase,
        "prompt": (user("q" + node_id),),
    }
    return Utterance(id=node_id, reply=reply, **(defaults | fields))


def debate(**fields: Any) -> Debate:
    defaults: dict[str, Any] = {
        "id": "d",
        "task": Task(id="t", question="1+1"),
        "protocol": "society",
        "seed": 1,
        "cast": {"generator": ("a",)},
    }
    return Debate(**(defaults | fields))


def two_turns() -> Debate:
    graph = debate()
    graph.add(node("0.answer.0", "3", prompt=(system("be brief"), user("1+1"))), ())
    graph.add(node("0.answer.1", "2"), ())
    graph.add(node("1.summarise.0", "they say 2", answers=False), [Edge("0.answer.1", "1.summarise.0", "saw")])
    edges: list[tuple[str, EdgeKind]] = [("0.answer.0", "memory"), ("1.summarise.0", "summary")]
    graph.add(
        node("1.answer.0", "2", prompt=(user("look again"),), answer=Answer("2", "boxed"), correct=True),
        [Edge(source, "1.answer.0", kind) for source, kind in edges],
    )
    return graph


@pytest.mark.parametrize(
    ("added", "edges", "says"),
    [
        ("0.answer.0", [], "already holds"),
        ("1.answer.1", [Edge("9.answer.9", "1.answer.1", "saw")], "earlier node"),
        ("1.answer.1", [Edge("1.answer.1", "1.answer.1", "saw")], "earlier node"),
        ("1.answer.1", [Edge("0.answer.0", "0.answer.1", "saw")], "earlier node"),
        ("1.answer.1", [Edge("0.answer.0", "1.answer.1", "saw"), Edge("x", "1.answer.1", "saw")], "earlier node"),
    ],
)
def test_a_refused_addition_changes_nothing(added: str, edges: list[Edge], says: str) -> None:
    graph = two_turns()
    before = encode_debate(graph)
    with pytest.raises(GraphError, match=says):
        graph.add(node(added), edges)
    assert encode_debate(graph) == before


def test_edges_may_come_from_an_iterator() -> None:
    graph = two_turns()
    graph.add(node("1.answer.1"), (Edge(source, "1.answer.1", "saw") for source in ("0.answer.0", "0.answer.1")))
    assert [edge.source for edge in graph.edges[-2:]] == ["0.answer.0", "0.answer.1"]


def test_a_closed_debate_takes_no_more() -> None:
    graph = two_turns()
    graph.close(VERDICT)
    before = encode_debate(graph)
    with pytest.raises(GraphError, match="closed"):
        graph.add(node("2.answer.0"), ())
    with pytest.raises(GraphError, match="closed"):
        graph.close(VERDICT)
    assert encode_debate(graph) == before


def test_a_conversation_follows_memory_back_to_the_opening() -> None:
    assert two_turns().conversation("1.answer.0") == [
        system("be brief"),
        user("1+1"),
        assistant("3"),
        user("look again"),
    ]
    assert two_turns().conversation("0.answer.1") == [user("q0.answer.1")]
    with pytest.raises(KeyError):
        two_turns().conversation("7.answer.7")


def test_a_conversation_of_many_rounds_is_not_bounded_by_the_stack() -> None:
    graph = debate()
    for number in range(1500):
        graph.add(
            node(f"{number}.answer.0"),
            [Edge(f"{number - 1}.answer.0", f"{number}.answer.0", "memory")] if number else [],
        )
    assert len(graph.conversation("1499.answer.0")) == 2 * 1500 - 1


def test_turns_leave_summaries_out() -> None:
    graph = two_turns()
    assert [turn.id for turn in graph.turns()] == ["0.answer.0", "0.answer.1", "1.answer.0"]
    assert [turn.id for turn in graph.turns(round=1)] == ["1.answer.0"]
    assert [turn.id for turn in graph.turns(agent="0")] == ["0.answer.0", "1.answer.0"]
    assert [turn.id for turn in graph.turns(round=0, agent="1")] == ["0.answer.1"]
    assert graph.usage() == Usage(20, 8)


@given(st.text(), st.dictionaries(st.text(), st.lists(st.text()).map(tuple)), st.integers(0, 2**63), st.booleans())
def test_decoding_gives_an_equal_debate_and_encoding_equal_bytes(
    text: str, cast: dict[str, tuple[str, ...]], seed: int, closed: bool
) -> None:
    graph = debate(cast=cast, seed=seed, failures=[text])
    graph.add(node("0.answer.0", text), ())
    if closed:
        graph.close(VERDICT)
    data = encode_debate(graph)
    assert decode_debate(data) == graph
    assert encode_debate(decode_debate(data)) == data
    graph.cast = dict(reversed(cast.items()))
    assert encode_debate(graph) == data


def test_the_schema_version_is_always_written() -> None:
    assert msgspec.msgpack.decode(encode_debate(debate()))["schema_version"] == SCHEMA_VERSION


def test_bytes_from_before_a_field_was_added_still_decode() -> None:
    old = {
        "id": "d",
        "task": {"id": "t", "question": "1+1"},
        "protocol": "society",
        "seed": 1,
        "cast": {"generator": ["a"]},
    }
    assert decode_debate(msgspec.msgpack.encode(old)) == debate()


@pytest.mark.parametrize("changes", [{}, {"cast": "retyped"}, {"utterances": 7}])
def test_a_newer_schema_is_refused_and_named(changes: dict[str, Any]) -> None:
    newer = msgspec.to_builtins(debate()) | {"schema_version": SCHEMA_VERSION + 1} | changes
    with pytest.raises(GraphError, match=f"'d' has schema version {SCHEMA_VERSION + 1}"):
        decode_debate(msgspec.msgpack.encode(newer))


@pytest.mark.parametrize(
    "data", [b"", b"\xc0", b"\x81\xa2id\xa1\xff", b"\x82\xa2id\xa1x\xa1y" + b"\x91" * 100_000, b"\xff" * 9]
)
def test_what_is_no_debate_is_refused(data: bytes) -> None:
    with pytest.raises(GraphError, match="not a debate"):
        decode_debate(data)


@given(st.binary(max_size=64), st.integers(0, 400))
def test_broken_bytes_are_never_anything_but_refused(noise: bytes, at: int) -> None:
    data = encode_debate(two_turns())
    at = min(at, len(data))
    with suppress(GraphError):
        decode_debate(data[:at] + noise + data[at + len(noise) :])


def test_the_networkx_view_has_all_nodes_and_typed_edges() -> None:
    graph = two_turns()
    graph.close(VERDICT)
    view = to_networkx(graph)
    assert dict(view.graph) == {"id": "d", "task": "t", "protocol": "society", "answer": "2"}
    assert list(view) == ["0.answer.0", "0.answer.1", "1.summarise.0", "1.answer.0"]
    assert view.nodes["1.answer.0"]["answer"] == "2"
    assert view.nodes["1.answer.0"]["correct"] is True
    assert view.nodes["1.answer.0"]["text"] == "2"
    assert [view.nodes["1.answer.0"][name] for name in ("answers", "tokens", "details")] == [True, 2, ""]
    assert {(s, t, kind) for s, t, kind in view.edges(keys=True)} == {(e.source, e.target, e.kind) for e in graph.edges}
    assert nx.is_directed_acyclic_graph(view)
    assert to_networkx(debate()).graph["answer"] is None
