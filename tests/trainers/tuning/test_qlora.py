"""A base in 4 bits: how it is loaded, and what is said where its library is missing."""

from __future__ import annotations

import sys

import pytest

from protocols.errors import ConfigError
from trainers.tuning.sft import load_base, nf4
from trainers.tuning.sft_settings import SFTSettings, check_gpus


def test_a_training_in_four_bits_asks_for_a_gpu_and_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = SFTSettings(method="qlora", precision="bfloat16")
    check_gpus(settings.method, 1)
    with pytest.raises(ConfigError, match=r"^sft.method=qlora trains on a GPU, and train.gpus_per_lane=0; set"):
        check_gpus(settings.method, 0)
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
