"""A loop whose debates are ahead of its trainings, killed while both are under way: it comes to the same adapters."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest

from tests.integration.command import Moot, Process, RunOnDisk, check_clean, command_here, moot_in, timeless

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500), pytest.mark.filterwarnings("default")]

TASKS, HELD_OUT = 6, 1
RECIPE = f"""
name: ahead
seed: 5
tasks: {{source: arithmetic, level: mixed10, train: {TASKS}, test: {HELD_OUT}}}
models:
  simulated: {{backend: scripted, skill: 0.9, latency_s: 0.5, latency_sigma: 0.1}}
agents:
  ada: {{model: simulated}}
  bo: {{model: simulated}}
  cy: {{model: simulated}}
protocol: {{name: society, rounds: 1}}
cast: {{generator: [ada, bo, cy]}}
train: {{base_model: BASE, rule: majority, agents: [ada], threads: 1, checkpoint_every: 3}}
sft: {{rank: 4, epochs: 4, batch_size: 2, max_length: 512, learning_rate: 0.01}}
loop: {{iterations: 2, init_from: previous, staleness: 1}}
run: {{max_open: 1}}
"""
SPOKE = {"eval-0": "", "debate-1": "", "debate-2": "", "eval-1": "ada@r-v1", "eval-2": "ada@r-v2"}
"""Stage -> the version of who learns. The second debates begin before there is one, and never take up what comes."""


def came_of(run: RunOnDisk) -> dict[str, Any]:
    """The weights, the rows behind them, and the graphs; a run's name is in none of it, as both are called alike."""
    kept = ("name", "parent", "rows", "data_hash", "checksum", "metrics")
    adapters = [{key: record.get(key) for key in kept} for record in run.json("adapters/registry.json")]
    graphs = {stage: {key: timeless(debate) for key, debate in run.debates(stage).items()} for stage in SPOKE}
    return {"adapters": adapters, "graphs": graphs, "asks": {stage: sorted(run.outcomes(stage)) for stage in SPOKE}}


def test_a_loop_killed_between_its_next_debates_and_its_training_comes_to_the_same(
    tmp_path: Path, tiny_model: Path, local_ray: Any
) -> None:
    (tmp_path / "ahead.yaml").write_text(RECIPE.replace("BASE", str(tiny_model)))
    whole, killed = RunOnDisk(tmp_path / "whole" / "r"), RunOnDisk(tmp_path / "killed" / "r")
    outcome = command_here("loop", tmp_path / "ahead.yaml", "--run-dir", whole.path)
    check(whole, outcome)
    first, _ = whole.json("adapters/registry.json")
    assert min(whole.closed_at("debate-2")) < first["created_at"]  # they did not wait for it
    with moot_in(tmp_path) as moot:
        check(killed, _killed_in_the_overlap(moot, killed))
    assert came_of(killed) == came_of(whole)


def check(run: RunOnDisk, outcome: dict[str, Any]) -> None:
    assert outcome["warnings"] == []
    first, second = run.json("adapters/registry.json")
    assert (first["name"], second["name"], second["parent"]) == ("ada@r-v1", "ada@r-v2", "ada@r-v1")
    for stage, version in SPOKE.items():
        debates = run.debates(stage).values()
        assert len(debates) == (TASKS if stage.startswith("debate") else HELD_OUT)
        turns = [node for debate in debates for node in debate.utterances if node.agent == "ada"]
        assert {node.reply.adapter for node in turns} == {version}, stage
        asked = run.outcomes(stage)
        assert len(asked) == len(set(asked))
    behind = {"debate-1": (0.0, 0), "debate-2": (1.0, 1)}
    told = {stage: {"stale_share": share, "most_behind": most} for stage, (share, most) in behind.items()}
    assert outcome["staleness"] == run.json("results.json")["staleness"] == told
    for adapter, (share, most) in zip((first, second), behind.values(), strict=True):
        assert (adapter["metrics"]["stale_share"], adapter["metrics"]["most_behind"]) == (share, most)
    assert "In the debates of iteration 2 100.0% of what learners said" in (run.path / "report.html").read_text()


def _killed_in_the_overlap(moot: Moot, run: RunOnDisk) -> dict[str, Any]:
    """In the middle of the second debates agents are held up until the first training has kept a checkpoint."""
    process = moot.start_until(
        *("loop", "ahead.yaml", "--run-dir", str(run.path), "--json"),
        ready=lambda _: len(run.closed_at("debate-2")) >= 1,
    )
    (host,) = process.members("ray::AgentActor")
    os.kill(host, signal.SIGSTOP)
    assert process.running_when(lambda: _kept_checkpoint(run)), process.stderr
    process.kill()
    check_clean(process.stderr)
    assert list(run.json("run.json")["done"]) == ["eval-0", "debate-1"]  # the training was not over
    assert len(run.closed_at("debate-2")) < TASKS

    resumed: Process = moot("resume", str(run.path), "--json")
    assert resumed.wait() == 0, resumed.stderr
    check_clean(resumed.stderr)
    return resumed.outcome()


def _kept_checkpoint(run: RunOnDisk) -> bool:
    records = run.path.glob("train/iteration-1/checkpoints/*/checkpoint_manager_snapshot.json")
    return any(b"checkpoint_dir_name" in record.read_bytes() for record in records)
