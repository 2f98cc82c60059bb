"""The optimiser's side of supervised finetuning: TRL's trainer, fed step by step from a row stream.

Only processes that train import this module: it pulls in torch, PEFT and TRL, which takes seconds.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from array import array
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, Protocol

import msgspec
import torch
from datasets import Dataset
from peft import LoraConfig, PeftModel, get_peft_model
from torch.optim.lr_scheduler import LambdaLR
from transformers import PrinterCallback, Trainer, TrainerCallback, set_seed
from trl.trainer.sft_config import SFTConfig
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling, SFTTrainer

from protocols.errors import TrainerError
from trainers.batches import deal_out
from trainers.magdi import MAGDiSettings
from trainers.packed_attention import rows_apart
from trainers.ranks import local, num_ranks, rank, summed
from trainers.row_log import sync_folder
from trainers.sft import CURSOR_NAME, RESULT_NAME, OnCheckpoint, SavedCursor, SFTResult, SFTSettings
from trainers.stream import RowStream, Step
from trainers.tokenise import TokenRow
from trainers.tree_dpo import TreeDPOSettings

MAX_STEPS = 10**9  # the trainer wants a number; the stream's end is what stops it
NOTHING = TokenRow(array("i", [0, 0]), array("i"))  # goes through the model where a process has no row left in a step
# B: rows of a pass, or 1 where they lie end to end; T: tokens of the longest, or of all; M: tokens that carry loss.


@contextmanager
def adapted(model: Any, settings: SFTSettings, init_from: Path | None) -> Iterator[Any]:
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
                f"target_modules={targets!r} names no layer of the base {model.name_or_path!r}; name some of its "
                "linear layers, or use all-linear"
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


def _parent_config(folder: Path, settings: SFTSettings) -> Any:
    if not (folder / "adapter_model.safetensors").is_file():
        raise TrainerError(f"train.init_from: there is no adapter in {folder}; use init_from: base, or restore it")
    config: Any = LoraConfig.from_pretrained(str(folder))
    for name, got, wanted in (("rank", config.r, settings.rank), ("alpha", config.lora_alpha, settings.alpha)):
        if got != wanted:
            raise TrainerError(
                f"train.{name}={wanted:g}, but the adapter to start from in {folder} has {name} {got:g}; "
                f"set train.{name}={got:g} or init_from: base"
            )
    config.lora_dropout = settings.dropout
    return config


def bare(model: Any) -> Any:
    """The model of transformers, whether an adapter was put into it or not."""
    return model.get_base_model() if isinstance(model, PeftModel) else model


class Stepping(Protocol):
    """A training as its trainer and its recorder see it."""

    progress: float  # of the step in hand
    saved: Any  # a SavedCursor, or what extends it
    checkpoint_every: int
    on_checkpoint: OnCheckpoint | None

    @property
    def settings(self) -> SFTSettings | TreeDPOSettings | MAGDiSettings: ...


class Training:
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
        self.stream, self.settings = stream, settings
        self.progress = 0.0  # of the step in hand
        self.saved = saved if saved.started_at else msgspec.structs.replace(saved, started_at=time.time())
        self.checkpoint_every, self.on_checkpoint = checkpoint_every, on_checkpoint
        self._model, self._tokenizer = model, tokenizer

    def run(self, agent: str, resume_from: Path | None) -> SFTResult:
        """Go through the stream. Raises: TrainerError: the loss or the weights are not finite."""
        settings = self.settings
        apart = (
            rows_apart(bare(self._model), max_length=settings.max_length, precision=settings.precision)
            if settings.batching == "packed"
            else nullcontext()
        )
        with apart, tempfile.TemporaryDirectory(prefix="moot-sft-") as work:
            trainer = self._trainer(agent, _config(settings, Path(work)))
            trainer.train(resume_from_checkpoint=str(resume_from) if resume_from else None)
        learned = [local(weight) for weight in self._model.parameters() if weight.requires_grad]
        if summed(torch.stack([(~torch.isfinite(weight)).sum() for weight in learned]).sum()):
            raise TrainerError(f"training {agent!r} ended on weights that are not finite; lower train.learning_rate")
        log = [entry for entry in trainer.state.log_history if "loss" in entry]
        return SFTResult(
            steps=trainer.state.global_step,
            rows=self.stream.num_kept,
            refused=self.stream.num_refused,
            rows_seen=self.saved.rows_seen,
            completion_tokens=self.saved.completion_tokens,
            losses=tuple(entry["loss"] for entry in log),
            learning_rates=tuple(entry["learning_rate"] for entry in log),
            step_times=tuple(entry["at"] for entry in log),
            step_tokens=tuple(entry["tokens"] for entry in log),
            started_at=self.saved.started_at,
            first_step_at=self.saved.first_step_at,
            finished_at=time.time(),
            data_hash=self.stream.data_hash,
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


def stepped_arguments(settings: SFTSettings | TreeDPOSettings | MAGDiSettings, work: Path) -> dict[str, Any]:
    """What every ``SteppedTrainer`` is told: steps, rate and checkpoints are ours."""
    on_gpu = torch.cuda.is_available()
    return {
        "output_dir": str(work),
        "gradient_accumulation_steps": 1,  # a step comes whole: see SteppedTrainer
        "max_steps": MAX_STEPS,
        "learning_rate": settings.learning_rate,
        "max_grad_norm": settings.max_grad_norm,
        "weight_decay": 0.0,
        "optim": "adamw_torch",
        "seed": settings.seed,
        "use_cpu": not on_gpu,
        "bf16": on_gpu and settings.precision == "bfloat16",
        "fp16": False,
        "gradient_checkpointing": False,
        "remove_unused_columns": False,
        "ignore_data_skip": True,  # the steps themselves start where the checkpoint stood
        "logging_steps": 1,
        "logging_nan_inf_filter": False,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
    }


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


@contextmanager
def scored_at(backbone: Any, places: tuple[Any, Any]) -> Iterator[None]:
    """Within, the model's head sees these places of [B, T] alone, as one sequence of M: none of prompts or padding."""

    def pick(module: Any, arguments: Any, output: Any) -> Any:
        output.last_hidden_state = output.last_hidden_state[places][None]
        return output

    hook = backbone.register_forward_hook(pick)
    try:
        yield
    finally:
        hook.remove()


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


class SteppedTrainer(Trainer):
    """A trainer over steps whose number nobody knows; mixed in before TRL's, it makes them one, too.

    TRL counts batches towards a step by a length it must know; where the steps end early, the rest of the gradient
    would never be applied. So a step is a list of batches, and they go through here together.
    """

    _training: Stepping
    _agent: str
    _steps: Any  # iterates lists of batches

    def _count(self, step: list[dict[str, Any]]) -> Any:
        """What the loss of a step is the mean over."""
        raise NotImplementedError

    def get_train_dataloader(self) -> Any:
        return self._steps

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: Any) -> tuple[list[Any], Any]:
        """The next step and what its loss is the mean over; behind the last, the order to stop."""
        step = next(epoch_iterator, None)
        if step is None:
            self.control.should_training_stop = True
            return [], None
        return [step], summed(self._count(step).to(device))

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> Any:
        step: Any = super().training_step  # untyped
        loss = torch.stack([step(model, batch, num_items_in_batch) for batch in inputs]).sum()
        if not torch.isfinite(everybodys := summed(loss)):
            raise TrainerError(
                f"training {self._agent!r}: the loss of step {self.state.global_step + 1} is {everybodys.item()}; "
                f"lower train.learning_rate={self._training.settings.learning_rate:g} or train.max_grad_norm"
            )
        return loss

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        settings, training = self._training.settings, self._training
        optimizer = optimizer if optimizer is not None else self.optimizer
        self.lr_scheduler = LambdaLR(optimizer, lambda _: settings.rate_at(training.progress))
        self._created_lr_scheduler = True
        return self.lr_scheduler

    def log(self, logs: dict[str, Any], start_time: float | None = None) -> None:
        super().log(logs | {"at": time.time(), "tokens": self._training.saved.completion_tokens}, start_time)

    def floating_point_ops(self, inputs: Any) -> int:
        return 0  # counted by nobody here, and it expects one batch

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        model: Any = self.model
        # "auto" would ask the hub. A frozen adapter beside the one that learns is not for the checkpoint.
        model.save_pretrained(output_dir, save_embedding_layers=False, selected_adapters=["default"])

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """None: checkpoints are for us alone."""

    def _send_telemetry(self) -> None:
        """None: a training calls nobody."""


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


class Recorder(TrainerCallback):
    """Notes the first step's time and makes the checkpoints."""

    def __init__(self, training: Stepping) -> None:
        self._training = training

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if not self._training.saved.first_step_at:
            self._training.saved = msgspec.structs.replace(self._training.saved, first_step_at=time.time())

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
        every = self._training.checkpoint_every
        control.should_save = bool(every) and state.global_step % every == 0
        return control

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        training = self._training
        folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        if rank() == 0:
            (folder / CURSOR_NAME).write_bytes(msgspec.json.encode(training.saved))
        if training.on_checkpoint is not None:
            figures = {"step": state.global_step, "progress": training.progress, "rows_seen": training.saved.rows_seen}
            training.on_checkpoint(folder, figures | {"loss": state.log_history[-1]["loss"]})
        shutil.rmtree(folder)


def save_adapter(model: Any, output: Path, result: msgspec.Struct, agent: str) -> None:
    """Write adapter and result to ``output``, whole or not at all."""
    with written_whole(output, result, agent) as folder:
        model.save_pretrained(str(folder), save_embedding_layers=False)
        (folder / "README.md").unlink(missing_ok=True)  # PEFT's card of blanks


@contextmanager
def written_whole(output: Path, result: msgspec.Struct, agent: str) -> Iterator[Path]:
    """A folder beside ``output`` to write into; then the result is added, all is flushed, and it gets its name.

    Raises: TrainerError: it cannot be written; nothing is left.
    """
    output.parent.mkdir(parents=True, exist_ok=True)
    for left in output.parent.iterdir():
        if left.name.startswith(f".{output.name}.writing-"):  # of a process that was killed while it wrote
            shutil.rmtree(left)
    folder = Path(tempfile.mkdtemp(prefix=f".{output.name}.writing-", dir=output.parent))
    try:
        yield folder
        (folder / RESULT_NAME).write_bytes(msgspec.json.encode(result))
        folder.chmod(0o755)
        for file in folder.iterdir():
            with open(file, "rb") as opened:
                os.fsync(opened.fileno())
        sync_folder(folder)
        folder.rename(output)
        sync_folder(output.parent)
    except OSError as err:
        raise TrainerError(
            f"what {agent!r} learned cannot be written to {output}: {err}; free the disk and resume"
        ) from err
    finally:
        shutil.rmtree(folder, ignore_errors=True)
