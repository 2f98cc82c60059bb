"""Agents that their service trains: who they are, all their jobs side by side, and their entry into the registry."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from actors.limits.policy import PAUSED
from actors.post.remote import of_actor
from actors.services.openai_finetuning import OpenAIFinetuning
from actors.services.openai_settings import OpenAISettings
from engine.config.recipe import Recipe
from engine.learning.hosted_job import Allowance, HostedJob, Note, Tender
from engine.record.folder import RunFolder
from engine.record.spending import spent_so_far
from protocols.errors import PausedError, ReplyError, TrainerError
from trainers.jobs.hosted import read_hosted
from trainers.jobs.job import TrainedAdapter
from trainers.record.feed import MAX_PAGE_ROWS, decode_page
from trainers.record.registry import AdapterRecord, Registry, hosted_base_hash, parse_name
from trainers.selection.example import Example


class HostedTraining(msgspec.Struct, frozen=True, kw_only=True):
    """Versions to train, each by its service, and where it is kept how far they are."""

    workplace: Path
    jobs: list[HostedJob]
    rules: Mapping[str, Sequence[str]]  # agent -> what it learns by

    async def fit(
        self, rows: Mapping[str, Sequence[Example]], note: Note, *, left_usd: float | None = None
    ) -> tuple[str, float]:
        """Train what is not trained yet. An agent that cannot be trained keeps what it has, the others go on.

        Args:
            rows: agent -> its rows, in the order of the feed.
            left_usd: that all jobs together may cost; None: no limit.
        Returns: a warning, or "", and what the jobs cost that were over only now, in US dollars.
        Raises: TrainerError: nobody could be trained. PausedError: no other job would fare better now; what was begun
            is found again. AgentError: there is no key.
        """
        pending = [job for job in self.jobs if read_hosted(job.output) is None]
        allowance = Allowance(left_usd)
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [
                    group.create_task(self._tend(job, rows.get(job.agent, ()), allowance, note)) for job in pending
                ]
        except BaseExceptionGroup as errors:
            raise errors.exceptions[0] from None
        warning = "; ".join(told for task in tasks if (told := task.result()))
        if not any(read_hosted(job.output) for job in self.jobs):
            raise TrainerError(warning)
        results = [result for job in pending if (result := read_hosted(job.output))]
        return warning, sum(result.cost_usd for result in results)

    async def _tend(self, job: HostedJob, rows: Sequence[Example], allowance: Allowance, note: Note) -> str:
        service = OpenAIFinetuning(job.service)
        service.open()
        try:
            told = await Tender(job, service, self.workplace / "hosted" / job.agent, allowance, note).train(rows)
        except (TrainerError, ReplyError) as err:
            told = str(err)
        except OSError as err:  # what was begun must not be given up for it
            raise PausedError(
                f"{PAUSED}{job.name}: {err.filename or self.workplace} cannot be written: {err.strerror or err}; free "
                "the disk, then go on with `moot resume RUN`"
            ) from err
        finally:
            await service.close()
        return told and f"{job.name}: {told}"

    def register(
        self, registry: Registry, *, recipe_hash: str, iteration: int, data: Mapping[str, float] = {}
    ) -> list[TrainedAdapter]:
        """Enter what was trained, unless it was entered before the run was interrupted.

        Args: data: figures of the debates behind it.
        """
        known = {record.name for record in registry.list()}
        trained = []
        for job in self.jobs:
            if (result := read_hosted(job.output)) is None:
                continue
            trained.append(
                TrainedAdapter(agent=job.agent, name=job.name, path=str(job.output), parent=job.parent, result=result)
            )
            if job.name not in known:
                registry.add(
                    job.name,
                    job.output,
                    base_model=job.base,
                    base_hash=hosted_base_hash(result.hosted.service, job.base),
                    data_hash=result.data_hash,
                    rule=", ".join(self.rules[job.agent]),
                    rows=result.rows,
                    recipe_hash=recipe_hash,
                    created_at=time.time(),
                    parent=job.parent,
                    metrics=result.figures | {"iteration": iteration} | dict(data),
                    model=result.hosted.model,
                )
        return trained


def hosted_job(recipe: Recipe, registry: Registry, name: str, *, parent: AdapterRecord | None = None) -> HostedJob:
    """The job that trains this version of an agent of a recipe at its service, from its base or on from ``parent``."""
    agent, version = parse_name(name)
    model = recipe.agents[agent].model
    service = recipe.models[model].settings
    assert isinstance(service, OpenAISettings)  # others have no finetune
    price = recipe.price_of(model)
    return HostedJob(
        agent=agent,
        name=name,
        version=version,
        output=registry.folder_for(name),
        model=model,
        service=service,
        parent=parent.name if parent else None,
        start_from=parent.model if parent else "",
        training_price=price.training if price else None,
    )


def left_usd(recipe: Recipe, folder: RunFolder) -> float | None:
    """What is left of a run's budget; None: it has none in money. Raises: JournalError: a journal is damaged."""
    budget = recipe.run.budget.usd
    return budget - spent_so_far(folder).usd if budget else None


async def fed_rows(feed: Any, agents: Sequence[str]) -> dict[str, list[Example]]:
    """All rows of agents, of a feed actor that is finished."""
    found: dict[str, list[Example]] = {}
    for agent in agents:
        rows, done = found.setdefault(agent, []), False
        while not done:
            page = decode_page(await of_actor(feed.read.remote(agent, len(rows), MAX_PAGE_ROWS)))
            rows += [row.example for row in page.rows]
            done = page.done
    return found
