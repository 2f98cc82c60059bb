"""One preference of one agent: two replies to the same prompt, the first better than the second."""

from __future__ import annotations

import msgspec

from protocols.message import FinishReason, Message


class Preference(msgspec.Struct, frozen=True, kw_only=True):
    """One training row: what an agent is sent, a reply to learn and a reply to unlearn, and which rule paired them.

    Rows of one debate form its trees: a reply that several pairs name under one prompt is one branch of it.
    """

    id: str  # "<debate>:<chosen node>><rejected node>:<rule>"
    agent: str  # who learns
    rule: str
    debate_id: str
    node_ids: tuple[str, str]  # chosen, rejected
    prompt: tuple[Message, ...]
    chosen: str
    rejected: str
    finish_reasons: tuple[FinishReason, FinishReason] = ("stop", "stop")  # chosen, rejected; "length": no end of turn
    weight: float = 1.0  # of the pair in the loss, above 0
