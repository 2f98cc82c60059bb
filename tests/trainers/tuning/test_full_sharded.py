"""Two processes that share a model come to what one comes to, go on from where they stood, and fail together."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tests.trainers.tuning.test_sft import ListSource
from tests.trainers.two_processes import Order, train_together
from trainers.selection.example import Example
from trainers.tuning.full import train_model
from trainers.tuning.sft import load_base
from trainers.tuning.sft_settings import SFTResult, SFTSettings

# Nine rows in steps of four: of the last step of an epoch, one row, the second process has none.
SETTINGS = SFTSettings(method="full", epochs=2, batch_size=2, gradient_accumulation=2, learning_rate=1e-3)
CLOSE = 1e-5  # of losses, in float32; weights of about 0.02 are compared to 1e-5


def changed(**how: Any) -> SFTSettings:
    return msgspec.structs.replace(SETTINGS, **how)


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
@pytest.mark.timeout(600)
def test_two_processes_train_as_one(tiny_model: Path, make_example: Callable[..., Example], tmp_path: Path) -> None:
    import torch
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM

    rows = [make_example(index, completion="x" * (7 * (index % 4) + 3)) for index in range(9)]
    packed = {"batching": "packed", "token_budget": 150, "gradient_checkpointing": True}
    orders = [
        Order(name="whole", settings=SETTINGS, checkpoint_every=2),
        Order(name="resumed", settings=SETTINGS, resume_from=str(tmp_path / "whole-4")),
        Order(name="packed", settings=changed(**packed)),
        Order(name="coarse", settings=changed(precision="bfloat16")),
        Order(name="lost", settings=changed(learning_rate=1e30, epochs=30)),
        Order(name="full-disk", settings=changed(epochs=1)),
    ]
    first, second = train_together(tiny_model, rows, orders, tmp_path)

    def alone(name: str, settings: SFTSettings, resume_from: Path | None = None) -> SFTResult:
        model, tokenizer = load_base(str(tiny_model), settings.precision, method="full")
        where: dict[str, Any] = {"output": tmp_path / name, "resume_from": resume_from}
        return train_model(model, tokenizer, ListSource(rows), settings, agent="ada", **where)

    def weights(name: str) -> dict[str, Any]:
        return dict(load_file(tmp_path / name / "model.safetensors"))

    def result(name: str) -> SFTResult:
        found, others = first[name].result, second[name].result
        assert found is not None and others is not None, first[name].error
        assert found.losses == others.losses
        return found

    wanted = alone("alone", SETTINGS)
    for name, others in (
        ("whole", result("whole")),
        ("packed", result("packed")),
        ("one-goes-on", alone("one-goes-on", SETTINGS, tmp_path / "whole-2")),
    ):
        assert others.losses == pytest.approx(wanted.losses, rel=CLOSE), name
        assert (others.steps, others.rows, others.rows_seen) == (6, 9, 18)
        assert (others.data_hash, others.completion_tokens) == (wanted.data_hash, wanted.completion_tokens)
        assert others.learning_rates == wanted.learning_rates
        for key, weight in weights("alone").items():
            torch.testing.assert_close(weights(name)[key], weight, rtol=0, atol=CLOSE, msg=f"{name} {key}")
    assert first["whole"].num_kept + second["whole"].num_kept == first["whole"].num_weights
    assert first["whole"].num_kept == pytest.approx(first["whole"].num_weights / 2, rel=0.02)

    assert result("resumed").losses == result("whole").losses
    resumed = weights("resumed")
    assert all(torch.equal(resumed[key], weight) for key, weight in weights("whole").items())
    coarse = result("coarse")
    assert coarse.losses == pytest.approx(wanted.losses, rel=1e-2) and coarse.losses != wanted.losses
    assert {weight.dtype for weight in weights("coarse").values()} == {torch.bfloat16}

    model = AutoModelForCausalLM.from_pretrained(tmp_path / "whole")  # written by one of two, and whole all the same
    assert type(model).__name__ == model.config.architectures[0] == "LlamaForCausalLM"
    for name, says in (("lost", "; lower sft.learning_rate=1e+30"), ("full-disk", "No space left on device; free")):
        assert says in first[name].error and first[name].error == second[name].error
        assert not (tmp_path / name).exists()
