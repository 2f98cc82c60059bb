"""Budgets: never passed, however many ask at once; never refused while what is under way may leave enough."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import msgspec
import pytest
import ray
from hypothesis import given
from hypothesis import strategies as st

from actors.limits.admission import Rates
from actors.limits.budget import Budget, Purse
from actors.limits.prices import NOTHING, Amount, Meter, Price, find_price, known_prices, prices_date
from actors.limits.queue_gate import Decision, Done, Ending, QueueGate, Want, local_gate
from actors.limits.shared_gate import PURSE, Keeper, Line
from protocols.errors import PausedError, ReplyError
from protocols.message import Ask, ImagePart, Message, Reply, Sampling, TextPart, Usage, user
from tests.actors.remote import Remote

ENDINGS: tuple[Ending, ...] = ("reply", "timeout", "unsent", "lost")
PRICE = Price(input=1_000.0, output=2_000.0)  # dear: a token costs 0.1 and 0.2 cents


def ask(number: int, text: str = "?", max_tokens: int = 100) -> Ask:
    return Ask(
        id=f"d#{number}", debate_id="d", agent="ada", role="r", messages=(user(text),),
        sampling=Sampling(max_tokens=max_tokens),
    )  # fmt: skip


def want(number: int, usd: float, tokens: int = 0) -> Want:
    return Want(str(number), Amount(usd, tokens), 0)


def test_what_is_reserved_is_settled_and_the_rest_is_free_again() -> None:
    purse = Purse(Budget(usd=1.0), Amount(0.2, 7))
    for number in range(3):
        purse.tell(want(number, 0.4), 0.0)
    assert purse.decide(0.0) == [Decision("0"), Decision("1")]
    assert tuple(purse.reserved) == pytest.approx((0.8, 0))
    assert purse.decide(0.0) == []  # the third may fit yet: it waits
    purse.tell(Done("0", "reply", Amount(0.1, 50)), 0.0)
    assert purse.decide(0.0) == []  # 0.3 spent, 0.4 reserved, 0.4 wanted
    purse.tell(Done("1", "unsent"), 0.0)
    assert purse.decide(0.0) == [Decision("2")]
    purse.tell(Done("2", "lost"), 0.0)  # nobody knows: the most
    assert tuple(purse.spent) == pytest.approx((0.7, 57)) and tuple(purse.reserved) == (0.0, 0)
    purse.tell(want(3, 0.4), 0.0)
    ((refused),) = purse.decide(0.0)
    assert refused == Decision(
        "3",
        "paused: budget of $1 spent ($0.7000, and the next ask may cost up to $0.4000); "
        "go on with `moot resume RUN --budget usd=Y`",
    )
    purse.tell(want(4, 0.3), 0.0)  # a cheaper one still fits
    assert purse.decide(0.0) == [Decision("4")]


def test_what_was_bought_before_goes_first_whatever_is_left() -> None:
    purse = Purse(Budget(usd=1.0), Amount(0.9, 0))
    purse.tell(want(0, 0.05), 0.0)
    purse.tell(msgspec.structs.replace(want(1, 0.4), bought=True), 0.0)
    assert purse.decide(0.0) == [Decision("1")]
    assert purse.reserved.usd == pytest.approx(0.4)  # the other waits: it may fit yet
    purse.tell(Done("1", "reply", Amount(0.02, 0)), 0.0)
    assert purse.decide(0.0) == [Decision("0")]
    purse.tell(msgspec.structs.replace(want(2, 0.4), bought=True), 0.0)
    purse.tell(Done("2", "unsent"), 0.0)  # it gave up before it was let go
    assert purse.decide(0.0) == [] and purse.figures(0.0)["running"] == 1


def test_what_a_lost_host_finds_again_is_not_charged_for_being_lost() -> None:
    purse = Purse(Budget(usd=10.0))
    purse.tell(want(0, 3.0), 0.0)
    purse.tell(msgspec.structs.replace(want(1, 4.0), kept=True), 0.0)
    assert purse.decide(0.0) == [Decision("0"), Decision("1")]
    for name in "01":
        purse.tell(Done(name, "lost"), 0.0)
    assert purse.spent.usd == 3.0 and purse.reserved.usd == 0.0


def test_tokens_have_a_budget_of_their_own() -> None:
    purse = Purse(Budget(tokens=100))
    purse.tell(want(0, 9.0, 60), 0.0)
    purse.tell(want(1, 9.0, 120), 0.0)
    assert purse.decide(0.0) == [
        Decision("0"),
        Decision(
            "1",
            "paused: budget of 100 tokens spent (0, and the next ask may take up to 120); "
            "go on with `moot resume RUN --budget tokens=Y`",
        ),
    ]


def test_no_budget_lets_everything_through_and_still_counts() -> None:
    purse = Purse(Budget())
    purse.tell(want(0, 1e9, 10**9), 0.0)
    assert purse.decide(0.0) == [Decision("0")]
    purse.tell(Done("0", "reply", Amount(5.0, 6)), 0.0)
    assert purse.spent == (5.0, 6)


@given(st.data())
def test_the_cap_is_never_passed_and_nobody_waits_for_nothing(data: st.DataObject) -> None:
    cap = Budget(usd=data.draw(st.floats(0.01, 10)), tokens=data.draw(st.integers(0, 1_000)))
    purse, next_id, settled = Purse(cap), 0, 0.0
    running: dict[str, Amount] = {}
    waiting = set[str]()
    wants = dict[str, Amount]()
    for _ in range(data.draw(st.integers(1, 80))):
        if bool(running) & data.draw(st.booleans()):
            key = data.draw(st.sampled_from(sorted(running)))
            most = running.pop(key)
            share = data.draw(st.floats(0, 1))
            ending = data.draw(st.sampled_from(ENDINGS))
            spent = Amount(most.usd * share, int(most.tokens * share))
            purse.tell(Done(key, ending, spent), 0.0)
            settled += {"unsent": 0.0, "lost": most.usd}.get(ending, spent.usd)
        else:
            wants[str(next_id)] = Amount(data.draw(st.floats(0, 3)), data.draw(st.integers(0, 300)))
            purse.tell(Want(str(next_id), wants[str(next_id)], 0), 0.0)
            waiting.add(str(next_id))
            next_id += 1
        for decision in purse.decide(0.0):
            waiting.remove(decision.id)
            if not decision.refusal:
                running[decision.id] = wants[decision.id]
        assert purse.spent.usd == pytest.approx(settled)
        assert purse.reserved.usd == pytest.approx(sum(most.usd for most in running.values()), abs=1e-9)
        assert purse.spent.usd + purse.reserved.usd <= cap.usd + 1e-6
        assert not cap.tokens or purse.spent.tokens + purse.reserved.tokens <= cap.tokens
        assert running or not waiting  # who waits, waits for somebody


async def spend(gate: QueueGate, number: int, draw: random.Random) -> Amount:
    """One caller, as a host makes it: enter, work, leave. Returns: what it cost in truth."""
    this = ask(number, max_tokens=draw.randint(1, 200))
    ticket = await gate.enter(this)
    await asyncio.sleep(0.002 * draw.random())
    most = Meter(PRICE).most(this)
    if draw.random() < 0.1:
        gate.leave(ticket, ReplyError("late", "timeout"))
        return Amount(most.usd * draw.random(), 0)  # billed, as it may be
    usage = Usage(1, draw.randint(1, this.sampling.max_tokens))
    cost = PRICE.cost_usd(usage)
    gate.leave(ticket, Reply(ask_id=this.id, text="", model="m", usage=usage, cost_usd=cost))
    return Amount(cost, usage.total_tokens)


@pytest.mark.asyncio
@pytest.mark.parametrize("num_hosts", [1, 4])
async def test_a_thousand_callers_at_once_never_pass_the_cap(num_hosts: int) -> None:
    draw, cap = random.Random(7), 20.0
    keeper = Keeper(Budget(usd=cap))
    lines = [Line(f"h{number}", Remote(keeper), pytest.fail) for number in range(num_hosts)]
    gates = [line.gate(PURSE, Meter(PRICE)) for line in lines]
    results = await asyncio.wait_for(
        asyncio.gather(
            *(spend(gates[number % num_hosts], number, draw) for number in range(1_000)), return_exceptions=True
        ),
        60,
    )
    for line in lines:
        await line.close()
    paid = [result for result in results if isinstance(result, Amount)]
    refused = [result for result in results if isinstance(result, ReplyError)]
    assert len(paid) + len(refused) == 1_000 and refused and all(err.kind == "quota" for err in refused)
    assert sum(amount.usd for amount in paid) <= cap
    most = max(Meter(PRICE).most(ask(0, max_tokens=200)).usd, 0.0)
    assert cap - most < (await keeper.spent()).usd <= cap + 1e-9  # and it is used up to one ask


@pytest.mark.asyncio
@pytest.mark.parametrize("told", [True, False])
async def test_an_account_is_one_for_all_hosts_and_a_dead_host_gives_back_what_it_held(told: bool) -> None:
    """At once, where somebody tells of the death; else when it has long been silent."""
    now = [0.0]
    keeper = Keeper(Budget(usd=1.0), lease_s=60.0, clock=lambda: now[0])
    dead, alive = (Line(name, Remote(keeper), pytest.fail) for name in ("dead", "alive"))
    for line in (dead, alive):
        await line.open("acc", Rates(max_concurrency=1))
    held = await dead.gate("acc", Meter()).enter(ask(0))
    assert held.id == "0"
    purse = dead.gate(PURSE, Meter(Price(input=0.0, output=4_000.0)))
    await purse.enter(ask(0, max_tokens=100))  # may cost $0.4
    waiting = asyncio.ensure_future(alive.gate("acc", Meter()).enter(ask(1)))
    await asyncio.sleep(0.02)
    assert not waiting.done()
    dead._listening.cancel()  # type: ignore[union-attr]  # its process is gone
    await asyncio.sleep(0.01)
    if told:
        await keeper.forget("dead")
        await keeper.forget("dead")  # twice does no harm
    else:
        now[0] = 61.0
        await keeper.listen("alive", 0.0)
    await asyncio.wait_for(waiting, 5)
    assert (await keeper.spent()).usd == pytest.approx(0.4)
    await alive.refresh()
    assert (await keeper.figures())["acc"]["running"] == 1.0
    alive._listening.cancel()  # type: ignore[union-attr]
    await asyncio.sleep(0)


@pytest.mark.asyncio
async def test_a_keeper_that_dies_is_told_to_the_host() -> None:
    class Dead:
        def __getattr__(self, name: str) -> Any:
            class Call:
                async def remote(self, *args: Any) -> None:
                    raise ray.exceptions.ActorDiedError()

            return Call()

    said: list[str] = []
    line = Line("h", Dead(), said.append)
    for call in (line.open("a", Rates()), line.retune("a", Rates()), line.refresh()):
        with pytest.raises(PausedError, match="go on with `moot resume RUN`"):  # the run is over, not this host
            await call
    waiting = asyncio.ensure_future(line.gate(PURSE, Meter()).enter(ask(0)))
    await asyncio.sleep(0.01)
    assert said and said[0].startswith("the process that keeps the run's limits died")
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)


@pytest.mark.asyncio
async def test_a_refused_ask_is_a_quota_error() -> None:
    gate = local_gate("purse", Purse(Budget(usd=0.001)), Meter(PRICE))
    with pytest.raises(ReplyError, match="paused: budget of") as error:
        await gate.enter(ask(0))
    assert error.value.kind == "quota"


# 1 byte, 1 message, the preamble, 100 tokens of reply: 1 + 32 + 256 = 289; 289 * 0.001 + 100 * 0.002 = 0.489
def test_the_most_an_ask_can_come_to() -> None:
    assert tuple(Meter(PRICE).most(ask(0))) == pytest.approx((0.489, 389))
    image = ImagePart(sha256="0" * 64)
    seen = Ask(
        id="d#0", debate_id="d", agent="a", role="r", messages=(Message("user", (image, image, TextPart("ä"))),),
        sampling=Sampling(max_tokens=1),
    )  # fmt: skip
    assert Meter(Price(input=0, output=0, image_tokens=1_000)).most(seen).tokens == 2_000 + 2 + 288 + 1
    assert Meter().most(ask(0)).usd == 0.0


def test_what_a_failed_try_is_charged() -> None:
    meter = Meter(PRICE)
    assert meter.charged(ask(0), ReplyError("", "rate_limited")) == NOTHING
    assert meter.charged(ask(0), ReplyError("", "timeout")) == meter.most(ask(0))


def test_costs_by_hand() -> None:
    price = Price(input=2.0, cached_input=0.5, output=8.0, long_from=1_000, long_input=4.0, long_output=16.0)
    assert price.cost_usd(Usage(1_000, 100, 400)) == pytest.approx((600 * 2 + 400 * 0.5 + 100 * 8) / 1e6)
    assert price.cost_usd(Usage(1_001, 100, 400)) == pytest.approx((1_001 * 4 + 100 * 16) / 1e6)
    assert Price(input=2.0, output=8.0).cost_usd(Usage(10, 0, 99)) == pytest.approx(20 / 1e6)
    assert price.most_usd(10, 10) == pytest.approx(200 / 1e6)


@given(st.integers(0, 10**6), st.integers(0, 10**6), st.integers(0, 10**6), st.sampled_from(sorted(known_prices())))
def test_no_reply_costs_more_than_its_most(prompt: int, said: int, cached: int, model: str) -> None:
    price = known_prices()[model]
    assert price.cost_usd(Usage(prompt, said, min(cached, prompt))) <= price.most_usd(prompt, said) + 1e-9


def test_prices_are_found_by_model_dated_model_and_the_users_own_first() -> None:
    assert find_price("gpt-4o-mini") == known_prices()["gpt-4o-mini"]
    assert find_price("claude-sonnet-4-20250514") == known_prices()["claude-sonnet-4"]
    assert find_price("gpt-4.1-2025-04-14") == known_prices()["gpt-4.1"]
    five = find_price("gpt-4o-2024-05-13")  # a version with a price of its own
    assert five is not None and five.input == 5.0
    assert find_price("gpt-4o", {"gpt-4o": PRICE}) == PRICE
    assert find_price("openai/gpt-4o") is None and find_price("nobody-knows") is None
    assert prices_date().count("-") == 2


def test_the_list_makes_sense() -> None:
    for model, price in known_prices().items():
        assert 0 < price.input <= price.output, model
        assert price.cached_input is None or price.cached_input < price.input, model
        assert not price.long_from or (price.long_input > price.input and price.long_output > price.output), model


@pytest.mark.parametrize("wrong", [{"usd": -1.0}, {"usd": float("nan")}, {"usd": float("inf")}, {"tokens": -1}])
def test_budgets_that_make_no_sense_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"must be a (finite )?number from 0 up"):
        Budget(**wrong)
