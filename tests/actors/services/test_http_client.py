"""Connections are kept and freed, waits are read, and keys stay where they belong."""

from __future__ import annotations

import asyncio
import logging
import pickle
import shutil
import socket
import ssl
import subprocess
import traceback
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import pytest_asyncio

from actors.services.api_key import NO_KEY
from actors.services.http_client import JsonClient, duration_s, proxy_for, retry_after_s
from actors.services.openai_chat import ChatBackend, OpenAISettings
from protocols.errors import AgentError, ReplyError
from tests.actors.fake_api import KEY, FakeApi, ask, asked, failed, fake_api, said


@pytest_asyncio.fixture
async def api() -> AsyncIterator[FakeApi]:
    async with fake_api() as api:
        api.answer(said())
        yield api


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({"retry-after": "7"}, 7.0),
        ({"retry-after": "0.5"}, 0.5),
        ({"retry-after-ms": "250", "retry-after": "7"}, 0.25),
        ({"retry-after": "Sun, 06 Nov 1994 08:49:37 GMT"}, 37.0),
        ({"retry-after": "Sun, 06 Nov 1994 08:48:37 GMT"}, 0.0),  # it is over
        ({"retry-after": "-3"}, 0.0),
        ({"retry-after": "1e300"}, 86_400.0),
        ({"retry-after": "inf"}, 86_400.0),
        ({"retry-after": "nan"}, None),
        ({"retry-after": "soon"}, None),
        ({"retry-after": ""}, None),
        ({}, None),
    ],
)
def test_the_wait_a_service_asks_for(headers: dict[str, str], expected: float | None) -> None:
    at = 784_111_740.0  # 08:49:00 on that day
    assert retry_after_s(headers, now_s=at) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1s", 1.0),
        ("6m0s", 360.0),
        ("20ms", 0.02),
        ("1h2m3.5s", 3723.5),
        ("34.074s", 34.074),
        ("", None),
        ("soon", None),
    ],
)
def test_durations(text: str, expected: float | None) -> None:
    assert duration_s(text) == expected


@pytest.mark.asyncio
async def test_an_address_where_nobody_answers_is_found_at_the_start() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and does not listen
        url = f"http://127.0.0.1:{taken.getsockname()[1]}/v1"
        backend = ChatBackend(OpenAISettings(model="m", base_url=url))
        with pytest.raises(AgentError, match=r"model 'm' cannot be reached: 127.0.0.1:\d+: no answer"):
            await backend.start()
    async with fake_api() as api:
        backend = ChatBackend(OpenAISettings(model="m", base_url=f"{api.url}/v1"))
        await backend.start()
    with pytest.raises(ReplyError, match="no answer") as caught:
        await backend.generate(ask(), None)
    assert caught.value.kind == "transient"
    await backend.close()
    with pytest.raises(ReplyError, match="not started, or closed already"):
        await backend.generate(ask(), None)


@pytest.mark.parametrize("cut", [b"", b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{", b"nonsense\r\n\r\n"])
@pytest.mark.asyncio
async def test_a_reply_that_breaks_off_may_be_asked_for_again(cut: bytes) -> None:
    async def hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        seen = await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n" if seen.startswith(b"GET") else cut)
        writer.close()

    server = await asyncio.start_server(hang_up, "127.0.0.1", 0)
    async with server:
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
        backend = ChatBackend(OpenAISettings(model="m", base_url=url))
        await backend.start()
        with pytest.raises(ReplyError, match="no answer") as caught:
            await backend.generate(ask(), None)
        assert caught.value.kind == "transient"
        await backend.close()


@pytest.mark.asyncio
async def test_connections_are_kept_and_never_the_limit(api: FakeApi) -> None:
    backend = ChatBackend(OpenAISettings(model="m", base_url=f"{api.url}/v1"))
    await backend.start()
    for _ in range(5):
        await backend.generate(ask(), None)
    assert len(api.peers) == 1
    api.latency_s = 0.3
    async with asyncio.timeout(5):  # 300 one after the other take 90 s
        replies = await asyncio.gather(*(backend.generate(ask(), None) for _ in range(300)))
    assert len(replies) == 300
    assert backend.metrics() == {
        "requests": 305,
        "replies": 305,
        "prompt_tokens": 305 * 12,
        "completion_tokens": 305 * 7,
        "cached_tokens": 305 * 8,
    }
    await backend.close()
    await backend.close()  # twice does no harm


@pytest.mark.asyncio
async def test_cancelling_a_call_hangs_up(api: FakeApi) -> None:
    api.latency_s = 60.0
    backend = ChatBackend(OpenAISettings(model="m", base_url=f"{api.url}/v1"))
    await backend.start()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.2):
            await backend.generate(ask(), None)
    async with asyncio.timeout(5):
        while not api.dropped:
            await asyncio.sleep(0.01)
    api.latency_s = 0.0
    assert (await backend.generate(ask(), None)).text == "Four."
    await backend.close()


@pytest.mark.asyncio
async def test_keys_are_not_sent_on_to_where_a_service_points(api: FakeApi, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("A_KEY", KEY)
    api.answer("", 307, Location=f"{api.url}/elsewhere")
    with pytest.raises(ReplyError, match="sends elsewhere") as caught:
        await asked(api, ask(), api_key_env="A_KEY")
    assert caught.value.kind == "malformed"
    assert "/elsewhere" not in api.paths


@pytest.mark.asyncio
async def test_the_proxy_of_the_environment_is_used(api: FakeApi, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("no_proxy", "NO_PROXY", "HTTP_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("http_proxy", api.url)
    monkeypatch.setenv("no_proxy", "inside.example")
    reply = await asked(api, ask(), base_url="http://models.example/v1")
    assert reply.text == "Four."
    assert api.headers[-1]["host"] == "models.example"
    assert proxy_for("http://inside.example/v1") is None
    for proxy in ("http://ada:" + "hush@127.0.0.1:9", "ada:hush@127.0.0.1:9", "socks5://ada:" + "x/hush@127.0.0.1:9"):
        monkeypatch.setenv("http_proxy", proxy)
        with pytest.raises(AgentError, match="no answer") as caught:
            await asked(api, ask(), base_url="http://models.example/v1")
        assert "hush" not in str(caught.value) and "127.0.0.1:9" in str(caught.value)


@pytest.mark.asyncio
async def test_a_key_is_in_its_header_and_nowhere_else(
    api: FakeApi, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    monkeypatch.setenv("A_KEY", f" {KEY}\n")
    settings = OpenAISettings(model="m", base_url=f"{api.url}/v1", api_key_env="A_KEY")
    backend = ChatBackend(settings)
    await backend.start()
    api.answer(said(f"You are {KEY}."))
    api.answers[0][1]["choices"][0]["token_ids"] = [1, 2]  # type: ignore[index,call-overload]
    reply = await backend.generate(ask(), None)
    assert (reply.text, reply.token_ids) == ("You are [key].", ())  # its tokens would spell the key
    api.answer(said(None, refusal=f"{'no ' * 90}{KEY}"))
    with pytest.raises(ReplyError, match=r"refused: no .* no \[key\]$"):  # cut in the middle of the key
        await backend.generate(ask(), None)
    api.answer(failed(f"Incorrect API key provided: {KEY}, also {KEY[:8]}***{KEY[-4:]}"), 401)
    with pytest.raises(ReplyError, match="check the environment variable A_KEY") as caught:
        await backend.generate(ask(), None)
    assert api.headers[-1]["authorization"] == f"Bearer {KEY}"
    shown = [
        *(repr(caught.value), str(caught.value), "".join(traceback.format_exception(caught.value))),
        *(repr(settings), repr(backend), repr(backend._key), str(vars(backend)), caplog.text),
        *(msgspec.json.encode(settings).decode(), repr(pickle.dumps(settings))),
    ]
    for text in shown:
        assert KEY not in text
        assert KEY[:8] not in text
    with pytest.raises(TypeError, match="does not leave its process"):
        pickle.dumps(backend._key)
    await backend.close()


@pytest.mark.asyncio
async def test_a_key_that_is_not_there_or_not_accepted_stops_the_start(
    api: FakeApi, monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    monkeypatch.delenv("A_KEY", raising=False)
    with pytest.raises(AgentError, match="model 'm': the environment variable A_KEY is not set"):
        await asked(api, ask(), api_key_env="A_KEY")
    file = tmp_path / "key"
    with pytest.raises(AgentError, match=r"api_key_file='.*key' cannot be read: No such file"):
        await asked(api, ask(), api_key_file=str(file))
    file.write_text("two\nkeys\n")
    with pytest.raises(AgentError, match="must hold one key"):
        await asked(api, ask(), api_key_file=str(file))
    file.write_text(KEY + "\n")
    api.models = (401, failed("no"))
    with pytest.raises(AgentError, match=r"does not accept the key .status 401.; check the file"):
        await asked(api, ask(), api_key_file=str(file))
    api.models = (401, failed("Missing scopes: api.model.read"))  # good for completions all the same
    assert (await asked(api, ask(), api_key_file=str(file))).text == "Four."


def test_usual_keys_go_to_their_own_service_alone() -> None:
    assert OpenAISettings(model="m").key_env == "OPENAI_API_KEY"
    assert OpenAISettings(model="m", base_url="http://127.0.0.1:8000/v1").key_env == ""
    assert OpenAISettings(model="m", base_url="https://api.openai.com.evil.example/v1").key_env == ""
    assert OpenAISettings(model="m", base_url="http://api.openai.com/v1").key_env == ""  # anybody could read it there
    assert OpenAISettings(model="m", base_url="https://eu.api.openai.com/v1").key_env == "OPENAI_API_KEY"
    assert OpenAISettings(model="m", api_key_env="").key_env == ""
    gemini = "https://generativelanguage.googleapis.com/v1beta/openai"
    assert OpenAISettings(model="m", base_url=gemini).key_env == "GEMINI_API_KEY"
    assert OpenAISettings(model="m", api_key_file="k").key_env == ""


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"api_key_env": KEY}, "must name an environment variable"),
        ({"api_key_env": "a1b2c3d4e5f60718293a4b5c6d7e8f90"}, "must name an environment variable"),
        ({"api_key_file": KEY}, "must name a file"),
        ({"base_url": "api.openai.com"}, "must be an address such as"),
        ({"base_url": "http://host:99999/v1"}, "base_url='http://host:99999/v1' must be an address .* from 1 to 65535"),
        ({"base_url": "http://host:0/v1"}, "its port, if any, from 1 to 65535"),
        ({"base_url": "http://host:eighty/v1"}, "its port, if any, from 1 to 65535"),
        ({"base_url": "http://[::1/v1"}, "must be an address such as"),
        ({"base_url": "https://ada:" + "pw@host/v1"}, "must not hold a name or a password"),
        ({"base_url": f"https://ada:{KEY}@host:99999/v1"}, "must not hold a name or a password"),
        ({"base_url": f"ada:{KEY}@host/v1"}, "base_url must be an address such as"),
        ({"extra_body": {"model": "x", "n": 2}}, "extra_body must not hold model, n"),
        ({"headers": {"a": "b\r\nc: d"}}, "each on one line"),
        ({"model": ""}, "must not be empty"),
        ({"max_concurrency": 0}, "max_concurrency=0 must be a number from 1 to 1,000,000"),
    ],
)
def test_wrong_settings_are_refused_without_showing_a_key(settings: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told) as caught:
        OpenAISettings(**({"model": "m"} | settings))
    assert KEY not in str(caught.value)


@pytest.mark.skipif(shutil.which("openssl") is None, reason="needs openssl to make a certificate")
@pytest.mark.asyncio
async def test_a_certificate_that_nobody_signed_is_not_accepted(
    tmp_path: Path,
) -> None:
    pair = ["-keyout", str(tmp_path / "key"), "-out", str(tmp_path / "cert"), "-subj", "/CN=localhost"]
    made = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", *pair]
    subprocess.run(made, check=True, capture_output=True, timeout=60)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "cert", tmp_path / "key")
    seen: list[bytes] = []

    async def listen(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        seen.append(await reader.read(1000))
        writer.close()

    server = await asyncio.start_server(listen, "127.0.0.1", 0, ssl=context)
    async with server:
        client = JsonClient(f"https://localhost:{server.sockets[0].getsockname()[1]}/v1", headers={}, key=NO_KEY)
        with pytest.raises(ReplyError, match="CertificateError") as caught:
            await client.post(b"{}")
        await client.close()
    assert caught.value.kind == "authentication"
    assert seen in ([], [b""])  # not a word was said
