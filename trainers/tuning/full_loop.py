"""The optimiser's side of full finetuning: TRL's trainer over a model that several processes may share by FSDP2.

Only processes that train import this module: it pulls in torch and TRL, which takes seconds.

The model is sharded here, by PyTorch's own ``fully_shard``, before the trainer sees it. Accelerate does the same, but
on accelerators alone: on CPUs it would copy the model into every process.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_state_dict,
    set_state_dict,
)
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from transformers import set_seed

from protocols.errors import TrainerError
from trainers.tuning.ranks import from_first, num_ranks, rank
from trainers.tuning.sft_loop import StreamTrainer, Training
from trainers.tuning.sft_settings import SFTResult
from trainers.tuning.stepped import written_whole

STATE_NAME = "state"  # in a checkpoint: weights and moments, of each process what it keeps
SCHEDULER_NAME = "scheduler.pt"


def shard(model: Any, precision: str) -> None:
    """Split a model over all processes, in place: weights, and with them gradients and moments.

    A unit is a layer, of a class that the model itself says must stay in one piece, and is whole in each process only
    while it computes. What is left, embedding, last norm and head, is one unit more: the first and the last may be one
    weight, and TRL's loss reads the head's where the head does not run.

    Args: precision: of what is gathered; what is kept, and gradients where they are added up, are float32.
    Raises: TrainerError: the model names no layers.
    """
    if num_ranks() == 1:
        return
    names = set(model._no_split_modules or ())
    layers = [module for module in model.modules() if type(module).__name__ in names]
    if not layers:
        raise TrainerError(
            f"the base {model.name_or_path!r} does not say what its layers are, so it cannot be sharded; "
            "set train.gpus_per_lane: 1, or use another base"
        )
    coarse = {"param_dtype": torch.bfloat16, "reduce_dtype": torch.float32} if precision == "bfloat16" else {}
    for module in (*layers, model):
        fully_shard(module, mp_policy=MixedPrecisionPolicy(**coarse))


class FullTrainer(StreamTrainer):
    """TRL's trainer over all weights. A checkpoint has each process's part, and fits another number of them, too."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        # So transformers calls a model that came sharded: its place and the sum of its gradients are seen to.
        self.is_distributed_loading_by_transformers = num_ranks() > 1

    def _clip_grad_norm(self, model: Any) -> Any:
        norm = super()._clip_grad_norm(model)
        return norm.full_tensor() if hasattr(norm, "full_tensor") else norm

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        """Not here: weights are saved with their moments."""

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        folder = Path(output_dir) / STATE_NAME
        folder.mkdir(parents=True)
        with _whoever_calls():
            dcp.save(self._state(), checkpoint_id=folder)
        if rank() == 0:
            torch.save(self.lr_scheduler.state_dict(), Path(output_dir) / SCHEDULER_NAME)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        """Not here: weights are loaded with their moments."""

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is None:
            return
        state = self._state()
        with _whoever_calls():
            dcp.load(state, checkpoint_id=Path(checkpoint) / STATE_NAME)
        set_state_dict(
            self.model,
            self._moments,
            model_state_dict=state["model"],
            optim_state_dict=state["optimizer"],
        )
        self.lr_scheduler.load_state_dict(torch.load(Path(checkpoint) / SCHEDULER_NAME, weights_only=True))

    @property
    def _moments(self) -> Any:
        return self.optimizer.optimizer  # within accelerate's wrapper

    def _state(self) -> dict[str, Any]:
        weights, moments = get_state_dict(self.model, self._moments)
        return {"model": weights, "optimizer": moments}


class FullTraining(Training):
    """One run of the optimiser over one stream, on all weights."""

    def _trainer(self, agent: str, config: Any) -> Any:
        set_seed(self.settings.seed)  # of whatever the model itself drops
        return FullTrainer(self, agent, self._model, self._tokenizer, config)


def save_model(model: Any, tokenizer: Any, output: Path, result: SFTResult, agent: str, precision: str) -> None:
    """Write a model, which all processes may share, and its tokenizer to ``output``; all of them call.

    Raises: TrainerError: it cannot be written; in every process alike.
    """
    gathered = StateDictOptions(full_state_dict=True, cpu_offload=True)
    weights = get_model_state_dict(model, options=gathered)  # of all but the first process: nothing
    error = ""
    if rank() == 0:
        try:
            _write(model, tokenizer, weights, output, result, agent, precision)
        except TrainerError as err:
            error = str(err)
    if error := from_first(error):
        raise TrainerError(error)


def _write(
    model: Any, tokenizer: Any, weights: dict[str, Any], output: Path, result: SFTResult, agent: str, precision: str
) -> None:
    for name in list(weights):
        weight = weights.pop(name)
        if name not in model.all_tied_weights_keys:  # those are other weights under a second name
            weights[name] = weight.to(getattr(torch, precision)) if weight.is_floating_point() else weight
    with written_whole(output, result, agent) as folder:
        model.save_pretrained(str(folder), state_dict=weights)
        model.config.dtype = precision  # the model's own weights are in float32 still
        model.config.save_pretrained(str(folder))
        tokenizer.save_pretrained(str(folder))


@contextmanager
def _whoever_calls() -> Iterator[None]:
    """Within, PyTorch does not wonder aloud that a checkpoint is one process's."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled")
        yield
