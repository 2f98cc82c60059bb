"""Likelihoods against a plain loop over one reply at a time, and the base left as it came."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.trainers.conftest import device, loaded
from trainers.selection.example import Example
from trainers.tuning.likelihood import BASE, score_replies
from trainers.tuning.sft import load_base
from trainers.tuning.tokenise import RowTokeniser

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("default")]


def make_adapter(base: Path, folder: Path, seed: int) -> Path:
    """LoRA weights that are drawn, not trained."""
    import torch
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM")
    adapted: Any = get_peft_model(load_base(str(base), "float32")[0], config)
    torch.manual_seed(seed)
    for name, weight in adapted.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(weight, std=0.1)
    adapted.save_pretrained(folder)
    return folder


def test_every_reader_scores_every_speaker(
    tiny_model: Path, tmp_path: Path, make_example: Callable[..., Example]
) -> None:
    import torch
    from peft import PeftModel

    adapters = {name: make_adapter(tiny_model, tmp_path / name, seed) for seed, name in enumerate(("ada.1", "bo"))}
    model, tokenizer = loaded(tiny_model)
    replies = {
        "ada.1": [make_example(number, completion="So " * number + "it is.") for number in (1, 2, 7)],
        "cy": [make_example(3, token_ids=(7, 8, 9))],  # speaks as the base
        "bo": [],
    }
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    found = score_replies(model, tokenizer, replies, adapters, batch_size=2)
    after = model.state_dict()
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)
    assert not hasattr(model, "peft_config")
    assert [(row.speaker, row.reader) for row in found] == [
        (speaker, reader) for speaker in ("ada.1", "cy") for reader in ("ada.1", "bo", BASE)
    ]

    def alone(reader: str, example: Example) -> Any:
        base, _ = loaded(tiny_model)
        if reader != BASE:
            base = PeftModel.from_pretrained(base, str(adapters[reader])).eval()
        row = RowTokeniser(tokenizer, vocab_size=len(tokenizer))(example)
        with torch.no_grad():
            logits = base(input_ids=torch.tensor([row.input_ids], device=device())).logits[0]
        scores = torch.log_softmax(logits, -1).cpu()
        return scores[len(row.prompt_ids) - 1 : -1], torch.tensor(list(row.completion_ids))

    for row in found:
        own = row.speaker if row.speaker in adapters else BASE
        nll, kl, tokens = 0.0, 0.0, 0
        for example in replies[row.speaker]:
            (spoken, said), (read, _) = alone(own, example), alone(row.reader, example)
            nll -= float(read[range(len(said)), said].sum())
            kl += float(torch.nn.functional.kl_div(read, spoken, log_target=True, reduction="sum"))
            tokens += len(said)
        assert row.tokens == tokens
        assert row.nll == pytest.approx(nll / tokens, rel=1e-5)
        assert row.kl == pytest.approx(kl / tokens, rel=1e-4, abs=1e-6)
        assert (row.kl == 0.0) == (row.reader == own)


def test_without_adapters_the_base_reads_and_what_is_too_long_is_left_out(
    tiny_model: Path, make_example: Callable[..., Example]
) -> None:
    model, tokenizer = loaded(tiny_model)
    rows = [make_example(1), make_example(2, completion="long " * 40)]
    (only,) = score_replies(model, tokenizer, {"ada": rows}, {}, max_length=100)
    (row,) = score_replies(model, tokenizer, {"ada": rows[:1]}, {})
    assert (only.reader, only.kl, only.tokens, only.nll) == (BASE, 0.0, row.tokens, row.nll)
