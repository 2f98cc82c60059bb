"""How an answer reads in a row: the same in supervised rows and in preferences, so that one training serves both."""

from __future__ import annotations

from typing import TYPE_CHECKING

from protocols.formats.outputs import MARK, output_of
from protocols.graph import Utterance

if TYPE_CHECKING:
    from protocols.message import FinishReason
    from trainers.selection.rule import Form

HEADER = "### Answer"


def worded(node: Utterance, form: Form) -> str:
    """A reply as it was said, or put together again as header, reasoning and final answer.

    A reply whose answer could not be read has no parts to put together and stays as it was said.

    Source: the form is that of D&R's released code (Zhou et al. 2025, arXiv:2506.03541), which wraps the answer in
    dollars in one of its two sets; here it is bare in both.
    """
    if form == "as_said" or node.answer.value is None:
        return node.reply.text
    return f"{HEADER}\n{output_of(node)['reasoning']}\n{MARK} {node.answer.value}"


def ending(node: Utterance, form: Form) -> FinishReason:
    """Whether the words end their turn: what was put together again does, whatever the reply did."""
    return node.reply.finish_reason if worded(node, form) == node.reply.text else "stop"
