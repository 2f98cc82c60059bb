"""One adapter to train, and where its training stands: a folder that appears whole, or the reason why there is none."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import msgspec

from protocols.errors import MootError, TrainerError
from trainers.jobs.hosted import HostedResult
from trainers.record.registry import AdapterRecord, Registry, parse_name
from trainers.tuning.magdi_settings import MAGDiResult, MAGDiSettings
from trainers.tuning.sft_settings import RESULT_NAME, SFTResult, SFTSettings
from trainers.tuning.tree_dpo_settings import TreeDPOResult, TreeDPOSettings

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


def job_for(
    registry: Registry, name: str, *, method: Method = "sft", parent: AdapterRecord | None = None
) -> TrainingJob:
    """The job that trains this version, in the registry's folder, from fresh weights or on from ``parent``."""
    agent, _ = parse_name(name)
    before = str(registry.folder_of(parent)) if parent else None
    return TrainingJob(agent=agent, method=method, name=name, output=str(registry.folder_for(name)), parent=before)


class TrainedAdapter(msgspec.Struct, frozen=True, kw_only=True):
    """An adapter in PEFT layout at ``path``, or a whole model, or the record of one that its service keeps.

    ``result`` says how its training went.
    """

    agent: str
    name: str
    path: str
    parent: str | None
    result: Result | HostedResult


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


def failure_file(job: TrainingJob) -> Path:
    """Where its worker says why it could not be trained."""
    return Path(f"{job.output}.failed")


def note_failure(job: TrainingJob, error: MootError) -> None:
    """For whoever started the training, who is told when the lane has ended."""
    failure_file(job).parent.mkdir(parents=True, exist_ok=True)
    failure_file(job).write_text(str(error))
