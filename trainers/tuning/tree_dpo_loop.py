"""The optimiser's side of Tree-DPO: TRL's trainer, whose batch is a pack.

Only processes that train import this module: it pulls in torch, PEFT and TRL, which takes seconds.

The model goes over a pack once. What it gives is spread out to the pairs' sequences, and TRL's own loss takes it from
there: that of the expanded pairs, whatever the loss is called.
"""

from __future__ import annotations

import tempfile
from array import array
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import torch
from datasets import Dataset
from peft import LoraConfig
from safetensors import safe_open
from torch import Tensor
from transformers import PrinterCallback
from trl.trainer.dpo_config import DPOConfig
from trl.trainer.dpo_trainer import DPOTrainer
from trl.trainer.utils import FusedCausalLMOutput, use_adapter

from protocols.errors import TrainerError
from trainers.record.registry import WEIGHTS_NAME
from trainers.tuning.pack import Pack, Packing, TokenPair, lay_out
from trainers.tuning.pack_steps import PackStep, SavedPlace, pack_steps
from trainers.tuning.sft_loop import adapted
from trainers.tuning.sft_settings import OnCheckpoint, SFTSettings
from trainers.tuning.stepped import (
    Recorder,
    SteppedTrainer,
    SteppedTraining,
    save_adapter,
    scored_at,
    stepped_arguments,
)
from trainers.tuning.tree_dpo_settings import TreeDPOResult, TreeDPOSettings

PER_TOKEN = ("log_probs", "entropy", "mean_logits", "is_top1")  # what TRL's loss reads of a model's output
ATTENDS = {"full_attention", "sliding_attention"}
SAME = {"float32": 1e-3, "bfloat16": 5e-2}  # nats a token; rounding stays well below, a wrong mask well above
# T: tokens of a pack; M: those of them that completions have, each once; B: branches; C: tokens of the longest one.


def check_adapter(model: Any, folder: Path) -> None:
    """Raises: TrainerError: the adapter is missing, or made for another base; found out before the base is touched."""
    if not (folder / WEIGHTS_NAME).is_file():
        raise TrainerError(
            f"there is no adapter in {folder}; preferences are learned on top of supervised finetuning: train that "
            "first, or restore it"
        )
    with safe_open(folder / WEIGHTS_NAME, "pt") as weights:
        shapes = {name: tuple(weights.get_slice(name).get_shape()) for name in weights.keys()}  # noqa: SIM118
    layers = {name: tuple(layer.weight.shape) for name, layer in model.named_modules() if hasattr(layer, "weight")}
    for name, shape in shapes.items():
        layer = name.removeprefix("base_model.model.").rpartition(".lora_")[0]
        if not set(shape) & set(layers.get(layer, ())):  # a LoRA matrix is as wide, or as high, as what it is put on
            raise TrainerError(
                f"the adapter in {folder} was made for another base than {model.name_or_path!r}: "
                f"{name} has the shape {shape}, the layer there {layers.get(layer, 'is missing')}; "
                "use the base that it was trained on"
            )


def check_model(model: Any, packing: Packing) -> None:
    """Raises: TrainerError: the model has layers to which a tree is not a set of separate sequences."""
    config = model.config.get_text_config()
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    if other := sorted(kinds - ATTENDS):
        raise TrainerError(
            f"the base {model.name_or_path!r} has layers of kind {other[0]}, which cannot tell the branches of a tree "
            "apart; train preferences on a model whose layers all attend to what came before"
        )
    window = getattr(config, "sliding_window", None)
    longest = max(pack.position_ids[branch.last] + 1 for pack in packing.packs for branch in pack.branches)
    if window is not None and longest > window:
        raise TrainerError(
            f"a preference has {longest} tokens, more than the window of {window} that layers of the base "
            f"{model.name_or_path!r} look back on; ask for shorter replies, or set token_budget={window}"
        )


@contextmanager
def two_adapters(model: Any, settings: TreeDPOSettings, init_from: Path) -> Iterator[Any]:
    """The base with the SFT adapter put in, to which TRL adds a frozen copy. On leaving, the base is as it was."""
    config: Any = LoraConfig.from_pretrained(str(init_from))
    shape = SFTSettings(rank=config.r, alpha=config.lora_alpha, dropout=0.0, seed=settings.seed)
    drops = [(layer, layer.p) for layer in model.modules() if isinstance(layer, torch.nn.Dropout)]
    attention = model.config._attn_implementation
    model.set_attn_implementation(attention_of(settings))
    try:
        with adapted(model, shape, init_from) as peft_model:
            yield peft_model
    finally:
        model.set_attn_implementation(attention)
        for layer, share in drops:  # TRL turns them off, so that policy and reference differ by nothing but weights
            layer.p = share


def attention_of(settings: TreeDPOSettings) -> str:
    """How a tree's mask is applied. Raises: TrainerError: flex_attention without a GPU, where it has no backward pass.

    With sdpa the mask is a square of the pack's tokens and all of it is computed; flex_attention leaves out the blocks
    that nobody sees. The latter has been checked for its mask alone: no GPU was at hand to run it on. What it gives is
    checked before the first step of every training: ``TreeDPOTrainer.check_tree``.
    """
    on_gpu = torch.cuda.is_available()
    if settings.attention == "flex_attention" and not on_gpu:
        raise TrainerError("attention=flex_attention trains on a GPU only, and there is none; set attention=sdpa")
    if settings.attention == "auto":
        return "flex_attention" if on_gpu else "sdpa"
    return settings.attention


def sees(ends: Tensor) -> Callable[[Any, Any, Any, Any], Any]:
    """The pack's mask for flex_attention: whether token ``query`` sees token ``key``."""
    return lambda batch, head, query, key: (key <= query) & (query < ends[key])


def tree_mask(ends: Tensor, attention: str) -> Any:
    """[1, 1, T, T] for sdpa, True where a query (third) sees a key (fourth); the same in blocks for flex_attention."""
    length = ends.size(0)
    if attention == "flex_attention":
        from torch.nn.attention.flex_attention import create_block_mask

        return create_block_mask(sees(ends), None, None, length, length, device=str(ends.device))
    at = torch.arange(length, device=ends.device)
    return sees(ends)(0, 0, at[:, None], at[None, :])[None, None]


def collate(pack: Pack, index: int) -> dict[str, Any]:
    """A pack as tensors.

    Returns: ``input_ids``, ``position_ids``: [1, T]; ``ends``: [T]; ``sources``: [M], where each completion token is
        scored, and ``targets``: [1, M], which it is; ``spread``: [B, C], the place in M of a branch's tokens, and
        ``mask``: [B, C], where it has one; ``chosen``, ``rejected``: branches, and ``weights``: [pairs] each.
    """
    completions = [pack.completion(branch) for branch in pack.branches]
    places = {at: place for place, at in enumerate(sorted({at for tokens in completions for at in tokens}))}
    length = max(len(tokens) for tokens in completions)
    return {
        "index": index,
        "input_ids": torch.tensor([pack.input_ids]),
        "position_ids": torch.tensor([pack.position_ids]),
        "ends": torch.tensor(pack.ends),
        "sources": torch.tensor([pack.parents[at] for at in places], dtype=torch.long),
        "targets": torch.tensor([[pack.input_ids[at] for at in places]], dtype=torch.long),
        "spread": torch.tensor([[places[at] for at in row] + [0] * (length - len(row)) for row in completions]),
        "mask": torch.tensor([[True] * len(row) + [False] * (length - len(row)) for row in completions]),
        "chosen": torch.tensor([pair.chosen for pair in pack.pairs]),
        "rejected": torch.tensor([pair.rejected for pair in pack.pairs]),
        "weights": torch.tensor([pair.weight for pair in pack.pairs]),
    }


class TreeDPOTrainer(SteppedTrainer, DPOTrainer):
    """TRL's trainer over packs.

    What it needs of TRL: ``_compute_loss`` asks its model for per-token figures of chosen and rejected sequences, and
    takes the reference's sums from the batch.
    """

    loss_is_scaled_for_ga = True  # by the weights of the whole step

    def __init__(
        self, training: Training, agent: str, model: Any, tokenizer: Any, settings: TreeDPOSettings, work: Path
    ) -> None:
        self._training, self._agent, self._settings = training, agent, settings
        self._steps = _Steps(training)
        super().__init__(
            model=model,
            args=_config(settings, work),
            processing_class=tokenizer,
            train_dataset=Dataset.from_list([{"prompt_ids": [0], "chosen_ids": [0], "rejected_ids": [0]}]),
            callbacks=[Recorder(training)],
        )
        self.remove_callback(PrinterCallback)
        self.precompute_ref_logps = True  # in TRL's eyes: it finds them in the batch, in whichever way we got them
        self._attention = attention_of(settings)
        self._backbone = model.get_base_model().base_model
        self._references: list[Tensor] = []  # by pack, [B] each

    def _prepare_dataset(self, dataset: Any, *args: Any) -> Any:
        return dataset  # a placeholder: the steps are ours

    def precompute_references(self, packs: tuple[Pack, ...]) -> None:
        """What the reference gives every branch of every pack, before the first step."""
        self._references = [
            self._reference(self._prepare_inputs(collate(pack, index))) for index, pack in enumerate(packs)
        ]

    def check_tree(self, pack: Pack) -> None:
        """Score the branch with most beside it in a pack by itself, too: the model may look at more than its path.

        Raises: TrainerError: it scores otherwise.
        """
        number, branch = max(enumerate(pack.branches), key=lambda item: item[1].last)
        ids = pack.sequence(branch)
        prompt, completion = array("i", ids[: -branch.length]), array("i", ids[-branch.length :])
        alone = lay_out([(0, TokenPair("", prompt, completion, completion))])
        packed = self._reference(self._prepare_inputs(collate(pack, 0)))[number]
        single = self._reference(self._prepare_inputs(collate(alone, 0)), alone=True)[0]
        difference = abs(packed - single).item() / branch.length
        if difference > SAME[self._settings.precision]:  # nan is told by the loss
            raise TrainerError(
                f"training {self._agent!r}: a reply in a tree scores {difference:.2g} nats a token otherwise than by "
                f"itself with attention={self._attention}; its base {self.model.name_or_path!r} cannot tell branches "
                "apart: try attention=sdpa, or another base"
            )

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The pack's part of the step's loss; ``num_items_in_batch``: the sum of the step's weights."""
        in_place = self._settings.reference == "in_place"
        reference = self._reference(inputs) if in_place else self._references[inputs["index"]]
        outputs = self._spread(self._forward(model, inputs), inputs)
        loss = torch.zeros((), device=reference.device)
        for weight in inputs["weights"].unique():  # TRL takes the plain mean, so it is given pairs of one weight
            alike = inputs["weights"] == weight
            share = self._loss_of(outputs, reference, inputs, inputs["chosen"][alike], inputs["rejected"][alike])
            loss = loss + weight * alike.sum() * share
        tokens = inputs["input_ids"].numel()
        self._total_train_tokens += tokens
        self._metrics["train"]["num_tokens"] = [self._total_train_tokens]
        return loss / num_items_in_batch

    def _loss_of(self, outputs: Any, reference: Tensor, inputs: Any, chosen: Tensor, rejected: Tensor) -> Any:
        """TRL's loss, a mean, of some pairs. It averages what it logs over calls; here that is over pairs."""
        branches = torch.cat([chosen, rejected])
        mask = torch.nn.functional.pad(inputs["mask"][branches].long(), (1, 0))  # the prompt's last token in front
        batch = {
            "input_ids": mask,  # looked at for its shape
            "attention_mask": mask.new_zeros(1),  # the tokens are counted elsewhere, each once
            "completion_mask": mask,
            "ref_chosen_logps": reference[chosen],
            "ref_rejected_logps": reference[rejected],
        }
        picked = FusedCausalLMOutput(**{name: outputs[name][branches] for name in PER_TOKEN})
        loss = self._compute_loss(lambda **_: picked, batch, False)
        for figures in self._metrics["train"].values():
            figures.extend([figures[-1]] * (len(chosen) - 1))
        return loss

    def _forward(self, model: Any, inputs: Any, *, alone: bool = False) -> Any:
        """What the fused head says of completion tokens, [1, M] each: it is handed the places that score them alone."""
        with scored_at(self._backbone, (0, inputs["sources"])):
            return model(
                input_ids=inputs["input_ids"],
                position_ids=inputs["position_ids"],
                attention_mask=None if alone else tree_mask(inputs["ends"], self._attention),
                shift_labels=inputs["targets"],
                fused_lm_head=True,
                use_cache=False,
            )

    def _spread(self, outputs: Any, inputs: Any) -> dict[str, Tensor]:
        """From completion tokens to branches: [B, C] each, 0 where a branch has no token."""
        return {name: outputs[name][0][inputs["spread"]].masked_fill(~inputs["mask"], 0) for name in PER_TOKEN}

    def _reference(self, inputs: Any, *, alone: bool = False) -> Tensor:
        """[B]: the log-probability of each branch's completion under the frozen adapter; ``alone``: of one sequence."""
        with (
            torch.no_grad(),
            use_adapter(self.accelerator.unwrap_model(self.model), "ref"),
            self.accelerator.autocast(),
        ):
            log_probs = self._forward(self.model, inputs, alone=alone).log_probs[0]
        return log_probs[inputs["spread"]].masked_fill(~inputs["mask"], 0).sum(1)

    def _count(self, step: list[dict[str, Any]]) -> Any:
        return torch.stack([batch["weights"].sum() for batch in step]).sum()


class _Steps:
    """What the trainer iterates: steps as lists of packs."""

    def __init__(self, training: Training) -> None:
        self._training = training

    def __iter__(self) -> Iterator[list[dict[str, Any]]]:
        packs = self._training.packing.packs
        for step in pack_steps(len(packs), self._training.settings, self._training.saved.cursor):
            self._training.took(step)
            yield [collate(packs[index], index) for index in step.packs]


def _config(settings: TreeDPOSettings, work: Path) -> Any:
    return DPOConfig(
        beta=settings.beta,
        loss_type=settings.loss_type,
        label_smoothing=settings.label_smoothing,
        max_length=None,
        router_aux_loss_coef=0.0,  # experts are balanced over the tokens of a pack, which are not those of the pairs
        **stepped_arguments(settings, work),
    )


class Training(SteppedTraining):
    """One run of the optimiser over one packing."""

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        packing: Packing,
        settings: TreeDPOSettings,
        saved: SavedPlace,
        checkpoint_every: int,
        on_checkpoint: OnCheckpoint | None,
    ) -> None:
        super().__init__(model, settings, saved, checkpoint_every, on_checkpoint)
        self.packing, self.settings = packing, settings
        self._tokenizer = tokenizer

    def run(self, agent: str, output: Path, resume_from: Path | None) -> TreeDPOResult:
        """Go over the packs and write the adapter. Raises: TrainerError: the loss or the weights are not finite."""
        packs = self.packing.packs
        with tempfile.TemporaryDirectory(prefix="moot-tree-dpo-") as work:
            trainer = TreeDPOTrainer(self, agent, self._model, self._tokenizer, self.settings, Path(work))
            trainer.check_tree(max(packs, key=lambda pack: len(pack.branches)))
            if self.settings.reference == "precomputed":
                trainer.precompute_references(packs)
            log = self.fit(trainer, resume_from, agent)
        self._model.delete_adapter("ref")
        result = TreeDPOResult(
            pairs=sum(len(pack.pairs) for pack in packs),
            refused=len(self.packing.refused),
            packs=len(packs),
            pairs_seen=self.saved.rows_seen,
            pack_tokens=sum(pack.num_tokens for pack in packs),
            expanded_tokens=sum(pack.num_expanded for pack in packs),
            margins=log.series("rewards/margins"),
            accuracies=log.series("rewards/accuracies"),
            chosen_rewards=log.series("rewards/chosen"),
            rejected_rewards=log.series("rewards/rejected"),
            data_hash=self.saved.data_hash,
            **self.result(log),
        )
        save_adapter(self._model, output, result, agent)
        return result

    def took(self, step: PackStep) -> None:
        """The trainer has been handed a step."""
        packs = [self.packing.packs[index] for index in step.packs]
        self.progress = step.progress
        self.saved = msgspec.structs.replace(
            self.saved,
            cursor=step.cursor,
            rows_seen=self.saved.rows_seen + sum(len(pack.pairs) for pack in packs),
        )
