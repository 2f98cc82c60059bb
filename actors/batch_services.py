"""The batch endpoints of OpenAI and Anthropic: what is sent to them, and what their answers mean for each row.

Nothing is remembered here. Rows come as keys and request bodies; a result is the answer that the service would have
given to that request by itself, or the error that kept it from one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Container, Iterator, Mapping, Sequence
from datetime import datetime
from typing import Literal, Protocol, TypeVar
from urllib.parse import quote, urlencode
from uuid import uuid4

import msgspec

from actors.api_backend import ApiBackend
from actors.api_errors import decoded
from actors.http_client import Answer
from protocols.errors import ReplyError

MAX_RESULTS_BYTES = 2**30  # of one batch
SKEW_S = 300.0  # that a service's clock may differ from ours
CALL_S = 900.0  # that a call may take
PAGE = 100  # batches a page of a list
TAG = "moot_batch"  # the field of a batch's metadata that says which of ours it is

Row = tuple[str, bytes]
Result = Answer | ReplyError
State = Literal["running", "full", "gone"]
"""``full``: it was never begun, as the account has too much in its queue. ``gone``: the service does not know it."""

T = TypeVar("T")


class BatchService(Protocol):
    """One service's endpoints. Every method raises ReplyError where it is refused or not answered."""

    max_bytes: int  # of one batch

    async def check(self) -> None:
        """Whether there are batches at all, which costs nothing."""
        ...

    async def upload(self, rows: Sequence[Row]) -> bytes:
        """Bring the rows there, which costs nothing yet. Returns: what ``create`` sends."""
        ...

    async def create(self, tag: str, uploaded: bytes) -> str:
        """Start the batch. Returns: its id. ReplyError of kind ``transient``: it may have been started all the same."""
        ...

    async def find(self, tag: str, keys: Sequence[str], at_s: float, known: Container[str]) -> str:
        """The id of a batch whose ``create`` had no answer; "" where there is none, for sure.

        Args:
            at_s: when it was meant to be made, seconds since the epoch.
            known: ids of other batches of ours.
        """
        ...

    async def look(self, batch_id: str, keys: Sequence[str]) -> State | dict[str, Result]:
        """How far it is. Returns: its results by key once it is over; of a row without one, nothing is known."""
        ...

    async def cancel(self, batch_id: str) -> None:
        """Ask it to end with what is done."""
        ...


class _Endpoint:
    """What both share: calls to one service with its key."""

    def __init__(self, backend: ApiBackend, url: str) -> None:
        self._backend, self._url = backend, url

    async def _call(self, method: str, url: str, body: bytes | None = None, content_type: str = "") -> Answer:
        try:
            async with asyncio.timeout(CALL_S):
                answer = await self._backend.client.call(
                    method, url, body, content_type=content_type, max_bytes=MAX_RESULTS_BYTES
                )
        except TimeoutError as err:
            raise ReplyError(f"{url}: no answer within {CALL_S:g} s") from err
        if answer.status != 404 and not 200 <= answer.status < 300:
            raise self._backend.refusal(answer)
        return answer

    async def _struct(self, kind: type[T], method: str, url: str, body: bytes | None = None, **how: str) -> T:
        answer = await self._call(method, url, body, **how)
        if answer.status == 404:
            raise ReplyError(f"{url}: status 404: this service has no batches at this address", "malformed")
        return _decoded(kind, url, answer)

    async def check(self) -> None:
        await self._struct(dict, "GET", f"{self._url}?limit=1")

    def _batch_url(self, batch_id: str, page: str = "") -> str:
        return f"{self._url}/{quote(batch_id, safe='')}{page}"

    async def cancel(self, batch_id: str) -> None:
        await self._call("POST", self._batch_url(batch_id, "/cancel"), b"{}")


def _decoded(kind: type[T], url: str, answer: Answer) -> T:
    try:
        return msgspec.json.decode(answer.body, type=kind)
    except (ValueError, RecursionError) as err:
        raise ReplyError(f"{url}: an answer that cannot be read: {str(err)[:200]}") from err


def _lines(kind: type[T], body: bytes) -> Iterator[T]:
    """The lines that can be read: a row whose line cannot has no result."""
    decoder = msgspec.json.Decoder(kind)
    for line in body.splitlines():
        try:
            yield decoder.decode(line)
        except (ValueError, RecursionError):
            continue


# OpenAI


class _Fault(msgspec.Struct):
    code: str | None = None
    message: str | None = None
    line: int | None = None


class _Faults(msgspec.Struct):
    data: list[_Fault] | None = None


class _File(msgspec.Struct):
    id: str


class _OpenAIBatch(msgspec.Struct):
    id: str
    status: str = ""
    created_at: float = 0.0
    output_file_id: str | None = None
    error_file_id: str | None = None
    errors: _Faults | None = None
    metadata: dict[str, str] | None = None


class _OpenAIPage(msgspec.Struct):
    data: list[_OpenAIBatch]
    has_more: bool = False


class _OpenAIResponse(msgspec.Struct):
    status_code: int
    body: msgspec.Raw = msgspec.Raw()


class _OpenAILine(msgspec.Struct):
    custom_id: str
    response: _OpenAIResponse | None = None
    error: _Fault | None = None


class OpenAIBatches(_Endpoint):
    """Files and batches: https://platform.openai.com/docs/api-reference/batch."""

    max_bytes = 190_000_000  # of the 200 MB that a file may have

    def __init__(self, backend: ApiBackend, base_url: str) -> None:
        super().__init__(backend, f"{base_url}/batches")
        self._files = f"{base_url}/files"

    async def upload(self, rows: Sequence[Row]) -> bytes:
        line = b'{"custom_id":"%s","method":"POST","url":"/v1/chat/completions","body":%s}\n'
        body, content_type = _form(b"".join(line % (key.encode(), body) for key, body in rows))
        file = await self._struct(_File, "POST", self._files, body, content_type=content_type)
        return file.id.encode()

    async def create(self, tag: str, uploaded: bytes) -> str:
        request = {
            "input_file_id": uploaded.decode(),
            "endpoint": "/v1/chat/completions",
            "completion_window": "24h",
            "metadata": {TAG: tag},
        }
        return (await self._struct(_OpenAIBatch, "POST", self._url, msgspec.json.encode(request))).id

    async def find(self, tag: str, keys: Sequence[str], at_s: float, known: Container[str]) -> str:
        after = ""
        while True:  # the newest come first
            query = urlencode({"limit": PAGE} | ({"after": after} if after else {}))
            page = await self._struct(_OpenAIPage, "GET", f"{self._url}?{query}")
            for batch in page.data:
                if (batch.metadata or {}).get(TAG) == tag:
                    return batch.id
            if not page.has_more or not page.data or page.data[-1].created_at < at_s - SKEW_S:
                return ""
            after = page.data[-1].id

    async def look(self, batch_id: str, keys: Sequence[str]) -> State | dict[str, Result]:
        answer = await self._call("GET", self._batch_url(batch_id))
        if answer.status == 404:
            return "gone"
        batch = _decoded(_OpenAIBatch, self._url, answer)
        if batch.status == "failed":
            return self._faulty(batch, keys)
        if batch.status not in ("completed", "expired", "cancelled"):
            return "running"
        results: dict[str, Result] = {}
        for file_id in filter(None, (batch.output_file_id, batch.error_file_id)):
            file = await self._call("GET", f"{self._files}/{quote(file_id, safe='')}/content")
            if file.status == 404:
                return "gone"
            results |= {line.custom_id: self._result(line) for line in _lines(_OpenAILine, file.body)}
        return results

    def _faulty(self, batch: _OpenAIBatch, keys: Sequence[str]) -> State | dict[str, Result]:
        """A batch whose input was refused. Rows that are named failed; without such, all did."""
        faults = (batch.errors and batch.errors.data) or [_Fault(message="the batch failed without a reason")]
        if any(fault.code == "token_limit_exceeded" or "enqueued token" in (fault.message or "") for fault in faults):
            return "full"
        named = {keys[fault.line - 1]: fault for fault in faults if fault.line and fault.line <= len(keys)}
        if not named:
            return dict.fromkeys(keys, self._refused(faults[0]))
        beside = ReplyError(f"batch {batch.id} was refused for other rows of it")
        return {key: self._refused(named[key]) if key in named else beside for key in keys}

    def _result(self, line: _OpenAILine) -> Result:
        if line.response is not None:
            return Answer(line.response.status_code, {}, bytes(line.response.body))
        fault = line.error or _Fault(message="no reason given")  # expired or cancelled, for the most part
        said = self._backend.redact(f"{fault.code}: {(fault.message or '')[:200]}")
        return ReplyError(f"its row of a batch came to nothing: {said}")

    def _refused(self, fault: _Fault) -> ReplyError:
        error = {"code": fault.code, "message": fault.message}
        return self._backend.refusal(Answer(400, {}, msgspec.json.encode({"error": error})))


def _form(rows: bytes) -> tuple[bytes, str]:
    """A file for the batch endpoint as multipart/form-data, and the content type that says so."""
    boundary = uuid4().hex
    parts = (
        f'--{boundary}\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nbatch\r\n'
        f'--{boundary}\r\nContent-Disposition: form-data; name="file"; filename="batch.jsonl"\r\n'
        "Content-Type: application/jsonl\r\n\r\n"
    )
    return b"".join((parts.encode(), rows, f"\r\n--{boundary}--\r\n".encode())), (
        f"multipart/form-data; boundary={boundary}"
    )


# Anthropic


class _AnthropicCounts(msgspec.Struct):
    processing: int = 0
    succeeded: int = 0
    errored: int = 0
    canceled: int = 0
    expired: int = 0

    @property
    def total(self) -> int:
        return self.processing + self.succeeded + self.errored + self.canceled + self.expired


class _AnthropicBatch(msgspec.Struct):
    id: str
    created_at: datetime
    processing_status: str = ""
    request_counts: _AnthropicCounts = msgspec.field(default_factory=_AnthropicCounts)


class _AnthropicPage(msgspec.Struct):
    data: list[_AnthropicBatch]
    has_more: bool = False
    last_id: str | None = None


class _AnthropicResult(msgspec.Struct):
    type: str
    message: msgspec.Raw = msgspec.Raw()
    error: msgspec.Raw = msgspec.Raw()


class _AnthropicLine(msgspec.Struct):
    custom_id: str
    result: _AnthropicResult


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


class AnthropicBatches(_Endpoint):
    """Message batches: https://platform.claude.com/docs/en/build-with-claude/batch-processing."""

    max_bytes = 240_000_000  # of 256 MB

    def __init__(self, backend: ApiBackend, url: str) -> None:
        super().__init__(backend, f"{url}/batches")

    async def upload(self, rows: Sequence[Row]) -> bytes:
        row = b'{"custom_id":"%s","params":%s}'
        return b'{"requests":[%s]}' % b",".join(row % (key.encode(), body) for key, body in rows)

    async def create(self, tag: str, uploaded: bytes) -> str:
        return (await self._struct(_AnthropicBatch, "POST", self._url, uploaded)).id

    async def find(self, tag: str, keys: Sequence[str], at_s: float, known: Container[str]) -> str:
        """A batch carries no mark of ours here: its results tell. Raises: ReplyError (transient): one that was made
        about then, with as many rows, has none yet."""
        found: list[_AnthropicBatch] = []
        after = ""
        while True:  # the newest come first
            query = urlencode({"limit": PAGE} | ({"after_id": after} if after else {}))
            page = await self._struct(_AnthropicPage, "GET", f"{self._url}?{query}")
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
            raise ReplyError(f"{self._url}: whether {' or '.join(running)} is ours is known once it is over")
        return ""

    async def look(self, batch_id: str, keys: Sequence[str]) -> State | dict[str, Result]:
        answer = await self._call("GET", self._batch_url(batch_id))
        if answer.status == 404:
            return "gone"
        if _decoded(_AnthropicBatch, self._url, answer).processing_status != "ended":
            return "running"
        file = await self._call("GET", self._batch_url(batch_id, "/results"))  # at the address that has our key
        if file.status == 404:
            return "gone"
        return {line.custom_id: _anthropic_result(line.result) for line in _lines(_AnthropicLine, file.body)}


def _anthropic_result(result: _AnthropicResult) -> Result:
    if result.type == "succeeded":
        return Answer(200, {}, bytes(result.message))
    if result.type == "errored":
        body = bytes(result.error)
        told = decoded(body)
        error = told.get("error") if isinstance(told, Mapping) else None
        kind = str(error.get("type")) if isinstance(error, Mapping) else ""
        return Answer(STATUSES.get(kind, 500), {}, body)
    return ReplyError(f"its row of a batch came to nothing: {result.type[:80]}")
