"""How much an account takes: concurrency that finds its own level, requests and tokens a minute, pauses it asks for.

Pure: ``Account`` is told the time. One account is one core, whether for one host or, in a Ray actor, for all of them.
"""

from __future__ import annotations

import statistics
from collections import OrderedDict

import msgspec

from actors.limits.gate import RateHint
from actors.limits.queue_gate import Decision, Done, Told, Want

FIRST_CONCURRENCY = 8.0  # asks in flight before anything is known of the account
WINDOW_S = 60.0  # what providers count over
BURST = 1 / 6  # share of a minute's limit that may go at once; what is refilled within the minute makes up the rest
INFLATION = 3.0  # times the usual latency a token, over a whole window, that counts as trouble
FAST_S = 0.005  # a token: a service that is as quick as this has no trouble, whatever it was before
TOLERATED = 0.1  # share of refusals: some services refuse at random, and sending less does not mend that
MEMORY = 32  # outcomes over which that share is taken
DRIFT = 1.05  # a window by which the usual latency gives way: a service that became slower for good is accepted
MIN_WINDOW = 8  # replies; fewer say nothing of the latency
TOKENS_OF_A_CALL = 20  # what the fixed part of a reply's latency is worth, in tokens said
MAX_PAUSE_S = 600.0


class Rates(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of an account beforehand; 0: nothing, learned from response headers where they tell."""

    max_concurrency: int = 1_000
    requests_per_minute: float = 0.0
    tokens_per_minute: float = 0.0


class Bucket:
    """A rate that is never passed over any minute. Filled at first; a limit of 0 lets everything through.

    It holds a burst and refills so slowly that burst and refill together are the limit. One ask larger than the burst
    goes when the bucket is full and leaves a debt.
    """

    def __init__(self, limit: float, now_s: float) -> None:
        self.limit, self._at = limit, now_s
        self.level = self._burst

    @property
    def _burst(self) -> float:
        return max(1.0, self.limit * BURST)

    @property
    def _per_s(self) -> float:
        return (self.limit - self._burst if self.limit >= 2.0 else self.limit) / WINDOW_S

    def set_limit(self, limit: float, now_s: float) -> None:
        """From now on; a bucket that let everything through is full."""
        self._fill(now_s)
        known, self.limit = self.limit, limit
        self.level = min(self.level, self._burst) if known else self._burst

    def wait_s(self, amount: float, now_s: float) -> float:
        """Until so much may be taken; 0: now."""
        if not self.limit:
            return 0.0
        self._fill(now_s)
        missing = min(amount, self._burst) - self.level
        return max(0.0, missing / self._per_s) if missing > 1e-9 else 0.0

    def take(self, amount: float, now_s: float) -> None:
        """Negative: give back what was taken in vain."""
        if self.limit:
            self._fill(now_s)
            self.level = min(self._burst, self.level - amount)

    def _fill(self, now_s: float) -> None:
        passed, self._at = max(0.0, now_s - self._at), max(now_s, self._at)
        if self.limit:
            self.level = min(self._burst, self.level + passed * self._per_s)


class Concurrency:
    """Asks in flight at once: doubled every window without trouble until the first trouble, then one more a window.

    Trouble is a refusal, or a window in which a token took several times as long as usual, and counts once for all that
    was in flight when it came. The latter and the first refusal halve it. Every other refusal takes half of the share
    of asks refused lately, as far as that is above ``TOLERATED``: a service that refuses all is soon left alone, one
    that refuses a few at random, whatever is sent, keeps its work.

    Sources: slow start, additive increase and multiplicative decrease as in Jacobson 1988, "Congestion avoidance and
    control"; in proportion as in Alizadeh et al. 2010, "Data center TCP (DCTCP)", there over windows and not outcomes;
    what is tolerated, and latency as a sign, are ours.
    """

    def __init__(self, longest: int) -> None:
        self.longest = float(longest)
        self.limit = min(FIRST_CONCURRENCY, self.longest)
        self._slow_start = True
        self._lowered_s = float("-inf")
        self._refused = 0.0  # share, lately
        self._window: list[float] = []
        self._usual: float | None = None

    def succeeded(self, began_s: float, now_s: float, completion_tokens: int, *, full: bool) -> None:
        """``full``: the limit was in use, so that there is reason to raise it."""
        self.taken()
        self._window.append((now_s - began_s) / (completion_tokens + TOKENS_OF_A_CALL))
        if len(self._window) >= max(MIN_WINDOW, self.limit):
            latency, self._window = statistics.median(self._window), []
            if self._usual is not None and latency > max(INFLATION * self._usual, FAST_S):
                self._lower(0.5, began_s, now_s)
            self._usual = latency if self._usual is None else min(self._usual * DRIFT, latency)
        if full and began_s >= self._lowered_s:
            self.limit = min(self.longest, self.limit + (1.0 if self._slow_start else 1.0 / self.limit))

    def taken(self) -> None:
        """An ask was not refused, whatever became of it."""
        self._refused -= self._refused / MEMORY

    def troubled(self, began_s: float, now_s: float) -> None:
        """An ask was refused."""
        self._refused += (1.0 - self._refused) / MEMORY
        self._lower(0.5 if self._slow_start else max(0.0, self._refused - TOLERATED) / 2, began_s, now_s)

    def _lower(self, share: float, began_s: float, now_s: float) -> None:
        if share > 0.0 and began_s >= self._lowered_s:  # not sent before the last lowering, which it knows nothing of
            self.limit = max(1.0, self.limit * (1.0 - share))
            self._slow_start, self._lowered_s = False, now_s
            self._window.clear()


class _Running(msgspec.Struct):
    began_s: float
    expected_tokens: int


class Account:
    """One account's limits, first come, first served. A core: see ``actors.limits.queue_gate``."""

    def __init__(self, rates: Rates, now_s: float) -> None:
        self._rates = rates
        self.concurrency = Concurrency(rates.max_concurrency)
        self.requests = Bucket(rates.requests_per_minute, now_s)
        self.tokens = Bucket(rates.tokens_per_minute, now_s)
        self._paused_until_s = float("-inf")
        self._queue: OrderedDict[str, Want] = OrderedDict()  # a plain dict is slow at giving its first
        self._running: dict[str, _Running] = {}

    @property
    def waiting(self) -> int:
        return len(self._queue)

    @property
    def running(self) -> int:
        return len(self._running)

    def tell(self, told: Told, now_s: float) -> None:
        if isinstance(told, Want):
            self._queue[told.id] = told
        elif isinstance(told, RateHint):
            self._learn(told, now_s)
        elif (
            isinstance(told, Done)
            and self._queue.pop(told.id, None) is None
            and (running := self._running.pop(told.id, None)) is not None
        ):
            self._over(told, running, now_s)

    def _over(self, done: Done, running: _Running, now_s: float) -> None:
        if done.ending == "reply":
            full = 2 * (len(self._running) + 1) >= self.concurrency.limit
            self.concurrency.succeeded(running.began_s, now_s, done.completion_tokens, full=full)
            self.tokens.take(done.spent.tokens - running.expected_tokens, now_s)
        elif done.ending == "rate_limited" or (done.ending == "transient" and done.retry_after_s):  # overloaded
            self.concurrency.troubled(running.began_s, now_s)
        elif done.ending == "unsent":
            self.requests.take(-1.0, now_s)
            self.tokens.take(-running.expected_tokens, now_s)
        else:
            self.concurrency.taken()
        if done.retry_after_s:
            self._paused_until_s = max(self._paused_until_s, now_s + min(done.retry_after_s, MAX_PAUSE_S))

    def retune(self, rates: Rates, now_s: float) -> None:
        """What the user sets from now on; what headers say is heard again with the next response."""
        for bucket, before, after in (
            (self.requests, self._rates.requests_per_minute, rates.requests_per_minute),
            (self.tokens, self._rates.tokens_per_minute, rates.tokens_per_minute),
        ):
            if after != before:
                bucket.set_limit(after, now_s)
        self.concurrency.longest = float(rates.max_concurrency)
        self._rates = rates

    def _learn(self, hint: RateHint, now_s: float) -> None:
        """What the user has set is an upper bound; what the headers say can only be lower."""
        for bucket, own, limit, remaining in (
            (self.requests, self._rates.requests_per_minute, hint.limit_requests, hint.remaining_requests),
            (self.tokens, self._rates.tokens_per_minute, hint.limit_tokens, hint.remaining_tokens),
        ):
            if limit is not None and 0 < limit < float("inf"):
                lower = min(limit, own or limit)
                if lower != bucket.limit:
                    bucket.set_limit(lower, now_s)
            if remaining is not None and remaining >= 0:
                bucket.level = min(bucket.level, remaining)

    def decide(self, now_s: float) -> list[Decision]:
        admitted = []
        while self._queue and self._wait_s(want := next(iter(self._queue.values())), now_s) == 0.0:
            del self._queue[want.id]
            self._running[want.id] = _Running(now_s, want.expected_tokens)
            self.requests.take(1.0, now_s)
            self.tokens.take(want.expected_tokens, now_s)
            admitted.append(Decision(want.id))
        return admitted

    def _wait_s(self, want: Want, now_s: float) -> float | None:
        """Until the first in the queue may go; None: until another is over."""
        if len(self._running) >= int(self.concurrency.limit):
            return None
        waits = (self.requests.wait_s(1.0, now_s), self.tokens.wait_s(want.expected_tokens, now_s))
        return max(*waits, self._paused_until_s - now_s, 0.0)

    def next_s(self, now_s: float) -> float | None:
        if not self._queue:
            return None
        wait_s = self._wait_s(next(iter(self._queue.values())), now_s)
        return None if wait_s is None else now_s + wait_s

    def figures(self, now_s: float) -> dict[str, float]:
        return {
            "waiting": float(self.waiting),
            "running": float(self.running),
            "concurrency": self.concurrency.limit,
            "requests_per_minute": self.requests.limit,
            "tokens_per_minute": self.tokens.limit,
            "paused_s": max(0.0, self._paused_until_s - now_s),
        }
