"""Rows on their way to a training that needs them all first: one file an agent, a row a line, whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TypeVar

import msgspec

from protocols.errors import TrainerError
from trainers.record.row_log import sync_folder

R = TypeVar("R", bound=msgspec.Struct)


def write_rows(folder: Path, agent: str, rows: Iterable[msgspec.Struct]) -> None:
    """Replaces the agent's file, if there is one; durable when it returns."""
    folder.mkdir(parents=True, exist_ok=True)
    file = _file_of(folder, agent)
    draft = file.with_suffix(".new")
    with open(draft, "wb") as out:
        for row in rows:
            out.write(msgspec.json.encode(row) + b"\n")
        out.flush()
        os.fsync(out.fileno())
    draft.replace(file)
    sync_folder(folder)


def read_rows(folder: Path, agent: str, kind: type[R]) -> Iterator[R]:
    """Raises: TrainerError: there is no such file, or it is damaged."""
    file = _file_of(folder, agent)
    decode = msgspec.json.Decoder(kind).decode
    try:
        with open(file, "rb") as lines:
            for number, line in enumerate(lines, 1):
                try:
                    yield decode(line)
                except msgspec.MsgspecError as err:
                    what = kind.__name__.lower()
                    raise TrainerError(f"{file}:{number}: not a row ({what}): {err}; select the rows again") from err
    except OSError as err:
        raise TrainerError(f"{file}: cannot be read: {err.strerror}; select the rows again") from err


def _file_of(folder: Path, agent: str) -> Path:
    return folder / f"{agent}.jsonl"
