"""A lane of two processes on a local Ray: one is killed, both go on, and the models are those of one process."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from protocols.errors import ConfigError
from tests.trainers.jobs.test_lanes import FitThread, num_steps_saved, processes
from tests.trainers.tuning.test_sft import ListSource
from trainers.jobs.job import TrainingJob
from trainers.jobs.lanes import LanePlace, fit_lanes
from trainers.record.feed import make_feed_actor
from trainers.selection.example import Example
from trainers.tuning.full import train_model
from trainers.tuning.sft import load_base
from trainers.tuning.sft_settings import SFTResult, SFTSettings

SETTINGS = SFTSettings(method="full", batch_size=2, epochs=2, learning_rate=1e-3, seed=3)
NUM_ROWS = 7


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
@pytest.mark.timeout(600)  # two starts of two workers
def test_processes_that_share_a_model_die_and_go_on_together(
    local_ray: Any, tiny_model: Path, make_example: Callable[..., Example], tmp_path: Path
) -> None:
    import torch
    from safetensors.torch import load_file

    rows = {
        "ada": [make_example(index) for index in range(NUM_ROWS)],
        "bo": [make_example(index, agent="bo", completion=f"Sum: {index}") for index in range(NUM_ROWS)],
    }
    jobs = [TrainingJob(agent=name, name=f"{name}@r-v1", output=str(tmp_path / "models" / name)) for name in rows]
    feed = make_feed_actor(tmp_path / "feed")

    def close_debates(start: int, stop: int) -> None:
        for index in range(start, stop):
            found = {name: [examples[index]] for name, examples in rows.items()}
            local_ray.get(feed.add.remote(f"d{index}", found, (index + 1) / NUM_ROWS))

    close_debates(0, 5)
    fitting = FitThread(
        jobs,
        settings=SETTINGS,
        base_model=str(tiny_model),
        feed=feed,
        storage_path=tmp_path / "storage",
        name="r",
        num_lanes=1,
        place=LanePlace(ranks=2, cpus=0.5, resources={"moot_trainers": 0.001}, max_failures=1),
        checkpoint_every=1,
    )
    fitting.wait_for(lambda: num_steps_saved(tmp_path / "storage") == 2)  # four rows; the fifth waits for a partner
    processes("RayTrainWorker")[0].kill()
    close_debates(5, NUM_ROWS)
    local_ray.get(feed.finish.remote())
    for trained, examples in zip(fitting.result(), rows.values(), strict=True):
        found, where = trained.result, tmp_path / f"alone-{trained.agent}"
        model, tokenizer = load_base(str(tiny_model), "float32", method="full")
        alone = train_model(model, tokenizer, ListSource(examples), SETTINGS, agent=trained.agent, output=where)
        assert isinstance(found, SFTResult)
        assert (found.steps, found.rows_seen, found.data_hash) == (8, 2 * NUM_ROWS, alone.data_hash)
        assert found.losses == pytest.approx(alone.losses, rel=1e-5)
        got = load_file(Path(trained.path) / "model.safetensors")
        for name, weight in load_file(where / "model.safetensors").items():
            torch.testing.assert_close(got[name], weight, rtol=0, atol=1e-5, msg=name)


def test_an_adapter_is_one_processs(tmp_path: Path) -> None:
    job = TrainingJob(agent="ada", name="ada@r-v1", output=str(tmp_path / "ada"))
    arguments: dict[str, Any] = {"base_model": "m", "feed": None, "storage_path": tmp_path, "name": "r"}
    with pytest.raises(
        ConfigError, match=r"^train: 2 processes a lane share whole models alone; set sft\.method: full"
    ):
        fit_lanes([job], settings=SFTSettings(), place=LanePlace(ranks=2), **arguments)
