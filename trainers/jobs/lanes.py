"""Training on Ray Train: agents' trainings spread over lanes, each lane one process with the base model loaded once.

A lane that trains whole models may be several processes, which share each model.

What is finished is a folder with an adapter in it; where an unfinished training stands is Ray Train's last checkpoint.
So a killed worker is started again by Ray, and a killed driver calls ``fit_lanes`` with the same storage and name.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from protocols.errors import ConfigError, TrainerError
from trainers.jobs.job import (
    Settings,
    TrainedAdapter,
    TrainingJob,
    failure_file,
    is_trained,
    read_trained,
    trains_whole,
)
from trainers.jobs.worker import train_lane


class LanePlace(msgspec.Struct, frozen=True, kw_only=True):
    """What each lane takes of the cluster, and how its processes are started."""

    ranks: int = 1  # processes; several share a model all of whose weights are trained, an adapter is one's
    cpus: float = 1.0  # of each process
    use_gpu: bool = False  # each process has one of its own
    gpu_share: float = 1.0  # what the cluster counts that GPU as, where something else has the rest and leaves it alone
    resources: Mapping[str, float] = {}  # others of each process, such as those of nodes set apart for trainings
    env_vars: Mapping[str, str] = {}  # over those of ``worker_env``
    max_failures: int = 3  # deaths of a lane's processes to recover from

    @property
    def takes(self) -> dict[str, float]:
        """Resource -> how much each process holds of it."""
        return {"CPU": self.cpus} | ({"GPU": self.gpu_share} if self.use_gpu else {}) | dict(self.resources)


def fit_lanes(
    jobs: Sequence[TrainingJob],
    *,
    settings: Settings,
    base_model: str,
    feed: Any,
    storage_path: Path,
    name: str,
    num_lanes: int | None = None,
    place: LanePlace | None = None,
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
        place: where each lane runs; None: one process on one CPU.
        checkpoint_every: steps between checkpoints.
    Raises: TrainerError: a job could not be trained, or a lane died too often. ConfigError: jobs that exclude each
        other.
    """
    jobs, place = [_absolute(job) for job in jobs], place or LanePlace()
    _check(jobs, num_lanes, place, settings)
    pending = [job for job in jobs if not is_trained(job)]
    for job in pending:
        failure_file(job).unlink(missing_ok=True)
    num_lanes = min(num_lanes or len(jobs), len(jobs))
    # Finished jobs keep their place: the others must find the lane, and so the checkpoint, that was theirs.
    lanes = [[job for job in jobs[index::num_lanes] if job in pending] for index in range(num_lanes)]
    config = {
        "settings": settings,
        "base_model": str(Path(base_model).absolute()) if Path(base_model).exists() else base_model,
        "feed": feed,
        "checkpoint_every": checkpoint_every,
    }
    threads = [
        _LaneThread(f"{name}-lane{index}", config | {"jobs": lane}, place, storage_path)
        for index, lane in enumerate(lanes)
        if lane
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    _raise_failures([thread.error for thread in threads if thread.error is not None], pending)
    return [read_trained(job) for job in jobs]


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
    if not use_gpu:
        env["RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO"] = "1"  # or Ray shows it all GPUs, and counts none of them
    library = Path(sys.prefix) / "lib" / "libiomp5.so"
    if not use_gpu and library.is_file():
        others = [path for path in os.environ.get("LD_PRELOAD", "").split(":") if path and path != str(library)]
        env["LD_PRELOAD"] = ":".join([str(library), *others])
    return env


class _LaneThread(threading.Thread):
    """Drives one lane's Ray Train run. A daemon, so that an interrupted driver can leave."""

    def __init__(self, name: str, config: dict[str, Any], place: LanePlace, storage_path: Path) -> None:
        super().__init__(name=name, daemon=True)
        self._config, self._place, self._storage_path = config, place, storage_path
        self.error: TrainerError | None = None

    def run(self) -> None:
        from ray import train

        api: Any = train  # its type hints are those of the API before v2
        place = self._place
        env = worker_env(place.cpus, use_gpu=place.use_gpu) | dict(place.env_vars)
        try:
            self._trainer()(
                train_lane,
                train_loop_config=self._config,
                scaling_config=api.ScalingConfig(
                    num_workers=place.ranks,
                    use_gpu=place.use_gpu,
                    resources_per_worker=place.takes,
                    placement_strategy="PACK" if place.ranks == 1 else "STRICT_PACK",  # they talk all the time
                ),
                run_config=api.RunConfig(
                    name=self.name,
                    storage_path=str(self._storage_path.absolute()),
                    failure_config=api.FailureConfig(max_failures=place.max_failures),
                    checkpoint_config=api.CheckpointConfig(num_to_keep=1),
                    worker_runtime_env={"env_vars": env},
                    logging_config=api.LoggingConfig(log_level="WARNING"),
                ),
            ).fit()
        except (Exception, SystemExit) as err:  # Ray exits a thread that waits while it shuts down; others go on
            agents = ", ".join(job.agent for job in self._config["jobs"])
            self.error = TrainerError(
                f"training lane {self.name!r} ({agents}) failed with max_failures={place.max_failures}: "
                f"{_root_cause(err)}; mend the cause and resume the run"
            )
            self.error.__cause__ = err

    def _trainer(self) -> Any:
        """TorchTrainer joins a lane's processes. One has none to be joined to, and it would load torch thrice."""
        if self._place.ranks > 1:
            from ray.train.torch import TorchTrainer

            return TorchTrainer
        from trainers.jobs.lane_trainer import LaneTrainer

        return LaneTrainer


def _root_cause(error: BaseException) -> str:
    """The first line of what a worker died of; Ray Train's own message is its whole traceback."""
    failures = getattr(error, "worker_failures", None)
    cause = next(iter(failures.values()), error) if failures else error
    lines = [line for line in str(cause).strip().splitlines() if line.strip()]
    return lines[-1].strip() if lines else repr(cause)


def _raise_failures(lane_errors: Sequence[TrainerError], jobs: Sequence[TrainingJob]) -> None:
    """One error for all that went wrong: jobs that noted a reason first, then lanes that died."""
    noted = [failure_file(job).read_text() for job in jobs if failure_file(job).is_file()]
    reasons = [*noted, *(str(error) for error in lane_errors)]
    if reasons:
        raise TrainerError("; ".join(reasons)) from (lane_errors[0] if lane_errors else None)


def _absolute(job: TrainingJob) -> TrainingJob:
    """Ray Train gives workers a working directory of their own."""
    parent = str(Path(job.parent).absolute()) if job.parent else None
    return msgspec.structs.replace(job, output=str(Path(job.output).absolute()), parent=parent)


def _check(jobs: Sequence[TrainingJob], num_lanes: int | None, place: LanePlace, settings: Settings) -> None:
    if not jobs:
        raise ConfigError("train: there is no agent to train; name at least one in train.agents")
    if num_lanes is not None and num_lanes < 1:
        raise ConfigError(f"train.num_lanes={num_lanes} must be at least 1")
    for what, values in (("name", [job.name for job in jobs]), ("output", [job.output for job in jobs])):
        double = next((value for value in values if values.count(value) > 1), None)
        if double is not None:
            raise ConfigError(f"train: two adapters have the {what} {double!r}; each needs its own")
    if place.ranks > 1 and not trains_whole(settings):
        raise ConfigError(f"train: {place.ranks} processes a lane share whole models alone; set sft.method: full")
