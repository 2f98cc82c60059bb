"""What a host counts for each of its agents: running totals, so that whoever watches takes differences."""

from __future__ import annotations

import msgspec

from actors.post.histogram import Histogram
from protocols.message import Outcome, Reply, Usage


class AgentStats(msgspec.Struct, frozen=True, kw_only=True):
    """One agent at one host, since the host was started. ``latency``: of its replies, by bucket; cached ones are in
    ``replies`` alone, as they took nothing."""

    queued: int = 0  # told, not yet in the model
    running: int = 0
    replies: int = 0
    failures: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0  # of the prompt's, from a prefix cache
    cost_usd: float = 0.0
    latency: tuple[int, ...] = ()


class UsageTally:
    """A sum of usages that is added to in place: a new ``Usage`` for every reply would cost more than the reply's."""

    __slots__ = ("cached", "completion", "image", "prompt", "reasoning")

    def __init__(self) -> None:
        self.prompt = self.completion = self.cached = self.image = self.reasoning = 0

    def add(self, usage: Usage) -> None:
        self.prompt += usage.prompt_tokens
        self.completion += usage.completion_tokens
        if usage.cached_tokens or usage.image_tokens or usage.reasoning_tokens:
            self.cached += usage.cached_tokens
            self.image += usage.image_tokens
            self.reasoning += usage.reasoning_tokens

    @property
    def total(self) -> Usage:
        return Usage(self.prompt, self.completion, self.cached, self.image, self.reasoning)


class AgentTally:
    """The counters of one agent. ``usage``: of its replies; those from a cache took nothing."""

    __slots__ = ("_latency", "cost_usd", "failures", "replies", "usage")

    def __init__(self) -> None:
        self.replies = self.failures = 0
        self.cost_usd, self.usage, self._latency = 0.0, UsageTally(), Histogram()

    def count(self, outcome: Outcome, cost_usd: float) -> None:
        self.cost_usd += cost_usd
        if not isinstance(outcome, Reply):
            self.failures += 1
            return
        self.replies += 1
        if not outcome.cached:
            self.usage.add(outcome.usage)
            self._latency.add(outcome.latency_s)

    def stats(self, *, queued: int, running: int) -> AgentStats:
        return AgentStats(
            queued=queued,
            running=running,
            replies=self.replies,
            failures=self.failures,
            prompt_tokens=self.usage.prompt,
            completion_tokens=self.usage.completion,
            cached_tokens=self.usage.cached,
            cost_usd=self.cost_usd,
            latency=tuple(self._latency.counts),
        )
