"""The optimiser's side of supervised finetuning: TRL's trainer, fed step by step from a row stream.

Only processes that train import this module: it pulls in torch, PEFT and TRL, which takes seconds.
"""

from __future__ import annotations

import tempfile
from array import array
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import msgspec
import torch
from datasets import Dataset
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import PrinterCallback, set_seed
from trl.trainer.sft_config import SFTConfig
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling, SFTTrainer

from protocols.errors import TrainerError
from trainers.tuning.batches import deal_out
from trainers.tuning.magdi_settings import MAGDiSettings
from trainers.tuning.packed_attention import rows_apart
from trainers.tuning.ranks import num_ranks, rank
from trainers.tuning.sft_settings import OnCheckpoint, SavedCursor, SFTResult, SFTSettings
from trainers.tuning.stepped import Recorder, SteppedTrainer, SteppedTraining, scored_at, stepped_arguments
from trainers.tuning.stream import RowStream, Step
from trainers.tuning.tokenise import TokenRow

NOTHING = TokenRow(array("i", [0, 0]), array("i"))  # goes through the model where a process has no row left in a step
# B: rows of a pass, or 1 where they lie end to end; T: tokens of the longest, or of all; M: tokens that carry loss.


@contextmanager
def adapted(model: Any, settings: SFTSettings | MAGDiSettings, init_from: Path | None) -> Iterator[Any]:
    """The base with a LoRA adapter put in: fresh, or a copy of an earlier one. On leaving, the base is as it was.

    Raises: TrainerError: the earlier adapter is missing, or of another shape than the settings say.
    """
    set_seed(settings.seed)  # fresh weights are drawn here
    own_forward = "forward" in vars(model)
    embedding_hooks = model.get_input_embeddings()._forward_hooks
    own_hooks = set(embedding_hooks)
    peft_model: Any
    if init_from is None:
        targets = settings.target_modules
        config: Any = LoraConfig(
            r=settings.rank,
            lora_alpha=settings.alpha,  # PEFT says int and takes any number
            lora_dropout=settings.dropout,
            target_modules=targets if isinstance(targets, str) else list(targets),
            task_type="CAUSAL_LM",
        )
        try:
            peft_model = get_peft_model(model, config)
        except ValueError as err:  # before anything was put in
            raise TrainerError(
                f"{settings.SECTION}.target_modules={targets!r} names no layer of the base {model.name_or_path!r}; "
                "name some of its linear layers, or use all-linear"
            ) from err
    else:
        config = _parent_config(init_from, settings)
        peft_model = PeftModel.from_pretrained(model, str(init_from), config=config, is_trainable=True)
    try:
        yield peft_model
    finally:
        model.gradient_checkpointing_disable()
        for hook in embedding_hooks.keys() - own_hooks:  # checkpointing asks for gradients there, through two libraries
            del embedding_hooks[hook]
        peft_model.unload()
        if not own_forward:
            vars(model).pop("forward", None)  # TRL patches it for its fused loss, once more with every training
        vars(model).pop("peft_config", None)  # else the next adapter would be taken for a second one


def _parent_config(folder: Path, settings: SFTSettings | MAGDiSettings) -> Any:
    if not (folder / "adapter_model.safetensors").is_file():
        raise TrainerError(f"there is no adapter to start from in {folder}; set loop.init_from: base, or restore it")
    config: Any = LoraConfig.from_pretrained(str(folder))
    for name, got, wanted in (("rank", config.r, settings.rank), ("alpha", config.lora_alpha, settings.alpha)):
        if got != wanted:
            raise TrainerError(
                f"{settings.SECTION}.{name}={wanted:g}, but the adapter to start from in {folder} has {name} {got:g}; "
                f"set {settings.SECTION}.{name}={got:g} or loop.init_from: base"
            )
    config.lora_dropout = settings.dropout
    return config


def bare(model: Any) -> Any:
    """The model of transformers, whether an adapter was put into it or not."""
    return model.get_base_model() if isinstance(model, PeftModel) else model


class Training(SteppedTraining):
    """One run of the optimiser over one stream."""

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        stream: RowStream,
        settings: SFTSettings,
        saved: SavedCursor,
        checkpoint_every: int,
        on_checkpoint: OnCheckpoint | None,
    ) -> None:
        super().__init__(model, settings, saved, checkpoint_every, on_checkpoint)
        self.stream, self.settings = stream, settings
        self._tokenizer = tokenizer

    def run(self, agent: str, resume_from: Path | None) -> SFTResult:
        """Go through the stream. Raises: TrainerError: the loss or the weights are not finite."""
        settings = self.settings
        apart = (
            rows_apart(bare(self._model), max_length=settings.max_length, precision=settings.precision)
            if settings.batching == "packed"
            else nullcontext()
        )
        with apart, tempfile.TemporaryDirectory(prefix="moot-sft-") as work:
            log = self.fit(self._trainer(agent, _config(settings, Path(work))), resume_from, agent)
        return SFTResult(
            rows=self.stream.num_kept,
            refused=self.stream.num_refused,
            rows_seen=self.saved.rows_seen,
            completion_tokens=self.saved.completion_tokens,
            step_tokens=log.series("tokens"),
            data_hash=self.stream.data_hash,
            **self.result(log),
        )

    def _trainer(self, agent: str, config: Any) -> Any:
        return StreamTrainer(self, agent, self._model, self._tokenizer, config)

    def took(self, step: Step) -> None:
        """The trainer has been handed a step."""
        self.progress = step.progress
        self.saved = msgspec.structs.replace(
            self.saved,
            cursor=step.cursor,
            rows_seen=self.saved.rows_seen + len(step.rows),
            completion_tokens=self.saved.completion_tokens + sum(row.num_learned for row in step.rows),
        )


def _config(settings: SFTSettings, work: Path) -> Any:
    how: dict[str, Any] = {"gradient_checkpointing": settings.gradient_checkpointing}
    if settings.method == "full":
        how["bf16"] = settings.precision == "bfloat16"  # on a CPU, too: the weights themselves stay in float32
    return SFTConfig(
        per_device_train_batch_size=settings.batch_size,
        dataset_kwargs={"skip_prepare_dataset": True},
        max_length=None,
        **stepped_arguments(settings, work) | how,
    )


class _Steps:
    """What the trainer iterates: steps as lists of passes through the model.

    No DataLoader: one would draw from torch's generator when it starts, and dropout after a resume would differ.
    """

    def __init__(self, training: Training, pad_token_id: int) -> None:
        self._training, self._packed = training, training.settings.batching == "packed"
        self.collate = DataCollatorForLanguageModeling(pad_token_id=pad_token_id, padding_free=self._packed)

    def __iter__(self) -> Iterator[list[dict[str, Any]]]:
        how = self._training.settings
        for step in self._training.stream:
            self._training.took(step)
            dealt = deal_out(
                [row.num_tokens for row in step.rows],
                how.batching,
                batch_size=how.batch_size,
                token_budget=how.token_budget,
                num_ranks=num_ranks(),
            )
            yield [self._pass([step.rows[index] for index in indices] or [NOTHING]) for indices in dealt[rank()]]

    def _pass(self, rows: list[TokenRow]) -> dict[str, Any]:
        """TRL's batch, but for its labels: ``places``, two of [M], where they are scored, and ``shift_labels``: [1, M].

        Packed rows have ``row_lengths`` beside TRL's own keys.
        """
        batch: dict[str, Any] = self.collate([{"input_ids": row.input_ids, "labels": row.labels} for row in rows])
        targets = batch.pop("labels")[:, 1:]
        learned = targets != -100
        if rows == [NOTHING]:
            learned[0, 0] = True  # the head is to see something, and its target says that it counts for nothing
        batch["places"] = torch.where(learned)
        batch["shift_labels"] = targets[batch["places"]][None]
        if self._packed:
            batch["row_lengths"] = tuple(row.num_tokens for row in rows)
        return batch


class StreamTrainer(SteppedTrainer, SFTTrainer):
    """TRL's trainer over a row stream."""

    loss_is_scaled_for_ga = True  # by the tokens of the whole step

    def __init__(self, training: Training, agent: str, model: Any, tokenizer: Any, config: Any) -> None:
        pad = tokenizer.pad_token_id
        self._training, self._agent = training, agent
        self._steps = _Steps(training, pad if pad is not None else 0)  # padding is masked: any id will do
        super().__init__(
            model=model,
            args=config,
            processing_class=tokenizer,
            train_dataset=Dataset.from_list([{"input_ids": [0], "labels": [0]}]),  # looked at, never trained on
            data_collator=self._steps.collate,
            callbacks=[Recorder(training)],
        )
        self.remove_callback(PrinterCallback)
        self._backbone = bare(model).base_model

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> Any:
        self.current_gradient_accumulation_steps = len(inputs)  # a mixture's balance of experts is a mean over passes
        return super().training_step(model, inputs, num_items_in_batch)

    def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        with scored_at(self._backbone, inputs.pop("places")):
            return super().compute_loss(model, inputs, *args, **kwargs)

    def _count(self, step: list[dict[str, Any]]) -> Any:
        return torch.stack([(batch["shift_labels"] != -100).sum() for batch in step]).sum()
