"""Chats: from a list of messages to turns, and from nodes of a graph back to messages."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from protocols.dialectic import chain_of_debate
from protocols.errors import ConfigError
from protocols.formats.common import expect, needed
from protocols.graph import Debate, Utterance
from protocols.message import ImagePart, Message, TextPart, assistant, system, user
from protocols.pairs import kept_pairs
from protocols.task import render_question

IMAGE = "<image>"  # where an image stands in a text
DIALOGUE = "ocr"  # category of rewritten items whose pairs follow each other in one talk

Chat = Sequence[Message]
Said = tuple[tuple[Message, ...], str]
"""One turn of a chat: the messages that came before a reply, and the reply."""

_MAKE = {"system": system, "user": user, "assistant": assistant}


def read_chat(value: Any, where: str) -> list[Message]:
    """A list of {role, content}. Raises: ConfigError: something else, or a role no chat has."""
    found = []
    for number, entry in enumerate(expect(value, list, where), 1):
        place = f"{where}, message {number}"
        row = expect(entry, dict, place)
        role, content = needed(row, "role", str, place), needed(row, "content", str, place)
        if role not in _MAKE:
            raise ConfigError(f"{place}: role {role[:40]!r} must be one of {', '.join(_MAKE)}")
        found.append(_MAKE[role](content))
    return found


def turns_of(chat: Chat) -> list[Said]:
    """A chat cut behind each reply; what follows the last one was never answered and is left out."""
    found: list[Said] = []
    before: list[Message] = []
    for message in chat:
        if message.role == "assistant":
            found.append((tuple(before), message.text))
            before = []
        else:
            before.append(message)
    return found


def text_of(message: Message) -> str:
    """A message's text with a marker where each image stands."""
    return "".join(part.text if isinstance(part, TextPart) else f"{IMAGE}\n" for part in message.parts)


def rows_of(chat: Chat) -> list[dict[str, str]]:
    """A chat as {role, content} rows."""
    return [{"role": message.role, "content": text_of(message)} for message in chat]


def asked(prompt: Chat) -> list[Message]:
    """What a turn was asked, without worked examples: a reader would take those for turns of the debate."""
    end = max((number for number, message in enumerate(prompt, 1) if message.role == "assistant"), default=0)
    return [*(message for message in prompt[:end] if message.role == "system"), *prompt[end:]]


def folded(prompt: Chat) -> str:
    """All that a turn was asked as one text, for formats that know one message a turn."""
    return "\n\n".join(text_of(message) for message in asked(prompt))


def image_name(image: ImagePart) -> str:
    """What an image's file is called in the ``media`` folder of its run."""
    return image.sha256


def chain_of(debate: Debate, nodes: Iterable[Utterance]) -> list[Utterance]:
    """These nodes in order, each after those of its chat that came before it: tries that had to be mended, say."""
    known = {node.id: node for node in debate.utterances}
    memory = {edge.target: edge.source for edge in debate.edges if edge.kind == "memory"}
    found: dict[str, Utterance] = {}
    for node in nodes:
        line: list[Utterance] = []
        at: str | None = node.id
        while at is not None and at not in found:
            line.append(known[at])
            at = memory.get(at)
        found.update({earlier.id: earlier for earlier in reversed(line)})
    return list(found.values())


def chat_of(debate: Debate, nodes: Iterable[Utterance]) -> list[Message]:
    """The chat that these nodes hold, oldest first, with their replies."""
    return [m for node in chain_of(debate, nodes) for m in (*asked(node.prompt), assistant(node.reply.text))]


def seat_of(node: Utterance) -> str:
    """The place of a node's speaker; two may be played by one agent. A second try keeps the place."""
    return node.id.rpartition(".")[2].partition("~")[0]


def seats(debate: Debate) -> dict[str, list[Utterance]]:
    """Each debater's answers by place, in the order given."""
    found: dict[str, list[Utterance]] = {}
    for node in debate.turns():
        found.setdefault(seat_of(node), []).append(node)
    return found


def chain_chat(debate: Debate) -> list[Message] | None:
    """The task as asked alone, with its images, and its debate condensed to a chain; None where there is no chain."""
    chain = chain_of_debate(debate)
    question = user(render_question(debate.task), debate.task.images)
    return [question, assistant(chain.reply.text)] if chain else None


def pair_chats(debate: Debate) -> list[list[Message]]:
    """A rewritten item's kept pairs, each a chat of its own with the item's images; [] for any other debate.

    Those of category ocr are the rounds of one dialogue, so they stay one chat, which shows the images once.
    """
    turns = [[user(pair.instruction), assistant(pair.response)] for pair in kept_pairs(debate)]
    if debate.verdict is not None and debate.verdict.details.get("category") == DIALOGUE:
        turns = [[message for turn in turns for message in turn]] if turns else []
    return [[user(first.text, debate.task.images), *rest] for first, *rest in turns]


def uses_gold(debate: Debate) -> bool:
    """Whether gold had a part in what was said: nothing of it may be learned from unless that is asked for."""
    return debate.verdict is not None and debate.verdict.oracle
