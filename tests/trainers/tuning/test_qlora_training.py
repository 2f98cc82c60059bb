"""QLoRA itself, where bitsandbytes is installed: with `pip install 'moot[qlora]'`. It runs on a CPU too."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.trainers.tuning.test_sft import ListSource
from trainers.selection.example import Example
from trainers.tuning.sft import load_base, train_adapter
from trainers.tuning.sft_settings import SFTSettings


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # the libraries deprecate parts of their own
def test_an_adapter_learns_on_a_base_that_stays_in_four_bits(
    tiny_model: Path, make_example: Callable[..., Example], tmp_path: Path
) -> None:
    import torch
    from safetensors.torch import load_file

    model, tokenizer = load_base(str(tiny_model), "bfloat16", method="qlora")
    weight = model.model.layers[0].mlp.up_proj.weight
    assert (weight.dtype, weight.quant_type) == (torch.uint8, "nf4")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    source = ListSource([make_example(index, completion="x" * (10 * index + 1)) for index in range(6)])
    for batching in ("padded", "packed"):
        settings = SFTSettings(
            method="qlora",
            precision="bfloat16",
            rank=4,
            epochs=4,
            batch_size=3,
            learning_rate=1e-2,
            batching=batching,
            gradient_checkpointing=True,
        )
        result = train_adapter(model, tokenizer, source, settings, agent="ada", output=tmp_path / batching)
        assert result.losses[-1] < result.losses[0] - 0.2
        weights = load_file(tmp_path / batching / "adapter_model.safetensors")
        assert {value.dtype for value in weights.values()} == {torch.bfloat16}
    after = model.state_dict()
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)
