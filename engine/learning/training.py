"""Adapters, or whole models, from rows: the trainings of a feed's learners, and their entry into the registry.

The loop feeds them while debates run; ``train_recorded`` feeds them what a run, or an import, holds already.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from actors.models.backend import EMBEDDED
from engine.config.recipe import TrainSettings
from engine.config.recipe_file import apply_override, build_recipe, check_numbers
from engine.config.sections import read_section
from engine.debates.cluster import join_ray
from engine.debates.resources import held_to, machines_of_cluster
from engine.debates.stage import recorded
from engine.learning.hosted import HostedTraining, hosted_job
from engine.learning.hosted_job import HostedJob
from engine.live.progress import Progress
from engine.record.folder import RunFolder
from protocols.errors import ConfigError, PausedError, TrainerError
from trainers.jobs.job import Settings, TrainedAdapter, TrainingJob, is_trained, job_for, read_trained, trains_whole
from trainers.jobs.lanes import LanePlace, fit_lanes
from trainers.record.feed import LOCK_WAIT_S, Addition, Feed, make_feed_actor
from trainers.record.registry import AdapterRecord, Registry, adapter_name, weights_hash
from trainers.selection.example import Example
from trainers.selection.select import select
from trainers.tuning.magdi_settings import MAGDiSettings
from trainers.tuning.sft_settings import SFTSettings, check_gpus
from trainers.tuning.tree_dpo_settings import TreeDPOSettings

H = TypeVar("H", SFTSettings, TreeDPOSettings, MAGDiSettings)
SECTIONS: dict[type, str] = {SFTSettings: "sft", TreeDPOSettings: "tree_dpo", MAGDiSettings: "magdi"}  # of a recipe
OPTIONS = {"tree_dpo": "--preferences", "magdi": "--magdi"}  # section -> the option of `moot train` that reads it


class Training(msgspec.Struct, frozen=True, kw_only=True):
    """Some adapters to train from one feed: who, on what, where checkpoints lie."""

    run_id: str
    settings: TrainSettings
    how: Settings
    base: str  # a model folder
    workplace: Path
    jobs: list[TrainingJob]
    rules: Mapping[str, Sequence[str]]  # agent -> what it learns by
    gpu_share: float = 1.0  # of each GPU that a lane takes, as far as the cluster counts

    def fit(self, feed: Any) -> str:
        """Train; blocks. An agent that cannot be trained keeps what it has, the others go on.

        Returns: a warning, or "". Raises: TrainerError: nobody could be trained.
        """
        train = self.settings
        num_ranks = max(1, train.gpus_per_lane)  # more than one GPU is for a whole model alone: see check_gpus
        try:
            fit_lanes(
                self.jobs,
                settings=self.how,
                base_model=self.base,
                feed=feed,
                storage_path=self.workplace / "checkpoints",
                name=self.run_id,
                num_lanes=train.num_lanes,
                place=LanePlace(
                    ranks=num_ranks,
                    cpus=train.cpus_per_lane / num_ranks,
                    use_gpu=train.gpus_per_lane > 0,
                    gpu_share=self.gpu_share,
                    resources=held_to("trainers", machines_of_cluster()),
                    env_vars={"OMP_NUM_THREADS": str(train.threads)} if train.threads else {},
                ),
                checkpoint_every=train.checkpoint_every,
            )
        except TrainerError as err:
            if not any(is_trained(job) for job in self.jobs):
                raise
            return str(err)
        return ""

    def register(
        self,
        registry: Registry,
        *,
        recipe_hash: str,
        base_name: Callable[[str], str],
        parents: dict[str, AdapterRecord],
        iteration: int,
        data: Mapping[str, float] = {},
    ) -> list[TrainedAdapter]:
        """Enter what was trained, unless it was entered before the run was interrupted.

        Args: data: figures of the debates behind it.
        """
        trained = [read_trained(job) for job in self.jobs if is_trained(job)]
        if not trained:
            return []
        base_hash = weights_hash(Path(self.base))
        known = {record.name for record in registry.list()}
        for item in trained:
            if item.name in known:
                continue
            parent = parents.get(item.agent) if item.parent else None
            registry.add(
                item.name,
                Path(item.path),
                base_model=base_name(item.agent),
                base_hash=base_hash,
                data_hash=item.result.data_hash,
                rule=", ".join(self.rules[item.agent]),
                rows=item.result.rows,
                recipe_hash=recipe_hash,
                created_at=time.time(),
                parent=parent.name if parent else None,
                metrics=item.result.figures | {"iteration": iteration} | dict(data),
                whole=trains_whole(self.how),
            )
        return trained


def train_recorded(path: Path, overrides: Sequence[str], *, progress: Progress) -> dict[str, Any]:
    """Train adapters, or whole models, from the debates that a run or an import has on record, one an agent.

    Interrupted, the same command goes on from the last checkpoint; done, it trains the next version.

    Args:
        overrides: of ``train`` and ``sft`` alone, over what the run's recipe says.
    Raises: ConfigError: not a run, a loop that is not finished, or nothing to learn from. TrainerError: see ``fit``.
        PausedError: a service refuses for now; the same command goes on.
    """
    with held(path) as folder:
        try:
            return _train_recorded(folder, overrides, progress)
        except PausedError as err:  # of a service, which knows not what it works for
            raise type(err)(str(err).replace("moot resume RUN", f"moot train {path}")) from err


@contextmanager
def held(path: Path) -> Iterator[RunFolder]:
    """A run's folder, and nobody else at work on it. Raises: ConfigError: not a run, or somebody is."""
    folder = RunFolder.open(path)
    folder.lock()
    try:
        yield folder
    finally:
        folder.release()


def _train_recorded(folder: RunFolder, overrides: Sequence[str], progress: Progress) -> dict[str, Any]:
    manifest, began = folder.manifest, time.monotonic()
    settings, sft = sections_of(folder, overrides, SFTSettings)
    rows = _rows(folder, settings)
    registry = Registry(folder.path / "adapters")
    version = registry.next_version
    workplace = folder.path / "train" / f"recorded-{version}"
    names = {word(agent): adapter_name(word(agent), word(manifest.id), version) for agent in rows}
    rules = {word(agent): _rules_in(found) for agent, found in rows.items()}
    hosted = HostedTraining(workplace=workplace, jobs=_hosted_jobs(folder, registry, settings, names), rules=rules)
    training = Training(
        run_id=manifest.id,
        settings=settings,
        how=sft,
        base="" if hosted.jobs else base_of(settings, progress),
        workplace=workplace,
        jobs=[] if hosted.jobs else [job_for(registry, name) for name in names.values()],
        rules=rules,
    )
    workplace.mkdir(parents=True, exist_ok=True)
    shown = ", ".join(f"{agent} {sum(map(len, found))}" for agent, found in rows.items())
    progress.note(f"training v{version} from recorded debates: rows {shown}")
    examples = _fed(training, rows)
    if hosted.jobs:
        warning, _ = asyncio.run(hosted.fit(examples, progress.note))
    else:
        warning = fit_on_ray(training, lambda: make_feed_actor(workplace / "feed", mix=settings.mix))
    trained = training.register(
        registry, recipe_hash=manifest.fingerprint, base_name=lambda _: training.base, parents={}, iteration=version
    )
    trained += hosted.register(registry, recipe_hash=manifest.fingerprint, iteration=version)
    return (
        told(folder, trained)
        | ({"models": {item.agent: item.path for item in trained}} if training.jobs and trains_whole(sft) else {})
        | {"warnings": [warning] if warning else [], "wall_s": round(time.monotonic() - began, 2)}
    )


def rows_of(training: Training) -> Path:
    """Where a training that needs all of its rows first finds them."""
    return (training.workplace / "rows").absolute()


def told(folder: RunFolder, trained: Sequence[TrainedAdapter]) -> dict[str, Any]:
    """What came of trainings, as the command tells it."""
    return {
        "run": str(folder.path),
        "adapters": [item.name for item in trained],
        "rows": {item.agent: item.result.rows for item in trained},
        "final_loss": {item.agent: round(item.result.losses[-1], 4) for item in trained if item.result.losses},
    }


def _hosted_jobs(
    folder: RunFolder, registry: Registry, settings: TrainSettings, names: Mapping[str, str]
) -> list[HostedJob]:
    """Of the agents that their service trains, which are all or none; none where a base is named to be trained here.

    Raises: ConfigError: a service trains some of them alone.
    """
    manifest = folder.manifest
    if settings.base_model or "models" not in manifest.recipe:  # an import has none
        return []
    path = Path(manifest.recipe_path)
    recipe = build_recipe(manifest.recipe, where=str(path), folder=path.parent)
    found = [name for name in names if name in recipe.agents and recipe.models[recipe.agents[name].model].finetune]
    if others := [name for name in names if name not in found and found]:
        raise ConfigError(
            f"{folder.path}: services train {', '.join(found)}, but not {', '.join(others)}; train them one after the "
            "other: choose by train.agents, and name train.base_model for those who are trained here"
        )
    return [hosted_job(recipe, registry, names[name]) for name in found]


def _fed(training: Training, rows: dict[str, list[list[Example]]]) -> dict[str, list[Example]]:
    """Put the rows into the training's feed. Returns: by agent those that can be read there, mixed."""
    debates: dict[str, dict[str, list[Example]]] = {}
    for agent, found in rows.items():
        for examples in found:
            debates.setdefault(examples[0].debate_id, {})[word(agent)] = examples
    additions = [
        Addition(debate_id=debate_id, examples=examples, progress=(number + 1) / len(debates))
        for number, (debate_id, examples) in enumerate(debates.items())
    ]
    feed = Feed(training.workplace / "feed", mix=training.settings.mix, lock_wait_s=LOCK_WAIT_S)
    try:
        feed.add_many(additions)
        feed.finish()
        return {word(agent): feed.examples(word(agent)) for agent in rows}
    finally:
        feed.close()


def fit_on_ray(training: Training, feed: Callable[[], Any]) -> str:
    """``Training.fit`` where no run has joined a cluster. ``feed`` is made when Ray is up."""
    ours = join_ray()  # before anything imports Ray, which reads its settings then
    import ray

    try:
        return training.fit(feed())
    finally:
        if ours:
            ray.shutdown()


def sections_of(folder: RunFolder, overrides: Sequence[str], how: type[H]) -> tuple[TrainSettings, H]:
    """What a finished run's recipe says of training, under overrides of these two sections alone.

    Raises: ConfigError: the run is not finished, or an override is of something else.
    """
    if folder.manifest.finished_at is None:
        raise ConfigError(f"{folder.path} is not finished; finish it with `moot resume {folder.path}` first")
    section = SECTIONS[how]
    data = {key: dict(folder.manifest.recipe.get(key, {})) for key in ("train", section)}
    for override in overrides:
        if (named := override.partition(".")[0]) not in data:
            raise ConfigError(
                f"override {override!r}: training from a record takes train.* and {section}.* alone"
                + (f"; {named}.* goes with {OPTIONS[named]}" if named in OPTIONS else "")
            )
        apply_override(data, override)
    check_numbers(data, "moot train")
    train = read_section(data["train"], TrainSettings, "moot train", "train")
    settings = read_section(data[section], how, "moot train", section)
    check_gpus(settings.method if isinstance(settings, SFTSettings) else "lora", train.gpus_per_lane)
    return train, settings


def stages_to_learn_from(folder: RunFolder) -> list[str]:
    """All that a run has on record but its evaluations."""
    return sorted(path.name for path in (folder.path / "journal").glob("debate*"))


def _rows(folder: RunFolder, settings: TrainSettings) -> dict[str, list[list[Example]]]:
    """Agent -> the rows of each debate, in the order of the record."""
    found: dict[str, list[list[Example]]] = {}
    num_debates = 0
    for stage in stages_to_learn_from(folder):
        for closed in recorded(folder, stage):
            num_debates += 1
            for agent, rows in select(settings, closed.debate).items():
                found.setdefault(agent, []).append(rows)
    if not found:
        raise ConfigError(
            f"{folder.path}: {_told(settings)} nothing to learn from in its {num_debates} debates"
            + (f" for {', '.join(settings.agents)}" if settings.agents else "")
            + "; lower train.min_support, or choose another rule or other agents"
        )
    settings.check_learners(list(found))
    return dict(sorted(found.items()))


def _told(settings: TrainSettings) -> str:
    names = [repr(name) for name in settings.names]
    return f"the rule {names[0]} finds" if len(names) == 1 else f"the rules {', '.join(names)} find"


def _rules_in(found: Sequence[Sequence[Example]]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(example.rule for examples in found for example in examples))


def base_of(settings: TrainSettings, progress: Progress) -> str:
    if settings.base_model not in ("", EMBEDDED):
        if not Path(settings.base_model).is_dir():
            raise ConfigError(f"train.base_model={settings.base_model!r}: there is no such folder")
        return settings.base_model
    if not settings.base_model:
        raise ConfigError("train.base_model is empty; name the model folder to train, or embedded")
    from actors.local.embedded import embedded_model_path

    return str(embedded_model_path(progress.note))


def word(name: str) -> str:
    """A name as adapters are named: imported agents may hold spaces."""
    return "".join(letter if letter.isalnum() or letter in "-_." else "-" for letter in name) or "agent"
