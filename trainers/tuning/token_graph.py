"""A debate as MAGDi learns from it, in tokens."""

from __future__ import annotations

from collections import Counter
from typing import Any

import msgspec

from trainers.selection.example import Example
from trainers.selection.interaction import Interaction
from trainers.tuning.tokenise import RowTokeniser, TokenRow


class TokenGraph(msgspec.Struct, frozen=True):
    """A debate ready for training: ``rows`` and ``right`` have an entry a node, which ``edges`` and ``pairs`` name."""

    rows: tuple[TokenRow, ...]
    right: tuple[bool, ...]
    edges: tuple[tuple[int, int], ...]
    pairs: tuple[tuple[int, int | None], ...]

    @property
    def num_tokens(self) -> int:
        """Of the longest node."""
        return max(row.num_tokens for row in self.rows)

    @property
    def times(self) -> Counter[int]:
        """Right node -> how many pairs name it."""
        return Counter(one for one, _ in self.pairs)

    @property
    def opposed(self) -> list[tuple[int, int]]:
        """The pairs that have a wrong node."""
        return [(one, other) for one, other in self.pairs if other is not None]


class GraphTokeniser:
    """Turns debates into token graphs for one model, as ``RowTokeniser`` does it: one template in all trainings."""

    def __init__(self, tokenizer: Any, *, vocab_size: int) -> None:
        self._tokenise = RowTokeniser(tokenizer, vocab_size=vocab_size)

    def __call__(self, row: Interaction) -> TokenGraph:
        """Raises: TrainerError: the question holds images."""
        nodes = zip(row.node_ids, row.replies, row.finish_reasons, strict=True)
        examples = [
            Example(
                id=f"{row.debate_id}:{node_id}:{row.rule}",
                agent=row.agent,
                rule=row.rule,
                debate_id=row.debate_id,
                node_ids=(node_id,),
                prompt=row.prompt,
                completion=reply,
                finish_reason=reason,
            )
            for node_id, reply, reason in nodes
        ]
        return TokenGraph(tuple(map(self._tokenise, examples)), row.right, row.edges, row.pairs)
