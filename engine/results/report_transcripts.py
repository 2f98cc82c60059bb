"""Whole debates as the page shows them: rounds, their steps, who was shown what, how the verdict was come by."""

from __future__ import annotations

import msgspec

from engine.results.drawing import VOTING, Drawing, graph_drawing
from engine.results.evaluate import round_vote
from protocols.answer import grade
from protocols.graph import Debate, Utterance
from protocols.vote import VoteResult


class Turn(msgspec.Struct, frozen=True, kw_only=True):
    """A turn as the page shows it. ``anchor`` is ours, never a name that came from outside."""

    node: Utterance
    anchor: str
    saw: tuple[tuple[str, Utterance, str], ...]  # (kind of edge, the node it led from, its anchor)
    retried: bool  # asked again: a later try took its place
    again: bool  # a later try itself


class Step(msgspec.Struct, frozen=True):
    """What was done at one point of a round, by one agent or several."""

    name: str
    turns: tuple[Turn, ...]


class Round(msgspec.Struct, frozen=True, kw_only=True):
    """A round's steps in order, and its vote where votes decide; ``correct`` grades that vote."""

    number: int
    steps: tuple[Step, ...]
    alone: bool  # nobody had been shown anything
    vote: VoteResult | None = None
    correct: bool | None = None


class Transcript(msgspec.Struct, frozen=True, kw_only=True):
    """A whole debate."""

    label: str
    debate: Debate
    anchor: str
    rounds: tuple[Round, ...]
    anchors: dict[str, str]  # node id -> anchor
    drawing: Drawing | None
    voted: bool


def make_transcript(label: str, debate: Debate, anchor: str) -> Transcript:
    """``anchor``: what the page's ids for this debate begin with, ours and unique on the page."""
    anchors = {node.id: f"{anchor}-{n}" for n, node in enumerate(debate.utterances)}
    nodes = {node.id: node for node in debate.utterances}
    sources: dict[str, list[tuple[str, Utterance, str]]] = {}
    for edge in debate.edges:
        sources.setdefault(edge.target, []).append((str(edge.kind), nodes[edge.source], anchors[edge.source]))
    last_tries = {node.id.partition("~")[0]: node.id for node in debate.utterances}
    rounds: dict[int, list[Turn]] = {}
    for node in debate.utterances:
        turn = Turn(
            node=node,
            anchor=anchors[node.id],
            saw=tuple(sources.get(node.id, ())),
            retried=last_tries[node.id.partition("~")[0]] != node.id,
            again="~" in node.id,
        )
        rounds.setdefault(node.round, []).append(turn)
    voted = debate.verdict is not None and debate.verdict.aggregator == VOTING
    return Transcript(
        label=label,
        debate=debate,
        anchor=anchor,
        rounds=tuple(_round(debate, number, turns, voted=voted) for number, turns in rounds.items()),
        anchors=anchors,
        drawing=graph_drawing(debate),
        voted=voted,
    )


def _round(debate: Debate, number: int, turns: list[Turn], *, voted: bool) -> Round:
    steps: list[tuple[str, list[Turn]]] = []
    for turn in turns:
        if not steps or steps[-1][0] != turn.node.phase:
            steps.append((turn.node.phase, []))
        steps[-1][1].append(turn)
    vote = round_vote(debate, number) if voted and any(turn.node.answers for turn in turns) else None
    return Round(
        number=number,
        steps=tuple(Step(name, tuple(taken)) for name, taken in steps),
        alone=all(not turn.saw for turn in turns),
        vote=vote,
        correct=grade(vote.answer, debate.task) if vote else None,
    )
