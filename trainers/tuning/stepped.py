"""What every training has in common: steps whose number nobody knows, checkpoints, a result that is whole or not there.

Only processes that train import this module: it pulls in torch and transformers, which takes seconds.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import torch
from safetensors import SafetensorError
from torch.optim.lr_scheduler import LambdaLR
from transformers import Trainer, TrainerCallback

from protocols.errors import TrainerError
from trainers.record.row_log import sync_folder
from trainers.tuning.magdi_settings import MAGDiSettings
from trainers.tuning.ranks import local, rank, summed
from trainers.tuning.sft_settings import CURSOR_NAME, RESULT_NAME, OnCheckpoint, SavedCursor, SFTSettings
from trainers.tuning.tree_dpo_settings import TreeDPOSettings

Settings = SFTSettings | TreeDPOSettings | MAGDiSettings

MAX_STEPS = 10**9  # the trainer wants a number; the steps' end is what stops it


class SteppedTraining:
    """One run of the optimiser, as its trainer and its recorder see it.

    Args:
        saved: where it stands; what extends it says what the training has taken beside its place.
    """

    def __init__(
        self,
        model: Any,
        settings: Settings,
        saved: SavedCursor,
        checkpoint_every: int,
        on_checkpoint: OnCheckpoint | None,
    ) -> None:
        self.progress = 0.0  # of the step in hand
        self.saved: Any = saved if saved.started_at else msgspec.structs.replace(saved, started_at=time.time())
        self.checkpoint_every, self.on_checkpoint = checkpoint_every, on_checkpoint
        self._model, self._settings = model, settings

    @property
    def rate(self) -> float:
        """The share of the peak that the step in hand learns at."""
        return self._settings.rate_at(self.progress)

    @property
    def advice(self) -> str:
        """What to do about a loss that is not a number."""
        section, settings = self._settings.SECTION, self._settings
        return f"lower {section}.learning_rate={settings.learning_rate:g} or {section}.max_grad_norm"

    def fit(self, trainer: Any, resume_from: Path | None, agent: str) -> Log:
        """Train to the end of the steps. Raises: TrainerError: the loss or the weights are not finite."""
        trainer.train(resume_from_checkpoint=str(resume_from) if resume_from else None)
        learned = [local(weight) for weight in self._model.parameters() if weight.requires_grad]
        if summed(torch.stack([(~torch.isfinite(weight)).sum() for weight in learned]).sum()):
            raise TrainerError(f"training {agent!r} ended on weights that are not finite; {self.advice}")
        return Log(trainer.state)

    def result(self, log: Log) -> dict[str, Any]:
        """What the result of every training has."""
        return {
            "steps": log.steps,
            "losses": log.series("loss"),
            "learning_rates": log.series("learning_rate"),
            "step_times": log.series("at"),
            "started_at": self.saved.started_at,
            "first_step_at": self.saved.first_step_at,
            "finished_at": time.time(),
        }


class Log:
    """What a trainer noted, a step each."""

    def __init__(self, state: Any) -> None:
        self.steps: int = state.global_step
        self._entries = [entry for entry in state.log_history if "loss" in entry]

    def series(self, name: str) -> tuple[Any, ...]:
        return tuple(entry[name] for entry in self._entries)


def stepped_arguments(settings: Settings, work: Path) -> dict[str, Any]:
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


class SteppedTrainer(Trainer):
    """A trainer over steps whose number nobody knows; mixed in before TRL's, it makes them one, too.

    TRL counts batches towards a step by a length it must know; where the steps end early, the rest of the gradient
    would never be applied. So a step is a list of batches, and they go through here together.
    """

    _training: SteppedTraining
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
                f"{self._training.advice}"
            )
        return loss

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        optimizer = optimizer if optimizer is not None else self.optimizer
        self.lr_scheduler = LambdaLR(optimizer, lambda _: self._training.rate)
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


class Recorder(TrainerCallback):
    """Notes the first step's time and makes the checkpoints."""

    def __init__(self, training: SteppedTraining) -> None:
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
    except (OSError, SafetensorError) as err:
        raise TrainerError(
            f"what {agent!r} learned cannot be written to {output}: {err}; free the disk and resume"
        ) from err
    finally:
        shutil.rmtree(folder, ignore_errors=True)
