"""Rows become the tokens the model spoke; one training equals a plain loop; the base comes back untouched."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from actors.local.transformers_batch import Row
from actors.local.transformers_prompts import Prompts
from protocols.errors import TrainerError
from protocols.message import Ask, ImagePart, Sampling, assistant, system, user
from tests.trainers.conftest import device, loaded
from trainers.record.feed import FeedPage
from trainers.record.feed import Row as FeedRow
from trainers.selection.example import EarlierReply, Example
from trainers.tuning.sft import load_base, train_adapter
from trainers.tuning.sft_settings import SFTSettings
from trainers.tuning.tokenise import RowTokeniser

MakeExample = Callable[..., Example]


def training(test: Any) -> Any:
    """Marks a test that loads a model: slow, and the libraries warn of what they deprecate in themselves."""
    return pytest.mark.slow(pytest.mark.filterwarnings("default")(test))


class ListSource:
    """A finished feed in memory."""

    def __init__(self, examples: list[Example]) -> None:
        self._examples = examples

    def read(self, offset: int, limit: int) -> FeedPage:
        total = len(self._examples)
        rows = [FeedRow(self._examples[at], (at + 1) / total) for at in range(offset, min(total, offset + limit))]
        return FeedPage(rows=tuple(rows), done=True, progress=1.0)


@pytest.fixture(scope="module")
def base(tiny_model: Path) -> tuple[Any, Any]:
    return loaded(tiny_model)


@pytest.fixture(scope="module")
def tokenise(base: tuple[Any, Any]) -> RowTokeniser:
    return RowTokeniser(base[1], vocab_size=base[0].get_input_embeddings().num_embeddings)


# --- settings


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("rank", 0),
        ("epochs", 0),
        ("learning_rate", 0.0),
        ("learning_rate", math.inf),
        ("warmup", 1.0),
        ("dropout", -0.1),
        ("target_modules", "q_proj"),
        ("target_modules", []),
        ("schedule", "steps"),
        ("batching", "paded"),
        ("token_budget", 0),
        ("method", "qlora"),  # in float32
        ("rnak", 4),
    ],
)
def test_settings_out_of_range_are_refused_by_name(setting: str, value: object) -> None:
    with pytest.raises(msgspec.ValidationError, match=setting):
        msgspec.convert({setting: value}, SFTSettings)


def test_the_rate_follows_progress() -> None:
    linear = SFTSettings(schedule="linear", warmup=0.2)
    assert [linear.rate_at(at) for at in (0.0, 0.1, 0.2, 0.6, 1.0)] == pytest.approx([0.1, 0.5, 1.0, 0.5, 0.0])
    cosine = SFTSettings(schedule="cosine", warmup=0.0)
    assert [cosine.rate_at(at) for at in (0.0, 0.5, 1.0)] == pytest.approx([1.0, 0.5, 0.0])
    assert SFTSettings(schedule="constant", warmup=0.0).rate_at(1.0) == 1.0


# --- tokens


@training
def test_the_prompt_is_the_models_template_and_the_completion_what_was_sampled(
    tokenise: RowTokeniser, base: tuple[Any, Any], make_example: MakeExample
) -> None:
    prompt = (system("Be brief."), user("1 + 1?"), assistant("2"), user("Sure?"))
    row = tokenise(make_example(1, prompt=prompt, token_ids=(70, 71, 257), completion="not looked at"))
    assert base[1].decode(row.prompt_ids) == (
        "<|start|>system\nBe brief.<|end|>\n<|start|>user\n1 + 1?<|end|>\n"
        "<|start|>assistant\n2<|end|>\n<|start|>user\nSure?<|end|>\n<|start|>assistant\n"
    )
    assert list(row.completion_ids) == [70, 71, 257]
    assert row.labels == [-100] * len(row.prompt_ids) + [70, 71, 257]
    assert row.input_ids == [*row.prompt_ids, 70, 71, 257]


@training
@pytest.mark.parametrize(("reason", "text"), [("stop", "No.<|end|>"), ("other", "No.<|end|>"), ("length", "No.")])
def test_text_without_tokens_gets_the_end_of_turn_unless_it_was_cut(
    tokenise: RowTokeniser, base: tuple[Any, Any], make_example: MakeExample, reason: str, text: str
) -> None:
    row = tokenise(make_example(1, completion="No.", finish_reason=reason))
    assert base[1].decode(row.completion_ids) == text


@training
def test_a_row_is_written_as_the_model_is_asked(tokenise: RowTokeniser, tiny_model: Path) -> None:
    """D&R trains on bare text and serves through a chat template."""
    served = Row([], Sampling())
    asked = Ask(id="a", debate_id="d", agent="ada", role="critic", messages=CHAT, sampling=Sampling())
    Prompts("tiny", str(tiny_model), False, None).fill(served, asked)
    assert tokenise.render(CHAT) == served.prompt_ids


CHAT = (user("1 + 1?"), assistant("2<|end|> is it"), user("Sure?"), assistant("3"), user("Sure?"))


@training
@pytest.mark.parametrize(
    ("earlier", "learned"),
    [
        ((), ["2<|end|>"]),
        ((EarlierReply(1),), ["2<|end|> is it<|end|>", "2<|end|>"]),
        ((EarlierReply(1, ended=False), EarlierReply(3)), ["2<|end|> is it", "3<|end|>", "2<|end|>"]),
    ],
)
def test_earlier_replies_are_learned_where_the_row_says_so(
    tokenise: RowTokeniser,
    base: tuple[Any, Any],
    make_example: MakeExample,
    earlier: tuple[EarlierReply, ...],
    learned: list[str],
) -> None:
    row = tokenise(make_example(1, prompt=CHAT, completion="2", earlier=earlier))
    assert row.input_ids == tokenise(make_example(1, prompt=CHAT, completion="2")).input_ids
    kept = [(token, label) for token, label in zip(row.input_ids, row.labels, strict=True) if label != -100]
    assert all(token == label for token, label in kept) and len(kept) == row.num_learned
    assert base[1].decode([token for token, _ in kept]) == "".join(learned)


@training
def test_the_loss_of_a_chat_is_that_of_a_row_for_each_of_its_replies(
    tokenise: RowTokeniser, base: tuple[Any, Any], make_example: MakeExample
) -> None:
    import torch

    def loss(example: Example) -> float:
        row = tokenise(example)
        with torch.no_grad():
            logits = base[0](input_ids=torch.tensor([row.input_ids], device=device())).logits[0, :-1]
        targets = torch.tensor(row.labels[1:], device=device())
        return float(torch.nn.functional.cross_entropy(logits, targets, ignore_index=-100, reduction="sum"))

    whole = make_example(1, prompt=CHAT, completion="2", earlier=(EarlierReply(1), EarlierReply(3)))
    parts = [(CHAT[:1], CHAT[1].text), (CHAT[:3], CHAT[3].text), (CHAT, "2")]
    apart = sum(loss(make_example(1, prompt=prompt, completion=text)) for prompt, text in parts)
    assert loss(whole) == pytest.approx(apart, rel=1e-5)


@training
def test_a_template_that_rewrites_earlier_replies_is_refused(base: tuple[Any, Any], make_example: MakeExample) -> None:
    import copy

    tokenizer = copy.deepcopy(base[1])
    tokenizer.chat_template = tokenizer.chat_template.replace(
        "{{ message['content'] }}", "{{ message['content'] if loop.last or message['role'] == 'user' else '...' }}"
    )
    tokenise = RowTokeniser(tokenizer, vocab_size=259)
    tokenise(make_example(1, prompt=CHAT))
    with pytest.raises(TrainerError, match=r"writes an earlier reply otherwise .* set train.loss: last"):
        tokenise(make_example(1, prompt=CHAT, earlier=(EarlierReply(1),)))


@training
def test_rows_that_cannot_be_trained_on_are_refused(tokenise: RowTokeniser, make_example: MakeExample) -> None:
    with pytest.raises(TrainerError, match=r"holds token 9999, but the model knows 259"):
        tokenise(make_example(1, token_ids=(9999,)))
    with pytest.raises(TrainerError, match="a prompt holds images"):
        tokenise(make_example(1, prompt=(user("?", [ImagePart(sha256="0")]),)))
    with pytest.raises(TrainerError, match=r"has weight=0.5; sft takes rows of weight 1 only"):
        tokenise(make_example(1, weight=0.5))


@training
def test_a_model_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(TrainerError, match=r"cannot be loaded: .*; give a folder in Hugging Face layout"):
        load_base(str(tmp_path), "float32")


# --- trainings


def _weights(folder: Path) -> dict[str, Any]:
    from safetensors.torch import load_file

    return dict(load_file(folder / "adapter_model.safetensors"))


def _plain_loop(model: Any, tokenise: RowTokeniser, steps: list[list[Example]], settings: SFTSettings) -> list[float]:
    """The same training by hand: one row at a time, cross-entropy over completion tokens, AdamW."""
    import torch
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(settings.seed)
    config = LoraConfig(
        r=settings.rank, lora_alpha=int(settings.alpha), target_modules="all-linear", task_type="CAUSAL_LM"
    )
    peft_model: Any = get_peft_model(model, config)
    weights = [weight for weight in peft_model.parameters() if weight.requires_grad]
    optimiser = torch.optim.AdamW(weights, lr=settings.learning_rate, weight_decay=0.0)
    losses = []
    for step in steps:
        rows = [tokenise(example) for example in step]
        total = 0.0
        for row in rows:
            logits = peft_model(input_ids=torch.tensor([row.input_ids], device=device())).logits[0, :-1]
            targets = torch.tensor(row.labels[1:], device=device())
            loss: Any = torch.nn.functional.cross_entropy(logits, targets, ignore_index=-100, reduction="sum")
            loss = loss / sum(row.num_learned for row in rows)
            loss.backward()
            total += loss.item()
        torch.nn.utils.clip_grad_norm_(weights, settings.max_grad_norm)
        optimiser.step()
        optimiser.zero_grad()
        losses.append(total)
    peft_model.unload()
    return losses


@training
def test_a_training_equals_a_plain_loop_and_leaves_no_trace_on_the_base(
    base: tuple[Any, Any], tokenise: RowTokeniser, make_example: MakeExample, tiny_model: Path, tmp_path: Path
) -> None:
    import torch

    model, tokenizer = base
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    examples = [make_example(index, completion="x" * (3 * index + 1)) for index in range(7)]
    examples[2] = msgspec.structs.replace(examples[2], prompt=CHAT, earlier=(EarlierReply(3),))  # "3" and its end
    settings = SFTSettings(
        rank=4, epochs=1, batch_size=2, gradient_accumulation=2, schedule="constant", warmup=0.0, learning_rate=5e-3
    )
    results = [
        train_adapter(model, tokenizer, ListSource(examples), settings, agent="ada", output=tmp_path / str(turn))
        for turn in range(2)
    ]
    assert results[0].losses == results[1].losses  # the second training on the same base is the first again
    first, second = _weights(tmp_path / "0"), _weights(tmp_path / "1")
    assert first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)
    assert any(name.endswith("lora_B.weight") and weight.abs().max() > 0 for name, weight in first.items())

    after = model.state_dict()
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)
    assert not {"forward", "peft_config"} & set(vars(model))

    fresh, _ = loaded(tiny_model)
    # Four rows, then the three that are left: a step that TRL alone would have dropped.
    expected = _plain_loop(fresh, tokenise, [examples[:4], examples[4:]], settings)
    assert results[0].losses == pytest.approx(expected, rel=1e-4)
    assert (results[0].steps, results[0].rows, results[0].rows_seen) == (2, 7, 7)
    assert results[0].completion_tokens == 2 + sum(3 * index + 2 for index in range(7))  # with the ends of turn
    assert results[0].started_at < results[0].first_step_at < results[0].finished_at
    assert sorted(file.name for file in (tmp_path / "0").iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
        "training.json",
    ]


@training
def test_a_training_resumes_to_the_last_bit_from_any_checkpoint(
    base: tuple[Any, Any], make_example: MakeExample, tmp_path: Path
) -> None:
    import torch

    examples = [make_example(index) for index in range(7)]
    settings = SFTSettings(rank=4, epochs=2, batch_size=3, dropout=0.2, learning_rate=1e-2, warmup=0.2)
    kept: list[Path] = []

    def keep(folder: Path, figures: dict[str, float]) -> None:
        kept.append(tmp_path / f"checkpoint-{figures['step']}")
        shutil.copytree(folder, kept[-1])

    def train(output: str, **arguments: Any) -> Any:
        source = ListSource(examples)
        return train_adapter(*base, source, settings, agent="ada", output=tmp_path / output, **arguments)

    whole = train("whole", checkpoint_every=1, on_checkpoint=keep)
    assert len(kept) == whole.steps == 6
    rates = [settings.rate_at(at) * 1e-2 for at in (0, 3 / 14, 6 / 14, 0.5, 0.5 + 3 / 14, 0.5 + 6 / 14)]
    assert whole.learning_rates == pytest.approx(rates)
    wanted = _weights(tmp_path / "whole")
    for step in (2, 4, 6):  # within the first epoch, within the second, at the very end
        resumed = train(f"from-{step}", resume_from=kept[step - 1])
        assert (resumed.losses, resumed.rows_seen, resumed.first_step_at) == (whole.losses, 14, whole.first_step_at)
        got = _weights(tmp_path / f"from-{step}")
        assert all(torch.equal(got[name], wanted[name]) for name in wanted)


@training
def test_how_rows_go_through_the_model_changes_no_result(
    base: tuple[Any, Any], make_example: MakeExample, tmp_path: Path
) -> None:
    import torch

    lengths = (3, 40, 5, 90, 7, 20, 60, 1, 33)
    examples = [make_example(index, completion="x" * length) for index, length in enumerate(lengths)]
    examples[4] = msgspec.structs.replace(examples[4], prompt=CHAT, earlier=(EarlierReply(1), EarlierReply(3)))
    shape: dict[str, Any] = {"rank": 4, "epochs": 2, "batch_size": 2, "gradient_accumulation": 3, "token_budget": 220}
    kept: list[Path] = []

    def keep(folder: Path, figures: dict[str, float]) -> None:
        kept.append(tmp_path / f"checkpoint-{figures['step']}")
        shutil.copytree(folder, kept[-1])

    def train(output: str, resume_from: Path | None = None, on_checkpoint: Any = None, **how: Any) -> Any:
        result = train_adapter(
            *base,
            ListSource(examples),
            SFTSettings(**shape, **how),
            agent="ada",
            output=tmp_path / output,
            resume_from=resume_from,
            checkpoint_every=2 if on_checkpoint else 0,
            on_checkpoint=on_checkpoint,
        )
        assert vars(base[0]).keys().isdisjoint({"forward", "peft_config"})
        assert base[0].config._attn_implementation == "sdpa"
        assert not base[0].is_gradient_checkpointing and not base[0].get_input_embeddings()._forward_hooks
        return result, _weights(tmp_path / output)

    padded, wanted = train("padded")
    for batching in ("grouped", "packed"):
        result, got = train(batching, batching=batching)
        assert result.losses == pytest.approx(padded.losses, rel=1e-5)
        assert (result.steps, result.rows_seen, result.completion_tokens) == (4, 18, padded.completion_tokens)
        for name in wanted:
            torch.testing.assert_close(got[name], wanted[name], rtol=1e-3, atol=1e-5, msg=name)

    how: dict[str, Any] = {"batching": "packed", "dropout": 0.2}
    whole, wanted = train("whole", on_checkpoint=keep, **how)
    for output, more in (("resumed", {"resume_from": kept[0]}), ("recomputed", {"gradient_checkpointing": True})):
        result, got = train(output, **how, **more)
        assert result.losses == whole.losses
        assert all(torch.equal(got[name], wanted[name]) for name in wanted)


@training
def test_a_mixtures_balance_counts_once_a_step(
    base: tuple[Any, Any], make_example: MakeExample, tmp_path: Path
) -> None:
    import torch
    from transformers import MixtralConfig, MixtralForCausalLM

    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    balance = {"num_local_experts": 4, "output_router_logits": True, "router_aux_loss_coef": 0.5}
    config = MixtralConfig(vocab_size=len(base[1]), num_key_value_heads=2, sliding_window=None, **shape, **balance)
    torch.manual_seed(0)
    make_model: Any = MixtralForCausalLM  # untyped
    model, losses = make_model(config), list[float]()
    source = ListSource([make_example(index) for index in range(4)])
    for size in (4, 1):  # one pass a step, or four
        settings = SFTSettings(
            rank=4, epochs=1, batch_size=size, gradient_accumulation=4 // size, target_modules=("q_proj",)
        )
        losses += train_adapter(model, base[1], source, settings, agent="ada", output=tmp_path / str(size)).losses
    assert losses[0] > math.log(len(base[1])) + 0.9  # about 0.5 times the two experts that a token goes to
    assert losses[1] == pytest.approx(losses[0], rel=1e-2)


@training
def test_a_training_can_start_from_an_earlier_adapter(
    base: tuple[Any, Any], make_example: MakeExample, tmp_path: Path
) -> None:
    source = ListSource([make_example(index) for index in range(4)])
    settings = SFTSettings(rank=4, epochs=3, learning_rate=2e-2)
    first = train_adapter(*base, source, settings, agent="ada", output=tmp_path / "v1")
    second = train_adapter(*base, source, settings, agent="ada", output=tmp_path / "v2", init_from=tmp_path / "v1")
    assert second.losses[0] < first.losses[-1] < first.losses[0]
    with pytest.raises(TrainerError, match=r"sft.rank=8, but the adapter to start from in .* has rank 4; set"):
        train_adapter(
            *base, source, SFTSettings(rank=8), agent="ada", output=tmp_path / "v3", init_from=tmp_path / "v1"
        )
    with pytest.raises(TrainerError, match=r"there is no adapter to start from in"):
        train_adapter(*base, source, settings, agent="ada", output=tmp_path / "v3", init_from=tmp_path / "nowhere")
    with pytest.raises(TrainerError, match="exists already; an adapter is written once"):
        train_adapter(*base, source, settings, agent="ada", output=tmp_path / "v1")


@training
def test_a_failed_training_writes_nothing_and_gives_the_base_back(
    tiny_model: Path, make_example: MakeExample, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    model, tokenizer = loaded(tiny_model)
    names = set(model.state_dict())
    settings = SFTSettings(rank=4, max_length=64)
    arguments: dict[str, Any] = {"agent": "ada", "output": tmp_path / "out"}
    with pytest.raises(
        TrainerError, match=r"^no debate gave a row for 'ada' to train on: none .*; lower train.min_support, "
    ):
        train_adapter(model, tokenizer, ListSource([]), settings, **arguments)
    long = [make_example(0, completion="x" * 64)]
    with pytest.raises(TrainerError, match=r"all 1 rows of 'ada' are longer than sft.max_length=64 tokens"):
        train_adapter(model, tokenizer, ListSource(long), settings, **arguments)
    with torch.no_grad():
        model.get_input_embeddings().weight[70] = math.nan
    source = ListSource([make_example(0), make_example(1, token_ids=(70, 257))])
    with pytest.raises(TrainerError, match=r"training 'ada': the loss of step 1 is nan; lower sft.learning_rate"):
        train_adapter(model, tokenizer, source, settings, **arguments)
    monkeypatch.setattr(model, "supports_gradient_checkpointing", False)
    settings = SFTSettings(rank=4, gradient_checkpointing=True)
    with pytest.raises(TrainerError, match=r"has no layers that can be computed again; set sft.gradient_checkpointing"):
        train_adapter(model, tokenizer, source, settings, **arguments)
    assert list(tmp_path.iterdir()) == []
    assert set(model.state_dict()) == names
