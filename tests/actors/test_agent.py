"""The agent host: one outcome for every ask, tries where they help, limits, and adapters that change in one step."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence

import msgspec
import pytest

from actors.agent import AgentHost, Limits
from actors.limits.gate import Gate, Hint, OnRate, RateHint
from actors.limits.policy import POLICIES
from actors.limits.prices import Meter, Price
from actors.models.backend import AdapterRef, BackendInfo
from actors.models.scripted import ScriptedBackend, ScriptedSettings
from protocols.errors import AgentError, EngineDownError, FailureKind, HostLostError, ReplyError
from protocols.message import Ask, Failure, Outcome, Reply, Sampling, Stopped, Usage, user

pytestmark = pytest.mark.asyncio

KINDS: tuple[FailureKind, ...] = (
    "transient", "rate_limited", "quota", "authentication", "refused", "context_too_long", "malformed", "timeout",
)  # fmt: skip
_OUTCOMES = msgspec.msgpack.Decoder(list[Outcome | Stopped])


def make_ask(number: int = 0, agent: str = "ada") -> Ask:
    return Ask(
        id=f"d{number}#0.answer.0", debate_id=f"d{number}", agent=agent, role="generator", messages=(user("?"),),
        sampling=Sampling(temperature=0.7, seed=number),
    )  # fmt: skip


Behave = Callable[[Ask, AdapterRef | None], Awaitable[str]]


class Fake:
    """A backend that does what a test says, and writes down what it was told."""

    def __init__(self, behave: Behave, *, max_concurrency: int = 100) -> None:
        self.behave, self.max_concurrency = behave, max_concurrency
        self.tries: list[Ask] = []
        self.log: list[str] = []
        self.inside = self.most = 0

    async def start(self) -> BackendInfo:
        self.log.append("start")
        return BackendInfo(model="fake", context_tokens=10, max_concurrency=self.max_concurrency)

    async def generate(self, ask: Ask, adapter: AdapterRef | None) -> Reply:
        self.tries.append(ask)
        self.inside += 1
        self.most = max(self.most, self.inside)
        try:
            text = await self.behave(ask, adapter)
        finally:
            self.inside -= 1
        return Reply(
            ask_id=ask.id, text=text, model="fake", adapter=adapter.name if adapter else "", usage=Usage(3, 2, 1)
        )

    async def load_adapter(self, adapter: AdapterRef) -> None:
        await asyncio.sleep(0)
        if adapter.path == "broken":
            raise AgentError("it does not fit")
        self.log.append(f"load {adapter.name}")

    async def unload_adapter(self, adapter: AdapterRef) -> None:
        await asyncio.sleep(0)
        self.log.append(f"unload {adapter.name}")

    def metrics(self) -> dict[str, float]:
        return {"figure": 1.0}

    async def close(self) -> None:
        assert self.inside == 0, "the model is stopped under an ask"
        self.log.append("close")


class Arena:
    """Takes outcomes; ``wait`` returns once so many have come."""

    def __init__(self) -> None:
        self.outcomes: list[Outcome] = []
        self.stopped: list[Stopped] = []
        self._news = asyncio.Event()

    async def send(self, packed: bytes) -> None:
        for item in _OUTCOMES.decode(packed):
            if isinstance(item, Stopped):
                self.stopped.append(item)
            else:
                self.outcomes.append(item)
        self._news.set()

    async def wait(self, count: int) -> list[Outcome]:
        async with asyncio.timeout(10):
            while len(self.outcomes) < count:
                self._news.clear()
                await self._news.wait()
        return self.outcomes

    async def wait_stopped(self) -> Stopped:
        async with asyncio.timeout(10):
            while not self.stopped:
                self._news.clear()
                await self._news.wait()
        (stopped,) = self.stopped
        return stopped


async def started(
    backend: Fake, *, gates: Sequence[Gate] = (), meter: Meter | None = None, **limits: float
) -> tuple[AgentHost, Arena]:
    own = msgspec.convert({"backoff_s": 0.0, **limits}, Limits)
    host, arena = AgentHost("h", backend, own, gates, meter), Arena()
    await host.start()
    host.connect("a", arena.send)
    return host, arena


def tell(host: AgentHost, *asks: Ask, arena: str = "a") -> None:
    host.tell(arena, msgspec.msgpack.encode(asks))


async def ok(ask: Ask, adapter: AdapterRef | None) -> str:
    return "fine"


class Sleeper(Fake):
    may_sleep = True

    async def sleep(self) -> None:
        assert self.inside == 0, "the model sleeps under an ask"
        self.log.append("sleep")

    async def wake(self) -> None:
        self.log.append("wake")


async def test_a_model_sleeps_once_it_has_finished_and_what_is_asked_meanwhile_waits() -> None:
    finish = asyncio.Event()

    async def slow(ask: Ask, adapter: AdapterRef | None) -> str:
        await finish.wait()
        return "fine"

    backend = Sleeper(slow)
    host, arena = await started(backend)
    tell(host, make_ask(0))
    while not backend.inside:
        await asyncio.sleep(0)
    falling_asleep = asyncio.ensure_future(host.sleep())
    await asyncio.sleep(0)
    tell(host, make_ask(1))
    host.hold(True)
    host.hold(False)  # whoever pauses and goes on meanwhile wakes nobody
    finish.set()
    await falling_asleep
    await asyncio.sleep(0.01)
    assert [outcome.ask_id for outcome in arena.outcomes] == ["d0#0.answer.0"]
    assert len(backend.tries) == 1 and not host.stats().held
    host.hold(True)
    await host.wake()
    await asyncio.sleep(0.01)
    assert len(backend.tries) == 1  # it is awake, and still paused
    host.hold(False)
    assert len(await arena.wait(2)) == 2
    await host.wake()
    assert backend.log == ["start", "sleep", "wake"]
    await host.close()


async def test_a_model_that_cannot_sleep_says_so_and_goes_on() -> None:
    host, arena = await started(Fake(ok))
    with pytest.raises(AgentError, match=r"h: its model cannot sleep; set run\.colocate: release"):
        await host.sleep()
    tell(host, make_ask())
    assert len(await arena.wait(1)) == 1
    await host.close()


async def test_every_ask_brings_one_outcome() -> None:
    async def mixed(ask: Ask, adapter: AdapterRef | None) -> str:
        match int(ask.debate_id[1:]) % 5:
            case 1:
                raise ReplyError("no", "refused")
            case 2:
                raise ReplyError("later", "transient")
            case 3:
                raise ZeroDivisionError("a bug")
            case 4:
                await asyncio.sleep(100)
        return "fine"

    host, arena = await started(Fake(mixed), timeout_s=0.01, max_tries=2)
    logging.getLogger("moot.agent").disabled = True
    try:
        for start in range(0, 100, 10):
            tell(host, *(make_ask(number) for number in range(start, start + 10)))
        outcomes = await arena.wait(100)
        await asyncio.sleep(0.02)
    finally:
        logging.getLogger("moot.agent").disabled = False
    assert sorted(item.ask_id for item in outcomes) == sorted(make_ask(number).id for number in range(100))
    kinds = [item.kind for item in outcomes if isinstance(item, Failure)]
    assert {kind: kinds.count(kind) for kind in sorted(set(kinds))} == {
        "malformed": 20, "refused": 20, "timeout": 20, "transient": 20,
    }  # fmt: skip
    stats = host.stats()
    assert (stats.replies, stats.queued, stats.running, sum(stats.failures.values())) == (20, 0, 0, 80)
    assert stats.usage == Usage(60, 40, 20)
    assert stats.backend == {"figure": 1.0}
    told = stats.agents["ada"]
    assert (told.replies, told.failures, told.queued, told.running) == (20, 80, 0, 0)
    assert (told.prompt_tokens, told.completion_tokens, sum(told.latency)) == (60, 40, 20)
    await host.close()


@pytest.mark.parametrize("kind", [kind for kind in KINDS if POLICIES[kind].ending == "set_aside"])
async def test_only_what_another_try_can_mend_is_tried_again(kind: FailureKind) -> None:
    async def fail(ask: Ask, adapter: AdapterRef | None) -> str:
        raise ReplyError("said the model", kind)

    backend = Fake(fail)
    host, arena = await started(backend, max_tries=3)
    tell(host, make_ask())
    (outcome,) = await arena.wait(1)
    tries = {"transient": 3, "timeout": 3, "rate_limited": 9}.get(kind, 1)
    assert isinstance(outcome, Failure)
    assert (outcome.kind, outcome.tries, outcome.reason) == (kind, tries, "said the model")
    assert [(item.kind, item.reason) for item in outcome.attempts] == [(kind, "said the model")] * tries
    assert backend.tries == [make_ask()] * tries  # the very same ask, sampling and all
    assert host.stats().retries == tries - 1
    await host.close()


async def test_a_try_that_succeeds_says_which_it_was() -> None:
    async def third(ask: Ask, adapter: AdapterRef | None) -> str:
        if len(backend.tries) < 3:
            raise ReplyError("busy", "rate_limited")
        return "fine"

    backend = Fake(third)
    host, arena = await started(backend)
    tell(host, make_ask())
    (outcome,) = await arena.wait(1)
    assert isinstance(outcome, Reply) and outcome.tries == 3
    assert [(item.kind, item.reason) for item in outcome.attempts] == [("rate_limited", "busy")] * 2
    await host.close()


async def test_a_model_that_hangs_times_out_and_is_let_go() -> None:
    async def hang(ask: Ask, adapter: AdapterRef | None) -> str:
        await asyncio.sleep(100)
        return "never"

    backend = Fake(hang)
    host, arena = await started(backend, timeout_s=0.01, max_tries=2)
    tell(host, make_ask())
    (outcome,) = await arena.wait(1)
    assert isinstance(outcome, Failure)
    assert (outcome.kind, outcome.reason, outcome.tries) == ("timeout", "no reply within 0.01 s", 2)
    assert backend.inside == 0
    await host.close()


async def test_an_exception_that_nobody_expected_is_a_failure_on_record(caplog: pytest.LogCaptureFixture) -> None:
    async def bug(ask: Ask, adapter: AdapterRef | None) -> str:
        raise KeyError("choices" + "x" * 1000)

    backend = Fake(bug)
    host, arena = await started(backend)
    tell(host, make_ask())
    (outcome,) = await arena.wait(1)
    assert isinstance(outcome, Failure)
    assert outcome.kind == "malformed" and outcome.reason.startswith("unexpected KeyError: 'choices")
    assert len(outcome.reason) == 500 and len(backend.tries) == 1
    assert "d0#0.answer.0 failed" in caplog.text
    await host.close()


async def test_an_ask_that_the_engine_drops_is_tried_again() -> None:
    async def dropped(ask: Ask, adapter: AdapterRef | None) -> str:
        if len(backend.tries) == 1:
            raise asyncio.CancelledError
        return "fine"

    backend = Fake(dropped)
    host, arena = await started(backend)
    tell(host, make_ask())
    (outcome,) = await arena.wait(1)
    assert isinstance(outcome, Reply) and outcome.tries == 2
    await host.close()


async def test_half_characters_do_not_stop_the_batch_they_are_in() -> None:
    async def half(ask: Ask, adapter: AdapterRef | None) -> str:
        if ask.id == make_ask(1).id:
            raise ReplyError("said \udcff", "refused")
        return "fine \ud83d" if ask.id == make_ask(2).id else "fine"

    host, arena = await started(Fake(half))
    tell(host, *(make_ask(number) for number in range(3)))
    by_id = {item.ask_id: item for item in await arena.wait(3)}
    first, second, third = (by_id[make_ask(number).id] for number in range(3))
    assert isinstance(first, Reply) and first.text == "fine"
    assert isinstance(second, Failure) and second.reason == "said ?"
    assert isinstance(third, Reply) and third.text == "fine ?"
    await host.close()


@pytest.mark.parametrize(("limit", "expected"), [(3, 3), (0, 7)])
async def test_no_more_asks_are_in_the_model_than_may_be(limit: int, expected: int) -> None:
    async def slow(ask: Ask, adapter: AdapterRef | None) -> str:
        await asyncio.sleep(0.001)
        return "fine"

    backend = Fake(slow, max_concurrency=7)
    host, arena = await started(backend, max_concurrency=limit)
    tell(host, *(make_ask(number) for number in range(40)))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    stats = host.stats()
    assert (stats.running, stats.queued, stats.concurrency) == (expected, 40 - expected, expected)
    assert (stats.agents["ada"].running, stats.agents["ada"].queued) == (expected, 40 - expected)
    await arena.wait(40)
    assert backend.most == expected
    await host.close()


async def test_a_retry_that_waits_holds_no_slot() -> None:
    async def busy(ask: Ask, adapter: AdapterRef | None) -> str:
        if ask.id == make_ask(0).id:
            raise ReplyError("busy", "rate_limited", 60.0)
        return "fine"

    host, arena = await started(Fake(busy), max_concurrency=1)
    tell(host, make_ask(0), make_ask(1))
    (outcome,) = await arena.wait(1)
    assert outcome.ask_id == make_ask(1).id
    await host.close()


def version(number: int, path: str = "folder") -> AdapterRef:
    return AdapterRef(name=f"ada@r-v{number}", agent="ada", path=path)


async def spoken(host: AgentHost, arena: Arena, agent: str = "ada") -> str:
    number = len(arena.outcomes)
    tell(host, make_ask(number, agent))
    reply = (await arena.wait(number + 1))[-1]
    assert isinstance(reply, Reply)
    return reply.adapter


async def test_adapters_are_swapped_for_their_agent_alone() -> None:
    backend = Fake(ok)
    host, arena = await started(backend)
    assert await spoken(host, arena) == ""
    assert await host.publish(version(1)) == "ada@r-v1"
    assert await spoken(host, arena) == "ada@r-v1"
    assert await spoken(host, arena, "bo") == ""
    await host.publish(version(2))
    await host.publish(version(2))  # twice is once
    assert await spoken(host, arena) == "ada@r-v2"
    assert backend.log == ["start", "load ada@r-v1", "load ada@r-v2", "unload ada@r-v1", "load ada@r-v2"]
    await host.close()


async def test_an_adapter_that_cannot_be_loaded_leaves_the_old_one() -> None:
    backend = Fake(ok)
    host, arena = await started(backend)
    await host.publish(version(1))
    with pytest.raises(AgentError, match="does not fit"):
        await host.publish(version(2, "broken"))
    assert await spoken(host, arena) == "ada@r-v1"
    assert "unload ada@r-v1" not in backend.log
    await host.close()


async def test_an_adapter_is_unloaded_once_nobody_speaks_through_it() -> None:
    gate = asyncio.Event()

    async def wait(ask: Ask, adapter: AdapterRef | None) -> str:
        if adapter is not None and adapter.name == "ada@r-v1":
            await gate.wait()
        return "fine"

    backend = Fake(wait)
    host, arena = await started(backend)
    await host.publish(version(1))
    tell(host, make_ask(0), make_ask(1))
    await asyncio.sleep(0.001)
    await host.publish(version(2))
    tell(host, make_ask(2))
    (newer,) = await arena.wait(1)
    assert isinstance(newer, Reply) and newer.adapter == "ada@r-v2"  # whoever asks from now on gets the new one
    assert "unload ada@r-v1" not in backend.log
    gate.set()
    older = (await arena.wait(3))[1:]
    assert [item.adapter for item in older if isinstance(item, Reply)] == ["ada@r-v1", "ada@r-v1"]
    assert backend.log[-1] == "unload ada@r-v1"
    await host.close()


@pytest.mark.parametrize("hangs", [False, True])
async def test_a_reply_waits_for_no_unloading_whatever_comes_of_that(hangs: bool) -> None:
    class Stubborn(Fake):
        async def unload_adapter(self, adapter: AdapterRef) -> None:
            if hangs:
                await asyncio.Event().wait()
            raise RuntimeError("remove_lora failed")

    gate = asyncio.Event()

    async def wait(ask: Ask, adapter: AdapterRef | None) -> str:
        await gate.wait()
        return "fine"

    host, arena = await started(Stubborn(wait))
    await host.publish(version(1))
    tell(host, make_ask(0))
    await asyncio.sleep(0.001)
    await host.publish(version(2))
    gate.set()
    (outcome,) = await arena.wait(1)
    assert isinstance(outcome, Reply) and outcome.adapter == "ada@r-v1"
    assert (host.stats().queued, host.stats().running, host.stats().replies) == (0, 0, 1)
    async with asyncio.timeout(10):
        await host.close()


async def test_outcomes_go_to_the_arena_that_asked() -> None:
    host, arena = await started(Fake(ok))
    other = Arena()
    host.connect("b", other.send)
    tell(host, make_ask(1))
    tell(host, make_ask(2), arena="b")
    tell(host, make_ask(3), arena="unknown")
    assert [item.ask_id for item in await arena.wait(1)] == [make_ask(1).id]
    assert [item.ask_id for item in await other.wait(1)] == [make_ask(2).id]
    await host.disconnect("b")
    tell(host, make_ask(4), arena="b")
    tell(host, make_ask(5))
    await arena.wait(2)
    assert len(other.outcomes) == 1
    await host.close()


async def test_a_dead_arena_does_not_stop_the_host() -> None:
    host, arena = await started(Fake(ok))

    async def dead(packed: bytes) -> None:
        raise HostLostError("gone")

    host.connect("dead", dead)
    tell(host, make_ask(1), arena="dead")
    tell(host, make_ask(2))
    await arena.wait(1)
    await host.close()


async def test_a_host_stops_where_a_living_arena_cannot_take_its_outcomes() -> None:
    host, other = await started(Fake(ok))

    async def broken(packed: bytes) -> None:
        raise TypeError("a bug")

    host.connect("broken", broken)
    tell(host, make_ask(1), arena="broken")
    assert "arena broken does not take its outcomes any more" in (await other.wait_stopped()).reason
    await host.close()


async def test_what_a_dead_arena_did_not_take_goes_to_its_successor() -> None:
    backend = Fake(ok)
    host, _ = await started(backend)

    async def dead(packed: bytes) -> None:
        raise HostLostError("gone")

    host.connect("a", dead)
    tell(host, make_ask(1))
    async with asyncio.timeout(10):
        while host.stats().replies < 1:
            await asyncio.sleep(0)
    successor = Arena()
    assert host.connect("a", successor.send) == [make_ask(1).id]
    tell(host, make_ask(1), make_ask(2))  # it cannot know that the first is on its way
    assert sorted(item.ask_id for item in await successor.wait(2)) == [make_ask(1).id, make_ask(2).id]
    assert len(backend.tries) == 2
    tell(host, make_ask(1))  # it was on its way here when the outcome was on its way there
    await asyncio.sleep(0)
    assert len(backend.tries) == 2
    last = Arena()
    assert host.connect("a", last.send) == []  # the successor died with it, and had not written it down
    tell(host, make_ask(1))
    await last.wait(1)
    assert len(backend.tries) == 3
    await host.close()


async def test_a_host_is_asked_only_once_it_is_started() -> None:
    host = AgentHost("h", Fake(ok), Limits())
    with pytest.raises(AgentError, match="asked before it was started"):
        tell(host, make_ask())


async def test_starting_twice_starts_once_and_closing_frees_everything() -> None:
    async def hang(ask: Ask, adapter: AdapterRef | None) -> str:
        await asyncio.sleep(100)
        return "never"

    backend = Fake(hang)
    host, arena = await started(backend)
    await host.start()
    tell(host, make_ask(1), make_ask(2))
    await asyncio.sleep(0.001)
    await host.close()
    assert backend.log == ["start", "close"]
    assert arena.outcomes == []


async def test_faults_of_a_simulated_model_end_in_replies_or_failures() -> None:
    settings = ScriptedSettings(faults={"transient": 0.3, "refused": 0.1}, latency_s=0.0001)
    host, arena = AgentHost("h", ScriptedBackend(settings), Limits(backoff_s=0.0)), Arena()
    await host.start()
    host.connect("a", arena.send)
    tell(host, *(make_ask(number) for number in range(300)))
    outcomes = await arena.wait(300)
    assert len({item.ask_id for item in outcomes}) == 300
    assert 20 < sum(isinstance(item, Failure) for item in outcomes) < 80
    await host.close()


@pytest.mark.parametrize(
    ("limits", "said"),
    [
        ({"max_tries": 0}, "max_tries=0 must be a number from 1 to"),
        ({"timeout_s": 0.0}, "timeout_s=0 must be a number above 0"),
        ({"backoff_s": -1.0}, "backoff_s=-1 must be a number from 0 up"),
        ({"hedge_after_s": -1.0}, "hedge_after_s=-1 must be a number from 0 up"),
        ({"tokens_per_minute": float("nan")}, "tokens_per_minute=nan must be a finite number from 0 up"),
    ],
)
async def test_limits_that_make_no_sense_are_refused(limits: dict[str, int], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Limits(**limits)


@pytest.mark.parametrize("kind", ["authentication", "quota"])
async def test_what_no_other_ask_would_fare_better_at_stops_the_host(kind: FailureKind) -> None:
    refused = asyncio.Event()

    async def one_refused(ask: Ask, adapter: AdapterRef | None) -> str:
        if ask.id == make_ask(0).id:
            while backend.inside < 3:
                await asyncio.sleep(0)
            refused.set()
            raise ReplyError("your key is not known.", kind)
        await refused.wait()
        await asyncio.sleep(0.01)
        return "fine"

    backend = Fake(one_refused)
    host, arena = await started(backend, max_concurrency=3)
    tell(host, *(make_ask(number) for number in range(100)))
    stopped = await arena.wait_stopped()
    tell(host, make_ask(200))
    await asyncio.sleep(0.01)
    said = f"model 'h' was refused ({kind}): your key is not known; mend it, then go on with `moot resume RUN`"
    assert stopped == Stopped("h", said)
    assert [item.ask_id for item in arena.outcomes] == [make_ask(1).id, make_ask(2).id]  # were in the model: paid for
    assert len(backend.tries) == 3  # nothing is failed, nothing more is sent
    assert (host.stats().stopped, host.stats().queued, host.stats().failures) == (said, 0, {})
    late = Arena()
    host.connect("late", late.send)
    assert await late.wait_stopped() == stopped
    await host.close()


async def test_a_pause_longer_than_anybody_waits_stops_the_host() -> None:
    async def tomorrow(ask: Ask, adapter: AdapterRef | None) -> str:
        raise ReplyError("daily limit", "rate_limited", 40_000.0)

    host, arena = await started(Fake(tomorrow))
    tell(host, make_ask())
    assert "daily limit; it asks for a pause of 40000 s; mend it" in (await arena.wait_stopped()).reason
    assert arena.outcomes == []
    await host.close()


async def test_halting_lets_what_is_in_the_model_finish_and_withholds_the_rest() -> None:
    async def slow(ask: Ask, adapter: AdapterRef | None) -> str:
        await asyncio.sleep(0.02)
        if ask.id == make_ask(0).id:
            raise ReplyError("busy", "transient")
        return "fine"

    backend = Fake(slow)
    host, arena = await started(backend, max_concurrency=2)
    tell(host, *(make_ask(number) for number in range(10)))
    await asyncio.sleep(0.001)
    await host.halt("enough")
    assert [item.ask_id for item in arena.outcomes] == [make_ask(1).id]  # ask 0 would be tried again: not now
    assert arena.stopped == [Stopped("h", "enough")] and len(backend.tries) == 2
    await host.close()


async def test_a_slow_try_is_hedged_and_the_first_reply_counts() -> None:
    async def first_hangs(ask: Ask, adapter: AdapterRef | None) -> str:
        if len(backend.tries) == 1:
            await asyncio.sleep(100)
        return "fine"

    backend = Fake(first_hangs)
    price = Price(input=1.0, output=1.0)
    host, arena = await started(backend, meter=Meter(price), hedge_after_s=0.01)
    tell(host, make_ask())
    (outcome,) = await arena.wait(1)
    assert isinstance(outcome, Reply) and outcome.tries == 2 and backend.inside == 0
    (attempt,) = outcome.attempts
    assert (attempt.kind, attempt.reason) == ("timeout", "hedged") and attempt.latency_s >= 0.01
    assert attempt.cost_usd == Meter(price).most(make_ask()).usd  # the dropped try may be billed
    assert host.stats().hedged == 1
    await host.close()


async def test_a_fast_try_is_not_hedged_and_two_that_fail_are_one_failure() -> None:
    async def fail(ask: Ask, adapter: AdapterRef | None) -> str:
        if ask.id == make_ask(1).id:
            await asyncio.sleep(0.02 if len(backend.tries) == 2 else 0.0)
            raise ReplyError(f"no {len(backend.tries)}", "refused")
        return "fine"

    backend = Fake(fail)
    host, arena = await started(backend, hedge_after_s=0.01)
    tell(host, make_ask(0))
    (fast,) = await arena.wait(1)
    assert isinstance(fast, Reply) and fast.tries == 1 and fast.attempts == () and len(backend.tries) == 1
    tell(host, make_ask(1))
    failed = (await arena.wait(2))[1]
    assert isinstance(failed, Failure) and (failed.kind, failed.tries) == ("refused", 2)
    await host.close()


class WatchedGate:
    """Notes who passes; turns away whom it is told to."""

    def __init__(self, name: str, log: list[str], refuses: str = "") -> None:
        self.name, self.log, self.refuses = name, log, refuses
        self.hints: list[Hint] = []

    async def enter(self, ask: Ask) -> str:
        self.log.append(f"enter {self.name}")
        if self.refuses:
            raise ReplyError(self.refuses, "quota")
        return ask.id

    def leave(self, ticket: str, outcome: Reply | ReplyError | None) -> None:
        shown = outcome.kind if isinstance(outcome, ReplyError) else type(outcome).__name__
        self.log.append(f"leave {self.name} {shown}")

    def hint(self, hint: Hint) -> None:
        self.hints.append(hint)

    def figures(self) -> dict[str, float]:
        return {"seen": float(len(self.log))}


async def test_every_try_passes_the_gates_in_order_and_leaves_them() -> None:
    async def second(ask: Ask, adapter: AdapterRef | None) -> str:
        if len(backend.tries) == 1:
            raise ReplyError("busy", "rate_limited")
        return "fine"

    backend, seen = Fake(second), list[str]()
    gates = {"one": WatchedGate("1", seen), "two": WatchedGate("2", seen)}
    host, arena = AgentHost("h", backend, Limits(backoff_s=0.0), gates), Arena()
    await host.start()
    host.connect("a", arena.send)
    tell(host, make_ask())
    await arena.wait(1)
    both = ["enter 1", "enter 2"]
    assert seen == [*both, "leave 2 rate_limited", "leave 1 rate_limited", *both, "leave 2 Reply", "leave 1 Reply"]
    assert host.stats().gates == {"one": {"seen": 8.0}, "two": {"seen": 8.0}}
    await host.close()


async def test_a_gate_that_refuses_stops_the_host_before_anything_is_sent() -> None:
    backend, seen = Fake(ok), list[str]()
    gates = [WatchedGate("1", seen)]
    host = AgentHost("h", backend, Limits(), {"one": gates[0], "two": WatchedGate("2", seen, "paused: spent")})
    arena = Arena()
    await host.start()
    host.connect("a", arena.send)
    tell(host, make_ask())
    assert await arena.wait_stopped() == Stopped("h", "paused: spent")
    assert seen == ["enter 1", "enter 2", "leave 1 NoneType"] and backend.tries == [] and arena.outcomes == []
    await host.close()


async def test_what_headers_say_reaches_every_gate() -> None:
    class Telling(Fake):
        on_rate: OnRate | None = None

    backend, seen = Telling(ok), list[str]()
    gate = WatchedGate("1", seen)
    host, _ = await started(backend, gates=[gate])
    assert backend.on_rate is not None
    backend.on_rate(RateHint(limit_requests=60.0))
    assert gate.hints == [RateHint(limit_requests=60.0)]
    await host.close()


async def test_a_reply_carries_what_it_cost_unless_the_backend_knows_better() -> None:
    class Billed(Fake):
        async def generate(self, ask: Ask, adapter: AdapterRef | None) -> Reply:
            reply = await super().generate(ask, adapter)
            return msgspec.structs.replace(reply, cost_usd=0.5) if ask.id == make_ask(1).id else reply

    meter = Meter(Price(input=2.0, output=10.0, cached_input=1.0))
    host, arena = await started(Billed(ok), meter=meter)
    tell(host, make_ask(0), make_ask(1))
    costs = {item.ask_id: item.cost_usd for item in await arena.wait(2) if isinstance(item, Reply)}
    # 3 prompt tokens, 1 of them cached, 2 said: 2 * 2 + 1 * 1 + 2 * 10 = 25 dollars a million
    assert costs == {make_ask(0).id: pytest.approx(25e-6), make_ask(1).id: 0.5}
    assert host.stats().cost_usd == pytest.approx(0.500025)
    await host.close()


async def test_halting_does_not_wait_for_ever() -> None:
    async def hang(ask: Ask, adapter: AdapterRef | None) -> str:
        await asyncio.sleep(100)
        return "never"

    host, arena = await started(Fake(hang))
    tell(host, make_ask())
    await asyncio.sleep(0.001)
    await asyncio.wait_for(host.halt("enough", 0.02), 5)
    assert arena.outcomes == [] and arena.stopped == [Stopped("h", "enough")]
    await host.close()


async def test_a_held_host_sends_nothing_and_lets_finish_what_is_in_the_model() -> None:
    go = asyncio.Event()

    async def slow(ask: Ask, adapter: AdapterRef | None) -> str:
        await go.wait()
        return "fine"

    host, arena = await started(backend := Fake(slow))
    tell(host, make_ask(0))
    await asyncio.sleep(0.001)
    host.hold(True)
    tell(host, make_ask(1), make_ask(2))
    go.set()
    assert [outcome.ask_id for outcome in await arena.wait(1)] == [make_ask(0).id]
    await asyncio.sleep(0.01)
    assert len(backend.tries) == 1 and host.stats().held and host.stats().queued == 2
    host.hold(False)
    assert len(await arena.wait(3)) == 3 and not host.stats().held
    await host.close()


async def test_an_ask_that_is_held_behind_a_gate_gives_back_what_it_got_there() -> None:
    gate = Recording()
    host, arena = await started(backend := Fake(ok), gates=[gate])
    gate.entering = lambda: host.hold(True)
    tell(host, make_ask(0))
    await asyncio.sleep(0.01)
    assert gate.log == ["enter", "left unsent"] and backend.tries == []
    gate.entering = lambda: None
    host.hold(False)
    await arena.wait(1)
    assert gate.log == ["enter", "left unsent", "enter", "left"] and host.stats().retries == 0
    await host.close()


async def test_other_limits_count_from_now_on() -> None:
    go = asyncio.Event()

    async def slow(ask: Ask, adapter: AdapterRef | None) -> str:
        await go.wait()
        return "fine"

    async def hang(ask: Ask, adapter: AdapterRef | None) -> str:
        await asyncio.sleep(100)
        return "never"

    host, arena = await started(backend := Fake(slow), max_concurrency=2)
    tell(host, *(make_ask(number) for number in range(9)))
    await asyncio.sleep(0.001)
    assert backend.inside == 2 and host.stats().concurrency == 2
    host.retune(Limits(max_concurrency=5))
    await asyncio.sleep(0.001)
    assert backend.inside == 5 and host.stats().concurrency == 5
    host.retune(Limits(max_concurrency=1, timeout_s=0.001, max_tries=1))
    backend.behave, backend.most = hang, 0
    go.set()
    assert len(await arena.wait(9)) == 9 and backend.most == 1
    assert host.stats().replies == 5 and host.stats().failures == {"timeout": 4}
    host.retune(Limits())
    assert host.stats().concurrency == 100  # as the backend says
    await host.close()


class Recording:
    """A gate that writes down who passes it, and does something as they enter."""

    def __init__(self) -> None:
        self.log: list[str] = []
        self.entering: Callable[[], None] = lambda: None

    async def enter(self, ask: Ask) -> str:
        self.log.append("enter")
        self.entering()
        return ask.id

    def leave(self, ticket: str, outcome: Reply | ReplyError | None) -> None:
        self.log.append("left unsent" if outcome is None else "left")

    def hint(self, hint: Hint) -> None: ...

    def figures(self) -> dict[str, float]:
        return {}


@pytest.mark.parametrize("hedge_after_s", [0.0, 0.001])
async def test_a_model_that_is_down_leaves_its_asks_without_an_outcome_and_whoever_watches_is_told(
    hedge_after_s: float,
) -> None:
    async def down(ask: Ask, adapter: AdapterRef | None) -> str:
        await asyncio.sleep(0.01)
        raise EngineDownError("out of memory")

    host, arena = await started(Fake(down), hedge_after_s=hedge_after_s)
    watching = asyncio.ensure_future(host.watch())
    tell(host, make_ask(1))
    with pytest.raises(AgentError, match="out of memory"):
        await watching
    tell(host, make_ask(2))  # nobody is there to answer it
    await asyncio.sleep(0.02)
    assert not arena.outcomes and not arena.stopped
    await host.close()


async def test_watching_ends_when_the_host_is_closed() -> None:
    host, _ = await started(Fake(ok))
    watching = asyncio.ensure_future(host.watch())
    await asyncio.sleep(0)
    assert not watching.done()
    await host.close()
    await watching


async def test_an_ask_that_is_told_twice_is_asked_once() -> None:
    backend = Fake(ok)
    host, arena = await started(backend)
    tell(host, make_ask(1), make_ask(1))
    tell(host, make_ask(1), make_ask(2))
    assert sorted(outcome.ask_id for outcome in await arena.wait(2)) == ["d1#0.answer.0", "d2#0.answer.0"]
    assert len(backend.tries) == 2
    await host.close()


async def test_a_prepared_adapter_speaks_once_it_is_published_and_not_before() -> None:
    backend = Fake(ok)
    host, arena = await started(backend)
    ready = AdapterRef(name="ada@r-1", agent="ada", path="good")
    await host.prepare(ready)
    tell(host, make_ask(1))
    (first,) = await arena.wait(1)
    await host.publish(ready)
    await host.discard(ready)  # it is in use: not to be taken out
    tell(host, make_ask(2))
    second = (await arena.wait(2))[1]
    assert isinstance(first, Reply) and first.adapter == ""
    assert isinstance(second, Reply) and second.adapter == "ada@r-1"
    other = AdapterRef(name="ada@r-2", agent="ada", path="good")
    await host.prepare(other)
    await host.discard(other)
    assert backend.log[-2:] == ["load ada@r-2", "unload ada@r-2"]
    await host.close()
