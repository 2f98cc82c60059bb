"""Lanes on a local Ray: training while rows come, and going on after a worker, or all but the disk, is lost."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from protocols.errors import ConfigError, TrainerError
from trainers.jobs.job import TrainedAdapter, TrainingJob, is_trained, read_trained
from trainers.jobs.lanes import LanePlace, fit_lanes, worker_env
from trainers.record.feed import Feed, FeedPage, make_feed_actor
from trainers.selection.example import Example
from trainers.tuning.sft import load_base, train_adapter
from trainers.tuning.sft_settings import SFTResult, SFTSettings

SETTINGS = SFTSettings(rank=4, batch_size=2, epochs=2, learning_rate=1e-2, seed=3)
NUM_ROWS = 11  # odd: each epoch ends on a step of one row


class FitThread(threading.Thread):
    """``fit_lanes`` beside the test, as the engine runs it."""

    def __init__(self, jobs: list[TrainingJob], **arguments: Any) -> None:
        super().__init__(daemon=True)
        self._jobs, self._arguments = jobs, arguments
        self.trained: list[TrainedAdapter] = []
        self.error: Exception | None = None
        self.start()

    def run(self) -> None:
        try:
            self.trained = fit_lanes(self._jobs, **self._arguments)
        except Exception as err:  # looked at by the test
            self.error = err

    def wait_for(self, what: Callable[[], Any], *, timeout_s: float = 300.0) -> Any:
        deadline = time.monotonic() + timeout_s
        while not (found := what()):
            assert self.is_alive(), self.error
            assert time.monotonic() < deadline, "waited too long"
            time.sleep(0.05)
        return found

    def result(self) -> list[TrainedAdapter]:
        self.join(timeout=300)
        assert not self.is_alive()
        if self.error is not None:
            raise self.error
        return self.trained


def processes(title: str) -> list[Any]:
    """Those of this session's Ray that have this in their title."""
    psutil = pytest.importorskip("psutil")
    found = []
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):
            if title in " ".join(process.cmdline()):
                found.append(process)
    return found


def num_steps_saved(storage: Path) -> int:
    """Steps that the newest committed checkpoint holds; 0 without one."""
    import msgspec

    steps = [0]
    for file in storage.glob("*/checkpoint_*/trainer_state.json"):
        try:
            steps.append(msgspec.json.decode(file.read_bytes())["global_step"])
        except (OSError, msgspec.DecodeError):
            continue  # being replaced
    return max(steps)


def _undisturbed(model: Path, examples: list[Example], output: Path) -> SFTResult:
    """The same training in this process, without Ray, on a base that nothing else touched."""

    class Source:
        def read(self, offset: int, limit: int) -> FeedPage:
            return feed.read("ada", offset, limit)

    feed = Feed(output.parent / f"{output.name}-feed")
    for index, example in enumerate(examples, 1):
        feed.add(example.debate_id, {"ada": [example]}, index / NUM_ROWS)
    feed.finish()
    base, tokenizer = load_base(str(model), "float32")
    result = train_adapter(base, tokenizer, Source(), SETTINGS, agent="ada", output=output)
    feed.close()
    return result


def _weights(folder: Path) -> Any:
    from safetensors.numpy import load_file

    return load_file(folder / "adapter_model.safetensors")


def _assert_same_training(trained: TrainedAdapter, expected: SFTResult, folder: Path) -> None:
    np = pytest.importorskip("numpy")
    result = trained.result
    assert isinstance(result, SFTResult)
    assert (result.steps, result.rows, result.rows_seen) == (expected.steps, NUM_ROWS, 2 * NUM_ROWS)
    assert (result.data_hash, result.completion_tokens) == (expected.data_hash, expected.completion_tokens)
    np.testing.assert_allclose(result.losses, expected.losses, rtol=1e-4)
    np.testing.assert_allclose(result.learning_rates, expected.learning_rates, rtol=1e-6)
    got, wanted = _weights(Path(trained.path)), _weights(folder)
    assert got.keys() == wanted.keys()
    for name in wanted:
        np.testing.assert_allclose(got[name], wanted[name], atol=1e-4, err_msg=name)


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # Ray and transformers deprecate parts of their own
@pytest.mark.timeout(1500)  # four starts of a training worker
def test_a_killed_worker_and_a_lost_driver_change_nothing(
    local_ray: Any, tiny_model: Path, make_example: Callable[..., Example], tmp_path: Path
) -> None:
    ray = local_ray
    ada = [make_example(index) for index in range(NUM_ROWS)]
    bo = [make_example(index, agent="bo", completion=f"Sum: {index}") for index in range(NUM_ROWS)]
    jobs = [  # cy never agreed with a verdict
        TrainingJob(agent=agent, name=f"{agent}@r-v1", output=str(tmp_path / "adapters" / agent))
        for agent in ("ada", "cy", "bo")
    ]
    feed = make_feed_actor(tmp_path / "feed")

    def close_debates(start: int, stop: int) -> None:
        for index in range(start, stop):
            rows = {"ada": [ada[index]], "bo": [bo[index]]}
            ray.get(feed.add.remote(ada[index].debate_id, rows, (index + 1) / NUM_ROWS))

    def fit(num_lanes: int) -> FitThread:
        return FitThread(
            jobs,
            settings=SETTINGS,
            base_model=str(tiny_model),
            feed=feed,
            storage_path=tmp_path / "storage",
            name="r",
            num_lanes=num_lanes,
            place=LanePlace(resources={"moot_trainers": 0.001}, max_failures=1),
            checkpoint_every=1,
        )

    close_debates(0, 5)
    fitting = fit(num_lanes=1)
    fitting.wait_for(lambda: num_steps_saved(tmp_path / "storage") == 2)  # four rows; the fifth waits for a partner
    assert not processes("PlacementGroupCleaner") + processes("AutoscalingCoordinator"), "not needed, and not cheap"
    (worker,) = processes("RayTrainWorker")
    worker.kill()
    close_debates(5, 9)
    fitting.wait_for(lambda: num_steps_saved(tmp_path / "storage") == 4)
    ray.kill(feed)  # as when the driver dies, and all it owns
    with pytest.raises(TrainerError, match=r"training lane 'r-lane0' \(ada, cy, bo\) failed with max_failures=1: "):
        fitting.result()

    feed = make_feed_actor(tmp_path / "feed")
    close_debates(0, NUM_ROWS)  # the driver says it all again; the feed keeps the first
    ray.get(feed.finish.remote())
    with pytest.raises(TrainerError, match=r"^no debate gave a row for 'cy' to train on: none"):
        fit(num_lanes=2).result()
    assert [is_trained(job) for job in jobs] == [True, False, True]

    expected = _undisturbed(tiny_model, ada, tmp_path / "undisturbed-ada")
    _assert_same_training(read_trained(jobs[0]), expected, tmp_path / "undisturbed-ada")
    assert ray.get(feed.data_hash.remote("ada")) == expected.data_hash
    # Bo's came second on the same loaded base, and is what a base fresh from disk gives.
    expected = _undisturbed(tiny_model, bo, tmp_path / "undisturbed-bo")
    found = fit_lanes(
        jobs[2:],
        settings=SETTINGS,
        base_model=str(tiny_model),
        feed=feed,
        storage_path=tmp_path / "storage",
        name="r",
    )
    _assert_same_training(found[0], expected, tmp_path / "undisturbed-bo")  # not trained again


def test_jobs_that_exclude_each_other_are_refused_before_anything_starts(tmp_path: Path) -> None:
    arguments: dict[str, Any] = {"settings": SETTINGS, "base_model": "m", "feed": None, "storage_path": tmp_path}
    job = TrainingJob(agent="ada", name="ada@r-v1", output=str(tmp_path / "ada"))
    with pytest.raises(ConfigError, match="no agent to train"):
        fit_lanes([], name="r", **arguments)
    with pytest.raises(ConfigError, match="two adapters have the name 'ada@r-v1'"):
        fit_lanes([job, job], name="r", **arguments)
    with pytest.raises(TrainerError, match=r"adapter 'ada@r-v1' is not trained: there is no .*ada/training.json"):
        read_trained(job)
    (tmp_path / "ada").mkdir()
    (tmp_path / "ada" / "training.json").write_text('{"steps": 1}')
    with pytest.raises(TrainerError, match=r"holds an adapter of another training than sft, .* or remove the folder"):
        read_trained(job)
    with pytest.raises(ConfigError, match="num_lanes=0 must be at least 1"):
        fit_lanes([job], name="r", num_lanes=0, **arguments)


def test_workers_get_as_many_threads_as_cores_and_keep_what_was_preloaded(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    library = tmp_path / "lib" / "libiomp5.so"
    library.parent.mkdir()
    library.touch()
    monkeypatch.setattr("sys.prefix", str(tmp_path))
    monkeypatch.setenv("LD_PRELOAD", "/opt/libjemalloc.so")
    assert worker_env(2.0)["LD_PRELOAD"] == f"{library}:/opt/libjemalloc.so"
    assert worker_env(2.0)["OMP_NUM_THREADS"] == "2"
    assert worker_env(0.5)["OMP_NUM_THREADS"] == "1"
    assert "LD_PRELOAD" not in worker_env(2.0, use_gpu=True)
    hidden = {
        use_gpu: "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO" in worker_env(1.0, use_gpu=use_gpu) for use_gpu in (False, True)
    }
    assert hidden == {False: True, True: False}  # Ray shows all GPUs to whoever asks for none
    assert os.environ["LD_PRELOAD"] == "/opt/libjemalloc.so"
