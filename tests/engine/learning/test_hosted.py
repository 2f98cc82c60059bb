"""Trainings by a service, against one that works: killed at every step, refused in every way, paid for once."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import jsonschema  # type: ignore[import-untyped]
import pytest
import pytest_asyncio
import yaml

from actors.limits.budget import Budget
from actors.limits.prices import Amount
from actors.limits.shared_gate import Keeper
from actors.services.openai_settings import FinetuneSettings, OpenAISettings
from engine.check import recipe_schema
from engine.config.base_model import base_model_of
from engine.config.recipe import Recipe
from engine.config.recipe_file import apply_override, build_recipe
from engine.fork import _touched
from engine.learning.hosted import HostedTraining
from engine.learning.hosted_job import HostedJob
from engine.learning.side_by_side import all_fitted
from engine.record.spending import spent_so_far
from protocols.errors import AgentError, ConfigError, PausedError, TrainerError
from protocols.message import user
from tests.actors.fake_api import failed
from tests.actors.fake_finetuning import BASE, FakeFinetuning, fake_finetuning
from tests.engine.learning.test_training import folder_with
from trainers.jobs.hosted import read_hosted
from trainers.jobs.hosted_rows import hosted_rows
from trainers.record.feed import hash_rows
from trainers.record.registry import Registry
from trainers.selection.example import Example

NOTES: list[str] = []


@pytest_asyncio.fixture
async def service() -> AsyncIterator[FakeFinetuning]:
    async with fake_finetuning() as service:
        yield service


def rows(number: int = 12, agent: str = "ada", **changes: Any) -> list[Example]:
    told: dict[str, Any] = {"agent": agent, "rule": "generator", "node_ids": ("0.answer.0",), "completion": "Two."}
    return [Example(id=f"d{n}", debate_id=f"d{n}", prompt=(user(f"{n}?"),), **(told | changes)) for n in range(number)]


def training(service: FakeFinetuning, run: Path, *agents: str, price: float = 8.0, **finetune: Any) -> HostedTraining:
    quick = {"poll_s": 0.005, "max_poll_s": 0.01, "max_wait_s": 20.0}
    settings = OpenAISettings(
        model=BASE, base_url=f"{service.url}/v1", finetune=FinetuneSettings(**(quick | finetune)), api_key_env=None
    )
    jobs = [
        HostedJob(
            agent=agent,
            name=f"{agent}@r-v1",
            version=1,
            output=run / "adapters" / agent / "v1",
            model="gpt",
            service=settings,
            training_price=price,
        )
        for agent in agents or ("ada",)
    ]
    return HostedTraining(
        workplace=run / "train" / "iteration-1", jobs=jobs, rules={job.agent: ("generator",) for job in jobs}
    )


@pytest.mark.asyncio
async def test_rows_become_a_registered_version(service: FakeFinetuning, tmp_path: Path) -> None:
    run, notes = folder_with(tmp_path / "run", []), list[str]()
    hosted = training(service, run.path, epochs=2, suffix="mine")
    assert spent_so_far(run) == Amount()
    warning, cost = await hosted.fit({"ada": rows()}, notes.append)
    (upload,), (job,) = service.files.values(), service.jobs.values()
    assert warning == "" and cost == pytest.approx(job.trained_tokens * 8 / 1e6) and cost > 0
    assert [row["messages"][0]["content"] for row in upload.rows] == [f"{n}?" for n in range(12)]
    assert (job.body["model"], job.body["suffix"]) == (BASE, "mine")
    registry = Registry(run.path / "adapters")
    (entry,) = hosted.register(registry, recipe_hash="h", iteration=1)
    hosted.register(registry, recipe_hash="h", iteration=1)  # of a run that was killed before it marked the stage
    (record,) = registry.list()
    assert (record.name, record.model, record.base_model) == (entry.name, job.model, BASE)
    assert (record.rows, record.rule, record.data_hash) == (12, "generator", hash_rows(rows()))
    assert record.metrics["steps"] == 6 and record.metrics["final_loss"] == pytest.approx(1 / 6)  # 2 x 12 rows by 4
    assert record.metrics["trained_tokens"] == job.trained_tokens and record.metrics["epochs"] == 2
    assert spent_so_far(run).usd == pytest.approx(cost)
    assert [note.partition(": ")[0] for note in notes] == ["ada@r-v1"] * 3  # begun, running, done
    assert (await hosted.fit({}, notes.append)) == ("", 0.0) and len(service.jobs) == 1


@pytest.mark.asyncio
@pytest.mark.parametrize("when", ["before", "after"])
async def test_killed_at_any_call_it_goes_on_and_buys_nothing_twice(
    service: FakeFinetuning, tmp_path: Path, when: str
) -> None:
    """Cut before the service has heard of the n-th call, or before we hear that it has obeyed, for every n."""
    for cut in range(1, 40):
        calls, made, begun = len(service.calls), len(service.files), len(service.jobs)
        run = tmp_path / str(cut)
        fitting = asyncio.ensure_future(training(service, run, seed=cut).fit({"ada": rows()}, NOTES.append))

        def kill(_: str, fitting: asyncio.Future[Any] = fitting, at: int = calls + cut) -> None:
            if len(service.calls) == at:
                fitting.cancel()
                if when == "before":
                    raise ConnectionAbortedError

        setattr(service, when, kill)
        await asyncio.wait([fitting])
        setattr(service, when, lambda _: None)
        if not fitting.cancelled():
            assert cut > 7  # list files, upload, list jobs twice, start, look twice, model, curve
            break
        await training(service, run, seed=cut).fit({"ada": rows()}, NOTES.append)
        assert (len(service.files) - made, len(service.jobs) - begun) == (1, 1), cut
        found = read_hosted(run / "adapters" / "ada" / "v1")
        assert found is not None and found.hosted.job == f"ftjob-{begun}"
    else:
        raise AssertionError("it never came to its end")


@pytest.mark.asyncio
async def test_a_start_that_was_not_answered_is_looked_for(service: FakeFinetuning, tmp_path: Path) -> None:
    service.lose_creates, service.ready_after = 1, 3
    service.refuse = [
        ("GET /v1/fine_tuning/jobs", 429, failed("too many active jobs")),
        ("POST /v1/files", 500, failed("oops")),
        ("GET /v1/fine_tuning/jobs/", 503, failed("later")),
    ]
    await training(service, tmp_path).fit({"ada": rows()}, NOTES.append)
    assert len(service.jobs) == 1 and service.ready_after == 0 and service.refuse == []


@pytest.mark.asyncio
async def test_who_cannot_be_trained_keeps_what_it_has(service: FakeFinetuning, tmp_path: Path) -> None:
    hosted = training(service, tmp_path, "ada", "bo", "cy")
    few = {"ada": rows(), "bo": rows(9, "bo"), "cy": rows(10, "cy") + rows(3, "cy", finish_reason="length")}
    warning, _ = await hosted.fit(few, NOTES.append)
    assert warning == (
        "bo@r-v1: 9 rows to learn from, and a service trains on no fewer than 10; debate more tasks, or lower "
        "train.min_support; cy@r-v1: 3 of 13 rows were not sent; of d0: a reply in it was cut off at max_tokens, and "
        "would be learned as one that ends there"
    )
    assert service.begun == {"ada@r-v1": 1, "cy@r-v1": 1}
    trained = hosted.register(Registry(tmp_path / "adapters"), recipe_hash="h", iteration=1)
    assert [item.agent for item in trained] == ["ada", "cy"]
    alone = training(service, tmp_path / "alone", "bo")
    with pytest.raises(TrainerError, match="bo@r-v1: 9 rows"):
        await alone.fit(few, NOTES.append)


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("ends", "error", "told"),
    [
        (
            ("failed", {"code": "invalid_training_file", "message": "moderation", "param": None}),
            TrainerError,
            "ada@r-v1: job ftjob-0 at http.*/v1: failed: moderation",
        ),
        (("cancelled", None), TrainerError, "cancelled: no reason given"),
        (
            ("failed", {"code": "exceeded_quota", "message": "exceeds your hard limit", "param": None}),
            PausedError,
            r"model 'gpt' was refused \(quota\): job ftjob-0 .*hard limit; mend it, then go on with `moot resume RUN`",
        ),
    ],
)
async def test_a_job_that_fails_is_one_sentence_and_is_begun_anew(
    service: FakeFinetuning, tmp_path: Path, ends: Any, error: type[Exception], told: str
) -> None:
    service.ends = [ends]
    with pytest.raises(error, match=told):
        await training(service, tmp_path).fit({"ada": rows()}, NOTES.append)
    await training(service, tmp_path).fit({"ada": rows()}, NOTES.append)
    assert len(service.jobs) == 2 and len(service.files) == 1  # the rows are there already


@pytest.mark.asyncio
async def test_a_refused_key_pauses_and_is_written_nowhere(
    service: FakeFinetuning, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    service.key, wrong = "sk-" + "right-0123456789", "sk-" + "wrong-0123456789"
    hosted = training(service, tmp_path)
    job = hosted.jobs[0]
    named = OpenAISettings(
        model=BASE, base_url=job.service.base_url, finetune=job.service.finetune, api_key_env="MOOT_TEST_KEY"
    )
    hosted.jobs[0] = HostedJob(
        agent="ada", name=job.name, version=1, output=job.output, model="gpt", service=named, training_price=1.0
    )
    with pytest.raises(AgentError, match="MOOT_TEST_KEY"):
        await hosted.fit({"ada": rows()}, NOTES.append)
    monkeypatch.setenv("MOOT_TEST_KEY", wrong)
    with pytest.raises(PausedError, match=r"does not accept the key .*MOOT_TEST_KEY") as caught:
        await hosted.fit({"ada": rows()}, NOTES.append)
    monkeypatch.setenv("MOOT_TEST_KEY", service.key)
    await hosted.fit({"ada": rows()}, NOTES.append)
    texts = [path.read_text() for path in tmp_path.rglob("*") if path.is_file()] + [str(caught.value), *NOTES]
    assert len(texts) > 3 and not any(key[-9:] in text for text in texts for key in (service.key, wrong))


@pytest.mark.asyncio
async def test_losses_that_are_not_told_are_no_loss(service: FakeFinetuning, tmp_path: Path) -> None:
    events = ("GET /v1/fine_tuning/jobs/ftjob-0/events", 404, failed("no such page"))
    service.refuse = [events]
    hosted = training(service, tmp_path)
    assert (await hosted.fit({"ada": rows()}, NOTES.append))[0] == ""
    hosted.register(registry := Registry(tmp_path / "adapters"), recipe_hash="h", iteration=1)
    (record,) = registry.list()
    assert record.metrics["steps"] == 0 and "final_loss" not in record.metrics


@pytest.mark.asyncio
async def test_a_full_disk_pauses_and_gives_up_no_job(service: FakeFinetuning, tmp_path: Path) -> None:
    (tmp_path / "adapters").write_text("in the way of a folder")
    with pytest.raises(PausedError, match=r"adapters.* cannot be written: .*; free the disk, then go on"):
        await training(service, tmp_path).fit({"ada": rows()}, NOTES.append)
    (tmp_path / "adapters").unlink()
    await training(service, tmp_path).fit({"ada": rows()}, NOTES.append)
    assert len(service.jobs) == 1


@pytest.mark.asyncio
async def test_a_wait_has_its_end_and_is_taken_up_again(service: FakeFinetuning, tmp_path: Path) -> None:
    service.held = True
    with pytest.raises(
        PausedError, match=r"longer than models\.gpt\.finetune\.max_wait_s=0\.2: job ftjob-0 is not over"
    ):
        await training(service, tmp_path, max_wait_s=0.2).fit({"ada": rows()}, NOTES.append)
    service.held = False
    await training(service, tmp_path, max_wait_s=20).fit({"ada": rows()}, NOTES.append)
    assert len(service.jobs) == 1


@pytest.mark.asyncio
async def test_a_training_that_may_not_fit_into_the_budget_is_not_begun(
    service: FakeFinetuning, tmp_path: Path
) -> None:
    hosted = training(service, tmp_path, "ada", "bo", epochs=2, price=8.0)
    both = {"ada": rows(), "bo": rows(agent="bo")}
    most = 2 * 8 * max(len(hosted_rows(found).lines) for found in both.values()) / 1e6
    service.held = True
    with pytest.raises(PausedError, match=r"paused: training (ada|bo)@r-v1 may cost up to \$0\.0\d+, and .* are left"):
        await hosted.fit(both, NOTES.append, left_usd=most * 1.9)
    assert service.begun.total() <= 1
    running = asyncio.ensure_future(hosted.fit({"ada": rows()}, NOTES.append))
    while not service.begun["ada@r-v1"] and not running.done():
        await asyncio.sleep(0.01)
    running.cancel()
    with pytest.raises(PausedError, match="training bo@r-v1 may cost"):  # what is begun goes on, and its most is spent
        await hosted.fit(both, NOTES.append, left_usd=most * 0.9)
    service.held = False
    await hosted.fit(both, NOTES.append, left_usd=most * 2)
    assert service.begun == {"ada@r-v1": 1, "bo@r-v1": 1}


@pytest.mark.asyncio
async def test_a_keeper_is_told_what_trainings_cost() -> None:
    keeper = Keeper(Budget(usd=5.0), Amount(1.0, 10))
    await keeper.charge(Amount(2.5))
    assert await keeper.spent() == Amount(3.5, 10)


@pytest.mark.asyncio
async def test_of_several_trainings_all_must_fail_for_none() -> None:
    async def fitted(said: str | Exception) -> str:
        if isinstance(said, Exception):
            raise said
        return said

    assert await all_fitted([fitted("a"), fitted(TrainerError("b")), fitted("")]) == ["a", "b"]
    with pytest.raises(TrainerError, match="a; b"):
        await all_fitted([fitted(TrainerError("a")), fitted(TrainerError("b"))])
    with pytest.raises(PausedError, match="b"):
        await all_fitted([fitted("a"), fitted(PausedError("b"))])


DATA: dict[str, Any] = {
    "name": "try-it",
    "tasks": {"source": "arithmetic", "level": "add30", "train": 4, "test": 4},
    "models": {"gpt": {"backend": "openai", "model": "gpt-4o-mini", "finetune": {"epochs": 2}}},
    "agents": {"ada": {"model": "gpt"}, "bo": {"model": "gpt"}},
    "protocol": {"name": "society", "rounds": 2},
    "cast": {"generator": ["ada", "bo"]},
}


def built(*overrides: str) -> Recipe:
    data = json.loads(json.dumps(DATA))
    for override in overrides:
        apply_override(data, override)
    return build_recipe(data, where="r.yaml")


def test_a_recipe_says_who_is_trained_where() -> None:
    assert built().hosted == ("ada", "bo") and base_model_of(built()) == ""
    some = built("models.local={backend: vllm, model: /models/base}", "agents.bo.model=local")
    assert some.hosted == ("ada",) and base_model_of(some) == "/models/base"
    jsonschema.validate(DATA, recipe_schema())
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(
            DATA | {"models": {"gpt": DATA["models"]["gpt"] | {"finetune": {"epoch": 1}}}}, recipe_schema()
        )


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("models.gpt.finetune.epochs=0", "epochs=0 must be above 0"),
        ("models.gpt.finetune.epoch=1", "models.gpt.finetune.epoch=1 is not known; did you mean 'epochs'?"),
        ("models.gpt.finetune.suffix='a b'", "suffix='a b' must be up to 64 letters"),
        ("models.gpt.finetune.poll_s=500", "poll_s=500 and max_poll_s=120 must be numbers above 0"),
        ("models.gpt.finetune.max_wait_s=0", "max_wait_s=0 must be a number above 0"),
        ("models.gpt.batch={}", "a batch is for one model, and with finetune every agent gets a model of its own"),
        ("models.gpt.lora=true", "lora is for adapters that are trained here"),
        ("models.gpt.base_url=https://r.openai.azure.com/openai/v1", "finetune is not for Azure"),
        ("models.gpt={backend: azure, endpoint: 'https://r', deployment: d, finetune: {}}", "finetune={} is not known"),
        ("models.gpt={backend: scripted, finetune: {}}", "models.gpt.finetune={} is not known"),
        ("train.base_model=embedded", "its service trains ada, while train.base_model='embedded' would train it here"),
        ("loop.preferences=true", "its service trains ada, and preferences are learned here, on top of an adapter"),
        ("run.budget.usd=5", "run.budget.usd=5 needs to know the most that a training may cost; set finetune.epochs"),
        ("models.gpt.price={input: 1, output: 1, training: -1}", "training=-1.0 must be a number of US dollars"),
    ],
)
def test_what_does_not_go_with_it_is_one_sentence(override: str, told: str) -> None:
    with pytest.raises(ConfigError) as caught:
        built(override)
    assert told in str(caught.value)


def test_the_page_shows_a_recipe_that_is_one() -> None:
    page = (Path(__file__).parents[3] / "docs" / "hosted.md").read_text(encoding="utf-8")
    shown = yaml.safe_load(page.partition("```yaml\n")[2].partition("```")[0])
    assert build_recipe(shown, where="hosted.md").hosted == ("generator-1", "generator-2", "generator-3")


def test_a_budget_is_kept_where_prices_are_known() -> None:
    priced = "models.gpt.price={input: 1, output: 1, training: 3}"
    built("run.budget.usd=5", priced)
    built("run.budget.tokens=5", "loop.staleness=1")
    with pytest.raises(ConfigError, match=r"loop\.staleness=1 its service trains ada while debates go on.*usd=5;"):
        built("run.budget.usd=5", priced, "loop.staleness=1")


def test_other_settings_of_a_training_change_no_debate(tmp_path: Path) -> None:
    old = folder_with(tmp_path / "run", [])
    old.manifest.recipe, old.manifest.files = built().source, built().files
    assert _touched(old, built("models.gpt.finetune.epochs=3")) == ""
    assert "models.gpt.model" in _touched(old, built("models.gpt.model=gpt-4o"))
