"""OpenAI's batches: a file of requests goes up, a file of results and one of errors come down."""

from __future__ import annotations

from collections.abc import Container, Sequence
from urllib.parse import quote, urlencode
from uuid import uuid4

import msgspec

from actors.services.api_backend import ApiBackend
from actors.services.batch_service import PAGE, SKEW_S, Endpoint, Result, Row, State, decoded_as, lines
from actors.services.http_client import Answer
from protocols.errors import ReplyError

TAG = "moot_batch"  # the field of a batch's metadata that says which of ours it is


class _Fault(msgspec.Struct):
    code: str | None = None
    message: str | None = None
    line: int | None = None


class _Faults(msgspec.Struct):
    data: list[_Fault] | None = None


class _File(msgspec.Struct):
    id: str


class _Batch(msgspec.Struct):
    id: str
    status: str = ""
    created_at: float = 0.0
    output_file_id: str | None = None
    error_file_id: str | None = None
    errors: _Faults | None = None
    metadata: dict[str, str] | None = None


class _Page(msgspec.Struct):
    data: list[_Batch]
    has_more: bool = False


class _Response(msgspec.Struct):
    status_code: int
    body: msgspec.Raw = msgspec.Raw()


class _Line(msgspec.Struct):
    custom_id: str
    response: _Response | None = None
    error: _Fault | None = None


class OpenAIBatches(Endpoint):
    """Files and batches: https://platform.openai.com/docs/api-reference/batch."""

    max_bytes = 190_000_000  # of the 200 MB that a file may have

    def __init__(self, backend: ApiBackend, base_url: str) -> None:
        super().__init__(backend, f"{base_url}/batches")
        self._files = f"{base_url}/files"

    async def upload(self, rows: Sequence[Row]) -> bytes:
        line = b'{"custom_id":"%s","method":"POST","url":"/v1/chat/completions","body":%s}\n'
        body, content_type = form("batch", "batch.jsonl", b"".join(line % (key.encode(), body) for key, body in rows))
        file = await self.struct(_File, "POST", self._files, body, content_type=content_type)
        return file.id.encode()

    async def create(self, tag: str, uploaded: bytes) -> str:
        request = {
            "input_file_id": uploaded.decode(),
            "endpoint": "/v1/chat/completions",
            "completion_window": "24h",
            "metadata": {TAG: tag},
        }
        return (await self.struct(_Batch, "POST", self.url, msgspec.json.encode(request))).id

    async def find(self, tag: str, keys: Sequence[str], at_s: float, known: Container[str]) -> str:
        after = ""
        while True:  # the newest come first
            query = urlencode({"limit": PAGE} | ({"after": after} if after else {}))
            page = await self.struct(_Page, "GET", f"{self.url}?{query}")
            for batch in page.data:
                if (batch.metadata or {}).get(TAG) == tag:
                    return batch.id
            if not page.has_more or not page.data or page.data[-1].created_at < at_s - SKEW_S:
                return ""
            after = page.data[-1].id

    async def look(self, batch_id: str, keys: Sequence[str]) -> State | dict[str, Result]:
        answer = await self.call("GET", self.batch_url(batch_id))
        if answer.status == 404:
            return "gone"
        batch = decoded_as(_Batch, self.url, answer)
        if batch.status == "failed":
            return self._faulty(batch, keys)
        if batch.status not in ("completed", "expired", "cancelled"):
            return "running"
        results: dict[str, Result] = {}
        for file_id in filter(None, (batch.output_file_id, batch.error_file_id)):
            file = await self.call("GET", f"{self._files}/{quote(file_id, safe='')}/content")
            if file.status == 404:
                return "gone"
            results |= {line.custom_id: self._result(line) for line in lines(_Line, file.body)}
        return results

    def _faulty(self, batch: _Batch, keys: Sequence[str]) -> State | dict[str, Result]:
        """A batch whose input was refused. Rows that are named failed; without such, all did."""
        faults = (batch.errors and batch.errors.data) or [_Fault(message="the batch failed without a reason")]
        if any(fault.code == "token_limit_exceeded" or "enqueued token" in (fault.message or "") for fault in faults):
            return "full"
        named = {keys[fault.line - 1]: fault for fault in faults if fault.line and fault.line <= len(keys)}
        if not named:
            return dict.fromkeys(keys, self._refused(faults[0]))
        beside = ReplyError(f"batch {batch.id} was refused for other rows of it")
        return {key: self._refused(named[key]) if key in named else beside for key in keys}

    def _result(self, line: _Line) -> Result:
        if line.response is not None:
            return Answer(line.response.status_code, {}, bytes(line.response.body))
        fault = line.error or _Fault(message="no reason given")  # expired or cancelled, for the most part
        said = self.backend.redact(f"{fault.code}: {(fault.message or '')[:200]}")
        return ReplyError(f"its row of a batch came to nothing: {said}")

    def _refused(self, fault: _Fault) -> ReplyError:
        error = {"code": fault.code, "message": fault.message}
        return self.backend.refusal(Answer(400, {}, msgspec.json.encode({"error": error})))


def form(purpose: str, name: str, rows: bytes) -> tuple[bytes, str]:
    """JSON lines for the files endpoint as multipart/form-data, and the content type that says so."""
    boundary = uuid4().hex
    parts = (
        f'--{boundary}\r\nContent-Disposition: form-data; name="purpose"\r\n\r\n{purpose}\r\n'
        f'--{boundary}\r\nContent-Disposition: form-data; name="file"; filename="{name}"\r\n'
        "Content-Type: application/jsonl\r\n\r\n"
    )
    return b"".join((parts.encode(), rows, f"\r\n--{boundary}--\r\n".encode())), (
        f"multipart/form-data; boundary={boundary}"
    )
