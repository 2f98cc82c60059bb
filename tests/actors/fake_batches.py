"""The batch endpoints of OpenAI and Anthropic on this machine: they answer as told, and remember every row.

Shapes and refusals are those of the services; ``test_fake_batches.py`` drives them with the services' own clients.
"""

from __future__ import annotations

import contextlib
import json
import re
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Literal

from aiohttp import web

from tests.actors.fake_api import failed, in_a_thread, said, served

Outcome = tuple[int, dict[str, Any]] | Literal["expired", "missing"]
Answer = Callable[[dict[str, Any]], Outcome]
"""What a row comes to: status and body as if it had been sent by itself, or what only a batch does to it."""

ALLOWED_ID = re.compile(r"[a-zA-Z0-9_-]{1,64}")


def chat_answer(body: dict[str, Any]) -> Outcome:
    return 200, said(f"Said to {body['messages'][-1]['content']}")


def message(text: str) -> dict[str, Any]:
    return {
        "id": "msg_1", "type": "message", "role": "assistant", "model": "claude", "stop_reason": "end_turn",
        "stop_sequence": None, "content": [{"type": "text", "text": text}],
        "usage": {"input_tokens": 12, "output_tokens": 7},
    }  # fmt: skip


def claude_answer(body: dict[str, Any]) -> Outcome:
    return 200, message(f"Said to {body['messages'][-1]['content'][-1]['text']}")


def claude_error(kind: str, text: str = "?") -> dict[str, Any]:
    return {"type": "error", "error": {"type": kind, "message": text}, "request_id": "req_1"}


@dataclass
class Batch:
    """One batch as the service keeps it."""

    id: str
    rows: list[tuple[str, dict[str, Any]]]
    created_s: float
    metadata: dict[str, str] | None = None
    input_file_id: str = ""
    faults: list[dict[str, Any]] = field(default_factory=list)
    looks: int = 0
    status: str = "running"  # over, cancelled, expired, failed
    results: dict[str, Outcome] = field(default_factory=dict)


@dataclass
class FakeBatches:
    """Both services. ``held``: no batch ends. ``done_when_cancelled``: rows that a cancelled batch has done."""

    answer: Answer = chat_answer
    url: str = ""
    held: bool = False
    looks: int = 1  # that find a batch running before it is over
    done_when_cancelled: int = 0
    key: str = ""  # what the service accepts; "": anything
    lose_creates: int = 0  # batches that are made though their maker is told of an error
    refuse: list[tuple[str, int, dict[str, Any]]] = field(default_factory=list)  # start of "METHOD path", its answer
    faults: list[list[dict[str, Any]]] = field(default_factory=list)  # of the next batches: their input is refused
    batches: dict[str, Batch] = field(default_factory=dict)
    files: dict[str, bytes] = field(default_factory=dict)
    calls: list[str] = field(default_factory=list)

    @property
    def rows(self) -> Counter[str]:
        """How often each custom id was submitted."""
        return Counter(key for batch in self.batches.values() for key, _ in batch.rows)

    def app(self) -> web.Application:
        app = web.Application(client_max_size=2**28, middlewares=[self._guard])
        routes = app.router
        routes.add_get("/v1/models", self._models)
        routes.add_post("/v1/files", self._upload)
        routes.add_get("/v1/files/{id}/content", self._content)
        routes.add_post("/v1/batches", self._create)
        routes.add_get("/v1/batches", self._list)
        routes.add_get("/v1/batches/{id}", self._look)
        routes.add_post("/v1/batches/{id}/cancel", self._cancel)
        routes.add_post("/v1/messages/batches", self._create)
        routes.add_get("/v1/messages/batches", self._list)
        routes.add_get("/v1/messages/batches/{id}", self._look)
        routes.add_get("/v1/messages/batches/{id}/results", self._results)
        routes.add_post("/v1/messages/batches/{id}/cancel", self._cancel)
        return app

    @web.middleware
    async def _guard(self, request: web.Request, handler: Callable[..., Any]) -> web.StreamResponse:
        call = f"{request.method} {request.path}"
        self.calls.append(call)
        given = (request.headers.get("Authorization", ""), request.headers.get("x-api-key", ""))
        if self.key and self.key not in (given[0].removeprefix("Bearer "), given[1]):
            return web.json_response(failed("Incorrect API key provided", code="invalid_api_key"), status=401)
        for rule in self.refuse:
            if call.startswith(rule[0]):
                self.refuse.remove(rule)
                return web.json_response(rule[2], status=rule[1])
        response: web.StreamResponse = await handler(request)
        return response

    async def _models(self, request: web.Request) -> web.Response:
        return web.json_response({"object": "list", "data": []})

    # making a batch

    async def _upload(self, request: web.Request) -> web.Response:
        form = await request.post()
        file = form["file"]
        if form["purpose"] != "batch" or not isinstance(file, web.FileField) or not file.filename.endswith(".jsonl"):
            return web.json_response(failed("not a batch file", type="invalid_request_error"), status=400)
        data, number = file.file.read(), f"file-{len(self.files)}"
        self.files[number] = data
        told = {"id": number, "object": "file", "bytes": len(data), "created_at": int(time.time())}
        return web.json_response(told | {"filename": file.filename, "purpose": "batch", "status": "processed"})

    async def _create(self, request: web.Request) -> web.Response:
        body = await request.json()
        batch = Batch(f"batch_{len(self.batches)}", [], time.time())
        if _anthropic(request):
            batch.rows = [(row["custom_id"], row["params"]) for row in body["requests"]]
            wrong = [key for key, _ in batch.rows if not ALLOWED_ID.fullmatch(key)]
            if wrong or len({key for key, _ in batch.rows}) < len(batch.rows):
                return web.json_response(claude_error("invalid_request_error", "custom_id"), status=400)
        else:
            if body["completion_window"] != "24h" or body["input_file_id"] not in self.files:
                return web.json_response(failed("no such file", type="invalid_request_error"), status=400)
            batch.metadata, batch.input_file_id = body.get("metadata"), body["input_file_id"]
            lines = [json.loads(line) for line in self.files[batch.input_file_id].splitlines()]
            batch.rows = [(line["custom_id"], line["body"]) for line in lines]
            batch.faults = _faults(lines, body["endpoint"]) or (self.faults.pop(0) if self.faults else [])
        self.batches[batch.id] = batch
        if self.lose_creates:
            self.lose_creates -= 1
            return web.json_response(failed("bad gateway"), status=502)
        return web.json_response(self._shown(batch, request))

    # how it goes on

    async def _look(self, request: web.Request) -> web.Response:
        if (batch := self.batches.get(request.match_info["id"])) is None:
            return web.json_response(failed("no such batch"), status=404)
        batch.looks += 1
        if batch.status == "running" and batch.faults:
            batch.status = "failed"
        elif batch.status == "cancelling":
            done = dict(batch.rows[: self.done_when_cancelled])
            self._end(batch, {key: self.answer(body) for key, body in done.items()}, "cancelled")
        elif batch.status == "running" and not self.held and batch.looks > self.looks:
            results = {key: self.answer(body) for key, body in batch.rows}
            self._end(batch, results, "expired" if "expired" in results.values() else "over")
        return web.json_response(self._shown(batch, request))

    def _end(self, batch: Batch, results: dict[str, Outcome], status: str) -> None:
        batch.results, batch.status = results, status
        if not batch.input_file_id:
            return
        out: list[dict[str, Any]] = []
        errors: list[dict[str, Any]] = []
        for key, _ in reversed(batch.rows):  # in an order of the service's own
            line: dict[str, Any] = {"id": f"batch_req_{key}", "custom_id": key, "response": None, "error": None}
            match results.get(key, "cancelled"):
                case "missing":
                    continue
                case (code, body):
                    line["response"] = {"status_code": code, "request_id": "req_1", "body": body}
                    (out if code == 200 else errors).append(line)
                case why:
                    line["error"] = {"code": f"batch_{why}", "message": "it was not executed"}
                    errors.append(line)
        for name, lines in (("out", out), ("err", errors)):
            if lines:
                self.files[f"{batch.id}-{name}"] = "".join(json.dumps(line) + "\n" for line in lines).encode()

    async def _cancel(self, request: web.Request) -> web.Response:
        batch = self.batches[request.match_info["id"]]
        if batch.status == "running":
            batch.status = "cancelling"
        return web.json_response(self._shown(batch, request))

    # reading

    async def _list(self, request: web.Request) -> web.Response:
        mine = [batch for batch in self.batches.values() if bool(batch.input_file_id) != _anthropic(request)][::-1]
        after = request.query.get("after_id" if _anthropic(request) else "after")
        start = [batch.id for batch in mine].index(after) + 1 if after else 0
        page = mine[start : start + int(request.query.get("limit", 20))]
        told: dict[str, Any] = {
            "data": [self._shown(batch, request) for batch in page],
            "has_more": start + len(page) < len(mine),
            "first_id": page[0].id if page else None,
            "last_id": page[-1].id if page else None,
        }
        return web.json_response(told if _anthropic(request) else {"object": "list"} | told)

    async def _content(self, request: web.Request) -> web.Response:
        if (data := self.files.get(request.match_info["id"])) is None:
            return web.json_response(failed("no such file"), status=404)
        return web.Response(body=data, content_type="application/octet-stream")

    async def _results(self, request: web.Request) -> web.Response:
        batch = self.batches[request.match_info["id"]]
        lines = []
        for key, _ in reversed(batch.rows):
            match batch.results.get(key, "canceled"):
                case "missing":
                    continue
                case (200, body):
                    result = {"type": "succeeded", "message": body}
                case (_, body):
                    result = {"type": "errored", "error": body}
                case why:
                    result = {"type": why}
            lines.append(json.dumps({"custom_id": key, "result": result}) + "\n")
        return web.Response(text="".join(lines), content_type="application/x-jsonl")

    def _shown(self, batch: Batch, request: web.Request) -> dict[str, Any]:
        return self._shown_anthropic(batch) if _anthropic(request) else self._shown_openai(batch)

    def _shown_openai(self, batch: Batch) -> dict[str, Any]:
        status = {"running": "validating" if not batch.looks else "in_progress", "over": "completed"}
        files = {name: f"{batch.id}-{name}" if f"{batch.id}-{name}" in self.files else None for name in ("out", "err")}
        done = sum(isinstance(item, tuple) and item[0] == 200 for item in batch.results.values())
        return {
            "id": batch.id, "object": "batch", "endpoint": "/v1/chat/completions", "completion_window": "24h",
            "created_at": int(batch.created_s), "input_file_id": batch.input_file_id,
            "status": status.get(batch.status, batch.status), "metadata": batch.metadata,
            "errors": {"object": "list", "data": batch.faults} if batch.status == "failed" else None,
            "output_file_id": files["out"], "error_file_id": files["err"],
            "request_counts": {"total": len(batch.rows), "completed": done, "failed": len(batch.results) - done},
        }  # fmt: skip

    def _shown_anthropic(self, batch: Batch) -> dict[str, Any]:
        over = batch.status not in ("running", "cancelling")
        kinds = Counter(
            ("succeeded" if item[0] == 200 else "errored") if isinstance(item, tuple) else "expired"
            for item in batch.results.values()
        )
        counts = {name: kinds[name] for name in ("succeeded", "errored", "expired")}
        rest = len(batch.rows) - sum(counts.values())
        counts |= {"processing": 0 if over else rest, "canceled": rest if over else 0}
        created = datetime.fromtimestamp(batch.created_s, UTC).isoformat()
        status = {"running": "in_progress", "cancelling": "canceling"}.get(batch.status, "ended")
        return {
            "id": batch.id, "type": "message_batch", "processing_status": status, "request_counts": counts,
            "created_at": created, "expires_at": created, "ended_at": created if over else None, "archived_at": None,
            "cancel_initiated_at": None,
            "results_url": f"{self.url}/v1/messages/batches/{batch.id}/results" if over else None,
        }  # fmt: skip


def _anthropic(request: web.Request) -> bool:
    return request.path.startswith("/v1/messages/")


def _faults(lines: list[dict[str, Any]], endpoint: str) -> list[dict[str, Any]]:
    """What the service finds wrong with an input file."""
    faults = []
    seen: set[str] = set()
    for number, line in enumerate(lines, 1):
        if line["custom_id"] in seen:
            faults.append({"code": "duplicate_custom_id", "message": "seen before", "line": number, "param": None})
        if line["url"] != endpoint or line["method"] != "POST" or line["body"]["model"] != lines[0]["body"]["model"]:
            faults.append({"code": "mismatched_model", "message": "not as the rest", "line": number, "param": None})
        seen.add(line["custom_id"])
    return faults


@contextlib.asynccontextmanager
async def fake_batches(answer: Answer = chat_answer) -> AsyncIterator[FakeBatches]:
    service = FakeBatches(answer)
    async with served(service.app()) as service.url:
        yield service


def batches_in_a_thread(answer: Answer = chat_answer) -> contextlib.AbstractContextManager[FakeBatches]:
    return in_a_thread(lambda: fake_batches(answer))
