"""Gates: what an ask passes before a try is sent, and what each of them is told when the try is over.

An agent host enters its gates in order for every try and leaves them in the reverse order, whatever came of it. A gate
makes an ask wait (a rate limit) or turns it away (a budget). Backends tell gates what response headers say of an
account's limits (``RateHint``), or how full their engine is (``LoadHint``).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import msgspec

from protocols.errors import ReplyError
from protocols.message import Ask, Reply

Ticket = Any
"""What a gate hands out on entering and wants back on leaving; a gate's own business."""


class RateHint(msgspec.Struct, frozen=True, kw_only=True):
    """What a response's headers say of the account's limits; None where they say nothing.

    Limits are per minute. ``reset_s``: seconds until what remains is whole again.
    """

    limit_requests: float | None = None
    remaining_requests: float | None = None
    limit_tokens: float | None = None
    remaining_tokens: float | None = None
    reset_s: float | None = None


class LoadHint(msgspec.Struct, frozen=True, kw_only=True):
    """What a local engine has to do: requests in its batch, those that wait for room, the share of its cache in use."""

    running: float
    waiting: float
    kv_usage: float


Hint = RateHint | LoadHint
OnRate = Callable[[RateHint], None]
OnLoad = Callable[[LoadHint], None]


@runtime_checkable
class TellsRates(Protocol):
    """A backend that reads rate-limit headers. The host sets ``on_rate`` before ``start``; the backend calls it, where
    it is set, with every response whose headers say something, failed ones too."""

    on_rate: OnRate | None


@runtime_checkable
class TellsLoad(Protocol):
    """A backend that says what its engine has to do. The host sets ``on_load`` before ``start``; it is called while
    the engine works, often while anything waits inside it."""

    on_load: OnLoad | None


class Gate(Protocol):
    """One thing to pass. Methods are called on the host's event loop."""

    async def enter(self, ask: Ask) -> Ticket:
        """Wait until the ask may go. Cancelling the caller frees its place.

        Raises: ReplyError: kind ``quota`` when it may not go at all: a budget is spent.
        """
        ...

    def leave(self, ticket: Ticket, outcome: Reply | ReplyError | None) -> None:
        """The try is over; None: it was never sent. One cut short ends as a ``ReplyError`` of kind ``timeout``."""
        ...

    def hint(self, hint: Hint) -> None:
        """Told by the backend, at any time."""
        ...

    def figures(self) -> dict[str, float]:
        """By name, for statistics."""
        ...
