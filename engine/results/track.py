"""What a run reached, told as it gets there: always to ``figures.jsonl`` in its folder, and to the recipe's trackers.

All of it is read from what a stage has left that is done. So each figure is told once, however often the run was
interrupted, and nothing on the way of a message or of a training's step knows of it.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import queue
import threading
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec

from engine.record.folder import RunFolder
from engine.record.stage_names import BEFORE_PREFERENCES, iteration_of
from engine.results.compare import diversity_of, side_of
from engine.results.trackers import TRACKERS, About, Point, Tracker
from protocols.errors import ConfigError, MootError
from protocols.statistics import Statistics
from trainers.record.registry import AdapterRecord, Registry
from trainers.tuning.sft_settings import RESULT_NAME

log = logging.getLogger("moot.track")

FILE_NAME = "figures.jsonl"
CLOSE_S = 60.0  # that a tracker may take at the end, an upload included
PER_STEP = {"losses": "loss", "learning_rates": "learning_rate", "step_tokens": "tokens"}
"""Lists of a training's result with an entry a step -> what an entry is called; others keep their name."""

TRAININGS = ("train", "prefer")  # begin the names of such stages

Warn = Callable[[str], None]


def check_trackers(names: Sequence[str]) -> None:
    """Raises: ConfigError: the library of one is not installed."""
    for name in names:
        spec = importlib.util.find_spec(name)
        if spec is None or spec.origin is None:  # none: a folder of that name where moot was started
            raise ConfigError(f"run.track: {name} is not installed; pip install 'moot[{name}]', or leave it out")


@contextmanager
def tracked(folder: RunFolder, names: Sequence[str], warn: Warn) -> Iterator[Track]:
    """While inside, the figures of every stage that is marked as done are told."""
    track = Track(folder, names, warn)
    folder.on_done = track.follow
    try:
        yield track
    finally:
        folder.on_done = None
        track.close()


class Track:
    """Follows one run; see ``tracked``. What fails here is warned of, and harms nothing else.

    A figure counts as told once it is in the file: what a tracker loses to a crash is there.
    """

    def __init__(self, folder: RunFolder, names: Sequence[str], warn: Warn) -> None:
        self._folder, self._warn = folder, warn
        self._totals: dict[str, float] | None = None
        about = About(id=folder.manifest.id, folder=folder.path, recipe=folder.manifest.recipe)
        self._lines = [_Line(name, about, warn) for name in names]
        self._file = _FigureFile(folder.path / FILE_NAME)
        for stage in [*folder.manifest.done]:  # of a run that was interrupted in between
            self.follow(stage)

    def follow(self, stage: str) -> None:
        """Tell of a stage that is done, once."""
        try:
            if stage not in self._file.told:
                points = list(points_of(self._folder, stage))
                self._file.add(stage, points)
                for line in self._lines:
                    line.do(lambda tracker: tracker.log(points))
        except (OSError, MootError, msgspec.MsgspecError) as err:
            self._warn(f"warning: the figures of {stage} are in no tracker: {err}")

    def finish(self, outcome: Mapping[str, Any]) -> None:
        """The run came to its end with this."""
        kinds = (int, float)
        self._totals = {name: float(value) for name, value in outcome.items() if type(value) in kinds}

    def close(self) -> None:
        """Wait a bounded time for the trackers; of a run that stopped before its end they are told so."""
        totals, done = self._totals or {}, self._totals is not None
        for line in self._lines:
            line.do(lambda tracker: tracker.close(totals, done=done))
            line.end()
        for line in self._lines:
            line.join(CLOSE_S)
            if line.is_alive():
                self._warn(f"warning: run.track: {line.name} took more than {CLOSE_S:g} s to end and was left")


class _Line(threading.Thread):
    """A tracker in a thread of its own: one that hangs holds up nobody, one that fails is told no more."""

    def __init__(self, name: str, about: About, warn: Warn) -> None:
        super().__init__(name=name, daemon=True)
        self._about, self._warn = about, warn
        self._waiting: queue.SimpleQueue[Callable[[Tracker], None] | None] = queue.SimpleQueue()
        self.start()

    def do(self, work: Callable[[Tracker], None]) -> None:
        self._waiting.put(work)

    def end(self) -> None:
        self._waiting.put(None)

    def run(self) -> None:
        try:
            tracker: Tracker = TRACKERS[self.name](self._about)
            while (work := self._waiting.get()) is not None:
                work(tracker)
        except Exception as err:  # whatever a tracker's library raises
            log.warning("tracker %s failed", self.name, exc_info=err)
            said = " ".join(str(err).split()) or type(err).__name__
            self._warn(f"warning: run.track: {self.name} failed and is off: {said}; {FILE_NAME} has all figures")


class _FigureFile:
    """JSON lines, one a point. One behind those of a stage says that they are whole; what follows the last is torn."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.told: set[str] = set()
        whole = read = 0
        for line in path.read_bytes().splitlines(keepends=True) if path.exists() else ():
            read += len(line)
            if line.startswith(b'{"told":') and line.endswith(b"}\n"):
                self.told.add(msgspec.json.decode(line)["told"])
                whole = read
        if whole < read:
            os.truncate(path, whole)

    def add(self, stage: str, points: Sequence[Point]) -> None:
        with open(self._path, "ab") as file:
            file.writelines(msgspec.json.encode(line) + b"\n" for line in [*points, {"told": stage}])
            file.flush()
            os.fsync(file.fileno())
        self.told.add(stage)


def points_of(folder: RunFolder, stage: str) -> Iterator[Point]:
    """All figures of a stage that is done."""
    kind, _, _ = stage.partition("-")
    if kind in TRAININGS:
        done = [names for name in folder.manifest.done if name.startswith(f"{kind}-") for names in _made(folder, name)]
        for name in _made(folder, stage):
            yield from _trained(Registry(folder.path / "adapters"), name, kind, done)
    else:
        series = kind + (BEFORE_PREFERENCES if stage.endswith(BEFORE_PREFERENCES) else "")
        yield from _debated(folder, series, stage, iteration_of(stage))


def _made(folder: RunFolder, stage: str) -> Sequence[str]:
    """Names of the adapters that a training made."""
    names: Sequence[str] = folder.manifest.done[stage].get("adapters", ())
    return names


def _trained(registry: Registry, name: str, kind: str, alike: Collection[str]) -> Iterator[Point]:
    """A point a step, counted on from the agent's earlier versions that were trained the same way."""
    record = registry.get(name)
    earlier = [one for one in registry.list() if one.agent == record.agent and one.version < record.version]
    offset = sum(len(_result(registry, one)["losses"]) for one in earlier if one.name in alike)
    result = _result(registry, record)
    steps = len(result["losses"])
    lists = {key: value for key, value in result.items() if isinstance(value, list) and len(value) == steps}
    times = lists.pop("step_times", [record.created_at] * steps)
    for number, at in enumerate(times):
        figures = {PER_STEP.get(key, key): float(value[number]) for key, value in lists.items()}
        yield Point(series=f"{kind}/{record.agent}", step=offset + number + 1, at=at, figures=figures)


def _result(registry: Registry, record: AdapterRecord) -> dict[str, Any]:
    found: dict[str, Any] = msgspec.json.decode((registry.folder_of(record) / RESULT_NAME).read_bytes())
    return found


def _debated(folder: RunFolder, series: str, stage: str, step: int) -> Iterator[Point]:
    """One point: accuracies, agreement and wording by round, what a debate took."""
    results = folder.path / "results"
    if not (file := results / f"{stage}-statistics.json").exists():
        return
    figures: dict[str, float | None] = {}
    if (results / f"{stage}.json").exists():
        side = side_of(folder, stage)
        for figure in side.evaluation.figures:
            figures |= {f"{figure.name}": figure.accuracy, f"{figure.name}, low": figure.low}
            figures |= {f"{figure.name}, high": figure.high}
        figures |= msgspec.structs.asdict(side.cost)
        diversity = side.diversity
    else:
        diversity = diversity_of(msgspec.json.decode(file.read_bytes(), type=Statistics))
    for number, found in diversity.items():
        told = msgspec.structs.asdict(found).items()
        figures |= {f"{name.replace('_', ' ')}, round {number}": value for name, value in told}
    known = {name: value for name, value in figures.items() if value is not None}
    yield Point(series=series, step=step, at=file.stat().st_mtime, figures=known)
