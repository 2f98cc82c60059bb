"""MLflow reads what was told. It asks for an older pyarrow than ours: this runs where it is installed all the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from mlflow.tracking import MlflowClient

from engine.results.trackers import TRACKERS
from tests.engine.results.test_track import tell


@pytest.mark.filterwarnings("default")
def test_mlflow_reads_what_was_told(tmp_path: Path) -> None:
    tell(TRACKERS["mlflow"], tmp_path)
    client: Any = MlflowClient(tracking_uri=f"sqlite:///{tmp_path / 'mlflow.db'}")
    (run,) = client.search_runs([client.get_experiment_by_name("moot").experiment_id])
    assert run.info.status == "FINISHED" and run.data.params["sft.rank"] == "4"
    history = client.get_metric_history(run.info.run_id, "train/ada/loss")
    assert [(one.step, one.timestamp, one.value) for one in history] == [(1, 1001000, 1.0), (2, 1002000, 0.5)]
    assert run.data.metrics["eval/vote_ round 0"] == 0.5 and run.data.metrics["run/cost_usd"] == 0.25
