"""Rows end to end attend to themselves alone, and a model that cannot have that is refused by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from protocols.errors import TrainerError
from tests.trainers.conftest import device, loaded

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("default")]  # the libraries deprecate parts of their own
LENGTHS = (7, 1, 12, 4)


@pytest.fixture(scope="module")
def model(tiny_model: Path) -> Any:
    return loaded(tiny_model)[0]


def test_packed_rows_have_the_logits_and_gradients_that_they_have_alone(model: Any) -> None:
    import torch

    from trainers.tuning.packed_attention import rows_apart

    torch.manual_seed(1)
    rows = [torch.randint(0, 250, (1, length), device=device()) for length in LENGTHS]
    weight = model.model.layers[0].self_attn.q_proj.weight

    def gradient(logits: Any) -> Any:
        return torch.autograd.grad(torch.log_softmax(logits, dim=-1)[..., 3].sum(), weight)[0]

    alone = torch.cat([model(input_ids=row).logits for row in rows], dim=1)
    with rows_apart(model, max_length=64, precision="float32"):
        packed = model(
            input_ids=torch.cat(rows, dim=1),
            position_ids=torch.cat([torch.arange(length, device=device()) for length in LENGTHS])[None],
            row_lengths=LENGTHS,
        ).logits
    torch.testing.assert_close(packed, alone, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(gradient(packed), gradient(alone), rtol=1e-4, atol=1e-5)
    assert model.config._attn_implementation == "sdpa"


def test_a_model_that_does_not_keep_rows_apart_is_refused(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch
    from transformers import Lfm2Config, Lfm2ForCausalLM

    from trainers.tuning.packed_attention import packed_attention, rows_apart

    size: dict[str, Any] = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2}
    size |= {"num_key_value_heads": 2, "num_hidden_layers": 2, "initializer_range": 0.5}
    config = Lfm2Config(**size, layer_types=["conv", "full_attention"])
    make_model: Any = Lfm2ForCausalLM  # untyped; its convolution reaches over the end of a row
    with (
        pytest.raises(TrainerError, match=r"cannot keep packed rows apart; set sft.batching: grouped$"),
        rows_apart(make_model(config), max_length=64, precision="float32"),
    ):
        pass
    monkeypatch.setattr(model.config, "sliding_window", 32, raising=False)
    with (
        pytest.raises(TrainerError, match=r"look back on 32 tokens, .*sft.max_length=64\); set sft.batching: grouped"),
        rows_apart(model, max_length=64, precision="float32"),
    ):
        pass
    monkeypatch.setattr(model.config, "sliding_window", None)
    model.set_attn_implementation("eager")
    with (
        pytest.raises(TrainerError, match=r"attends by eager, and packed rows need sdpa; set sft.batching: grouped"),
        rows_apart(model, max_length=64, precision="float32"),
    ):
        pass
    model.set_attn_implementation("sdpa")
    query = torch.zeros(1, 2, 5, 4)
    with pytest.raises(TrainerError, match=r"Linear does not tell its attention where packed rows end"):
        packed_attention(torch.nn.Linear(1, 1), query, query, query, None)
