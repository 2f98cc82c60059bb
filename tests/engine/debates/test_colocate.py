"""Which models make room for trainings, what that takes of the cluster, and where it cannot be."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from engine.check import check_recipe
from engine.config.colocation import leaves, way_of
from engine.config.recipe import Recipe
from engine.config.recipe_file import load_recipe
from engine.debates.colocate import gpu_share_of, gpus_of, lane_of
from engine.debates.resources import Machine, Need, check_resources, check_training
from protocols.errors import ConfigError
from tests.engine.config.test_recipe import GOOD

VLLM = {"backend": "vllm", "num_gpus": 1}
ONE_GPU = [Machine(4, 1)]


def write(folder: Path, local: dict[str, object]) -> Path:
    path = folder / "r.yaml"
    agents = {"ada": {"model": "local"}, "bo": {"model": "simulated"}}
    models = {"local": local, "simulated": {"backend": "scripted"}}
    path.write_text(yaml.safe_dump(GOOD | {"models": models, "agents": agents, "train": {"gpus_per_lane": 1}}))
    return path


def recipe(folder: Path, *overrides: str) -> Recipe:
    return load_recipe(write(folder, VLLM), overrides)


def check_room(recipe: Recipe) -> None:
    """As a cluster of one GPU does before it starts a loop."""
    way, model = way_of(recipe), recipe.models["local"]
    need = Need("local", 1, gpus_of(model, way))
    check_resources([need], ONE_GPU)
    lane = lane_of(recipe, ONE_GPU)
    assert lane is not None
    check_training(lane, [] if leaves(model, way) else [need], ONE_GPU)


def test_one_gpu_is_enough_for_a_loop_whose_model_makes_room(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"beside the models none has that left .*; set run\.colocate: release"):
        check_room(recipe(tmp_path))
    for way in ("release", "sleep"):
        check_room(recipe(tmp_path, f"run.colocate={way}"))


def test_two_models_that_sleep_are_never_on_one_gpu_and_each_leaves_room_for_a_lane(tmp_path: Path) -> None:
    this = recipe(tmp_path, "run.colocate=sleep")
    host, lane = gpus_of(this.models["local"], "sleep"), gpu_share_of("sleep")
    assert 2 * host > 1 and host + lane == 1
    assert gpus_of(this.models["simulated"], "sleep") == 0


def test_only_local_models_make_room(tmp_path: Path) -> None:
    this = recipe(tmp_path, "run.colocate=release")
    assert [name for name, model in this.models.items() if leaves(model, way_of(this))] == ["local"]
    simulated = recipe(tmp_path, "run.colocate=sleep", "agents.ada.model=simulated", "train.base_model=embedded")
    assert way_of(simulated) is None and gpu_share_of(way_of(simulated)) == 1.0


def test_debates_cannot_go_on_with_models_that_are_away(tmp_path: Path) -> None:
    recipe(tmp_path, "loop.staleness=1")
    for way in ("release", "sleep"):
        with pytest.raises(ConfigError, match=rf"run\.colocate={way} sends models away .* loop\.staleness=1 has them"):
            recipe(tmp_path, f"run.colocate={way}", "loop.staleness=1")


def test_how_a_run_makes_room_is_no_part_of_what_is_run(tmp_path: Path) -> None:
    assert recipe(tmp_path).fingerprint == recipe(tmp_path, "run.colocate=release").fingerprint


@pytest.mark.parametrize(
    ("local", "override", "says"),
    [
        (
            {"backend": "transformers"},
            "seed=1",
            r"models\.local \(transformers\) cannot sleep, which only vllm on a GPU",
        ),
        ({"backend": "vllm"}, "seed=1", r"models\.local\.num_gpus=0: it shares one whole GPU"),
        (VLLM | {"num_gpus": 0.5}, "seed=1", r"models\.local\.num_gpus=0\.5: it shares one whole GPU"),
        (
            VLLM | {"num_gpus": 2, "tensor_parallel": 2},
            "seed=1",
            r"models\.local\.num_gpus=2: .* or run\.colocate: rel",
        ),
        (VLLM, "train.gpus_per_lane=0", r"train\.gpus_per_lane=0 leaves them on CPU; set it to 1"),
        (VLLM, "train.num_lanes=2", r"train\.num_lanes=2 and there are 1; lower it to that"),
        (VLLM, "run.colocate=nap", r"run\.colocate='nap' is not known; use one of: release, sleep"),
    ],
)
def test_where_nothing_can_sleep_it_is_said(tmp_path: Path, local: dict[str, object], override: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        load_recipe(write(tmp_path, local), ["run.colocate=sleep", override])


def test_the_vllm_for_cpus_is_refused_by_the_dry_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path, VLLM)
    monkeypatch.setattr("engine.config.colocation.runs_on_cpu", lambda: True)
    with pytest.raises(
        ConfigError, match=r"run\.colocate=sleep needs a GPU, and the vLLM that is installed is the one"
    ):
        check_recipe(path, ["run.colocate=sleep"], None)
    check_recipe(path, ["run.colocate=release"], None)
    monkeypatch.setattr("engine.config.colocation.runs_on_cpu", lambda: False)
    check_recipe(path, ["run.colocate=sleep"], None)


def test_no_gpu_is_released_for_trainings_on_cpus(tmp_path: Path) -> None:
    path = write(tmp_path, VLLM)
    says = r"run\.colocate=release takes the GPU from models\.local .* train\.gpus_per_lane=0 leaves those on CPU"
    with pytest.raises(ConfigError, match=says):
        load_recipe(path, ["run.colocate=release", "train.gpus_per_lane=0"])
    load_recipe(path, ["run.colocate=release", "train.gpus_per_lane=1"])
    load_recipe(path, ["run.colocate=release", "train.gpus_per_lane=0", "models.local.num_gpus=0"])
