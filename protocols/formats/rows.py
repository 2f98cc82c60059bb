"""Rows that trainers read, and debates as chats: TRL's conversational layouts and OpenAI's messages.

Nothing that gold had a part in becomes a row unless the caller labels by gold. A row whose chat shows images names them
under ``images``, one for each of its markers.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

from protocols.answer import same
from protocols.formats.chats import Chat, chat_of, image_name, rows_of, seat_of, seats, uses_gold
from protocols.graph import Debate, Utterance
from protocols.message import Message, assistant

Label = Literal["consensus", "gold"]
"""What makes an answer right: that the debate ended on it, or that it equals a gold one."""


def messages_rows(debate: Debate, *, label: Label = "consensus") -> Iterator[dict[str, Any]]:
    """{messages} of each debater's whole chat, right or wrong; none of a debate that used gold, unless it labels."""
    if label == "gold" or not uses_gold(debate):
        for nodes in [list(debate.turns())] if debate.protocol == "conversation" else seats(debate).values():
            chat = chat_of(debate, nodes)
            yield {"messages": rows_of(chat), **_images(chat)}


def sft_row(prompt: Chat, completion: str) -> dict[str, Any]:
    """{prompt, completion} in TRL's conversational layout: the loss falls on the completion alone."""
    return {"prompt": rows_of(prompt), "completion": rows_of([assistant(completion)]), **_images(prompt)}


def preference_row(prompt: Chat, chosen: str, rejected: str) -> dict[str, Any]:
    """{prompt, chosen, rejected} in TRL's conversational layout."""
    answers = {"chosen": rows_of([assistant(chosen)]), "rejected": rows_of([assistant(rejected)])}
    return {"prompt": rows_of(prompt), **answers, **_images(prompt)}


def right_turns(debate: Debate, *, label: Label) -> list[Utterance]:
    """The debaters' turns of all rounds that the label calls right."""
    return [node for node in debate.turns() if is_right(debate, node, label=label)]


def is_right(debate: Debate, node: Utterance, *, label: Label) -> bool | None:
    """Whether an answer is right; None where the label cannot tell.

    By consensus that is so in a debate without an answer, and in one that used gold on the way. An answer that could
    not be read is wrong.
    """
    if label == "gold":
        return node.correct
    verdict = debate.verdict
    if verdict is None or verdict.answer is None or verdict.oracle:
        return None
    return same(node.answer, verdict.as_answer, tolerance=debate.task.tolerance)


def preference_rows(debate: Debate, *, label: Label) -> Iterator[dict[str, Any]]:
    """{prompt, chosen, rejected}: every right answer against every wrong one of the same round.

    The prompt is what the chosen answer's speaker was asked in round 0. The answers of a later round were given to
    longer chats, each to its own; only the opening asks what both answer, so it stands for all of them.

    Source of the pairing: Zhou et al. 2025 (D&R), arXiv:2506.03541; there the prompt holds the round's context.
    """
    openings = {seat_of(node): debate.conversation(node.id) for node in debate.turns(round=0)}
    by_round: dict[int, list[Utterance]] = {}
    for node in debate.turns():
        by_round.setdefault(node.round, []).append(node)
    for nodes in by_round.values():
        marks = [(node, is_right(debate, node, label=label)) for node in nodes]
        for chosen in (node for node, mark in marks if mark is True):
            opening: list[Message] | None = openings.get(seat_of(chosen))
            for rejected in (node for node, mark in marks if mark is False):
                if opening is not None and chosen.reply.text != rejected.reply.text:
                    yield preference_row(opening, chosen.reply.text, rejected.reply.text)


def _images(chat: Chat) -> dict[str, list[str]]:
    names = [image_name(image) for message in chat for image in message.images]
    return {"images": names} if names else {}
