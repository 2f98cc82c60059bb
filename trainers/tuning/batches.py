"""How the rows of a step go through the model: as they come, like lengths together, or end to end. Pure.

Which rows a step has is the stream's to say. Here they are dealt out to passes, and a step's loss is the mean over all
its completion tokens: so neither what is learned nor the cursor in a checkpoint depends on how that is done.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from trainers.tuning.pack import fill

Batching = Literal["padded", "grouped", "packed"]


def deal(lengths: Sequence[int], batching: Batching, *, batch_size: int, token_budget: int) -> list[list[int]]:
    """The rows of a step, of these lengths in tokens, as passes through the model: each row's index in one of them.

    ``padded`` takes ``batch_size`` rows at a time in their order; ``grouped`` takes the longest first, as many as stay
    within ``token_budget`` with their padding; ``packed`` fills passes of ``token_budget`` tokens, best fit, without.
    A row above the budget goes by itself.
    """
    if batching == "padded":
        return [[*range(at, min(at + batch_size, len(lengths)))] for at in range(0, len(lengths), batch_size)]
    if batching == "packed":
        return fill([(length, [index]) for index, length in enumerate(lengths)], token_budget)
    passes: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lambda index: -lengths[index]):
        if not passes or lengths[passes[-1][0]] * (len(passes[-1]) + 1) > token_budget:
            passes.append([])
        passes[-1].append(index)
    return passes


def deal_out(
    lengths: Sequence[int], batching: Batching, *, batch_size: int, token_budget: int, num_ranks: int
) -> list[list[list[int]]]:
    """The same for processes that go through the model together: the passes of each, equally many.

    Long and short rows are spread evenly. Who has fewer passes than others ends on empty ones.
    """
    order = sorted(range(len(lengths)), key=lambda index: -lengths[index])
    dealt = []
    for rank in range(num_ranks):
        rows = sorted(order[rank::num_ranks])
        passes = deal([lengths[index] for index in rows], batching, batch_size=batch_size, token_budget=token_budget)
        dealt.append([[rows[place] for place in places] for places in passes])
    most = max(map(len, dealt))
    return [passes + [[]] * (most - len(passes)) for passes in dealt]
