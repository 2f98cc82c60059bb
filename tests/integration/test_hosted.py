"""A loop whose agents a service trains, killed between a job's start and its end: one job a version, which speaks."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.actors.fake_finetuning import BASE, FakeFinetuning, finetuning_in_a_thread
from tests.integration.command import Moot, RunOnDisk, command_here, moot_in

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

AGENTS = ("ada", "bo", "cy")
TASKS, HELD_OUT = 12, 2
RECIPE = f"""
name: hosted
seed: 5
tasks: {{source: arithmetic, level: mixed10, train: {TASKS}, test: {HELD_OUT}}}
models:
  gpt:
    backend: openai
    model: {BASE}
    base_url: URL/v1
    api_key_file: KEY_FILE
    price: {{input: 1, output: 2, training: 3, tuned_input: 10, tuned_output: 20}}
    finetune: {{epochs: 1, batch_size: 6, poll_s: 0.05, max_poll_s: 0.1}}
agents:
  ada: {{model: gpt}}
  bo: {{model: gpt}}
  cy: {{model: gpt}}
protocol: {{name: society, rounds: 2}}
cast: {{generator: [ada, bo, cy]}}
train: {{rules: {{generator: [generator, critic]}}, loss: all}}
loop: {{iterations: 2, init_from: previous}}
run: {{budget: {{usd: 5}}}}
"""
KEY = "sk-" + "hosted-test-0123456789"


@pytest.fixture
def service() -> Iterator[FakeFinetuning]:
    with finetuning_in_a_thread() as service:
        service.key = KEY
        yield service


@pytest.fixture
def moot(service: FakeFinetuning, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Moot]:
    folder, key_file = tmp_path_factory.mktemp("hosted"), tmp_path_factory.mktemp("key") / "key"
    key_file.write_text(KEY)
    (folder / "hosted.yaml").write_text(RECIPE.replace("URL", service.url).replace("KEY_FILE", str(key_file)))
    with moot_in(folder) as moot:
        yield moot


def test_a_loop_killed_while_a_service_trains_has_one_job_a_version(
    moot: Moot, service: FakeFinetuning, local_ray: Any
) -> None:
    run, service.held = RunOnDisk(moot.folder / "r"), True
    process = moot.start_until(
        "loop", "hosted.yaml", "--run-dir", "r", "--json", ready=lambda _: len(service.jobs) == 3
    )
    process.kill()
    assert not (run.path / "adapters" / "registry.json").exists()

    service.held = False
    outcome = command_here("resume", run.path)
    assert outcome["warnings"] == [] and outcome["set_aside"] == 0
    assert service.begun == {f"{agent}@r-v{version}": 1 for agent in AGENTS for version in (1, 2)}
    assert len(service.files) == 6

    records = {record["name"]: record for record in run.json("adapters/registry.json")}
    jobs = {job.body["metadata"]["moot_adapter"]: job for job in service.jobs.values()}
    for name, record in records.items():
        assert record["model"] == jobs[name].model and record["rows"] == len(jobs[name].upload.rows) >= TASKS
        assert record["metrics"]["steps"] == jobs[name].num_steps
    for agent in AGENTS:  # the second version went on from the first
        assert records[f"{agent}@r-v2"]["parent"] == f"{agent}@r-v1"
        assert jobs[f"{agent}@r-v2"].body["model"] == records[f"{agent}@r-v1"]["model"]

    for stage, version in (("eval-0", 0), ("debate-1", 0), ("eval-1", 1), ("debate-2", 1), ("eval-2", 2)):
        nodes = [node for debate in run.debates(stage).values() for node in debate.utterances]
        spoke = {(node.agent, node.reply.adapter, node.reply.model) for node in nodes}
        names = {agent: f"{agent}@r-v{version}" if version else "" for agent in AGENTS}
        models = {agent: records[name]["model"] if name else BASE for agent, name in names.items()}
        assert spoke == {(agent, names[agent], models[agent]) for agent in AGENTS}
        assert {node.reply.cost_usd for node in nodes} == {(12 * 10 + 7 * 20 if version else 12 + 7 * 2) / 1e6}
    trained = sum(job.trained_tokens for job in jobs.values()) * 3 / 1e6
    assert outcome["training_usd"] == pytest.approx(trained, abs=1e-6)
    said = sum(
        node.reply.cost_usd for stage in _stages(run) for d in run.debates(stage).values() for node in d.utterances
    )
    assert outcome["cost_usd"] == pytest.approx(trained + said, abs=1e-5)

    again = RunOnDisk(Path(command_here("eval", run.path, "--run-dir", moot.folder / "again")["run"]))
    newest = {node.reply.adapter for debate in again.debates("eval-0").values() for node in debate.utterances}
    assert newest == {f"{agent}@r-v2" for agent in AGENTS}
    assert command_here("compare", run.path, again.path)["changes"]
    page = Path(command_here("report", run.path, "-o", moot.folder / "copy.html")["report"]).read_text()
    assert "ada@r-v2" in page
    points = [line for line in (run.path / "figures.jsonl").read_text().splitlines() if '"train/ada"' in line]
    assert len(points) == jobs["ada@r-v1"].num_steps + jobs["ada@r-v2"].num_steps
    texts = [path.read_bytes() for path in moot.folder.rglob("*") if path.is_file()]
    assert not any(KEY.encode() in text for text in texts)


def _stages(run: RunOnDisk) -> list[str]:
    return [path.name for path in (run.path / "journal").iterdir()]
