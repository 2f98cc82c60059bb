"""The optimiser's side of MAGDi: a trainer of transformers whose batch is a debate.

Only processes that train import this module: it pulls in torch, PEFT and TRL, which takes seconds.

All answers of a debate go through the model once, side by side. What that gives serves all three terms: the words of
right answers, the classes of the graph's nodes, the scores of pairs.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional
from transformers import PrinterCallback, TrainingArguments

from trainers.tuning.graph_network import MARGIN, GraphHeads, gathering, pooled
from trainers.tuning.magdi_settings import MAGDiResult, MAGDiSettings
from trainers.tuning.pack_steps import PackStep, SavedPlace, pack_steps
from trainers.tuning.sft_settings import OnCheckpoint
from trainers.tuning.stepped import (
    Recorder,
    SteppedTrainer,
    SteppedTraining,
    save_adapter,
    scored_at,
    stepped_arguments,
)
from trainers.tuning.token_graph import TokenGraph

HEADS_NAME = "graph_heads.safetensors"  # in a checkpoint alone
TERMS = ("language_loss", "node_loss", "margin_loss")
# N: nodes of a debate; T: tokens of the longest; M: tokens that right answers say; P: pairs with a wrong node.


def collate(graph: TokenGraph) -> dict[str, Tensor]:
    """A debate as tensors.

    Returns: ``input_ids``, ``attention_mask``: [N, T], padded behind; ``rows``, ``columns``: [M], where the tokens of
        right answers are scored, ``targets``: [M], which they are, ``times``: [M], how often they count; ``labels``:
        [N], 1 for right; ``gathering``: [N, N]; ``chosen``, ``rejected``: [P], nodes; ``counts``: [3], what the
        three terms are means over.
    """
    times, opposed = graph.times, graph.opposed
    padded = [graph.num_tokens - row.num_tokens for row in graph.rows]
    learned = [
        (node, column, token)
        for node in sorted(times)
        for column, token in enumerate(graph.rows[node].completion_ids, len(graph.rows[node].prompt_ids) - 1)
    ]
    weights = torch.tensor([float(times[node]) for node, _, _ in learned])
    return {
        "input_ids": torch.tensor([row.input_ids + [0] * left for row, left in zip(graph.rows, padded, strict=True)]),
        "attention_mask": torch.tensor(
            [[1] * row.num_tokens + [0] * left for row, left in zip(graph.rows, padded, strict=True)]
        ),
        "rows": torch.tensor([node for node, _, _ in learned]),
        "columns": torch.tensor([column for _, column, _ in learned]),
        "targets": torch.tensor([token for _, _, token in learned]),
        "times": weights,
        "labels": torch.tensor([int(right) for right in graph.right]),
        "gathering": gathering(graph.edges, len(graph.rows)),
        "chosen": torch.tensor([one for one, _ in opposed], dtype=torch.long),
        "rejected": torch.tensor([other for _, other in opposed], dtype=torch.long),
        "counts": torch.tensor([weights.sum().item(), len(graph.rows), len(opposed)]),
    }


@contextmanager
def states_of(backbone: Any) -> Iterator[list[Tensor]]:
    """Within, the last hidden states of each pass are added to a list: [N, T, D]."""
    seen: list[Tensor] = []
    hook = backbone.register_forward_hook(lambda module, arguments, output: seen.append(output.last_hidden_state))
    try:
        yield seen
    finally:
        hook.remove()


class MAGDiTrainer(SteppedTrainer):
    """The trainer over debates. Its model is the student, with the heads as a module of it that PEFT does not save."""

    loss_is_scaled_for_ga = True  # by the counts of the whole step

    def __init__(self, training: Training, agent: str, model: Any, settings: MAGDiSettings, work: Path) -> None:
        self._training, self._agent, self._settings = training, agent, settings
        self._steps = _Steps(training)
        self._backbone = model.get_base_model().base_model
        model.graph_heads = GraphHeads(self._backbone.config.get_text_config().hidden_size, settings.hidden)
        self._terms = torch.zeros(len(TERMS))  # of the step in hand
        super().__init__(model=model, args=_arguments(settings, work), callbacks=[Recorder(training)])
        self.remove_callback(PrinterCallback)

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The debate's part of the step's loss; ``num_items_in_batch``: [3], the step's ``counts``."""
        terms = self.terms(model, inputs) / num_items_in_batch.clamp(min=1)
        self._terms += terms.detach().cpu()
        return (terms * terms.new_tensor(self._settings.weights)).sum()

    def terms(self, model: Any, inputs: Any) -> Tensor:
        """[3] float32: sums over the debate's tokens, nodes and pairs, which are still to be made means."""
        words, heads = {name: inputs[name] for name in ("input_ids", "attention_mask")}, model.graph_heads
        places = (inputs["rows"], inputs["columns"])
        with states_of(self._backbone) as states, scored_at(self._backbone, places):
            logits = model(**words, use_cache=False).logits[0]
        with torch.autocast(logits.device.type, enabled=False):
            said = functional.cross_entropy(logits.float(), inputs["targets"], reduction="none")
            features = pooled(states[0], inputs["attention_mask"])
            nodes = features if self._settings.node_features == "student" else self._base_features(model, words)
            classes = heads.classes(nodes, inputs["gathering"])
            scores = heads.scores(features)
            apart = MARGIN - scores[inputs["chosen"]] + scores[inputs["rejected"]]
            return torch.stack(
                [
                    (inputs["times"] * said).sum(),
                    functional.cross_entropy(classes, inputs["labels"], reduction="sum"),
                    torch.relu(apart).sum(),
                ]
            )

    def _base_features(self, model: Any, words: dict[str, Tensor]) -> Tensor:
        """[N, D]: of the model as it came, the adapter off."""
        with torch.no_grad(), model.disable_adapter():
            return pooled(self._backbone(**words, use_cache=False).last_hidden_state, words["attention_mask"])

    def log(self, logs: dict[str, Any], start_time: float | None = None) -> None:
        if "loss" in logs:
            logs = logs | dict(zip(TERMS, self._terms.tolist(), strict=True))
            self._terms = torch.zeros(len(TERMS))
        super().log(logs, start_time)

    def _count(self, step: list[dict[str, Any]]) -> Any:
        return torch.stack([batch["counts"] for batch in step]).sum(0)

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        super()._save(output_dir, state_dict)
        heads: Any = self.model
        save_file(heads.graph_heads.state_dict(), Path(str(output_dir)) / HEADS_NAME)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        heads: Any = self.model
        heads.graph_heads.load_state_dict(load_file(Path(resume_from_checkpoint) / HEADS_NAME))


class _Steps:
    """What the trainer iterates: steps as lists of debates."""

    def __init__(self, training: Training) -> None:
        self._training = training

    def __iter__(self) -> Iterator[list[dict[str, Any]]]:
        graphs = self._training.graphs
        for step in pack_steps(len(graphs), self._training.settings, self._training.saved.cursor):  # a debate a pack
            self._training.took(step)
            yield [collate(graphs[index]) for index in step.packs]


def _arguments(settings: MAGDiSettings, work: Path) -> Any:
    return TrainingArguments(label_names=[], **stepped_arguments(settings, work))


class Training(SteppedTraining):
    """One run of the optimiser over one student's debates."""

    def __init__(
        self,
        model: Any,
        graphs: Sequence[TokenGraph],
        num_refused: int,
        settings: MAGDiSettings,
        saved: SavedPlace,
        checkpoint_every: int,
        on_checkpoint: OnCheckpoint | None,
    ) -> None:
        super().__init__(model, settings, saved, checkpoint_every, on_checkpoint)
        self.graphs, self.settings, self._num_refused = graphs, settings, num_refused

    def run(self, agent: str, output: Path, resume_from: Path | None) -> MAGDiResult:
        """Go over the debates and write the adapter. Raises: TrainerError: loss or weights are not finite."""
        with tempfile.TemporaryDirectory(prefix="moot-magdi-") as work:
            log = self.fit(MAGDiTrainer(self, agent, self._model, self.settings, Path(work)), resume_from, agent)
        result = MAGDiResult(
            rows=len(self.graphs),
            refused=self._num_refused,
            rows_seen=self.saved.rows_seen,
            nodes=sum(len(graph.rows) for graph in self.graphs),
            pairs=sum(len(graph.opposed) for graph in self.graphs),
            language_losses=log.series("language_loss"),
            node_losses=log.series("node_loss"),
            margin_losses=log.series("margin_loss"),
            data_hash=self.saved.data_hash,
            **self.result(log),
        )
        save_adapter(self._model, output, result, agent)
        return result

    def took(self, step: PackStep) -> None:
        """The trainer has been handed a step."""
        self.progress = step.progress
        self.saved = msgspec.structs.replace(
            self.saved, cursor=step.cursor, rows_seen=self.saved.rows_seen + len(step.packs)
        )
