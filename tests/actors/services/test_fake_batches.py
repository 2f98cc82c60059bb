"""Our stand-in for the batch services, driven by the services' own clients: what they take is what ours must take."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import anthropic
import openai
import pytest
import pytest_asyncio

from tests.actors.fake_api import failed, said
from tests.actors.fake_batches import FakeBatches, Outcome, claude_error, fake_batches, message

pytestmark = pytest.mark.asyncio


def outcome(body: dict[str, Any]) -> Outcome:
    """By the last word that a row says."""
    content = body["messages"][-1]["content"]
    match content if isinstance(content, str) else content[-1]["text"]:
        case "fine":
            return 200, said("Yes.") if "max_completion_tokens" in body else message("Yes.")
        case "wrong":
            return 400, failed("no") if "max_completion_tokens" in body else claude_error("invalid_request_error")
        case _:
            return "expired"


@pytest_asyncio.fixture
async def service() -> AsyncIterator[FakeBatches]:
    async with fake_batches(outcome) as service:
        yield service


WORDS = ("fine", "wrong", "late")


async def test_openai_s_client_finds_its_batches_here(service: FakeBatches) -> None:
    rows = [
        {
            "custom_id": word,
            "method": "POST",
            "url": "/v1/chat/completions",
            "body": {"model": "m", "max_completion_tokens": 5, "messages": [{"role": "user", "content": word}]},
        }
        for word in WORDS
    ]
    async with openai.AsyncOpenAI(base_url=f"{service.url}/v1", api_key="k", max_retries=0) as client:
        data = "".join(json.dumps(row) + "\n" for row in rows).encode()
        file = await client.files.create(file=("rows.jsonl", data), purpose="batch")
        assert (file.bytes, file.purpose) == (len(data), "batch")
        batch = await client.batches.create(
            input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h", metadata={"a": "b"}
        )
        assert batch.status == "validating" and batch.metadata == {"a": "b"}
        for status in ("in_progress", "expired"):
            batch = await client.batches.retrieve(batch.id)
            assert batch.status == status
        assert batch.output_file_id and batch.error_file_id
        out = (await client.files.content(batch.output_file_id)).text.splitlines()
        errors = (await client.files.content(batch.error_file_id)).text.splitlines()
        assert [json.loads(line)["custom_id"] for line in out] == ["fine"]
        assert [json.loads(line)["custom_id"] for line in errors] == ["late", "wrong"]
        second = await client.batches.create(
            input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h"
        )
        assert (await client.batches.cancel(second.id)).status == "cancelling"
        assert (await client.batches.retrieve(second.id)).status == "cancelled"
        assert [item.id async for item in client.batches.list(limit=1)] == [second.id, batch.id]
        with pytest.raises(openai.NotFoundError):
            await client.batches.retrieve("batch_none")


async def test_anthropic_s_client_finds_its_batches_here(service: FakeBatches) -> None:
    async with anthropic.AsyncAnthropic(base_url=service.url, api_key="k", max_retries=0) as client:
        batches = client.messages.batches
        batch = await batches.create(
            requests=[
                {
                    "custom_id": word,
                    "params": {"model": "m", "max_tokens": 5, "messages": [{"role": "user", "content": word}]},
                }
                for word in WORDS
            ]
        )
        assert batch.processing_status == "in_progress" and batch.request_counts.processing == 3
        for status in ("in_progress", "ended"):
            batch = await batches.retrieve(batch.id)
            assert batch.processing_status == status
        found = {line.custom_id: line.result.type async for line in await batches.results(batch.id)}
        assert found == {"fine": "succeeded", "wrong": "errored", "late": "expired"}
        counts = batch.request_counts
        assert (counts.succeeded, counts.errored, counts.expired, counts.processing) == (1, 1, 1, 0)
        second = await batches.create(
            requests=[{"custom_id": "x", "params": {"model": "m", "max_tokens": 5, "messages": []}}]
        )
        assert (await batches.cancel(second.id)).processing_status == "canceling"
        await batches.retrieve(second.id)
        assert [line.result.type async for line in await batches.results(second.id)] == ["canceled"]
        assert [item.id async for item in batches.list(limit=1)] == [second.id, batch.id]
        for wrong in ("a.b", "x" * 65):
            with pytest.raises(anthropic.BadRequestError):
                await batches.create(
                    requests=[{"custom_id": wrong, "params": {"model": "m", "max_tokens": 5, "messages": []}}]
                )
