"""The Anthropic dialect: what is sent, how replies are read; the anthropic package as oracle."""

from __future__ import annotations

import base64
import itertools
import json
from collections.abc import AsyncIterator
from typing import Any

import anthropic
import msgspec
import pydantic
import pytest
import pytest_asyncio
from anthropic.types import OutputConfigParam
from hypothesis import given
from hypothesis import strategies as st

from actors.catalogue import BACKENDS
from actors.limits.gate import RateHint
from actors.models.backend import AdapterRef
from actors.services.anthropic_messages import AnthropicBackend, AnthropicSettings
from actors.services.http_client import Answer
from actors.services.rate_headers import anthropic_rates
from protocols.errors import AgentError, ReplyError
from protocols.message import Ask, Message, Reply, TextPart, Usage, assistant, system, user
from tests.actors.fake_api import IMAGE, KEY, PART, FakeApi, ask, fake_api

USAGE = {
    "input_tokens": 10,
    "cache_creation_input_tokens": 5,
    "cache_read_input_tokens": 20,
    "output_tokens": 7,
    "output_tokens_details": {"thinking_tokens": 3},
}


def said(*blocks: dict[str, Any], stop: str | None = "end_turn", **more: Any) -> dict[str, Any]:
    content = list(blocks) or [{"type": "text", "text": "Four."}]
    head = {"id": "msg_1", "type": "message", "role": "assistant", "model": "m", "stop_sequence": None}
    return head | {"content": content, "stop_reason": stop, "usage": USAGE} | more


@pytest_asyncio.fixture
async def api(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[FakeApi]:
    monkeypatch.setenv("A_KEY", KEY)
    async with fake_api() as api:
        api.answer(said())
        yield api


async def asked(api: FakeApi, what: Ask, **settings: Any) -> Reply:
    given = {"model": "m", "base_url": api.url, "api_key_env": "A_KEY"} | settings
    backend = AnthropicBackend(AnthropicSettings(**given), lambda part: IMAGE)
    await backend.start()
    try:
        return await backend.generate(what, None)
    finally:
        await backend.close()


def body(*messages: Message, **sampling: Any) -> dict[str, Any]:
    return AnthropicBackend(AnthropicSettings(model="m"))._request(ask(*messages, **sampling), None)


def text(words: str) -> dict[str, str]:
    return {"type": "text", "text": words}


@pytest.mark.asyncio
async def test_a_request_says_what_the_ask_says(api: FakeApi) -> None:
    what = ask(system("Be brief."), user("2 + 2?", [PART]), temperature=0.5, top_p=0.9, max_tokens=9, stop=("END",))
    await asked(api, what, images=True, extra_body={"top_k": 3}, headers={"anthropic-beta": "x"})
    assert api.paths == ["/v1/models", "/v1/messages"]
    sent = api.headers[-1]
    assert (sent["x-api-key"], sent["anthropic-version"], sent["anthropic-beta"]) == (KEY, "2023-06-01", "x")
    data = base64.b64encode(IMAGE).decode()
    image = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": data}}
    assert api.requests == [
        {
            "model": "m",
            "max_tokens": 9,
            "system": "Be brief.",
            "messages": [{"role": "user", "content": [image, text("2 + 2?")]}],
            "temperature": 0.5,
            "top_p": 0.9,
            "stop_sequences": ["END"],
            "top_k": 3,
        }
    ]


def test_defaults_of_the_api_are_not_sent_nor_a_seed() -> None:
    assert body(user("?"), temperature=1.0, top_p=1.0, seed=5).keys() == {"model", "max_tokens", "messages"}
    assert body(user("?"), temperature=0.0)["temperature"] == 0.0
    omitting = AnthropicBackend(AnthropicSettings(model="m", omit=("temperature", "top_p", "stop")))
    drawn = ask(temperature=0.2, top_p=0.5, stop=("x",))
    assert omitting._request(drawn, None).keys() == {"model", "max_tokens", "messages"}


SCHEMA = (
    '{"type":"object","properties":{"b":{"type":"string"},"a":{}},"required":["b","a"],"additionalProperties":false}'
)


@pytest.mark.asyncio
async def test_a_schema_is_sent_as_the_anthropic_package_has_it(api: FakeApi) -> None:
    what = msgspec.structs.replace(ask(), schema=SCHEMA)
    await asked(api, what, extra_body={"output_config": {"effort": "low"}})
    sent = api.requests[-1]["output_config"]
    assert pydantic.TypeAdapter(OutputConfigParam).validate_python(sent) == sent
    assert sent["effort"] == "low" and sent["format"]["type"] == "json_schema"
    assert json.dumps(sent["format"]["schema"], separators=(",", ":")) == SCHEMA  # fields in their order
    own = AnthropicSettings(model="m", extra_body={"output_config": {"format": {"type": "json_schema", "schema": {}}}})
    assert AnthropicBackend(own)._request(what, None)["output_config"] == own.extra_body["output_config"]
    assert not BACKENDS["anthropic"].holds_schema(own)
    assert BACKENDS["anthropic"].holds_schema(AnthropicSettings(model="m"))


def test_neighbours_of_one_role_become_one_message() -> None:
    chat = body(user("a"), user("b"), assistant("c"), assistant("d \n"), system("late"), system("later"))
    assert chat["messages"] == [
        {"role": "user", "content": [text("a"), text("b")]},
        {"role": "assistant", "content": [text("c"), text("d")]},
    ]
    assert chat["system"] == "late\n\nlater"


def test_parts_without_text_are_left_out() -> None:
    chat = body(user(""), Message("user", (TextPart("a"), TextPart(""))), assistant(""), user("b"))
    assert chat["messages"] == [{"role": "user", "content": [text("a"), text("b")]}]
    assert "system" not in body(system(""), user("a"))


speakers = st.sampled_from([system, user, assistant])


@given(st.lists(st.tuples(speakers, st.text(max_size=3))))
def test_turns_alternate_and_no_text_is_lost(chat: list[tuple[Any, str]]) -> None:
    turns = body(*(speaker(words) for speaker, words in chat), user("?"))["messages"]
    roles = [turn["role"] for turn in turns]
    assert all(one != other for one, other in itertools.pairwise(roles))
    sent = "".join(block["text"] for turn in turns for block in turn["content"])
    assert sent == "".join(words for speaker, words in chat if speaker is not system) + "?"


@pytest.mark.asyncio
async def test_a_reply_carries_text_finish_and_usage(api: FakeApi) -> None:
    thought = {"type": "thinking", "thinking": "2 and 2", "signature": "s"}
    api.answer(said(thought, {"type": "redacted_thinking", "data": "x"}, text("Fo"), text("ur."), stop="max_tokens"))
    reply = await asked(api, ask())
    assert (reply.text, reply.finish_reason, reply.model) == ("Four.", "length", "m")
    assert reply.usage == Usage(35, 7, cached_tokens=20, reasoning_tokens=3)


def read(data: Any) -> Reply:
    raw = data if isinstance(data, bytes) else json.dumps(data).encode()
    return AnthropicBackend(AnthropicSettings(model="m"))._read(Answer(200, {}, raw), ask(), None, 0.1)


@pytest.mark.parametrize(
    ("stop", "expected"),
    [
        ("end_turn", "stop"),
        ("stop_sequence", "stop"),
        ("max_tokens", "length"),
        ("model_context_window_exceeded", "length"),
        ("tool_use", "other"),
        ("pause_turn", "other"),
        (None, "other"),
    ],
)
def test_stop_reasons(stop: str | None, expected: str) -> None:
    assert read(said(stop=stop)).finish_reason == expected


def test_a_refusal_is_a_refusal() -> None:
    with pytest.raises(ReplyError, match="refused to answer") as caught:
        read(said(text("I"), stop="refusal"))
    assert caught.value.kind == "refused"


@pytest.mark.parametrize(
    "data", [b"", b"<html>", b"[" * 100_000, b"\xff", {"content": None}, {"content": [{"text": "x"}]}]
)
def test_a_reply_that_cannot_be_read_may_be_asked_for_again(data: Any) -> None:
    with pytest.raises(ReplyError, match="no reply could be read") as caught:
        read(data)
    assert caught.value.kind == "transient"


@pytest.mark.asyncio
async def test_an_overload_tells_how_long_to_wait(api: FakeApi) -> None:
    api.answer({"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}}, 529, retry_after="3")
    with pytest.raises(ReplyError, match=r"transient \(status 529\): Overloaded") as caught:
        await asked(api, ask())
    assert (caught.value.kind, caught.value.retry_after_s) == ("transient", 3.0)


@pytest.mark.asyncio
async def test_limits_reach_the_host(api: FakeApi) -> None:
    hints: list[RateHint] = []
    backend = AnthropicBackend(AnthropicSettings(model="m", base_url=api.url, api_key_env="A_KEY"))
    backend.on_rate = hints.append
    await backend.start()
    await backend.generate(ask(), None)
    assert hints == []
    api.answer(said(), anthropic_ratelimit_requests_limit="50", anthropic_ratelimit_requests_remaining="49")
    await backend.generate(ask(), None)
    await backend.close()
    assert hints == [RateHint(limit_requests=50, remaining_requests=49)]


def test_resets_are_dates() -> None:
    headers = {
        "anthropic-ratelimit-tokens-limit": "40000",
        "anthropic-ratelimit-tokens-remaining": "1000",
        "anthropic-ratelimit-tokens-reset": "2026-01-01T00:00:30Z",
        "anthropic-ratelimit-requests-reset": "2026-01-01T00:00:10Z",
    }
    hint = anthropic_rates(headers, now_s=1_767_225_600.0)  # midnight
    assert hint == RateHint(limit_tokens=40000, remaining_tokens=1000, reset_s=30.0)
    assert anthropic_rates({"anthropic-ratelimit-tokens-reset": "soon"}) is None


@pytest.mark.asyncio
async def test_a_wrong_key_stops_the_start_and_is_not_shown(api: FakeApi) -> None:
    api.models = (401, {"type": "error", "error": {"type": "authentication_error", "message": f"invalid {KEY}"}})
    with pytest.raises(AgentError, match="check the environment variable A_KEY") as caught:
        await asked(api, ask())
    assert KEY not in repr(caught.value)


def test_settings_say_where_the_key_is() -> None:
    assert AnthropicSettings(model="m").key_env == "ANTHROPIC_API_KEY"
    assert AnthropicSettings(model="m", base_url="http://127.0.0.1:8000").key_env == ""
    with pytest.raises(ValueError, match="must be without /v1"):
        AnthropicSettings(model="m", base_url="http://127.0.0.1:8000/v1/")


@pytest.mark.asyncio
async def test_adapters_are_refused() -> None:
    backend = AnthropicBackend(AnthropicSettings(model="m"))
    with pytest.raises(AgentError, match="cannot be served by m"):
        await backend.load_adapter(AdapterRef(name="ada@r-v1", agent="ada", path="/x"))


@pytest.mark.asyncio
async def test_the_anthropic_package_sends_and_reads_the_same(api: FakeApi) -> None:
    what = ask(system("Be brief."), user("2 + 2?"), assistant("5"), user("Sure?"), temperature=0.5, stop=("END",))
    reply = await asked(api, what)
    async with anthropic.AsyncAnthropic(base_url=api.url, api_key=KEY, max_retries=0) as client:
        theirs = await client.messages.create(
            model="m",
            max_tokens=512,
            system="Be brief.",
            messages=[
                {"role": "user", "content": [{"type": "text", "text": "2 + 2?"}]},
                {"role": "assistant", "content": [{"type": "text", "text": "5"}]},
                {"role": "user", "content": [{"type": "text", "text": "Sure?"}]},
            ],
            stop_sequences=["END"],
            extra_body={"temperature": 0.5},
        )
    mine, other = api.requests
    assert mine == other
    assert api.headers[-2]["authorization"] == api.headers[-1]["authorization"]
    assert theirs.content[0].type == "text"
    assert reply.text == theirs.content[0].text
    assert reply.usage.completion_tokens == theirs.usage.output_tokens
    assert reply.usage.cached_tokens == theirs.usage.cache_read_input_tokens
