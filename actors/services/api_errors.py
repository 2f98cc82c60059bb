"""What an API's refusal means: tables from status, code and words to the kind of failure, one table an API.

The first rule that fits decides. A service's own sentence is passed on, shortened and without keys.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import msgspec

from actors.services.api_key import ApiKey
from actors.services.http_client import Answer, duration_s, retry_after_s
from protocols.errors import FailureKind, ReplyError

MAX_SENTENCE = 300  # characters of the service's own words
SEARCHED = 2000  # characters of them that are looked through

Statuses = frozenset[int]


class Place(NamedTuple):
    """Who was asked, for the sentence."""

    url: str
    model: str
    key: ApiKey


class Rule(NamedTuple):
    """Fits where all that it names fits: a status, a code or type of the error, words of its message."""

    kind: FailureKind
    statuses: Statuses = frozenset()
    codes: frozenset[str] = frozenset()
    says: re.Pattern[str] | None = None

    def fits(self, status: int, codes: frozenset[str], message: str) -> bool:
        return (
            (not self.statuses or status in self.statuses)
            and (not self.codes or bool(self.codes & codes))
            and (self.says is None or self.says.search(message) is not None)
        )


def _words(pattern: str) -> re.Pattern[str]:
    return re.compile(pattern, re.IGNORECASE)


CLIENT_ERRORS = frozenset({400, 413, 422})
PASSING = frozenset({408, 409, 425, *range(500, 600)})
TOO_LONG = _words(
    r"context (?:length|size|window)|prompt is too long|context limit|input token count|reduce the length of the"
    r"|maximum (?:model|prompt|context) length|too many (?:input )?tokens|too large for model|max_model_len"
)
FLAGGED = _words(r"flagged|moderation|content (?:management |filtering )?policy|content filter")
BAD_KEY = _words(r"(?:invalid|incorrect) api key|api key (?:not valid|not found|expired|invalid)")

COMMON = (
    Rule("authentication", statuses=frozenset({401, 403, 407})),
    Rule("authentication", statuses=frozenset({400}), says=BAD_KEY),
    Rule("rate_limited", statuses=frozenset({429})),
    Rule("transient", statuses=PASSING),
    Rule("malformed"),
)
OPENAI_RULES = (
    Rule(
        "refused",
        codes=frozenset(
            {"content_filter", "content_policy_violation", "responsibleaipolicyviolation", "moderation_blocked"}
        ),
    ),
    Rule("refused", statuses=frozenset({400, 403}), says=FLAGGED),
    Rule("context_too_long", codes=frozenset({"context_length_exceeded", "exceed_context_size_error"})),
    Rule("context_too_long", statuses=CLIENT_ERRORS, says=TOO_LONG),
    Rule("quota", statuses=frozenset({402})),
    Rule("quota", codes=frozenset({"insufficient_quota", "exceeded_quota"})),
    Rule("quota", codes=frozenset({"billing_hard_limit_reached", "billing_not_active"})),
    *COMMON,
)
ANTHROPIC_RULES = (
    Rule("refused", statuses=frozenset({400}), says=FLAGGED),
    Rule("context_too_long", statuses=CLIENT_ERRORS, says=TOO_LONG),
    Rule("context_too_long", codes=frozenset({"request_too_large"})),
    Rule("quota", statuses=frozenset({402})),
    Rule("quota", codes=frozenset({"billing_error"})),
    Rule("quota", says=_words(r"credit balance is too low|specified api usage limits")),
    Rule(
        "quota",
        codes=frozenset(
            {
                "contract_spend_limit_reached",
                "enforced_spend_limit_reached",
                "linked_organization_spend_limit_reached",
                "linked_organization_billing_unavailable",
            }
        ),
    ),
    Rule("authentication", codes=frozenset({"authentication_error", "permission_error"})),
    Rule("rate_limited", codes=frozenset({"rate_limit_error"})),
    Rule("transient", codes=frozenset({"overloaded_error", "api_error", "timeout_error"})),
    *COMMON,
)


def openai_error(answer: Answer, place: Place) -> ReplyError:
    """The error of an OpenAI-compatible answer, Azure's and Gemini's shapes included."""
    return _error(answer, place, OPENAI_RULES)


def anthropic_error(answer: Answer, place: Place) -> ReplyError:
    """The error of an answer of the Anthropic Messages API."""
    return _error(answer, place, ANTHROPIC_RULES)


class _Told(NamedTuple):
    codes: frozenset[str]  # lower case
    message: str
    wait_s: float | None


def _error(answer: Answer, place: Place, rules: Sequence[Rule]) -> ReplyError:
    told = _told(answer.body)
    kind = next(rule.kind for rule in rules if rule.fits(answer.status, told.codes, told.message))
    header_s = retry_after_s(answer.headers)
    return ReplyError(
        _sentence(answer.status, kind, told.message, place), kind, told.wait_s if header_s is None else header_s
    )


def _sentence(status: int, kind: FailureKind, message: str, place: Place) -> str:
    said = " ".join(message[:MAX_SENTENCE].split()) or "no reason given"
    if kind == "authentication":
        head = f"{place.url} does not accept the key (status {status}); check {place.key.place}"
    elif status == 404:
        head = f"{place.url} has no model {place.model!r} (status 404); check model and address"
    elif 300 <= status < 400:
        head = f"{place.url} sends elsewhere (status {status}), and keys are not sent on; set its own address"
    else:
        head = f"{place.url}, model {place.model!r}: {kind.replace('_', ' ')} (status {status})"
    return place.key.redact(f"{head}: {said}")


def _told(body: bytes) -> _Told:
    """What an error's body tells, in whichever of the usual shapes; a body in none of them is its own message."""
    data = decoded(body)
    if isinstance(data, list) and data:  # Gemini wraps it once more
        data = data[0]
    if not isinstance(data, Mapping):
        return _Told(frozenset(), body[:SEARCHED].decode("utf-8", "replace"), None)
    error = data.get("error", data)
    if not isinstance(error, Mapping):
        error = {**data, "message": error}
    message = error.get("message", error.get("detail", ""))
    inner = error.get("innererror")
    details = error.get("details")
    code_bearers = [error, inner, details]
    codes = {
        value.lower()
        for bearer in code_bearers
        if isinstance(bearer, Mapping)
        for name in ("code", "type", "status", "error_code")
        if isinstance(value := bearer.get(name), str)
    }
    said = message if isinstance(message, str) else msgspec.json.encode(message).decode()
    return _Told(frozenset(codes), said[:SEARCHED], _told_wait_s(details))


def _told_wait_s(details: Any) -> float | None:
    """Google's RetryInfo, which stands in the body."""
    for detail in details if isinstance(details, list) else ():
        if isinstance(detail, Mapping) and isinstance(delay := detail.get("retryDelay"), str):
            return duration_s(delay)
    return None


def decoded(body: bytes) -> Any:
    """Plain data of a JSON text; None where it is none."""
    try:
        return msgspec.json.decode(body)
    except (ValueError, RecursionError):
        return None
