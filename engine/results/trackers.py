"""Where figures go besides the run's own file: TensorBoard, Weights & Biases, MLflow, each through its own library.

A tracker is told of points and of the end, from one thread. What it raises is for ``engine.results.track`` to catch.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import msgspec

PROJECT = "moot"
MAX_BATCH = 1000  # metrics that MLflow takes in one request
MAX_PARAM = 500  # letters of a parameter's value there


class Point(msgspec.Struct, frozen=True, kw_only=True):
    """Figures that belong together. ``series`` counts its own steps: an agent's training, the iterations."""

    series: str
    step: int
    at: float  # unix time in seconds
    figures: dict[str, float]


class About(msgspec.Struct, frozen=True, kw_only=True):
    """The run that is tracked."""

    id: str
    folder: Path
    recipe: Mapping[str, Any]


class Tracker(Protocol):
    """One place that figures go to. Its class is made with an ``About``."""

    def log(self, points: Sequence[Point]) -> None:
        """Take in points; their times may lie in the past, and a step may come twice, as after a crash."""
        ...

    def close(self, totals: Mapping[str, float], *, done: bool) -> None:
        """The run is over (``done``), or will be taken up again."""
        ...


class TensorBoard:
    """Event files in the run's folder: ``tensorboard --logdir runs``."""

    def __init__(self, about: About) -> None:
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        self._writer: Any = EventFileWriter(str(about.folder / "tensorboard"))

    def log(self, points: Sequence[Point]) -> None:
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary

        for point in points:
            values = [
                Summary.Value(tag=f"{point.series}/{name}", simple_value=value) for name, value in point.figures.items()
            ]
            self._writer.add_event(Event(wall_time=point.at, step=point.step, summary=Summary(value=values)))
        self._writer.flush()

    def close(self, totals: Mapping[str, float], *, done: bool) -> None:
        import time

        self.log([Point(series="run", step=0, at=time.time(), figures=dict(totals))] if totals else [])
        self._writer.close()


class WandB:
    """A run of the project that WANDB_PROJECT names, or ``moot``; WANDB_API_KEY and WANDB_MODE say where it goes."""

    def __init__(self, about: About) -> None:
        import wandb

        self._run: Any = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            id=about.id,
            name=about.id,
            dir=str(about.folder),
            config=dict(about.recipe),
            resume="allow",
            settings=wandb.Settings(silent=True, console="off", x_disable_stats=True),
        )

    def log(self, points: Sequence[Point]) -> None:
        for series in {point.series for point in points}:  # wandb's own steps may only rise, and are one for all
            self._run.define_metric(f"{series}/*", step_metric=f"{series}/step")
        for point in points:
            named = {f"{point.series}/{name}": value for name, value in point.figures.items()}
            self._run.log({**named, f"{point.series}/step": point.step, f"{point.series}/time": point.at})

    def close(self, totals: Mapping[str, float], *, done: bool) -> None:
        self._run.summary.update(dict(totals))
        self._run.finish()


class MLflow:
    """A run of the experiment that MLFLOW_EXPERIMENT_NAME names, or ``moot``, where MLFLOW_TRACKING_URI says.

    Without that, a database in the run's folder.
    """

    def __init__(self, about: About) -> None:
        from mlflow.entities import Param
        from mlflow.tracking import MlflowClient

        uri = os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{(about.folder / 'mlflow.db').absolute()}"
        self._client: Any = MlflowClient(tracking_uri=uri)
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
        known = self._client.get_experiment_by_name(name)
        experiment = known.experiment_id if known else self._client.create_experiment(name)
        earlier = self._client.search_runs([experiment], f"tags.`moot.run` = '{about.id}'")
        if earlier:
            self._run_id = earlier[0].info.run_id
            self._client.set_terminated(self._run_id, "RUNNING")
            return
        run = self._client.create_run(experiment, run_name=about.id, tags={"moot.run": about.id})
        self._run_id = run.info.run_id
        params = [Param(key, value[:MAX_PARAM]) for key, value in flat(about.recipe)]
        self._client.log_batch(self._run_id, params=params[:100])

    def log(self, points: Sequence[Point]) -> None:
        from mlflow.entities import Metric

        metrics = [
            Metric(_plain(f"{point.series}/{name}"), value, int(point.at * 1000), point.step)
            for point in points
            for name, value in point.figures.items()
        ]
        for at in range(0, len(metrics), MAX_BATCH):
            self._client.log_batch(self._run_id, metrics=metrics[at : at + MAX_BATCH])

    def close(self, totals: Mapping[str, float], *, done: bool) -> None:
        for name, value in totals.items():
            self._client.log_metric(self._run_id, _plain(f"run/{name}"), value)
        self._client.set_terminated(self._run_id, "FINISHED" if done else "KILLED")


TRACKERS: dict[str, type[Any]] = {"tensorboard": TensorBoard, "wandb": WandB, "mlflow": MLflow}
"""Name in a recipe -> tracker. Each is an extra of its name."""


def flat(value: Any, at: str = "") -> list[tuple[str, str]]:
    """Nested plain data as dotted keys."""
    if not isinstance(value, Mapping):
        return [(at, str(value))]
    return [found for key, inner in value.items() for found in flat(inner, f"{at}.{key}" if at else str(key))]


def _plain(name: str) -> str:
    """MLflow takes letters, digits and a few signs."""
    return "".join(letter if letter.isalnum() or letter in "_-. /" else "_" for letter in name)
