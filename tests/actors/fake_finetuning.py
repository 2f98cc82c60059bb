"""OpenAI's files, fine-tuning jobs and chat on this machine: it trains what it is told, and then speaks with it.

Shapes and refusals are those of the service; ``test_openai_finetuning.py`` drives it with the service's own client.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

from actors.models.scripted import evaluate
from tests.actors.fake_api import failed, in_a_thread, said, served
from tests.integration.fault_server import _SUM, _first_question

BASE = "gpt-4o-mini-2024-07-18"
TOKENS_A_BYTE = 0.25
BATCH = 4  # rows a step, unless told otherwise


@dataclass
class Upload:
    """One file as the service keeps it."""

    id: str
    name: str
    data: bytes
    made_s: float = field(default_factory=time.time)

    @property
    def rows(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.data.splitlines()]

    def shown(self) -> dict[str, Any]:
        return {
            "id": self.id, "object": "file", "bytes": len(self.data), "created_at": int(self.made_s),
            "filename": self.name, "purpose": "fine-tune", "status": "processed",
        }  # fmt: skip


@dataclass
class Job:
    """One job as the service keeps it."""

    id: str
    body: dict[str, Any]
    upload: Upload
    made_s: float = field(default_factory=time.time)
    looks: int = 0
    status: str = "validating_files"
    error: dict[str, Any] | None = None
    model: str | None = None

    @property
    def epochs(self) -> int:
        return int(self._told("n_epochs", 3))

    @property
    def num_steps(self) -> int:
        return -(-len(self.upload.rows) * self.epochs // int(self._told("batch_size", BATCH)))

    def _told(self, name: str, default: Any) -> Any:
        return self.body["method"]["supervised"]["hyperparameters"].get(name, default)

    def shown(self) -> dict[str, Any]:
        over, done = self.status in ("succeeded", "failed", "cancelled"), self.status == "succeeded"
        hyper = {"n_epochs": self.epochs, "batch_size": "auto", "learning_rate_multiplier": "auto"}
        return {
            "id": self.id, "object": "fine_tuning.job", "created_at": int(self.made_s), "model": self.body["model"],
            "error": self.error, "fine_tuned_model": self.model if done else None,
            "finished_at": int(time.time()) if over else None, "hyperparameters": hyper, "organization_id": "org-1",
            "result_files": [], "seed": self.body.get("seed", 7), "status": self.status,
            "trained_tokens": self.trained_tokens if done else None, "training_file": self.upload.id,
            "validation_file": None, "estimated_finish": None, "integrations": [], "method": self.body["method"],
            "metadata": self.body.get("metadata"),
        }  # fmt: skip

    @property
    def trained_tokens(self) -> int:
        return int(len(self.upload.data) * TOKENS_A_BYTE) * self.epochs

    def events(self) -> list[dict[str, Any]]:
        """Newest first, as the service lists them; its words stand between the metrics."""
        steps = self.num_steps if self.status == "succeeded" else 0
        told: list[dict[str, Any]] = [{"type": "message", "message": "Created fine-tuning job", "data": {}}]
        for step in range(1, steps + 1):
            data = {"step": step, "train_loss": 1.0 / step, "train_mean_token_accuracy": 0.5, "total_steps": steps}
            told.append({"type": "metrics", "message": f"Step {step}/{steps}", "data": data})
        common = {"object": "fine_tuning.job.event", "level": "info"}
        return [
            {"id": f"ftevent-{self.id}-{number}", "created_at": int(self.made_s) + number, **common, **item}
            for number, item in enumerate(told)
        ][::-1]


@dataclass
class FakeFinetuning:
    """The service. ``held``: no job ends. ``ready_after``: looks at a trained model before it answers."""

    url: str = ""
    held: bool = False
    looks: int = 1  # that find a job running before it is over
    ready_after: int = 0
    key: str = ""  # what is accepted; "": anything
    ends: list[tuple[str, dict[str, Any] | None]] = field(default_factory=list)  # of the next jobs: status and error
    lose_creates: int = 0  # jobs that are begun though their maker is told of an error
    refuse: list[tuple[str, int, dict[str, Any]]] = field(default_factory=list)  # start of "METHOD path", its answer
    files: dict[str, Upload] = field(default_factory=dict)
    jobs: dict[str, Job] = field(default_factory=dict)
    calls: list[str] = field(default_factory=list)
    spoke: Counter[str] = field(default_factory=Counter)  # model -> replies
    before: Callable[[str], None] = lambda call: None
    after: Callable[[str], None] = lambda call: None  # a call was obeyed, and its answer is on its way

    @property
    def begun(self) -> Counter[str]:
        """Version -> jobs that were begun for it."""
        return Counter(job.body["metadata"]["moot_adapter"] for job in self.jobs.values())

    def app(self) -> web.Application:
        app = web.Application(client_max_size=2**26, middlewares=[self._guard])
        routes = app.router
        routes.add_get("/v1/models", self._models)
        routes.add_get("/v1/models/{id}", self._model)
        routes.add_post("/v1/files", self._upload)
        routes.add_get("/v1/files", self._files)
        routes.add_post("/v1/fine_tuning/jobs", self._create)
        routes.add_get("/v1/fine_tuning/jobs", self._list)
        routes.add_get("/v1/fine_tuning/jobs/{id}", self._look)
        routes.add_get("/v1/fine_tuning/jobs/{id}/events", self._events)
        routes.add_post("/v1/chat/completions", self._chat)
        return app

    @web.middleware
    async def _guard(self, request: web.Request, handler: Callable[..., Any]) -> web.StreamResponse:
        call = f"{request.method} {request.path}"
        self.calls.append(call)
        self.before(call)
        given = request.headers.get("Authorization", "").removeprefix("Bearer ")
        if self.key and given != self.key:
            said = failed(f"Incorrect API key provided: {given}", code="invalid_api_key")
            return web.json_response(said, status=401)
        for rule in self.refuse:
            if call.startswith(rule[0]):
                self.refuse.remove(rule)
                return web.json_response(rule[2], status=rule[1])
        response: web.StreamResponse = await handler(request)
        self.after(call)
        return response

    # models

    def _served(self, model: str) -> Job | bool:
        job = next((job for job in self.jobs.values() if job.status == "succeeded" and job.model == model), None)
        return job or model == BASE

    async def _models(self, request: web.Request) -> web.Response:
        return web.json_response({"object": "list", "data": []})

    async def _model(self, request: web.Request) -> web.Response:
        model = request.match_info["id"]
        if not (found := self._served(model)) or (isinstance(found, Job) and self.ready_after > 0):
            self.ready_after -= bool(found)
            said = failed(f"The model '{model}' does not exist", code="model_not_found")
            return web.json_response(said, status=404)
        return web.json_response({"id": model, "object": "model", "created": 1, "owned_by": "org-1"})

    async def _chat(self, request: web.Request) -> web.Response:
        body = await request.json()
        if not self._served(body["model"]):
            return web.json_response(failed(f"The model `{body['model']}` does not exist"), status=404)
        self.spoke[body["model"]] += 1
        value = evaluate(_SUM.findall(_first_question(body))[0])
        return web.json_response(said(f"Added up, that is \\boxed{{{value}}}."))

    # files

    async def _upload(self, request: web.Request) -> web.Response:
        form = await request.post()
        file = form["file"]
        if form["purpose"] != "fine-tune" or not isinstance(file, web.FileField):
            return web.json_response(failed("not a training file", type="invalid_request_error"), status=400)
        upload = Upload(f"file-{len(self.files)}", file.filename, file.file.read())
        self.files[upload.id] = upload
        return web.json_response(upload.shown())

    async def _files(self, request: web.Request) -> web.Response:
        assert request.query["purpose"] == "fine-tune"
        return _page([upload.shown() for upload in reversed(self.files.values())], request)

    # jobs

    async def _create(self, request: web.Request) -> web.Response:
        body = await request.json()
        if (upload := self.files.get(body["training_file"])) is None or len(body.get("suffix", "")) > 64:
            return web.json_response(failed("no such file, or a suffix too long"), status=400)
        if not self._served(body["model"]):
            said = failed(f"Model {body['model']} is not available for fine-tuning", code="model_not_available")
            return web.json_response(said, status=404)
        job = Job(f"ftjob-{len(self.jobs)}", body, upload)
        job.model = f"ft:{BASE}:org-1:{body['suffix']}:{len(self.jobs)}"
        self.jobs[job.id] = job
        if self.lose_creates:
            self.lose_creates -= 1
            return web.json_response(failed("bad gateway"), status=502)
        return web.json_response(job.shown())

    async def _look(self, request: web.Request) -> web.Response:
        if (job := self.jobs.get(request.match_info["id"])) is None:
            return web.json_response(failed("Could not find fine tune"), status=404)
        if job.status in ("validating_files", "running"):
            job.looks += 1
            faults = _faults(job.upload)
            if faults:
                job.status, job.error = "failed", {"code": "invalid_training_file", "message": faults, "param": "x"}
            elif self.held or job.looks <= self.looks:
                job.status = "running"
            else:
                job.status, job.error = self.ends.pop(0) if self.ends else ("succeeded", None)
        return web.json_response(job.shown())

    async def _list(self, request: web.Request) -> web.Response:
        wanted = {key[9:-1]: value for key, value in request.query.items() if key.startswith("metadata[")}
        found = [job.shown() for job in reversed(self.jobs.values())]
        return _page([job for job in found if wanted.items() <= (job["metadata"] or {}).items()], request)

    async def _events(self, request: web.Request) -> web.Response:
        return _page(self.jobs[request.match_info["id"]].events(), request)


def _page(items: list[dict[str, Any]], request: web.Request) -> web.Response:
    after = request.query.get("after")
    start = [item["id"] for item in items].index(after) + 1 if after else 0
    page = items[start : start + int(request.query.get("limit", 20))]
    return web.json_response({"object": "list", "data": page, "has_more": start + len(page) < len(items)})


def _faults(upload: Upload) -> str:
    """What the service finds wrong with a training file; "" for nothing."""
    try:
        rows = upload.rows
    except ValueError:
        return "it is no JSON lines"
    if len(rows) < 10:
        return f"'{upload.id}' has {len(rows)} example(s), but must have at least 10 examples"
    for number, row in enumerate(rows, 1):
        messages = row["messages"]
        if set(row) != {"messages"} or messages[-1]["role"] != "assistant":
            return f"line {number}: the last message must be from the assistant"
        if not any(message.get("weight", 1) for message in messages if message["role"] == "assistant"):
            return f"line {number}: nothing to learn"
        for message in messages:
            known = {"role", "content"} | ({"weight"} if message["role"] == "assistant" else set())
            if (
                set(message) - known
                or message.get("weight", 1) not in (0, 1)
                or not isinstance(message["content"], str)
            ):
                return f"line {number}: an unknown key, or a weight other than 0 and 1"
    return ""


@contextlib.asynccontextmanager
async def fake_finetuning() -> AsyncIterator[FakeFinetuning]:
    service = FakeFinetuning()
    async with served(service.app()) as service.url:
        yield service


def finetuning_in_a_thread() -> contextlib.AbstractContextManager[FakeFinetuning]:
    return in_a_thread(fake_finetuning)
