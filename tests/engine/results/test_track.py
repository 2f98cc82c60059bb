"""Figures are told once, to the run's own file first, and a tracker that fails harms nobody."""

from __future__ import annotations

import importlib.util
import json
import struct
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

import msgspec
import pytest

from engine.record.folder import RunFolder
from engine.results import track
from engine.results.track import FILE_NAME, check_trackers, points_of, tracked
from engine.results.trackers import TRACKERS, About, Point, flat
from protocols.errors import ConfigError
from tests.engine.results.test_adapters import add
from tests.engine.results.test_compare import AFTER, BEFORE, make_run
from tests.integration.command import waited
from trainers.record.registry import Registry
from trainers.tuning.sft_settings import SFTResult


class Listener:
    """A tracker that keeps what it is told, at a place that outlives it."""

    heard: ClassVar[list[Any]] = []

    def __init__(self, about: About) -> None:
        self.heard.append(about.id)

    def log(self, points: Sequence[Point]) -> None:
        self.heard.append([(point.series, point.step) for point in points])

    def close(self, totals: dict[str, float], *, done: bool) -> None:
        self.heard.append((totals, done))


class Broken(Listener):
    def log(self, points: Sequence[Point]) -> None:
        raise RuntimeError("no such\nplace")


class Hanging(Listener):
    let_go = threading.Event()

    def log(self, points: Sequence[Point]) -> None:
        self.let_go.wait(30)


@pytest.fixture(autouse=True)
def _listen(monkeypatch: pytest.MonkeyPatch) -> None:
    Listener.heard = []
    for name, kind in {"listener": Listener, "broken": Broken, "hanging": Hanging}.items():
        monkeypatch.setitem(TRACKERS, name, kind)


def lines(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / FILE_NAME).read_text().splitlines()]


def trained(folder: RunFolder, version: int, losses: tuple[float, ...]) -> None:
    """An adapter of ada with its result, as a training leaves it."""
    path = folder.path / "adapters" / "ada" / f"v{version}"
    path.mkdir(parents=True)
    (path / "adapter_model.safetensors").touch()
    (path / "adapter_config.json").touch()
    result = SFTResult(
        steps=len(losses),
        rows=2,
        refused=0,
        rows_seen=4,
        completion_tokens=60,
        losses=losses,
        learning_rates=(0.5,) * len(losses),
        step_times=tuple(100.0 + n for n in range(len(losses))),
        step_tokens=tuple(20 * (n + 1) for n in range(len(losses))),
        started_at=99.0,
        first_step_at=100.0,
        finished_at=110.0,
        data_hash="d",
    )
    (path / "training.json").write_bytes(msgspec.json.encode(result))
    add(Registry(folder.path / "adapters"), f"ada@run-v{version}", path, "embedded", "b" * 64)


def test_steps_are_counted_on_over_iterations(tmp_path: Path) -> None:
    folder = RunFolder.open(make_run(tmp_path / "run", {}))
    trained(folder, 1, (3.0, 2.0))
    trained(folder, 2, (1.5,))
    folder.mark_done("train-1", {"adapters": ["ada@run-v1"]})
    folder.mark_done("train-2", {"adapters": ["ada@run-v2"]})
    first = list(points_of(folder, "train-1"))
    assert first[1] == Point(
        series="train/ada", step=2, at=101.0, figures={"loss": 2.0, "learning_rate": 0.5, "tokens": 40.0}
    )
    assert [(point.step, point.figures["loss"]) for point in points_of(folder, "train-2")] == [(3, 1.5)]


def test_an_evaluation_is_one_point_with_diversity_and_cost(tmp_path: Path) -> None:
    folder = RunFolder.open(make_run(tmp_path / "run", {"eval-2": AFTER}))
    (point,) = points_of(folder, "eval-2")
    assert (point.series, point.step) == ("eval", 2)
    assert point.figures["final vote"] == 1.0 and point.figures["final vote, low"] < 1.0
    assert point.figures["consensus, round 0"] == pytest.approx(2 / 3)
    assert point.figures["wording distance, round 1"] == 0.0
    assert point.figures["replies"] == 6.0 and point.figures["usd"] == 0.25


def test_each_stage_is_told_once_however_often_the_run_is_taken_up(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", {"eval-0": BEFORE})
    with tracked(RunFolder.open(run), ["listener"], pytest.fail):
        pass  # stopped before its end
    assert Listener.heard == ["run", [("eval", 0)], ({}, False)]
    with (run / FILE_NAME).open("a") as file:
        file.write('{"series":"eval","step":1,"at":0,"figu')  # a crash
    Listener.heard.clear()
    folder = RunFolder.open(make_run(tmp_path / "next", {"eval-0": BEFORE, "eval-1": AFTER}))
    (run / FILE_NAME).rename(folder.path / FILE_NAME)
    with tracked(folder, ["listener"], pytest.fail) as following:
        folder.mark_done("eval-1", folder.manifest.done["eval-1"])
        following.finish({"run": "r", "cost_usd": 0.5, "closed": 3, "before": {}, "ok": True})
    assert Listener.heard == ["next", [("eval", 1)], ({"cost_usd": 0.5, "closed": 3.0}, True)]
    told = lines(folder.path)
    assert [line.get("told", line.get("step")) for line in told] == [0, "eval-0", 1, "eval-1"]


def test_a_tracker_that_fails_is_warned_of_once_and_the_others_go_on(tmp_path: Path) -> None:
    folder = RunFolder.open(make_run(tmp_path / "run", {"eval-0": BEFORE, "eval-1": AFTER}))
    warnings: list[str] = []
    with tracked(folder, ["broken", "listener"], warnings.append):
        pass
    assert warnings == ["warning: run.track: broken failed and is off: no such place; figures.jsonl has all figures"]
    assert Listener.heard.count([("eval", 1)]) == 1 and len(lines(folder.path)) == 4


def test_a_tracker_that_hangs_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(track, "CLOSE_S", 0.05)
    warnings: list[str] = []
    with tracked(RunFolder.open(make_run(tmp_path / "run", {"eval-0": BEFORE})), ["hanging"], warnings.append):
        pass
    Hanging.let_go.set()
    assert warnings == ["warning: run.track: hanging took more than 0.05 s to end and was left"]


def test_what_cannot_be_read_is_warned_of(tmp_path: Path) -> None:
    folder = RunFolder.open(make_run(tmp_path / "run", {"eval-0": BEFORE}))
    (folder.path / "results" / "eval-0.json").write_text("{")
    warnings: list[str] = []
    with tracked(folder, [], warnings.append):
        pass
    (warning,) = warnings
    assert warning.startswith("warning: the figures of eval-0 are in no tracker: ")


def test_a_library_that_is_missing_is_told_before_anything_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"run.track: wandb is not installed; pip install 'moot\[wandb\]'"):
        check_trackers(["wandb"])
    check_trackers([])


def test_recipes_are_flattened_for_those_who_know_no_depth() -> None:
    assert flat({"a": {"b": 1, "c": [2, 3]}, "d": None}) == [("a.b", "1"), ("a.c", "[2, 3]"), ("d", "None")]


# --- through their own libraries, where these are installed


def points() -> list[Point]:
    return [
        Point(series="train/ada", step=step, at=1000.0 + step, figures={"loss": 1.0 / step, "tokens": 10.0 * step})
        for step in (1, 2)
    ] + [Point(series="eval", step=1, at=1010.0, figures={"vote, round 0": 0.5})]


def tell(kind: type[Any], folder: Path, *, later_s: float = 0.0) -> None:
    """A run that was interrupted, taken up ``later_s`` later and finished."""
    about = About(id="run-1", folder=folder, recipe={"name": "r", "sft": {"rank": 4}})
    first = kind(about)
    first.log(points()[:2])
    first.close({}, done=False)
    time.sleep(later_s)
    again = kind(about)
    again.log(points()[2:])
    again.close({"cost_usd": 0.25}, done=True)


def test_tensorboard_reads_what_was_told(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    tell(TRACKERS["tensorboard"], tmp_path)
    found = EventAccumulator(str(tmp_path / "tensorboard"))
    found.Reload()
    losses = [(event.step, event.wall_time, event.value) for event in found.Scalars("train/ada/loss")]
    assert losses == [(1, 1001.0, 1.0), (2, 1002.0, 0.5)]
    assert [event.value for event in found.Scalars("eval/vote, round 0")] == [0.5]
    assert [event.value for event in found.Scalars("run/cost_usd")] == [0.25]


def wandb_records(data: bytes) -> Iterator[bytes]:
    """What an offline run's file holds: a head of 7 bytes, then LevelDB's log format, blocks of 32 KiB."""
    at, parts = 7, b""
    while at + 7 <= len(data):
        if (left := 32768 - at % 32768) < 7:  # no room for a head: the block is filled up
            at += left
            continue
        _, length, kind = struct.unpack_from("<IHB", data, at)
        if at + 7 + length > len(data):
            return  # it is still being written
        parts += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or its last part
            yield parts
            parts = b""


@pytest.mark.filterwarnings("default")
def test_wandb_keeps_what_was_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from wandb.proto.wandb_internal_pb2 import Record

    monkeypatch.setenv("WANDB_MODE", "offline")
    tell(TRACKERS["wandb"], tmp_path, later_s=1.0)  # it names folders by the second
    files = sorted(tmp_path.glob("wandb/offline-run-*/*.wandb"), key=lambda file: file.parent.name)

    def records(file: Path) -> list[Record]:
        return [Record.FromString(data) for data in wandb_records(file.read_bytes())]

    # its own process may still write when the run is finished
    assert waited(lambda: all(records(file)[-1:] and records(file)[-1].HasField("exit") for file in files), 60.0)
    rows: list[dict[str, Any]] = []
    totals: dict[str, Any] = {}
    runs = set()
    for record in (found for file in files for found in records(file)):
        kind = record.WhichOneof("record_type")
        if kind == "history":
            items = {item.key or "/".join(item.nested_key): item.value_json for item in record.history.item}
            rows.append({key: json.loads(value) for key, value in items.items()})
        elif kind == "run":
            runs.add((record.run.project, record.run.run_id))
        elif kind == "summary":
            totals |= {item.key: json.loads(item.value_json) for item in record.summary.update if item.key}
    assert runs == {("moot", "run-1")}
    assert [(row["train/ada/step"], row["train/ada/loss"]) for row in rows[:2]] == [(1, 1.0), (2, 0.5)]
    assert rows[2]["eval/vote, round 0"] == 0.5 and rows[0]["train/ada/time"] == 1001.0
    assert totals["cost_usd"] == 0.25
