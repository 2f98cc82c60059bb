"""Gates that keep a queue: a pure core decides who may go when, a desk gives it the time, a gate waits for its word.

The same core serves one host (``local_gate``) or, inside a Ray actor, all hosts of a cluster
(``actors.limits.shared_gate``).
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import time
from collections.abc import Callable, Iterable
from typing import Literal, Protocol

import msgspec

from actors.limits.gate import Hint, LoadHint, RateHint
from actors.limits.prices import Amount, Meter, prompt_bytes
from protocols.errors import FailureKind, ReplyError
from protocols.message import Ask, Reply

log = logging.getLogger("moot.gate")

ALARM_S = 120.0  # asks wait, nothing is under way and nobody was let in for so long: a queue waits on itself
BYTES_A_TOKEN = 3  # of a prompt, rather too few than too many: what a rate limit counts before the provider does

Ending = FailureKind | Literal["reply", "unsent", "lost"]
"""How a try ended. ``unsent``: it never began; ``lost``: whoever sent it is gone, and what came of it is not known."""


class Want(msgspec.Struct, frozen=True, tag="want", omit_defaults=True):
    """A try that wants to go: the most it can come to, and the tokens it will probably be counted as.

    ``kept``: its sender finds it again after a restart, so that a sender that is lost has not lost it. ``bought``: it
    was sent before, by a process that is gone; what it costs is spent whether it may go or not.
    """

    id: str
    most: Amount
    expected_tokens: int
    kept: bool = False
    bought: bool = False


class Done(msgspec.Struct, frozen=True, tag="done", omit_defaults=True):
    """A try that is over, or gave up waiting, and what it came to."""

    id: str
    ending: Ending
    spent: Amount = Amount()
    completion_tokens: int = 0
    retry_after_s: float | None = None


Told = Want | Done | RateHint | LoadHint


class Decision(msgspec.Struct, frozen=True):
    """``refusal`` is "" for a try that may go, else the reason why it never may."""

    id: str
    refusal: str = ""


class Core(Protocol):
    """Who may go when. Pure: time is an argument, in seconds of any one clock."""

    @property
    def waiting(self) -> int:
        """Tries that it has not decided on."""
        ...

    @property
    def running(self) -> int:
        """Tries that it has let in and that are not over."""
        ...

    def tell(self, told: Told, now_s: float) -> None:
        """A try asks, ends, or limits became known. Ids that are not known are passed over."""
        ...

    def decide(self, now_s: float) -> list[Decision]:
        """Those of whom it is decided now, in the order they asked. Each is named once."""
        ...

    def next_s(self, now_s: float) -> float | None:
        """When to ask ``decide`` again though nothing was told; None: never."""
        ...

    def figures(self, now_s: float) -> dict[str, float]:
        """By name, for statistics; ``waiting`` and ``running`` among them."""
        ...


class Desk:
    """Runs one core on the event loop. ``decided`` is called with every decision."""

    def __init__(
        self,
        name: str,
        core: Core,
        decided: Callable[[Decision], None],
        *,
        clock: Callable[[], float] = time.monotonic,
        alarm_s: float = ALARM_S,
    ) -> None:
        self.name, self.core, self.alarms = name, core, 0
        self._decided, self._clock, self._alarm_s = decided, clock, alarm_s
        self._timer: asyncio.Handle | None = None
        self._soon = False  # a turn is due in this tick: everything told until then is in it
        self._moved_s = clock()

    def tell(self, told: Iterable[Told]) -> None:
        now = self._clock()
        if not self._soon and not self.core.waiting:
            self._moved_s = now  # nobody waited until now
        for item in told:
            self.core.tell(item, now)
        if not self._soon:
            self.close()
            self._soon, self._timer = True, asyncio.get_running_loop().call_soon(self._turn)

    def _turn(self) -> None:
        self._soon, self._timer = False, None
        now = self._clock()
        decisions = self.core.decide(now)
        for decision in decisions:
            self._decided(decision)
        stuck = self.core.waiting and not self.core.running  # nobody under way could let anybody in
        if decisions or not stuck:
            self._moved_s = now
        elif now - self._moved_s >= self._alarm_s:
            self._alarm(now)
        later = self.core.next_s(now)
        if stuck:
            later = min(now + self._alarm_s if later is None else later, self._moved_s + self._alarm_s)
        if later is not None:
            self._timer = asyncio.get_running_loop().call_later(max(0.001, later - now), self._turn)

    def _alarm(self, now: float) -> None:
        shown = ", ".join(f"{name} {value:g}" for name, value in self.core.figures(now).items())
        log.error("%s: asks wait though none is under way, for %g s: %s", self.name, now - self._moved_s, shown)
        self.alarms += 1
        self._moved_s = now

    def figures(self) -> dict[str, float]:
        return {**self.core.figures(self._clock()), "alarms": float(self.alarms)}

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()


class Ticket(msgspec.Struct, frozen=True):
    id: str
    ask: Ask


class QueueGate:
    """The gate in front of a desk, wherever that is.

    Args:
        post: takes what the desk must be told.
        bought: of a backend that keeps its asks: whether one was sent before; see ``Want``.
        hears: the kind of hints that the desk is told.
    """

    def __init__(
        self,
        meter: Meter,
        post: Callable[[Told], None],
        figures: Callable[[], dict[str, float]],
        bought: Callable[[Ask], bool] | None = None,
        hears: type[Hint] = RateHint,
    ) -> None:
        self._meter, self._post, self._figures = meter, post, figures
        self._bought, self._hears = bought, hears
        self._ids = itertools.count()
        self._waiting: dict[str, asyncio.Future[str]] = {}

    async def enter(self, ask: Ask) -> Ticket:
        ticket = Ticket(str(next(self._ids)), ask)
        self._waiting[ticket.id] = word = asyncio.get_running_loop().create_future()
        kept, bought = self._bought is not None, self._bought is not None and self._bought(ask)
        self._post(Want(ticket.id, self._meter.most(ask), _expected_tokens(ask), kept, bought))
        try:
            refusal = await word
        except asyncio.CancelledError:
            self._post(Done(ticket.id, "unsent"))
            raise
        finally:
            self._waiting.pop(ticket.id, None)
        if refusal:
            raise ReplyError(refusal, "quota")
        return ticket

    def leave(self, ticket: Ticket, outcome: Reply | ReplyError | None) -> None:
        if outcome is None:
            done = Done(ticket.id, "unsent")
        elif isinstance(outcome, Reply):
            spent = Amount(outcome.cost_usd, outcome.usage.total_tokens)
            done = Done(ticket.id, "reply", spent, outcome.usage.completion_tokens)
        else:
            charged = self._meter.charged(ticket.ask, outcome)
            done = Done(ticket.id, outcome.kind, charged, retry_after_s=outcome.retry_after_s)
        self._post(done)

    def hint(self, hint: Hint) -> None:
        if isinstance(hint, self._hears):
            self._post(hint)

    def figures(self) -> dict[str, float]:
        return self._figures()

    def decided(self, decision: Decision) -> None:
        """The desk's word; whoever has given up waiting has said so already."""
        word = self._waiting.get(decision.id)
        if word is not None and not word.done():
            word.set_result(decision.refusal)


def local_gate(name: str, core: Core, meter: Meter, hears: type[Hint] = RateHint) -> QueueGate:
    """A gate whose core is for this host alone."""
    desk = Desk(name, core, lambda decision: gate.decided(decision))  # noqa: PLW0108  # the gate is made next
    gate = QueueGate(meter, lambda told: desk.tell([told]), desk.figures, hears=hears)
    return gate


def _expected_tokens(ask: Ask) -> int:
    """What a provider counts when the request comes in: the prompt as it guesses it, and all that may be said."""
    return prompt_bytes(ask) // BYTES_A_TOKEN + ask.sampling.max_tokens
