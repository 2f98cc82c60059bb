"""A row to learn from, and how a node of a debate becomes one. No model, no disk, no Ray."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import msgspec

from protocols.graph import Debate, Utterance
from protocols.message import FinishReason, Message

Pool = Literal["", "corrected", "maintained"]
"""Which of two sets a row is mixed from; "" for a row that is taken as it is. See ``trainers.selection.mix``."""


class EarlierReply(msgspec.Struct, frozen=True):
    """A reply further up in a row's prompt that is learned as well.

    ``place`` is that of its message in the prompt, from 0. ``ended``: it ended its turn, so that is learned too.
    """

    place: int
    ended: bool = True


class Example(msgspec.Struct, frozen=True, kw_only=True):
    """One training row: what an agent was sent, what it is to say, and which rule chose it from where.

    ``token_ids`` and ``logprobs`` are both [T] as they were sampled (end-of-turn token included), natural logarithms;
    both are empty where the backend did not tell, or where the agent that learns is not the one that spoke, and the
    completion is then tokenised from ``completion``.
    """

    id: str  # "<debate>:<node>:<rule>"; where a node gives several rows, ":<number>" behind it
    agent: str  # who learns
    rule: str
    debate_id: str
    node_ids: tuple[str, ...]  # whose replies are learned, the completion's last
    prompt: tuple[Message, ...]
    completion: str
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[float, ...] = ()
    finish_reason: FinishReason = "stop"
    weight: float = 1.0
    earlier: tuple[EarlierReply, ...] = ()
    pool: Pool = ""


def as_spoken(
    debate: Debate, node: Utterance, *, agent: str, rule: str, whole_chat: bool = False, pool: Pool = ""
) -> Example:
    """A row of a reply under the prompt that it answered.

    Args:
        agent: who learns; where somebody else spoke, the sampled tokens are left out.
        whole_chat: the earlier replies of the node's chat are learned as well, but for tries that had to be mended.
    """
    reply, own = node.reply, node.agent == agent
    before = _replies_in_prompt(debate, node) if whole_chat else []
    return Example(
        id=f"{debate.id}:{node.id}:{rule}",
        agent=agent,
        rule=rule,
        debate_id=debate.id,
        node_ids=(*(said.id for _, said in before), node.id),
        prompt=tuple(debate.conversation(node.id)),
        completion=reply.text,
        token_ids=reply.token_ids if own else (),
        logprobs=reply.logprobs if own else (),
        finish_reason=reply.finish_reason,
        earlier=tuple(EarlierReply(place, said.reply.finish_reason != "length") for place, said in before),
        pool=pool,
    )


def as_retold(
    debate: Debate, node: Utterance, chat: Sequence[Message], *, agent: str, rule: str, number: str = ""
) -> Example:
    """A row whose last message a node gave under another prompt; its tokens are for the student's tokenizer to find."""
    completion, reply = chat[-1].text, node.reply
    ends = reply.text.rstrip().endswith(completion.rstrip())  # where the reply was cut off, so was the row at its end
    return Example(
        id=f"{debate.id}:{node.id}:{rule}{number}",
        agent=agent,
        rule=rule,
        debate_id=debate.id,
        node_ids=(node.id,),
        prompt=tuple(chat[:-1]),
        completion=completion,
        finish_reason=reply.finish_reason if ends else "stop",
    )


def _replies_in_prompt(debate: Debate, node: Utterance) -> list[tuple[int, Utterance]]:
    """The answers among the earlier turns of a node's chat, each with its message's place in the node's prompt."""
    *before, last = debate.chat(node.id)
    found, place = [], 0
    for turn in before:
        place += len(turn.prompt)
        found.append((place, turn))
        place += 1
    first = found[0][0] + last.elided if found else 0  # what was left out for room begins with the first reply
    return [(place - last.elided, turn) for place, turn in found if place >= first and turn.answers]
