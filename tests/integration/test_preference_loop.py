"""A loop with both trainings: right answers first, then which were better; killed in between, each is made once."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from tests.integration.command import RunOnDisk, check_clean, moot_in
from tests.trainers.conftest import tiny_model
from trainers.preference_file import read_preferences

__all__ = ["tiny_model"]

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]

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


def test_both_trainings_of_an_iteration_are_made_once_and_in_turn(tmp_path: Path, tiny_model: Path) -> None:
    (tmp_path / "both.yaml").write_text(RECIPE.replace("BASE", str(tiny_model)).replace("RUNS", str(tmp_path / "runs")))
    run = RunOnDisk(tmp_path / "runs" / "r")
    rows = run.path / "train" / "preferences-2" / "rows"
    with moot_in(tmp_path) as moot:
        process = moot.start("loop", "both.yaml", "--run-dir", "runs/r", "--json")
        assert process.running_when((rows / "pupil.jsonl").exists), process.stderr
        process.signal_group(signal.SIGKILL)
        process.wait()
        check_clean(process.stderr)
        resumed = moot("resume", "runs/r", "--json")
        assert resumed.wait() == 0, resumed.stderr
        compared = moot("compare", "runs/r", "--json")
        assert compared.wait() == 0, compared.stderr
    assert resumed.outcome()["warnings"] == []
    taught, preferred = run.json("adapters/registry.json")
    assert (taught["name"], preferred["name"]) == ("pupil@r-v1", "pupil@r-v2")
    assert (taught["parent"], preferred["parent"]) == (None, "pupil@r-v1")
    assert (taught["rule"], preferred["rule"]) == ("teacher", "same_round")
    assert preferred["rows"] == len(list(read_preferences(rows, "pupil"))) > 0
    assert preferred["metrics"]["final_margin"] > preferred["metrics"]["first_margin"]
    stages = ["eval-0", "debate-1", "train-1", "eval-1-sft", "prefer-1", "eval-1"]
    assert list(run.json("run.json")["done"]) == stages
    speakers = {
        stage: {
            node.reply.adapter
            for debate in run.debates(stage).values()
            for node in debate.utterances
            if node.agent == "pupil"
        }
        for stage in stages
        if stage.startswith("eval")
    }
    assert speakers == {"eval-0": {""}, "eval-1-sft": {"pupil@r-v1"}, "eval-1": {"pupil@r-v2"}}
    page = (run.path / "report.html").read_text()
    labels = ("before training", "iteration 1, before preferences", "after iteration 1")
    assert sorted(map(page.index, labels)) == list(map(page.index, labels))
