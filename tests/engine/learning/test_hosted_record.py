"""`moot train` where services train, and what `moot adapters` makes of what they keep."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from engine.learning.training import train_recorded
from engine.live.progress import Progress
from engine.record.folder import RunFolder
from engine.record.spending import money
from protocols.errors import PausedError
from tests.actors.fake_api import failed
from tests.actors.fake_finetuning import BASE, FakeFinetuning, finetuning_in_a_thread
from tests.engine.command import done, moot, refused
from tests.engine.learning.test_training import debate, folder_with
from trainers.record.registry import Registry


@pytest.fixture
def service() -> Iterator[FakeFinetuning]:
    with finetuning_in_a_thread() as service:
        yield service


@pytest.fixture
def run(service: FakeFinetuning, tmp_path: Path) -> RunFolder:
    """Twelve debates in which ada and bo are right and cy is wrong."""
    finetune = {"epochs": 1, "poll_s": 0.01, "max_poll_s": 0.02, "base": BASE}
    gpt = {"backend": "openai", "model": "gpt-now", "base_url": f"{service.url}/v1", "finetune": finetune}
    recipe = {
        "name": "r",
        "tasks": {"source": "arithmetic", "level": "add30", "train": 4, "test": 4},
        "models": {"gpt": gpt | {"price": {"input": 1, "output": 1, "training": 5}}},
        "agents": {name: {"model": "gpt"} for name in ("ada", "bo", "cy")},
        "protocol": {"name": "society", "rounds": 2},
        "cast": {"generator": ["ada", "bo", "cy"]},
    }
    return folder_with(tmp_path / "run", [debate(f"t{n}", ("2", "2", "3")) for n in range(12)], recipe=recipe)


def test_a_record_trains_at_the_service_without_ray(run: RunFolder, service: FakeFinetuning, tmp_path: Path) -> None:
    outcome = done("train", run.path)
    assert outcome["adapters"] == ["ada@r-v1", "bo@r-v1"] and outcome["rows"] == {"ada": 12, "bo": 12}
    assert outcome["final_loss"] == {"ada": 0.3333, "bo": 0.3333} and outcome["warnings"] == []
    assert service.begun == {"ada@r-v1": 1, "bo@r-v1": 1}
    assert {job.body["model"] for job in service.jobs.values()} == {BASE}
    costs = [record.metrics["cost_usd"] for record in Registry(run.path / "adapters").list()]
    assert money(run, {})["training_usd"] == pytest.approx(sum(costs), abs=1e-6) and all(costs)

    listed = done("adapters", "list", run.path)["adapters"]
    models = {job.body["metadata"]["moot_adapter"]: job.model for job in service.jobs.values()}
    assert {record["name"]: record["model"] for record in listed} == models
    people = moot("adapters", "list", run.path).stdout
    assert all(f"as {model}" in people for model in models.values())
    shown = done("adapters", "show", run.path, "ada")
    assert shown["model"] == models["ada@r-v1"] and shown["hosted"]["service"] == f"{service.url}/v1"
    assert shown["lineage"] == ["ada@r-v1", BASE] and shown["hosted"]["file"] in service.files
    target = tmp_path / "out"
    for command in (
        ("adapters", "merge", run.path, "ada", "-o", target),
        ("adapters", "export", run.path, "ada", "-o", target),
        ("adapters", "push", run.path, "ada", "me/mine"),
        ("adapters", "score", run.path, "--stage", "debate"),
    ):
        said = refused(*command)
        assert f"is the model {models['ada@r-v1']!r} of the service that trained it, which gives out no weights" in said
    assert not target.exists()

    again = done("train", run.path, "train.agents=[ada]")
    assert again["adapters"] == ["ada@r-v2"] and service.begun["ada@r-v2"] == 1
    said = refused("train", run.path, "--preferences", f"train.base_model={tmp_path}")
    assert "gives out no weights: preferences cannot be learned on top of it here" in said


def test_a_service_that_refuses_pauses_and_the_same_command_goes_on(run: RunFolder, service: FakeFinetuning) -> None:
    service.refuse = [("POST /v1/fine_tuning/jobs", 429, failed("no money", code="insufficient_quota"))] * 2
    with pytest.raises(PausedError, match=rf"model 'gpt' was refused \(quota\).*go on with `moot train {run.path}`"):
        train_recorded(run.path, (), progress=Progress(live=False))
    service.refuse = []
    assert done("train", run.path)["adapters"] == ["ada@r-v1", "bo@r-v1"]
    assert max(service.begun.values()) == 1 and len(service.files) == 2


def test_who_is_trained_here_waits_for_another_call(run: RunFolder, service: FakeFinetuning) -> None:
    run.manifest.recipe["models"]["local"] = {"backend": "vllm", "model": "embedded"}
    run.manifest.recipe["agents"]["bo"]["model"] = "local"
    run.save()
    assert "services train ada, but not bo; train them one after the other" in refused("train", run.path)
    assert done("train", run.path, "train.agents=[ada]")["adapters"] == ["ada@r-v1"]


def test_a_base_that_is_named_is_trained_here(run: RunFolder, service: FakeFinetuning) -> None:
    said = refused("train", run.path, "train.base_model=nowhere")
    assert "train.base_model='nowhere': there is no such folder" in said and service.calls == []
