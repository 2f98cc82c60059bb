"""What response headers say of an account's limits, in the two usual dialects."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Mapping
from datetime import datetime

from actors.limits.gate import RateHint
from actors.services.http_client import duration_s


def openai_rates(headers: Mapping[str, str]) -> RateHint | None:
    """``x-ratelimit-*``, with resets such as ``6m0s``. None: nothing is said."""
    limit_requests = _number(headers.get("x-ratelimit-limit-requests"))
    remaining_requests = _number(headers.get("x-ratelimit-remaining-requests"))
    limit_tokens = _number(headers.get("x-ratelimit-limit-tokens"))
    remaining_tokens = _number(headers.get("x-ratelimit-remaining-tokens"))
    resets = (
        duration_s(headers.get("x-ratelimit-reset-requests", "")),
        duration_s(headers.get("x-ratelimit-reset-tokens", "")),
    )
    return _hint(limit_requests, remaining_requests, limit_tokens, remaining_tokens, resets)


def anthropic_rates(headers: Mapping[str, str], *, now_s: float | None = None) -> RateHint | None:
    """``anthropic-ratelimit-*``, with resets as dates. None: nothing is said.

    Args:
        now_s: seconds since the epoch; default: the clock.
    """
    limit_requests = _number(headers.get("anthropic-ratelimit-requests-limit"))
    remaining_requests = _number(headers.get("anthropic-ratelimit-requests-remaining"))
    limit_tokens = _number(headers.get("anthropic-ratelimit-tokens-limit"))
    remaining_tokens = _number(headers.get("anthropic-ratelimit-tokens-remaining"))
    now_s = time.time() if now_s is None else now_s
    resets = (
        _until_s(headers.get("anthropic-ratelimit-requests-reset"), now_s),
        _until_s(headers.get("anthropic-ratelimit-tokens-reset"), now_s),
    )
    return _hint(limit_requests, remaining_requests, limit_tokens, remaining_tokens, resets)


def _hint(
    limit_requests: float | None,
    remaining_requests: float | None,
    limit_tokens: float | None,
    remaining_tokens: float | None,
    resets: Iterable[float | None],
) -> RateHint | None:
    known = [reset for reset in resets if reset is not None]
    reset_s = max(known) if known else None  # whole again when both are
    if (limit_requests, remaining_requests, limit_tokens, remaining_tokens, reset_s) == (None,) * 5:
        return None
    return RateHint(
        limit_requests=limit_requests,
        remaining_requests=remaining_requests,
        limit_tokens=limit_tokens,
        remaining_tokens=remaining_tokens,
        reset_s=reset_s,
    )


def _number(text: str | None) -> float | None:
    try:
        number = float(text) if text is not None else math.nan
    except ValueError:
        return None
    return number if 0 <= number < math.inf else None


def _until_s(text: str | None, now_s: float) -> float | None:
    try:
        moment = datetime.fromisoformat(text) if text else None
        return None if moment is None or moment.tzinfo is None else max(0.0, moment.timestamp() - now_s)
    except (ValueError, OverflowError):
        return None
