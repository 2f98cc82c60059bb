"""The OpenAI dialect: what is sent, how replies are read, what each refusal means; the openai package as oracle."""

from __future__ import annotations

import base64
import contextlib
import json
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import openai
import pydantic
import pytest
import pytest_asyncio
from hypothesis import given
from hypothesis import strategies as st
from openai.types.shared_params import ResponseFormatJSONSchema

from actors.catalogue import BACKENDS
from actors.limits.gate import RateHint
from actors.models.backend import AdapterRef
from actors.services.api_errors import Place, openai_error
from actors.services.api_key import NO_KEY
from actors.services.http_client import Answer
from actors.services.openai_chat import AzureSettings, ChatBackend, OpenAISettings
from actors.services.openai_settings import ChatSettings
from protocols.errors import AgentError, ReplyError
from protocols.message import Reply, Usage, assistant, system, user
from tests.actors.fake_api import IMAGE, KEY, PART, FakeApi, ask, asked, failed, fake_api, said


@pytest_asyncio.fixture
async def api() -> AsyncIterator[FakeApi]:
    async with fake_api() as api:
        api.answer(said())
        yield api


# what is sent


@pytest.mark.asyncio
async def test_a_request_says_what_the_ask_says(api: FakeApi) -> None:
    what = ask(
        system("Be brief."), user("2 + 2?"), assistant("5"), user("Sure?"), temperature=1.0, seed=7, stop=("END",)
    )
    await asked(api, what, extra_body={"top_k": 3}, response_format={"type": "json_object"})
    assert api.paths[-1] == "/v1/chat/completions"
    assert "authorization" not in api.headers[-1]  # no key was named, and none is needed here
    assert api.requests == [
        {
            "model": "m",
            "messages": [
                {"role": "system", "content": "Be brief."},
                {"role": "user", "content": "2 + 2?"},
                {"role": "assistant", "content": "5"},
                {"role": "user", "content": "Sure?"},
            ],
            "temperature": 1.0,
            "top_p": 1.0,
            "max_tokens": 512,
            "stop": ["END"],
            "seed": 7,
            "response_format": {"type": "json_object"},
            "top_k": 3,
        }
    ]


@pytest.mark.parametrize(
    ("settings", "sampling", "expected"),
    [
        (OpenAISettings(model="m"), {}, {"max_completion_tokens": 512}),
        (
            OpenAISettings(model="m"),
            {"temperature": 0.5, "top_p": 0.9},
            {"temperature", "top_p", "max_completion_tokens"},
        ),
        (OpenAISettings(model="m", max_tokens_field="max_tokens"), {}, {"max_tokens": 512}),
        (
            OpenAISettings(model="m", base_url="http://h/v1"),
            {"seed": 1},
            {"temperature", "top_p", "max_tokens", "seed"},
        ),
        (
            OpenAISettings(
                model="m", base_url="http://h/v1", omit=("seed", "temperature", "top_p", "stop", "max_tokens")
            ),
            {"seed": 1, "stop": ("x",)},
            {},
        ),
        (
            OpenAISettings(model="m", base_url="https://generativelanguage.googleapis.com/v1beta/openai"),
            {"seed": 1},
            {"temperature", "top_p", "max_tokens"},
        ),
        (
            AzureSettings(endpoint="https://r.openai.azure.com", deployment="d"),
            {"seed": 1},
            {"max_completion_tokens", "seed"},
        ),
        (
            OpenAISettings(model="m", base_url="http://h/v1", keep_logprobs=True),
            {},
            {"temperature", "top_p", "max_tokens", "logprobs", "return_token_ids"},
        ),
    ],
)
def test_each_service_gets_the_fields_it_takes(
    settings: ChatSettings, sampling: dict[str, Any], expected: dict[str, Any] | set[str]
) -> None:
    assert isinstance(settings, OpenAISettings | AzureSettings)
    body = ChatBackend(settings)._request(ask(**sampling), None)
    body = {name: value for name, value in body.items() if name not in ("model", "messages")}
    assert body == expected if isinstance(expected, dict) else body.keys() == expected


SCHEMA = (
    '{"type":"object","properties":{"b":{"type":"string"},"a":{}},"required":["b","a"],"additionalProperties":false}'
)


@pytest.mark.asyncio
async def test_a_schema_is_sent_as_the_openai_package_has_it_unless_the_settings_say_the_form(api: FakeApi) -> None:
    what = msgspec.structs.replace(ask(), schema=SCHEMA)
    await asked(api, what)
    sent = api.requests[-1]["response_format"]
    assert pydantic.TypeAdapter(ResponseFormatJSONSchema).validate_python(sent) == sent
    assert sent["json_schema"]["strict"] is True and sent["json_schema"]["name"].isidentifier()
    assert json.dumps(sent["json_schema"]["schema"], separators=(",", ":")) == SCHEMA  # fields in their order
    for own in ({"response_format": {"type": "json_object"}}, {"extra_body": {"response_format": {"type": "text"}}}):
        await asked(api, what, **own)
        assert api.requests[-1]["response_format"] in ({"type": "json_object"}, {"type": "text"})
        assert not BACKENDS["openai"].holds_schema(OpenAISettings(model="m", **own))
    azure = AzureSettings(endpoint="https://r.openai.azure.com", deployment="d")
    body = json.loads(msgspec.json.encode(ChatBackend(azure)._request(what, None)))
    assert body["response_format"] == sent and BACKENDS["azure"].holds_schema(azure)


@pytest.mark.asyncio
async def test_images_go_as_data_addresses_in_reading_order(api: FakeApi) -> None:
    await asked(api, ask(user("What is it?", [PART])), images=True, image_detail="low")
    address = "data:image/png;base64," + base64.b64encode(IMAGE).decode()
    assert api.requests[0]["messages"][0]["content"] == [
        {"type": "image_url", "image_url": {"url": address, "detail": "low"}},
        {"type": "text", "text": "What is it?"},
    ]
    with pytest.raises(ReplyError, match="set images: true") as caught:
        await asked(api, ask(user("What is it?", [PART])))
    assert caught.value.kind == "malformed"
    assert len(api.requests) == 1


@pytest.mark.asyncio
async def test_a_large_body_arrives_whole(api: FakeApi) -> None:
    text = "é" * 3_000_000
    await asked(api, ask(user(text)))
    assert api.requests[0]["messages"][0]["content"] == text


@pytest.mark.asyncio
async def test_azure_s_deployment_is_in_the_address_and_its_key_in_a_header(
    api: FakeApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AZURE_OPENAI_API_KEY", KEY)
    backend = ChatBackend(AzureSettings(endpoint=api.url + "/", deployment="gpt/5 mini", api_version="2025-01-01"))
    info = await backend.start()
    reply = await backend.generate(ask(), None)
    await backend.close()
    assert info.model == reply.model == "gpt/5 mini"
    assert api.paths == ["/openai/deployments/gpt%2F5%20mini/chat/completions?api-version=2025-01-01"]
    assert api.headers[0]["api-key"] == KEY
    assert "authorization" not in api.headers[0]


@pytest.mark.asyncio
async def test_an_adapter_is_loaded_by_name_and_then_asked_by_name(api: FakeApi) -> None:
    adapter = AdapterRef(name="ada@r-v1", agent="ada", path="/runs/r/adapters/ada/v1")
    backend = ChatBackend(OpenAISettings(model="m", base_url=f"{api.url}/v1", lora=True))
    assert (await backend.start()).takes_adapters
    await backend.load_adapter(adapter)
    reply = await backend.generate(ask(), adapter)
    await backend.unload_adapter(adapter)
    assert api.paths[1:] == ["/v1/load_lora_adapter", "/v1/chat/completions", "/v1/unload_lora_adapter"]
    assert api.requests[0] == {"lora_name": adapter.name, "lora_path": adapter.path}
    assert (api.requests[1]["model"], api.requests[2]) == (adapter.name, {"lora_name": adapter.name})
    assert (reply.model, reply.adapter) == ("m", adapter.name)
    api.answer({"error": {"message": "No such folder", "code": 404}}, 404)
    with pytest.raises(AgentError, match=r"'ada@r-v1' is not taken: .*No such folder"):
        await backend.load_adapter(adapter)
    api.answer({"error": {"message": "The lora adapter 'ada@r-v1' has already been loaded."}}, 400)
    await backend.load_adapter(adapter)  # a host that was restarted
    await backend.close()
    with pytest.raises(AgentError, match="set lora: true"):
        await ChatBackend(OpenAISettings(model="m")).load_adapter(adapter)


# how replies are read


@pytest.mark.asyncio
async def test_a_reply_carries_text_finish_and_usage(api: FakeApi) -> None:
    api.answer(said("Four.", "length", reasoning_content="2 and 2", reasoning="2 and 2", annotations=[]))
    reply = await asked(api, ask())
    assert (reply.text, reply.finish_reason, reply.model, reply.ask_id) == ("Four.", "length", "m", "d1#0.open.ada")
    assert reply.usage == Usage(12, 7, cached_tokens=8, image_tokens=3, reasoning_tokens=4)
    assert reply.latency_s > 0
    assert (reply.token_ids, reply.logprobs) == ((), ())


@pytest.mark.parametrize(
    ("finish", "expected"),
    [("stop", "stop"), ("eos", "stop"), ("length", "length"), ("tool_calls", "other"), (None, "other")],
)
def test_finish_reasons(finish: str | None, expected: str) -> None:
    assert read(said("x", finish)).finish_reason == expected


def read(body: Any) -> Reply:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    backend = ChatBackend(OpenAISettings(model="m", base_url="http://h/v1"))
    return backend._read(Answer(200, {}, data), ask(), None, 0.1)


def test_a_reply_in_parts_leaves_its_thinking_out() -> None:
    body = said()
    body["choices"][0]["message"]["content"] = [
        {"type": "thinking", "thinking": [{"type": "text", "text": "hm"}], "text": "hm"},
        {"type": "text", "text": "Four"},
        {"type": "text", "text": "."},
    ]
    assert read(body).text == "Four."
    assert read(said(None, "length")).text == ""  # all tokens were thought: it was paid for, and is on record


def test_token_ids_are_kept_and_logprobs_only_one_for_one() -> None:
    body = said()
    body["choices"][0] |= {"token_ids": [5, 6], "logprobs": {"content": [{"logprob": -0.5}, {"logprob": -1.25}]}}
    reply = read(body)
    assert (reply.token_ids, reply.logprobs) == ((5, 6), (-0.5, -1.25))
    body["choices"][0]["logprobs"]["content"].append({"logprob": -2.0})
    assert (read(body).token_ids, read(body).logprobs) == ((5, 6), ())
    body["choices"][0]["token_ids"] = None  # texts of tokens are no tokens
    assert (read(body).token_ids, read(body).logprobs) == ((), ())


def test_missing_and_null_figures_count_as_none() -> None:
    body = said()
    body["usage"] = {"prompt_tokens": 3, "prompt_tokens_details": None, "completion_tokens_details": {"x": 1}}
    assert read(body).usage == Usage(3, 0)
    del body["usage"]
    assert read(body).usage == Usage()


@pytest.mark.parametrize(
    "body", [said("Bomb", "content_filter"), said(None, "stop", refusal="I cannot help."), said("", refusal="No.")]
)
def test_a_refusal_is_a_refusal(body: dict[str, Any]) -> None:
    with pytest.raises(ReplyError, match="refused") as caught:
        read(body)
    assert caught.value.kind == "refused"


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"<html>Bad gateway</html>",
        b'{"choices": [{"message": {"content": "Fo',
        b'{"choices": []}',
        b'{"choices": null}',
        b"[]",
        b"\xff\xfe",
        b'{"choices": [{"message": {"content": "\xff"}}]}',
        b"[" * 100_000,
        b'{"choices": [{"message": {"content": "x"}}], "usage": {"prompt_tokens": "many"}}',
    ],
)
def test_a_reply_that_cannot_be_read_may_be_asked_for_again(body: bytes) -> None:
    with pytest.raises(ReplyError, match="no reply could be read") as caught:
        read(body)
    assert caught.value.kind == "transient"


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        ({"code": 429, "message": "slow down"}, "rate_limited"),
        ({"code": "x", "message": "?"}, "transient"),
        ({"code": 402, "message": "no money"}, "quota"),
    ],
)
def test_an_error_inside_a_status_200_is_that_error(error: dict[str, Any], kind: str) -> None:
    with pytest.raises(ReplyError) as caught:
        read({"error": error})
    assert caught.value.kind == kind


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.sampled_from(["choices", "error", "message", "content", "code",
                                                                      "details", "usage", "token_ids", "type"]), inner),
)  # fmt: skip


PLACE = Place("https://h/v1/chat/completions", "m", NO_KEY)


@given(st.binary() | json_values.map(lambda value: json.dumps(value).encode()), st.integers(200, 599))
def test_no_body_brings_anything_but_a_reply_or_its_error(body: bytes, status: int) -> None:
    assert len(str(openai_error(Answer(status, {}, body), PLACE))) < 1000
    with contextlib.suppress(ReplyError):
        read(body)


@pytest.mark.asyncio
async def test_waits_and_limits_reach_the_host(api: FakeApi) -> None:
    hints: list[RateHint] = []
    backend = ChatBackend(OpenAISettings(model="m", base_url=f"{api.url}/v1"))
    backend.on_rate = hints.append
    await backend.start()
    for status in (429, 503):
        api.answer(failed("wait"), status, retry_after_ms="1500")
        with pytest.raises(ReplyError) as caught:
            await backend.generate(ask(), None)
        assert caught.value.retry_after_s == 1.5
    gemini = [failed("quota", details=[{"@type": "x"}, {"@type": "RetryInfo", "retryDelay": "34s"}])]
    api.answer(gemini, 429)
    with pytest.raises(ReplyError) as caught:
        await backend.generate(ask(), None)
    assert caught.value.retry_after_s == 34.0
    assert hints == []
    limits = {
        "limit_requests": "500",
        "remaining_requests": "499",
        "limit_tokens": "30000",
        "remaining_tokens": "29000",
    }
    resets = {"reset_requests": "120ms", "reset_tokens": "1m2s"}
    api.answer(said(), 200, **{f"x_ratelimit_{name}": value for name, value in (limits | resets).items()})
    await backend.generate(ask(), None)
    await backend.close()
    assert hints == [
        RateHint(limit_requests=500, remaining_requests=499, limit_tokens=30000, remaining_tokens=29000, reset_s=62.0)
    ]


# the start


@pytest.mark.asyncio
async def test_a_vllm_server_tells_how_long_a_text_it_takes_and_what_it_serves(api: FakeApi) -> None:
    api.models = (200, {"data": [{"id": "m", "owned_by": "vllm", "max_model_len": 1024}]})
    backend = ChatBackend(OpenAISettings(model="m", base_url=f"{api.url}/v1", max_concurrency=9))
    info = await backend.start()
    await backend.close()
    assert (info.context_tokens, info.max_concurrency, info.takes_images) == (1024, 9, False)
    with pytest.raises(AgentError, match="has no model 'other'; it serves: m"):
        await asked(api, ask(), model="other")


@pytest.mark.parametrize("models", [(200, {"data": 5}), (200, [{"id": "m"}]), (200, "<html>"), (404, ""), (500, "")])
@pytest.mark.asyncio
async def test_a_service_without_a_list_of_models_is_asked_all_the_same(api: FakeApi, models: tuple[int, Any]) -> None:
    api.models = models
    assert (await asked(api, ask())).text == "Four."


# the oracle


@pytest.mark.asyncio
async def test_the_openai_package_sends_and_reads_the_same(api: FakeApi) -> None:
    api.answer(said("Four.", "length"))
    what = ask(system("Be brief."), user("What?", [PART]), temperature=0.5, top_p=0.9, seed=3, stop=("a", "b"))
    reply = await asked(api, what, images=True, extra_body={"top_k": 5})
    address = "data:image/png;base64," + base64.b64encode(IMAGE).decode()
    async with openai.AsyncOpenAI(base_url=f"{api.url}/v1", api_key="none", max_retries=0) as client:
        theirs = await client.chat.completions.create(
            model="m",
            messages=[
                {"role": "system", "content": "Be brief."},
                {
                    "role": "user",
                    "content": [
                        {"type": "image_url", "image_url": {"url": address, "detail": "auto"}},
                        {"type": "text", "text": "What?"},
                    ],
                },
            ],
            temperature=0.5,
            top_p=0.9,
            seed=3,
            stop=["a", "b"],
            max_tokens=512,
            extra_body={"top_k": 5},
        )
    mine, other = api.requests
    assert mine == other
    usage = theirs.usage
    assert usage is not None and usage.prompt_tokens_details is not None
    assert (reply.text, reply.finish_reason) == (theirs.choices[0].message.content, theirs.choices[0].finish_reason)
    assert (reply.usage.prompt_tokens, reply.usage.completion_tokens) == (usage.prompt_tokens, usage.completion_tokens)
    assert reply.usage.cached_tokens == usage.prompt_tokens_details.cached_tokens


@pytest.mark.asyncio
async def test_the_openai_package_s_azure_address_is_ours(api: FakeApi, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AZURE_OPENAI_API_KEY", KEY)
    backend = ChatBackend(AzureSettings(endpoint=api.url, deployment="d5", api_version="2024-10-21"))
    await backend.start()
    await backend.generate(ask(), None)
    await backend.close()
    async with openai.AsyncAzureOpenAI(
        azure_endpoint=api.url, azure_deployment="d5", api_key=KEY, api_version="2024-10-21", max_retries=0
    ) as client:
        await client.chat.completions.create(
            model="d5", messages=[{"role": "user", "content": "2 + 2?"}], max_completion_tokens=512
        )
    assert api.paths[0] == api.paths[1]
    assert api.requests[0] == api.requests[1]
    assert api.headers[0]["api-key"] == api.headers[1]["api-key"]
