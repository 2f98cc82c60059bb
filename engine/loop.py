"""The iterated loop: debate, train every agent while the debates run, swap the adapters in, evaluate, again.

Where whole models are trained, an agent's own model is started again with what it learned.

With ``loop.preferences`` an iteration has a second training: what the first came to goes on from the debates' trees.
With ``loop.staleness`` the next debates are held while trainings are still under way. Every arrow is a stage with a
name; a stage that is done is written into the run's manifest and passed by on resume, one that is not goes on from its
journal, its feed and its last checkpoint.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from functools import cached_property
from pathlib import Path
from typing import Any

import msgspec

from actors.limits.prices import Amount
from actors.models.backend import AdapterRef
from actors.post.remote import of_actor
from engine.config.base_model import base_model_of
from engine.config.colocation import way_of
from engine.config.recipe import Recipe
from engine.config.servable import check_own_model
from engine.data.tasks import Split
from engine.debates.cluster import Cluster
from engine.debates.colocate import gpu_share_of, room_for_trainings
from engine.debates.desk import Closed
from engine.debates.stage import StageResult, run_stage
from engine.learning.hosted import HostedTraining, fed_rows, hosted_job, left_usd
from engine.learning.overlap import overlapped
from engine.learning.preferences import RecordedTrees
from engine.learning.side_by_side import all_fitted, in_thread
from engine.learning.staleness import Turns, staleness_of, turns_of
from engine.learning.train_preferences import preference_training, recorded_preferences
from engine.learning.training import Training, rows_of
from engine.live.progress import Progress
from engine.record.folder import RunFolder, write_atomically
from engine.record.stage_names import BEFORE_PREFERENCES, label_of
from engine.results.evaluate import SINGLE_AGENT, Evaluation, evaluate
from protocols.errors import ConfigError
from protocols.graph import Debate
from protocols.message import Usage
from protocols.statistics import statistics
from trainers.jobs.job import TrainedAdapter, TrainingJob, job_for, trains_whole
from trainers.record.feed import Addition, make_feed_actor
from trainers.record.registry import AdapterRecord, Registry, adapter_name
from trainers.selection.mix import Mix
from trainers.selection.preference_row import Preference
from trainers.selection.select import select


class _Iteration:
    """What the debates and the trainings of an iteration share."""

    def __init__(self, number: int, workplace: Path, mix: Mix) -> None:
        self.number, self.workplace, self._mix = number, workplace, mix
        self.turns: Turns = {}  # of its debates
        self.closed = asyncio.Event()  # all of its debates are over, and their rows in the feed

    @cached_property
    def feed(self) -> Any:
        self.workplace.mkdir(parents=True, exist_ok=True)
        return make_feed_actor(self.workplace / "feed", mix=self._mix)


class Loop:
    """One run of the loop on a started cluster; ``run`` does, or finishes, all of it."""

    def __init__(self, recipe: Recipe, cluster: Cluster, folder: RunFolder, tasks: Split, progress: Progress) -> None:
        self._recipe, self._cluster, self._folder = recipe, cluster, folder
        self._tasks, self._progress = tasks, progress
        self._base = base_model_of(recipe)
        self._registry = Registry(folder.path / "adapters")
        self._serving: dict[str, AdapterRecord] = {}  # agent -> the version that answers now
        self._evaluations: list[tuple[str, Evaluation]] = []
        self._warnings: defaultdict[str, list[str]] = defaultdict(list)  # by stage
        self.set_aside = 0

    async def run(self) -> list[tuple[str, Evaluation]]:
        """Returns: the evaluations, the one before the first iteration first."""
        await self._evaluate("eval-0")
        loop, mix = self._recipe.loop, self._recipe.train.mix
        numbers = range(1, loop.iterations + 1)
        iterations = (_Iteration(number, self._workplace(number), mix) for number in numbers)
        await overlapped(iterations, loop.staleness, self._debate, self._learn, self._arrive)
        return self._evaluations

    async def _learn(self, iteration: _Iteration) -> None:
        """All that is trained while other debates may go on."""
        if not self._done(f"train-{iteration.number}"):
            await self._train(iteration)
        if self._recipe.loop.preferences and self._recipe.loop.staleness:
            await self._prefer(iteration.number)

    async def _arrive(self, iteration: _Iteration) -> None:
        """What an iteration came to speaks from here on, and is evaluated."""
        number = iteration.number
        if not (trains_whole(self._recipe.sft) and self._spoke(number)):  # a whole model takes its time to start
            await self._publish(self._version(number))
        if self._recipe.loop.preferences:
            await self._evaluate(f"eval-{number}{BEFORE_PREFERENCES}")
            await self._prefer(number)
            await self._publish(self._version(number) + 1)
        await self._evaluate(f"eval-{number}")

    def _spoke(self, iteration: int) -> bool:
        """Whether all is over that what it came to speaks in."""
        following = f"train-{iteration + 1 + self._recipe.loop.staleness}"
        return self._done(following) and (not self._recipe.loop.evaluate or self._done(f"eval-{iteration}"))

    def _version(self, iteration: int) -> int:
        """Of the adapters of supervised finetuning; those of preferences are numbered with them."""
        return 2 * iteration - 1 if self._recipe.loop.preferences else iteration

    def _workplace(self, iteration: int) -> Path:
        return self._folder.path / "train" / f"iteration-{iteration}"

    async def _evaluate(self, stage: str) -> None:
        """The held-out tasks, debated by the agents as they are."""
        if self._recipe.loop.evaluate:
            found = await evaluate_stage(self._cluster, self._folder, stage, self._tasks, self._progress)
            self._evaluations.append((label_of(stage), found))

    async def _debate(self, iteration: _Iteration) -> None:
        """Debates stream their rows into the iteration's trainings."""
        if self._done(f"train-{iteration.number}"):
            return
        number, feed = iteration.number, iteration.feed
        num_closed = 0

        async def learn(closed: list[Closed]) -> None:
            nonlocal num_closed
            additions = []
            for item in closed:
                num_closed += 1
                chosen = {} if item.set_aside else select(self._recipe.train, item.debate)
                rows = {agent: examples for agent, examples in chosen.items() if agent in self._recipe.learners}
                share = num_closed / len(self._tasks.train)
                additions.append(Addition(debate_id=item.debate.id, examples=rows, progress=min(1.0, share)))
            await of_actor(feed.add_many.remote(additions))

        stage = f"debate-{number}"
        result = await run_stage(
            self._cluster, self._folder, stage, self._tasks.train, on_closed=learn, progress=self._progress
        )
        keep_statistics(self._folder, stage, result.graded)
        iteration.turns = turns_of(result.graded, self._recipe.learners)
        self._folder.mark_done(stage, summary(result))
        await of_actor(feed.finish.remote())
        counts, waiting = await of_actor(feed.counts.remote()), await of_actor(feed.waiting.remote())
        shown = ", ".join(
            f"{agent} {counts.get(agent, 0)}"
            + (f" ({left} left over by the mix)" if (left := waiting.get(agent)) else "")
            for agent in self._recipe.learners
        )
        self._progress.note(f"train-{number}: rows {shown}; training until all are used")
        iteration.closed.set()

    async def _train(self, iteration: _Iteration) -> None:
        """Supervised finetuning, which starts with the first row that the debates give.

        With ``run.colocate`` it starts when the last debate has closed, and models make room for it.
        """
        number, feed = iteration.number, iteration.feed
        training, hosted = await in_thread(lambda: (self._training(number), self._hosted(number)))
        colocated = bool(training.jobs and way_of(self._recipe))
        fitting = [asyncio.create_task(self._fit_hosted(hosted, iteration))] if hosted.jobs else []
        if colocated:
            await iteration.closed.wait()
        async with (
            room_for_trainings(self._recipe, self._cluster.hosts, self._progress) if colocated else nullcontext()
        ):
            if training.jobs:
                fitting.append(in_thread(lambda: training.fit(feed)))
            for warning in await all_fitted(fitting):
                self._warn(f"train-{number}", warning)
            await iteration.closed.wait()  # a training that was over before the driver died waits for its debates
            data = self._staleness(iteration)
            theirs = hosted.register(self._registry, recipe_hash=self._recipe.fingerprint, iteration=number, data=data)
            await self._register(f"train-{number}", training, self._version(number), number, data, theirs)
            if colocated and trains_whole(training.how):  # who is away comes back with what it learned
                await self._publish(self._version(number))
        del iteration.feed  # its process ends

    def _staleness(self, iteration: _Iteration) -> dict[str, float]:
        """Of its debates, now that all versions of iterations before are there; {} where debates wait for them."""
        if not self._recipe.loop.staleness:
            return {}
        found = staleness_of(iteration.turns, self._registry.list(), iteration.number)
        if found.most_behind:
            self._progress.note(
                f"train-{iteration.number}: in its debates {found.stale_share:.0%} of what learners said came from an "
                f"older version than there is now, at most {found.most_behind} behind"
            )
        data: dict[str, float] = msgspec.to_builtins(found)
        return data

    async def _fit_hosted(self, hosted: HostedTraining, iteration: _Iteration) -> str:
        """Returns: a warning, or "". What the jobs cost is out of the run's budget then."""
        await iteration.closed.wait()
        rows = await fed_rows(iteration.feed, [job.agent for job in hosted.jobs])
        left = left_usd(self._recipe, self._folder)
        warning, cost_usd = await hosted.fit(rows, self._progress.note, left_usd=left)
        if cost_usd and self._cluster.keeper is not None:
            await of_actor(self._cluster.keeper.charge.remote(Amount(cost_usd)))
        return warning

    async def _prefer(self, iteration: int) -> None:
        """Everybody's adapter goes on from what the iteration's debates prefer; who has none yet learns nothing."""
        stage, version = f"prefer-{iteration}", self._version(iteration) + 1
        if self._done(stage):
            return
        parents = await in_thread(lambda: self._before(version))
        rows = await in_thread(lambda: self._preferences(iteration))
        if bare := [agent for agent in rows if agent not in parents]:
            told = f"{stage}: {', '.join(bare)} could not be trained before, and preferences go on from an adapter"
            self._warn(stage, told)
        rows = {agent: found for agent, found in rows.items() if agent in parents}
        if not rows:
            self._warn(
                stage,
                f"{stage}: no round of debate-{iteration} has both a right and a wrong answer by "
                f"train.label={self._recipe.train.label} for who learns; the adapters stay as they are",
            )
            self._mark_done(stage, [], {})
            return
        self._progress.note(f"{stage}: pairs " + ", ".join(f"{agent} {len(found)}" for agent, found in rows.items()))
        training = preference_training(
            self._folder,
            self._registry,
            self._recipe.train,
            self._recipe.tree_dpo,
            self._base,
            rows,
            parents,
            version,
            gpu_share_of(way_of(self._recipe)),
        )
        async with room_for_trainings(self._recipe, self._cluster.hosts, self._progress):
            self._warn(stage, await in_thread(lambda: training.fit(str(rows_of(training)))))
        data = self._folder.manifest.done[f"train-{iteration}"].get("staleness", {})
        await self._register(stage, training, version, iteration, data)

    def _preferences(self, iteration: int) -> dict[str, list[Preference]]:
        trees = RecordedTrees(self._folder, self._recipe.train)
        found, _ = recorded_preferences(self._folder, trees, [f"debate-{iteration}"])
        return {agent: rows for agent, rows in found.items() if agent in self._recipe.learners}

    def _warn(self, stage: str, warning: str) -> None:
        if warning:
            self._warnings[stage].append(warning)
            self._progress.note(f"warning: {warning}")

    def _mark_done(self, stage: str, adapters: list[str], data: dict[str, float]) -> None:
        """With what it warned of, as whoever takes the run up later was not there."""
        told = {"staleness": data, "warnings": self._warnings[stage]}
        self._folder.mark_done(stage, {"adapters": adapters} | {key: value for key, value in told.items() if value})

    async def _register(
        self,
        stage: str,
        training: Training,
        version: int,
        iteration: int,
        data: dict[str, float],
        theirs: Sequence[TrainedAdapter] = (),
    ) -> None:
        """``theirs``: versions that services have trained, which are in the registry already.

        In a thread: weights are hashed, which takes seconds where models are whole, and debates may go on meanwhile.
        """
        trained = await in_thread(
            lambda: training.register(
                self._registry,
                recipe_hash=self._recipe.fingerprint,
                base_name=self._base_name,
                parents=self._before(version),
                iteration=iteration,
                data=data,
            )
        )
        names = [item.name for item in (*theirs, *trained)]
        self._mark_done(stage, names, data)

    def _training(self, iteration: int) -> Training:
        return Training(
            run_id=self._folder.manifest.id,
            settings=self._recipe.train,
            how=self._recipe.sft,
            base=self._base,
            workplace=self._workplace(iteration),
            jobs=self._jobs(iteration),
            rules={agent: self._recipe.train.rules_of(agent, self._recipe.cast) for agent in self._recipe.learners},
            gpu_share=gpu_share_of(way_of(self._recipe)),
        )

    def _hosted(self, iteration: int) -> HostedTraining:
        version = self._version(iteration)
        parents = self._parents(version)
        names = {agent: adapter_name(agent, self._folder.manifest.id, version) for agent in self._recipe.hosted}
        return HostedTraining(
            workplace=self._workplace(iteration),
            jobs=[
                hosted_job(self._recipe, self._registry, name, parent=parents.get(agent))
                for agent, name in names.items()
            ],
            rules={agent: self._recipe.train.rules_of(agent, self._recipe.cast) for agent in names},
        )

    def _parents(self, version: int) -> dict[str, AdapterRecord]:
        """What trainings to this version go on from."""
        return self._before(version) if self._recipe.loop.init_from == "previous" else {}

    def _before(self, version: int) -> dict[str, AdapterRecord]:
        """Agent -> the newest adapter that it had when this version was trained, whatever it speaks with by now."""
        found = {record.agent: record.name for record in self._registry.list() if record.version < version}
        return {agent: self._registry.get(name) for agent, name in found.items()}

    def _jobs(self, iteration: int) -> list[TrainingJob]:
        """One adapter for every learner that is trained here, named by the iteration: resuming names the same."""
        jobs, version = [], self._version(iteration)
        parents = self._parents(version)
        for agent in self._recipe.learners:
            if agent in self._recipe.hosted:
                continue
            name = adapter_name(agent, self._folder.manifest.id, version)
            jobs.append(job_for(self._registry, name, parent=parents.get(agent)))
        return jobs

    async def _publish(self, version: int) -> None:
        """The agents answer with this version from here on; who could not be trained, with its newest one before."""
        newest = await in_thread(lambda: self._before(version + 1))  # hashes their weights
        for agent in self._recipe.learners:
            record = newest.get(agent)
            if record is None or (record.version < version and record == self._serving.get(agent)):
                continue  # a warning says so
            await publish(self._cluster, self._recipe, record, self._registry)
            self._serving[agent] = record
        shown = ", ".join(record.name for record in self._serving.values()) or "none"
        self._progress.note(f"serving: {shown}")

    def _base_name(self, agent: str) -> str:
        return str(getattr(self._recipe.models[self._recipe.agents[agent].model].settings, "model", self._base))

    def _done(self, stage: str) -> bool:
        return stage in self._folder.manifest.done


async def publish(cluster: Cluster, recipe: Recipe, record: AdapterRecord, registry: Registry) -> None:
    """Put one version into its agent's model; asks from the return on are answered by it.

    Raises: ConfigError: a service keeps it, and the agent speaks through no service; or it is a whole model, and the
        agent shares its own. AgentError: it cannot be served.
    """
    model = recipe.agents[record.agent].model
    if record.whole:
        check_own_model(recipe, record.agent)
    if record.model and recipe.models[model].backend != "openai":
        raise ConfigError(
            f"adapter {record.name!r} is the model {record.model!r} of a service, but {record.agent} speaks through "
            f"models.{model} ({recipe.models[model].backend}); give it a model of backend openai at that service"
        )
    path = str(registry.folder_of(record))
    version = AdapterRef(name=record.name, agent=record.agent, path=path, model=record.model, whole=record.whole)
    await cluster.hosts.publish(model, version)


async def evaluate_stage(
    cluster: Cluster, folder: RunFolder, stage: str, tasks: Split, progress: Progress
) -> Evaluation:
    """Debate the held-out tasks with the agents as they are, and grade; kept in ``results/<stage>.json``."""
    file = folder.path / "results" / f"{stage}.json"
    if stage in folder.manifest.done and file.exists():
        return msgspec.json.decode(file.read_bytes(), type=Evaluation)
    result = await run_stage(cluster, folder, stage, tasks.test, progress=progress)
    result.tell_reasons(progress)
    found = evaluate(result.graded, tie_break=cluster.recipe.settings.tie_break)
    file.parent.mkdir(exist_ok=True)
    write_atomically(file, msgspec.json.format(msgspec.json.encode(found), indent=2))
    keep_statistics(folder, stage, result.graded)
    folder.mark_done(stage, summary(result))
    single = found.figure(SINGLE_AGENT)
    if single is not None and single.accuracy is not None:
        progress.note(
            f"{stage}: single agent {single.accuracy:.1%} [{single.low or 0:.1%}, {single.high or 0:.1%}] "
            f"on {single.num_tasks} held-out tasks"
        )
    return found


def keep_statistics(folder: RunFolder, stage: str, debates: Iterable[Debate]) -> None:
    """How a stage's debates went, as ``results/<stage>-statistics.json``."""
    file = folder.path / "results" / f"{stage}-statistics.json"
    file.parent.mkdir(exist_ok=True)
    write_atomically(file, msgspec.json.format(msgspec.json.encode(statistics(debates)), indent=2))


def summary(result: StageResult) -> dict[str, Any]:
    """What the manifest keeps of a stage; totals are over all its debates, whenever they were held."""
    usage = sum((debate.usage() for debate in result.debates), Usage())
    return {
        "debates": len(result.closed),
        "set_aside": [[item.debate.id, item.set_aside] for item in result.set_aside],
        "wall_s": round(result.wall_s, 3),
        "replies": sum(len(debate.utterances) for debate in result.debates),
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "cached_tokens": usage.cached_tokens,
        "cost_usd": round(sum(node.reply.cost_usd for debate in result.debates for node in debate.utterances), 6),
        "new": {  # since the stage was last taken up: what wall_s was spent on
            "debates": result.num_new,
            "replies": result.replies,
            "completion_tokens": result.usage.completion_tokens,
        },
    }
