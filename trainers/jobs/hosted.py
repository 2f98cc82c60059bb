"""What hosted fine-tuning leaves beside the adapters of a run: no weights, but whose model it is and how it came about.

The folder of such a version appears whole or not at all, as that of a version that was trained here.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import msgspec

from trainers.record.registry import HOSTED_NAME
from trainers.record.row_log import sync_folder
from trainers.tuning.sft_settings import RESULT_NAME


class HostedModel(msgspec.Struct, frozen=True, kw_only=True):
    """A model that its service keeps. ``service`` is the address of its API, ``base`` what the job started from."""

    service: str
    model: str
    base: str
    job: str
    file: str


class HostedResult(msgspec.Struct, frozen=True, kw_only=True):
    """What one job did. Names that ``SFTResult`` has as well mean the same; times are unix times in seconds."""

    hosted: HostedModel
    steps: int
    rows: int
    refused: int  # rows that could not be written in the service's format
    epochs: float  # 0: the service does not say
    trained_tokens: int  # that are billed, over all epochs; 0: the service does not say
    cost_usd: float
    losses: tuple[float, ...]  # one a step that the job's events tell of
    step_times: tuple[float, ...]
    started_at: float
    finished_at: float
    data_hash: str

    @property
    def figures(self) -> dict[str, float]:
        """What the service has told, by name."""
        found: dict[str, float] = {"steps": self.steps} | ({"final_loss": self.losses[-1]} if self.losses else {})
        told = {"epochs": self.epochs, "trained_tokens": self.trained_tokens, "cost_usd": self.cost_usd}
        return found | {name: value for name, value in told.items() if value}


def write_hosted(folder: Path, result: HostedResult) -> None:
    """Raises: OSError: the disk refuses."""
    draft = folder.with_name(f".{folder.name}.new")
    shutil.rmtree(draft, ignore_errors=True)  # of a run that was killed here
    draft.mkdir(parents=True)
    (draft / HOSTED_NAME).write_bytes(msgspec.json.format(msgspec.json.encode(result.hosted), indent=2) + b"\n")
    (draft / RESULT_NAME).write_bytes(msgspec.json.encode(result))
    for path in (draft / HOSTED_NAME, draft / RESULT_NAME, draft):
        sync_folder(path)
    draft.rename(folder)
    sync_folder(folder.parent)


def read_hosted(folder: Path) -> HostedResult | None:
    """None: the job is not over, or not known to be."""
    file = folder / RESULT_NAME
    return msgspec.json.decode(file.read_bytes(), type=HostedResult) if file.is_file() else None
