"""Money and tokens that a run may spend: reserved before a try is sent, settled when it is over.

A purse lets a try go only if the most it can come to still fits beside what is spent and what is reserved. So the cap
is not passed, however many ask at once, as long as no try costs more than its most. Pure: see
``actors.limits.queue_gate``.
"""

from __future__ import annotations

from collections import OrderedDict

import msgspec

from actors.limits.policy import PAUSED
from actors.limits.prices import NOTHING, Amount
from actors.limits.queue_gate import Decision, Done, Told, Want
from protocols.bounds import UP, check_bounds

_ROUNDING_USD = 1e-9  # sums of floats; far below the price of a token


class Budget(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a run may spend, from its first start on, resumptions included; 0: no limit."""

    usd: float = 0.0
    tokens: int = 0  # of prompts and replies

    def __post_init__(self) -> None:
        check_bounds(self, usd=(0, UP), tokens=(0, UP))

    def __bool__(self) -> bool:
        return bool(self.usd or self.tokens)


class Purse:
    """One run's budget, first come, first served. A core: see ``actors.limits.queue_gate``.

    A try that would fit if those under way cost less than their most waits for them; one that would not fit beside what
    is spent already is refused. One that was bought before goes at once, and what it may come to is reserved.
    """

    def __init__(self, budget: Budget, spent: Amount = NOTHING) -> None:
        self.budget = budget
        self._usd, self._tokens = spent
        self._queue: OrderedDict[str, Want] = OrderedDict()  # a plain dict is slow at giving its first
        self._bought: dict[str, Want] = {}
        self._reserved: dict[str, Want] = {}
        self._reserved_usd, self._reserved_tokens = 0.0, 0

    @property
    def spent(self) -> Amount:
        return Amount(self._usd, self._tokens)

    @property
    def reserved(self) -> Amount:
        """The most that the tries under way can come to."""
        return Amount(self._reserved_usd, self._reserved_tokens)

    def charge(self, spent: Amount) -> None:
        """Something was bought that is no try."""
        self._usd += spent.usd
        self._tokens += spent.tokens

    @property
    def waiting(self) -> int:
        return len(self._queue)

    @property
    def running(self) -> int:
        return len(self._reserved)

    def tell(self, told: Told, now_s: float) -> None:
        if isinstance(told, Want):
            (self._bought if told.bought else self._queue)[told.id] = told
        elif isinstance(told, Done) and self._waiting_for(told.id).pop(told.id, None) is None:
            self._settle(told)

    def _waiting_for(self, name: str) -> dict[str, Want]:
        return self._bought if name in self._bought else self._queue

    def _settle(self, done: Done) -> None:
        if (want := self._reserved.pop(done.id, None)) is None:
            return
        most, lost = want.most, NOTHING if want.kept else want.most
        spent = {"unsent": NOTHING, "lost": lost}.get(done.ending, done.spent)
        self._usd += spent.usd
        self._tokens += spent.tokens
        self._reserved_tokens -= most.tokens
        self._reserved_usd = self._reserved_usd - most.usd if self._reserved else 0.0  # no rounding is left over

    def decide(self, now_s: float) -> list[Decision]:
        decided = [self._admit(want) for want in self._bought.values()]
        self._bought.clear()
        while self._queue:
            want = next(iter(self._queue.values()))
            if not self._fits(want.most, NOTHING):
                decided.append(Decision(want.id, self._refusal(want.most)))
            elif self._fits(want.most, self.reserved):
                decided.append(self._admit(want))
            else:
                break
            del self._queue[want.id]
        return decided

    def _admit(self, want: Want) -> Decision:
        self._reserved[want.id] = want
        self._reserved_usd += want.most.usd
        self._reserved_tokens += want.most.tokens
        return Decision(want.id)

    def _fits(self, most: Amount, beside: Amount) -> bool:
        usd = self._usd + beside.usd + most.usd <= self.budget.usd + _ROUNDING_USD
        tokens = self._tokens + beside.tokens + most.tokens <= self.budget.tokens
        return (usd or not self.budget.usd) and (tokens or not self.budget.tokens)

    def _refusal(self, most: Amount) -> str:
        if self.budget.usd and self._usd + most.usd > self.budget.usd + _ROUNDING_USD:
            return (
                f"{PAUSED}budget of ${self.budget.usd:g} spent (${self._usd:.4f}, and the next ask may cost up to "
                f"${most.usd:.4f}); go on with `moot resume RUN --budget usd=Y`"
            )
        return (
            f"{PAUSED}budget of {self.budget.tokens} tokens spent ({self._tokens}, and the next ask may take up to "
            f"{most.tokens}); go on with `moot resume RUN --budget tokens=Y`"
        )

    def next_s(self, now_s: float) -> float | None:
        return None  # only a settlement changes anything

    def figures(self, now_s: float) -> dict[str, float]:
        return {
            "waiting": float(self.waiting),
            "running": float(self.running),
            "spent_usd": self._usd,
            "spent_tokens": float(self._tokens),
            "reserved_usd": self._reserved_usd,
            "reserved_tokens": float(self._reserved_tokens),
        }
