"""OpenAI's fine-tuning jobs: a file of chats goes up, a job is started, found again, looked at, and its curve read.

Nothing is remembered here and nothing tried again: whoever has something trained does both.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from typing import Any, Generic, TypeVar
from urllib.parse import quote, urlencode

import msgspec

from actors.services.api_errors import MAX_SENTENCE
from actors.services.batch_service import PAGE, Endpoint, T, decoded_as
from actors.services.http_client import Answer
from actors.services.openai_batches import form
from actors.services.openai_chat import ChatBackend
from actors.services.openai_settings import OpenAISettings
from protocols.errors import ReplyError

TAG = "moot_adapter"  # the field of a job's metadata that says which version it trains
KEY = "moot_key"  # and the one that says on what and how
IN_VAIN = frozenset({"failed", "cancelled"})
OVER = IN_VAIN | {"succeeded"}
MAX_FILES = 10_000  # a page of the list of files


class Order(msgspec.Struct, frozen=True, kw_only=True):
    """What a job is to be. ``tag`` names the version that it trains, ``key`` is a hash of all that it depends on: rows,
    base and settings. Together they name the job."""

    tag: str
    key: str
    base: str  # the model to start from
    suffix: str

    @property
    def file_name(self) -> str:
        """Of the upload: by it a file is found whose id was lost."""
        return f"{self.suffix}-{self.key[:16]}.jsonl"


class JobError(msgspec.Struct, frozen=True):
    """Why a job failed."""

    code: str | None = None
    message: str | None = None


class Hyperparameters(msgspec.Struct, frozen=True):
    """What the service chose, once it has: until then some are the word ``auto``."""

    n_epochs: int | float | str | None = None


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """A job as the service tells of it. Times are unix times in seconds."""

    id: str
    status: str = ""
    model: str = ""
    training_file: str = ""
    fine_tuned_model: str | None = None
    created_at: float = 0.0
    finished_at: float | None = None
    trained_tokens: int | None = None
    error: JobError | None = None
    hyperparameters: Hyperparameters | None = None
    metadata: dict[str, str] | None = None

    @property
    def over(self) -> bool:
        return self.status in OVER


class Point(msgspec.Struct, frozen=True):
    """One step of a job's curve: when it was taken, and its training loss."""

    step: int
    at: float
    loss: float


class _File(msgspec.Struct):
    id: str
    filename: str = ""
    bytes: int = 0


class _Files(msgspec.Struct):
    data: list[_File]


class _Event(msgspec.Struct):
    id: str
    created_at: float = 0.0
    type: str | None = None
    data: Any = None


P = TypeVar("P", Job, _Event)


class _Page(msgspec.Struct, Generic[P]):
    data: list[P]
    has_more: bool = False


class _Trained(ChatBackend):
    """The service's connection, whose errors name the jobs and the model to train."""

    def __init__(self, settings: OpenAISettings) -> None:
        super().__init__(settings)
        self._base_url, self._finetune = settings.base_url.rstrip("/"), settings.finetune

    @property
    def _url(self) -> str:
        return f"{self._base_url}/fine_tuning/jobs"

    @property
    def _model(self) -> str:
        return (self._finetune and self._finetune.base) or super()._model


class OpenAIFinetuning(Endpoint):
    """Files and jobs: https://platform.openai.com/docs/api-reference/fine-tuning. ``open`` it before the first call.

    Every method raises ReplyError where it is refused or not answered, with the kind that says whether another try can
    help.
    """

    def __init__(self, settings: OpenAISettings) -> None:
        assert settings.finetune is not None  # or nobody would have anything trained there
        self.address, self.settings = settings.base_url.rstrip("/"), settings.finetune
        self._chat = _Trained(settings)
        super().__init__(self._chat, f"{self.address}/fine_tuning/jobs")
        self._files = f"{self.address}/files"

    def open(self) -> None:
        """Raises: AgentError: the key is not where the settings say."""
        self._chat.connect()

    async def close(self) -> None:
        await self._chat.close()

    async def find_file(self, order: Order, size_bytes: int) -> str:
        """The id of an upload of these rows; "" where there is none."""
        query = urlencode({"purpose": "fine-tune", "limit": MAX_FILES})
        files = await self.struct(_Files, "GET", f"{self._files}?{query}")
        mine = (file.id for file in files.data if (file.filename, file.bytes) == (order.file_name, size_bytes))
        return next(mine, "")

    async def upload(self, order: Order, rows: bytes) -> str:
        """Bring the rows there, which costs nothing. Returns: the file's id."""
        body, content_type = form("fine-tune", order.file_name, rows)
        return (await self.struct(_File, "POST", self._files, body, content_type=content_type)).id

    async def find_job(self, order: Order) -> Job | None:
        """The job of this order that goes on or has succeeded; None where there is none: it may be started."""
        query: dict[str, str | int] = {"limit": PAGE, f"metadata[{TAG}]": order.tag}
        async for job in self._pages(_Page[Job], self.url, query):
            told = job.metadata or {}  # looked at here, too: a service may leave the query's filter aside
            if (told.get(TAG), told.get(KEY)) == (order.tag, order.key) and job.status not in IN_VAIN:
                return job
        return None

    async def start(self, order: Order, file_id: str) -> Job:
        """Raises: ReplyError (``transient``): it may have been started all the same."""
        settings = self.settings
        chosen = {
            "n_epochs": settings.epochs,
            "batch_size": settings.batch_size,
            "learning_rate_multiplier": settings.learning_rate_multiplier,
        }
        supervised = {"hyperparameters": {name: value for name, value in chosen.items() if value is not None}}
        request: dict[str, Any] = {
            "model": order.base,
            "training_file": file_id,
            "suffix": order.suffix,
            "method": {"type": "supervised", "supervised": supervised},
            "metadata": {TAG: order.tag, KEY: order.key},
        }
        if settings.seed is not None:
            request["seed"] = settings.seed
        return await self.struct(Job, "POST", self.url, msgspec.json.encode(request))

    async def look(self, job_id: str) -> Job:
        return await self.struct(Job, "GET", self._job(job_id))

    async def curve(self, job_id: str) -> list[Point]:
        """The training loss by step, as far as the job's events tell it."""
        points: dict[int, Point] = {}
        async for event in self._pages(_Page[_Event], self._job(job_id, "/events"), {"limit": PAGE}):
            if event.type == "metrics" and isinstance(told := event.data, Mapping):
                step, loss = told.get("step"), told.get("train_loss")
                if isinstance(step, int) and isinstance(loss, int | float):
                    points[step] = Point(step, event.created_at, float(loss))
        return [points[step] for step in sorted(points)]

    async def serves(self, model: str) -> bool:
        """Whether a trained model answers asks yet: some minutes may pass between a job's end and that."""
        return await self._chat.serves(model)

    def why_failed(self, job: Job) -> ReplyError:
        """The kind of a failure, and its sentence."""
        error = job.error or JobError()
        code, said = error.code or "", error.message or error.code or "no reason given"
        answer = Answer(400, {}, msgspec.json.encode({"error": {"code": code, "message": said}}))
        told = f"job {job.id} at {self.address}: {job.status}: {said[:MAX_SENTENCE]}"
        return ReplyError(self.backend.redact(told), self.backend.refusal(answer).kind)

    async def struct(self, kind: type[T], method: str, url: str, body: bytes | None = None, **how: str) -> T:
        answer = await self.call(method, url, body, **how)
        if answer.status == 404:
            raise self.backend.refusal(answer)
        return decoded_as(kind, url, answer)

    async def _pages(self, kind: type[_Page[P]], url: str, query: Mapping[str, str | int]) -> AsyncIterator[P]:
        """Items of a list, newest first."""
        after: dict[str, str] = {}
        while True:
            page = await self.struct(kind, "GET", f"{url}?{urlencode({**query, **after})}")
            for item in page.data:
                yield item
            if not page.has_more or not page.data:
                return
            after = {"after": page.data[-1].id}

    def _job(self, job_id: str, page: str = "") -> str:
        return f"{self.url}/{quote(job_id, safe='')}{page}"
