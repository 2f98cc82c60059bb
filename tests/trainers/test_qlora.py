"""A base in 4 bits: how it is loaded, that it learns, and what is said where its library is missing."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from protocols.errors import ConfigError
from tests.trainers.test_sft import ListSource
from trainers.example import Example
from trainers.sft import SFTSettings, check_qlora, load_base, nf4, train_adapter


def test_a_training_in_four_bits_asks_for_a_gpu_and_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = SFTSettings(method="qlora", precision="bfloat16")
    check_qlora(settings, gpus=1)
    with pytest.raises(ConfigError, match=r"^sft.method=qlora trains on a GPU, and train.gpus_per_lane=0; set"):
        check_qlora(settings, gpus=0)
    with pytest.raises(ValueError, match=r"^precision=float32 is not what method=qlora computes in; set precision: bf"):
        SFTSettings(method="qlora")
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)  # as where it is not installed
    with pytest.raises(
        ConfigError, match=r"needs bitsandbytes, which is not installed; run pip install 'moot\[qlora\]'"
    ):
        load_base("nowhere", "bfloat16", method="qlora")


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
def test_the_base_is_asked_for_as_published() -> None:
    import torch

    told = nf4(torch.bfloat16).to_dict()
    assert told["load_in_4bit"] and told["bnb_4bit_use_double_quant"]
    assert (told["bnb_4bit_quant_type"], told["bnb_4bit_compute_dtype"]) == ("nf4", "bfloat16")


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # the libraries deprecate parts of their own
def test_an_adapter_learns_on_a_base_that_stays_in_four_bits(
    tiny_model: Path, make_example: Callable[..., Example], tmp_path: Path
) -> None:
    pytest.importorskip("bitsandbytes")
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
