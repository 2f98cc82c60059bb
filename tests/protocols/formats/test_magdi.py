"""MAGDi's graphs, and the 12 nodes that its student is trained on, numbered by hand."""

from __future__ import annotations

import json

import pytest

from protocols.errors import GraphError
from protocols.formats.magdi import Edges, magdi_graph, opposed, read_magdi, write_magdi_graph
from tests.protocols.formats.samples import edges, ids, magdi


def test_everybody_saw_everybody() -> None:
    first, second = read_magdi(magdi(), "f")
    assert first.cast == {"generator": ("bard", "claude", "gpt4")}
    assert edges(first, "1.answer.0") == [("0.answer.0", "saw"), ("0.answer.1", "saw"), ("0.answer.2", "saw")]
    assert [node.correct for node in first.turns(round=0)] == [False, False, True]
    assert first.verdict is not None and (first.verdict.answer, first.verdict.support) == ("yes", 2)
    assert first.utterance("0.answer.2").reply.text == "because 0\nFinal answer: yes"
    assert ids(second) == ["0.answer.0", "0.answer.2"]
    assert second.utterance("0.answer.0").answer.value is None


def test_twelve_nodes_by_agent_and_round() -> None:
    first, second = read_magdi(magdi(), "f")
    graph = magdi_graph(first)
    assert graph["agents"] == ["claude", "gpt4", "bard"]
    assert graph["labels"] == [0, 1, 2, 2, 1, 1, 2, 2, 0, 0, 2, 2]
    assert graph["node_ids"][:2] == ["0.answer.1", "1.answer.1"] and graph["node_ids"][2] is None
    with pytest.raises(GraphError, match=r"it has 2 agents in 1 rounds, not 3 in at most 4"):
        magdi_graph(
            second.__class__(**{name: getattr(second, name) for name in second.__struct_fields__} | {"cast": {}})
        )


def test_a_graph_holds_the_pairs_of_its_own_question() -> None:
    """MAGDi's code deals its graphs out to the pairs of all questions in turn."""
    graph = magdi_graph(read_magdi(magdi(), "f")[0])
    assert graph["labels"] == [0, 1, 2, 2, 1, 1, 2, 2, 0, 0, 2, 2]
    assert graph["pairs"] == [(1, 0), (4, 8), (5, 9)]
    assert opposed([1, 0, 0, 0, 1]) == [(0, 1), (4, 2), (0, 3)]
    assert opposed([1, 2, 1]) == [(0, None), (2, None)]
    assert opposed([0, 0, 2]) == []


def pairs(kind: Edges) -> list[tuple[int, int]]:
    sources, targets = magdi_graph(read_magdi(magdi(), "f")[0], edges=kind)["edge_index"]
    return list(zip(sources, targets, strict=True))


def test_causal_edges_all_lead_to_the_next_round() -> None:
    found = pairs("causal")
    assert len(found) == len(set(found)) == 27
    assert all(target % 4 == source % 4 + 1 for source, target in found)
    expected = {(4 * i + r, 4 * j + r + 1) for i in range(3) for j in range(3) for r in range(3)}
    assert set(found) == expected


def test_legacy_edges_are_those_of_the_released_code() -> None:
    found = pairs("magdi_legacy")
    assert len(found) == len(set(found)) == 27
    backwards = {(source, target) for source, target in found if target % 4 < source % 4}
    assert backwards == {(4 * i + r + 1, 4 * j + r) for i in range(3) for j in range(i + 1, 3) for r in range(3)}
    assert (0, 5) in found and (1, 4) in found and (4, 1) not in found


def test_what_was_never_graded_has_no_labels() -> None:
    (first, _) = read_magdi([magdi()[0] | {"gold_answer": ""}, magdi()[1]], "f")
    with pytest.raises(GraphError, match=r"were never graded"):
        magdi_graph(first)


def test_graphs_are_lines() -> None:
    first, _ = read_magdi(magdi(), "f")
    lines = list(write_magdi_graph([first, first]))
    assert [json.loads(line)["labels"][0] for line in lines] == [0, 0]
