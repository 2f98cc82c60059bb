"""The hosts of a recipe's models as a run sees them: started, watched, started again when they die, given adapters.

A host that dies takes nothing with it that is on record. What it held is asked again: of the model's other replicas at
once, or of the host itself when it is back. A model that dies again and again ends the run with a sentence. Hosts may
be sent away for a while, so that others can have what they take; whoever wants one meanwhile waits until it is back.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import msgspec

from actors.agent import DRAIN_S, HostStats, Limits
from actors.limits.shared_gate import of_keeper
from actors.models.backend import AdapterRef
from actors.placement import HostSpec, place, start_hosts, stop_hosts
from actors.post.remote import of_actor, of_reachable, what_happened
from engine.config.models import Way
from protocols.errors import AgentError, ConfigError, EngineDownError, HostLostError, PausedError

log = logging.getLogger("moot.hosts")

START_S = 1800.0  # of a host that is started again: a large model loads in minutes, one without a place never does
BACKOFF_S = 0.5  # before the first start again; doubles each time
MAX_BACKOFF_S = 30.0
END_S = 60.0  # that a killed process may take to end


class Hosts:
    """See the module. Use ``Hosts.start``.

    Args:
        max_restarts: model -> how often each of its hosts may be started again.
        note: tells whoever watches the run.
    """

    def __init__(
        self,
        specs: Sequence[HostSpec],
        handles: Mapping[str, Any],
        max_restarts: Mapping[str, int],
        note: Callable[[str], None],
    ) -> None:
        self._specs = {spec.name: spec for spec in specs}
        self._handles = dict(handles)  # of the hosts that are not given up
        self._max_restarts, self._note = dict(max_restarts), note
        self._arenas: dict[str, Any] = {}
        self._adapters: dict[str, dict[str, AdapterRef]] = defaultdict(dict)  # model -> agent -> version
        self._down: set[str] = set()  # hosts that are known to have died, and are not back
        self._reviving: dict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._away: set[str] = set()  # hosts that were sent away, and are not back
        self._all_back = asyncio.Event()
        self._all_back.set()
        self._stats, self._told_at_s = dict[str, HostStats](), -math.inf  # what they said last, and when

    @classmethod
    async def start(
        cls, specs: Sequence[HostSpec], max_restarts: Mapping[str, int], note: Callable[[str], None]
    ) -> Hosts:
        """Raises: AgentError: one cannot start."""
        return cls(specs, await start_hosts(specs), max_restarts, note)

    @property
    def held(self) -> bool:
        """Whether hosts send nothing for now."""
        return any(spec.held for spec in self._specs.values())

    async def hold(self, held: bool) -> None:
        """Send nothing for now, or go on, and let no phase end of its deadline meanwhile.

        A host or an arena that comes to life later is told, too.
        """
        self._specs = {name: msgspec.structs.replace(spec, held=held) for name, spec in self._specs.items()}
        hosts = [partial(handle.hold.remote, held) for handle in self._handles.values()]
        await asyncio.gather(self._time_stands(), *(self._informed(of_reachable(call)) for call in hosts))

    async def _time_stands(self) -> None:
        """Tell arenas whether hosts send nothing for now, so that no phase ends of its deadline."""
        stands = self.held or bool(self._away)
        calls = [partial(arena.hold.remote, stands) for arena in self._arenas.values()]
        await asyncio.gather(*(self._informed(of_reachable(call)) for call in calls))

    async def retune(self, model: str, limits: Limits) -> None:
        """A model's limits from now on, those of hosts that are started again included.

        Raises: ConfigError: it has no account whose rates could be limited; nothing was changed.
        """
        hosts, before = self.of(model), {name: self._specs[name].limits for name in self.of(model)}
        self._limit(dict.fromkeys(hosts, limits))  # first: of those that are being started, too
        try:
            calls = [partial(handle.retune.remote, limits) for handle in hosts.values()]
            await asyncio.gather(*(self._informed(of_reachable(call)) for call in calls))
        except ConfigError:
            self._limit(before)
            raise

    def _limit(self, limits: Mapping[str, Limits]) -> None:
        self._specs |= {name: msgspec.structs.replace(self._specs[name], limits=of) for name, of in limits.items()}

    @property
    def models(self) -> dict[str, str]:
        """Host -> its model, of the hosts that are not given up: those that are down, too."""
        return {name: self._specs[name].model for name in self._handles}

    @property
    def restarts(self) -> dict[str, int]:
        """Host -> how often it was started again."""
        return {name: self._specs[name].incarnation for name in self._handles}

    def of(self, model: str) -> dict[str, Any]:
        """The model's hosts, by name."""
        return {name: handle for name, handle in self._handles.items() if self._specs[name].model == model}

    async def connect(self, arena: str, handle: Any) -> dict[str, list[str]]:
        """Hosts answer this arena from now on, and it is told when one dies and when one is back.

        Returns: what each host holds of the arena of this name before.
        """
        self._arenas[arena] = handle
        if self.held or self._away:
            await self._informed(handle.hold.remote(True))
        hosts = list(self._handles)
        held = await asyncio.gather(*(self._told(host, "connect", arena, handle) for host in hosts))
        return {host: asks for host, asks in zip(hosts, held, strict=True) if asks}

    async def disconnect(self, arena: str) -> None:
        self._arenas.pop(arena, None)
        await asyncio.gather(*(self._informed(handle.disconnect.remote(arena)) for handle in self._handles.values()))

    async def publish(self, model: str, adapter: AdapterRef) -> None:
        """Put an adapter into every replica of a model; none uses it before all of them have loaded it.

        A whole model takes the place of the replicas' own: they are started again with it, and those that are away
        come back with it.

        Raises: AgentError: one cannot take it; the old version stays everywhere, but of a whole model.
        """
        hosts = list(self.of(model))
        if adapter.whole:
            await self._start_with(adapter, model, hosts)
            return
        results = await asyncio.gather(
            *(self._told(host, "prepare", adapter) for host in hosts), return_exceptions=True
        )
        if failed := [result for result in results if isinstance(result, BaseException)]:
            await asyncio.gather(*(self._told(host, "discard", adapter) for host in hosts))
            raise failed[0]
        self._adapters[model][adapter.agent] = adapter  # a host that is started again from here on gets it, too
        await asyncio.gather(*(self._told(host, "publish", adapter) for host in hosts))

    async def _start_with(self, adapter: AdapterRef, model: str, hosts: Sequence[str]) -> None:
        if self._adapters[model].get(adapter.agent) == adapter:
            return  # they have it, or come back with it
        self._adapters[model][adapter.agent] = adapter
        for host in hosts:
            settings: Any = self._specs[host].settings  # of a backend that takes a folder
            settings = msgspec.structs.replace(settings, model=adapter.path)
            self._specs[host] = msgspec.structs.replace(self._specs[host], settings=settings)
        if not self._away.issuperset(hosts):
            await self.send_away(hosts, "release")
            await self.call_back("release")

    async def watch(self) -> None:
        """Start again whatever dies, for as long as this is awaited.

        Raises: AgentError: a model's last host has died more often than it may.
        """
        async with asyncio.TaskGroup() as group:
            for host in list(self._handles):
                group.create_task(self._watch(host))

    async def _watch(self, host: str) -> None:
        while (handle := self._handles.get(host)) is not None:
            try:
                await of_reachable(handle.watch.remote)
            except AgentError as err:  # its process has died, or the engine in it
                await self._revive(host, handle, what_happened(err))
            else:
                await self._back(host)
                if self._handles.get(host) is handle:
                    return  # closed

    async def send_away(self, names: Sequence[str], way: Way) -> None:
        """These hosts give up what they take, until ``call_back``. What is asked of them meanwhile waits.

        With ``sleep`` what is in a model is let finish; with ``release`` it is asked again later.
        Raises: AgentError: one cannot sleep, or does not end.
        """
        self._away |= set(names) & self._handles.keys()
        self._all_back.clear()
        await self._time_stands()
        for name in names:
            async with self._reviving[name]:  # one that is being started again holds what it takes, too: it leaves then
                pass
        leaving = {name: self._handles[name] for name in names if name in self._handles}
        self._away -= set(names) - leaving.keys()  # given up meanwhile
        if way == "sleep":
            await asyncio.gather(*(self._put_to_sleep(name, handle) for name, handle in leaving.items()))
            return
        for arena in list(self._arenas.values()):
            await asyncio.gather(*(self._informed(arena.host_lost.remote(name)) for name in leaving))
        await stop_hosts(leaving)
        await asyncio.gather(*(self._bury(self._specs[name], handle) for name, handle in leaving.items()))
        await asyncio.gather(*(self._ended(name, handle) for name, handle in leaving.items()))

    async def _ended(self, host: str, handle: Any) -> None:
        """Returns once a process that was killed answers nothing: Ray does not wait for its end."""
        try:
            async with asyncio.timeout(END_S):
                while True:
                    await of_reachable(handle.stats.remote)
                    await asyncio.sleep(0.05)
        except HostLostError:
            return
        except TimeoutError as err:
            raise AgentError(
                f"model {host!r} still has its device {END_S:g} s after its process was to end; go on with "
                "`moot resume RUN`"
            ) from err

    async def _put_to_sleep(self, host: str, handle: Any) -> None:
        try:
            await of_reachable(handle.sleep.remote)
        except (HostLostError, EngineDownError):  # it takes nothing any more, and is started again when it is wanted
            await self._bury(self._specs[host], handle)

    async def call_back(self, way: Way) -> None:
        """Those that were sent away are as before, with every adapter and arena; what waited for them is asked.

        Raises: AgentError: one does not come back, and was its model's last.
        """
        await asyncio.gather(*(self._called_back(name, way) for name in self._away))
        self._away.clear()
        self._all_back.set()
        await self._time_stands()

    async def _called_back(self, host: str, way: Way) -> None:
        async with self._reviving[host]:
            spec, handle = self._specs[host], self._handles[host]
            try:
                await (of_reachable(handle.wake.remote) if way == "sleep" else self._start_again(spec))
            except PausedError:
                raise
            except AgentError as err:  # as when it dies
                await self._lost(spec, handle)
                await self._start_until_up(spec, what_happened(err))

    async def _back(self, host: str) -> None:
        """Returns once the host is not away."""
        while host in self._away:
            await self._all_back.wait()

    async def halt(self, reason: str, within_s: float = DRAIN_S) -> None:
        """Send no ask any more; returns once those in the models are over and the arenas have their outcomes.

        What takes longer than ``within_s`` is dropped, and asked again when the run goes on.
        """
        calls = [partial(handle.halt.remote, reason, within_s) for handle in self._handles.values()]
        await asyncio.gather(*(self._informed(of_reachable(call)) for call in calls))

    async def stats(self, max_age_s: float = 0.0) -> dict[str, HostStats]:
        """Of the hosts that can be reached, since they were last started.

        Args: max_age_s: what they said within it is as good: who looks once a second need not ask each on its own.
        """
        if time.monotonic() - self._told_at_s <= max_age_s:
            return self._stats
        names = list(self._handles)
        found = await asyncio.gather(
            *(of_actor(self._handles[name].stats.remote()) for name in names), return_exceptions=True
        )
        pairs = zip(names, found, strict=True)
        self._stats = {name: stats for name, stats in pairs if isinstance(stats, HostStats)}
        self._told_at_s = time.monotonic()
        return self._stats

    async def figures(self) -> dict[str, Any]:
        """What ``stats`` says, as a run reports it: of each host what it did, its engine's figures and its gates'."""
        shown = ("replies", "failures", "retries", "hedged", "usage", "backend", "gates")
        return {
            name: {key: msgspec.to_builtins(getattr(stats, key)) for key in shown}
            | {"restarts": self._specs[name].incarnation}
            for name, stats in (await self.stats()).items()
        }

    async def stop(self) -> None:
        await stop_hosts(self._handles)

    async def _told(self, host: str, method: str, *args: Any) -> Any:
        """Call a host's method. Returns: what it does; None of one that is passed over.

        One that has died is started again first, or passed over while other replicas go on: whoever starts it again
        tells it all that the others were told. A host that is given up is passed over, too.
        """
        await self._back(host)
        while (handle := self._handles.get(host)) is not None and not self._left_to_others(host):
            try:
                return await of_reachable(partial(getattr(handle, method).remote, *args))
            except (HostLostError, EngineDownError) as err:
                self._down.add(host)
                if not self._left_to_others(host):
                    await self._revive(host, handle, what_happened(err))
        return None

    def _left_to_others(self, host: str) -> bool:
        """Whether a host is down while other replicas of its model are up."""
        return host in self._down and bool(self.of(self._specs[host].model).keys() - self._down)

    async def _revive(self, host: str, dead: Any, why: str) -> None:
        """Start a host again, unless somebody else has.

        Raises: AgentError: it was the model's last. PausedError: the keeper of the limits has died, too.
        """
        await self._back(host)
        async with self._reviving[host]:
            if self._handles.get(host) is not dead:
                return
            spec = self._specs[host]
            await self._lost(spec, dead)
            await self._start_until_up(spec, why)

    async def _lost(self, spec: HostSpec, dead: Any) -> None:
        self._down.add(spec.name)
        await self._bury(spec, dead)
        for arena in list(self._arenas.values()):
            await self._informed(arena.host_lost.remote(spec.name))

    async def _start_until_up(self, spec: HostSpec, why: str) -> None:
        """Raises: see ``_revive``."""
        host = spec.name
        while spec.incarnation < self._max_restarts[spec.model]:
            spec = self._specs[host]  # held or retuned meanwhile
            spec = self._specs[host] = msgspec.structs.replace(spec, incarnation=spec.incarnation + 1)
            limit = self._max_restarts[spec.model]
            self._note(f"model {host!r} went down, starting it again ({spec.incarnation} of {limit}): {why}")
            try:
                await asyncio.sleep(min(MAX_BACKOFF_S, BACKOFF_S * 2 ** (spec.incarnation - 1)))
                await self._start_again(spec)
            except PausedError:  # the run has ended, not this host
                raise
            except AgentError as err:
                why = what_happened(err)
            except asyncio.CancelledError:  # nobody watches any more: this one has not been tried
                self._specs[host] = msgspec.structs.replace(self._specs[host], incarnation=spec.incarnation - 1)
                raise
            else:
                return
        self._give_up(spec, why)

    async def _bury(self, spec: HostSpec, dead: Any) -> None:
        """Make sure that it is dead, and take back what it held of shared limits."""
        import ray

        ray.kill(dead)
        if spec.keeper is not None:
            await of_keeper(partial(spec.keeper.forget.remote, spec.line))

    async def _start_again(self, spec: HostSpec) -> None:
        """Raises: AgentError: it does not start, or cannot take what the others were told."""
        import ray

        handle = place(spec)
        try:
            async with asyncio.timeout(START_S):
                await of_actor(handle.start.remote())
                await self._brief(spec, handle)
        except TimeoutError as err:
            ray.kill(handle)
            raise AgentError(f"it did not start within {START_S:g} s; the cluster may have no room for it") from err
        except BaseException:
            ray.kill(handle)
            raise
        self._handles[spec.name] = handle  # nothing was waited for since there was nothing more to tell
        self._down.discard(spec.name)
        for arena in list(self._arenas.values()):
            await self._informed(arena.host_back.remote(spec.name, handle))

    async def _brief(self, spec: HostSpec, handle: Any) -> None:
        """Tell a new process of every adapter and arena there is, and of what comes meanwhile."""
        told: set[str] = set()
        while True:
            adapters = [adapter for adapter in self._adapters[spec.model].values() if adapter.name not in told]
            arenas = {name: arena for name, arena in self._arenas.items() if name not in told}
            now = self._specs[spec.name]
            if not adapters and not arenas and (now.held, now.limits) == (spec.held, spec.limits):
                return
            await of_actor(handle.hold.remote(now.held))
            await of_actor(handle.retune.remote(now.limits))
            spec = now
            for adapter in adapters:
                await of_actor(handle.publish.remote(adapter))
            for name, arena in arenas.items():
                await of_actor(handle.connect.remote(name, arena))
            told |= {adapter.name for adapter in adapters} | arenas.keys()

    def _give_up(self, spec: HostSpec, why: str) -> None:
        del self._handles[spec.name]
        self._down.discard(spec.name)
        times = f"{spec.incarnation + 1} times" if spec.incarnation else "once"
        if not (left := self.of(spec.model)):
            raise AgentError(
                f"model {spec.name!r} went down {times}, the last time: {why.rstrip('.')}; mend what is wrong or raise "
                f"models.{spec.model}.max_restarts={self._max_restarts[spec.model]}, then go on with `moot resume RUN`"
            )
        self._note(f"model {spec.name!r} went down {times} and is given up; {len(left)} of its replicas go on: {why}")

    async def _informed(self, call: Any) -> None:
        """News for an actor that may have died: then it needs none, and whoever needs the actor finds out."""
        try:
            await of_actor(call)
        except HostLostError as err:
            log.info("nobody was there to be told: %s", err)
