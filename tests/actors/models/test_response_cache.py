"""The cache before a host: what was asked before is not asked again, and nothing else is taken for it."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.agent import AgentHost, Limits
from actors.limits.gate import Hint, Ticket
from actors.limits.prices import Meter, Price
from actors.limits.tries import spent
from actors.local.transformers_settings import TransformersSettings
from actors.models.backend import AdapterRef
from actors.models.response_cache import INDIFFERENT, CacheSettings, ResponseCache, identity
from actors.models.scripted import ScriptedSettings
from actors.placement import AgentActor, HostSpec
from actors.services.openai_chat import OpenAISettings
from protocols.errors import ReplyError
from protocols.message import Ask, Failure, ImagePart, Message, Outcome, Reply, Sampling, Usage, system, user
from tests.actors.test_agent import Arena, Behave, Fake, ok, tell

GREEDY = Sampling(temperature=0.0)
MODEL = OpenAISettings(model="m", base_url="http://h/v1")
QUESTION = (system("Be brief."), user("24 + 19?"))


def ask(
    number: int = 0, *, agent: str = "ada", messages: tuple[Message, ...] = QUESTION, sampling: Sampling = GREEDY
) -> Ask:
    sampling = msgspec.structs.replace(sampling, seed=1000 + number)
    return Ask(
        id=f"d{number}#0.answer.0", debate_id=f"d{number}", agent=agent, role="generator", messages=messages,
        sampling=sampling,
    )  # fmt: skip


def cache(folder: Path, *, backend: str = "openai", model: msgspec.Struct = MODEL, **settings: Any) -> ResponseCache:
    return ResponseCache(CacheSettings(path=str(folder), **settings), backend, model)


def adapter(folder: Path, name: str, weights: bytes, config: str = "{}") -> AdapterRef:
    folder = folder / f"{name}-{hash(weights)}-{hash(config)}"
    folder.mkdir()
    (folder / "adapter_config.json").write_text(config)
    (folder / "adapter_model.safetensors").write_bytes(weights)
    return AdapterRef(name=name, agent=name.partition("@")[0], path=str(folder))


class CountingGate:
    """Lets all in, and knows how many."""

    def __init__(self) -> None:
        self.entered = 0

    async def enter(self, ask: Ask) -> Ticket:
        self.entered += 1
        return None

    def leave(self, ticket: Ticket, outcome: Reply | ReplyError | None) -> None: ...

    def hint(self, hint: Hint) -> None: ...

    def figures(self) -> dict[str, float]:
        return {}


class Session:
    """One host after another over the same folder, as runs follow each other."""

    def __init__(self, folder: Path, **settings: Any) -> None:
        self.folder, self.settings = folder, settings

    async def run(
        self,
        *batches: Sequence[Ask],
        behave: Behave = ok,
        adapters: Sequence[AdapterRef] = (),
        kept: ResponseCache | None = None,
    ) -> tuple[list[Outcome], Fake]:
        """Each batch is told once the one before has been answered."""
        self.backend, self.gate = Fake(behave), CountingGate()
        self.cache = kept or cache(self.folder, **self.settings)
        limits = Limits(backoff_s=0.0, max_concurrency=2)
        meter = Meter(Price(input=1e6, output=1e6))
        host, arena = AgentHost("h", self.backend, limits, [self.gate], meter, self.cache), Arena()
        await host.start()
        host.connect("a", arena.send)
        for ref in adapters:
            await host.publish(ref)
        told = 0
        for batch in batches:
            told += len(batch)
            tell(host, *batch)
            await arena.wait(told)
        self.stats = host.stats()
        await host.close()
        return arena.outcomes, self.backend


def reply_of(outcome: Outcome) -> Reply:
    assert isinstance(outcome, Reply), outcome
    return outcome


@pytest.mark.asyncio
async def test_a_second_run_asks_the_model_nothing_and_says_so(tmp_path: Path) -> None:
    session = Session(tmp_path)
    asks = [ask(number, messages=(user(f"{number} + 1?"),)) for number in range(20)]
    (first, backend) = await session.run(asks)
    assert len(backend.tries) == session.gate.entered == 20
    assert session.stats.cache == {"hits": 0.0, "misses": 20.0}
    assert session.stats.cost_usd == pytest.approx(20 * 5)
    again, backend = await session.run(asks)
    assert (backend.tries, session.gate.entered) == ([], 0)
    assert session.stats.cache == {"hits": 20.0, "misses": 0.0}
    assert (session.stats.replies, session.stats.usage, session.stats.cost_usd) == (20, Usage(), 0.0)
    before = {item.ask_id: reply_of(item) for item in first}
    for item in map(reply_of, again):
        assert item == msgspec.structs.replace(before[item.ask_id], cached=True, cost_usd=0.0, latency_s=0.0)
        assert item.usage == Usage(3, 2, 1) and spent(item) == (0.0, 0)
    assert not any(reply_of(item).cached for item in first)


@pytest.mark.asyncio
async def test_of_asks_that_say_the_same_at_once_the_first_is_asked(tmp_path: Path) -> None:
    session = Session(tmp_path)
    batch = [ask(number, agent="ada" if number % 2 else "bo") for number in range(10)]
    outcomes, backend = await session.run(batch, [ask(11)])
    assert len(backend.tries) == 1
    assert sorted(item.ask_id for item in outcomes) == sorted(one.id for one in [*batch, ask(11)])
    assert sorted(reply_of(item).cached for item in outcomes) == [False] + [True] * 10
    assert session.stats.cache == {"hits": 10.0, "misses": 1.0}


@pytest.mark.asyncio
async def test_failures_and_replies_that_ended_oddly_are_not_kept(tmp_path: Path) -> None:
    async def refuse(ask: Ask, adapter: AdapterRef | None) -> str:
        raise ReplyError("no", "refused")

    session = Session(tmp_path)
    outcomes, backend = await session.run([ask(0), ask(1)], [ask(2)], behave=refuse)
    assert len(backend.tries) == 3 and all(isinstance(item, Failure) for item in outcomes)  # each for itself
    outcomes, backend = await session.run([ask(0)])
    assert len(backend.tries) == 1 and not reply_of(outcomes[0]).cached

    class Odd(Fake):
        async def generate(self, ask: Ask, adapter: AdapterRef | None) -> Reply:
            return msgspec.structs.replace(await super().generate(ask, adapter), finish_reason="other")

    kept = cache(tmp_path)
    odd = Odd(ok)
    other = ask(messages=(user("odd?"),))

    async def tries() -> Outcome:
        return await odd.generate(other, None)

    for _ in range(2):
        assert not reply_of(await kept.answer(other, None, tries)).cached
    assert len(odd.tries) == 2


@pytest.mark.asyncio
async def test_samples_of_one_prompt_stay_different_replies(tmp_path: Path) -> None:
    async def count(ask: Ask, adapter: AdapterRef | None) -> str:
        return f"the {len(session.backend.tries)}th"

    sampled = [ask(number, sampling=Sampling(temperature=0.7)) for number in range(5)]
    session = Session(tmp_path)
    for _ in range(2):  # off unless it is asked for
        await session.run(sampled, behave=count)
        assert len(session.backend.tries) == 5 and session.stats.cache == {"hits": 0.0, "misses": 0.0}
    session = Session(tmp_path, sampled=True)
    first, _ = await session.run(sampled, behave=count)
    again, backend = await session.run(sampled, behave=count)
    assert backend.tries == []
    texts = {item.ask_id: reply_of(item).text for item in first}
    assert len(set(texts.values())) == 5
    assert {item.ask_id: reply_of(item).text for item in again} == texts


@pytest.mark.asyncio
async def test_an_adapter_never_answers_from_anothers_replies(tmp_path: Path) -> None:
    async def voice(ask: Ask, adapter: AdapterRef | None) -> str:
        return adapter.name if adapter else "base"

    session = Session(tmp_path / "cache")
    v1, v2 = adapter(tmp_path, "ada@r1-v1", b"one"), adapter(tmp_path, "ada@r1-v2", b"two")

    async def says(*adapters: AdapterRef) -> tuple[str, str, int]:
        (outcome,), backend = await session.run([ask()], behave=voice, adapters=adapters)
        return reply_of(outcome).text, reply_of(outcome).adapter, len(backend.tries)

    assert await says() == ("base", "", 1)
    assert await says(v1) == ("ada@r1-v1", "ada@r1-v1", 1)
    assert await says(v1, v2) == ("ada@r1-v2", "ada@r1-v2", 1)
    assert await says(v1) == ("ada@r1-v1", "ada@r1-v1", 0)
    assert await says() == ("base", "", 0)
    # another run: the same name with other weights, and the same weights under another name
    assert await says(adapter(tmp_path, "ada@r1-v1", b"three")) == ("ada@r1-v1", "ada@r1-v1", 1)
    assert await says(adapter(tmp_path, "ada@r9-v7", b"two")) == ("ada@r1-v2", "ada@r9-v7", 0)
    assert await says(adapter(tmp_path, "ada@r9-v8", b"two", '{"lora_alpha": 64}')) == ("ada@r9-v8", "ada@r9-v8", 1)


@pytest.mark.asyncio
async def test_a_version_published_while_an_ask_waits_is_not_taken_for_the_one_before(tmp_path: Path) -> None:
    v1, v2 = adapter(tmp_path, "ada@r1-v1", b"one"), adapter(tmp_path, "ada@r1-v2", b"two")
    kept = cache(tmp_path / "cache")
    for ref in (v1, v2):
        await kept.learn(ref)

    async def spoken_by_v2() -> Outcome:
        return Reply(ask_id=ask().id, text="two", model="m", adapter=v2.name)

    async def spoken_by_v1() -> Outcome:
        return Reply(ask_id=ask().id, text="one", model="m", adapter=v1.name)

    assert reply_of(await kept.answer(ask(), v1, spoken_by_v2)).text == "two"
    assert reply_of(await kept.answer(ask(), v1, spoken_by_v1)).text == "one"


@pytest.mark.asyncio
async def test_an_adapter_whose_weights_cannot_be_read_is_asked_each_time(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    session = Session(tmp_path)
    ref = AdapterRef(name="ada@r1-v1", agent="ada", path=str(tmp_path / "nowhere"))
    for _ in range(2):
        _, backend = await session.run([ask()], adapters=[ref])
        assert len(backend.tries) == 1
    assert "its replies are not cached" in caplog.text


@pytest.mark.asyncio
async def test_one_who_gives_up_waiting_takes_nobody_with_them(tmp_path: Path) -> None:
    kept, begun, go_on = cache(tmp_path), asyncio.Event(), asyncio.Event()

    async def slow() -> Outcome:
        begun.set()
        await go_on.wait()
        return Reply(ask_id="", text="fine", model="m")

    first = asyncio.create_task(kept.answer(ask(0), None, slow))
    await begun.wait()
    second, third = (asyncio.create_task(kept.answer(ask(number), None, slow)) for number in (1, 2))
    await asyncio.sleep(0)
    second.cancel()
    await asyncio.sleep(0)
    assert second.cancelled() and not third.done()
    first.cancel()  # the third asks for itself now
    begun.clear()
    await begun.wait()
    go_on.set()
    assert reply_of(await third).text == "fine"
    await kept.close()


@pytest.mark.asyncio
async def test_a_folder_that_cannot_be_written_costs_the_cache_alone(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "cache").write_text("a file")
    session = Session(tmp_path / "cache")
    outcomes, _ = await session.run([ask(0)], [ask(1)], [ask(2, messages=(user("other"),))])
    assert [reply_of(item).text for item in outcomes] == ["fine"] * 3
    assert sum("cannot" in text for text in caplog.messages) == 1


CHANGES: dict[str, Ask] = {
    "messages": ask(messages=(user("24 + 19?"),)),
    "speaker": ask(messages=(user("Be brief."), user("24 + 19?"))),
    "image": ask(messages=(system("Be brief."), user("24 + 19?", [ImagePart(sha256="0" * 64)]))),
    "other image": ask(messages=(system("Be brief."), user("24 + 19?", [ImagePart(sha256="1" * 64)]))),
    "max_tokens": ask(sampling=Sampling(temperature=0.0, max_tokens=9)),
    "schema": msgspec.structs.replace(ask(), schema='{"type":"object"}'),
    "stop": ask(sampling=Sampling(temperature=0.0, stop=("\n",))),
}
MODELS: dict[str, tuple[str, msgspec.Struct]] = {
    "backend": ("other", MODEL),
    "model": ("openai", OpenAISettings(model="n", base_url="http://h/v1")),
    "base_url": ("openai", OpenAISettings(model="m", base_url="http://g/v1")),
    "extra_body": ("openai", OpenAISettings(model="m", base_url="http://h/v1", extra_body={"top_k": 3})),
    "keep_logprobs": ("openai", OpenAISettings(model="m", base_url="http://h/v1", keep_logprobs=True)),
}


def test_whatever_decides_a_reply_is_in_its_key(tmp_path: Path) -> None:
    keys = {cache(tmp_path).key(one, None) for one in [ask(), *CHANGES.values()]}
    keys |= {cache(tmp_path, backend=name, model=model).key(ask(), None) for name, model in MODELS.values()}
    assert len(keys) == 1 + len(CHANGES) + len(MODELS) and "" not in keys


@given(st.integers(0, 10**6), st.integers(0, 10**6), st.sampled_from(["ada", "bo"]))
def test_who_asks_and_when_is_in_no_key(first: int, second: int, agent: str) -> None:
    kept, drawn = cache(Path("unused")), cache(Path("unused"), sampled=True)
    assert kept.key(ask(first), None) == kept.key(ask(second, agent=agent), None) == drawn.key(ask(first), None)
    warm = Sampling(temperature=0.5)
    same = drawn.key(ask(first, sampling=warm), None) == drawn.key(ask(second, agent=agent, sampling=warm), None)
    assert same == (first == second)


def test_a_key_does_not_depend_on_keys_limits_or_room(tmp_path: Path) -> None:
    other = OpenAISettings(model="m", base_url="http://h/v1", api_key_env="MINE", max_concurrency=3, images=True)
    assert cache(tmp_path, model=other).key(ask(), None) == cache(tmp_path).key(ask(), None)
    known = {field for kind in (OpenAISettings, TransformersSettings) for field in kind.__struct_fields__}
    assert {"api_key_env", "max_concurrency", "max_batch"} <= INDIFFERENT & known


@pytest.mark.parametrize("changed", [{"omit": ("temperature",)}, {"extra_body": {"temperature": 1}}])
def test_a_model_that_is_not_told_the_temperature_is_not_greedy(tmp_path: Path, changed: dict[str, Any]) -> None:
    model = OpenAISettings(model="m", base_url="http://h/v1", **changed)
    assert cache(tmp_path, model=model).key(ask(), None) == ""
    drawn = cache(tmp_path, model=model, sampled=True)
    assert "" != drawn.key(ask(0), None) != drawn.key(ask(1), None)


def test_a_sampled_ask_without_a_seed_is_drawn_anew_each_time(tmp_path: Path) -> None:
    asked = msgspec.structs.replace(ask(), sampling=Sampling(temperature=0.5))
    assert cache(tmp_path, sampled=True).key(asked, None) == ""


def test_a_model_folder_counts_with_what_is_in_it(tmp_path: Path) -> None:
    model = TransformersSettings(model=str(tmp_path))
    seen = {identity("transformers", model)}
    (tmp_path / "model.safetensors").write_bytes(b"one")
    seen.add(identity("transformers", model))
    (tmp_path / "model.safetensors").write_bytes(b"another")
    seen.add(identity("transformers", model))
    assert len(seen) == 3 and identity("transformers", model) in seen


@pytest.mark.asyncio
async def test_a_hosts_actor_has_a_cache_where_its_spec_says_so(tmp_path: Path) -> None:
    def spec(settings: CacheSettings | None) -> HostSpec:
        return HostSpec(name="h", backend="scripted", settings=ScriptedSettings(), cache=settings)

    assert (await AgentActor(spec(CacheSettings(path=str(tmp_path)))).stats()).cache == {"hits": 0.0, "misses": 0.0}
    assert (await AgentActor(spec(None)).stats()).cache == {}


@pytest.mark.parametrize(("settings", "said"), [({"path": ""}, "path=''"), ({"max_mb": -1}, "max_mb=-1")])
def test_settings_that_make_no_sense_are_refused(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        CacheSettings(**settings)
