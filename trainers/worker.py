"""Training on Ray Train: agents' trainings spread over lanes, each lane one process with the base model loaded once.

A lane that trains whole models may be several processes, which share each model.

What is finished is a folder with an adapter in it; where an unfinished training stands is Ray Train's last checkpoint.
So a killed worker is started again by Ray, and a killed driver calls ``fit_lanes`` with the same storage and name.
"""

from __future__ import annotations

import gc
import os
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import msgspec

from protocols.errors import ConfigError, MootError, TrainerError
from trainers import gauges
from trainers.feed import FeedPage, decode_page
from trainers.full import train_model
from trainers.hosted import HostedResult
from trainers.interaction import Interaction
from trainers.magdi import MAGDiResult, MAGDiSettings, train_on_graphs
from trainers.preference_row import Preference
from trainers.row_file import read_rows
from trainers.sft import RESULT_NAME, OnCheckpoint, SFTResult, SFTSettings, load_base, train_adapter
from trainers.tree_dpo import TreeDPOResult, TreeDPOSettings, train_preferences

ORDER_NAME = "order.json"  # in a checkpoint: what it is of
READ_WAIT_S = 1.0  # how long the feed may hold a read that finds nothing
READ_LIMIT_S = 120.0  # a feed actor that restarts on a busy machine takes this long at worst


Method = Literal["sft", "tree_dpo", "magdi"]
Settings = SFTSettings | TreeDPOSettings | MAGDiSettings
Result = SFTResult | TreeDPOResult | MAGDiResult
RESULTS: dict[Method, type[Result]] = {"sft": SFTResult, "tree_dpo": TreeDPOResult, "magdi": MAGDiResult}


class TrainingJob(msgspec.Struct, frozen=True, kw_only=True):
    """One adapter to train. ``name`` is the adapter's; ``parent`` the folder of the adapter to start from.

    Where all weights are trained both are whole models.
    """

    agent: str
    method: Method = "sft"
    name: str
    output: str
    parent: str | None = None


class TrainedAdapter(msgspec.Struct, frozen=True, kw_only=True):
    """An adapter in PEFT layout at ``path``, or a whole model, or the record of one that its service keeps.

    ``result`` says how its training went.
    """

    agent: str
    name: str
    path: str
    parent: str | None
    result: Result | HostedResult


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


def fit_lanes(
    jobs: Sequence[TrainingJob],
    *,
    settings: Settings,
    base_model: str,
    feed: Any,
    storage_path: Path,
    name: str,
    num_lanes: int | None = None,
    ranks_per_lane: int = 1,
    cpus_per_worker: float = 1.0,
    use_gpu: bool = False,
    gpu_share: float = 1.0,
    resources: Mapping[str, float] | None = None,
    env_vars: Mapping[str, str] | None = None,
    max_failures: int = 3,
    checkpoint_every: int = 20,
) -> list[TrainedAdapter]:
    """Train every job's adapter and return them in the order of the jobs. Blocks; call it from a thread.

    Jobs whose adapter is there already are not trained again. The same ``storage_path`` and ``name`` resume the rest
    from the last checkpoint, with no row repeated or left out in an epoch. A job that cannot be trained does not stop
    the others: its error comes at the end, when their adapters are written.

    Args:
        settings: of the jobs' method, which is one for all.
        base_model: a folder in Hugging Face layout, or a name in the local cache, readable on every node.
        feed: handle of a feed actor; training starts at once and waits for its rows. Of preferences and of
            whole debates, which are trained on when all are there: the folder that ``write_rows`` put them into.
        storage_path: folder for checkpoints; on several nodes, like the outputs, on storage that all share.
        num_lanes: trainings at the same time. The jobs of a lane follow one another, so only the first of each can
            train while debates run. None: as many as jobs.
        ranks_per_lane: processes of a lane, each with ``cpus_per_worker`` and, with ``use_gpu``, a GPU. Several share
            a model all of whose weights are trained; an adapter is one's.
        gpu_share: what the cluster counts a lane's GPU as, where something else has the rest of it and leaves it alone.
        resources: others that each lane takes, such as those of nodes set apart for trainings.
        env_vars: environment of the workers, over ours.
        max_failures: deaths of a lane's worker to recover from.
        checkpoint_every: steps between checkpoints.
    Raises: TrainerError: a job could not be trained, or a lane died too often. ConfigError: jobs that exclude each
        other.
    """
    jobs = [_absolute(job) for job in jobs]
    _check(jobs, num_lanes)
    if ranks_per_lane > 1 and not trains_whole(settings):
        raise ConfigError(f"train: {ranks_per_lane} processes a lane share whole models alone; set sft.method: full")
    pending = [job for job in jobs if not is_trained(job)]
    for job in pending:
        _failure_file(job).unlink(missing_ok=True)
    num_lanes = min(num_lanes or len(jobs), len(jobs))
    # Finished jobs keep their place: the others must find the lane, and so the checkpoint, that was theirs.
    lanes = [[job for job in jobs[index::num_lanes] if job in pending] for index in range(num_lanes)]
    config = {
        "settings": settings,
        "base_model": str(Path(base_model).absolute()) if Path(base_model).exists() else base_model,
        "feed": feed,
        "checkpoint_every": checkpoint_every,
    }
    env = worker_env(cpus_per_worker, use_gpu=use_gpu) | dict(env_vars or {})
    takes = {"CPU": cpus_per_worker} | ({"GPU": gpu_share} if use_gpu else {}) | dict(resources or {})
    threads = [
        _LaneThread(
            config | {"jobs": lane},
            f"{name}-lane{index}",
            storage_path,
            ranks_per_lane,
            takes,
            use_gpu,
            env,
            max_failures,
        )
        for index, lane in enumerate(lanes)
        if lane
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    _raise_failures([thread.error for thread in threads if thread.error is not None], pending)
    return [read_trained(job) for job in jobs]


def trains_whole(settings: Settings) -> bool:
    """Whether a model comes out that stands by itself, not an adapter."""
    return isinstance(settings, SFTSettings) and settings.method == "full"


def is_trained(job: TrainingJob) -> bool:
    """Whether the job's adapter is there: its folder appears whole or not at all."""
    return (Path(job.output) / RESULT_NAME).is_file()


def read_trained(job: TrainingJob) -> TrainedAdapter:
    """A finished job's adapter, say after ``fit_lanes`` raised for another job. Raises: TrainerError: not finished."""
    if not is_trained(job):
        raise TrainerError(
            f"adapter {job.name!r} is not trained: there is no {Path(job.output) / RESULT_NAME}; train it"
        )
    try:
        result = msgspec.json.decode((Path(job.output) / RESULT_NAME).read_bytes(), type=RESULTS[job.method])
    except msgspec.ValidationError as err:
        raise TrainerError(
            f"{job.output} holds an adapter of another training than {job.method}, which was never registered; finish "
            "that training by its own command, or remove the folder"
        ) from err
    return TrainedAdapter(agent=job.agent, name=job.name, path=job.output, parent=job.parent, result=result)


def worker_env(cpus_per_worker: float, *, use_gpu: bool = False) -> dict[str, str]:
    """Environment of a training worker: its threads, Intel's OpenMP where it is installed, and no calls home.

    Intel's runtime does the same steps in two thirds of the time on a CPU, and must be there when the process starts.
    """
    env = {
        "OMP_NUM_THREADS": str(max(1, int(cpus_per_worker))),
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",  # it logs what libraries print into buffers of their own
    }
    library = Path(sys.prefix) / "lib" / "libiomp5.so"
    if not use_gpu and library.is_file():
        others = [path for path in os.environ.get("LD_PRELOAD", "").split(":") if path and path != str(library)]
        env["LD_PRELOAD"] = ":".join([str(library), *others])
    return env


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
            _note_failure(job, err)
        if trains_whole(settings):
            base = None
            _let_go()


def _load(job: TrainingJob, base_model: str, settings: Settings) -> tuple[Any, Any]:
    """What a job begins with. Raises: MootError: see ``load_base``; in every process of the lane alike."""
    from trainers.ranks import of_all

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


class _LaneThread(threading.Thread):
    """Drives one lane's Ray Train run. A daemon, so that an interrupted driver can leave."""

    def __init__(
        self,
        config: dict[str, Any],
        name: str,
        storage_path: Path,
        num_ranks: int,
        resources: dict[str, float],
        use_gpu: bool,
        env: dict[str, str],
        max_failures: int,
    ) -> None:
        super().__init__(name=name, daemon=True)
        self._config, self._storage_path = config, storage_path
        self._num_ranks, self._resources = num_ranks, resources
        self._use_gpu, self._env, self._max_failures = use_gpu, env, max_failures
        self.error: TrainerError | None = None

    def run(self) -> None:
        from ray import train

        api: Any = train  # its type hints are those of the API before v2
        try:
            self._trainer()(
                train_lane,
                train_loop_config=self._config,
                scaling_config=api.ScalingConfig(
                    num_workers=self._num_ranks,
                    use_gpu=self._use_gpu,
                    resources_per_worker=self._resources,
                    placement_strategy="PACK" if self._num_ranks == 1 else "STRICT_PACK",  # they talk all the time
                ),
                run_config=api.RunConfig(
                    name=self.name,
                    storage_path=str(self._storage_path.absolute()),
                    failure_config=api.FailureConfig(max_failures=self._max_failures),
                    checkpoint_config=api.CheckpointConfig(num_to_keep=1),
                    worker_runtime_env={"env_vars": self._env},
                    logging_config=api.LoggingConfig(log_level="WARNING"),
                ),
            ).fit()
        except (Exception, SystemExit) as err:  # Ray exits a thread that waits while it shuts down; others go on
            agents = ", ".join(job.agent for job in self._config["jobs"])
            self.error = TrainerError(
                f"training lane {self.name!r} ({agents}) failed with max_failures={self._max_failures}: "
                f"{_root_cause(err)}; mend the cause and resume the run"
            )
            self.error.__cause__ = err

    def _trainer(self) -> Any:
        """TorchTrainer joins a lane's processes. One has none to be joined to, and it would load torch thrice."""
        if self._num_ranks > 1:
            from ray.train.torch import TorchTrainer

            return TorchTrainer
        from trainers.lane_trainer import LaneTrainer

        return LaneTrainer


def _root_cause(error: BaseException) -> str:
    """The first line of what a worker died of; Ray Train's own message is its whole traceback."""
    failures = getattr(error, "worker_failures", None)
    cause = next(iter(failures.values()), error) if failures else error
    lines = [line for line in str(cause).strip().splitlines() if line.strip()]
    return lines[-1].strip() if lines else repr(cause)


def _raise_failures(lane_errors: Sequence[TrainerError], jobs: Sequence[TrainingJob]) -> None:
    """One error for all that went wrong: jobs that noted a reason first, then lanes that died."""
    noted = [_failure_file(job).read_text() for job in jobs if _failure_file(job).is_file()]
    reasons = [*noted, *(str(error) for error in lane_errors)]
    if reasons:
        raise TrainerError("; ".join(reasons)) from (lane_errors[0] if lane_errors else None)


def _absolute(job: TrainingJob) -> TrainingJob:
    """Ray Train gives workers a working directory of their own."""
    parent = str(Path(job.parent).absolute()) if job.parent else None
    return msgspec.structs.replace(job, output=str(Path(job.output).absolute()), parent=parent)


def _check(jobs: Sequence[TrainingJob], num_lanes: int | None) -> None:
    if not jobs:
        raise ConfigError("train: there is no agent to train; name at least one in train.agents")
    if num_lanes is not None and num_lanes < 1:
        raise ConfigError(f"train.num_lanes={num_lanes} must be at least 1")
    for what, values in (("name", [job.name for job in jobs]), ("output", [job.output for job in jobs])):
        double = next((value for value in values if values.count(value) > 1), None)
        if double is not None:
            raise ConfigError(f"train: two adapters have the {what} {double!r}; each needs its own")


def _failure_file(job: TrainingJob) -> Path:
    return Path(f"{job.output}.failed")


def _note_failure(job: TrainingJob, error: MootError) -> None:
    _failure_file(job).parent.mkdir(parents=True, exist_ok=True)
    _failure_file(job).write_text(str(error))
