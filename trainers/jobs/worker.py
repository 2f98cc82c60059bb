"""What a training lane's worker does: the lane's jobs, one after another, over a base that is loaded once.

Where an unfinished training stands is Ray Train's last checkpoint: a worker that is started again goes on from there.
"""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

import msgspec

from protocols.errors import MootError, TrainerError
from trainers.jobs import gauges
from trainers.jobs.job import Result, Settings, TrainingJob, is_trained, note_failure, trains_whole
from trainers.record.feed import FeedPage, decode_page
from trainers.record.row_file import read_rows
from trainers.selection.interaction import Interaction
from trainers.selection.preference_row import Preference
from trainers.tuning.full import train_model
from trainers.tuning.magdi import train_on_graphs
from trainers.tuning.magdi_settings import MAGDiSettings
from trainers.tuning.sft import load_base, train_adapter
from trainers.tuning.sft_settings import OnCheckpoint, SFTSettings
from trainers.tuning.tree_dpo import train_preferences

ORDER_NAME = "order.json"  # in a checkpoint: what it is of
READ_WAIT_S = 1.0  # how long the feed may hold a read that finds nothing
READ_LIMIT_S = 120.0  # a feed actor that restarts on a busy machine takes this long at worst


class _Order(msgspec.Struct, frozen=True, kw_only=True):
    """All that a checkpoint depends on: with another order it is of no use, and training starts anew."""

    job: TrainingJob
    settings: Settings
    base_model: str


class FeedReader:
    """One agent's rows of a feed actor, as a stream reads them."""

    def __init__(self, feed: Any, agent: str) -> None:
        self._feed, self._agent = feed, agent

    def read(self, offset: int, limit: int) -> FeedPage:
        """Raises: ray.exceptions.RayError: the feed is gone; the lane then fails and is tried again."""
        import ray

        page = self._feed.read.remote(self._agent, offset, limit, READ_WAIT_S)
        return decode_page(ray.get(page, timeout=READ_LIMIT_S))


def train_lane(config: dict[str, Any]) -> None:
    """What a Ray Train worker runs: a lane's jobs, one after another, over one loaded base.

    The base is loaded anew where a training has changed it. Where a lane is several workers, each of them runs this.

    An error of ours (nothing to train on, a loss that is not a number) would come again on every try: it is written
    down for ``fit_lanes`` and the lane goes on. Any other error fails the worker, and Ray Train starts it again.
    """
    jobs: list[TrainingJob] = [job for job in config["jobs"] if not is_trained(job)]
    settings: Settings = config["settings"]
    quiet()
    base: tuple[Any, Any] | None = None
    for job in jobs:
        try:
            if base is None:
                base = _load(job, config["base_model"], settings)
            order = _Order(job=job, settings=settings, base_model=config["base_model"])
            _train_job(order, *base, config["feed"], config["checkpoint_every"])
        except MootError as err:
            note_failure(job, err)
        if trains_whole(settings):
            base = None
            _let_go()


def _load(job: TrainingJob, base_model: str, settings: Settings) -> tuple[Any, Any]:
    """What a job begins with. Raises: MootError: see ``load_base``; in every process of the lane alike."""
    from trainers.tuning.ranks import of_all

    method = settings.method if isinstance(settings, SFTSettings) else "lora"
    goes_on = job.parent if trains_whole(settings) else None
    error: MootError | None = None
    try:
        base = load_base(goes_on or base_model, settings.precision, method=method)
    except MootError as err:
        error = err
    # A process that went on by itself would share gradients with another job's. Ray starts all of them again.
    if len(said := set(of_all((job.name, str(error or ""))))) > 1:
        raise RuntimeError(f"the processes of a lane are not at one: {sorted(said)}")
    if error is not None:
        raise error
    return base


def _let_go() -> None:
    """A trainer and what it is called by hold each other, and the model with them: only a collection ends that."""
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def quiet() -> None:
    """No progress bars from transformers."""
    from transformers.utils import logging

    disable: Any = logging.disable_progress_bar  # untyped
    disable()  # in a log file a bar is a line for every tick


def _train_job(order: _Order, model: Any, tokenizer: Any, feed: Any, checkpoint_every: int) -> None:
    import ray.train

    job, first = order.job, ray.train.get_context().get_world_rank() == 0

    def on_checkpoint(folder: Path, figures: dict[str, float]) -> None:
        if first:
            (folder / ORDER_NAME).write_bytes(msgspec.json.encode(order))
            gauges.tell(job.name, figures)
        ray.train.report(figures | {"agent": job.agent}, checkpoint=ray.train.Checkpoint.from_directory(str(folder)))

    def train(resume_from: Path | None) -> None:
        result = _fit(order, model, tokenizer, feed, resume_from, checkpoint_every, on_checkpoint)
        figures = {"step": result.steps, "progress": 1.0, "rows_seen": result.rows_seen, "loss": result.losses[-1]}
        if first:
            gauges.tell(job.name, figures)
        ray.train.report(figures | {"agent": job.agent})

    checkpoint = ray.train.get_checkpoint()
    if checkpoint is None:
        train(None)
        return
    with checkpoint.as_directory() as folder:
        same = (Path(folder) / ORDER_NAME).read_bytes() == msgspec.json.encode(order)
        train(Path(folder) if same else None)


def _fit(
    order: _Order,
    model: Any,
    tokenizer: Any,
    feed: Any,
    resume_from: Path | None,
    checkpoint_every: int,
    on_checkpoint: OnCheckpoint,
) -> Result:
    job, settings = order.job, order.settings
    parent = Path(job.parent) if job.parent else None
    both: dict[str, Any] = {
        "agent": job.agent,
        "output": Path(job.output),
        "resume_from": resume_from,
        "checkpoint_every": checkpoint_every,
        "on_checkpoint": on_checkpoint,
    }
    if isinstance(settings, SFTSettings):
        source = FeedReader(feed, job.agent)
        if settings.method == "full":
            return train_model(model, tokenizer, source, settings, **both)
        return train_adapter(model, tokenizer, source, settings, init_from=parent, **both)
    if isinstance(settings, MAGDiSettings):
        debates = read_rows(Path(feed), job.agent, Interaction)
        return train_on_graphs(model, tokenizer, debates, settings, init_from=parent, **both)
    if parent is None:
        raise TrainerError(f"{job.agent!r} has no adapter to start from; preferences are learned on top of one")
    rows = read_rows(Path(feed), job.agent, Preference)
    return train_preferences(model, tokenizer, rows, settings, init_from=parent, **both)
