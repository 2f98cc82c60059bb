"""A batched model against both services: every ask gets its own answer or error, and nothing is bought twice."""

from __future__ import annotations

import asyncio
import errno
import re
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
import pytest_asyncio

from actors.agent import AgentHost, Limits
from actors.limits.budget import Budget
from actors.limits.prices import NOTHING, Amount, Meter, Price
from actors.limits.shared_gate import Keeper
from actors.models.images import Base64Images
from actors.placement import AgentActor, HostSpec
from actors.services.anthropic_messages import AnthropicSettings
from actors.services.batch_book import BatchSettings
from actors.services.batch_ledger import Ledger, Made, Meant
from actors.services.batched import LEDGER, BatchedBackend, anthropic_backend, chat_backend, row_key
from actors.services.openai_chat import OpenAISettings
from protocols.errors import AgentError, ReplyError
from protocols.message import Ask, ImagePart, Reply, Sampling, Usage, user
from tests.actors.fake_api import IMAGE, KEY, PART, failed, said
from tests.actors.fake_batches import (
    Batch,
    FakeBatches,
    Outcome,
    chat_answer,
    claude_answer,
    claude_error,
    fake_batches,
    message,
)
from tests.actors.remote import Remote
from tests.actors.test_agent import Arena

pytestmark = pytest.mark.asyncio

QUICK = BatchSettings(linger_s=0.02, poll_s=0.02, max_poll_s=0.05)


def ask(word: str) -> Ask:
    return Ask(
        id=f"d-{word}#0.open.0", debate_id=f"d-{word}", agent="ada", role="generator", messages=(user(word),),
        sampling=Sampling(),
    )  # fmt: skip


@pytest_asyncio.fixture
async def service() -> AsyncIterator[FakeBatches]:
    async with fake_batches() as service:
        yield service


def make(service: FakeBatches, folder: Path, batch: BatchSettings = QUICK, **settings: Any) -> BatchedBackend:
    """Of whichever service the fake plays, as it answers."""
    if service.answer is chat_answer or settings.pop("openai", False):
        backend = chat_backend(OpenAISettings(model="m", base_url=f"{service.url}/v1", batch=batch, **settings))
    else:
        backend = anthropic_backend(AnthropicSettings(model="m", base_url=service.url, batch=batch, **settings))
    assert isinstance(backend, BatchedBackend)
    backend.folder = folder
    return backend


@asynccontextmanager
async def started(service: FakeBatches, folder: Path, **settings: Any) -> AsyncIterator[BatchedBackend]:
    backend = make(service, folder, **settings)
    await backend.start()
    try:
        yield backend
    finally:
        await backend.close()


async def outcomes(backend: BatchedBackend, *words: str) -> list[Reply | ReplyError]:
    async with asyncio.timeout(20):
        found = await asyncio.gather(*(backend.generate(ask(word), None) for word in words), return_exceptions=True)
    assert all(isinstance(item, Reply | ReplyError) for item in found), found
    return found  # type: ignore[return-value]


async def until(ready: Any) -> None:
    async with asyncio.timeout(10):
        while not ready():
            await asyncio.sleep(0.005)


async def test_asks_leave_together_and_each_gets_its_own_reply(service: FakeBatches, tmp_path: Path) -> None:
    async with started(service, tmp_path) as backend:
        found = await outcomes(backend, "a", "b", "c")
        assert [item.text for item in found if isinstance(item, Reply)] == ["Said to a", "Said to b", "Said to c"]
        assert found[0].usage == Usage(12, 7, 8, 3, 4)  # type: ignore[union-attr]
        ((batch),) = service.batches.values()
        assert batch.rows[0][1] == {
            "model": "m", "messages": [{"role": "user", "content": "a"}], "temperature": 1.0, "top_p": 1.0,
            "max_tokens": 512,
        }  # fmt: skip
        metrics = backend.metrics()
        assert (metrics["batches"], metrics["requests"], metrics["replies"]) == (1, 3, 3)
        assert (metrics["gathered"], metrics["open_batches"]) == (0, 0)


async def test_a_debate_does_not_wait_for_the_batch_of_another(service: FakeBatches, tmp_path: Path) -> None:
    async with started(service, tmp_path) as backend:
        service.held = True
        slow = asyncio.ensure_future(backend.generate(ask("slow"), None))
        await until(lambda: len(service.batches) == 1)
        service.batches["batch_0"].status = "stuck"
        service.held = False
        assert [type(item) for item in await outcomes(backend, "a", "b")] == [Reply, Reply]
        assert not slow.done()
        slow.cancel()


def spoilt(body: dict[str, Any]) -> Outcome:
    """What each word comes to; "late" and "lost" are well the second time."""
    word = body["messages"][-1]["content"]
    match word:
        case "long":
            return 400, failed("too long", code="context_length_exceeded")
        case "bad":
            return 400, failed("no such field", type="invalid_request_error")
        case "broken":
            return 500, failed("server error")
        case "filtered":
            return 200, said("", "content_filter")
        case "late":
            return "expired"
        case "lost":
            return "missing"
    return 200, said(f"Said to {word}")


def spoilt_claude(body: dict[str, Any]) -> Outcome:
    word = body["messages"][-1]["content"][-1]["text"]
    match word:
        case "long":
            return 400, claude_error("invalid_request_error", "prompt is too long: 9 tokens")
        case "bad":
            return 400, claude_error("invalid_request_error", "no such field")
        case "broken":
            return 529, claude_error("overloaded_error")
        case "filtered":
            return 200, message("") | {"stop_reason": "refusal"}
        case "late":
            return "expired"
        case "lost":
            return "missing"
    return 200, message(f"Said to {word}")


@pytest.mark.parametrize("answer", [spoilt, spoilt_claude])
async def test_each_row_of_a_batch_fails_by_itself(service: FakeBatches, tmp_path: Path, answer: Any) -> None:
    service.answer = answer
    async with started(service, tmp_path, openai=answer is spoilt) as backend:
        words = ("long", "bad", "broken", "filtered", "late", "lost", "fine")
        found = await outcomes(backend, *words)
        kinds = {
            word: item.kind if isinstance(item, ReplyError) else item.text
            for word, item in zip(words, found, strict=True)
        }
        assert kinds == {
            "long": "context_too_long", "bad": "malformed", "broken": "transient", "filtered": "refused",
            "late": "transient", "lost": "transient", "fine": "Said to fine",
        }  # fmt: skip
        assert len(service.batches) == 1
        service.answer = chat_answer if answer is spoilt else claude_answer
        assert [type(item) for item in await outcomes(backend, "late", "lost")] == [Reply, Reply]
        assert sorted(service.rows.values()) == [1, 1, 1, 1, 1, 2, 2]


async def test_a_refused_input_fails_the_rows_it_names(service: FakeBatches, tmp_path: Path) -> None:
    service.faults = [[{"code": "invalid_request", "message": "no such field", "line": 2, "param": None}]]
    async with started(service, tmp_path) as backend:
        first, second, third = await outcomes(backend, "a", "b", "c")
        assert isinstance(second, ReplyError) and second.kind == "malformed" and "no such field" in str(second)
        for beside in (first, third):
            assert isinstance(beside, ReplyError) and beside.kind == "transient"
        assert [type(item) for item in await outcomes(backend, "a", "c")] == [Reply, Reply]


@pytest.mark.parametrize(
    ("code", "kind"), [("invalid_json", "malformed"), ("billing_hard_limit_reached", "quota"), (None, "malformed")]
)
async def test_a_batch_that_is_refused_as_a_whole_fails_its_rows_with_the_reason(
    service: FakeBatches, tmp_path: Path, code: str | None, kind: str
) -> None:
    service.faults = [[{"code": code, "message": "it cannot be", "line": None, "param": None}]]
    async with started(service, tmp_path) as backend:
        for item in await outcomes(backend, "a", "b"):
            assert isinstance(item, ReplyError) and item.kind == kind and "it cannot be" in str(item)


async def test_a_full_queue_is_waited_for(service: FakeBatches, tmp_path: Path) -> None:
    full = [{"code": "token_limit_exceeded", "message": "Enqueued token limit reached", "line": None, "param": None}]
    service.faults = [full, full]
    service.refuse = [("POST /v1/batches", 429, failed("too many batches")), ("POST /v1/files", 503, failed("busy"))]
    async with started(service, tmp_path) as backend:
        assert [type(item) for item in await outcomes(backend, "a", "b")] == [Reply, Reply]


@pytest.mark.parametrize("answer", [chat_answer, claude_answer])
async def test_a_batch_whose_answer_was_lost_is_found_and_not_made_again(
    service: FakeBatches, tmp_path: Path, answer: Any
) -> None:
    service.answer, service.lose_creates = answer, 1
    for _ in range(3):  # what others have there
        other = Batch("other", [("x", {}), ("y", {})], 0.0, {"moot_batch": "another"}, "file" * (answer is chat_answer))
        other.id = f"other_{len(service.batches)}"
        service.batches[other.id] = other
    async with started(service, tmp_path) as backend:
        assert [type(item) for item in await outcomes(backend, "a", "b")] == [Reply, Reply]
    assert len(service.batches) == 4


async def test_a_batch_that_was_never_made_is_made_after_all(service: FakeBatches, tmp_path: Path) -> None:
    service.refuse = [("POST /v1/batches", 502, failed("bad gateway"))]
    async with started(service, tmp_path) as backend:
        assert [type(item) for item in await outcomes(backend, "a", "b")] == [Reply, Reply]
    assert len(service.batches) == 1


@pytest.mark.parametrize("answer", [chat_answer, claude_answer])
@pytest.mark.parametrize("over", [True, False])
async def test_what_an_earlier_process_submitted_is_taken_up(
    service: FakeBatches, tmp_path: Path, answer: Any, over: bool
) -> None:
    service.answer, service.held = answer, True
    async with started(service, tmp_path) as backend:
        asking = [asyncio.ensure_future(backend.generate(ask(word), None)) for word in "ab"]
        await until(lambda: backend.bought(ask("a")))
        for task in asking:
            task.cancel()
        await asyncio.wait(asking)
        assert backend.bought(ask("a")) and not backend.bought(ask("c"))
    service.held = False
    if over:  # while nobody looked
        service.batches["batch_0"].looks = 100
    async with started(service, tmp_path) as backend:
        assert [backend.bought(ask(word)) for word in "abc"] == [True, True, False]
        assert [type(item) for item in await outcomes(backend, "b", "c")] == [Reply, Reply]
        assert [type(item) for item in await outcomes(backend, "a")] == [Reply]
        assert not backend.bought(ask("a"))
    assert sorted(service.rows.values()) == [1, 1, 1]


@pytest.mark.parametrize("answer", [chat_answer, claude_answer])
async def test_a_batch_made_just_before_the_process_died_is_found(
    service: FakeBatches, tmp_path: Path, answer: Any
) -> None:
    """Its id was never recorded: the ledger says no more than that it was meant to be made."""
    service.answer, service.held = answer, True
    async with started(service, tmp_path) as backend:
        asking = asyncio.ensure_future(backend.generate(ask("a"), None))
        await until(lambda: backend.metrics()["batches"] == 1)
        asking.cancel()
    lines = (tmp_path / LEDGER).read_bytes().splitlines(keepends=True)
    (tmp_path / LEDGER).write_bytes(lines[0] + b'{"type":"ma')
    service.held = False
    async with started(service, tmp_path) as backend:
        assert [type(item) for item in await outcomes(backend, "a")] == [Reply]
    assert list(service.rows.values()) == [1]
    assert [type(entry) for entry in map(_entry, (tmp_path / LEDGER).read_bytes().splitlines())] == [Meant, Made]


def _entry(line: bytes) -> Any:
    return msgspec.json.decode(line, type=Meant | Made)


async def test_another_s_batch_that_might_be_ours_is_waited_for_and_not_taken(
    service: FakeBatches, tmp_path: Path
) -> None:
    """Anthropic's batches carry no mark: one of the same size, made at the same time, may be another's."""
    service.answer, service.held = claude_answer, True
    service.refuse = [("POST /v1/messages/batches", 502, claude_error("api_error"))]
    async with started(service, tmp_path) as backend:
        asking = asyncio.ensure_future(backend.generate(ask("a"), None))
        await until(lambda: "POST /v1/messages/batches" in service.calls)
        service.batches["other"] = Batch("other", [("x", {"messages": [{"content": [{"text": "x"}]}]})], time.time())
        await until(lambda: service.calls.count("GET /v1/messages/batches/other") > 2)
        assert len(service.batches) == 1  # nothing is made while ours may be there
        service.held = False
        assert (await asking).text == "Said to a"
    assert sorted(service.rows.values()) == [1, 1]


async def test_a_key_that_is_refused_stops_and_what_was_submitted_stays_known(
    service: FakeBatches, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOME_KEY", KEY)
    service.key, service.held = KEY, True
    async with started(service, tmp_path, api_key_env="SOME_KEY") as backend:
        asking = asyncio.ensure_future(backend.generate(ask("a"), None))
        await until(lambda: backend.metrics()["batches"] == 1)
        service.key = "another"
        with pytest.raises(ReplyError) as caught:
            await asking
        assert caught.value.kind == "authentication" and KEY not in str(caught.value)
        (refused,) = await outcomes(backend, "b")  # cannot be submitted
        assert isinstance(refused, ReplyError) and refused.kind == "authentication"
        service.key, service.held = KEY, False
        assert [type(item) for item in await outcomes(backend, "a", "b")] == [Reply, Reply]
    assert sorted(service.rows.values()) == [1, 1]


async def test_a_batch_that_is_gone_is_made_anew(service: FakeBatches, tmp_path: Path) -> None:
    service.held = True
    async with started(service, tmp_path) as backend:
        asking = asyncio.ensure_future(backend.generate(ask("a"), None))
        await until(lambda: backend.metrics()["batches"] == 1)
        service.batches.clear()
        service.held = False
        with pytest.raises(ReplyError, match="has no batch batch_0 any more") as caught:
            await asking
        assert caught.value.kind == "transient"
        assert [type(item) for item in await outcomes(backend, "a")] == [Reply]


@pytest.mark.parametrize("answer", [chat_answer, claude_answer])
async def test_a_batch_that_takes_too_long_is_cancelled_and_what_is_done_is_kept(
    service: FakeBatches, tmp_path: Path, answer: Any
) -> None:
    service.answer, service.held, service.done_when_cancelled = answer, True, 1
    hasty = msgspec.structs.replace(QUICK, max_wait_s=0.2)
    async with started(service, tmp_path, batch=hasty) as backend:
        first, second = await outcomes(backend, "a", "b")
        assert isinstance(first, Reply)
        assert isinstance(second, ReplyError) and second.kind == "transient" and "cancel" in str(second)


async def test_looking_goes_on_when_the_service_stumbles(service: FakeBatches, tmp_path: Path) -> None:
    service.refuse = [
        ("GET /v1/batches/", 500, failed("oops")),
        ("GET /v1/batches/", 429, failed("slow down")),
        ("GET /v1/files/", 503, failed("busy")),
    ]
    async with started(service, tmp_path) as backend:
        assert [type(item) for item in await outcomes(backend, "a")] == [Reply]
    assert not service.refuse and list(service.rows.values()) == [1]


async def test_images_go_with_their_rows(service: FakeBatches, tmp_path: Path) -> None:
    async with started(service, tmp_path, images=True) as backend:
        backend.read_image = lambda part: IMAGE
        what = msgspec.structs.replace(ask("seen"), messages=(user("seen", [PART]),))
        await backend.generate(what, None)
    ((_, body),) = service.batches["batch_0"].rows
    assert body["messages"][0]["content"][0]["image_url"]["url"].startswith("data:image/png;base64,")


async def test_a_row_that_cannot_be_made_again_fails_alone(service: FakeBatches, tmp_path: Path) -> None:
    reads = iter([IMAGE])

    def once(part: ImagePart) -> bytes:
        if (image := next(reads, None)) is None:
            raise ReplyError("the disk of the images is gone", "malformed")
        return image

    async with started(service, tmp_path, images=True) as backend:
        backend.read_image = once
        backend._inner._images = Base64Images(max_bytes=0)  # read each time
        what = msgspec.structs.replace(ask("seen"), messages=(user("seen", [PART]),))
        seen = asyncio.ensure_future(backend.generate(what, None))
        assert [type(item) for item in await outcomes(backend, "a", "b")] == [Reply, Reply]
        with pytest.raises(ReplyError, match="the disk of the images is gone"):
            await seen
        reads = iter([IMAGE])  # alone in its batch
        with pytest.raises(ReplyError, match="the disk of the images is gone"):
            await backend.generate(what, None)
        assert [type(item) for item in await outcomes(backend, "c")] == [Reply]


async def test_what_passed_the_budget_as_paid_for_passes_it_again_when_it_was_not(
    service: FakeBatches, tmp_path: Path
) -> None:
    service.held = True
    async with started(service, tmp_path) as backend:
        asking = asyncio.ensure_future(backend.generate(ask("a"), None))
        await until(lambda: backend.bought(ask("a")))
        asking.cancel()
    async with started(service, tmp_path) as backend:
        assert backend.bought(ask("a"))
        asking = asyncio.ensure_future(backend.generate(ask("a"), None))
        await until(lambda: backend.metrics()["open_batches"] == 1)
        (tag,) = backend._book._batches
        await backend._not_taken(tag, ReplyError("the account's queue is full", "rate_limited"))
        with pytest.raises(ReplyError, match="its batch was not taken") as caught:
            await asking
        assert caught.value.kind == "transient" and not backend.bought(ask("a"))
        assert backend.metrics()["gathered"] == 0


async def test_a_service_without_batches_is_found_at_the_start(tmp_path: Path, service: FakeBatches) -> None:
    settings = OpenAISettings(model="m", base_url=f"{service.url}/elsewhere", batch=QUICK)
    backend = chat_backend(settings)
    with pytest.raises(AgentError, match=r"cannot be asked in batches: .*/elsewhere/batches.*status 404"):
        await backend.start()
    await backend.close()
    homeless = chat_backend(OpenAISettings(model="m", base_url=f"{service.url}/v1", batch=QUICK))
    with pytest.raises(AgentError, match="needs a run's folder"):
        await homeless.start()
    await homeless.close()


async def test_a_ledger_that_cannot_be_written_stops_the_run(
    service: FakeBatches, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is submitted that could not be found again."""

    def full(ledger: Ledger, entry: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Ledger, "add", full)
    async with started(service, tmp_path) as backend:
        for item in [*await outcomes(backend, "a", "b"), *await outcomes(backend, "c")]:
            assert isinstance(item, ReplyError) and item.kind == "quota"
    assert not service.batches


async def test_a_host_that_stops_lets_go_of_what_is_in_a_batch(
    service: FakeBatches, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("actors.agent.KEPT_S", 0.3)
    service.held = True
    host, arena = AgentHost("h", make(service, tmp_path), Limits()), Arena()
    await host.start()
    host.connect("a", arena.send)
    host.tell("a", msgspec.msgpack.encode([ask(word) for word in "abc"]))
    await until(lambda: len(service.batches) == 1)
    host.tell("a", msgspec.msgpack.encode([ask("d")]))
    async with asyncio.timeout(5):  # and not DRAIN_S
        await host.halt("enough")
    assert arena.outcomes == [] and (await arena.wait_stopped()).reason == "enough"
    await host.close()
    service.held = False
    async with started(service, tmp_path) as backend:
        assert [type(item) for item in await outcomes(backend, *"abc")] == [Reply] * 3
    assert list(service.rows.values()) == [1, 1, 1]


async def test_what_is_in_a_batch_is_collected_though_the_budget_is_spent(
    service: FakeBatches, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is paid for; a new ask is not sent. Two of the most that an ask may cost fit into the budget at first."""
    price = Price(input=1_000.0, output=1_000.0)
    most = Meter(price).most(ask("a")).usd

    def actor(spent: Amount) -> tuple[AgentActor, Keeper]:
        keeper = Keeper(Budget(usd=2.5 * most), spent)
        settings = OpenAISettings(model="m", base_url=f"{service.url}/v1", batch=QUICK)
        return AgentActor(
            HostSpec(
                name="gpt", backend="openai", settings=settings, folder=str(tmp_path), price=price,
                keeper=Remote(keeper), budgeted=True,
            )
        ), keeper  # fmt: skip

    async def told(first: AgentActor, arena: Arena, *words: str) -> None:
        await first.start()
        await first.connect("a", SimpleNamespace(deliver=SimpleNamespace(remote=arena.send)))
        await first.tell("a", msgspec.msgpack.encode([ask(word) for word in words]))

    monkeypatch.setattr("actors.agent.KEPT_S", 2.0)
    service.held = True
    first, _ = actor(NOTHING)
    await told(first, Arena(), "a", "b", "c")
    await until(lambda: service.rows.total() == 2)  # the third waits for what the others cost
    await first.halt("enough")
    await first.close()

    service.held = False
    second, keeper = actor(Amount(2.4 * most, 0))  # by other models, meanwhile
    arena = Arena()
    await told(second, arena, "c", "b", "a")
    assert (await arena.wait_stopped()).reason.startswith("paused: budget of")
    assert sorted(item.ask_id for item in arena.outcomes if isinstance(item, Reply)) == [ask("a").id, ask("b").id]
    await second.close()
    assert (await keeper.spent()).usd == pytest.approx(2.4 * most + 2 * 19 * 1e-3)  # 19 tokens each
    assert service.rows.total() == 2


async def test_a_batch_under_way_to_the_service_is_on_record_before_the_host_ends(
    service: FakeBatches, tmp_path: Path
) -> None:
    async with started(service, tmp_path) as backend:
        asking = asyncio.ensure_future(backend.generate(ask("a"), None))
        await until(lambda: "POST /v1/files" in service.calls)
        asking.cancel()
    ledger = Ledger(tmp_path / LEDGER)
    ledger.close()
    with_id = [batch.id for batch in ledger.known]
    assert with_id == ["batch_0"] and list(service.batches) == ["batch_0"]


async def test_the_name_of_a_row_is_what_is_asked() -> None:
    key = row_key(ask("a"), b"body")
    assert re.fullmatch(r"[a-zA-Z0-9_-]{1,64}", key)
    assert key == row_key(ask("a"), b"body") != row_key(ask("a"), b"other body") != row_key(ask("b"), b"body")
