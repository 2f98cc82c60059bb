"""The source ``hub``: datasets known by name, or any dataset of the Hugging Face hub, from there or from a file.

The package datasets is imported when a dataset is read through it, and not before. A file as the publisher gives it
needs no network and no such package.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import msgspec

from engine.data.datasets_builtin import DATASETS, Dataset
from engine.data.media import Hygiene
from engine.data.split import Cut, Split
from engine.data.task_files import FileFormat, Placed, rows
from engine.data.task_rows import AnswerIn, AnswerIs, Fields, Scalar, TaskReader, check_format, selected
from protocols.errors import ConfigError, TaskError
from protocols.task import Task


class HubSource(Cut, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A dataset by name. What is None here is as the dataset's configuration has it; "" switches a field off.

    Where both sides come from one split, or from one file, they are cut by a seeded hash of the ids.
    """

    dataset: str
    path: str = ""  # the publisher's file or folder, instead of the hub
    test_path: str = ""
    reference_path: str = ""
    format: FileFormat = ""
    config: str | tuple[str, ...] | None = None
    train_split: str | None = None
    test_split: str | None = None
    revision: str = ""  # a commit of the dataset; "": the newest
    image_folder: str = ""
    image_hygiene: Hygiene = "keep"
    where: dict[str, Scalar | list[Scalar]] = msgspec.field(default_factory=dict)
    question: str | None = None
    answer: str | None = None
    choices: str | tuple[str, ...] | None = None
    choices_in_question: bool | None = None
    id: str | None = None
    images: str | tuple[str, ...] | None = None
    details: dict[str, str] | None = None
    answer_after: str | None = None
    answer_in: AnswerIn | None = None
    answer_is: AnswerIs | None = None
    answer_format: str | None = None
    tolerance: float | str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.dataset.strip():
            raise ValueError(f"dataset is empty; name one of {', '.join(DATASETS)}, or one of the hub")
        if self.answer_format is not None:
            check_format(self.answer_format)
        if self.reference_path and self.test_path:
            raise ValueError("reference_path goes with path alone; leave test_path out")
        if not self.path and (self.test_path or self.reference_path):
            raise ValueError("test_path and reference_path go with path; give path too")

    def load(self) -> Split:
        """Raises: ConfigError: the dataset cannot be had. TaskError: see ``TaskReader`` and ``Cut``."""
        known, first, second = self._known(), self._side(test=False), self._side(test=True)
        where = self.path or self.dataset
        if first == second:
            return self.split(where, self._read(known, first))
        sides = [
            [] if self.only == other else self._read(known, side)
            for side, other in ((first, "test"), (second, "train"))
        ]
        return self.split(where, *sides)

    def digest(self) -> str:
        """SHA-256 of all tasks that can be drawn: a dataset may change behind its name. Raises: as ``load``."""
        digest, known = hashlib.sha256(), self._known()
        for side in dict.fromkeys((self._side(test=False), self._side(test=True))):
            for task in sorted(self._read(known, side), key=lambda task: task.id):
                digest.update(msgspec.msgpack.encode(task))
        return digest.hexdigest()

    def fields(self) -> Fields:
        """The configuration's fields, with those that the recipe sets."""
        told = {field.name: getattr(self, field.name) for field in msgspec.structs.fields(Fields)}
        return msgspec.structs.replace(
            self._known().fields, **{name: value for name, value in told.items() if value is not None}
        )

    def _known(self) -> Dataset:
        return DATASETS.get(self.dataset) or Dataset(hub=self.dataset, fields=Fields())

    def _side(self, *, test: bool) -> tuple[str, str]:
        """Where the tasks of a side are: a file (or folder) and a split."""
        known = self._known()
        split = self.test_split if test else self.train_split
        path = self.test_path if test and self.test_path else self.path
        in_files = path and not Path(path).is_dir()
        return path, "" if in_files else split or (known.test_split if test else known.train_split)

    def _read(self, known: Dataset, side: tuple[str, str]) -> list[Task]:
        path, split = side
        fields = self.fields()
        try:
            check_format(fields.answer_format)
        except ValueError as err:
            raise ConfigError(f"tasks.dataset={self.dataset!r}: {err}") from err
        found = self._rows(known, Path(path), split) if path else self._hub_rows(known, split)
        mended = ((place, row) for place, raw in found if (row := known.mend(dict(raw))) is not None)
        near = Path(path) if path and Path(path).is_dir() else Path(path).parent
        reader = TaskReader(
            fields,
            self.dataset if self.dataset in DATASETS else self.dataset.rstrip("/").rpartition("/")[2],
            image_folder=Path(self.image_folder) if self.image_folder else near,
            hygiene=self.image_hygiene,
        )
        source = path or f"{self.dataset} ({split})"
        # What a publisher has twice with two answers is not for the user to mend: either counts.
        tasks = reader.read(selected(mended, self.where, source), several_answers=True)
        if not tasks:
            raise TaskError(f"{source}: holds no tasks")
        return tasks

    def _rows(self, known: Dataset, path: Path, split: str) -> Iterator[Placed]:
        if path.is_dir():
            return self._folder_rows(known, path, split)
        reference = Path(self.reference_path) if self.reference_path else None
        file_format = self.format or ("pairs" if known.pairs and reference is None else "")
        items = known.items if path.suffix.lower() == ".json" else ""
        return rows(path, file_format=file_format, items=items, reference=reference)

    def _configs(self, known: Dataset) -> tuple[str, ...]:
        if self.config is None:
            return known.configs
        return (self.config,) if isinstance(self.config, str) else self.config

    def _hub_rows(self, known: Dataset, split: str) -> Iterator[Placed]:
        if not known.hub:
            raise ConfigError(f"tasks.dataset={self.dataset!r} is on no hub we know of; give its file as tasks.path")
        for config in self._configs(known):
            place = " ".join(filter(None, (known.hub, config, split)))
            with _told(place, self.dataset) as datasets:
                table = datasets.load_dataset(known.hub, config or None, split=split, revision=self.revision or None)
            yield from _table_rows(datasets, table, place)

    def _folder_rows(self, known: Dataset, path: Path, split: str) -> Iterator[Placed]:
        """A folder that ``save_to_disk`` wrote, or a copy of the dataset's repository."""
        saved = (path / "dataset_dict.json").is_file() or (path / "state.json").is_file()
        for config in ("",) if saved else self._configs(known):
            place = " ".join(filter(None, (str(path), config, split)))
            with _told(place, self.dataset) as datasets:
                if not saved:
                    table = datasets.load_dataset(str(path), config or None, split=split)
                else:
                    table = datasets.load_from_disk(str(path))
                    if isinstance(table, datasets.DatasetDict):
                        if split not in table:
                            raise ConfigError(
                                f"{path}: has the splits {', '.join(table)}, not {split!r}; set the split"
                            )
                        table = table[split]
            yield from _table_rows(datasets, table, place)


def _table_rows(datasets: Any, table: Any, place: str) -> Iterator[Placed]:
    """Row by row, images as the bytes they came in."""
    plain = datasets.Image(decode=False)
    for name, feature in table.features.items():
        if isinstance(feature, datasets.Image):
            table = table.cast_column(name, plain)
        elif isinstance(getattr(feature, "feature", None), datasets.Image):
            table = table.cast_column(name, datasets.List(plain))
    yield from ((f"{place}, row {number}", row) for number, row in enumerate(table, 1))


@contextlib.contextmanager
def _told(place: str, name: str) -> Iterator[Any]:
    """The package, quiet, whose failures become one sentence."""
    try:
        with _known_offline():
            import datasets
            import pyarrow
    except ImportError as err:
        raise ConfigError(
            f"tasks.dataset={name!r} needs the package {err.name}, which is not installed; install moot with its extra "
            "train, or give tasks.path the dataset's file"
        ) from err
    loggers = [logging.getLogger(part) for part in ("datasets", "huggingface_hub")]
    levels, bars = [logger.level for logger in loggers], datasets.are_progress_bars_disabled()
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    datasets.disable_progress_bars()
    try:
        yield datasets
    except (
        OSError,
        ValueError,
        KeyError,
        RuntimeError,
        pyarrow.ArrowException,
        datasets.exceptions.DatasetsError,
    ) as err:
        said = " ".join(str(err).split())[:300]
        raise ConfigError(
            f"tasks.dataset={name!r}: {place} cannot be loaded: {said}; where there is no network give tasks.path the "
            "dataset's file or folder, or set HF_HOME to a cache that was filled where there is one"
        ) from err
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
        if not bars:
            datasets.enable_progress_bars()


@contextlib.contextmanager
def _known_offline() -> Iterator[None]:
    """Where the hub's name cannot be looked up, its libraries are told so: they would try for half a minute.

    They read the setting once, when they are first imported; what they have in their cache they still find.
    """
    host = urlsplit(os.environ.get("HF_ENDPOINT") or "https://huggingface.co").hostname or "huggingface.co"
    proxies = any(os.environ.get(name) for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"))
    if "HF_HUB_OFFLINE" in os.environ or proxies or _resolves(host):
        yield
        return
    os.environ["HF_HUB_OFFLINE"] = "1"
    try:
        yield
    finally:
        del os.environ["HF_HUB_OFFLINE"]


def _resolves(host: str) -> bool:
    try:
        socket.getaddrinfo(host, 443)
    except OSError:
        return False
    return True
