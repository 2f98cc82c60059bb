"""What each refusal of an API means."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from typing import Any

import pytest

from actors.services.api_errors import Place, anthropic_error, openai_error
from actors.services.api_key import NO_KEY
from actors.services.http_client import Answer
from protocols.errors import FailureKind, ReplyError
from tests.actors.fake_api import failed

PLACE = Place("https://h/v1/chat/completions", "m", NO_KEY)

OPENAI: list[tuple[int, Any, FailureKind]] = [
    (401, failed("Incorrect API key provided"), "authentication"),
    (403, failed("Country, region, or territory not supported"), "authentication"),
    (407, b"proxy", "authentication"),
    (400, [failed("API key not valid. Please pass a valid API key.", status="INVALID_ARGUMENT")], "authentication"),
    (429, failed("Rate limit reached", type="requests", code="rate_limit_exceeded"), "rate_limited"),
    (429, [failed("You exceeded your current quota", status="RESOURCE_EXHAUSTED", code=429)], "rate_limited"),
    (429, b"", "rate_limited"),
    (429, failed("You exceeded your current quota", code="insufficient_quota", type="insufficient_quota"), "quota"),
    (429, failed("You exceeded your current quota", code=None, type="insufficient_quota"), "quota"),
    (400, failed("Billing hard limit has been reached", code="billing_hard_limit_reached"), "quota"),
    (402, failed("Insufficient Balance"), "quota"),
    (400, failed("Too long", code="context_length_exceeded"), "context_too_long"),
    (400, failed("This model's maximum context length is 1024 tokens. However", code=400), "context_too_long"),
    (400, failed("exceeds the available context size", type="exceed_context_size_error"), "context_too_long"),
    (400, [failed("The input token count (9) exceeds the maximum number of tokens allowed (8).")], "context_too_long"),
    (400, failed("max_tokens=600 cannot be greater than max_model_len=512."), "context_too_long"),
    (413, failed("Please reduce the length of the messages"), "context_too_long"),
    (400, failed("Invalid value: 'x'"), "malformed"),
    (400, failed("Unsupported parameter: 'max_tokens'", code="unsupported_parameter"), "malformed"),
    (422, {"detail": [{"loc": ["body"], "msg": "field required"}]}, "malformed"),
    (413, b"Request Entity Too Large", "malformed"),
    (404, failed("The model does not exist", code="model_not_found"), "malformed"),
    (405, b"", "malformed"),
    (302, b"", "malformed"),
    (400, failed("filtered", code="content_filter", innererror={"code": "ResponsibleAIPolicyViolation"}), "refused"),
    (400, failed("Your prompt was flagged as potentially violating", code="invalid_prompt"), "refused"),
    (403, failed("Your input was flagged", metadata={"reasons": ["violence"]}), "refused"),
    (408, b"", "transient"),
    (409, failed("conflict"), "transient"),
    (500, failed("The server had an error"), "transient"),
    (502, b"<html>Bad gateway</html>", "transient"),
    (503, failed("overloaded"), "transient"),
    (504, b"", "transient"),
    (529, b"", "transient"),
    (500, {"error": "EngineDeadError"}, "transient"),
    (500, {"object": "error", "message": "old vLLM", "code": 500}, "transient"),
]  # fmt: skip


def told(kind: str, message: str = "?", **error: Any) -> dict[str, Any]:
    """An error as Anthropic writes it."""
    return {"type": "error", "error": {"type": kind, "message": message} | error, "request_id": "req_1"}


BALANCE = "Your credit balance is too low to access the Anthropic API."
ANTHROPIC: list[tuple[int, Any, FailureKind]] = [
    (401, told("authentication_error", "invalid x-api-key"), "authentication"),
    (403, told("permission_error"), "authentication"),
    (400, told("invalid_request_error", "max_tokens: Field required"), "malformed"),
    (400, told("invalid_request_error", "prompt is too long: 215000 tokens > 200000 maximum"), "context_too_long"),
    (
        400,
        told("invalid_request_error", "input length and `max_tokens` exceed context limit: 198000 + 8000 > 200000"),
        "context_too_long",
    ),
    (413, told("request_too_large", "Request exceeds the maximum size"), "context_too_long"),
    (400, told("invalid_request_error", BALANCE), "quota"),
    (402, told("billing_error"), "quota"),
    (429, told("rate_limit_error", details={"error_code": "enforced_spend_limit_reached"}), "quota"),
    (429, told("rate_limit_error"), "rate_limited"),
    (400, told("invalid_request_error", "Output blocked by content filtering policy"), "refused"),
    (404, told("not_found_error", "model: claude-0"), "malformed"),
    (500, told("api_error"), "transient"),
    (529, told("overloaded_error", "Overloaded"), "transient"),
    (504, told("timeout_error"), "transient"),
    (200, told("overloaded_error"), "transient"),
    (503, b"<html>upstream</html>", "transient"),
]


@pytest.mark.parametrize(
    ("read", "status", "body", "kind"),
    [(openai_error, *case) for case in OPENAI] + [(anthropic_error, *case) for case in ANTHROPIC],
)
def test_each_refusal_has_its_kind(
    read: Callable[[Answer, Place], ReplyError], status: int, body: Any, kind: FailureKind
) -> None:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    err = read(Answer(status, {}, data), PLACE)
    assert err.kind == kind
    assert f"status {status}" in str(err)
    assert "\n" not in str(err)
    copy = pickle.loads(pickle.dumps(err))
    assert (str(copy), copy.kind, copy.retry_after_s) == (str(err), err.kind, err.retry_after_s)


def test_a_missing_model_is_named_with_its_address() -> None:
    err = openai_error(Answer(404, {}, b"{}"), PLACE)
    assert str(err).startswith("https://h/v1/chat/completions has no model 'm' (status 404)")
