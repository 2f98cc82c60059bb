"""Limits that all hosts of a cluster share: one Ray actor holds the desks, hosts send it batches and wait for its word.

A host tells what asks and what ended in one call for all that is ready in a tick, and one standing call brings the
decisions back, so that an ask costs no call of its own. A host that is not heard of for ``LEASE_S`` has died: what it
held is free again, and a purse charges the most for it.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

import msgspec

from actors.limits.admission import Account, Rates
from actors.limits.budget import Budget, Purse
from actors.limits.gate import LoadHint, RateHint
from actors.limits.prices import Amount, Meter
from actors.limits.queue_gate import Decision, Desk, Done, QueueGate, Told, Want
from actors.post.mailbox import Outbox
from actors.post.remote import of_reachable
from actors.post.waiting import happens
from protocols.errors import HostLostError, PausedError
from protocols.message import Ask

log = logging.getLogger("moot.gate")

LEASE_S = 60.0  # of a host's standing call lasts ``WAIT_S``: many must be missed
WAIT_S = 5.0
MAX_CALLS = 10_000  # far above two a host
PURSE = "purse"
LOST = "the process that keeps the run's limits died; go on with `moot resume RUN`"


class Keeper:
    """All desks of a run. As a Ray actor: see ``place_keeper``. Desks are named; the purse's is ``PURSE``."""

    def __init__(
        self,
        budget: Budget | None = None,
        spent: Amount | None = None,
        *,
        lease_s: float = LEASE_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._lease_s, self._clock = lease_s, clock
        self._desks: dict[str, Desk] = {}
        self._held: dict[str, dict[tuple[str, str], None]] = defaultdict(dict)  # host -> (desk, id) waiting or running
        self._decided: dict[str, list[tuple[str, Decision]]] = defaultdict(list)
        self._news: dict[str, asyncio.Event] = defaultdict(asyncio.Event)
        self._heard_s: dict[str, float] = {}
        self._purse = Purse(budget or Budget(), spent or Amount())
        self._open(PURSE, lambda: self._purse)

    def _open(self, name: str, make: Callable[[], Any]) -> None:
        if name not in self._desks:
            self._desks[name] = Desk(name, make(), lambda decision: self._decide(name, decision), clock=self._clock)

    async def open_account(self, name: str, rates: Rates) -> None:
        """A desk for an account, unless there is one: the first host's rates count."""
        self._open(name, lambda: Account(rates, self._clock()))

    async def retune(self, account: str, rates: Rates) -> None:
        """An account's rates are these from now on."""
        desk = self._desks[account]
        assert isinstance(desk.core, Account)  # the purse is named like none
        desk.core.retune(rates, self._clock())
        desk.tell([])

    async def set_budget(self, budget: Budget) -> None:
        """What the run may spend, what it has spent already included."""
        self._purse.budget = budget
        self._desks[PURSE].tell([])

    async def charge(self, spent: Amount) -> None:
        """Something else than an ask has cost this: a training."""
        self._purse.charge(spent)
        self._desks[PURSE].tell([])

    async def tell(self, host: str, batch: list[tuple[str, Told]]) -> None:
        """What a host's gates have to say, by desk."""
        self._heard(host)
        told: dict[str, list[Told]] = defaultdict(list)
        for desk, item in batch:
            if isinstance(item, Want):
                self._held[host][desk, item.id] = None
            elif isinstance(item, Done):
                self._held[host].pop((desk, item.id), None)
            told[desk].append(item if isinstance(item, RateHint | LoadHint) else _renamed(item, f"{host}/{item.id}"))
        for desk, items in told.items():
            self._desks[desk].tell(items)

    async def listen(self, host: str, wait_s: float = WAIT_S) -> list[tuple[str, Decision]]:
        """Decisions for this host since the last call, waiting up to ``wait_s`` for some."""
        self._heard(host)
        if not self._decided[host]:
            await happens(self._news[host], wait_s)
        self._news[host].clear()
        return self._decided.pop(host, [])

    async def forget(self, host: str) -> None:
        """This host is known to have died: what it held is taken back now and not when it has long been silent."""
        if host in self._heard_s:
            self._forget(host)

    async def figures(self) -> dict[str, dict[str, float]]:
        return {name: desk.figures() for name, desk in self._desks.items()}

    async def spent(self) -> Amount:
        return self._purse.spent

    def _decide(self, desk: str, decision: Decision) -> None:
        host, _, number = decision.id.rpartition("/")
        self._decided[host].append((desk, Decision(number, decision.refusal)))
        self._news[host].set()
        if decision.refusal:
            self._held[host].pop((desk, number), None)

    def _heard(self, host: str) -> None:
        """Every call of a living host looks for dead ones: without the living, nobody waits."""
        now = self._clock()
        self._heard_s[host] = now
        for other, heard in list(self._heard_s.items()):
            if now - heard > self._lease_s:
                self._forget(other)

    def _forget(self, host: str) -> None:
        del self._heard_s[host]
        held = self._held.pop(host, {})
        if held:
            log.warning("host %s is gone: %d asks that it held are taken back", host, len(held))
        for desk, number in held:
            self._desks[desk].tell([Done(f"{host}/{number}", "lost")])
        self._decided.pop(host, None)
        self._news.pop(host, None)


def _renamed(item: Want | Done, name: str) -> Want | Done:
    return msgspec.structs.replace(item, id=name)


def place_keeper(budget: Budget, spent: Amount) -> Any:
    """The keeper as a Ray actor; it dies with its last handle. It holds no work, so it takes no CPU.

    It lives on the driver's node: the run ends with either, and any other node may be taken away.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    options = {"num_cpus": 0, "max_concurrency": MAX_CALLS, "max_restarts": 0, "max_task_retries": 0}
    return ray.remote(Keeper).options(**options, scheduling_strategy=here).remote(budget, spent)


async def of_keeper(call: Callable[[], Awaitable[Any]]) -> Any:
    """Await a call to the keeper that does no harm twice. Raises: PausedError: it died, and the run ends with it."""
    try:
        return await of_reachable(call)
    except HostLostError as err:
        raise PausedError(LOST) from err


class Line:
    """A host's line to the keeper: gates made here share it.

    Args:
        on_lost: told once when the keeper cannot be reached: nothing may be sent any more.
    """

    def __init__(self, host: str, keeper: Any, on_lost: Callable[[str], None]) -> None:
        self._host, self._keeper, self._on_lost = host, keeper, on_lost
        self._gates: dict[str, QueueGate] = {}
        self._outbox: Outbox[tuple[str, Told]] = Outbox(self._post, self._lost)
        self._listening: asyncio.Task[None] | None = None
        self._open: dict[str, set[str]] = defaultdict(set)  # desk -> ids that are waiting or running
        self._figures: dict[str, dict[str, float]] = {}

    def gate(self, desk: str, meter: Meter, bought: Callable[[Ask], bool] | None = None) -> QueueGate:
        """A gate in front of one of the keeper's desks."""
        gate = self._gates[desk] = QueueGate(
            meter, lambda told: self._put(desk, told), lambda: self._figures.get(desk, {}), bought
        )
        return gate

    async def open(self, account: str, rates: Rates) -> None:
        """Before anything passes a gate of this account."""
        await of_keeper(partial(self._keeper.open_account.remote, account, rates))

    async def retune(self, account: str, rates: Rates) -> None:
        await of_keeper(partial(self._keeper.retune.remote, account, rates))

    async def refresh(self) -> None:
        """Fetch the desks' figures, which the gates then tell."""
        self._figures = await of_keeper(self._keeper.figures.remote)

    def _put(self, desk: str, told: Told) -> None:
        if isinstance(told, Want):
            self._open[desk].add(told.id)
        elif isinstance(told, Done):
            self._open[desk].discard(told.id)
        self._outbox.put([(desk, told)])
        if self._listening is None:
            self._listening = asyncio.get_running_loop().create_task(self._listen())

    async def _post(self, batch: list[tuple[str, Told]]) -> None:
        await self._keeper.tell.remote(self._host, batch)

    async def _listen(self) -> None:
        """Calls stand for as long as anything waits or is under way; they are this host's sign of life too."""
        try:
            while any(self._open.values()):
                for desk, decision in await self._keeper.listen.remote(self._host):
                    if decision.refusal:
                        self._open[desk].discard(decision.id)
                    self._gates[desk].decided(decision)
        except Exception as err:
            self._lost(err)
        finally:
            self._listening = None

    def _lost(self, err: Exception) -> None:
        log.warning("%s: the keeper of the limits is gone: %r", self._host, err)
        self._on_lost(LOST)

    async def close(self) -> None:
        await self._outbox.drain()  # what was paid for is told
        if self._listening is not None:
            self._listening.cancel()
        await self._outbox.close()
