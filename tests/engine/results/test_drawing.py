"""Where the nodes and edges of debates are drawn."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from engine.results.drawing import MAX_DRAWN_EDGES, graph_drawing
from engine.results.report import render_report
from engine.results.report_data import ReportData
from protocols.answer import Answer
from protocols.graph import Debate, Edge, EdgeKind, Utterance, Verdict
from protocols.message import Reply
from protocols.task import Task

VOTED = Verdict(answer="1", stop_reason="rounds", aggregator="majority_vote", votes=2)
JUDGED = Verdict(answer="1", stop_reason="verdict", aggregator="judge")


def built(nodes: Sequence[tuple[str, str, dict[str, Any]]], edges: str = "", verdict: Verdict | None = VOTED) -> Debate:
    """Nodes are (id, agent, other fields), all of them answering 1; edges read "source kind target, ..."."""
    debate = Debate(id="d", task=Task(id="t", question="q"), protocol="p", seed=0, cast={})
    kinds: list[tuple[str, EdgeKind, str]] = [tuple(edge.split()) for edge in edges.split(",") if edge]  # type: ignore[misc]
    for node_id, agent, fields in nodes:
        number, step, _ = node_id.split(".")
        defaults: dict[str, Any] = {"role": "debater", "prompt": (), "answer": Answer("1", "said")}
        reply = Reply(ask_id=node_id, text="", model="m")
        node = Utterance(id=node_id, agent=agent, round=int(number), phase=step, reply=reply, **(defaults | fields))
        debate.add(node, [Edge(source, node_id, kind) for source, kind, target in kinds if target == node_id])
    if verdict is not None:
        debate.close(verdict)
    return debate


def society(num_agents: int, num_rounds: int) -> Debate:
    nodes: list[tuple[str, str, dict[str, Any]]] = [
        (f"{r}.answer.{a}", f"agent{a}", {}) for r in range(num_rounds) for a in range(num_agents)
    ]
    edges = [
        f"{r - 1}.answer.{b} {'memory' if a == b else 'saw'} {r}.answer.{a}"
        for r in range(1, num_rounds)
        for a in range(num_agents)
        for b in range(num_agents)
    ]
    return built(nodes, ",".join(edges))


def kinds(debate: Debate) -> list[str]:
    drawing = graph_drawing(debate)
    assert drawing is not None
    return [kind for _, kind in drawing.lines]


def test_rounds_go_in_columns_and_agents_in_rows() -> None:
    drawing = graph_drawing(society(2, 2))
    assert drawing is not None
    assert [labels for _, *labels in drawing.columns] == [["round 0", "answer"], ["round 1", "answer"]]
    assert [label for _, label in drawing.rows] == ["agent0", "agent1"]
    assert [kind for _, kind in drawing.lines] == ["memory", "saw", "saw", "memory", "vote", "vote"]
    places = [(spot.x, spot.y) for spot in drawing.spots]
    assert len(set(places)) == 4 and places[0][0] == places[1][0] < places[2][0] < drawing.verdict[0] < drawing.width
    assert [sample.kind for sample in drawing.legend] == ["memory", "saw", "vote"]
    assert all(sample.y < drawing.height for sample in drawing.legend)


MODERATED: list[tuple[str, str, dict[str, Any]]] = [
    ("0.affirm.aff", "m", {"role": "affirmative"}),
    ("0.oppose.neg", "m", {"role": "negative"}),
    ("0.moderate.mod", "m", {"role": "moderator", "answers": False}),
    ("0.moderate.mod~1", "m", {"role": "moderator", "answers": False}),
]


def test_steps_and_second_tries_have_columns_and_one_agent_s_roles_have_rows() -> None:
    drawing = graph_drawing(built(MODERATED, verdict=JUDGED))
    assert drawing is not None
    steps = [step for _, _, step in drawing.columns]
    assert steps == ["affirm", "oppose", "moderate", "moderate, try 2"]
    assert [label for _, label in drawing.rows] == ["affirmative: m", "negative: m", "moderator: m"]
    assert [spot.y for spot in drawing.spots[2:]] == [drawing.rows[2][0]] * 2


def test_votes_are_drawn_only_where_votes_decide() -> None:
    assert kinds(built(MODERATED, verdict=JUDGED)) == ["last"]
    assert kinds(built(MODERATED, verdict=None)) == []
    assert kinds(built(MODERATED, verdict=VOTED)) == ["vote", "vote"]
    assert kinds(built([("0.sum.0", "m", {"answers": False})], verdict=VOTED)) == []


def test_who_was_silent_in_the_last_round_has_no_vote_unless_a_budget_ended_it() -> None:
    nodes: list[tuple[str, str, dict[str, Any]]] = [
        ("0.answer.0", "a", {}),
        ("0.answer.1", "b", {"answer": Answer("2", "said")}),
        ("1.answer.0", "a", {}),
    ]
    assert kinds(built(nodes)) == ["vote"]
    spent = Verdict(answer="1", stop_reason="budget", aggregator="majority_vote")
    assert kinds(built(nodes, verdict=spent)) == ["vote", "other"]


def test_what_an_agent_does_beside_answering_stays_with_its_rows() -> None:
    nodes: list[tuple[str, str, dict[str, Any]]] = [
        ("0.answer.0", "a", {}),
        ("0.answer.1", "b", {}),
        *((f"0.critique.0-{n}", "a", {"answers": False}) for n in (1, 2)),
        ("1.answer.0", "a", {}),
    ]
    edges = "0.answer.0 memory 0.critique.0-1,0.critique.0-1 critique 1.answer.0,0.answer.0 memory 1.answer.0"
    drawing = graph_drawing(built(nodes, edges))
    assert drawing is not None
    assert [label for _, label in drawing.rows] == ["a", "a", "b"]
    heights = {spot.node.id: spot.y for spot in drawing.spots}
    assert heights["0.answer.0"] == heights["0.critique.0-1"] == heights["1.answer.0"] != heights["0.critique.0-2"]
    assert [kind for _, kind in drawing.lines] == ["memory", "critique", "memory", "vote"]


@pytest.mark.parametrize(("num_agents", "num_rounds"), [(10, 5), (5, 9)])
def test_large_debates_are_drawn_wide_and_can_be_scrolled(num_agents: int, num_rounds: int) -> None:
    debate = society(num_agents, num_rounds)
    drawing = graph_drawing(debate)
    assert drawing is not None
    places = {(spot.x, spot.y) for spot in drawing.spots}
    assert len(places) == num_agents * num_rounds >= 40
    xs, ys = ({place[axis] for place in places} for axis in (0, 1))
    assert min(b - a for a, b in zip(sorted(xs), sorted(xs)[1:], strict=False)) > 100
    assert min(b - a for a, b in zip(sorted(ys), sorted(ys)[1:], strict=False)) > 40
    page = render_report(ReportData(run_name="r", transcripts=(("", debate),)))
    assert f"--w: {drawing.width}px" in page and "svg.graph { display: block; height: auto; width: 100%;" in page


def test_a_debate_too_large_to_draw() -> None:
    large = society(2, 2)
    large.edges = large.edges * (MAX_DRAWN_EDGES // 4 + 1)
    assert graph_drawing(large) is None
    assert "too many to draw" in render_report(ReportData(run_name="r", transcripts=(("", large),)))
    assert graph_drawing(built([])) is None


@pytest.mark.parametrize("again", ["1", "x", "9" * 5000, "²", "٣"])
def test_odd_ids_are_drawn_too(again: str) -> None:
    assert graph_drawing(built([(f"0.answer.0~{again}", "a", {})])) is not None
