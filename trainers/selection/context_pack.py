"""What was said of a round fitted into prompts of bounded length: long answers are cut, many go into several prompts.

Only what others said is ever cut or left out. The question and the instructions stand beside it and are not seen here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import msgspec

from protocols.context import MARK

CountTokens = Callable[[str], int]
"""How many tokens the student's tokenizer makes of a text."""


class Limits(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """In tokens; 0 is no limit. Source: the released code of Zhou et al. 2025 (D&R), arXiv:2506.03541."""

    block: int = 950  # of an answer with what was said about it
    cut: int = 470  # what a longer block's answer, and then what was said about it, is cut to
    context: int = 1000  # of all blocks of a prompt

    def __post_init__(self) -> None:
        for name in self.__struct_fields__:
            if getattr(self, name) < 0:
                raise ValueError(f"{name}={getattr(self, name)} must not be below 0; 0 is no limit")
        if self.block and not 0 < self.cut < self.block:
            raise ValueError(f"cut={self.cut} must be above 0 and below block={self.block}")


class Note(msgspec.Struct, frozen=True):
    """What was said about an answer: by its own agent, or by another."""

    kind: Literal["reflection", "feedback"]
    text: str


class Block(msgspec.Struct, frozen=True):
    """An answer of the last round with what was said about it."""

    reply: str
    notes: tuple[Note, ...] = ()


def pack_blocks(
    blocks: Sequence[Block], limits: Limits, *, render: Callable[[int, Block], str], count: CountTokens
) -> list[tuple[str, ...]]:
    """The blocks as the contexts of one prompt or several, each numbered from 1, short blocks first.

    A context is full when the next block would make it longer than ``limits.context``; that block then begins the
    next. So every block is shown once, and one that is too long by itself is shown alone.

    Args:
        blocks: in a drawn order, which decides between equally long ones.
        render: a block's text under a number.
    Returns: at least one context; an empty one where there are no blocks.
    """
    fitted = [_fitted(block, limits, render, count) for block in blocks]
    fitted.sort(key=lambda block: count(render(1, block)))
    contexts: list[tuple[str, ...]] = [()]
    for block in fitted:
        longer = (*contexts[-1], render(len(contexts[-1]) + 1, block))
        if contexts[-1] and limits.context and count("\n".join(longer)) > limits.context:
            contexts.append((render(1, block),))
        else:
            contexts[-1] = longer
    return contexts


def cut_to(text: str, tokens: int, count: CountTokens) -> str:
    """Beginning and end of a text, as much of it as ``tokens`` hold; what was left out is marked.

    The released code keeps the beginning alone of a reasoning that stands apart from its answer; here the answer is the
    end of the reply, and so is kept.
    """
    if count(text) <= tokens:
        return text
    least, most = 0, len(text)  # characters
    while least < most:
        kept = (least + most + 1) // 2
        if count(_ends_of(text, kept)) <= tokens:
            least = kept
        else:
            most = kept - 1
    return _ends_of(text, least)


def _fitted(block: Block, limits: Limits, render: Callable[[int, Block], str], count: CountTokens) -> Block:
    """The block within its limit: its answer cut first, then what was said about it, each to an equal share."""
    if not limits.block or count(render(1, block)) <= limits.block:
        return block
    block = Block(cut_to(block.reply, limits.cut, count), block.notes)
    if not block.notes or count(render(1, block)) <= limits.block:
        return block
    share = limits.cut // len(block.notes)
    return Block(block.reply, tuple(Note(note.kind, cut_to(note.text, share, count)) for note in block.notes))


def _ends_of(text: str, kept: int) -> str:
    half = kept // 2
    return text[: kept - half].rstrip() + MARK + (text[-half:].lstrip() if half else "")
