"""Serving and training on one device, as a recipe asks for it: which models make room for trainings, and how.

With ``run.colocate`` local models give up their device when a stage's debates have closed, and have it again when the
trainings are over: ``release`` ends their processes and starts them again, ``sleep`` is vLLM's sleep mode. Services
and simulated models stay as they are. What a recipe comes to is the same either way.
"""

from __future__ import annotations

from actors.catalogue import BACKENDS
from actors.local.vllm_settings import runs_on_cpu
from engine.config.models import Model, Way
from engine.config.recipe import Recipe
from protocols.errors import ConfigError


def way_of(recipe: Recipe) -> Way | None:
    """How the recipe's local models make room; None: they need not, or there are none."""
    return recipe.run.colocate if local_models(recipe) else None


def leaves(model: Model, way: Way | None) -> bool:
    """Whether the model's hosts are gone, and all that they take, while trainings run."""
    return way == "release" and BACKENDS[model.backend].heavy


def check_colocation(recipe: Recipe, where: str) -> None:
    """Raises: ConfigError: debates want models that are away, or one cannot sleep, or would for nothing."""
    if recipe.run.colocate and recipe.loop.staleness:
        raise ConfigError(
            f"{where}: run.colocate={recipe.run.colocate} sends models away while trainings run, but "
            f"loop.staleness={recipe.loop.staleness} has them debate meanwhile; leave one of the two out"
        )
    at, local = f"{where}: run.colocate={recipe.run.colocate}", local_models(recipe)
    on_gpus = [name for name, model in local.items() if model.place.num_gpus]
    if recipe.run.colocate == "release" and on_gpus and not recipe.train.gpus_per_lane and recipe.learners:
        raise ConfigError(
            f"{at} takes the GPU from models.{on_gpus[0]} while trainings run, but train.gpus_per_lane=0 leaves those "
            "on CPU; set it to 1, or leave run.colocate out"
        )
    if recipe.run.colocate != "sleep":
        return
    for name, model in local.items():
        if not BACKENDS[model.backend].sleeps:
            raise ConfigError(
                f"{at}, but models.{name} ({model.backend}) cannot sleep, which only vllm on a GPU can; set "
                "run.colocate: release"
            )
        if model.place.num_gpus != 1:
            raise ConfigError(
                f"{at}, but models.{name}.num_gpus={model.place.num_gpus:g}: it shares one whole GPU with a training; "
                f"set models.{name}.num_gpus: 1, or run.colocate: release"
            )
    if local and not recipe.train.gpus_per_lane:
        raise ConfigError(
            f"{at} gives trainings the GPUs of models, but train.gpus_per_lane=0 leaves them on CPU; set it to 1, or "
            "leave run.colocate out"
        )
    num_engines = sum(model.place.replicas for model in local.values())
    if local and recipe.train.num_lanes > num_engines:
        raise ConfigError(
            f"{at} gives each lane the GPU of an engine, but train.num_lanes={recipe.train.num_lanes} and there are "
            f"{num_engines}; lower it to that"
        )


def check_sleep(recipe: Recipe, where: str) -> None:
    """The same of what is installed here. Raises: ConfigError: this vLLM has no sleep mode."""
    if recipe.run.colocate == "sleep" and local_models(recipe) and runs_on_cpu():
        raise ConfigError(
            f"{where}: run.colocate=sleep needs a GPU, and the vLLM that is installed is the one for CPUs, which "
            "ignores it; set run.colocate: release, or install 'moot[gpu]' where there is a GPU"
        )


def local_models(recipe: Recipe) -> dict[str, Model]:
    """The models in use that hold a device."""
    return {
        name: recipe.models[name]
        for name in sorted(recipe.models_in_use)
        if BACKENDS[recipe.models[name].backend].heavy
    }
