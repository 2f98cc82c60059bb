"""A loop with both trainings: right answers first, then which were better; interrupted, each is made once."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.integration.command import RunOnDisk, command_here
from tests.trainers.conftest import tiny_model
from trainers.record.row_file import read_rows
from trainers.selection.preference_row import Preference

__all__ = ["tiny_model"]

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500), pytest.mark.filterwarnings("default")]

RECIPE = """
name: both
seed: 5
tasks: {source: arithmetic, level: mixed10, train: 12, test: 2}
models:
  simulated: {backend: scripted, skill: 0.6, latency_s: 0.05}
agents:
  ada: {model: simulated}
  bo: {model: simulated}
  pupil: {model: simulated}
protocol: {name: reflect, rounds: 2, stop: []}
cast: {teacher: [ada, bo], student: [pupil]}
train: {base_model: BASE, rules: {student: teacher}, label: gold, tree: {root: question}}
sft: {rank: 4, epochs: 1, batch_size: 4, max_length: 1024, learning_rate: 0.001}
tree_dpo: {epochs: 2, learning_rate: 0.01, token_budget: 4096, beta: 0.5}
loop: {preferences: true}
run: {runs_dir: RUNS}
"""


STAGES = ["eval-0", "debate-1", "train-1", "eval-1-sft", "prefer-1", "eval-1"]


def test_both_trainings_of_an_iteration_are_made_once_and_in_turn(
    tmp_path: Path, tiny_model: Path, local_ray: Any
) -> None:
    (tmp_path / "both.yaml").write_text(RECIPE.replace("BASE", str(tiny_model)).replace("RUNS", str(tmp_path / "runs")))
    run = RunOnDisk(tmp_path / "runs" / "r")
    outcome = command_here("loop", tmp_path / "both.yaml", "--run-dir", run.path)
    assert outcome["warnings"] == []
    check(run)
    before = run.json("adapters/registry.json")

    told = run.json("run.json")  # as a driver left it that was killed between a training's end and its being noted
    told["done"] = {stage: told["done"][stage] for stage in STAGES[: STAGES.index("prefer-1")]}
    (run.path / "run.json").write_text(json.dumps(told | {"finished_at": None}))
    (run.path / "results.json").unlink()
    command_here("resume", run.path)
    assert run.json("adapters/registry.json") == before
    check(run)


def check(run: RunOnDisk) -> None:
    taught, preferred = run.json("adapters/registry.json")
    assert (taught["name"], preferred["name"]) == ("pupil@r-v1", "pupil@r-v2")
    assert (taught.get("parent"), preferred["parent"]) == (None, "pupil@r-v1")
    assert (taught["rule"], preferred["rule"]) == ("teacher", "same_round")
    rows = run.path / "train" / "preferences-2" / "rows"
    assert preferred["rows"] == len(list(read_rows(rows, "pupil", Preference))) > 0
    assert preferred["metrics"]["final_margin"] > preferred["metrics"]["first_margin"]
    assert list(run.json("run.json")["done"]) == STAGES
    for stage, speaker in (("eval-0", ""), ("eval-1-sft", "pupil@r-v1"), ("eval-1", "pupil@r-v2")):
        nodes = [node for debate in run.debates(stage).values() for node in debate.utterances]
        assert {node.reply.adapter for node in nodes if node.agent == "pupil"} == {speaker}
    page = (run.path / "report.html").read_text()
    labels = ("before training", "iteration 1, before preferences", "after iteration 1")
    assert sorted(map(page.index, labels)) == list(map(page.index, labels))
