"""A loop whose engine makes room for its trainings: killed while it is away, taken up, and what came of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.integration.command import Moot, Process, RunOnDisk, check_clean, command_here, moot_in, timeless

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500), pytest.mark.filterwarnings("default")]

RECIPE = """
name: one
seed: 5
tasks: {source: arithmetic, level: mixed10, train: 6, test: 1}
models:
  tiny: {backend: transformers, model: BASE, max_adapters: 1, threads: 1, num_cpus: 1}
  simulated: {backend: scripted, skill: 1.0}
agents:
  ada: {model: tiny, max_tokens: 8}
  bo: {model: simulated}
  cy: {model: simulated}
protocol: {name: society, rounds: 1}
cast: {generator: [ada, bo, cy]}
train: {rule: majority, agents: [ada], threads: 1}
sft: {rank: 4, epochs: 1, batch_size: 2, max_length: 512, learning_rate: 0.01}
loop: {iterations: 1}
run: {max_open: 1}
"""
STAGES = ("eval-0", "debate-1", "eval-1")
ENGINES = 2  # one of them simulated


def came_of(run: RunOnDisk) -> dict[str, Any]:
    """The weights, the rows behind them, and the graphs; a run's name is in none of it, as both are called alike."""
    kept = ("name", "parent", "rows", "data_hash", "checksum", "metrics")
    adapters = [{key: record.get(key) for key in kept} for record in run.json("adapters/registry.json")]
    graphs = {stage: {key: timeless(debate) for key, debate in run.debates(stage).items()} for stage in STAGES}
    return {"adapters": adapters, "graphs": graphs, "asks": {stage: sorted(run.outcomes(stage)) for stage in STAGES}}


def engines(process: Process) -> int:
    return len(process.members("ray::AgentActor"))


def training(process: Process) -> bool:
    return bool(process.members("RayTrainWorker"))


def test_a_loop_that_shares_its_device_is_killed_meanwhile_and_comes_to_the_same(
    tmp_path: Path, tiny_model: Path, local_ray: Any
) -> None:
    (tmp_path / "one.yaml").write_text(RECIPE.replace("BASE", str(tiny_model)))
    apart, shared = RunOnDisk(tmp_path / "apart" / "r"), RunOnDisk(tmp_path / "shared" / "r")
    command_here("loop", tmp_path / "one.yaml", "--run-dir", apart.path)
    with moot_in(tmp_path) as moot:
        _play(moot, shared)
    assert came_of(shared) == came_of(apart)
    names = [item["name"] for item in came_of(shared)["adapters"]]
    assert names == ["ada@r-v1"]


def _play(moot: Moot, run: RunOnDisk) -> None:
    """All the CPUs are the engine's, so that nothing can be trained beside it."""
    from ray._private.utils import get_num_cpus

    process = moot.start_until(
        *("loop", "one.yaml", "--run-dir", str(run.path), "--json"),
        *("run.colocate=release", f"models.tiny.num_cpus={get_num_cpus()}"),
        ready=lambda process: "released" in process.stderr and engines(process) == ENGINES - 1,
    )
    process.kill()
    check_clean(process.stderr)
    assert "tiny: released while trainings run" in process.stderr and "started again" not in process.stderr

    process = moot.start("resume", str(run.path), "--json")
    assert process.running_when(lambda: training(process)), process.stderr
    assert engines(process) == ENGINES - 1
    assert process.running_when(lambda: engines(process) == ENGINES), process.stderr
    assert not training(process)
    assert process.wait() == 0, process.stderr
    check_clean(process.stderr)
    assert process.stderr.count("tiny: started again") == 1
    assert process.outcome()["warnings"] == []
