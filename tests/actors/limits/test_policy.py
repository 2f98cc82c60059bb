"""The policy table: which failures are tried again, when, and which of them stop a run."""

from __future__ import annotations

import pickle
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.limits.policy import POLICIES, stops_run, wait_s
from actors.limits.tries import kept, spent
from protocols.errors import RETRYABLE, FailureKind, ReplyError
from protocols.message import MAX_ATTEMPTS, Attempt, Failure, Reply, Usage

KINDS: tuple[FailureKind, ...] = get_args(FailureKind)


def test_every_kind_has_its_policy_and_only_those_worth_it_are_tried_again() -> None:
    assert set(POLICIES) == set(KINDS)
    assert {kind for kind, policy in POLICIES.items() if policy.tries} == RETRYABLE
    assert {kind for kind, policy in POLICIES.items() if policy.ending == "stop"} == {"quota", "authentication"}


@pytest.mark.parametrize(
    ("kind", "failed", "retry_after_s", "drawn", "expected"),
    [
        ("transient", 1, None, 1.0, 0.5),  # backoff_s
        ("transient", 3, None, 1.0, 2.0),  # doubled twice
        ("transient", 3, None, 0.25, 0.5),  # full jitter: a share of it
        ("transient", 4, None, 1.0, None),  # max_tries
        ("transient", 1, 7.0, 1.0, 7.5),  # as it asks, and jitter
        ("timeout", 1, 7.0, 1.0, 0.5),  # a timeout says nothing of when to come back
        ("rate_limited", 1, None, 1.0, 1.0),
        ("rate_limited", 11, None, 1.0, 60.0),  # 1024 s, bounded
        ("rate_limited", 12, None, 1.0, None),  # three times max_tries
        ("rate_limited", 1, 600.0, 0.0, 600.0),
        ("rate_limited", 1, 601.0, 0.0, None),
        ("refused", 1, None, 1.0, None),
        ("context_too_long", 1, None, 1.0, None),
        ("malformed", 1, None, 1.0, None),
        ("authentication", 1, None, 1.0, None),
        ("quota", 1, 3.0, 1.0, None),
    ],
)  # fmt: skip
def test_waits_between_tries(
    kind: FailureKind, failed: int, retry_after_s: float | None, drawn: float, expected: float | None
) -> None:
    err = ReplyError("said", kind, retry_after_s)
    assert wait_s(err, failed, max_tries=4, backoff_s=0.5, drawn=drawn) == expected


@given(
    kind=st.sampled_from(KINDS), failed=st.integers(1, 10_000), drawn=st.floats(0, 1),
    retry_after_s=st.none() | st.floats(0, 1e9), backoff_s=st.floats(0, 1e6),
)  # fmt: skip
def test_every_wait_is_bounded(
    kind: FailureKind, failed: int, drawn: float, retry_after_s: float | None, backoff_s: float
) -> None:
    waits = wait_s(ReplyError("", kind, retry_after_s), failed, max_tries=10_000, backoff_s=backoff_s, drawn=drawn)
    assert waits is None or 0 <= waits <= 600 + 60


@pytest.mark.parametrize(
    ("kind", "retry_after_s", "stops"),
    [
        ("authentication", None, True), ("quota", 1.0, True), ("rate_limited", 600.0, False),
        ("rate_limited", 601.0, True), ("transient", 601.0, True), ("refused", 601.0, False), ("timeout", None, False),
    ],
)  # fmt: skip
def test_what_stops_a_run(kind: FailureKind, retry_after_s: float | None, stops: bool) -> None:
    assert stops_run(ReplyError("", kind, retry_after_s)) is stops


def test_an_error_keeps_what_it_knows_across_processes() -> None:
    err = pickle.loads(pickle.dumps(ReplyError("busy", "rate_limited", 2.5)))  # our own bytes
    assert (str(err), err.kind, err.retry_after_s) == ("busy", "rate_limited", 2.5)


def test_attempts_kept_are_the_last_and_lose_no_money() -> None:
    attempts = [Attempt("timeout", str(number), cost_usd=1.0, tokens=10) for number in range(MAX_ATTEMPTS + 4)]
    few = kept(attempts)
    assert [item.reason for item in few] == [str(number) for number in range(4, MAX_ATTEMPTS + 4)]
    assert few[0].cost_usd == 5.0 and few[0].tokens == 50
    assert spent(Failure(ask_id="a", kind="timeout", reason="", attempts=few)) == (20.0, 200)
    reply = Reply(ask_id="a", text="", model="m", usage=Usage(3, 4), attempts=few[-1:], cost_usd=0.5)
    assert spent(reply) == (1.5, 17)
    assert kept(attempts[:2]) == tuple(attempts[:2])
