"""Attention for rows that lie end to end in one sequence: each row attends to itself alone.

Only processes that train import this module. It is PyTorch's own attention, called once a row: no mask, no square of
the whole sequence, and no kernel that would have to be installed. What the rows have in common, all else in a model,
is computed over the whole sequence at once.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from protocols.errors import TrainerError

NAME = "moot_packed"
SAME = {"float32": 1e-3, "bfloat16": 5e-2}  # nats a token; rounding stays well below, a wrong mask well above
PROBE = ((1, 2, 3, 4, 5, 6), (5, 3, 1, 4, 2, 6))  # token ids that every vocabulary has


def packed_attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    row_lengths: tuple[int, ...] = (),
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """What transformers calls in every layer. ``query``, ``key``, ``value``: [1, heads, T, size].

    Args:
        row_lengths: the rows' numbers of tokens, T in all.
    Returns: [1, T, heads, size].
    Raises: TrainerError: the model did not hand ``row_lengths`` on to its layers.
    """
    if sum(row_lengths) != query.size(2):
        raise TrainerError(
            f"{type(module).__name__} does not tell its attention where packed rows end; set sft.batching: grouped"
        )
    rows = zip(*(tensor.split(row_lengths, dim=2) for tensor in (query, key, value)), strict=True)
    return torch.cat([sdpa_attention_forward(module, *row, None, **kwargs)[0] for row in rows], dim=1), None


AttentionInterface.register(NAME, packed_attention)


@contextmanager
def rows_apart(model: Any, *, max_length: int, precision: str) -> Iterator[None]:
    """The model takes packed rows within. On leaving, its attention is as it was.

    Raises: TrainerError: it cannot keep rows apart.
    """
    window = getattr(model.config.get_text_config(), "sliding_window", None)
    if window is not None and max_length > window:
        raise TrainerError(
            f"layers of the base {model.name_or_path!r} look back on {window} tokens, and rows may be longer than that "
            f"(sft.max_length={max_length}); set sft.batching: grouped, or sft.max_length: {window}"
        )
    attention = model.config._attn_implementation
    if attention != "sdpa":  # what transformers takes wherever it can; without it a model has something that sdpa lacks
        raise TrainerError(
            f"the base {model.name_or_path!r} attends by {attention}, and packed rows need sdpa; "
            "set sft.batching: grouped"
        )
    model.set_attn_implementation(NAME)
    try:
        _probe(model, precision)
        yield
    finally:
        model.set_attn_implementation(attention)


def _probe(model: Any, precision: str) -> None:
    """A row must score behind another as it does by itself; layers that carry a state do not forget the one before."""
    before, row = PROBE
    training = model.training
    model.eval()
    with torch.no_grad():
        packed, single = (_scores(model, rows)[-len(row) :] for rows in ((before, row), (row,)))
    model.train(training)
    difference = (packed - single).abs().max().item()
    if difference > SAME[precision]:  # nan is told by the loss
        raise TrainerError(
            f"a row scores {difference:.2g} nats a token otherwise behind another row than by itself: the base "
            f"{model.name_or_path!r} cannot keep packed rows apart; set sft.batching: grouped"
        )


def _scores(model: Any, rows: tuple[tuple[int, ...], ...]) -> Tensor:
    """[T, vocabulary]: log-probabilities."""
    logits = model(
        input_ids=torch.tensor([[token for row in rows for token in row]], device=model.device),
        position_ids=torch.tensor([[at for row in rows for at in range(len(row))]], device=model.device),
        row_lengths=tuple(len(row) for row in rows),
        use_cache=False,
    ).logits
    return torch.log_softmax(logits[0].float(), dim=-1)
