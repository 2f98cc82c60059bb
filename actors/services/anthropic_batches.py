"""Anthropic's message batches: requests go up in one body, results come down as JSON lines."""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from datetime import datetime
from urllib.parse import urlencode

import msgspec

from actors.services.api_backend import ApiBackend
from actors.services.api_errors import decoded
from actors.services.batch_service import CALL_S, PAGE, SKEW_S, Endpoint, Result, Row, State, decoded_as, lines
from actors.services.http_client import Answer
from protocols.errors import ReplyError


class _Counts(msgspec.Struct):
    processing: int = 0
    succeeded: int = 0
    errored: int = 0
    canceled: int = 0
    expired: int = 0

    @property
    def total(self) -> int:
        return self.processing + self.succeeded + self.errored + self.canceled + self.expired


class _Batch(msgspec.Struct):
    id: str
    created_at: datetime
    processing_status: str = ""
    request_counts: _Counts = msgspec.field(default_factory=_Counts)


class _Page(msgspec.Struct):
    data: list[_Batch]
    has_more: bool = False
    last_id: str | None = None


class _Result(msgspec.Struct):
    type: str
    message: msgspec.Raw = msgspec.Raw()
    error: msgspec.Raw = msgspec.Raw()


class _Line(msgspec.Struct):
    custom_id: str
    result: _Result


STATUSES: Mapping[str, int] = {
    "invalid_request_error": 400,
    "authentication_error": 401,
    "billing_error": 402,
    "permission_error": 403,
    "not_found_error": 404,
    "request_too_large": 413,
    "rate_limit_error": 429,
    "timeout_error": 504,
    "overloaded_error": 529,
}
"""What each type of error comes with when it is the answer to a request by itself; 500 for all others."""


class AnthropicBatches(Endpoint):
    """Message batches: https://platform.claude.com/docs/en/build-with-claude/batch-processing."""

    max_bytes = 240_000_000  # of 256 MB

    def __init__(self, backend: ApiBackend, url: str) -> None:
        super().__init__(backend, f"{url}/batches")

    async def upload(self, rows: Sequence[Row]) -> bytes:
        row = b'{"custom_id":"%s","params":%s}'
        return b'{"requests":[%s]}' % b",".join(row % (key.encode(), body) for key, body in rows)

    async def create(self, tag: str, uploaded: bytes) -> str:
        return (await self.struct(_Batch, "POST", self.url, uploaded)).id

    async def find(self, tag: str, keys: Sequence[str], at_s: float, known: Container[str]) -> str:
        """A batch carries no mark of ours here: its results tell. Raises: ReplyError (transient): one that was made
        about then, with as many rows, has none yet."""
        found: list[_Batch] = []
        after = ""
        while True:  # the newest come first
            query = urlencode({"limit": PAGE} | ({"after_id": after} if after else {}))
            page = await self.struct(_Page, "GET", f"{self.url}?{query}")
            found += page.data
            if not page.has_more or not page.data or page.data[-1].created_at.timestamp() < at_s - SKEW_S:
                break
            after = page.last_id or page.data[-1].id
        near = [
            batch
            for batch in found
            if batch.id not in known
            and batch.request_counts.total == len(keys)
            and -SKEW_S <= batch.created_at.timestamp() - at_s <= SKEW_S + CALL_S
        ]
        running = []
        for batch in near:
            results = await self.look(batch.id, keys)
            if isinstance(results, dict) and not results.keys().isdisjoint(keys):
                return batch.id
            if results == "running":
                running.append(batch.id)
        if running:
            raise ReplyError(f"{self.url}: whether {' or '.join(running)} is ours is known once it is over")
        return ""

    async def look(self, batch_id: str, keys: Sequence[str]) -> State | dict[str, Result]:
        answer = await self.call("GET", self.batch_url(batch_id))
        if answer.status == 404:
            return "gone"
        if decoded_as(_Batch, self.url, answer).processing_status != "ended":
            return "running"
        file = await self.call("GET", self.batch_url(batch_id, "/results"))  # at the address that has our key
        if file.status == 404:
            return "gone"
        return {line.custom_id: _anthropic_result(line.result) for line in lines(_Line, file.body)}


def _anthropic_result(result: _Result) -> Result:
    if result.type == "succeeded":
        return Answer(200, {}, bytes(result.message))
    if result.type == "errored":
        body = bytes(result.error)
        told = decoded(body)
        error = told.get("error") if isinstance(told, Mapping) else None
        kind = str(error.get("type")) if isinstance(error, Mapping) else ""
        return Answer(STATUSES.get(kind, 500), {}, body)
    return ReplyError(f"its row of a batch came to nothing: {result.type[:80]}")
