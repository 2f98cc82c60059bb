"""Admission: rates that are never passed, concurrency that finds its level, first come first served, no silent jam."""

from __future__ import annotations

import asyncio
import heapq
import logging
import random
import statistics
from bisect import bisect_left
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.limits.admission import FIRST_CONCURRENCY, WINDOW_S, Account, Bucket, Concurrency, Rates
from actors.limits.gate import RateHint
from actors.limits.prices import NOTHING, Amount, Meter
from actors.limits.queue_gate import Decision, Desk, Done, Ending, Want, local_gate
from protocols.errors import ReplyError
from protocols.message import Ask, Reply, Sampling, Usage, user

ENDINGS: tuple[Ending, ...] = ("reply", "rate_limited", "timeout", "lost", "unsent")


def want(number: int, tokens: int = 10) -> Want:
    return Want(str(number), NOTHING, tokens)


def admitted(account: Account, now_s: float) -> list[str]:
    return [decision.id for decision in account.decide(now_s)]


def done(number: int, ending: Ending = "reply", retry_after_s: float | None = None, tokens: int = 10) -> Done:
    return Done(str(number), ending, Amount(0.0, tokens), 5, retry_after_s)


@given(
    limit=st.integers(2, 2_000),
    waits=st.lists(st.floats(0, 30), min_size=1, max_size=120),
)
def test_no_minute_holds_more_than_the_limit(limit: int, waits: list[float]) -> None:
    bucket, now, taken = Bucket(limit, 0.0), 0.0, list[float]()
    for wait in waits:
        now += wait
        while bucket.wait_s(1.0, now) == 0.0 and len(taken) < 5_000:
            bucket.take(1.0, now)
            taken.append(now)
    for number, start in enumerate(taken):
        assert bisect_left(taken, start + WINDOW_S) - number <= limit + 1e-6


def test_a_bucket_gives_a_burst_then_what_is_left_of_the_minute() -> None:
    bucket = Bucket(60.0, 0.0)
    for _ in range(10):  # a sixth at once
        assert bucket.wait_s(1.0, 0.0) == 0.0
        bucket.take(1.0, 0.0)
    assert bucket.wait_s(1.0, 0.0) == pytest.approx(1.2)  # 50 more over 60 s
    assert bucket.wait_s(1.0, 1.2) == pytest.approx(0.0)
    bucket.take(-1.0, 1.2)  # taken in vain
    assert bucket.wait_s(2.0, 1.2) == pytest.approx(0.0)


def test_one_ask_larger_than_the_burst_goes_when_the_bucket_is_full_and_leaves_a_debt() -> None:
    bucket = Bucket(600.0, 0.0)  # burst 100, 500 / 60 a second
    assert bucket.wait_s(400.0, 0.0) == 0.0
    bucket.take(400.0, 0.0)
    assert bucket.wait_s(1.0, 0.0) == pytest.approx(301 * 60 / 500)


def test_concurrency_doubles_a_window_until_the_first_trouble_then_grows_by_one() -> None:
    level, now = Concurrency(1_000), 0.0
    sizes = []
    for _ in range(4):
        for _ in range(int(level.limit)):
            level.succeeded(now, now + 1.0, 5, full=True)
        now += 1.0
        sizes.append(level.limit)
    assert sizes == [16, 32, 64, 128]
    for _ in range(30):  # a burst of refusals of what was sent together is one trouble
        level.troubled(now, now + 0.5)
    assert level.limit == 64
    for _ in range(64):
        level.succeeded(now + 0.5, now + 1.5, 5, full=True)
    assert 64.9 < level.limit < 65.1
    level.succeeded(now + 0.5, now + 1.5, 5, full=False)  # no reason to raise what is not in use
    assert level.limit < 65.1


def test_latency_a_token_that_inflates_is_trouble_and_long_replies_are_not() -> None:
    level = Concurrency(8)
    for _ in range(8):
        level.succeeded(0.0, 1.0, 80, full=False)  # 10 ms a token
    for _ in range(8):
        level.succeeded(1.0, 11.0, 980, full=False)  # a long reply at the same pace
    assert level.limit == 8
    for _ in range(8):
        level.succeeded(11.0, 15.0, 80, full=False)  # four times as slow
    assert level.limit == 4


def test_a_service_that_takes_milliseconds_is_not_in_trouble() -> None:
    level = Concurrency(8)
    for latency_s in (0.002, 0.05):  # a local server, then the same beside other work
        for _ in range(8):
            level.succeeded(0.0, latency_s, 5, full=False)
    assert level.limit == 8


def test_concurrency_stays_between_one_and_the_longest() -> None:
    level = Concurrency(20)
    for number in range(100):
        level.succeeded(float(number), number + 1.0, 5, full=True)
    assert level.limit == 20
    for number in range(200, 240):
        level.troubled(float(number), float(number))
    assert level.limit == 1.0


def test_first_come_first_served_and_each_admitted_once() -> None:
    account = Account(Rates(), 0.0)
    for number in range(20):
        account.tell(want(number), 0.0)
    assert admitted(account, 0.0) == [str(number) for number in range(int(FIRST_CONCURRENCY))]
    assert admitted(account, 0.0) == [] and account.next_s(0.0) is None
    account.tell(done(3), 1.0)
    account.tell(done(3), 1.0)  # twice is once
    assert admitted(account, 1.0) == ["8", "9"]  # its place, and one more: slow start
    account.tell(done(10, "unsent"), 1.0)  # gave up waiting
    account.tell(done(0), 1.0)
    assert admitted(account, 1.0) == ["11", "12"]


def test_an_account_that_asks_for_a_pause_is_left_alone_by_all() -> None:
    account = Account(Rates(), 0.0)
    for number in range(4):
        account.tell(want(number), 0.0)
    assert len(admitted(account, 0.0)) == 4
    account.tell(done(0, "rate_limited", retry_after_s=20.0), 1.0)
    account.tell(done(1, "rate_limited", retry_after_s=5.0), 1.0)
    account.tell(want(9), 2.0)
    assert admitted(account, 2.0) == [] and account.next_s(2.0) == pytest.approx(21.0)
    assert account.figures(2.0)["paused_s"] == pytest.approx(19.0)
    assert admitted(account, 21.0) == ["9"]
    assert account.concurrency.limit == FIRST_CONCURRENCY / 2


@pytest.mark.parametrize(
    ("ending", "retry_after_s", "limit"),
    [
        ("transient", 2.0, 4),
        ("rate_limited", None, 4),
        ("transient", None, 8),
        ("timeout", None, 8),
        ("refused", None, 8),
    ],
)
def test_what_counts_as_trouble(ending: Ending, retry_after_s: float | None, limit: int) -> None:
    account = Account(Rates(), 0.0)
    account.tell(want(0), 0.0)
    account.decide(0.0)
    account.tell(done(0, ending, retry_after_s), 1.0)
    assert account.concurrency.limit == limit


def driven(num_asks: int, refuses: Callable[[int], bool]) -> tuple[float, float]:
    """Drive an account whose service answers in a second and refuses at once. Asks enough always wait.

    Args:
        refuses: told how many asks the service is answering.
    Returns: asks in flight on average, and the share that was refused, over the second half.
    """
    account, now, next_id = Account(Rates(), 0.0), 0.0, 0
    ends: list[tuple[float, int, Ending]] = []
    answering, sizes, endings = 0, list[float](), list[Ending]()
    while len(endings) < num_asks:
        for _ in range(1_000 - next_id + len(endings)):
            account.tell(want(next_id), now)
            next_id += 1
        for key in admitted(account, now):
            refused = refuses(answering)
            answering += not refused
            heapq.heappush(ends, (now + (0.05 if refused else 1.0), int(key), "rate_limited" if refused else "reply"))
        now, number, ending = heapq.heappop(ends)
        answering -= ending == "reply"
        account.tell(done(number, ending), now)
        sizes.append(account.concurrency.limit)
        endings.append(ending)
    half = num_asks // 2
    return statistics.fmean(sizes[half:]), endings[half:].count("rate_limited") / (num_asks - half)


def test_concurrency_settles_where_the_service_has_its_limit() -> None:
    for limit in (3, 20, 100):
        in_flight, refused = driven(4_000, lambda answering, limit=limit: answering >= limit)  # type: ignore[misc]
        assert 0.8 * limit < in_flight < 1.2 * limit + 1 and refused < 0.3, (limit, in_flight, refused)


def test_a_service_that_refuses_at_random_keeps_its_work_and_one_that_refuses_all_is_left_alone() -> None:
    for share, least in ((0.05, 30), (0.1, 12), (0.2, 4)):
        draw = random.Random(1)
        in_flight, _ = driven(4_000, lambda answering, draw=draw, share=share: draw.random() < share)  # type: ignore[misc]
        assert in_flight > least, share
    in_flight, refused = driven(4_000, lambda answering: True)
    assert (in_flight, refused) == (1.0, 1.0)


def test_headers_teach_limits_and_never_raise_what_the_user_set() -> None:
    account = Account(Rates(requests_per_minute=60.0), 0.0)
    account.tell(RateHint(limit_requests=600.0, limit_tokens=1_200.0, remaining_tokens=25.0), 0.0)
    assert (account.requests.limit, account.tokens.limit) == (60.0, 1_200.0)
    for number in range(4):
        account.tell(want(number, tokens=10), 0.0)
    assert admitted(account, 0.0) == ["0", "1"]  # 25 tokens remain
    assert account.next_s(0.0) == pytest.approx(5 * 60 / 1_000)  # 5 are missing; 1,000 a minute come in
    account.tell(done(0, tokens=2), 0.0)  # 8 were reserved in vain
    assert admitted(account, 0.0) == ["2"]
    account.tell(RateHint(remaining_requests=0.0), 0.0)
    account.tell(done(1), 0.0)
    assert admitted(account, 0.0) == []


@given(st.data())
def test_whatever_happens_nobody_is_lost_and_nobody_goes_twice(data: st.DataObject) -> None:
    account, now, next_id = Account(Rates(requests_per_minute=600.0), 0.0), 0.0, 0
    seen: set[str] = set()
    waiting: list[int] = []
    running: list[int] = []
    for _ in range(data.draw(st.integers(1, 60))):
        now += data.draw(st.floats(0, 5))
        if bool(running) & data.draw(st.booleans()):
            ending = data.draw(st.sampled_from(ENDINGS))
            account.tell(done(running.pop(0), ending, data.draw(st.none() | st.floats(0, 3))), now)
        else:
            account.tell(want(next_id), now)
            waiting.append(next_id)
            next_id += 1
        for key in admitted(account, now):
            assert key not in seen and int(key) == waiting.pop(0)
            seen.add(key)
            running.append(int(key))
        figures = account.figures(now)
        assert (figures["waiting"], figures["running"]) == (len(waiting), len(running))
        assert len(running) <= 1_000 and account.concurrency.limit >= 1.0
        assert running or not waiting or account.next_s(now) is not None  # somebody will come
    while waiting:  # and it always empties
        for number in running:
            account.tell(done(number), now)
        running = [int(key) for key in admitted(account, now)]
        del waiting[: len(running)]
        now = account.next_s(now) or now


def ask(number: int) -> Ask:
    return Ask(
        id=f"d#{number}", debate_id="d", agent="ada", role="r", messages=(user("?"),),
        sampling=Sampling(max_tokens=10),
    )  # fmt: skip


def reply(number: int) -> Reply:
    return Reply(ask_id=f"d#{number}", text="", model="m", usage=Usage(5, 5))


@pytest.mark.asyncio
async def test_callers_wait_at_the_gate_and_cancelled_ones_give_their_place_back() -> None:
    gate = local_gate("account", Account(Rates(max_concurrency=2), 0.0), Meter())
    first = [await gate.enter(ask(number)) for number in range(2)]
    waiting = [asyncio.ensure_future(gate.enter(ask(number))) for number in range(2, 5)]
    await asyncio.sleep(0.01)
    assert not any(task.done() for task in waiting) and gate.figures()["waiting"] == 3
    waiting[0].cancel()
    gate.leave(first[0], reply(0))
    second = await asyncio.wait_for(waiting[1], 5)
    gate.leave(first[1], ReplyError("busy", "rate_limited", 0.05))
    gate.leave(second, None)
    gate.leave(await asyncio.wait_for(waiting[2], 5), reply(4))
    await asyncio.sleep(0.01)
    assert (gate.figures()["waiting"], gate.figures()["running"]) == (0, 0)


class Jammed:
    """A core that lets nobody in."""

    def __init__(self) -> None:
        self.waiting = self.running = 0

    def tell(self, told: object, now_s: float) -> None:
        self.waiting += 1

    def decide(self, now_s: float) -> list[Decision]:
        return []

    def next_s(self, now_s: float) -> None:
        return None

    def figures(self, now_s: float) -> dict[str, float]:
        return {"waiting": float(self.waiting), "running": 0.0}


@pytest.mark.asyncio
async def test_a_queue_that_waits_on_itself_raises_an_alarm(caplog: pytest.LogCaptureFixture) -> None:
    desk = Desk("openai:gpt", Jammed(), lambda decision: None, alarm_s=0.02)
    with caplog.at_level(logging.ERROR, "moot.gate"):
        desk.tell([want(1)])
        for _ in range(200):
            await asyncio.sleep(0.01)
            if desk.alarms >= 2:
                break
    assert desk.figures()["alarms"] >= 2
    assert "openai:gpt: asks wait though none is under way" in caplog.text and "waiting 1" in caplog.text
    desk.close()


def test_other_rates_count_from_now_on_and_are_not_passed_either() -> None:
    account = Account(Rates(requests_per_minute=600.0), 0.0)
    for number in range(400):
        account.tell(want(number), 0.0)
    assert len(admitted(account, 0.0)) == 8  # as many at once as an account is given at first
    account.retune(Rates(requests_per_minute=6.0, max_concurrency=1_000), 0.0)
    for number in range(8):
        account.tell(done(number), 0.0)
    assert len(admitted(account, 0.0)) == 1  # the burst of the new rate
    assert account.figures(0.0)["requests_per_minute"] == 6.0
    account.retune(Rates(), 0.0)
    assert len(admitted(account, 0.0)) > 8 and account.figures(0.0)["requests_per_minute"] == 0.0
