"""What is done about each kind of failure: one table, read by agent hosts, drawn in docs/agents.md.

What is asked never changes between tries: the same messages, the same sampling, the same seed.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Literal

import msgspec

from protocols.errors import FailureKind, ReplyError

PAUSED = "paused: "  # begins what a budget says

Ending = Literal["set_aside", "stop"]
"""When the tries are over. ``set_aside``: the debate goes on without this turn. ``stop``: the run ends with a sentence
and can go on later, as no other ask would fare better; nothing is counted as failed."""


class Policy(msgspec.Struct, frozen=True, kw_only=True):
    """What is done about one kind of failure.

    ``tries`` is in units of ``limits.max_tries``; 0: never tried again. The wait before the next try is drawn between 0
    and ``limits.backoff_s * backoff * 2**(failed tries - 1)``, at most ``max_backoff_s``; where the provider names a
    time, the wait is that time and as much again as was drawn. A provider that asks for more than
    ``max_retry_after_s`` is not waited for: the run stops.
    """

    tries: int = 0
    backoff: float = 1.0
    max_backoff_s: float = 60.0
    obeys_retry_after: bool = False
    max_retry_after_s: float = 600.0
    ending: Ending = "set_aside"


POLICIES: Mapping[FailureKind, Policy] = MappingProxyType(
    {
        "transient": Policy(tries=1, obeys_retry_after=True),
        "rate_limited": Policy(tries=3, backoff=2.0, obeys_retry_after=True),  # it always ends, and costs nothing
        "timeout": Policy(tries=1),
        "quota": Policy(ending="stop"),
        "authentication": Policy(ending="stop"),
        "refused": Policy(),
        "context_too_long": Policy(),
        "malformed": Policy(),
    }
)


def stops_run(err: ReplyError) -> bool:
    """Whether no other ask would fare better, so that the run must stop."""
    policy = POLICIES[err.kind]
    return policy.ending == "stop" or _too_long(policy, err)


def wait_s(err: ReplyError, failed: int, *, max_tries: int, backoff_s: float, drawn: float) -> float | None:
    """How long to wait before the next try, seconds; None: the tries are over.

    Args:
        failed: tries that have failed in this way or another, ``err`` with them; at least 1.
        drawn: uniform between 0 and 1: full jitter, so that asks that failed together do not return together.
    """
    policy = POLICIES[err.kind]
    if failed >= policy.tries * max_tries or _too_long(policy, err):
        return None
    longest = min(policy.max_backoff_s, backoff_s * policy.backoff * 2.0 ** min(failed - 1, 32))
    asked = err.retry_after_s or 0.0 if policy.obeys_retry_after else 0.0
    return asked + drawn * longest


def _too_long(policy: Policy, err: ReplyError) -> bool:
    return policy.obeys_retry_after and (err.retry_after_s or 0.0) > policy.max_retry_after_s


def why_stopped(model: str, err: ReplyError) -> str:
    """What the person at the keyboard is told: one sentence with the way out. A budget's own is one already."""
    said = str(err).rstrip(".")
    if said.startswith(PAUSED):
        return str(err)
    if POLICIES[err.kind].ending != "stop":
        said += f"; it asks for a pause of {err.retry_after_s:g} s"
    return f"model {model!r} was refused ({err.kind}): {said}; mend it, then go on with `moot resume RUN`"
