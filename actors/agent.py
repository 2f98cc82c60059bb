"""An agent host: the actor in which one model lives and answers for every agent that speaks through it.

Agents that share a model share its host, each with its own adapter; an agent with a model of its own has a host to
itself. Arenas ``tell`` a host batches of asks, the host tells them batches of outcomes as they finish. A host knows
nothing of protocols. What is tried again is decided in ``actors.limits.tries``, what may be sent by the gates. Ray is
added outside, in ``actors.placement``.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable, Mapping, Sequence

import msgspec

from actors.limits.deadlines import Deadlines
from actors.limits.gate import Gate, Hint, TellsLoad, TellsRates, Ticket
from actors.limits.policy import why_stopped
from actors.limits.prices import Meter
from actors.limits.slots import Slots
from actors.limits.tries import Limits, Start, Tries, WithheldError, sendable
from actors.limits.tries import spent as spent_on
from actors.logs import ABOUT
from actors.models.backend import AdapterRef, Backend, BackendInfo, KeepsAsks, Sleeps
from actors.models.response_cache import ResponseCache
from actors.post.mailbox import Outbox, worth_of
from actors.post.tally import AgentStats, AgentTally
from actors.post.waiting import happens
from actors.traces import Traces
from protocols.errors import AgentError, EngineDownError, HostLostError, ReplyError
from protocols.message import Ask, Outcome, Reply, Stopped, Usage

__all__ = ["AgentHost", "HostStats", "Limits", "Send"]

log = logging.getLogger("moot.agent")

_ASKS = msgspec.msgpack.Decoder(list[Ask])
_ENCODER = msgspec.msgpack.Encoder()

DRAIN_S = 300.0  # that asks in the model are waited for when a run stops
KEPT_S = 10.0  # that asks are waited for which a backend finds again: some may be over already

Send = Callable[[bytes], Awaitable[None]]
"""Delivers one packed batch of outcomes to an arena; returns when the arena has taken it."""


class HostStats(msgspec.Struct, frozen=True, kw_only=True):
    """Running totals of a host since its start."""

    host: str
    queued: int  # told, not yet in the model
    running: int
    replies: int
    failures: dict[str, int]
    retries: int
    usage: Usage
    backend: dict[str, float]
    hedged: int = 0  # asks that were sent a second time beside a slow first
    cost_usd: float = 0.0  # of replies, and of failed tries as far as they may be billed
    stopped: str = ""  # why it sends nothing any more
    held: bool = False  # it sends nothing for now
    concurrency: int = 0  # asks in the model at once, at most; the gates may let in fewer
    gates: dict[str, dict[str, float]] = {}  # gate -> its figures
    adapters: dict[str, str] = {}  # agent -> the version that answers for it
    cache: dict[str, float] = {}
    agents: dict[str, AgentStats] = {}  # those that were asked


class AgentHost:
    """One model, its agents, their adapters, its limits.

    Args:
        gates: by name; entered in this order for every try, behind the host's own limit on concurrency.
        meter: what tries cost.
        cache: of replies; what it holds passes no limit and no gate.
        traces: takes a span for each ask; None: nobody wants any.
    """

    def __init__(
        self,
        name: str,
        backend: Backend,
        limits: Limits,
        gates: Mapping[str, Gate] | Sequence[Gate] = (),
        meter: Meter | None = None,
        cache: ResponseCache | None = None,
        traces: Traces | None = None,
    ) -> None:
        self._name, self._backend, self._limits = name, backend, limits
        named = gates if isinstance(gates, Mapping) else {type(gate).__name__: gate for gate in gates}
        self._gates = dict(named)
        self._meter, self._cache, self._traces = meter or Meter(), cache, traces
        self._tries = Tries(limits, self._meter, self._send, lambda: bool(self._stopped))
        self._info: BackendInfo | None = None
        self._slots, self._deadlines = Slots(1), Deadlines(limits.timeout_s)
        self._held = self._asleep = False
        self._free = asyncio.Event()  # clear: nothing is sent for now, for one of these reasons
        self._free.set()
        self._idle = asyncio.Event()  # nothing is in the model
        self._idle.set()
        self._arenas: dict[str, Outbox[Outcome | Stopped]] = {}
        self._adapters: dict[str, AdapterRef] = {}  # agent -> the version that answers now
        self._speaking: Counter[str] = Counter()  # adapter version -> asks that it is answering
        self._outgoing: dict[str, AdapterRef] = {}  # replaced, but still answering
        self._parting: set[asyncio.Task[None]] = set()  # taking out such a version, which nobody waits for
        self._under_way: dict[str, _UnderWay] = {}  # by ask id
        self._inherited: dict[str, frozenset[str]] = {}  # arena -> what was under way when it took the place of another
        self._running = 0
        self._failures: Counter[str] = Counter()
        self._agents: defaultdict[str, AgentTally] = defaultdict(AgentTally)
        self._stopped, self._drained = "", asyncio.Event()
        self._settling: asyncio.Task[None] | None = None
        self._down, self._over = "", asyncio.Event()

    async def start(self) -> BackendInfo:
        """Start the model. Raises: AgentError: see the backend."""
        if self._info is None:
            if isinstance(self._backend, TellsRates):
                self._backend.on_rate = self._hint
            if isinstance(self._backend, TellsLoad):
                self._backend.on_load = self._hint
            info = await self._backend.start()
            self._info = info
            self.retune(self._limits)
        return self._info

    def _hint(self, hint: Hint) -> None:
        for gate in self._gates.values():
            gate.hint(hint)

    def hold(self, held: bool) -> None:
        """Send nothing for now, or go on. What is in the model is let finish; all else keeps its turn."""
        self._held = held
        self._send_or_wait()

    async def sleep(self) -> None:
        """Let the model give up its device once what is in it has finished; what is asked until ``wake`` waits.

        Raises: AgentError: it cannot.
        """
        if not isinstance(self._backend, Sleeps):
            raise AgentError(f"{self._name}: its model cannot sleep; set run.colocate: release")
        self._asleep = True
        self._send_or_wait()
        await self._idle.wait()
        await self._backend.sleep()

    async def wake(self) -> None:
        """The model has its device again, and what waited is sent. Safe to call twice."""
        if isinstance(self._backend, Sleeps) and self._asleep:
            await self._backend.wake()
        self._asleep = False
        self._send_or_wait()

    def _send_or_wait(self) -> None:
        (self._free.clear if self._held or self._asleep else self._free.set)()

    def retune(self, limits: Limits) -> None:
        """Other limits from now on; a try that is under way ends under those it began with."""
        if limits.timeout_s != self._limits.timeout_s:
            self._deadlines = Deadlines(limits.timeout_s)
        self._limits = self._tries.limits = limits
        if self._info is not None:
            self._slots.resize(limits.max_concurrency or self._info.max_concurrency)

    def connect(self, arena: str, send: Send) -> list[str]:
        """From now on ``arena`` may ask, and is told the outcomes through ``send``.

        One of that name that has died is replaced: what it was not known to have taken goes to the new one.

        Returns: the asks of the one before that are still to be taken.
        """

        async def post(batch: list[Outcome | Stopped]) -> None:
            await send(_ENCODER.encode(batch))
            self._let_be(batch)

        def lost(err: Exception) -> None:
            told = f"{self._name}: arena {arena} does not take its outcomes any more: {err!r}"
            log.warning(told)
            if not isinstance(err, HostLostError):  # it lives, and would wait for them for ever
                self.stop(told)

        before = self._arenas.get(arena)
        self._arenas[arena] = Outbox(post, lost, self._worth)
        if before is not None:
            self._arenas[arena].put(before.take_back())
        if self._drained.is_set():
            self._arenas[arena].put([Stopped(self._name, self._stopped)])
        held = [ask_id for ask_id, known in self._under_way.items() if known.arena == arena]
        self._inherited[arena] = frozenset(held)
        return held

    def _worth(self) -> int:
        return worth_of(len(self._under_way) // max(1, len(self._arenas)))

    async def disconnect(self, arena: str) -> None:
        """Forget an arena that has ended."""
        self._inherited.pop(arena, None)
        if (outbox := self._arenas.pop(arena, None)) is not None:
            self._let_be(outbox.take_back())

    def tell(self, arena: str, packed: bytes) -> None:
        """Take a batch of asks. Returns at once; every ask brings one outcome to the arena, unless the host stops.

        An ask that is told again before its outcome was taken counts once: its sender may not know whether it came, or
        be the successor of one that died. So does a successor's that crosses its outcome on the way.

        Raises: AgentError: the model was not started; none of the batch was taken.
        """
        if self._info is None:
            raise AgentError(f"agent host {self._name!r} was asked before it was started")
        asks = _ASKS.decode(packed) if not (self._stopped or self._down) else []
        start, inherited = asyncio.get_running_loop().create_task, self._inherited.get(arena, frozenset())
        for ask in asks:
            if ask.id in self._under_way or ask.id in inherited:
                continue
            known = self._under_way[ask.id] = _UnderWay(arena, ask)
            known.task = start(self._serve(known))

    def _unanswered(self) -> list[tuple[_UnderWay, asyncio.Task[None]]]:
        """Those that have no outcome yet, nor were dropped before they began."""
        return [
            (known, known.task)
            for known in self._under_way.values()
            if known.task is not None and not known.task.done()
        ]

    def stop(self, reason: str) -> None:
        """Send nothing more. Asks in the model are let finish; all others stay without an outcome. Those that the
        backend keeps beyond its own life have a moment to finish, as they are found again.

        Once none is left, every arena is told ``Stopped`` with the first reason given.
        """
        if self._stopped:
            return
        self._stopped = reason
        log.warning("%s: %s", self._name, reason)
        keeps = self._backend if isinstance(self._backend, KeepsAsks) else None
        for known, task in self._unanswered():
            if not known.in_model or (keeps is not None and not keeps.bought(known.ask)):
                task.cancel()
        loop = asyncio.get_running_loop()
        if keeps is not None:
            loop.call_later(KEPT_S, self._let_go)
        self._settling = loop.create_task(self._settle())

    def _let_go(self) -> None:
        for _, task in self._unanswered():
            task.cancel()

    async def _settle(self) -> None:
        if tasks := [task for _, task in self._unanswered()]:
            await asyncio.wait(tasks)
        self._drained.set()
        for outbox in self._arenas.values():
            outbox.put([Stopped(self._name, self._stopped)])

    async def halt(self, reason: str, within_s: float = DRAIN_S) -> None:
        """Stop; returns once every ask that was in the model is over and the arenas have taken the outcomes.

        An ask that takes longer than ``within_s``, a person's say, is dropped.
        """
        self.stop(reason)
        await happens(self._drained, within_s)
        self._let_go()
        await self._drained.wait()
        for outbox in list(self._arenas.values()):
            await outbox.drain()

    async def watch(self) -> None:
        """Returns when the host is closed. Raises: AgentError: its model is down: what it held stays unanswered."""
        await self._over.wait()
        if self._down:
            raise AgentError(self._down)

    def _break_down(self, reason: str) -> None:
        if not self._down:
            log.error("%s: %s", self._name, reason)
            self._down = reason
            self._over.set()

    async def prepare(self, adapter: AdapterRef) -> None:
        """Load a new version, which nobody speaks with before it is published. Raises: AgentError: see ``publish``."""
        if not adapter.whole:
            await self._backend.load_adapter(adapter)
        if self._cache is not None:
            await self._cache.learn(adapter)

    async def discard(self, adapter: AdapterRef) -> None:
        """Unload a version that was prepared and is not to be published after all."""
        if self._adapters.get(adapter.agent) != adapter:
            await self._take_out(adapter)

    async def publish(self, adapter: AdapterRef) -> str:
        """Load a new version; from the return on, every ask of its agent is answered by it.

        Returns: the version's name. Raises: AgentError: the model cannot take it; the old version stays.
        """
        await self.prepare(adapter)
        previous = self._adapters.get(adapter.agent)
        self._adapters[adapter.agent] = adapter
        self._outgoing.pop(adapter.name, None)  # it is back
        if previous is not None and previous.name != adapter.name:
            await self._take_out(previous)
        return adapter.name

    async def _take_out(self, adapter: AdapterRef) -> None:
        """Unload a version that was replaced, once the last ask that it is answering is over."""
        if adapter.whole or self._adapters.get(adapter.agent) == adapter:  # it is back
            return
        if self._speaking[adapter.name]:
            self._outgoing[adapter.name] = adapter
            return
        try:
            await self._backend.unload_adapter(adapter)
        except Exception as err:  # costs memory; the version in use is served all the same
            log.warning("%s: adapter %s cannot be unloaded: %r", self._name, adapter.name, err)

    def stats(self) -> HostStats:
        agents = self._by_agent()
        return HostStats(
            host=self._name,
            queued=sum(agent.queued for agent in agents.values()),
            running=self._running,
            replies=sum(agent.replies for agent in agents.values()),
            failures=dict(self._failures),
            retries=self._tries.retries,
            usage=sum((tally.usage.total for tally in self._agents.values()), Usage()),
            backend=self._backend.metrics() if self._info else {},
            hedged=self._tries.hedged,
            cost_usd=sum(agent.cost_usd for agent in agents.values()),
            stopped=self._stopped,
            held=self._held,
            concurrency=self._slots.number,
            gates={name: gate.figures() for name, gate in self._gates.items()},
            adapters={agent: adapter.name for agent, adapter in self._adapters.items()},
            cache=self._cache.figures() if self._cache else {},
            agents=agents,
        )

    def _by_agent(self) -> dict[str, AgentStats]:
        held = Counter((known.ask.agent, known.in_model > 0) for known, _ in self._unanswered())
        return {
            agent: self._agents[agent].stats(queued=held[agent, False], running=held[agent, True])
            for agent in {*self._agents, *(agent for agent, _ in held)}
        }

    async def close(self) -> None:
        """Drop every ask under way and stop the model."""
        self._over.set()
        tasks = [task for _, task in self._unanswered()]
        self._let_go()
        await asyncio.gather(*tasks, return_exceptions=True)  # the model is stopped once nobody is in it
        if self._settling is not None:
            await self._settling
        for parting in self._parting:
            parting.cancel()
        await asyncio.gather(*self._parting, return_exceptions=True)
        self._deadlines.close()
        for outbox in self._arenas.values():
            await outbox.close()
        if self._cache is not None:
            await self._cache.close()
        await self._backend.close()
        if self._traces is not None:
            await asyncio.to_thread(self._traces.close)

    async def _serve(self, known: _UnderWay) -> None:
        ask, arena = known.ask, known.arena
        outcome: Outcome | None = None
        ABOUT.set(ask)
        began_ns = time.time_ns()
        try:
            outcome = await self._answer(ask)
        except WithheldError:
            return
        except EngineDownError as err:
            self._break_down(str(err))
            return
        except ReplyError as err:
            self.stop(why_stopped(self._name, err))
            return
        finally:
            known.task = None
            if outcome is None or arena not in self._arenas:
                self._under_way.pop(ask.id, None)
        self._count(ask, outcome)
        if self._traces is not None:
            self._traces.ask(ask, outcome, began_ns, time.time_ns())
        if arena in self._arenas:
            self._arenas[arena].put((outcome,))

    def _let_be(self, outcomes: Sequence[Outcome | Stopped]) -> None:
        """Their arena has taken them, or never will: whoever asks again wants another answer."""
        for outcome in outcomes:
            if not isinstance(outcome, Stopped):
                self._under_way.pop(outcome.ask_id, None)

    def _answer(self, ask: Ask) -> Awaitable[Outcome]:
        if self._cache is None:
            return self._tries.answer(ask)
        return self._cache.answer(ask, self._adapters.get(ask.agent), lambda: self._tries.answer(ask))

    def _count(self, ask: Ask, outcome: Outcome) -> None:
        self._agents[ask.agent].count(outcome, spent_on(outcome).usd)
        if not isinstance(outcome, Reply):
            self._failures[outcome.kind] += 1
            log.info("%s failed (%s; tries: %d): %s", ask.id, outcome.kind, outcome.tries, outcome.reason)

    async def _send(self, ask: Ask, start: Start) -> Reply:
        """One try: through the limit and the gates, to the model, and out again.

        Few coroutines lie between an ask and its model, as each costs some microseconds when ten thousand wait.
        """
        while True:  # held while it stood at a gate, it leaves what it was given there and comes again
            if not self._free.is_set():
                await self._free.wait()
            if not self._slots.take():
                await self._slots.turn()
            tickets: list[tuple[Gate, Ticket]] = []
            outcome: Reply | ReplyError | None = None
            try:
                for gate in self._gates.values():
                    tickets.append((gate, await gate.enter(ask)))  # noqa: PERF401  # those entered must be left
                if self._free.is_set():
                    start.set()
                    outcome = await self._within_time(ask)
                    return outcome
            except ReplyError as err:
                outcome = err if start.sent else None
                raise
            except asyncio.CancelledError:
                outcome = ReplyError("dropped", "timeout") if start.sent else None
                raise
            finally:
                self._slots.leave()
                for gate, ticket in reversed(tickets):
                    gate.leave(ticket, outcome)

    async def _within_time(self, ask: Ask) -> Reply:
        """Whatever goes wrong in a backend is a ``ReplyError`` from here on."""
        known, adapter = self._under_way[ask.id], self._adapters.get(ask.agent)
        loaded = None if adapter is None or adapter.whole else adapter
        self._enter(known, loaded)
        try:
            with self._deadlines.one():
                return self._as_told(await self._backend.generate(ask, loaded), adapter)
        except TimeoutError as err:
            raise ReplyError(f"no reply within {self._limits.timeout_s:g} s", "timeout") from err
        except asyncio.CancelledError as err:
            if (task := asyncio.current_task()) is None or task.cancelling():
                raise  # this host is closing, or another try was faster; otherwise the engine dropped the ask by itself
            raise ReplyError("the model dropped the ask") from err
        except ReplyError:
            raise
        except Exception as err:  # a backend's bug must not take the debate with it; it is logged and on the record
            log.exception("%s: ask %s failed", self._name, ask.id)
            raise ReplyError(f"unexpected {type(err).__name__}: {err}", "malformed") from err
        finally:
            self._leave(known, loaded)

    def _enter(self, known: _UnderWay, loaded: AdapterRef | None) -> None:
        """A try begins in the model."""
        known.in_model += 1
        self._running += 1
        self._idle.clear()
        if loaded is not None:
            self._speaking[loaded.name] += 1

    def _leave(self, known: _UnderWay, loaded: AdapterRef | None) -> None:
        """It is over. A version that it was the last to speak with, and that was replaced, is taken out meanwhile."""
        known.in_model -= 1
        self._running -= 1
        if not self._running:
            self._idle.set()
        if loaded is None:
            return
        self._speaking[loaded.name] -= 1
        if self._speaking[loaded.name]:
            return
        del self._speaking[loaded.name]
        if (outgoing := self._outgoing.pop(loaded.name, None)) is not None:
            parting = asyncio.get_running_loop().create_task(self._take_out(outgoing))
            self._parting.add(parting)
            parting.add_done_callback(self._parting.discard)

    def _as_told(self, reply: Reply, adapter: AdapterRef | None) -> Reply:
        """With the version that spoke and what it cost, where the backend has not said so."""
        reply, tuned = sendable(reply), adapter is not None and bool(adapter.model)
        if adapter is not None and adapter.whole:
            reply = msgspec.structs.replace(reply, adapter=adapter.name)
        if not reply.cost_usd and (cost := self._meter.cost_usd(reply.usage, tuned=tuned)):
            return msgspec.structs.replace(reply, cost_usd=cost)
        return reply


class _UnderWay:
    """An ask, until its arena has taken the outcome. ``task``: until there is one. ``in_model``: its tries there."""

    __slots__ = ("arena", "ask", "in_model", "task")

    def __init__(self, arena: str, ask: Ask) -> None:
        self.arena, self.ask = arena, ask
        self.in_model = 0
        self.task: asyncio.Task[None] | None = None
