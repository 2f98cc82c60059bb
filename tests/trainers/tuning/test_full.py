"""Training all weights equals a plain loop and goes on to the last bit; what comes out is a model that others load."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from protocols.errors import ConfigError, TrainerError
from tests.trainers.conftest import device, loaded
from tests.trainers.tuning.test_sft import ListSource, training
from trainers.selection.example import Example
from trainers.tuning.full import train_model
from trainers.tuning.sft import load_base
from trainers.tuning.sft_settings import SFTResult, SFTSettings, check_gpus
from trainers.tuning.tokenise import RowTokeniser

MakeExample = Callable[..., Example]


def test_several_gpus_are_for_whole_models() -> None:
    check_gpus("full", 0)
    check_gpus("full", 8)
    check_gpus("lora", 1)
    with pytest.raises(
        ConfigError, match=r"^train.gpus_per_lane=2: an adapter is trained on one GPU, and sft.method: f"
    ):
        check_gpus("lora", 2)
    with pytest.raises(ConfigError, match=r"^train.gpus_per_lane=2: an adapter is trained on one GPU"):
        check_gpus("qlora", 2)


@pytest.fixture
def train(tiny_model: Path, make_example: MakeExample, tmp_path: Path) -> Callable[..., SFTResult]:
    examples = [make_example(index, completion="x" * (7 * (index % 4) + 3)) for index in range(9)]

    def _train(output: str, *, rows: list[Example] = examples, method: Any = "full", **how: Any) -> SFTResult:
        arguments = {key: how.pop(key) for key in ("resume_from", "checkpoint_every", "on_checkpoint") if key in how}
        shape: dict[str, Any] = {"epochs": 2, "batch_size": 2, "gradient_accumulation": 2, "learning_rate": 1e-3}
        settings = SFTSettings(method=method, **(shape | how))
        model, tokenizer = load_base(str(tiny_model), settings.precision, method="full")
        source = ListSource(rows)
        return train_model(model, tokenizer, source, settings, agent="ada", output=tmp_path / output, **arguments)

    return _train


def weights(folder: Path) -> dict[str, Any]:
    from safetensors.torch import load_file

    return dict(load_file(folder / "model.safetensors"))


@training
def test_a_training_equals_a_plain_loop_and_writes_a_model_that_others_load(
    train: Callable[..., SFTResult], tiny_model: Path, make_example: MakeExample, tmp_path: Path
) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    rows = [make_example(index, completion="x" * (3 * index + 1)) for index in range(5)]
    result = train("out", rows=rows, epochs=1, schedule="constant", warmup=0.0)
    model, tokenizer = loaded(tiny_model)
    tokenise = RowTokeniser(tokenizer, vocab_size=259)
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.0)
    losses = []
    for step in (rows[:4], rows[4:]):
        tokens = [tokenise(row) for row in step]
        loss: Any = sum(
            torch.nn.functional.cross_entropy(
                model(input_ids=torch.tensor([row.input_ids], device=device())).logits[0, :-1],
                torch.tensor(row.labels[1:], device=device()),
                ignore_index=-100,
                reduction="sum",
            )
            for row in tokens
        ) / sum(row.num_learned for row in tokens)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        optimiser.zero_grad()
        losses.append(loss.item())
    assert result.losses == pytest.approx(losses, rel=1e-5)
    found = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    for (name, got), wanted in zip(found.named_parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(got, wanted.cpu(), rtol=0, atol=2e-5, msg=name)
    before, _ = load_base(str(tiny_model), "float32")
    assert all(not torch.equal(*pair) for pair in zip(before.parameters(), found.parameters(), strict=True))
    assert {file.name for file in (tmp_path / "out").iterdir()} == {
        "chat_template.jinja", "config.json", "generation_config.json", "model.safetensors", "tokenizer.json",
        "tokenizer_config.json", "training.json",
    }  # fmt: skip
    assert AutoTokenizer.from_pretrained(tmp_path / "out").chat_template == tokenizer.chat_template
    assert "lm_head.weight" not in weights(tmp_path / "out")  # tied: the embedding, written once


@training
def test_a_training_goes_on_to_the_last_bit_from_any_checkpoint(
    train: Callable[..., SFTResult], tmp_path: Path
) -> None:
    import torch

    kept: list[Path] = []

    def keep(folder: Path, figures: dict[str, float]) -> None:
        kept.append(tmp_path / f"checkpoint-{figures['step']}")
        shutil.copytree(folder, kept[-1])

    whole = train("whole", checkpoint_every=1, on_checkpoint=keep)
    assert len(kept) == whole.steps == 6
    wanted = weights(tmp_path / "whole")
    for step in (2, 5, 6):
        resumed = train(f"from-{step}", resume_from=kept[step - 1])
        assert (resumed.losses, resumed.learning_rates) == (whole.losses, whole.learning_rates)
        assert (resumed.rows_seen, resumed.data_hash) == (18, whole.data_hash)
        got = weights(tmp_path / f"from-{step}")
        assert got.keys() == wanted.keys() and all(torch.equal(got[name], wanted[name]) for name in wanted)


@training
def test_how_rows_go_through_and_what_is_kept_meanwhile_change_no_result(
    train: Callable[..., SFTResult], tmp_path: Path
) -> None:
    import torch

    padded = train("padded")
    for name, how in (("packed", {"batching": "packed"}), ("recomputed", {"gradient_checkpointing": True})):
        result = train(name, token_budget=150, **how)
        assert result.losses == pytest.approx(padded.losses, rel=1e-5)
        for key, wanted in weights(tmp_path / "padded").items():
            torch.testing.assert_close(weights(tmp_path / name)[key], wanted, rtol=0, atol=1e-4, msg=key)


@training
def test_in_bfloat16_weights_are_kept_finer_than_they_are_written(
    train: Callable[..., SFTResult], tiny_model: Path, tmp_path: Path
) -> None:
    import torch

    exact = train("exact", learning_rate=1e-5)
    coarse = train("coarse", learning_rate=1e-5, precision="bfloat16")
    assert coarse.losses != exact.losses and coarse.losses == pytest.approx(exact.losses, rel=1e-2)
    assert json.loads((tmp_path / "coarse" / "config.json").read_bytes())["dtype"] == "bfloat16"
    written = weights(tmp_path / "coarse")
    assert {weight.dtype for weight in written.values()} == {torch.bfloat16}
    for name, weight in weights(tmp_path / "exact").items():
        torch.testing.assert_close(written[name].float(), weight, rtol=1e-2, atol=1e-4, msg=name)
    # From 1/64 on bfloat16 has one number in 1.2e-4: of steps of 1e-5 none would move a weight that is kept in it.
    moved = [
        (written[name] != before.to(torch.bfloat16))[before.abs() > 1 / 64].flatten()
        for name, before in weights(tiny_model).items()
        if name in written
    ]
    assert torch.cat(moved).float().mean() > 0.05


@training
def test_what_cannot_be_trained_or_written_is_said_and_leaves_nothing(
    train: Callable[..., SFTResult], make_example: MakeExample, tmp_path: Path
) -> None:
    with pytest.raises(TrainerError, match=r"^no debate gave a row for 'ada' to train on"):
        train("out", rows=[])
    with pytest.raises(
        TrainerError, match=r"training 'ada': the loss of step \d is (nan|inf); lower sft.learning_rate"
    ):
        train("out", rows=[make_example(index) for index in range(40)], learning_rate=1e30, epochs=9)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "out").mkdir()
    with pytest.raises(TrainerError, match="exists already; an adapter is written once"):
        train("out")
