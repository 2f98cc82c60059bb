"""A debate as the graph that one student learns from, MAGDi's way. Pure: no model, no disk, no Ray.

Source: Chen et al. 2024 (MAGDi), arXiv:2402.01620, as its released code has it, whose edges and pairs are those of
``protocols.formats.magdi``. A node that nobody spoke is no node here; there it is one of a third class, whose text is
the question with the answer of the node before it.
"""

from __future__ import annotations

import re

import msgspec

from protocols.errors import TrainerError
from protocols.formats.magdi import RIGHT, WRONG, Edges, grid_edges, in_graph_order, opposed
from protocols.formats.outputs import MARK
from protocols.graph import Debate, Utterance
from protocols.message import FinishReason, Message
from protocols.tree import question_prompt, tracks
from trainers.selection.rule import RuleOptions, right
from trainers.selection.wording import ending, worded

RULE = "magdi"
_AGREEMENT = re.compile(r"(?m)(^|(?<=[.!?] ))I (?:dis)?agree\b.*?(?:[.!?](?: |$)|$)")


class Interaction(msgspec.Struct, frozen=True, kw_only=True):
    """One training row, a whole debate: the question as the student is asked it, and its answers as nodes of a graph.

    ``node_ids``, ``replies``, ``finish_reasons`` and ``right`` are aligned, one entry a node; ``edges`` (source,
    target) and ``pairs`` (a right node, a wrong one or None) name nodes by their place there.
    """

    id: str  # "<debate>:magdi"
    agent: str  # who learns
    rule: str = RULE
    debate_id: str
    prompt: tuple[Message, ...]
    node_ids: tuple[str, ...]
    replies: tuple[str, ...]
    finish_reasons: tuple[FinishReason, ...]
    right: tuple[bool, ...]
    edges: tuple[tuple[int, int], ...]
    pairs: tuple[tuple[int, int | None], ...]

    def __post_init__(self) -> None:
        nodes = range(len(self.node_ids))
        if not len(nodes) == len(self.replies) == len(self.finish_reasons) == len(self.right):
            raise ValueError(f"{self.id!r} has {len(nodes)} nodes, but not as many replies, endings and labels")
        if not all(place in nodes for edge in self.edges for place in edge):
            raise ValueError(f"{self.id!r} has an edge to a node that is not there")
        for one, other in self.pairs:
            if (
                one not in nodes
                or not self.right[one]
                or (other is not None and (other not in nodes or self.right[other]))
            ):
                raise ValueError(f"{self.id!r} pairs nodes {one} and {other}, which are not a right and a wrong one")


def interaction_of(debate: Debate, agent: str, *, options: RuleOptions, edges: Edges = "causal") -> Interaction | None:
    """The debate as ``agent`` learns from it; None where it teaches nothing.

    That is where its task is held out, where the label tells nothing of its answers, and where nobody was right. An
    answer that could not be read is wrong. Nodes are numbered seat by seat, an agent in several seats being several.

    Args:
        options: ``label``, ``min_support`` and ``form``; the others have no part. With ``form: sections`` sentences in
            which a speaker agrees or disagrees with others are left out, as in the released code.
        edges: see ``protocols.formats.magdi.magdi_graph``.
    Raises: TrainerError: a seat answers twice in a round.
    """
    grid, num_rounds = _grid(debate)
    marks = {number: right(debate, node, options) for number, node in grid.items()}
    if debate.task.held_out or None in marks.values():
        return None
    places = {number: place for place, number in enumerate(grid)}
    pairs = opposed([RIGHT if mark else WRONG for mark in marks.values()])
    if not pairs:
        return None
    num_seats = max(grid) // num_rounds + 1
    drawn = grid_edges(num_seats, num_rounds, edges)
    return Interaction(
        id=f"{debate.id}:{RULE}",
        agent=agent,
        debate_id=debate.id,
        prompt=question_prompt(debate, agent),
        node_ids=tuple(node.id for node in grid.values()),
        replies=tuple(_told(node, options) for node in grid.values()),
        finish_reasons=tuple(ending(node, options.form) for node in grid.values()),
        right=tuple(bool(mark) for mark in marks.values()),
        edges=tuple((places[one], places[other]) for one, other in drawn if one in places and other in places),
        pairs=tuple(pairs),
    )


def _grid(debate: Debate) -> tuple[dict[int, Utterance], int]:
    """The answers by number, num_rounds * seat + round, in its order; and the number of rounds."""
    num_rounds = max((node.round + 1 for node in debate.turns()), default=0)
    seats = [track for _, track in sorted(tracks(debate).items(), key=lambda item: (len(item[0]), item[0]))]
    order = in_graph_order(track[0].agent for track in seats)
    found: dict[int, Utterance] = {}
    for seat, track in enumerate(sorted(seats, key=lambda track: order.index(track[0].agent))):
        for node in track:
            if found.setdefault(num_rounds * seat + node.round, node) is not node:
                raise TrainerError(
                    f"debate {debate.id!r}: {node.agent!r} answers twice from one seat in round {node.round}, and "
                    "MAGDi's graph has a node a seat and round; train on debates of another protocol"
                )
    return dict(sorted(found.items())), num_rounds


def _told(node: Utterance, options: RuleOptions) -> str:
    text = worded(node, options.form)
    return without_agreement(text) if options.form == "sections" else text


def without_agreement(text: str) -> str:
    """A reply without the sentences that begin with "I agree" or "I disagree"; its final answer stays."""
    reasoning, mark, answer = text.partition(MARK)
    return _AGREEMENT.sub("", reasoning) + mark + answer
