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


class AgentTally:
    """The counters of one agent. ``count`` is on the way of every reply: it builds nothing."""

    __slots__ = (
        "_cached",
        "_completion",
        "_image",
        "_latency",
        "_prompt",
        "_reasoning",
        "cost_usd",
        "failures",
        "replies",
    )

    def __init__(self) -> None:
        self.replies = self.failures = 0
        self.cost_usd, self._latency = 0.0, Histogram()
        self._prompt = self._completion = self._cached = self._image = self._reasoning = 0

    def count(self, outcome: Outcome, cost_usd: float) -> None:
        self.cost_usd += cost_usd
        if not isinstance(outcome, Reply):
            self.failures += 1
            return
        self.replies += 1
        if not outcome.cached:
            usage = outcome.usage
            self._prompt += usage.prompt_tokens
            self._completion += usage.completion_tokens
            self._cached += usage.cached_tokens
            self._image += usage.image_tokens
            self._reasoning += usage.reasoning_tokens
            self._latency.add(outcome.latency_s)

    @property
    def usage(self) -> Usage:
        """Of all replies; those from a cache took nothing."""
        return Usage(self._prompt, self._completion, self._cached, self._image, self._reasoning)

    def stats(self, *, queued: int, running: int) -> AgentStats:
        return AgentStats(
            queued=queued,
            running=running,
            replies=self.replies,
            failures=self.failures,
            prompt_tokens=self._prompt,
            completion_tokens=self._completion,
            cached_tokens=self._cached,
            cost_usd=self.cost_usd,
            latency=tuple(self._latency.counts),
        )
