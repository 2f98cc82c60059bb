"""A packed tree gives TRL's loss and gradients of its pairs, whatever the loss; trainings resume to the last bit."""

from __future__ import annotations

import math
import random
import shutil
from array import array
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import msgspec
import pytest

from protocols.errors import TrainerError
from protocols.message import system, user
from tests.trainers.conftest import device, loaded
from trainers.selection.preference_row import Preference
from trainers.tuning.pack import TokenPair, lay_out, pack_pairs
from trainers.tuning.pack_steps import pack_steps
from trainers.tuning.stream import Cursor
from trainers.tuning.tree_dpo import PairTokeniser, train_preferences
from trainers.tuning.tree_dpo_settings import LossType, TreeDPOSettings

SMOOTHING = {"robust": 0.1, "exo_pair": 0.01}


def training(test: Any) -> Any:
    """Marks a test that loads a model: slow, and the libraries warn of what they deprecate in themselves."""
    return pytest.mark.slow(pytest.mark.filterwarnings("default")(test))


# --- settings and steps


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("beta", 0.0),
        ("loss_type", "aot"),  # sorts a batch: a pair's loss would depend on the others
        ("label_smoothing", 0.1),  # the loss is sigmoid
        ("token_budget", 0),
        ("warmup", 1.0),
        ("reference", "base"),
        ("rank", 4),
    ],
)
def test_settings_out_of_range_are_refused_by_name(setting: str, value: object) -> None:
    with pytest.raises(msgspec.ValidationError, match=setting):
        msgspec.convert({setting: value}, TreeDPOSettings)


@pytest.mark.parametrize(("loss_type", "smoothing"), [("robust", 0.5), ("exo_pair", 0.0)])
def test_smoothing_that_a_loss_cannot_take_is_refused(loss_type: str, smoothing: float) -> None:
    with pytest.raises(msgspec.ValidationError, match="label_smoothing"):
        msgspec.convert({"loss_type": loss_type, "label_smoothing": smoothing}, TreeDPOSettings)


def test_every_epoch_takes_every_pack_once_and_goes_on_from_any_cursor() -> None:
    settings = TreeDPOSettings(epochs=2, gradient_accumulation=2, seed=3)
    steps = list(pack_steps(5, settings))
    assert [len(step.packs) for step in steps] == [2, 2, 1, 2, 2, 1]
    assert [sorted(at for step in steps[start : start + 3] for at in step.packs) for start in (0, 3)] == [
        [*range(5)]
    ] * 2
    assert steps[0].packs != steps[3].packs
    assert [step.progress for step in steps] == pytest.approx([0.2, 0.4, 0.5, 0.7, 0.9, 1.0])
    assert steps[2].cursor == Cursor(0, 5)
    for done, step in enumerate(steps, 1):
        assert list(pack_steps(5, settings, step.cursor)) == steps[done:]


# --- equality with TRL


@pytest.fixture(scope="module")
def base(tiny_model: Path) -> tuple[Any, Any]:
    return loaded(tiny_model)


@pytest.fixture(scope="module")
def sft_adapter(base: tuple[Any, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter that does something, as a supervised finetuning leaves it."""
    return make_adapter(base[0], tmp_path_factory.mktemp("sft") / "adapter")


def make_adapter(model: Any, folder: Path) -> Path:
    import torch
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(1)
    config = LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", init_lora_weights=False, task_type="CAUSAL_LM")
    peft_model: Any = get_peft_model(model, config)
    peft_model.save_pretrained(str(folder), save_embedding_layers=False)
    peft_model.unload()
    vars(model).pop("peft_config", None)
    return folder


def pair(prompt: Sequence[int], chosen: Sequence[int], rejected: Sequence[int], weight: float = 1.0) -> TokenPair:
    return TokenPair("d", array("i", prompt), array("i", chosen), array("i", rejected), weight)


# Replies that are chosen here and rejected there, that share a beginning, and prompts that share theirs.
PAIRS = [
    pair([5, 6, 7, 8], [11, 12, 13], [14]),
    pair([5, 6, 7, 8], [11, 12, 13], [11, 15, 16, 17]),
    pair([5, 6, 7, 8], [18, 19], [11, 15, 16, 17]),
    pair([5, 6, 9, 9, 9], [14], [11, 12, 13, 20, 21]),
    pair([40], [41, 42], [43]),
]


def _moved(peft_model: Any) -> dict[str, Any]:
    """The policy a little away from the reference, so that no log-ratio is 0. Returns: what learns, by name."""
    import torch

    torch.manual_seed(2)
    learns = {name: weight for name, weight in peft_model.named_parameters() if ".default." in name}
    for weight in learns.values():
        weight.data += 0.05 * torch.randn_like(weight)
    return learns


def _trl(
    base: tuple[Any, Any], adapter: Path, settings: TreeDPOSettings, work: Path, pairs: Sequence[TokenPair] = PAIRS
) -> tuple[float, Any, Any]:
    """Loss, gradients and metrics of TRL's own trainer on the expanded pairs."""
    from datasets import Dataset
    from peft import PeftModel
    from trl.trainer.dpo_config import DPOConfig
    from trl.trainer.dpo_trainer import DPOTrainer

    class Tokenised(DPOTrainer):
        def _prepare_dataset(self, dataset: Any, *args: Any) -> Any:
            return dataset

    rows = [
        {"prompt_ids": [*item.prompt_ids], "chosen_ids": [*item.chosen_ids], "rejected_ids": [*item.rejected_ids]}
        for item in pairs
    ]
    peft_model: Any = PeftModel.from_pretrained(base[0], str(adapter), is_trainable=True)
    try:
        config: Any = DPOConfig(
            output_dir=str(work),
            beta=settings.beta,
            loss_type=settings.loss_type,
            label_smoothing=settings.label_smoothing,
            use_cpu=device() == "cpu",
            bf16=False,
            gradient_checkpointing=False,
            report_to="none",
        )
        trainer = Tokenised(
            model=peft_model, args=config, train_dataset=Dataset.from_list(rows), processing_class=base[1]
        )
        learns = _moved(peft_model)
        loss = trainer.compute_loss(peft_model, trainer._prepare_inputs(trainer.data_collator(rows)))
        loss.backward()
        gradients = {name: weight.grad for name, weight in learns.items()}
        return (
            loss.item(),
            gradients,
            {name: sum(values) / len(values) for name, values in trainer._metrics["train"].items()},
        )
    finally:
        peft_model.unload()
        vars(base[0]).pop("forward", None)
        vars(base[0]).pop("peft_config", None)


def _means(trainer: Any) -> dict[str, float]:
    return {name: sum(values) / len(values) for name, values in trainer._metrics["train"].items()}


def _packed(
    base: tuple[Any, Any], adapter: Path, settings: TreeDPOSettings, work: Path, pairs: Sequence[TokenPair]
) -> tuple[float, Any, Any]:
    """The same of ours, with all pairs in the packs of one step."""
    import torch

    from trainers.tuning.pack_steps import SavedPlace
    from trainers.tuning.tree_dpo_loop import Training, TreeDPOTrainer, collate, two_adapters

    packing = pack_pairs(pairs, token_budget=settings.token_budget)
    assert not packing.refused
    with two_adapters(base[0], settings, adapter) as peft_model:
        saved = SavedPlace(cursor=Cursor())
        run = Training(peft_model, base[1], packing, settings, saved, 0, None)
        trainer = TreeDPOTrainer(run, "ada", peft_model, base[1], settings, work)
        trainer.precompute_references(packing.packs)
        learns = _moved(peft_model)
        batches = [trainer._prepare_inputs(collate(pack, index)) for index, pack in enumerate(packing.packs)]
        total = trainer._count(batches)
        loss = torch.stack(
            [trainer.compute_loss(peft_model, batch, num_items_in_batch=total) for batch in batches]
        ).sum()
        loss.backward()
        frozen = [weight for name, weight in peft_model.named_parameters() if ".default." not in name]
        assert not any(weight.requires_grad for weight in frozen)
        gradients = {name: weight.grad for name, weight in learns.items()}
        return (
            loss.item(),
            gradients,
            {name: sum(values) / len(values) for name, values in trainer._metrics["train"].items()},
        )


def _assert_equal(ours: Any, trls: Any) -> None:
    assert ours[0] == pytest.approx(trls[0], rel=1e-5, abs=1e-6)
    assert ours[1].keys() == trls[1].keys()
    for name, gradient in trls[1].items():
        assert (ours[1][name] - gradient).abs().max() <= 1e-5 * max(1.0, gradient.abs().max()), name
    assert any(gradient.abs().max() > 1e-4 for gradient in trls[1].values())


@training
@pytest.mark.parametrize("loss_type", get_args(LossType))
def test_loss_and_gradients_are_trls(
    base: tuple[Any, Any], sft_adapter: Path, tmp_path: Path, loss_type: LossType
) -> None:
    settings = TreeDPOSettings(loss_type=loss_type, label_smoothing=SMOOTHING.get(loss_type, 0.0), beta=0.3)
    trls = _trl(base, sft_adapter, settings, tmp_path)
    ours = _packed(base, sft_adapter, settings, tmp_path, PAIRS)
    _assert_equal(ours, trls)
    for name in ("rewards/chosen", "rewards/rejected", "rewards/margins", "rewards/accuracies", "logps/chosen"):
        assert ours[2][name] == pytest.approx(trls[2][name], abs=1e-4), name
    assert (ours[2]["num_tokens"], trls[2]["num_tokens"]) == (26, 62)


@training
@pytest.mark.parametrize("reference", ["precomputed", "in_place"])
def test_several_packs_and_weights_make_one_mean(
    base: tuple[Any, Any], sft_adapter: Path, tmp_path: Path, reference: Any
) -> None:
    """Weights of 1 in three packs: TRL's loss over all pairs. A pair of weight 2 counts as the same pair twice."""
    settings = TreeDPOSettings(beta=0.3, token_budget=12, reference=reference)
    trees = [msgspec.structs.replace(item, tree=str(number)) for number, item in enumerate(PAIRS)]
    ours = _packed(base, sft_adapter, settings, tmp_path, trees)
    trls = _trl(base, sft_adapter, settings, tmp_path)
    _assert_equal(ours, trls)
    assert ours[2]["rewards/margins"] == pytest.approx(trls[2]["rewards/margins"], abs=1e-5)

    whole = msgspec.structs.replace(settings, token_budget=100)
    heavier = [
        msgspec.structs.replace(item, weight=weight) for item, weight in zip(PAIRS, (2, 1, 1, 3, 1), strict=True)
    ]
    repeated = [item for item, times in zip(PAIRS, (2, 1, 1, 3, 1), strict=True) for _ in range(times)]
    weighted = _packed(base, sft_adapter, whole, tmp_path, heavier)
    _assert_equal(weighted, _packed(base, sft_adapter, whole, tmp_path, repeated))
    assert weighted[0] != pytest.approx(ours[0], rel=1e-3)
    assert weighted[2]["rewards/margins"] == pytest.approx(ours[2]["rewards/margins"], abs=1e-5)  # of pairs, unweighted


def grown(replies: int, prompt: int, length: int) -> list[TokenPair]:
    """Trees of random tokens: so many right and as many wrong replies under a prompt, every one over every other."""
    draw = random.Random(replies)

    def tokens(count: int) -> list[int]:
        return [draw.randrange(250) for _ in range(count)]

    start = tokens(prompt)
    right, wrong = ([tokens(length + number) for number in range(replies)] for _ in range(2))
    return [pair(start, chosen, rejected) for chosen in right for rejected in wrong]


@training
@pytest.mark.parametrize(("replies", "prompt", "length"), [(1, 3, 2), (2, 100, 30), (3, 200, 70)])
def test_trees_of_many_blocks_have_trls_loss_and_gradients(
    base: tuple[Any, Any], sft_adapter: Path, tmp_path: Path, replies: int, prompt: int, length: int
) -> None:
    """flex_attention masks in blocks of 128 tokens: trees of a part of one, of a few, and of five."""
    settings = TreeDPOSettings(beta=0.3)
    pairs = grown(replies, prompt, length)
    wanted = _trl(base, sft_adapter, settings, tmp_path, pairs)
    for attention in ("sdpa", "flex_attention") if device() == "cuda" else ("sdpa",):
        ours = _packed(base, sft_adapter, msgspec.structs.replace(settings, attention=attention), tmp_path, pairs)
        _assert_equal(ours, wanted)


@training
def test_flex_attention_is_given_the_mask_that_sdpa_is() -> None:
    """The forward of flex_attention compiles for half a minute on a CPU, so only what it would mask is compared."""
    import torch
    from torch.nn.attention.flex_attention import create_mask

    from trainers.tuning.tree_dpo_loop import attention_of, sees, tree_mask

    pack = lay_out(enumerate(PAIRS))
    ends, length = torch.tensor(pack.ends), pack.num_tokens
    mask = tree_mask(ends, "sdpa")
    assert mask.shape == (1, 1, length, length)
    assert torch.equal(mask, create_mask(sees(ends), None, None, length, length, device="cpu"))
    for branch in pack.branches:
        seen = mask[0, 0, branch.last].nonzero().flatten().tolist()
        assert [pack.input_ids[at] for at in seen] == pack.sequence(branch)
    blocks = tree_mask(ends, "flex_attention")
    assert blocks.shape == (1, 1, length, length)
    if not torch.cuda.is_available():
        assert attention_of(TreeDPOSettings()) == "sdpa"
        with pytest.raises(TrainerError, match="attention=flex_attention trains on a GPU only"):
            attention_of(TreeDPOSettings(attention="flex_attention"))


@training
def test_a_model_that_sees_more_than_a_path_is_refused(
    base: tuple[Any, Any], sft_adapter: Path, tmp_path: Path
) -> None:
    from trainers.tuning.pack_steps import SavedPlace
    from trainers.tuning.tree_dpo_loop import Training, TreeDPOTrainer, two_adapters

    settings = TreeDPOSettings()
    packing = pack_pairs(PAIRS, token_budget=100)
    (pack,) = packing.packs
    open_to_all = msgspec.structs.replace(pack, ends=array("i", [pack.num_tokens] * pack.num_tokens))
    with two_adapters(base[0], settings, sft_adapter) as peft_model:
        run = Training(peft_model, base[1], packing, settings, SavedPlace(cursor=Cursor()), 0, None)
        trainer = TreeDPOTrainer(run, "ada", peft_model, base[1], settings, tmp_path)
        trainer.check_tree(pack)
        with pytest.raises(TrainerError, match=r"a reply in a tree scores .* nats a token otherwise than by itself"):
            trainer.check_tree(open_to_all)


# --- trainings


def row(debate: int, chosen: str, rejected: str, **changes: Any) -> Preference:
    fields: dict[str, Any] = {
        "id": f"d{debate}:{chosen}>{rejected}:preference",
        "agent": "ada",
        "rule": "preference",
        "debate_id": f"d{debate}",
        "node_ids": ("1.answer.0", "1.answer.1"),
        "prompt": (user(f"What is {debate} + {debate}?"),),
        "chosen": chosen,
        "rejected": rejected,
    }
    return Preference(**(fields | changes))


ROWS = [
    row(1, "It is 2.", "It is 3."),
    row(1, "It is 2.", "Eleven", weight=0.5),
    row(1, "2", "It is 3.", weight=2.0),
    row(2, "4", "22"),
    row(2, "4", "44", prompt=(system("Be brief."), user("2 + 2?"))),
    row(3, "6", "It is 33.", finish_reasons=("stop", "length")),
]


@training
def test_rows_become_tokens_as_in_supervised_finetuning(base: tuple[Any, Any]) -> None:
    tokenise = PairTokeniser(base[1], vocab_size=base[0].get_input_embeddings().num_embeddings)
    tokens = tokenise(ROWS[5])
    assert base[1].decode(tokens.prompt_ids) == "<|start|>user\nWhat is 3 + 3?<|end|>\n<|start|>assistant\n"
    assert base[1].decode(tokens.chosen_ids) == "6<|end|>"
    assert base[1].decode(tokens.rejected_ids) == "It is 33."  # cut off: its turn did not end
    assert (tokens.tree, tokens.weight) == ("d3", 1.0)
    with pytest.raises(TrainerError, match="has weight=0; a pair's weight must be above 0"):
        tokenise(row(1, "2", "3", weight=0.0))
    with pytest.raises(TrainerError, match="has a reply without a token; leave the pair out"):
        tokenise(row(1, "2", "", finish_reasons=("stop", "length")))


def _weights(folder: Path) -> dict[str, Any]:
    from safetensors.torch import load_file

    return dict(load_file(folder / "adapter_model.safetensors"))


def _plain_loop(
    base: tuple[Any, Any], adapter: Path, rows: list[Preference], settings: TreeDPOSettings
) -> tuple[list[float], list[float]]:
    """The same training by hand: one sequence at a time, the weighted mean of the sigmoid loss, AdamW."""
    import torch
    from peft import PeftModel

    tokenise = PairTokeniser(base[1], vocab_size=base[0].get_input_embeddings().num_embeddings)
    pairs = [tokenise(item) for item in rows]
    packs = pack_pairs(pairs, token_budget=settings.token_budget).packs
    model: Any = PeftModel.from_pretrained(base[0], str(adapter), is_trainable=True)
    learns = [weight for weight in model.parameters() if weight.requires_grad]

    def log_prob(ids: Sequence[int], completion: int) -> Any:
        logits = model(input_ids=torch.tensor([ids], device=device())).logits[0, -completion - 1 : -1]
        return logits.log_softmax(-1).gather(1, torch.tensor(ids[-completion:], device=device())[:, None]).sum()

    def ratio(item: TokenPair) -> Any:
        chosen, rejected = item.sequences
        return log_prob(chosen, len(item.chosen_ids)) - log_prob(rejected, len(item.rejected_ids))

    with torch.no_grad():
        reference = [ratio(item) for item in pairs]
    optimiser = torch.optim.AdamW(learns, lr=settings.learning_rate, weight_decay=0.0)
    losses, margins = [], []
    for step in pack_steps(len(packs), settings):
        chosen = [packed.index for index in step.packs for packed in packs[index].pairs]
        margin = torch.stack([settings.beta * (ratio(pairs[index]) - reference[index]) for index in chosen])
        weights = torch.tensor([pairs[index].weight for index in chosen], device=device())
        loss = (weights * -torch.nn.functional.logsigmoid(margin)).sum() / weights.sum()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(learns, settings.max_grad_norm)
        optimiser.step()
        optimiser.zero_grad()
        losses.append(loss.item())
        margins.append(margin.mean().item())
    model.unload()
    vars(base[0]).pop("peft_config", None)
    return losses, margins


@training
def test_a_training_equals_a_plain_loop_and_leaves_no_trace_on_the_base(
    base: tuple[Any, Any], sft_adapter: Path, tmp_path: Path
) -> None:
    import torch

    model, tokenizer = base
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    settings = TreeDPOSettings(
        beta=0.5,
        token_budget=60,
        epochs=3,
        gradient_accumulation=2,
        learning_rate=2e-3,
        schedule="constant",
        warmup=0.0,
    )
    result = train_preferences(
        model, tokenizer, ROWS, settings, agent="ada", output=tmp_path / "out", init_from=sft_adapter
    )
    after = model.state_dict()
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)
    assert not {"forward", "peft_config"} & set(vars(model))

    losses, margins = _plain_loop(base, sft_adapter, ROWS, settings)
    assert result.losses == pytest.approx(losses, rel=1e-4)
    assert result.margins == pytest.approx(margins, abs=1e-4)
    assert result.losses[0] == pytest.approx(math.log(2))  # the policy is the reference still, whatever the weights
    assert result.margins[-1] > 0.1
    assert result.accuracies[0] == 0.0 < result.accuracies[-1]
    assert result.chosen_rewards[-1] - result.rejected_rewards[-1] == pytest.approx(result.margins[-1], abs=1e-5)
    assert (result.pairs, result.refused, result.pairs_seen, result.packs) == (6, 0, 18, 4)
    assert result.expanded_tokens > 1.5 * result.pack_tokens
    assert result.steps == len(result.losses) == 3 * 2
    assert result.started_at < result.first_step_at < result.finished_at
    names = ["adapter_config.json", "adapter_model.safetensors", "training.json"]
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == names
    assert _weights(tmp_path / "out").keys() == _weights(sft_adapter).keys()
    with pytest.raises(TrainerError, match="exists already; an adapter is written once"):
        train_preferences(*base, ROWS, settings, agent="ada", output=tmp_path / "out", init_from=sft_adapter)


@training
def test_a_training_resumes_to_the_last_bit_from_any_checkpoint(
    base: tuple[Any, Any], sft_adapter: Path, tmp_path: Path
) -> None:
    import torch

    settings = TreeDPOSettings(token_budget=60, epochs=2, gradient_accumulation=2, learning_rate=1e-2, warmup=0.2)
    kept: list[Path] = []

    def keep(folder: Path, figures: dict[str, float]) -> None:
        kept.append(tmp_path / f"checkpoint-{figures['step']}")
        shutil.copytree(folder, kept[-1])

    def train(output: str, rows: list[Preference] = ROWS, **arguments: Any) -> Any:
        return train_preferences(
            *base, rows, settings, agent="ada", output=tmp_path / output, init_from=sft_adapter, **arguments
        )

    whole = train("whole", checkpoint_every=1, on_checkpoint=keep)
    assert len(kept) == whole.steps == 4
    wanted = _weights(tmp_path / "whole")
    for step in (1, 3, 4):  # within the first epoch, within the second, at the very end
        resumed = train(f"from-{step}", resume_from=kept[step - 1])
        assert (resumed.losses, resumed.pairs_seen, resumed.first_step_at) == (whole.losses, 12, whole.first_step_at)
        assert resumed.margins == whole.margins
        got = _weights(tmp_path / f"from-{step}")
        assert all(torch.equal(got[name], wanted[name]) for name in wanted)
    with pytest.raises(TrainerError, match=r"is of other rows than those that 'ada' now has"):
        train("other", rows=ROWS[1:], resume_from=kept[0])


@training
def test_what_cannot_be_trained_on_is_told_and_gives_the_base_back(
    tiny_model: Path, sft_adapter: Path, tmp_path: Path
) -> None:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    model, tokenizer = loaded(tiny_model)
    names = set(model.state_dict())
    arguments: dict[str, Any] = {"agent": "ada", "output": tmp_path / "out", "init_from": sft_adapter}
    settings = TreeDPOSettings(token_budget=8)
    with pytest.raises(TrainerError, match=r"no debate has a better and a worse reply for 'ada'"):
        train_preferences(model, tokenizer, [], settings, **arguments)
    with pytest.raises(TrainerError, match=r"all 6 preferences of 'ada' are longer than token_budget=8 tokens"):
        train_preferences(model, tokenizer, ROWS, settings, **arguments)
    settings = TreeDPOSettings()
    with pytest.raises(TrainerError, match=r"there is no adapter in .*nowhere; preferences are learned on top of"):
        train_preferences(model, tokenizer, ROWS, settings, **(arguments | {"init_from": tmp_path / "nowhere"}))
    make_model: Any = LlamaForCausalLM  # untyped
    shape: dict[str, Any] = {"num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 2}
    for base_of, what in (({"hidden_size": 32, "intermediate_size": 96}, "the layer there"), (shape, "is missing")):
        other = make_model(
            LlamaConfig(vocab_size=259, **(shape | {"hidden_size": 64, "intermediate_size": 128} | base_of))
        )
        with pytest.raises(TrainerError, match=rf"was made for another base than .*{what}.*use the base that it was"):
            train_preferences(other, tokenizer, ROWS, settings, **arguments)
        assert not any("lora" in name for name in other.state_dict())
    model.config.layer_types = ["full_attention", "linear_attention"]
    with pytest.raises(TrainerError, match="has layers of kind linear_attention"):
        train_preferences(model, tokenizer, ROWS, settings, **arguments)
    model.config.layer_types, model.config.sliding_window = ["sliding_attention"] * 2, 40
    with pytest.raises(TrainerError, match="more than the window of 40 that layers of the base"):
        train_preferences(model, tokenizer, ROWS, settings, **arguments)
    model.config.layer_types = model.config.sliding_window = None
    with torch.no_grad():
        model.get_input_embeddings().weight[70] = math.nan
    with pytest.raises(TrainerError, match=r"training 'ada': the loss of step 1 is nan; lower tree_dpo.learning_rate"):
        train_preferences(model, tokenizer, ROWS, settings, **arguments)
    assert list(tmp_path.iterdir()) == []
    assert set(model.state_dict()) == names
