"""One version that a service trains: rows up, one job, its model id back, whoever is killed in between.

What was done is on record before the next step is taken, and what could not be recorded is found at the service: an
upload by its name, a job by the version and the key in its metadata. So nothing is bought twice.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TypeVar

import msgspec

from actors.limits.policy import PAUSED, stops_run, why_stopped
from actors.limits.prices import PER
from actors.services.openai_finetuning import Job, OpenAIFinetuning, Order, Point
from actors.services.openai_settings import MAX_SUFFIX, FinetuneSettings, OpenAISettings
from engine.record.folder import write_atomically
from protocols.errors import RETRYABLE, PausedError, ReplyError, TrainerError
from trainers.jobs.hosted import HostedModel, HostedResult, write_hosted
from trainers.jobs.hosted_rows import HostedRows, hosted_rows
from trainers.record.feed import hash_rows
from trainers.selection.example import Example

T = TypeVar("T")

MIN_ROWS = 10  # that OpenAI trains on
READY_S = 900.0  # that a trained model may take until it answers
ROWS_NAME, TICKET_NAME = "rows.jsonl", "ticket.json"

Note = Callable[[str], None]


class HostedJob(msgspec.Struct, frozen=True, kw_only=True):
    """One version for a service to train."""

    agent: str
    name: str  # the version's
    version: int
    output: Path
    model: str  # what the recipe calls it
    service: OpenAISettings
    parent: str | None = None  # the version to go on from
    start_from: str = ""  # and its model's id; "": from the base
    training_price: float | None = None  # US dollars per million tokens

    @property
    def settings(self) -> FinetuneSettings:
        assert self.service.finetune is not None  # or nobody would have it trained there
        return self.service.finetune

    @property
    def base(self) -> str:
        return self.settings.base or self.service.model

    def order(self, rows: bytes) -> Order:
        settings, start_from = self.settings, self.start_from or self.base
        told = (start_from, settings.epochs, settings.batch_size, settings.learning_rate_multiplier, settings.seed)
        suffix = settings.suffix or f"{_word(self.agent)[: MAX_SUFFIX - 8]}-v{self.version}"
        key = hashlib.sha256(msgspec.json.encode(told) + rows).hexdigest()
        return Order(tag=self.name, key=key, base=start_from, suffix=suffix)

    def most_usd(self, rows: bytes) -> float:
        """The most that it can cost: no token is shorter than a byte. ``epochs`` are known where anybody asks."""
        return len(rows) * (self.settings.epochs or 1) * (self.training_price or 0.0) / PER


class Allowance:
    """US dollars that jobs may still cost; None: no limit."""

    def __init__(self, left_usd: float | None = None) -> None:
        self._left_usd = left_usd

    def take(self, name: str, most_usd: float, *, begun: bool) -> None:
        """Raises: PausedError: it does not fit, and is not ``begun`` already."""
        if self._left_usd is None:
            return
        if most_usd > self._left_usd and not begun:
            raise PausedError(
                f"{PAUSED}training {name} may cost up to ${most_usd:.4f}, and ${max(self._left_usd, 0.0):.4f} of "
                "run.budget.usd are left; go on with `moot resume RUN --budget usd=Y`"
            )
        self._left_usd -= most_usd


class Ticket(msgspec.Struct, frozen=True, kw_only=True):
    """How far a job is known to be. Of no use under another key."""

    key: str
    file: str = ""
    job: str = ""


class Tender:
    """Takes one job to its end; ``folder`` keeps how far it is.

    Errors that pass are waited for, ever longer, as long as ``finetune.max_wait_s`` allows.
    """

    def __init__(
        self, job: HostedJob, service: OpenAIFinetuning, folder: Path, allowance: Allowance, note: Note
    ) -> None:
        self._job, self._service, self._folder = job, service, folder
        self._allowance, self._note = allowance, note
        self._settings = job.settings
        self._until_s = time.monotonic() + self._settings.max_wait_s

    async def train(self, examples: Sequence[Example]) -> str:
        """Returns: a warning, or "". The version's folder is there then.

        Raises: TrainerError, ReplyError: it cannot be trained. PausedError: not now, and neither can any other.
            OSError: the disk refuses.
        """
        rows = hosted_rows(examples)
        self._check(rows)
        order = self._job.order(rows.lines)
        self._folder.mkdir(parents=True, exist_ok=True)
        write_atomically(self._folder / ROWS_NAME, rows.lines)
        try:
            job = await self._over(await self._begun(order, rows.lines))
            if job.status != "succeeded" or not job.fine_tuned_model:
                raise self._service.why_failed(job)
        except ReplyError as err:
            self._ticket_file.unlink(missing_ok=True)  # taken up again, it begins anew
            if stops_run(err):
                raise PausedError(why_stopped(self._job.model, err)) from err
            raise
        await self._until_ready(job.fine_tuned_model)
        write_hosted(self._job.output, await self._result(job, job.fine_tuned_model, rows))
        self._note(f"{self._job.name}: job {job.id} is done: {job.fine_tuned_model}")
        return _told(rows)

    def _check(self, rows: HostedRows) -> None:
        if len(rows.examples) < MIN_ROWS:
            left_out = f" ({_told(rows)})" if rows.refused else ""
            raise TrainerError(
                f"{len(rows.examples)} rows to learn from{left_out}, and a service trains on no fewer than {MIN_ROWS}; "
                "debate more tasks, or lower train.min_support"
            )

    @property
    def _ticket_file(self) -> Path:
        return self._folder / TICKET_NAME

    def _ticket(self, key: str) -> Ticket:
        if self._ticket_file.is_file():
            found = msgspec.json.decode(self._ticket_file.read_bytes(), type=Ticket)
            if found.key == key:
                return found
        return Ticket(key=key)

    def _keep(self, ticket: Ticket) -> Ticket:
        write_atomically(self._ticket_file, msgspec.json.encode(ticket))
        return ticket

    async def _begun(self, order: Order, rows: bytes) -> Job:
        """The job of these rows, begun now unless it was before."""
        ticket = self._ticket(order.key)
        job = await self._answered(
            partial(self._service.look, ticket.job) if ticket.job else partial(self._service.find_job, order)
        )
        self._allowance.take(self._job.name, self._job.most_usd(rows), begun=job is not None)
        if job is None:
            if not ticket.file:
                file = await self._answered(partial(self._found_or_uploaded, order, rows))
                ticket = self._keep(msgspec.structs.replace(ticket, file=file))
            job = await self._answered(partial(self._found_or_started, order, ticket.file))
        self._keep(msgspec.structs.replace(ticket, file=job.training_file or ticket.file, job=job.id))
        self._note(f"{self._job.name}: job {job.id} trains {job.model} at {self._service.address}")
        return job

    async def _found_or_uploaded(self, order: Order, rows: bytes) -> str:
        return await self._service.find_file(order, len(rows)) or await self._service.upload(order, rows)

    async def _found_or_started(self, order: Order, file: str) -> Job:
        """Looked for each time: a start that was not answered may have begun it."""
        return await self._service.find_job(order) or await self._service.start(order, file)

    async def _over(self, job: Job) -> Job:
        pause_s = self._settings.poll_s
        while not job.over:
            await self._pause(pause_s, f"job {job.id} is not over ({job.status})")
            pause_s = min(pause_s * 2, self._settings.max_poll_s)
            before, job = job.status, await self._answered(partial(self._service.look, job.id))
            if job.status != before and not job.over:
                self._note(f"{self._job.name}: job {job.id} is {job.status}")
        return job

    async def _until_ready(self, model: str) -> None:
        """A service may take some minutes to serve what it has trained; asks of that time would come to nothing."""
        give_up_s, pause_s = time.monotonic() + READY_S, self._settings.poll_s
        while not await self._answered(partial(self._service.serves, model)):
            if time.monotonic() > give_up_s:
                raise PausedError(
                    f"{PAUSED}{model}, which was trained for {self._job.name}, does not answer {READY_S:g} s after its "
                    "job; look for it at its service, then go on with `moot resume RUN`"
                )
            await self._pause(pause_s, f"{model} is not served")

    async def _answered(self, call: Callable[[], Awaitable[T]]) -> T:
        """Until the service answers. Raises: ReplyError: another try cannot help. PausedError: nor any other call."""
        pause_s = self._settings.poll_s
        while True:
            try:
                return await call()
            except ReplyError as err:
                if stops_run(err):
                    raise PausedError(why_stopped(self._job.model, err)) from err
                if err.kind not in RETRYABLE:
                    raise
                await self._pause(max(pause_s, err.retry_after_s or 0.0), str(err))
                pause_s = min(pause_s * 2, self._settings.max_poll_s)

    async def _pause(self, pause_s: float, why: str) -> None:
        if time.monotonic() + pause_s > self._until_s:
            raise PausedError(
                f"{PAUSED}{self._job.name} took longer than models.{self._job.model}.finetune.max_wait_s="
                f"{self._settings.max_wait_s:g}: {why}; what was begun goes on at its service, and `moot resume RUN` "
                "waits for it again"
            )
        await asyncio.sleep(pause_s)

    async def _curve(self, job: Job) -> list[Point]:
        """What the service does not tell is no reason to lose what it has trained."""
        try:
            return await self._answered(partial(self._service.curve, job.id))
        except ReplyError as err:
            self._note(f"{self._job.name}: job {job.id} tells no losses: {err}")
            return []

    async def _result(self, job: Job, model: str, rows: HostedRows) -> HostedResult:
        curve = await self._curve(job)
        told = job.hyperparameters.n_epochs if job.hyperparameters else None
        tokens = job.trained_tokens or 0
        return HostedResult(
            hosted=HostedModel(
                service=self._service.address, model=model, base=job.model, job=job.id, file=job.training_file
            ),
            steps=len(curve),
            rows=len(rows.examples),
            refused=len(rows.refused),
            epochs=float(told) if isinstance(told, int | float) else 0.0,
            trained_tokens=tokens,
            cost_usd=tokens * (self._job.training_price or 0.0) / PER,
            losses=tuple(point.loss for point in curve),
            step_times=tuple(point.at for point in curve),
            started_at=job.created_at,
            finished_at=job.finished_at or time.time(),
            data_hash=hash_rows(rows.examples),
        )


def _told(rows: HostedRows) -> str:
    if not (refused := rows.refused):
        return ""
    return f"{len(refused)} of {len(refused) + len(rows.examples)} rows were not sent; of {refused[0].id}: " + (
        refused[0].reason
    )


def _word(name: str) -> str:
    """As services take it in a name."""
    return "".join(letter if letter.isascii() and letter.isalnum() else "-" for letter in name)
