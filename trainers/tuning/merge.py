"""An adapter and its base as one model. Only processes that merge import this module: it pulls in torch and PEFT."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import AutoConfig

from protocols.errors import TrainerError
from trainers.tuning.sft import load_base

NUM_CHECKED = 64  # places at which the merged model is compared


def merge_adapter(base: Path, adapter: Path, output: Path, *, dtype: str = "auto") -> float:
    """Write base and adapter as one model in Hugging Face layout, tokenizer included.

    The sum W + (alpha / r) B A is made in float32, whatever the base is kept in.

    Args:
        output: a folder that is there.
        dtype: of the written weights, as torch names it; "auto": the base's own.
    Returns: how far the written model's log-probabilities are from those of base with adapter, in nats: the largest
        difference over the vocabulary at ``NUM_CHECKED`` places. Beyond float32's rounding it is what ``dtype`` costs.
    Raises: TrainerError: base or adapter cannot be loaded, or do not fit.
    """
    model, tokenizer = load_base(str(base), "float32")
    stored = getattr(torch, dtype) if dtype != "auto" else AutoConfig.from_pretrained(str(base)).dtype or torch.float32
    try:
        joined: Any = PeftModel.from_pretrained(model, str(adapter))
    except (OSError, RuntimeError, ValueError) as err:
        reason = (str(err).strip().splitlines() or [repr(err)])[0]
        raise TrainerError(f"the adapter in {adapter} does not fit base {base}: {reason}; give its own base") from err
    wanted = _log_probs(joined)
    merged = joined.merge_and_unload().to(stored)
    merged.save_pretrained(str(output))
    tokenizer.save_pretrained(str(output))
    return float((_log_probs(merged.float()) - wanted).abs().max())


def _log_probs(model: Any) -> torch.Tensor:
    """[NUM_CHECKED, V] behind the tokens of a fixed row, scattered over the vocabulary."""
    vocabulary = model.get_input_embeddings().num_embeddings
    ids = torch.arange(NUM_CHECKED).mul(7919).remainder(vocabulary).unsqueeze(0)
    with torch.no_grad():
        return torch.log_softmax(model(ids).logits[0].float(), dim=-1)
