"""The adapters of a run and where they come from: one JSON file, replaced whole at every change."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

import msgspec

from protocols.errors import TrainerError
from trainers.record.row_log import sync_folder

FILE_NAME = "registry.json"
WEIGHTS_NAME = "adapter_model.safetensors"
CONFIG_NAME = "adapter_config.json"
MODEL_CONFIG_NAME = "config.json"  # in the place of both, beside the weights of a whole model
HOSTED_NAME = "hosted_model.json"  # in the place of both, where a service keeps the model
_NAME = re.compile(r"(?P<agent>[^@]+)@(?P<run>[^@]+)-v(?P<version>[1-9][0-9]*)")


class AdapterRecord(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One version of one agent's adapter. Hashes are SHA-256 in hex; ``created_at`` is a unix time in seconds."""

    name: str  # "<agent>@<run>-v<version>"
    agent: str
    version: int
    path: str  # its folder; as seen from the registry's folder where it lies inside
    checksum: str  # of its weights; of a hosted version, of the file that names its model
    base_model: str
    base_hash: str  # of the base's weights; of a hosted version, of the base's name
    data_hash: str
    rule: str
    rows: int
    recipe_hash: str
    created_at: float
    parent: str | None = None  # name of the adapter that the training started from; None: from fresh weights
    metrics: dict[str, float] = {}
    model: str = ""  # a hosted version: its model's id at the service that trained and keeps it
    whole: bool = False  # a model that stands by itself: every weight of the base was trained

    @property
    def files(self) -> tuple[str, ...]:
        """In its folder; the checksum is the first one's, or that of a whole model's weights."""
        if self.whole:
            return (MODEL_CONFIG_NAME,)
        return (HOSTED_NAME,) if self.model else (WEIGHTS_NAME, CONFIG_NAME)

    def checksum_in(self, folder: Path) -> str:
        """What the checksum would be of the files there. Raises: TrainerError: a whole model has no weights there."""
        return weights_hash(folder) if self.whole else file_hash(folder / self.files[0])


def adapter_name(agent: str, run: str, version: int) -> str:
    """The one spelling of an adapter's name. Raises: TrainerError: it could not be read back."""
    name = f"{agent}@{run}-v{version}"
    if not _NAME.fullmatch(name) or parse_name(name) != (agent, version):
        raise TrainerError(f"{name!r} cannot name an adapter; use agent and run names without '@' and versions from 1")
    return name


def parse_name(name: str) -> tuple[str, int]:
    """Returns: agent and version. Raises: TrainerError: not an adapter's name."""
    match = _NAME.fullmatch(name)
    if match is None:
        raise TrainerError(f"{name!r} is not an adapter's name; name it '<agent>@<run>-v<version>'")
    return match["agent"], int(match["version"])


def file_hash(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def hosted_base_hash(service: str, base: str) -> str:
    """What stands for the weights of a base that nobody sees: whose it is, and its name."""
    return hashlib.sha256(f"{service}\0{base}".encode()).hexdigest()


def weights_hash(folder: Path) -> str:
    """SHA-256 over a model's weight files, names and contents. Raises: TrainerError: there are none."""
    files = sorted([*folder.glob("*.safetensors"), *folder.glob("*.bin"), *folder.glob("*.gguf")])
    if not files:
        raise TrainerError(f"there are no weights in {folder}; give a model folder in Hugging Face layout")
    digest = hashlib.sha256()
    for file in files:
        digest.update(f"{file.name}\0{file_hash(file)}\0".encode())
    return digest.hexdigest()


class Registry:
    """All adapters of a run, in the order they were added. One process writes at a time: the one that drives the run.

    Raises: TrainerError: the file in the folder cannot be read.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder.absolute()
        self._folder.mkdir(parents=True, exist_ok=True)
        self._records: dict[str, AdapterRecord] = {}
        file = self._folder / FILE_NAME
        if file.is_file():
            try:
                records = msgspec.json.decode(file.read_bytes(), type=list[AdapterRecord])
            except msgspec.MsgspecError as err:
                raise TrainerError(
                    f"{file} is not a registry of adapters: {err}; restore it or use another folder"
                ) from err
            self._records = {record.name: record for record in records}

    def add(
        self,
        name: str,
        path: Path,
        *,
        base_model: str,
        base_hash: str,
        data_hash: str,
        rule: str,
        rows: int,
        recipe_hash: str,
        created_at: float,
        parent: str | None = None,
        metrics: Mapping[str, float] | None = None,
        model: str = "",
        whole: bool = False,
    ) -> AdapterRecord:
        """Enter an adapter; durable when it returns.

        Args:
            model: the id of a model that its service keeps; "" for weights in ``path``.
            whole: they are those of a whole model.
        Raises: TrainerError: the name was used before, files are missing, the parent is unknown, or the agent's
            earlier adapters belong to another base.
        """
        agent, version = parse_name(name)
        if name in self._records:
            raise TrainerError(f"adapter {name!r} is registered already; a name is never used twice: raise the version")
        if parent is not None:
            _check_base(self._get(parent), base_model, base_hash)
        if (before := self._newest(agent)) is not None:
            _check_base(before, base_model, base_hash)
        record = AdapterRecord(
            name=name,
            agent=agent,
            version=version,
            path=self._stored(path),
            checksum="",
            base_model=base_model,
            base_hash=base_hash,
            data_hash=data_hash,
            rule=rule,
            rows=rows,
            recipe_hash=recipe_hash,
            created_at=created_at,
            parent=parent,
            metrics=dict(metrics or {}),
            model=model,
            whole=whole,
        )
        for file in record.files:
            if not (path / file).is_file():
                raise TrainerError(f"adapter {name!r}: {path / file} is missing; train it again")
        record = msgspec.structs.replace(record, checksum=record.checksum_in(path))
        self._write([*self._records.values(), record])
        self._records[name] = record
        return record

    def get(self, name: str, *, base_hash: str | None = None, base_model: str = "the model in use") -> AdapterRecord:
        """An adapter by name, its files checked against what was registered.

        Args:
            base_hash: of the model it is meant for; None if any will do.
            base_model: what that model is called.
        Raises: TrainerError: unknown, changed or missing on disk, or made for another base.
        """
        record = self._get(name)
        if base_hash is not None:
            _check_base(record, base_model, base_hash)
        self.verify(record)
        return record

    def latest(self, agent: str, *, base_hash: str | None = None) -> AdapterRecord | None:
        """The agent's adapter of the highest version, checked as by ``get``; None if it has none."""
        newest = self._newest(agent)
        return None if newest is None else self.get(newest.name, base_hash=base_hash)

    def list(self) -> tuple[AdapterRecord, ...]:
        """All adapters, oldest first."""
        return tuple(self._records.values())

    def lineage(self, name: str) -> tuple[AdapterRecord, ...]:
        """The adapter, its parent, its parent's parent, down to fresh weights. Raises: TrainerError: unknown."""
        line = [self._get(name)]
        while (parent := line[-1].parent) is not None:
            line.append(self._get(parent))
        return tuple(line)

    @property
    def next_version(self) -> int:
        """One that nobody has yet: who learns at once shares a version."""
        return 1 + max((record.version for record in self._records.values()), default=0)

    def folder_for(self, name: str) -> Path:
        """Where the files of a new adapter go. Raises: TrainerError: not an adapter's name."""
        agent, version = parse_name(name)
        return self._folder / agent / f"v{version}"

    def folder_of(self, record: AdapterRecord) -> Path:
        return self._folder / record.path

    def verify(self, record: AdapterRecord) -> None:
        """Raises: TrainerError: the adapter's files are missing, or not those that were registered."""
        folder = self.folder_of(record)
        for file in record.files:
            if not (folder / file).is_file():
                raise TrainerError(f"adapter {record.name!r}: {folder / file} is missing; restore it or train it again")
        if record.checksum_in(folder) != record.checksum:
            what = (
                f"the model in {folder} is not the one"
                if record.whole
                else f"{folder / record.files[0]} is not the file"
            )
            raise TrainerError(f"adapter {record.name!r}: {what} that was registered; restore it or train it again")

    def _get(self, name: str) -> AdapterRecord:
        if name not in self._records:
            known = ", ".join(self._records) or "none yet"
            raise TrainerError(f"there is no adapter {name!r} in {self._folder / FILE_NAME}; it knows: {known}")
        return self._records[name]

    def _newest(self, agent: str) -> AdapterRecord | None:
        mine = [record for record in reversed(self._records.values()) if record.agent == agent]
        return max(mine, key=lambda record: record.version, default=None)

    def _stored(self, path: Path) -> str:
        """Relative inside the registry's folder, so that a run can be moved; absolute elsewhere."""
        path = path.absolute()
        return str(path.relative_to(self._folder)) if path.is_relative_to(self._folder) else str(path)

    def _write(self, records: Iterable[AdapterRecord]) -> None:
        temporary = self._folder / f".{FILE_NAME}.new"
        with open(temporary, "wb") as file:
            file.write(msgspec.json.format(msgspec.json.encode([*records]), indent=2))
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(self._folder / FILE_NAME)
        sync_folder(self._folder)


def _check_base(record: AdapterRecord, base_model: str, base_hash: str) -> None:
    if record.base_hash != base_hash:
        raise TrainerError(
            f"adapter {record.name!r} was trained on base {record.base_model!r} (weights {record.base_hash[:12]}), "
            f"not on {base_model!r} (weights {base_hash[:12]}); use that base, or train the agent anew in another run"
        )
