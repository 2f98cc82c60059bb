"""Fine-tuning jobs as our endpoint asks for them, against a stand-in that the service's own client drives as well."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path

import openai
import pytest
import pytest_asyncio
from openai.types.fine_tuning import FineTuningJob, FineTuningJobEvent

from actors.limits.prices import Meter, Price
from actors.models.backend import AdapterRef
from actors.models.response_cache import CacheSettings, ResponseCache
from actors.services.batch_book import BatchSettings
from actors.services.batched import BatchedBackend
from actors.services.openai_batches import OpenAIBatches
from actors.services.openai_chat import ChatBackend
from actors.services.openai_finetuning import OpenAIFinetuning, Order
from actors.services.openai_settings import FinetuneSettings, OpenAISettings
from protocols.errors import AgentError, ReplyError
from protocols.message import Usage, user
from tests.actors.fake_api import ask, failed
from tests.actors.fake_finetuning import BASE, FakeFinetuning, fake_finetuning

pytestmark = pytest.mark.asyncio

ROWS = b"".join(
    json.dumps(
        {"messages": [{"role": "user", "content": f"{n}?"}, {"role": "assistant", "content": str(n), "weight": 1}]}
    ).encode()
    + b"\n"
    for n in range(12)
)
ORDER = Order(tag="ada@r-v1", key="k" * 64, base=BASE, suffix="ada-v1")
TUNED = AdapterRef(name="ada@r-v1", agent="ada", path="nowhere", model=f"ft:{BASE}:org-1:ada-v1:0")


@pytest_asyncio.fixture
async def service() -> AsyncIterator[FakeFinetuning]:
    async with fake_finetuning() as service:
        yield service


def settings(service: FakeFinetuning, **finetune: object) -> OpenAISettings:
    chosen = FinetuneSettings(**finetune)  # type: ignore[arg-type]
    return OpenAISettings(model=BASE, base_url=f"{service.url}/v1", finetune=chosen)


@pytest_asyncio.fixture
async def jobs(service: FakeFinetuning) -> AsyncIterator[OpenAIFinetuning]:
    jobs = OpenAIFinetuning(settings(service, epochs=2, batch_size=3, learning_rate_multiplier=0.5, seed=11))
    jobs.open()
    yield jobs
    await jobs.close()


async def test_openai_s_client_reads_what_was_begun_here(service: FakeFinetuning, jobs: OpenAIFinetuning) -> None:
    begun = await jobs.start(ORDER, await jobs.upload(ORDER, ROWS))
    async with openai.AsyncOpenAI(base_url=f"{service.url}/v1", api_key="k", max_retries=0) as client:
        (file,) = (await client.files.list(purpose="fine-tune", limit=10)).data
        assert (file.filename, file.bytes) == (ORDER.file_name, len(ROWS))
        (listed,) = (await client.fine_tuning.jobs.list(metadata={"moot_adapter": ORDER.tag})).data
        assert listed.id == begun.id and listed.metadata == {"moot_adapter": ORDER.tag, "moot_key": ORDER.key}
        for status in ("running", "succeeded"):
            job = await client.fine_tuning.jobs.retrieve(begun.id)
            assert job.status == status
            FineTuningJob.model_validate(job.model_dump(), strict=True)
        assert job.method is not None and job.method.supervised is not None and job.seed == 11
        chosen = job.method.supervised.hyperparameters
        assert chosen is not None
        assert (chosen.n_epochs, chosen.batch_size, chosen.learning_rate_multiplier) == (2, 3, 0.5)
        events = [event async for event in client.fine_tuning.jobs.list_events(begun.id, limit=3)]
        assert len(events) == 9 and [FineTuningJobEvent.model_validate(event.model_dump()) for event in events]
        assert job.fine_tuned_model is not None
        assert (await client.models.retrieve(job.fine_tuned_model)).id == job.fine_tuned_model
    assert service.files["file-0"].data == ROWS
    assert await jobs.look(begun.id) == await jobs.find_job(ORDER)
    assert [(point.step, point.loss) for point in await jobs.curve(begun.id)] == [(n, 1 / n) for n in range(1, 9)]


async def test_what_the_service_may_choose_is_not_sent(service: FakeFinetuning) -> None:
    jobs = OpenAIFinetuning(settings(service))
    jobs.open()
    await jobs.start(ORDER, await jobs.upload(ORDER, ROWS))
    await jobs.close()
    (body,) = (job.body for job in service.jobs.values())
    assert set(body) == {"model", "training_file", "suffix", "method", "metadata"}
    assert body["method"] == {"type": "supervised", "supervised": {"hyperparameters": {}}}


async def test_files_and_jobs_are_found_again_however_many_there_are(
    service: FakeFinetuning, jobs: OpenAIFinetuning
) -> None:
    assert await jobs.find_file(ORDER, len(ROWS)) == "" and await jobs.find_job(ORDER) is None
    file = await jobs.upload(ORDER, ROWS)
    assert await jobs.find_file(ORDER, len(ROWS)) == file and await jobs.find_file(ORDER, 3) == ""
    mine = await jobs.start(ORDER, file)
    for number in range(120):  # more than a page
        await jobs.start(Order(tag=ORDER.tag, key=str(number), base=BASE, suffix="x"), file)
    found = await jobs.find_job(ORDER)
    assert found is not None and found.id == mine.id
    for status in ("failed", "cancelled"):  # another is to be begun
        service.jobs[mine.id].status = status
        assert await jobs.find_job(ORDER) is None


@pytest.mark.parametrize(
    ("status", "body", "kind", "told"),
    [
        (401, failed("Incorrect API key provided: sk-" + "abc123456789"), "authentication", "does not accept the key"),
        (429, failed("You have reached the limit of 3 active jobs"), "rate_limited", "limit of 3 active jobs"),
        (400, failed("over your hard limit", code="exceeded_quota"), "quota", "over your hard limit"),
        (404, failed("Model x is not available"), "malformed", "/fine_tuning/jobs has no model"),
        (500, failed("oops"), "transient", "oops"),
    ],
)
async def test_a_refusal_has_its_kind_and_names_the_jobs(
    service: FakeFinetuning, jobs: OpenAIFinetuning, status: int, body: dict[str, object], kind: str, told: str
) -> None:
    service.refuse = [("POST /v1/fine_tuning/jobs", status, body)]
    with pytest.raises(ReplyError) as caught:
        await jobs.start(ORDER, "file-0")
    assert caught.value.kind == kind and told in str(caught.value) and "abc123456789" not in str(caught.value)
    assert "/chat/completions" not in str(caught.value)


async def test_a_hosted_version_answers_by_its_model_s_id(service: FakeFinetuning, jobs: OpenAIFinetuning) -> None:
    backend = ChatBackend(settings(service))
    assert (await backend.start()).takes_adapters
    try:
        with pytest.raises(AgentError, match=r"has no model 'ft:.*' for this key"):
            await backend.load_adapter(TUNED)
        begun = await jobs.start(ORDER, await jobs.upload(ORDER, ROWS))
        while not (await jobs.look(begun.id)).over:
            pass
        scope = failed("You have insufficient permissions: missing scopes: api.model.read")
        service.refuse = [("GET /v1/models/", 503, failed("later")), ("GET /v1/models/", 403, scope)]
        await backend.load_adapter(TUNED)  # nobody says that it is not there
        await backend.load_adapter(TUNED)
        await backend.load_adapter(TUNED)
        service.refuse = [("GET /v1/models/", 401, failed("Incorrect API key provided"))]
        with pytest.raises(ReplyError, match="does not accept the key"):
            await backend.load_adapter(TUNED)
        with pytest.raises(AgentError, match="a batch is for one; leave out batch"):
            await BatchedBackend(backend, OpenAIBatches(backend, service.url), BatchSettings()).load_adapter(TUNED)
        reply = await backend.generate(ask(user("What is 2 + 3?")), TUNED)
        assert (reply.model, reply.adapter) == (TUNED.model, TUNED.name)
        assert (await backend.generate(ask(user("What is 2 + 3?")), None)).model == BASE
        await backend.unload_adapter(TUNED)
    finally:
        await backend.close()
    assert service.spoke == {TUNED.model: 1, BASE: 1}


async def test_cached_replies_are_of_one_hosted_version(tmp_path: Path) -> None:
    cache = ResponseCache(CacheSettings(path=str(tmp_path)), "openai", OpenAISettings(model=BASE))
    this = ask(temperature=0.0)
    assert cache.key(this, TUNED) == ""
    await cache.learn(TUNED)
    other = AdapterRef(name="ada@other-v1", agent="ada", path="nowhere", model=TUNED.model)
    await cache.learn(other)
    assert cache.key(this, None) != cache.key(this, TUNED) == cache.key(this, other) != ""


async def test_tuned_tokens_have_their_price() -> None:
    price = Price(input=1.0, output=2.0, cached_input=0.5, tuned_input=4.0, tuned_output=8.0)
    meter, usage = Meter(price), Usage(1_000_000, 1_000_000, cached_tokens=1_000_000)
    assert (meter.cost_usd(usage), meter.cost_usd(usage, tuned=True)) == (2.5, 12.0)
    assert price.most_usd(1_000_000, 1_000_000) == 12.0
    assert Meter(Price(input=1.0, output=2.0)).cost_usd(usage, tuned=True) == 3.0
