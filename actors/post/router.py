"""An arena's post to the hosts: which replica of a model an ask goes to, what each holds, what must be sent again.

A debate stays with one replica, whose prefix cache holds what its prompts begin with, unless that replica is much
busier than the others. What a lost host held goes to the model's other replicas, or waits until the host is back. Pure
but for the sending; Ray is added outside.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterable, Mapping
from itertools import groupby
from operator import itemgetter

import msgspec

from actors.post.histogram import Histogram
from actors.post.mailbox import Outbox, worth_of
from protocols.errors import HostLostError
from protocols.message import Ask

CROWDED = 1.25  # times the replicas' mean load at which a debate moves on
SLACK = 4  # asks beyond that: small numbers differ by chance

Tell = Callable[[bytes], Awaitable[None]]
"""Delivers one packed batch of asks to a host; returns when the host has taken it. Raises: HostLostError: it died."""

_ENCODER = msgspec.msgpack.Encoder()


class Router:
    """See the module.

    Args:
        models: agent -> the model it speaks through.
        hosts: model -> its replicas, by host name.
        wanted: whether anybody still waits for an ask; what nobody waits for is not sent again.
        on_error: told of a host that lives and yet took no batch.

    Source: that no replica may hold more than a constant times the mean is the bound of Mirrokni, Thorup and
    Zadimoghaddam 2018 (consistent hashing with bounded loads), arXiv:1608.01350; homes are kept in a table, not hashed.
    """

    def __init__(
        self,
        models: Mapping[str, str],
        hosts: Mapping[str, Mapping[str, Tell]],
        wanted: Callable[[Ask], bool],
        on_error: Callable[[Exception], None],
    ) -> None:
        self._models, self._wanted, self._on_error = dict(models), wanted, on_error
        self._replicas = {model: list(told) for model, told in hosts.items()}
        self.delays = Histogram()  # from what made an ask be asked until it leaves
        self._outboxes: dict[str, Outbox[tuple[Ask, float]]] = {}  # of the hosts that are up; since when each waits
        self._asked: dict[str, tuple[Ask, str]] = {}  # by id, with the host that it was sent to or waits for
        self._homes: dict[str, dict[str, str]] = defaultdict(dict)  # debate -> model -> host
        self._known: dict[str, str] = {}  # ask -> the host that has it from the arena before this one
        tells = {host: tell for told in hosts.values() for host, tell in told.items()}
        self._loads = dict.fromkeys(tells, 0)  # asks that were sent to a host, or wait until it is up
        for host, tell in tells.items():
            self.back(host, tell)

    def serves(self, agent: str) -> bool:
        return agent in self._models

    def put(self, asks: Iterable[Ask], since: float = 0.0) -> None:
        """Send each ask on its way; one whose model has no host up goes out when one is back.

        Args: since: ``time.perf_counter`` when the reply came that makes them be asked; 0 for what no reply did.
        """
        leaving = defaultdict[str, list[tuple[Ask, float]]](list)
        for ask in asks:
            if ask.id in self._asked:
                self.over(ask.id)
            host = self._host_for(ask)
            self._asked[ask.id] = ask, host
            self._loads[host] += 1
            leaving[host].append((ask, since))
        for host, timed in leaving.items():
            if (outbox := self._outboxes.get(host)) is not None:
                outbox.put(timed)

    def at_home(self, host: str, ask_ids: Iterable[str]) -> None:
        """A host has these asks already: they are put to it however busy it is, as another would answer them twice."""
        model = next(model for model, replicas in self._replicas.items() if host in replicas)
        for ask_id in ask_ids:
            self._known[ask_id] = self._homes[ask_id.rpartition("#")[0]][model] = host

    def over(self, ask_id: str) -> None:
        """An outcome has come."""
        self._known.pop(ask_id, None)
        if (found := self._asked.pop(ask_id, None)) is not None:
            self._loads[found[1]] -= 1

    def forget(self, debate_id: str) -> None:
        """The debate has ended."""
        self._homes.pop(debate_id, None)

    def lost(self, host: str) -> None:
        """The host has died, and whatever it held with it. Safe to call twice."""
        if (outbox := self._outboxes.pop(host, None)) is None:
            return
        outbox.take_back()  # it is among what the host holds
        self._known = {ask_id: name for ask_id, name in self._known.items() if name != host}
        self._again(host)

    def back(self, host: str, tell: Tell) -> None:
        """The host is up: at first, or in a new process that knows of nothing."""
        self.lost(host)

        async def send(batch: list[tuple[Ask, float]]) -> None:
            now = time.perf_counter()
            if left := [ask for ask, _ in batch if ask.id in self._asked]:  # the others were answered meanwhile
                await tell(_ENCODER.encode(left))
            for since, enabled in groupby(batch, itemgetter(1)):  # many at once, as replies come in batches
                if since:
                    self.delays.add(now - since, sum(1 for _ in enabled))

        def failed(err: Exception) -> None:
            if self._outboxes.get(host) is not outbox:
                return  # of a process that was known to have died
            if isinstance(err, HostLostError):
                self.lost(host)
            else:
                self._on_error(err)

        outbox = self._outboxes[host] = Outbox(send, failed, lambda: worth_of(self._loads[host]))
        replicas = next(hosts for hosts in self._replicas.values() if host in hosts)
        for down in (name for name in replicas if name == host or name not in self._outboxes):
            self._again(down)

    def loads(self) -> dict[str, int]:
        """Asks that each host holds."""
        return dict(self._loads)

    async def close(self) -> None:
        for outbox in self._outboxes.values():
            await outbox.close()

    def _again(self, host: str) -> None:
        """Send what a host holds, or what waits for it, once more, as far as it is wanted still."""
        asks = [ask for ask, at in self._asked.values() if at == host]
        for ask in asks:
            del self._asked[ask.id]
        self._loads[host] = 0
        self.put(filter(self._wanted, asks))

    def _host_for(self, ask: Ask) -> str:
        replicas = self._replicas[self._models[ask.agent]]
        if len(replicas) == 1:
            return replicas[0]
        up = [host for host in replicas if host in self._outboxes]
        if not up:
            return replicas[0]
        if (knows := self._known.get(ask.id)) in up:
            return knows
        homes, model = self._homes[ask.debate_id], self._models[ask.agent]
        home = homes.get(model)
        if home not in up or self._loads[home] > self._crowded(up):
            home = homes[model] = min(up, key=self._loads.__getitem__)
        return home

    def _crowded(self, up: list[str]) -> float:
        return CROWDED * sum(self._loads[host] for host in up) / len(up) + SLACK
