"""A finished debate seen as what can be learned from it: who was right, under which prompt, and against whom.

Pure views of the graph; they choose nothing. Correctness is that of the nodes, found with gold when they were graded.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable

import msgspec

from protocols.graph import Debate, Utterance
from protocols.message import Message

Pair = tuple[Utterance, Utterance]  # a right answer and a wrong one, under the same prompt


class Root(msgspec.Struct, frozen=True, kw_only=True):
    """What the agents of one round were asked, and all their answers to it, in the order recorded.

    ``prompt`` is the question alone in round 0, and after it the question with what was said about the last round.
    """

    round: int
    prompt: tuple[Message, ...]
    children: tuple[Utterance, ...]

    @property
    def right(self) -> tuple[Utterance, ...]:
        return tuple(node for node in self.children if node.correct)

    @property
    def wrong(self) -> tuple[Utterance, ...]:
        """The ungraded are neither right nor wrong; what could not be read is wrong."""
        return tuple(node for node in self.children if node.correct is False)

    @property
    def pairs(self) -> list[Pair]:
        """Every right answer with every wrong one."""
        return [(right, wrong) for right in self.right for wrong in self.wrong]


def preference_tree(debate: Debate) -> list[Root]:
    """The debate's prompts with their answers; one root a prompt, so one a round where all agents share it.

    Source: Zhou et al. 2025, arXiv:2506.03541, sec. 3.3, where a round's answers are the children of one prompt.
    Agents with personas of their own, or chats, are asked under prompts of their own and make roots of their own.
    """
    found: dict[tuple[int, tuple[Message, ...]], list[Utterance]] = {}
    for node in debate.turns():
        found.setdefault((node.round, tuple(debate.conversation(node.id))), []).append(node)
    return [Root(round=at, prompt=prompt, children=tuple(nodes)) for (at, prompt), nodes in found.items()]


def preference_pairs(debate: Debate) -> list[Pair]:
    """Every right answer with every wrong one of the same round and prompt, all agents, round by round."""
    return [pair for root in preference_tree(debate) for pair in root.pairs]


def right_nodes(debate: Debate, round: int | None = None, *, roles: Collection[str] = ()) -> list[Utterance]:
    """The right answers, optionally of one round, or of some roles alone (its teachers', say)."""
    return [node for node in debate.turns(round=round) if node.correct and (not roles or node.role in roles)]


def question_prompt(debate: Debate, agent: str = "") -> tuple[Message, ...]:
    """The question without any debate, as an agent was asked it in round 0; else as the first to answer was.

    Returns: () where nobody answered.
    """
    openings = list(debate.turns(round=0))
    first = next((node for node in openings if node.agent == agent), openings[0] if openings else None)
    return tuple(debate.conversation(first.id)) if first is not None else ()


def amplification(debates: Iterable[Debate]) -> float:
    """Preference pairs for each right answer, over all debates; 0 where nobody was right.

    Returns: the factor, at least 0: how many rows pairing makes of an answer that plain distillation uses once.
    """
    pairs = right = 0
    for debate in debates:
        pairs += len(preference_pairs(debate))
        right += len(right_nodes(debate))
    return pairs / right if right else 0.0


def tracks(debate: Debate) -> dict[str, list[Utterance]]:
    """Seat -> its answers, oldest first: who changed, who held on.

    A seat is the last part of a node's id. Agents that sit in it one after another share its track.
    """
    found: dict[str, list[Utterance]] = {}
    for node in debate.turns():
        found.setdefault(node.id.partition("~")[0].rpartition(".")[2], []).append(node)
    return found
