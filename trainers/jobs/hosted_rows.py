"""Rows as hosted fine-tuning takes them: JSON lines of chats in which each reply says whether it is learned. Pure.

The service learns every assistant message unless told otherwise, and always that a learned one ends where it ends. So
each is given its weight, and a row that would come out otherwise than its rule says is refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import msgspec

from trainers.selection.example import Example

_ENCODER = msgspec.json.Encoder()


class RefusedRow(NamedTuple):
    """A row that cannot be written, and why."""

    id: str
    reason: str


class HostedRows(NamedTuple):
    """``lines``: those of ``examples``, in their order, as the file that is uploaded."""

    lines: bytes
    examples: list[Example]
    refused: list[RefusedRow]


def hosted_rows(examples: Sequence[Example]) -> HostedRows:
    """What can be written of an agent's rows, in their order, and what cannot."""
    lines, taken, refused = bytearray(), list[Example](), list[RefusedRow]()
    for example in examples:
        if reason := why_not(example):
            refused.append(RefusedRow(example.id, reason))
        else:
            lines += _ENCODER.encode({"messages": chat(example)}) + b"\n"
            taken.append(example)
    return HostedRows(bytes(lines), taken, refused)


def chat(example: Example) -> list[dict[str, Any]]:
    """A row's messages, each reply with its weight: 1 where the row's rule learns it, else 0."""
    learned = {reply.place for reply in example.earlier}
    messages: list[dict[str, Any]] = []
    for place, message in enumerate(example.prompt):
        told: dict[str, Any] = {"role": message.role, "content": message.text}
        messages.append(told | {"weight": int(place in learned)} if message.role == "assistant" else told)
    return [*messages, {"role": "assistant", "content": example.completion, "weight": 1}]


def why_not(example: Example) -> str:
    """Why the format cannot say what a row says; "" where it can."""
    if any(message.images for message in example.prompt):
        return "its prompt shows an image"
    if example.weight != 1.0:
        return f"it weighs {example.weight:g}, and a reply is learned with weight 0 or 1"
    if not example.completion.strip():
        return "its reply is empty"
    if example.finish_reason == "length" or not all(reply.ended for reply in example.earlier):
        return "a reply in it was cut off at max_tokens, and would be learned as one that ends there"
    return ""
