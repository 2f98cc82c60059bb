"""The router: debates stay where their prefix is, no replica is crowded, and what a lost host held is asked again."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Iterator

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.post.router import CROWDED, SLACK, Router, Tell
from protocols.errors import HostLostError, UnreachableError
from protocols.message import Ask, Sampling, user

_ASKS = msgspec.msgpack.Decoder(list[Ask])


def ask(debate: int, number: int = 0, agent: str = "ada") -> Ask:
    return Ask(
        id=f"d{debate}#{number}.{agent}", debate_id=f"d{debate}", agent=agent, role="generator", messages=(user("?"),),
        sampling=Sampling(),
    )  # fmt: skip


@pytest.fixture(autouse=True, scope="module")
def _without_pace() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("actors.post.mailbox.PACE_S", 0.0)
        patched.setattr("actors.post.mailbox.PATIENCE_S", 0.0)
        yield


class Post:
    """Hosts of the model ``m``, and what each was told in its present life."""

    def __init__(self, *hosts: str) -> None:
        self.told: dict[str, list[str]] = {}
        self.errors: list[Exception] = []
        self.unwanted: set[str] = set()
        self.dead: set[str] = set()
        tells = {host: self.tell(host) for host in hosts}
        self.router = Router(
            {"ada": "m", "bo": "m"}, {"m": tells}, lambda ask: ask.id not in self.unwanted, self.errors.append
        )

    def tell(self, host: str) -> Tell:
        mine = self.told[host] = []

        async def tell(packed: bytes) -> None:
            if host in self.dead:
                raise HostLostError("killed")
            mine.extend(item.id for item in _ASKS.decode(packed))

        return tell

    def back(self, host: str) -> None:
        self.dead.discard(host)
        self.router.back(host, self.tell(host))


async def settled() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


@pytest.mark.asyncio
async def test_a_debate_stays_with_one_replica_and_debates_are_spread() -> None:
    post = Post("m/0", "m/1", "m/2")
    for number in range(4):
        post.router.put(ask(debate, number, agent) for debate in range(30) for agent in ("ada", "bo"))
    await settled()
    homes = {debate: {host for host, told in post.told.items() for item in told if item.startswith(f"d{debate}#")}
             for debate in range(30)}  # fmt: skip
    assert all(len(hosts) == 1 for hosts in homes.values())
    assert Counter(host for hosts in homes.values() for host in hosts) == {"m/0": 10, "m/1": 10, "m/2": 10}


@pytest.mark.asyncio
async def test_what_a_host_holds_already_is_asked_of_it_and_of_no_other() -> None:
    post = Post("m/0", "m/1")
    held = [ask(debate) for debate in range(6)]
    post.router.at_home("m/1", [item.id for item in held[::2]])
    post.router.put(held)
    await settled()
    assert {item.id for item in held[::2]} <= set(post.told["m/1"])
    assert len(post.told["m/0"]) == len(post.told["m/1"])  # the others go where there is room


@pytest.mark.asyncio
async def test_what_a_host_holds_already_is_asked_of_it_however_busy_it_is() -> None:
    post = Post("m/0", "m/1")
    held = [ask(debate) for debate in range(40)]
    one, other = ask(0, 1, "ada"), ask(0, 1, "bo")  # of one debate, which had moved between them
    post.router.at_home("m/1", [item.id for item in held] + [one.id])
    post.router.at_home("m/0", [other.id])
    post.router.put([*held, one, other])
    await settled()
    assert post.told == {"m/0": [other.id], "m/1": [*(item.id for item in held), one.id]}
    post.router.lost("m/1")  # and all that it knew with it
    await settled()
    assert post.told["m/0"] == [other.id, *(item.id for item in held), one.id]


@pytest.mark.asyncio
async def test_a_host_that_was_out_of_reach_is_not_asked_again_what_it_has_answered_meanwhile(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("actors.post.mailbox.AGAIN_S", 0.0)
    told: list[list[str]] = []
    errors: list[Exception] = []

    async def tell(packed: bytes) -> None:
        told.append([item.id for item in _ASKS.decode(packed)])
        if len(told) == 1:  # it heard, and answered, but we do not know
            router.over("d1#0.ada")
            raise UnreachableError("the network")

    router = Router({"ada": "m"}, {"m": {"m": tell}}, lambda ask: True, errors.append)
    router.put([ask(0), ask(1)], since=time.perf_counter())
    await settled()
    assert told == [["d0#0.ada", "d1#0.ada"], ["d0#0.ada"]] and errors == []
    assert sum(router.delays.counts) == 2  # each once, however often it was sent


@pytest.mark.asyncio
async def test_an_ask_that_is_put_twice_is_held_once() -> None:
    post = Post("m/0", "m/1")
    post.router.put([ask(0), ask(0)])
    post.router.put([ask(0)])
    assert sum(post.router.loads().values()) == 1
    post.router.over(ask(0).id)
    assert post.router.loads() == {"m/0": 0, "m/1": 0}


@pytest.mark.asyncio
async def test_a_debate_leaves_a_replica_that_is_much_busier_than_the_others() -> None:
    post = Post("m/0", "m/1")
    post.router.put(ask(debate) for debate in range(40))
    for debate in range(1, 40, 2):  # all that the second holds is answered
        post.router.over(ask(debate).id)
    assert post.router.loads() == {"m/0": 20, "m/1": 0}
    post.router.put([ask(0, 1)])
    assert post.router.loads() == {"m/0": 20, "m/1": 1}
    for debate in range(0, 40, 2):
        post.router.over(ask(debate).id)
    post.router.put([ask(0, 2)])  # it has moved for good
    assert post.router.loads() == {"m/0": 0, "m/1": 2}
    post.router.forget("d0")
    post.router.put([ask(0, 3)])
    assert post.router.loads() == {"m/0": 1, "m/1": 2}


@pytest.mark.asyncio
async def test_what_a_lost_host_held_goes_to_the_others_but_for_what_nobody_waits_for() -> None:
    post = Post("m/0", "m/1")
    post.router.put(ask(debate) for debate in range(6))
    await settled()
    held = list(post.told["m/0"])
    post.router.over(held[0])
    post.unwanted.add(held[1])
    post.router.lost("m/0")
    post.router.lost("m/0")  # twice does no harm
    await settled()
    assert post.told["m/1"][3:] == held[2:]
    assert post.router.loads() == {"m/0": 0, "m/1": 4}


@pytest.mark.asyncio
async def test_a_lost_host_is_told_nothing_more_though_a_batch_was_under_way() -> None:
    told: dict[str, list[str]] = {"m/0": [], "m/1": []}
    errors: list[Exception] = []
    hold = asyncio.Event()

    def tell(host: str) -> Tell:
        async def _tell(packed: bytes) -> None:
            told[host] += [item.id for item in _ASKS.decode(packed)]
            if host == "m/0":
                await hold.wait()

        return _tell

    router = Router({"ada": "m"}, {"m": {host: tell(host) for host in told}}, lambda ask: True, errors.append)
    router.put([ask(0)])
    await settled()
    router.put([ask(0, number) for number in (1, 2)])  # where its debate is at home: behind the batch
    router.lost("m/0")
    hold.set()
    await settled()
    assert not errors and told == {"m/0": [ask(0).id], "m/1": [ask(0, number).id for number in range(3)]}


@pytest.mark.asyncio
async def test_without_another_replica_asks_wait_until_the_host_is_back() -> None:
    post = Post("m")
    post.router.put([ask(0)])
    await settled()
    post.dead.add("m")
    post.router.put([ask(1)])  # found dead by the telling
    await settled()
    post.router.put([ask(2)])
    await settled()
    assert post.told["m"] == [ask(0).id] and not post.errors
    post.back("m")
    await settled()
    assert post.told["m"] == [ask(0).id, ask(1).id, ask(2).id]


@pytest.mark.asyncio
async def test_a_host_that_lives_and_takes_nothing_is_an_error() -> None:
    post = Post("m")

    async def refuse(packed: bytes) -> None:
        raise ValueError("no")

    post.router.back("m", refuse)
    post.router.put([ask(0)])
    await settled()
    assert [str(err) for err in post.errors] == ["no"]


Move = tuple[str, int]
MOVES = st.lists(st.tuples(st.sampled_from(["put", "put", "put", "over", "lost", "back"]), st.integers(0, 30)))


@given(MOVES, st.integers(1, 4))
def test_whatever_dies_every_ask_that_is_not_over_is_with_exactly_one_host(moves: list[Move], num_hosts: int) -> None:
    hosts = [f"m/{number}" for number in range(num_hosts)]

    async def play() -> None:
        post, open_asks, number = Post(*hosts), dict[str, Ask](), 0
        up = set(hosts)
        do: dict[str, Callable[[int], None]] = {}

        def put(drawn: int) -> None:
            nonlocal number
            number += 1
            new = ask(drawn % 7, number)
            open_asks[new.id] = new
            post.router.put([new])

        def over(drawn: int) -> None:
            if open_asks:
                name = sorted(open_asks)[drawn % len(open_asks)]
                del open_asks[name]
                post.router.over(name)

        def lost(drawn: int) -> None:
            up.discard(hosts[drawn % num_hosts])
            post.router.lost(hosts[drawn % num_hosts])

        def back(drawn: int) -> None:
            up.add(hosts[drawn % num_hosts])
            post.back(hosts[drawn % num_hosts])

        do = {"put": put, "over": over, "lost": lost, "back": back}
        for name, drawn in moves:
            do[name](drawn)
            await settled()
            loads = post.router.loads()
            assert sum(loads.values()) == len(open_asks)
            told = {item for host in up for item in post.told[host]}
            assert not up or open_asks.keys() <= told  # whoever lives has been told of all
        for host in hosts:
            post.back(host)
        await settled()
        assert open_asks.keys() <= {item for host in hosts for item in post.told[host]}

    asyncio.run(play())


@pytest.mark.asyncio
async def test_no_replica_is_crowded_while_debates_go_on() -> None:
    post = Post("m/0", "m/1", "m/2", "m/3")
    for number in range(50):
        post.router.put(ask(debate, number) for debate in range(8) if (debate * number) % 3 != 1)
        loads = post.router.loads().values()
        assert max(loads) <= CROWDED * sum(loads) / 4 + SLACK + 1
